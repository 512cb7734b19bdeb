"""What goes to Gemini and Claude on Vertex AI, and what is made of their replies."""

from __future__ import annotations

import json

import httpx
import orjson
import pytest

from connections import providers
from connections.providers import google_token
from connections.providers.base import (
    Done,
    ErrorKind,
    ModelRequest,
    ProviderError,
    TextDelta,
    TextEnd,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    Turnlet,
    Usage,
)
from connections.providers.errors import Scrubber
from connections.providers.vertex import place_of
from connections.providers.wire.gemini import Gemini, GeminiDecoder
from sessions.models import Message
from sessions.reply import Reply, blocks_of
from tests.connections.vertex import PUBLISHERS, spoken, target
from tests.connections.wires import (
    CLOCK,
    FETCH,
    answering,
    asking,
    canned,
    client,
    only,
    replies,
    said,
    text_of,
)
from tests.fakes.vertex import SKIP

IMAGE = {"t": "image", "media_type": "image/png", "data": "aGk="}


@pytest.fixture(autouse=True)
def no_tokens():
    google_token._kept.clear()


class Quiet:
    """Takes what a reply tells the pages."""

    def __getattr__(self, name):
        return lambda *arguments, **options: None


def stored(events, pages=None) -> Turnlet:
    """The reply as the turn keeps it, after a stay in the database."""
    reply = Reply("chat", "message", pages or Quiet())
    for event in events:
        match event:
            case TextDelta(text):
                reply.add_text(text)
            case TextEnd(sig):
                reply.end_text(sig)
            case ThinkingDelta(text):
                reply.add_thinking(text)
            case ThinkingEnd(sig):
                reply.end_thinking(sig)
            case ToolCall():
                reply.add_call(event)
    return Turnlet("assistant", json.loads(json.dumps(reply.finish())))


def results(*calls: ToolCall, more=()) -> Turnlet:
    answers = [{"t": "tool_result", "id": c.id, "name": c.name, "text": "12:00"} for c in calls]
    return Turnlet("user", [*answers, *more])


def decoded(*chunks) -> list:
    decoder = GeminiDecoder(Scrubber(target_of_nothing()))
    out: list = []
    for chunk in chunks:
        decoder.feed(b"", chunk if isinstance(chunk, bytes) else orjson.dumps(chunk), out)
    if decoder.reason:
        decoder.finish(out)
        out.append(Done(decoder.reason))
    return out


def target_of_nothing():
    from connections.providers.base import Target

    return Target("vertex", "environment")


def chunk(*parts, reason=None, usage=None) -> dict:
    candidate = {"content": {"role": "model", "parts": list(parts)}}
    if reason:
        candidate["finishReason"] = reason
    return {"candidates": [candidate], **({"usageMetadata": usage} if usage else {})}


def body_of(*history: Turnlet, **more) -> dict:
    about = {"model": "m", "history": list(history), "max_tokens": 100}
    return Gemini("/x").body(ModelRequest(**(about | more)))


def sent_parts(*history: Turnlet) -> list[tuple[str, list]]:
    return [(one["role"], one["parts"]) for one in body_of(*history)["contents"]]


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("us-central1", "us-central1-aiplatform.googleapis.com"),
        ("global", "aiplatform.googleapis.com"),
        ("us", "aiplatform.us.rep.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
    ],
)
def test_the_region_chooses_the_host(fakes, region, host):
    where = target(fakes, base_url="", region=region)
    assert providers.get("vertex").origin(where) == f"https://{host}"


def test_a_base_url_takes_the_place_of_the_host_with_its_version_or_without(fakes):
    vertex = providers.get("vertex")
    for base in ("https://proxy.example/x", "https://proxy.example/x/v1"):
        assert vertex.origin(target(fakes, base_url=base)) == "https://proxy.example/x"


