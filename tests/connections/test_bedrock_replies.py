"""Chats over Converse: what comes, what is stored and sent back, what each auth type sends."""

from __future__ import annotations

import base64

import pytest

from connections import providers
from connections.providers.base import (
    Done,
    TextDelta,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    Turnlet,
    Usage,
)
from connections.providers.wire.converse import full_id
from tests.connections.aws import IAM, SESSION, aws_client, target
from tests.connections.wires import CLOCK, FETCH, asking, client, only, replies, said, text_of
from tests.fakes.bedrock import ACCESS_KEY, REDACTED, SESSION_ACCESS_KEY
from tests.fakes.server import GOOD_KEY, key_hash

PNG = base64.b64encode(b"\x89PNG not really").decode()


@pytest.fixture(autouse=True)
def forgotten(fakes):
    fakes.reset()


def result(call: ToolCall, text: str = "12:00", **more):
    return {"t": "tool_result", "id": call.id, "name": call.name, "text": text, **more}


def stored(events) -> list[dict]:
    """The parts of a reply, as sessions keep them."""
    parts: list[dict] = []
    thought = ""
    for event in events:
        match event:
            case TextDelta(text):
                if not parts or parts[-1]["t"] != "text":
                    parts.append({"t": "text", "text": ""})
                parts[-1]["text"] += text
            case ThinkingDelta(text):
                thought += text
            case ThinkingEnd(sig):
                parts.append({"t": "thinking", "text": thought, "sig": sig})
                thought = ""
            case ToolCall():
                call = {"id": event.id, "name": event.name, "args": dict(event.args)}
                parts.append({"t": "tool_call", **call})
    return parts


@pytest.mark.parametrize("auth", ["iam_credentials", "api_key"])
async def test_a_reply_streams_and_ends(fakes, auth):
    async with client() as http:
        events, error = await replies(http, target(fakes, auth), asking("echo", "one two three"))
    assert error is None
    assert text_of(events) == "one two three"
    assert len(only(TextDelta, events)) == 3
    assert events[-1] == Done("stop")
    assert only(Usage, events)[-1].output_tokens == 3


async def test_the_session_token_is_sent_and_signed(fakes):
    async with client() as http:
        _, error = await replies(http, target(fakes, secret=SESSION), asking("echo"))
    assert error is None
    [record] = fakes.requests()
    assert record["key"] == key_hash(SESSION_ACCESS_KEY)
    assert "x-amz-security-token" in record["headers"]


@pytest.mark.parametrize(
    "model",
    [
        "us.anthropic.echo-v1:0",
        "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.echo-v1:0",
        "arn:aws:bedrock:us-east-1::foundation-model/anthropic.echo",
        "us.meta.echo-v1:0",
    ],
)
@pytest.mark.parametrize("at_aws", [False, True])
async def test_ids_with_colons_and_slashes_are_signed_right(fakes, model, at_aws):
    http = aws_client(fakes) if at_aws else client()
    async with http:
        where = target(None if at_aws else fakes)
        events, error = await replies(http, where, asking(model, "hi"))
    assert (error, text_of(events)) == (None, "hi")
    [record] = fakes.requests()
    assert "%3A" in record["path"] or ":" not in model
    assert record["path"].removeprefix("/bedrock").count("/") == 3


