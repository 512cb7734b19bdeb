"""What comes back: text, thinking, tool calls, usage and the reason of the end, on both wires."""

from __future__ import annotations

import base64

import httpx
import orjson
import pytest

from connections import providers
from connections.choices import ProviderType
from connections.providers.base import (
    Done,
    ErrorKind,
    ProviderError,
    Target,
    TextDelta,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    Turnlet,
    Usage,
)
from tests.connections.wires import (
    CLOCK,
    FETCH,
    TYPES,
    WIRES,
    asking,
    canned,
    client,
    only,
    replies,
    said,
    target,
    text_of,
)
from tests.fakes.models import MARKDOWN
from tests.fakes.server import GOOD_KEY, key_hash


@pytest.fixture(params=WIRES)
def wire(request):
    return request.param


async def test_text_comes_as_it_is_sent_and_done_is_last(fakes, wire):
    async with client() as http:
        events, error = await replies(http, target(fakes, wire), asking("echo", "one two  three\n"))
    assert error is None
    assert text_of(events) == "one two  three\n"
    assert len(only(TextDelta, events)) == 4
    assert events[-1] == Done("stop")
    assert len(only(Done, events)) == 1


@pytest.mark.parametrize(
    ("model", "reason", "text"),
    [
        ("length", "length", "This reply is as long as it may be and"),
        ("refusal", "refusal", "I can't help with that."),
        ("empty", "stop", ""),
    ],
)
async def test_the_reason_of_the_end_has_one_name_on_both_wires(fakes, wire, model, reason, text):
    async with client() as http:
        events, error = await replies(http, target(fakes, wire), asking(model))
    assert (error, text_of(events), events[-1]) == (None, text, Done(reason))


async def test_max_tokens_reaches_the_provider(fakes, wire):
    async with client() as http:
        events, _ = await replies(http, target(fakes, wire), asking("long-50", max_tokens=7))
    assert (len(only(TextDelta, events)), events[-1]) == (7, Done("length"))


async def test_cached_tokens_are_part_of_the_input(fakes, wire):
    async with client() as http:
        events, _ = await replies(http, target(fakes, wire), asking("cached", "x" * 40))
    written = 50 if wire == "anthropic-messages" else 0  # OpenAI doesn't tell
    assert only(Usage, events)[-1] == Usage(261, 7, 200, written)


async def test_markdown_arrives_untouched(fakes, wire):
    async with client() as http:
        events, _ = await replies(http, target(fakes, wire), asking("markdown"))
    assert text_of(events) == MARKDOWN


async def step(http, where, model, history):
    """One step as the agent takes it: the reply's parts are added to the history."""
    events, error = await replies(http, where, asking(model, history=history, tools=[CLOCK, FETCH]))
    assert error is None
    parts, thought = [], ""
    for event in events:
        if isinstance(event, ThinkingDelta):
            thought += event.text
        elif isinstance(event, ThinkingEnd):
            parts.append({"t": "thinking", "text": thought, "sig": event.sig})
            thought = ""
        elif isinstance(event, ToolCall):
            about = {"id": event.id, "name": event.name, "args": event.args}
            parts.append({"t": "tool_call", **about})
    parts.insert(0 if not parts else 1, {"t": "text", "text": text_of(events)})
    history.append(Turnlet("assistant", parts))
    return events


async def test_a_tool_loop_with_a_steered_text_runs_to_its_answer(fakes, wire):
    fakes.reset()
    where = target(fakes, wire)
    history = [said("what is at https://example.org/a ?")]
    async with client() as http:
        events = await step(http, where, "tools", history)
        (call,) = only(ToolCall, events)
        assert (call.name, call.args, events[-1]) == ("current_time", {}, Done("tool_calls"))
        answer = {"t": "tool_result", "id": call.id, "name": call.name, "text": "noon"}
        steered = {"t": "text", "text": "in French, please"}
        history.append(Turnlet("user", [answer, steered]))

        (call,) = only(ToolCall, await step(http, where, "tools", history))
        assert (call.name, call.args) == ("fetch_url", {"url": "https://example.org/a"})
        answer = {"t": "tool_result", "id": call.id, "name": call.name, "text": "a page"}
        history.append(Turnlet("user", [answer]))

        events = await step(http, where, "tools", history)
    assert "You added: in French, please" in text_of(events)
    assert events[-1] == Done("stop")
    record = fakes.requests()[-1]
    assert (record["rounds"], record["results"]) == (2, ["noon", "a page"])
    assert record["steered"] == ["in French, please"]


async def test_thinking_comes_back_to_the_provider_in_a_tool_loop(fakes, wire):
    where = target(fakes, wire)
    history = [said("what time is it?")]
    async with client() as http:
        events = await step(http, where, "thinking-tools", history)
        assert "".join(event.text for event in only(ThinkingDelta, events)).startswith("I should")
        assert only(ThinkingEnd, events)[-1].sig
        (call,) = only(ToolCall, events)
        answer = {"t": "tool_result", "id": call.id, "name": call.name, "text": "noon"}
        history.append(Turnlet("user", [answer]))
        events = await step(http, where, "thinking-tools", history)  # refused without it
    assert text_of(events).startswith("Done after 1 tool rounds.")