@pytest.mark.parametrize(
    ("model", "publisher", "name"),
    [
        ("gemini-2.5-pro", "google", "gemini-2.5-pro"),
        ("claude-sonnet-4-5@20250929", "anthropic", "claude-sonnet-4-5@20250929"),
        ("anthropic/claude-opus-4-6", "anthropic", "claude-opus-4-6"),
        ("google/gemini-2.5-pro", "google", "gemini-2.5-pro"),
        ("publishers/anthropic/models/claude-x", "anthropic", "claude-x"),
        ("projects/p/locations/l/publishers/google/models/g", "google", "g"),
        ("my-tuned-model", "google", "my-tuned-model"),
        ("meta/llama-4", "meta", "llama-4"),
    ],
)
def test_a_models_id_names_its_publisher(model, publisher, name):
    assert place_of(model) == (publisher, name)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (
            "gemini-2.5-pro",
            "/publishers/google/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
        ),
        (
            "claude-sonnet-4-5@20250929",
            "/publishers/anthropic/models/claude-sonnet-4-5@20250929:streamRawPredict",
        ),
        (
            "google/../../x?y#z:countTokens",
            "/publishers/google/models/..%2F..%2Fx%3Fy%23z%3AcountTokens"
            ":streamGenerateContent?alt=sse",
        ),
    ],
)
async def test_the_path_holds_project_region_and_model_and_nothing_else(fakes, model, path):
    seen: list[httpx.Request] = []
    where = target(fakes, base_url="", region="global")
    google_token._kept[google_token._name(where)] = google_token.Token("t" * 20, 1e12)
    async with answering(seen, status=404) as http:
        await replies(http, where, asking(model))
    prefix = "https://aiplatform.googleapis.com/v1/projects/fake-project/locations/global"
    assert str(seen[0].url) == prefix + path


# -- requests: Gemini ------------------------------------------------------------------------------


def test_a_whole_conversation_in_geminis_words():
    call = {"t": "tool_call", "id": "c1", "name": "clock", "args": {"a": 1}}
    history = [
        Turnlet("user", [{"t": "text", "text": "look"}, IMAGE]),
        Turnlet("assistant", [{"t": "text", "text": "Let me."}, call]),
        Turnlet(
            "user",
            [
                {
                    "t": "tool_result",
                    "id": "c1",
                    "name": "clock",
                    "text": "no",
                    "is_error": True,
                },
                {"t": "text", "text": "steered"},
                IMAGE,
            ],
        ),
    ]
    image = {"inlineData": {"mimeType": "image/png", "data": "aGk="}}
    assert body_of(*history, system=" Be brief. ", tools=[CLOCK, FETCH]) == {
        "contents": [
            {"role": "user", "parts": [{"text": "look"}, image]},
            {
                "role": "model",
                "parts": [
                    {"text": "Let me."},
                    {"functionCall": {"name": "clock", "args": {"a": 1}}, "thoughtSignature": SKIP},
                ],
            },
            {
                "role": "user",
                "parts": [{"functionResponse": {"name": "clock", "response": {"error": "no"}}}],
            },
            {"role": "user", "parts": [{"text": "steered"}, image]},
        ],
        "generationConfig": {"maxOutputTokens": 100},
        "systemInstruction": {"role": "user", "parts": [{"text": " Be brief. "}]},
        "tools": [
            {
                "functionDeclarations": [
                    {"name": "current_time", "description": "The time."},
                    {
                        "name": "fetch_url",
                        "description": "A page.",
                        "parameters": {
                            "type": "OBJECT",
                            "properties": {"url": {"type": "STRING"}},
                            "required": ["url"],
                        },
                    },
                ]
            }
        ],
    }


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        ("gemini-2.5-pro", True),
        ("gemini-2.5-flash-lite", True),
        ("google/gemini-3.1-pro-preview", True),
        ("publishers/google/models/gemini-3-flash-preview", True),
        ("gemini-3.8-flash", True),
        ("gemini-2.0-flash", False),
        ("gemini-2.5-flash-image", False),
        ("gemini-2.5-pro-tts", False),
        ("my-tuned-gemini-2.5-pro", False),
    ],
)
def test_thoughts_are_asked_for_where_the_model_has_them(model, thinks):
    config = body_of(said("hi"), model=model)["generationConfig"]
    assert config.get("thinkingConfig") == ({"includeThoughts": True} if thinks else None)


def test_other_wires_signatures_and_thoughts_stay_away():
    history = [
        said("go"),
        Turnlet(
            "assistant",
            [
                {"t": "thinking", "text": "claude's", "sig": "abc"},
                {"t": "thinking", "text": "", "sig": {"redacted": "x"}},
                {"t": "thinking", "text": "cut off"},
                {"t": "text", "text": "", "sig": "odd"},
                {"t": "text", "text": "done", "sig": ["odd"]},
            ],
        ),
        said("and?"),
    ]
    assert sent_parts(*history)[1] == ("model", [{"text": "done"}])