async def test_at_aws_each_region_has_its_host(fakes):
    async with aws_client(fakes) as http:
        for region, host in (
            ("eu-central-1", "bedrock-runtime.eu-central-1.amazonaws.com"),
            ("us-gov-west-1", "bedrock-runtime.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "bedrock-runtime.cn-north-1.amazonaws.com.cn"),
        ):
            _, error = await replies(http, target(None, region=region), asking("echo"))
            assert error is None
            assert fakes.requests()[-1]["headers"]["host"] == host


async def test_extra_headers_go_along_and_those_of_the_signature_are_ours(fakes):
    extra = {"X-Team": "blue", "X-Amz-Security-Token": "forged", "x-amz-content-sha256": "forged"}
    extra |= {"X-Amz-Date": "20000101T000000Z", "X-Amz-Meta": "two  spaces"}
    async with client() as http:
        _, error = await replies(http, target(fakes, extra_headers=extra), asking("echo"))
    assert error is None
    headers = fakes.requests()[0]["headers"]
    assert headers["x-team"] == "blue"
    assert headers["x-amz-meta"] == "two  spaces"
    assert "x-amz-content-sha256" not in headers
    assert "x-amz-security-token" not in headers


async def test_a_key_goes_as_bearer_and_nothing_is_signed(fakes):
    async with client() as http:
        where = target(fakes, "api_key", auth_header="x-api-key")
        _, error = await replies(http, where, asking("echo"))
    assert error is None
    [record] = fakes.requests()
    assert record["key"] == key_hash(GOOD_KEY)
    assert not [name for name in record["headers"] if name.startswith("x-amz-")]
    assert "x-api-key" not in record["headers"]


async def test_thinking_comes_with_its_signature_and_goes_back_through_tools(fakes):
    where = target(fakes)
    request = asking("thinking-tools", tools=[CLOCK])
    async with client() as http:
        events, error = await replies(http, where, request)
        assert error is None
        assert only(ThinkingEnd, events)[0].sig == {"maker": "", "redacted_content": REDACTED}
        assert only(ThinkingEnd, events)[1].sig["signature"].startswith("sig-")
        [call] = only(ToolCall, events)
        history = [said("hello there"), Turnlet("assistant", stored(events))]
        history.append(Turnlet("user", [result(call)]))
        again = asking("thinking-tools", tools=[CLOCK], history=history)
        events, error = await replies(http, where, again)
    assert error is None
    assert "Done after 1 tool rounds." in text_of(events)


async def test_another_vendors_thinking_is_not_sent_to_a_model(fakes):
    async with client() as http:
        request = asking("us.anthropic.thinking", "hm")
        events, _ = await replies(http, target(fakes), request)
        assert only(ThinkingEnd, events)[0].sig["maker"] == "anthropic"
        history = [said("hm"), Turnlet("assistant", stored(events)), said("and now?")]
        for model, blocks in (("eu.anthropic.echo", 2), ("us.amazon.echo", 1), ("echo", 1)):
            wire = providers.get("bedrock").wire(target(fakes), model)
            body = wire.body(asking(model, history=history))
            assert len(body["messages"][1]["content"]) == blocks
            _, error = await replies(http, target(fakes), asking(model, history=history))
            assert error is None


@pytest.mark.parametrize("vendor", ["", "us.anthropic.", "us.meta.", "mistral.", "writer."])
async def test_a_tool_loop_with_steering_runs_with_the_models_of_all_vendors(fakes, vendor):
    where = target(fakes)
    history = [said("what time is it?")]
    async with client() as http:
        for number in range(3):
            request = asking(f"{vendor}tools", tools=[CLOCK, FETCH], history=history)
            events, error = await replies(http, where, request)
            assert error is None
            calls = only(ToolCall, events)
            if not calls:
                break
            history.append(Turnlet("assistant", stored(events)))
            steer = [{"t": "text", "text": "and be brief"}] if number == 1 else []
            failed = {"is_error": True} if number else {}
            history.append(Turnlet("user", [result(calls[0], **failed), *steer]))
    assert "Done after 2 tool rounds." in text_of(events)
    assert "You added: and be brief" in text_of(events)
    assert fakes.requests()[-1]["steered"] == ["and be brief"]


async def test_two_calls_in_one_reply_get_their_two_results(fakes):
    async with client() as http:
        events, _ = await replies(
            http, target(fakes), asking("tools-parallel", tools=[CLOCK, FETCH])
        )
        calls = only(ToolCall, events)
        assert len(calls) == 2
        assert events[-1] == Done("tool_calls")
        history = [said("hello there"), Turnlet("assistant", stored(events))]
        history.append(Turnlet("user", [result(call, "") for call in calls]))
        again = asking("tools-parallel", tools=[CLOCK, FETCH], history=history)
        events, error = await replies(http, target(fakes), again)
    assert error is None
    assert fakes.requests()[-1]["results"] == ["(no output)"] * 2


async def test_arguments_that_are_no_json_are_kept_as_text(fakes):
    async with client() as http:
        request = asking("tools-bad-args", tools=[CLOCK])
        events, error = await replies(http, target(fakes), request)
    [call] = only(ToolCall, events)
    assert (error, call.args, call.raw) == (None, {}, '{"timezone": "Europe/')


async def test_images_and_a_system_prompt_arrive(fakes):
    images = [
        {"t": "image", "media_type": "image/png", "data": PNG},
        {"t": "image", "media_type": "image/jpeg", "data": PNG},
    ]
    history = [Turnlet("user", [{"t": "text", "text": "look"}, *images])]
    async with client() as http:
        request = asking("vision", history=history, system="Be kind.")
        events, error = await replies(http, target(fakes), request)
    assert error is None
    assert "image/png, image/jpeg" in text_of(events)
    assert fakes.requests()[0]["system"] == "Be kind."


async def test_usage_counts_what_the_cache_gave_and_took(fakes):
    async with client() as http:
        events, _ = await replies(http, target(fakes), asking("cached", "x" * 40))
    usage = only(Usage, events)[-1]
    assert (usage.cache_read_tokens, usage.cache_write_tokens) == (200, 50)
    assert usage.input_tokens == 11 + 250


@pytest.mark.parametrize(
    ("model", "reason"), [("length", "length"), ("refusal", "refusal"), ("empty", "stop")]
)
async def test_reasons_are_normalised(fakes, model, reason):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking(model))
    assert (error, events[-1]) == (None, Done(reason))


