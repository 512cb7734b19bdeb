"""Replies through the real Codex binary: text, thinking, images, usage, history, steering, ends."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from django.conf import settings

from connections import providers
from connections.providers import codex, codex_home
from connections.providers.base import (
    Delivered,
    Done,
    ErrorKind,
    ProviderError,
    Steered,
    TextDelta,
    ThinkingDelta,
    ThinkingEnd,
    Turnlet,
    Usage,
    Waiting,
)
from tests.connections.codex import processes, target
from tests.connections.wires import CLOCK, asking, client, only, replies, said, text_of
from tests.fakes.server import GOOD_KEY, FakeProviders, key_hash
from tests.world import png


@pytest.fixture(autouse=True)
def _forget(fakes: FakeProviders) -> None:
    fakes.reset()


def answer(text: str) -> Turnlet:
    return Turnlet("assistant", [{"t": "text", "text": text}])


def steering(*rounds: Sequence[Steered]) -> Any:
    """What is there at the end of the first reply, of the second, …"""
    left = list(rounds)

    async def take() -> Sequence[Steered]:
        return left.pop(0) if left else ()

    return take


def words(name: str, text: str) -> Steered:
    return Steered(name, [{"t": "text", "text": text}])


async def test_text_streams_and_done_is_last(fakes):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("echo", "one two  three"))
    assert error is None
    assert text_of(events) == "one two  three"
    assert len(only(TextDelta, events)) == 3
    assert events[-1] == Done("stop")
    assert len(only(Done, events)) == 1
    assert processes() == []


async def test_what_leaves_is_the_conversation_and_nothing_about_this_machine(fakes):
    history = [said("one"), answer("two"), said("three")]
    where = target(fakes, extra_headers={"X-Team": "blue", "Host": "elsewhere"})
    async with client() as http:
        await replies(http, where, asking("echo", history=history, system="Answer in verse."))
    (record,) = fakes.requests()
    assert [(one["role"], one["text"]) for one in record["texts"]] == [
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
    ]
    assert record["system"] == "Answer in verse."
    assert record["path"] == "/openai/v1/responses"
    assert record["key"] == key_hash(GOOD_KEY)
    assert record["max_tokens"] == 4000
    assert record["tools"] == []
    headers = record["headers"]
    assert headers["x-team"] == "blue"
    assert headers["user-agent"] == "Patchbay"
    assert headers["host"].startswith("127.0.0.1")
    assert not [name for name in headers if "codex" in name or name in ("originator", "session-id")]


async def test_without_instructions_a_short_neutral_prompt_goes(fakes):
    async with client() as http:
        await replies(http, target(fakes), asking("echo"))
    assert fakes.requests()[0]["system"] == codex.NEUTRAL


async def test_tools_are_not_offered_whatever_is_asked(fakes):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("tools", tools=[CLOCK]))
    assert error is None
    assert text_of(events) == "Done after 0 tool rounds."
    assert not codex.Codex.takes_tools


async def test_thinking_comes_before_the_text(fakes):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("thinking"))
    assert error is None
    thought = "".join(event.text for event in only(ThinkingDelta, events))
    assert thought == "The question is short, so the answer can be short as well."
    assert text_of(events) == "Here is the short answer: yes."
    kinds = [type(event) for event in events if not isinstance(event, Usage)]
    assert kinds.index(ThinkingEnd) < kinds.index(TextDelta)


async def test_the_level_of_thinking_leaves_whatever_the_catalogue_knows(fakes):
    async with client() as http:
        request = dataclasses.replace(asking("thinking"), thinking="high")
        _, error = await replies(http, target(fakes), request)
    assert error is None
    assert fakes.requests()[-1]["thinking"] == "high"


async def test_images_go_in_the_message_and_in_the_history(fakes):
    image = {"t": "image", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    look = [{"t": "text", "text": "look"}, image]
    history = [Turnlet("user", look), answer("nice"), Turnlet("user", look)]
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("vision", history=history))
    assert error is None
    assert text_of(events) == "I see 2 images: image/png, image/png."


async def test_usage_counts_the_cached_tokens_once(fakes):
    async with client() as http:
        events, _ = await replies(http, target(fakes), asking("cached"))
    usage = only(Usage, events)[-1]
    assert (usage.cache_read_tokens, usage.cache_write_tokens) == (200, 50)
    assert 250 < usage.input_tokens < 300
    assert usage.output_tokens == 7


async def test_calls_of_another_provider_stay_in_the_history(fakes):
    call = {"t": "tool_call", "id": "call_1", "name": "current_time", "args": {"zone": "UTC"}}
    result = {"t": "tool_result", "id": "call_1", "name": "current_time", "text": "noon"}
    history = [
        said("what time is it?"),
        Turnlet("assistant", [{"t": "thinking", "text": "hm", "sig": "x"}, call]),
        Turnlet("user", [result]),
        answer("Noon."),
        said("thanks"),
    ]
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("echo", history=history))
    assert (error, text_of(events)) == (None, "thanks")
    assert fakes.requests()[0]["results"] == ["noon"]


async def test_a_reply_at_its_limit_has_its_text_and_says_so(fakes):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("long-200", max_tokens=20))
    assert error is None
    assert len(text_of(events).split()) == 20
    assert events[-1] == Done("length")
    assert only(Usage, events)[-1].output_tokens == 20


async def test_a_refusal_of_the_model_has_its_words(fakes):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("refusal"))
    assert error is None
    assert text_of(events) == "I can't help with that."
    assert events[-1] == Done("refusal")


async def test_an_empty_reply_is_a_reply(fakes):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("empty"))
    assert (error, text_of(events), events[-1]) == (None, "", Done("stop"))


async def test_a_history_without_a_last_message_is_refused_before_anything_starts(fakes):
    for history in ([], [said("a"), answer("b")]):
        async with client() as http:
            _, error = await replies(http, target(fakes), asking("echo", history=history))
        assert error.kind is ErrorKind.BAD_REQUEST
    assert fakes.requests() == []


# -- steering --------------------------------------------------------------------------------------


async def test_a_steered_message_stands_between_two_replies_with_its_receipt(fakes):
    async with client() as http:
        request = asking("echo", "first", steering=steering([words("m1", "second")]))
        events, error = await replies(http, target(fakes), request)
    assert error is None
    at = events.index(Delivered("m1"))
    assert text_of(events[:at]) == "first"
    assert text_of(events[at:]) == "second"
    assert only(Usage, events[:at]) and only(Usage, events[at:])
    assert events[-1] == Done("stop")
    first, second = fakes.requests()
    assert first["end"] == "done"  # the reply that was being written is not cut off
    assert [one["text"] for one in second["texts"]] == ["first", "first", "second"]


async def test_several_keep_their_order_and_get_one_reply(fakes):
    three = [words(f"m{n}", f"text {n}") for n in range(3)]
    async with client() as http:
        events, error = await replies(
            http, target(fakes), asking("echo", "first", steering=steering(three, [], []))
        )
    assert error is None
    assert only(Delivered, events) == [Delivered("m0"), Delivered("m1"), Delivered("m2")]
    assert text_of(events) == "firsttext 2"
    assert [one["text"] for one in fakes.requests()[1]["texts"]][2:] == [
        "text 0",
        "text 1",
        "text 2",
    ]


async def test_each_reply_asks_again(fakes):
    rounds = steering([words("a", "second")], [words("b", "third")])
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("echo", "first", steering=rounds))
    assert error is None
    assert text_of(events) == "firstsecondthird"
    assert len(fakes.requests()) == 3


async def test_a_steered_image_is_seen(fakes):
    image = {"t": "image", "media_type": "image/png", "data": base64.b64encode(png()).decode()}
    async with client() as http:
        events, error = await replies(
            http,
            target(fakes),
            asking("vision", steering=steering([Steered("m", [image])])),
        )
    assert error is None
    assert text_of(events) == "I see 0 images: none.I see 1 images: image/png."


async def test_nothing_is_taken_when_the_reply_fails(fakes):
    asked = []

    async def take() -> Sequence[Steered]:
        asked.append(True)
        return ()

    for model in ("err-500", "cut", "early-end", "error-mid", "length"):
        async with client() as http:
            await replies(http, target(fakes), asking(model, steering=take))
    assert asked == []


async def test_steering_that_fails_costs_the_reply_nothing(fakes):
    async def take() -> Sequence[Steered]:
        raise RuntimeError("the database is away")

    async with client() as http:
        events, error = await replies(http, target(fakes), asking("echo", "hi", steering=take))
    assert (error, text_of(events), events[-1]) == (None, "hi", Done("stop"))


# -- no tools --------------------------------------------------------------------------------------


async def models_of_the_binary() -> list[str]:
    path = await codex_home.catalogue_of(settings.CODEX_PATHS[0])
    return [model["slug"] for model in json.loads(path.read_bytes())["models"]]


async def test_every_model_of_the_catalogue_leaves_without_a_tool(fakes):
    """The relay lets nothing out that has a tool in either place, and the fake takes none."""
    models = await models_of_the_binary()
    assert len(models) > 8
    async with client() as http:
        for model in models:
            events, error = await replies(http, target(fakes), asking(model, "hello"))
            assert (model, error, text_of(events)) == (model, None, "hello")
    for record in fakes.requests():
        assert record["status"] == 200
        assert record["tools"] == []


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-6.1-sol"])
async def test_with_the_binarys_own_catalogue_tools_would_be_offered_and_nothing_leaves(
    fakes, monkeypatch, tmp_path, model
):
    listed = await codex_home._bundled_models(settings.CODEX_PATHS[0])
    path = tmp_path / "models.json"
    path.write_bytes(listed)

    async def whole(binary: str) -> Any:
        return path

    monkeypatch.setattr(codex, "catalogue_of", whole)
    async with client() as http:
        _, error = await replies(http, target(fakes), asking(model))
    assert error.kind is ErrorKind.PROCESS
    assert "offers tools" in error.message
    assert fakes.requests() == []


@pytest.mark.parametrize(
    "content",
    [
        {"tools": [{"type": "web_search"}], "input": []},
        {"input": [{"type": "additional_tools", "tools": []}]},
        {"tools": []},
        [],
    ],
)
def test_a_request_with_a_tool_or_of_another_form_is_refused(content):
    with pytest.raises(ProviderError) as caught:
        codex.without_tools(json.dumps(content).encode())
    assert caught.value.kind is ErrorKind.PROCESS


async def test_a_call_of_a_tool_that_was_not_offered_runs_nothing_and_has_an_end(
    fakes, monkeypatch
):
    from tests.fakes import models as fake_models

    def call_for_ever(context: Any) -> Iterator[Any]:
        yield fake_models.Call("exec_command", '{"cmd": "touch /tmp/never"}')
        yield fake_models.Stop("tool_calls")

    model = fake_models.Model("calls-on", "calls-on", "calls without end", call_for_ever)
    monkeypatch.setattr(fake_models, "MODELS", (*fake_models.MODELS, model))
    async with client() as http:
        events, error = await replies(http, target(fakes), asking("calls-on"))
    assert text_of(events) == ""
    assert error.kind is ErrorKind.PROTOCOL
    assert "not offered" in error.message
    assert 1 < len(fakes.requests()) < 8
    assert "unsupported call" in fakes.requests()[1]["results"][0]


# -- places ----------------------------------------------------------------------------------------


async def test_only_so_many_run_at_a_time_and_the_others_say_that_they_wait(fakes, settings):
    settings.CODEX_PROCESSES = 2
    codex._semaphores.clear()
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(processes()))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    async with client() as http:
        results = await asyncio.gather(
            *(replies(http, target(fakes), asking("slow-1s", f"{n}")) for n in range(5))
        )
    watching.cancel()
    assert [error for _, error in results] == [None] * 5
    assert most == 2
    waited = [only(Waiting, events) for events, _ in results]
    assert waited[:2] == [[], []]
    assert all(events == [Waiting(), Waiting(over=True)] for events in waited[2:])
    codex._semaphores.clear()


async def test_who_is_cancelled_while_waiting_takes_no_place(fakes, settings):
    settings.CODEX_PROCESSES = 1
    codex._semaphores.clear()
    async with client() as http:
        first = providers.get("openai").stream(http, target(fakes), asking("stall"))
        assert isinstance(await anext(first), TextDelta)
        second = providers.get("openai").stream(http, target(fakes), asking("echo"))
        assert await anext(second) == Waiting()
        asked = asyncio.ensure_future(anext(second))
        await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.wait({asked})
        await second.aclose()
        await first.aclose()
        events, error = await replies(http, target(fakes), asking("echo", "third"))
    assert (error, text_of(events)) == (None, "third")
    codex._semaphores.clear()