def test_a_reply_of_gemini_is_nothing_odd_to_claude():
    from connections.providers.wire.anthropic_messages import AnthropicMessages

    events = decoded(
        chunk({"text": "hm", "thought": True, "thoughtSignature": "t"}),
        chunk({"text": "a"}, {"text": "", "thoughtSignature": "s"}),
        chunk(
            {"functionCall": {"name": "clock", "id": "x"}}, {"text": "", "thoughtSignature": "u"}
        ),
        chunk(reason="STOP"),
    )
    history = [said("go"), stored(events), results(only(ToolCall, events)[0])]
    blocks = AnthropicMessages().body(ModelRequest("m", history, 1))["messages"][1]["content"]
    assert [block["type"] for block in blocks] == ["text", "tool_use"]


# -- signatures: back in the very part they came in ------------------------------------------------

SIGNED = {
    "nothing is signed": [{"text": "ab"}, {"text": "c"}],
    "the first piece": [{"text": "ab", "thoughtSignature": "s1"}, {"text": "c"}],
    "a piece in the middle": [
        {"text": "ab"},
        {"text": "c", "thoughtSignature": "s"},
        {"text": "d"},
    ],
    "two pieces": [{"text": "ab", "thoughtSignature": "s"}, {"text": "c", "thoughtSignature": "t"}],
    "an empty piece at the end": [{"text": "abc"}, {"text": "", "thoughtSignature": "s"}],
    "an empty piece alone": [{"text": "", "thoughtSignature": "s"}],
    "a thought": [{"text": "hm", "thought": True, "thoughtSignature": "s"}, {"text": "a"}],
    "a thought after a thought": [
        {"text": "hm", "thought": True},
        {"text": "so", "thought": True, "thoughtSignature": "s"},
        {"text": "a"},
    ],
    "a call": [{"functionCall": {"name": "f", "args": {"x": 1}}, "thoughtSignature": "s"}],
    "a call with an id, and another": [
        {"text": "é😀", "thoughtSignature": "r"},
        {"functionCall": {"name": "f", "args": {}, "id": "own-1"}, "thoughtSignature": "s"},
        {"functionCall": {"name": "g", "args": {}, "id": "own-2"}},
    ],
    "an empty piece after a call": [
        {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s"},
        {"text": "", "thoughtSignature": "t"},
    ],
    "all at once": [
        {"text": "hm", "thought": True},
        {"text": "I'll "},
        {"text": "look", "thoughtSignature": "r"},
        {"text": " now.\n\nNow."},
        {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s"},
        {"functionCall": {"name": "g", "args": {}}},
    ],
}


def merged(parts: list[dict]) -> list[dict]:
    """Neighbours of one kind without signatures as one: which of them came when says nothing."""
    out: list[dict] = []
    for part in parts:
        kinds = [set(one) - {"text"} if "text" in one else None for one in (*out[-1:], part)]
        if len(kinds) == 2 and None not in kinds and kinds[0] == kinds[1] <= {"thought"}:
            out[-1] = {**part, "text": out[-1]["text"] + part["text"]}
        else:
            out.append(part)
    return out


@pytest.mark.parametrize("parts", SIGNED.values(), ids=SIGNED)
def test_every_part_goes_back_as_it_came(parts):
    events = decoded(*(chunk(part) for part in parts), chunk(reason="STOP"))
    calls = only(ToolCall, events)
    follow = results(*calls) if calls else said("next")
    sent = sent_parts(said("go"), stored(events), follow)
    assert sent[1] == ("model", merged(parts))
    own = [part["functionCall"].get("id") for part in parts if "functionCall" in part]
    answered = [part["functionResponse"].get("id") for part in sent[2][1] if calls]
    assert answered == own


def test_a_signature_does_not_tear_a_text_apart_on_the_page():
    parts = [{"text": "One para"}, {"text": "graph", "thoughtSignature": "s"}, {"text": " only."}]
    reply = stored(decoded(*(chunk(part) for part in parts), chunk(reason="STOP")))
    assert [part["text"] for part in reply.parts] == ["One paragraph only."]


@pytest.mark.parametrize("parts", SIGNED.values(), ids=SIGNED)
def test_the_page_numbers_the_blocks_of_a_signed_reply_as_its_stream_did(parts):
    drawn: list[int] = []

    class Pages(Quiet):
        def add(self, chat, event, data, **options):
            drawn.append(data["b"])

    events = decoded(*(chunk(part) for part in parts), chunk(reason="STOP"))
    reply = stored(events, Pages())
    for complete in (True, False):
        message = Message(role="assistant", parts=reply.parts, is_complete=complete)
        blocks = blocks_of(message)
        numbers = [block.index for block in blocks]
        assert numbers == list(range(len(blocks))) == sorted(set(drawn))
        if "sig" in reply.parts[-1]:
            assert all(block.closed for block in blocks)


def test_calls_get_ids_of_their_own_that_no_two_share():
    call = {"functionCall": {"name": "f", "args": {}, "id": "same"}}
    calls = only(ToolCall, decoded(chunk(call, call), chunk(reason="STOP")))
    assert len({one.id for one in calls} | {"same"}) == 3


# -- replies ---------------------------------------------------------------------------------------


def test_a_plain_reply():
    usage = {
        "promptTokenCount": 100,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 30,
        "cachedContentTokenCount": 80,
        "toolUsePromptTokenCount": 5,
        "totalTokenCount": 155,
    }
    assert decoded(
        chunk({"text": "hm", "thought": True}, usage={"trafficType": "ON_DEMAND"}),
        chunk({"text": "Hel"}),
        chunk({"text": "lo"}, reason="STOP", usage=usage),
    ) == [
        ThinkingDelta("hm"),
        ThinkingEnd({"thought": True}),
        TextDelta("Hel"),
        TextDelta("lo"),
        Usage(105, 50, 80, 0),
        Done("stop"),
    ]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *(
            (word, "refusal")
            for word in (
                *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
                *("MODEL_ARMOR", "IMAGE_SAFETY"),
            )
        ),
        ("OTHER", "other"),
        ("FINISH_REASON_UNSPECIFIED", "other"),
        ("OF_TOMORROW", "other"),
    ],
)
def test_the_reasons_of_an_end(word, reason):
    assert decoded(chunk({"text": "a"}, reason=word))[-1] == Done(reason)


