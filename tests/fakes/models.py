"""What the fake providers do, chosen by the model's name. `MODELS` is the list.

A behaviour is a generator of steps: `Say`, `Think`, … become chunks of the wire in use, a number is
a pause in seconds. It is asked for the next step at the moment that step is sent.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.fakes.http import Cut, Hang
from tests.fakes.wires import Asked, Refusal


@dataclass(slots=True)
class Say:
    text: str


@dataclass(slots=True)
class Think:
    text: str


class Redacted:
    """A thinking block that only the provider can read."""


@dataclass(slots=True)
class Call:
    name: str
    arguments: str = "{}"


@dataclass(slots=True)
class Stop:
    reason: str = "stop"
    cached: tuple[int, int] = (0, 0)  # tokens read from and written to the prompt cache


@dataclass(slots=True)
class Fail:
    """An error in the middle of the stream."""

    refusal: Refusal


@dataclass(slots=True)
class Raw:
    data: bytes


class End:
    """The response ends here, without a final event."""


Step = Say | Think | Call | Stop | Fail | Raw | float | type
Behaviour = Callable[["Context"], Iterator[Step]]


@dataclass
class Context:
    asked: Asked
    match: re.Match[str]
    url: str  # of this server
    seen: int  # requests with this last user text and model before this one
    held: Callable[[], bool] = lambda: False  # whether a test holds this last user text

    def number(self, group: str | int, default: float) -> float:
        value = self.match[group]
        return float(value) if value else default


TALE = """
The harbour wakes before the town does: ropes creak, a gull complains, and somebody counts crates
in a voice made for fog. By seven the first boats are back, the ice is in, and the price of cod has
already been argued over twice.
"""
WORDS = TALE.split()

MARKDOWN = """\
# A week on the coast

Three days are enough, **five are better**. Take the *slow* train and read `tides.txt` first.

## What to pack

- a warm jumper
- boots that have *already* been wet
  - and dry socks
- [ ] a map on paper