async def test_several_calls_in_one_reply_stay_apart(fakes, wire):
    async with client() as http:
        events, _ = await replies(
            http,
            target(fakes, wire),
            asking("tools-parallel", "see http://a.example/", tools=[CLOCK, FETCH]),
        )
    calls = only(ToolCall, events)
    assert [(call.name, call.args) for call in calls] == [
        ("current_time", {}),
        ("fetch_url", {"url": "http://a.example/"}),
    ]
    assert len({call.id for call in calls}) == 2


async def test_images_reach_the_provider(fakes, wire):
    data = base64.b64encode(b"not really a picture").decode()
    images = [
        {"t": "image", "media_type": f"image/{kind}", "data": data} for kind in ("png", "gif")
    ]
    history = [Turnlet("user", [{"t": "text", "text": "look"}, *images])]
    async with client() as http:
        events, error = await replies(http, target(fakes, wire), asking("vision", history=history))
    assert (error, text_of(events)) == (None, "I see 2 images: image/png, image/gif.")


async def test_a_server_that_refuses_stream_options_is_asked_once_more_without(fakes):
    fakes.reset()
    async with client() as http:
        events, error = await replies(
            http, target(fakes, "openai-completions"), asking("no-stream-options", "hi")
        )
    assert (error, text_of(events)) == (None, "hi")
    assert [record["status"] for record in fakes.requests()] == [400, 200]


async def test_the_name_of_the_token_limit_is_the_connections_choice(fakes):
    where = target(fakes, "openai-completions", max_tokens_field="max_completion_tokens")
    async with client() as http:
        events, error = await replies(http, where, asking("max-completion-tokens", "hi"))
        assert (error, text_of(events)) == (None, "hi")
        _, error = await replies(
            http, target(fakes, "openai-completions"), asking("max-completion-tokens", "hi")
        )
    assert error.kind is ErrorKind.BAD_REQUEST


async def test_a_finished_reply_leaves_its_connection_open_for_the_next(fakes, wire):
    async with client() as http:
        where = target(fakes, wire)
        await replies(http, where, asking("echo"))
        before = fakes.stats()["connections"]
        await replies(http, where, asking("echo"))
        assert fakes.stats()["connections"] == before


# -- keys and headers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire_name", "path", "auth_header", "sent"),
    [
        ("openai-completions", "/openai/v1", "", "authorization"),
        ("openai-completions", "/openai/v1", "bearer", "authorization"),
        ("openai-completions", "/openai-xkey/v1", "x-api-key", "x-api-key"),
        ("anthropic-messages", "/anthropic", "", "x-api-key"),
        ("anthropic-messages", "/anthropic", "x-api-key", "x-api-key"),
        ("anthropic-messages", "/anthropic-bearer", "bearer", "authorization"),
    ],
)
@pytest.mark.parametrize("provider_type", ["openai_compat", "anthropic_compat"])
async def test_the_key_goes_where_the_connection_says(
    fakes, provider_type, wire_name, path, auth_header, sent
):
    """Either type speaks either wire when the connection names it."""
    fakes.reset()
    where = Target(
        provider_type,
        "api_key_with_endpoint",
        fakes.url + path,
        wire=wire_name,
        secret={"api_key": GOOD_KEY},
        auth_header=auth_header,
    )
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error is None
    (record,) = fakes.requests()
    assert record["headers"][sent] == f"sha256:{key_hash(GOOD_KEY)}"
    assert len({"authorization", "x-api-key"} & set(record["headers"])) == 1


@pytest.mark.parametrize(
    ("wire_name", "path"),
    [("openai-completions", "/openai-nokey/v1"), ("anthropic-messages", "/anthropic-nokey")],
)
async def test_without_a_key_no_key_header_is_sent(fakes, wire_name, path):
    fakes.reset()
    async with client() as http:
        _, error = await replies(
            http, Target(TYPES[wire_name], "none", fakes.url + path), asking("echo")
        )
    assert error is None
    (record,) = fakes.requests()
    assert not {"authorization", "x-api-key", "cookie"} & set(record["headers"])


async def test_extra_headers_are_sent_but_can_not_reframe_the_request(fakes, wire):
    fakes.reset()
    extra = {
        "X-Title": "Patchbay",
        "Host": "evil.example",
        "Content-Length": "1",
        "Transfer-Encoding": "chunked",
    }
    async with client() as http:
        _, error = await replies(http, target(fakes, wire, extra_headers=extra), asking("echo"))
    assert error is None
    headers = fakes.requests()[0]["headers"]
    assert headers["x-title"] == "Patchbay"
    assert headers["host"] == fakes.url.removeprefix("http://")
    assert "transfer-encoding" not in headers