def test_a_blocked_prompt_is_a_refusal():
    feedback = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
    usage = {"usageMetadata": {"promptTokenCount": 7}}
    assert decoded({**feedback, **usage}) == [Usage(7), Done("refusal")]


@pytest.mark.parametrize(
    "word", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"]
)
def test_a_broken_call_is_a_failure_with_its_word(word):
    with pytest.raises(ProviderError) as caught:
        decoded(chunk(reason=word))
    assert (caught.value.kind, caught.value.code) == (ErrorKind.SERVER, word)


def test_two_calls_in_one_chunk():
    parts = [{"functionCall": {"name": name, "args": {"n": name}}} for name in ("f", "g")]
    events = decoded(chunk(*parts, reason="STOP"))
    assert [(call.name, call.args) for call in only(ToolCall, events)] == [
        ("f", {"n": "f"}),
        ("g", {"n": "g"}),
    ]
    assert events[-1] == Done("tool_calls")


@pytest.mark.parametrize(
    ("call", "args", "raw"),
    [
        ({"name": "f"}, {}, ""),
        ({"name": "f", "args": None}, {}, ""),
        ({"name": "f", "args": {"a": "\0"}}, {"a": "\ufffd"}, ""),
        ({"name": "f", "args": ["x"]}, {}, '["x"]'),
        ({"name": "f", "args": "x"}, {}, '"x"'),
        ({"name": "f", "args": 5}, {}, "5"),
    ],
)
def test_arguments_as_they_come(call, args, raw):
    found = only(ToolCall, decoded(chunk({"functionCall": call})))[0]
    assert (found.args, found.raw) == (args, raw)


def test_arguments_nested_without_end_are_kept_as_text():
    deep: object = "x"
    for _ in range(600):
        deep = {"a": deep}
    data = json.dumps(chunk({"functionCall": {"name": "f", "args": deep}})).encode()
    found = only(ToolCall, decoded(data))[0]
    assert (found.args, found.raw) == ({}, "[nested too deeply]")


@pytest.mark.parametrize(
    "odd",
    [
        {"candidates": 5},
        {"candidates": [5]},
        {"candidates": [{"content": 5, "finishReason": 5}]},
        {"candidates": [{"content": {"parts": 5}}]},
        {"candidates": [{"content": {"parts": [5, {}, {"text": 5}, {"functionCall": 5}]}}]},
        {"candidates": [{"content": {"parts": [{"inlineData": {"data": "x"}}]}}]},
        {"candidates": [{"content": {"parts": [{"text": "", "thought": True}]}}]},
        {"promptFeedback": 5, "usageMetadata": 5},
        {"usageMetadata": {}},
        {"error": None},
        {},
    ],
)
def test_what_says_nothing_is_passed_over(odd):
    assert decoded(odd, chunk(reason="STOP")) == [Done("stop")]