async def test_the_longest_output_is_sent(fakes):
    async with client() as http:
        events, _ = await replies(http, target(fakes), asking("fast-1000tps-30", max_tokens=7))
    assert fakes.requests()[0]["max_tokens"] == 7
    assert events[-1] == Done("length")


# -- what some models don't take -------------------------------------------------------------------


async def test_a_model_that_takes_no_tools_is_asked_without(fakes):
    call = ToolCall("c1", "current_time", {})
    history = [
        said("first"),
        Turnlet("assistant", stored([TextDelta("Let me see."), call])),
        Turnlet("user", [result(call)]),
        Turnlet("assistant", [{"t": "text", "text": "Noon."}]),
        said("second"),
    ]
    async with client() as http:
        request = asking("no-tools", history=history, tools=[CLOCK])
        events, error = await replies(http, target(fakes), request)
    assert (error, text_of(events)) == (None, "second")
    refused, taken = fakes.requests()
    assert (refused["status"], taken["status"]) == (400, 200)
    texts = [one["text"] for one in taken["texts"]]
    assert "[Called current_time with {}]" in texts
    assert "[Result of current_time: 12:00]" in texts


async def test_a_model_without_system_prompts_gets_it_in_the_first_message(fakes):
    async with client() as http:
        request = asking("no-system", "hello", system="Be kind.")
        _, error = await replies(http, target(fakes), request)
    assert error is None
    assert [one["text"] for one in fakes.requests()[-1]["texts"]] == ["Be kind.", "hello"]


async def test_ids_and_names_of_another_provider_are_made_acceptable(fakes):
    call = ToolCall("call|with spaces" + "x" * 80, "no such tool!", {})
    history = [said("first"), Turnlet("assistant", stored([call])), Turnlet("user", [result(call)])]
    thinking = {"t": "thinking", "text": "hm", "sig": "of another wire"}
    history[1].parts.insert(0, thinking)
    async with client() as http:
        request = asking("tools", history=history, tools=[CLOCK])
        _, error = await replies(http, target(fakes), request)
    assert error is None


@pytest.mark.parametrize(
    ("model", "region", "sent"),
    [
        ("claude-sonnet-5-5", "us-east-1", "us.anthropic.claude-sonnet-5-5"),
        ("claude-sonnet-5-5", "eu-west-1", "eu.anthropic.claude-sonnet-5-5"),
        ("claude-sonnet-5-5", "ap-south-1", "global.anthropic.claude-sonnet-5-5"),
        ("claude-sonnet-5-5", "us-gov-west-1", "us-gov.anthropic.claude-sonnet-5-5"),
        (
            "claude-haiku-4-5-20251001",
            "ca-central-1",
            "us.anthropic.claude-haiku-4-5-20251001-v1:0",
        ),
        ("claude-x-20240620-v2:0", "us-east-1", "us.anthropic.claude-x-20240620-v2:0"),
        ("anthropic.claude-x", "us-east-1", "anthropic.claude-x"),
        ("eu.anthropic.claude-x", "us-east-1", "eu.anthropic.claude-x"),
    ],
)
def test_claudes_own_names_become_the_profile_of_the_region(model, region, sent):
    assert full_id(model, region) == sent


def test_targets_show_no_secret():
    text = repr(target(None)) + repr(target(None, secret=SESSION))
    for secret in (*IAM.values(), *SESSION.values()):
        assert secret not in text
    assert ACCESS_KEY not in text