# -- probes ----------------------------------------------------------------------------------------


def anthropic(fakes, key=GOOD_KEY):
    return Target("anthropic", "api_key", fakes.anthropic, secret={"api_key": key})


async def test_anthropics_list_of_models_proves_a_key(fakes):
    provider = providers.get("anthropic")
    async with client() as http:
        assert await provider.check_auth(http, anthropic(fakes), "echo") is True
        with pytest.raises(ProviderError) as caught:
            await provider.check_auth(http, anthropic(fakes, "sk-fake-bad"), "echo")
    assert caught.value.kind is ErrorKind.AUTH


async def test_a_list_of_models_can_refuse_a_compatible_key_but_not_prove_it(fakes):
    provider = providers.get("openai_compat")
    async with client() as http:
        assert await provider.check_auth(http, target(fakes, WIRES[0]), "echo") is False
        with pytest.raises(ProviderError) as caught:
            await provider.check_auth(http, target(fakes, WIRES[0], key="sk-fake-bad"), "echo")
        assert caught.value.kind is ErrorKind.AUTH
        nowhere = target(fakes, WIRES[0], base_url=fakes.url + "/nowhere/v1")
        assert await provider.check_auth(http, nowhere, "echo") is False


async def test_a_compatible_messages_endpoint_is_not_asked(fakes):
    fakes.reset()
    async with client() as http:
        provider = providers.get("anthropic_compat")
        assert await provider.check_auth(http, target(fakes, WIRES[1]), "echo") is False
    assert fakes.requests() == []


@pytest.mark.parametrize(
    ("provider_type", "base", "asked"),
    [
        ("openai_compat", "https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1/key"),
        ("anthropic_compat", "https://openrouter.ai/api", "https://openrouter.ai/api/v1/key"),
    ],
)
async def test_openrouter_proves_its_keys(provider_type, base, asked):
    seen = []

    async def note(request: httpx.Request) -> None:
        seen.append(str(request.url))

    provider = providers.get(provider_type)
    where = Target(provider_type, "none", base, secret={"api_key": "x"})
    async with canned(b'{"data": {}}') as http:
        http.event_hooks["request"].append(note)
        assert await provider.check_auth(http, where, "m") is True
    async with canned(b'{"error": {}}', status=401) as http:
        with pytest.raises(ProviderError) as caught:
            await provider.check_auth(http, where, "m")
    assert caught.value.kind is ErrorKind.AUTH
    assert seen == [asked]


async def test_models_are_listed_on_both_wires(fakes, wire):
    async with client() as http:
        listed = await providers.get(TYPES[wire]).list_models(http, target(fakes, wire))
        names = [model.id for model in listed]
        assert {"echo", "tools-3", "vision"} <= set(names)
        nowhere = target(fakes, wire, base_url=fakes.url + "/nowhere/v1")
        with pytest.raises(ProviderError) as caught:
            await providers.get(TYPES[wire]).list_models(http, nowhere)
    assert caught.value.kind is ErrorKind.ENDPOINT_NOT_FOUND


@pytest.mark.parametrize(
    ("payload", "listed"),
    [
        (
            {
                "data": [
                    {
                        "id": "a/b",
                        "name": "B",
                        "context_length": 32000,
                        "architecture": {"input_modalities": ["text", "image"]},
                    },
                    {"id": "c", "max_model_len": 4096, "architecture": {"input_modalities": []}},
                    {"id": "d", "context_length": -1},
                    {"id": ""},
                    {"name": "no id"},
                    "text",
                    None,
                ]
            },
            [("a/b", "B", 32000, True), ("c", "", 4096, False), ("d", "", None, None)],
        ),
        ([{"id": "x"}], [("x", "", None, None)]),
        ({"data": []}, []),
        ({"data": None}, "protocol"),
        ({}, "protocol"),
        (3, "protocol"),
    ],
)
async def test_a_list_of_models_is_read_with_care(payload, listed):
    where = Target("openai_compat", "none", "http://models.example/v1")
    async with canned(orjson.dumps(payload)) as http:
        try:
            models = await providers.get("openai_compat").list_models(http, where)
            found = [(m.id, m.name, m.context_window, m.supports_images) for m in models]
        except ProviderError as error:
            found = error.kind
    assert found == listed


def test_every_type_has_its_provider():
    assert set(providers.PROVIDERS) == set(ProviderType.values)
    for name, provider in providers.PROVIDERS.items():
        assert provider.provider_type == name
    with pytest.raises(KeyError):
        providers.get("copilot")


def test_the_anthropic_type_has_its_own_address_and_one_wire():
    provider = providers.get("anthropic")
    where = Target("anthropic", "api_key", wire="openai-completions")
    assert provider.origin(where) == "https://api.anthropic.com"
    assert provider.wire(where).name == "anthropic-messages"