@pytest.mark.parametrize("data", [b"x", b"5", b"[]", b"[1, 2]", b"null", b"\xff"])
def test_what_is_no_object_is_a_protocol_error(data):
    with pytest.raises(ProviderError) as caught:
        decoded(data)
    assert caught.value.kind is ErrorKind.PROTOCOL


def test_calls_without_end_are_cut_off():
    call = {"functionCall": {"name": "f"}}
    with pytest.raises(ProviderError) as caught:
        decoded(chunk(*[call] * 129))
    assert caught.value.kind is ErrorKind.PROTOCOL


async def test_the_usage_that_comes_after_the_reason_is_waited_for(fakes):
    where = target(fakes)
    google_token._kept[google_token._name(where)] = google_token.Token("t" * 20, 1e12)
    late = {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4}}
    lines = [
        b"data: " + orjson.dumps(one) + b"\r\n\r\n"
        for one in (chunk({"text": "a"}, reason="STOP"), late)
    ]
    async with canned(*lines, headers={"content-type": "text/event-stream"}) as http:
        events, error = await replies(http, where, asking("gemini-2.5-pro"))
    assert (error, events[-2:]) == (None, [Usage(3, 4), Done("stop")])


# -- whole exchanges with the fakes, which are strict ----------------------------------------------


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("behaviour", ["thinking-tools", "tools", "tools-parallel"])
async def test_a_tool_loop_with_steering_and_an_image(fakes, publisher, behaviour):
    history = [Turnlet("user", [{"t": "text", "text": f"go to {fakes.url}"}, IMAGE])]
    texts = []
    async with client() as http:
        for step in range(5):
            asked = asking(spoken(publisher, behaviour), history=history, tools=[CLOCK, FETCH])
            events, error = await replies(http, target(fakes), asked)
            assert error is None, error.message
            texts.append(text_of(events))
            history.append(stored(events))
            calls = only(ToolCall, events)
            if not calls:
                break
            assert events[-1] == Done("tool_calls")
            steer = [{"t": "text", "text": f"steer {step}"}] if step == 0 else []
            history.append(results(*calls, more=steer))
        # and the next turn takes the whole of it
        history.append(said("thanks"))
        asked = asking(spoken(publisher, "echo"), history=history)
        events, error = await replies(http, target(fakes), asked)
    assert (text_of(events), error) == ("thanks", None)
    assert "Done after" in texts[-1]
    assert "You added: steer 0" in texts[-1]


@pytest.mark.parametrize("publisher", PUBLISHERS)
async def test_thinking_images_and_usage(fakes, publisher):
    async with client() as http:
        events, _ = await replies(http, target(fakes), asking(spoken(publisher, "thinking")))
        thoughts = "".join(event.text for event in only(ThinkingDelta, events))
        assert thoughts.startswith("The question is short")
        assert text_of(events) == "Here is the short answer: yes."
        assert only(Usage, events)[-1].output_tokens == 18
        history = [Turnlet("user", [{"t": "text", "text": "look"}, IMAGE, IMAGE])]
        events, _ = await replies(
            http, target(fakes), asking(spoken(publisher, "vision"), history=history)
        )
        assert text_of(events) == "I see 2 images: image/png, image/png."
        events, _ = await replies(http, target(fakes), asking(spoken(publisher, "cached")))
        usage = only(Usage, events)[-1]
        assert usage.cache_read_tokens == 200
        assert usage.input_tokens == 253
        for behaviour, reason in (("length", "length"), ("refusal", "refusal"), ("empty", "stop")):
            events, error = await replies(http, target(fakes), asking(spoken(publisher, behaviour)))
            assert (error, events[-1]) == (None, Done(reason))


async def test_claude_on_vertex_has_no_model_in_its_body_and_googles_version(fakes):
    seen: list[httpx.Request] = []
    where = target(fakes, extra_headers={"X-Team": "a"})
    google_token._kept[google_token._name(where)] = google_token.Token("t" * 20, 1e12)
    async with answering(seen, status=404) as http:
        await replies(http, where, asking("claude-opus-4-6", system="Be brief.", tools=[FETCH]))
    assert json.loads(seen[0].content) == {
        "anthropic_version": "vertex-2023-10-16",
        "max_tokens": 4000,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello there"}]}],
        "stream": True,
        "system": "Be brief.",
        "tools": [
            {
                "name": "fetch_url",
                "description": "A page.",
                "input_schema": dict(FETCH.parameters),
            }
        ],
    }
    assert "anthropic-version" not in seen[0].headers
    assert "x-api-key" not in seen[0].headers
    assert seen[0].headers["x-team"] == "a"