1. Book the ferry.
2. Check the [tide tables](https://example.com/tides).
3. Leave early.

| Day | Place | Walk (km) |
|:----|:------|----------:|
| 1 | Harbour | 4.5 |
| 2 | Lighthouse | 12 |
| 3 | Salt marsh | 8 |

> The sea is not in a hurry, and nor should you be.

```python
def safe(tide: float, wind: int) -> bool:
    \"\"\"Whether the causeway can be crossed.\"\"\"
    return tide < 1.2 and wind <= 5  # metres, Beaufort
```

Inline maths stays text: `a < b && c > d`. ![a boat](https://example.com/boat.png)

---

Have a good walk. <script>alert("not run")</script>
"""


def _tokens(text: str) -> list[str]:
    """A text in pieces of about a word each, which joined give the text."""
    return re.findall(r"\s*\S+|\s+\Z", text)


def _say(text: str, pause: float = 0.01) -> Iterator[Step]:
    for token in _tokens(text):
        yield Say(token)
        yield pause


def echo(context: Context) -> Iterator[Step]:
    text = context.asked.last_user or "(nothing)"
    if asked := re.match(r"Give this conversation a title.*?The message:\n", text, re.DOTALL):
        text = " ".join(text[asked.end() :].split()[:5]).rstrip(".,;:?!")
    yield from _say(text)
    yield Stop()


def _flow(count: int, pause: float) -> Iterator[Step]:
    for n in range(count):
        yield Say((" " if n else "") + WORDS[n % len(WORDS)])
        yield pause
    yield Stop()


def fast(context: Context) -> Iterator[Step]:
    yield from _flow(int(context.number("n", 150)), 1 / context.number("rate", 30))


def bench(context: Context) -> Iterator[Step]:
    pause = 1 / context.number("rate", 30)
    for _ in range(int(context.number("n", 150))):
        yield Say(f"{time.monotonic_ns()} ")
        yield pause
    yield Stop()


def slow(context: Context) -> Iterator[Step]:
    yield context.number("seconds", 2)
    yield from _say("Sorry, that took a while.")
    yield Stop()


def long(context: Context) -> Iterator[Step]:
    yield from _flow(int(context.number("n", 2000)), 0.002)


def markdown(context: Context) -> Iterator[Step]:
    for token in re.findall(r"\S+\s*|\s+", MARKDOWN):
        yield Say(token)
        yield 0.015
    yield Stop()


def thinking(context: Context) -> Iterator[Step]:
    for token in _tokens("The question is short, so the answer can be short as well."):
        yield Think(token)
        yield 0.01
    yield from _say("Here is the short answer: yes.")
    yield Stop()


def thinking_tools(context: Context) -> Iterator[Step]:
    asked = context.asked
    if asked.rounds == 0 and "current_time" in asked.tools:
        yield Redacted
        yield Think("I should look at the clock.")
        yield Call("current_time")
        yield Stop("tool_calls")
    else:
        yield Think("Now I know.")
        yield from _answer(context)


def _answer(context: Context) -> Iterator[Step]:
    """The last words after tools: what they gave, and what people added meanwhile."""
    asked = context.asked
    yield from _say(f"Done after {asked.rounds} tool rounds.")
    if asked.results:
        yield from _say(f"\n\nThe last result began: {asked.results[-1][:80]}")
    for text in asked.steered:
        yield from _say(f"\n\nYou added: {text}")
    yield Stop()


def held(context: Context) -> Iterator[Step]:
    yield from _say("Wait for me, please.")
    while context.held():
        yield 0.02
    if context.match["tools"] and context.asked.rounds == 0 and context.asked.tools:
        yield Call("current_time")
        yield Stop("tool_calls")
    else:
        yield from _say("\n\n")
        yield from _answer(context)


def _call(context: Context, name: str) -> Call:
    if name != "fetch_url":
        return Call(name)
    said = " ".join(text for role, text in context.asked.texts if role == "user")
    found = re.findall(r"https?://\S+", said)
    return Call(name, json.dumps({"url": found[-1] if found else "https://example.com/"}))


def tools(context: Context) -> Iterator[Step]:
    asked = context.asked
    plan = [name for name in ("current_time", "fetch_url") if name in asked.tools]
    if asked.rounds < len(plan):
        name = plan[asked.rounds]
        yield from _say(f"Let me use {name}.", 0.05)
        yield _call(context, name)
        yield Stop("tool_calls")
    else:
        yield from _answer(context)


def tool_rounds(context: Context) -> Iterator[Step]:
    asked = context.asked
    rounds = context.match["n"]
    if asked.tools and (rounds == "forever" or asked.rounds < int(rounds)):
        yield from _say(f"Round {asked.rounds + 1}.", 0.05)
        yield context.number("seconds", 0.5)
        yield _call(context, "current_time" if "current_time" in asked.tools else asked.tools[0])
        yield Stop("tool_calls")
    else:
        yield from _answer(context)


def calls(context: Context) -> Iterator[Step]:
    said = "\n".join(text for role, text in context.asked.texts if role == "user")
    plan = re.findall(r"^call (\S+) ?(.*)$", said, re.MULTILINE)
    if context.asked.rounds < len(plan):
        name, arguments = plan[context.asked.rounds]
        yield Call(name, arguments or "{}")
        yield Stop("tool_calls")
    else:
        yield from _answer(context)


def tools_parallel(context: Context) -> Iterator[Step]:
    if context.asked.rounds == 0 and context.asked.tools:
        for name in context.asked.tools[:2]:
            yield _call(context, name)
        yield Stop("tool_calls")
    else:
        yield from _answer(context)


def tools_bad_args(context: Context) -> Iterator[Step]:
    if context.asked.rounds == 0 and context.asked.tools:
        yield Call(context.asked.tools[0], '{"timezone": "Europe/')
        yield Stop("tool_calls")
    else:
        yield from _answer(context)


def vision(context: Context) -> Iterator[Step]:
    images = context.asked.images
    yield from _say(f"I see {len(images)} images: {', '.join(images) or 'none'}.")
    yield Stop()


def cached(context: Context) -> Iterator[Step]:
    yield from _say("Most of this was in the cache.")
    yield Stop(cached=(200, 50))


def error(context: Context) -> Iterator[Step]:
    raise Refusal(*ERRORS[context.match[1]], model=context.asked.model)
    yield  # a generator, as all behaviours are


def error_echo(context: Context) -> Iterator[Step]:
    raise Refusal("bad_request", context.asked.last_user)
    yield


ERRORS = {
    "401": ("auth", "Incorrect API key provided."),
    "403": ("forbidden", "Your key may not use this model."),
    "404": ("model", "The model `err-404` does not exist or you do not have access to it."),
    "429": ("rate", "Rate limit reached for requests."),
    "quota": ("quota", "You exceeded your current quota, please check your plan."),
    "400": ("bad_request", "Something in this request is not right."),
    "400-context": ("context", "This request is longer than the model's context window."),
    "413": ("large", "Request exceeds the maximum size."),
    "500": ("server", "The server had an error while processing your request."),
    "503": ("unavailable", "The service is not ready."),
    "529": ("overloaded", "Overloaded."),
}


def rate_limited(context: Context) -> Iterator[Step]:
    seconds = int(context.number("seconds", 2))
    raise Refusal("rate", "Rate limit reached for requests.", headers={"retry-after": str(seconds)})
    yield


def rate_limited_then_ok(context: Context) -> Iterator[Step]:
    if context.seen == 0:
        yield from rate_limited(context)
    yield from echo(context)


def redirect(context: Context) -> Iterator[Step]:
    # another origin: same port, other name
    location = context.url.replace("127.0.0.1", "localhost") + "/_elsewhere"
    raise Refusal("redirect", location, status=int(context.number("status", 307)))
    yield


def cut(context: Context) -> Iterator[Step]:
    yield from _say("This reply is cut off in the middle of a")
    yield Cut


def early_end(context: Context) -> Iterator[Step]:
    yield from _say("This reply ends without its last event")
    yield End


def stall(context: Context) -> Iterator[Step]:
    yield from _say("And then nothing")
    yield Hang


def stall_first(context: Context) -> Iterator[Step]:
    raise Refusal("hang")
    yield


def malformed(context: Context) -> Iterator[Step]:
    yield from _say("So far so good")
    yield Raw(b'data: {"type": "content_block_delta", "delta": {"te\n\n')
    yield Stop()


def error_mid(context: Context) -> Iterator[Step]:
    yield from _say("Halfway there")
    yield Fail(Refusal("overloaded", "Overloaded"))
    yield End


def empty(context: Context) -> Iterator[Step]:
    yield Stop()


def length(context: Context) -> Iterator[Step]:
    yield from _say("This reply is as long as it may be and")
    yield Stop("length")


def refusal(context: Context) -> Iterator[Step]:
    yield from _say("I can't help with that.")
    yield Stop("refusal")


def html(context: Context) -> Iterator[Step]:
    raise Refusal("html")
    yield


def json_error(context: Context) -> Iterator[Step]:
    raise Refusal("json-200")
    yield


def no_stream_options(context: Context) -> Iterator[Step]:
    if "stream_options" in context.asked.fields:
        message = "Unknown parameter: 'stream_options'."
        raise Refusal("bad_request", message, param="stream_options", code="unknown_parameter")
    yield from echo(context)


def max_completion_tokens(context: Context) -> Iterator[Step]:
    if "max_tokens" in context.asked.fields:
        message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        raise Refusal("bad_request", message, param="max_tokens", code="unsupported_parameter")
    yield from echo(context)


def no_tools(context: Context) -> Iterator[Step]:
    if context.asked.tools:
        raise Refusal("bad_request", "This model doesn't support tool use in streaming mode.")
    yield from echo(context)


def no_system(context: Context) -> Iterator[Step]:
    if context.asked.system:
        message = "This model doesn't support system messages. Try again without a system message."
        raise Refusal("bad_request", message)
    yield from echo(context)


def endless(context: Context) -> Iterator[Step]:
    text = "word " * 200
    while True:
        yield Say(text)


def huge_line(context: Context) -> Iterator[Step]:
    yield Raw(b'data: {"x": "')
    for _ in range(1600):
        yield Raw(b"x" * 65536)
    yield Raw(b'"}\n\n')
    yield Stop()


@dataclass(frozen=True)
class Model:
    name: str  # an example that works
    pattern: str  # matched whole
    about: str
    behaviour: Behaviour


_RATE = r"-(?P<rate>\d+)tps(?:-(?P<n>\d+))?"

MODELS = tuple(
    Model(*row)
    for row in (
        ("echo", "echo", "repeats the last user text", echo),
        ("fast-30tps", f"fast{_RATE}", "30 tokens/s, 150 of them; -N at the end: N tokens", fast),
        ("bench-30tps-150", f"bench{_RATE}", "each token is its time.monotonic_ns()", bench),
        ("slow-2s", r"slow(?:-(?P<seconds>\d+)s)?", "first token after 2 s", slow),
        ("long-2000", r"long(?:-(?P<n>\d+))?", "2,000 tokens at 500/s", long),
        (
            "held",
            "held(?P<tools>-tools)?",
            "some words, and no more while a test holds the last text; held-tools: then a call",
            held,
        ),
        ("markdown", "markdown", "headings, lists, table, code, hostile HTML", markdown),
        ("thinking", "thinking", "thinks, then answers", thinking),
        (
            "thinking-tools",
            "thinking-tools",
            "thinks, calls current_time; insists that its thinking comes back",
            thinking_tools,
        ),
        ("tools", "tools", "calls current_time, then fetch_url, if offered; answers", tools),
        (
            "tools-3",
            r"tools-(?P<n>\d+|forever)(?:-(?P<seconds>[\d.]+)s)?",
            "three tool rounds, each after 0.5 s; tools-N-Ds: N rounds after D s; tools-forever",
            tool_rounds,
        ),
        ("calls", "calls", "calls what each line “call NAME JSON” names, one a round", calls),
        ("tools-parallel", "tools-parallel", "two calls in one reply", tools_parallel),
        ("tools-bad-args", "tools-bad-args", "a call whose arguments aren't JSON", tools_bad_args),
        ("vision", "vision", "answers with number and types of the images", vision),
        ("cached", "cached", "usage with 200 tokens read from, 50 written to the cache", cached),
        ("empty", "empty", "a clean end without text", empty),
        ("length", "length", "ends at max_tokens", length),
        ("refusal", "refusal", "ends with the provider's refusal", refusal),
        *(
            (f"err-{name}", f"err-({name})", f"the error {name}", error)
            for name in ERRORS
            if name != "429"
        ),
        ("err-echo", "err-echo", "an error 400 in the last user text's words", error_echo),
        (
            "err-429",
            r"err-429(?:-after-(?P<seconds>\d+))?",
            "rate limit, Retry-After 2; err-429-after-N: N",
            rate_limited,
        ),
        (
            "err-429-then-ok",
            r"err-429-then-ok(?:-after-(?P<seconds>\d+))?",
            "the first request of each user text gets a 429, later ones an echo",
            rate_limited_then_ok,
        ),
        ("redirect", r"redirect(?:-(?P<status>30[12378]))?", "307 to another origin", redirect),
        ("cut", "cut", "connection reset in the middle", cut),
        ("early-end", "early-end", "a clean end without the final event", early_end),
        ("stall", "stall", "some words, then silence", stall),
        ("stall-first", "stall-first", "silence from the start, no status line", stall_first),
        ("malformed", "malformed", "broken JSON in the stream", malformed),
        ("error-mid", "error-mid", "an error event in the middle (overloaded)", error_mid),
        ("html", "html", "200 with a web page", html),
        ("json-200", "json-200", "200 with a JSON error, as LM Studio does", json_error),
        (
            "no-stream-options",
            "no-stream-options",
            "refuses stream_options, else an echo",
            no_stream_options,
        ),
        (
            "max-completion-tokens",
            "max-completion-tokens",
            "refuses max_tokens, else an echo",
            max_completion_tokens,
        ),
        ("no-tools", "no-tools", "refuses tools, as some models of Bedrock do", no_tools),
        ("no-system", "no-system", "refuses a system prompt, as some models do", no_system),
        ("endless", "endless", "text without end, as fast as it is read", endless),
        ("huge-line", "huge-line", "one line of 100 MB", huge_line),
        ("gpt-6.1-sol", r"gpt-[\w.-]+|codex-[\w.-]+", "an echo under a real name", echo),
    )
)


def find(name: str) -> tuple[Model, re.Match[str]]:
    for model in MODELS:
        if match := re.fullmatch(model.pattern, name):
            return model, match
    raise Refusal("model", f"The model `{name}` does not exist.", model=name)
