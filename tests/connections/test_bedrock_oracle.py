"""The request bodies beside pydantic-ai's for the same history. Development only: pydantic-ai is no
dependency of the product."""

from __future__ import annotations

import base64
from typing import Any

import botocore.session
import orjson
import pytest
from botocore.config import Config
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.bedrock import BedrockConverseModel
from pydantic_ai.providers.bedrock import BedrockProvider
from pydantic_ai.tools import ToolDefinition

from connections.providers import base
from connections.providers.base import ToolSpec, Turnlet
from connections.providers.wire.converse import Converse

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
LLAMA = "us.meta.llama4-maverick-17b-instruct-v1:0"
NOVA = "us.amazon.nova-pro-v1:0"
PALMYRA = "us.writer.palmyra-x5-v1:0"
PNG = b"\x89PNG not really"
SCHEMA = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
SPEC = ToolSpec("clock", "The time somewhere.", SCHEMA)


def text(words):
    return {"t": "text", "text": words}


def call(number, **args):
    return {"t": "tool_call", "id": f"tooluse_{number}", "name": "clock", "args": args}


def result(number, words, **more):
    return {"t": "tool_result", "id": f"tooluse_{number}", "name": "clock", "text": words, **more}


IMAGE = {"t": "image", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
ASKED = ModelRequest([UserPromptPart("What time is it?")])
CALLED = ToolCallPart("clock", {"zone": "UTC"}, "tooluse_1")
TOLD = ToolReturnPart("clock", "12:00", "tooluse_1")

HISTORIES: dict[str, tuple[list[Turnlet], list[ModelMessage]]] = {
    "a question": (
        [Turnlet("user", [text("hi")])],
        [ModelRequest([UserPromptPart("hi")])],
    ),
    "a conversation": (
        [
            Turnlet("user", [text("hi")]),
            Turnlet("assistant", [text("hello")]),
            Turnlet("user", [text("bye")]),
        ],
        [
            ModelRequest([UserPromptPart("hi")]),
            ModelResponse([TextPart("hello")]),
            ModelRequest([UserPromptPart("bye")]),
        ],
    ),
    "an image": (
        [Turnlet("user", [text("look"), IMAGE])],
        [ModelRequest([UserPromptPart(["look", BinaryContent(PNG, media_type="image/png")])])],
    ),
    "a tool": (
        [
            Turnlet("user", [text("What time is it?")]),
            Turnlet("assistant", [text("Let me see."), call(1, zone="UTC")]),
            Turnlet("user", [result(1, "12:00")]),
        ],
        [ASKED, ModelResponse([TextPart("Let me see."), CALLED]), ModelRequest([TOLD])],
    ),
    "a tool that failed, with a steered text": (
        [
            Turnlet("user", [text("What time is it?")]),
            Turnlet("assistant", [call(1, zone="UTC")]),
            Turnlet("user", [result(1, "no clock", is_error=True), text("in Rome, please")]),
        ],
        [
            ASKED,
            ModelResponse([CALLED]),
            ModelRequest(
                [
                    ToolReturnPart("clock", "no clock", "tooluse_1", outcome="failed"),
                    UserPromptPart("in Rome, please"),
                ]
            ),
        ],
    ),
    "two tools": (
        [
            Turnlet("user", [text("What time is it?")]),
            Turnlet("assistant", [call(1, zone="UTC"), call(2, zone="CET")]),
            Turnlet("user", [result(1, "12:00"), result(2, "13:00")]),
        ],
        [
            ASKED,
            ModelResponse([CALLED, ToolCallPart("clock", {"zone": "CET"}, "tooluse_2")]),
            ModelRequest([TOLD, ToolReturnPart("clock", "13:00", "tooluse_2")]),
        ],
    ),
}
THINKING: tuple[list[Turnlet], list[ModelMessage]] = (
    [
        Turnlet("user", [text("What time is it?")]),
        Turnlet(
            "assistant",
            [
                {
                    "t": "thinking",
                    "text": "hm",
                    "sig": {"maker": "anthropic", "signature": "sig-1"},
                },
                {
                    "t": "thinking",
                    "text": "",
                    "sig": {
                        "maker": "anthropic",
                        "redacted_content": base64.b64encode(b"hidden").decode(),
                    },
                },
                call(1, zone="UTC"),
            ],
        ),
        Turnlet("user", [result(1, "12:00")]),
    ],
    [
        ASKED,
        ModelResponse(
            [
                ThinkingPart("hm", signature="sig-1", provider_name="bedrock"),
                ThinkingPart(
                    "", id="redacted_content", signature="hidden", provider_name="bedrock"
                ),
                CALLED,
            ],
            provider_name="bedrock",
        ),
        ModelRequest([TOLD]),
    ],
)


class Kept(Exception):
    pass


@pytest.fixture(scope="module")
def sdk():
    """botocore's client, which writes its request and doesn't send it, and what it wrote last."""
    client = botocore.session.Session().create_client(
        "bedrock-runtime",
        region_name="us-east-1",
        aws_access_key_id="AKIA",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}),
    )
    written: list[bytes] = []

    def keep(request, **_):
        written.append(request.body)
        raise Kept

    client.meta.events.register("before-send", keep)
    yield client, written
    client.close()


async def theirs(sdk, model: str, history: list[ModelMessage], *, system: str) -> Any:
    client, written = sdk
    oracle = BedrockConverseModel(model, provider=BedrockProvider(bedrock_client=client))
    if system:
        first = history[0]
        history = [ModelRequest([SystemPromptPart(system), *first.parts]), *history[1:]]
    tool = ToolDefinition(name="clock", parameters_json_schema=SCHEMA, description=SPEC.description)
    written.clear()
    with pytest.raises(Kept):
        await oracle.request(
            history, {"max_tokens": 99}, ModelRequestParameters(function_tools=[tool])
        )
    return orjson.loads(written[0])


def ours(model: str, history: list[Turnlet], *, system: str = "") -> Any:
    request = base.ModelRequest(model, history, 99, system=system, tools=[SPEC])
    return orjson.loads(orjson.dumps(Converse("us-east-1", model).body(request)))


def comparable(body: Any) -> Any:
    """A result's `success` is what none means, and an empty `system` too."""
    if isinstance(body, list):
        return [comparable(item) for item in body]
    if isinstance(body, dict):
        return {
            key: comparable(value)
            for key, value in body.items()
            if (key, value) not in (("status", "success"), ("system", []))
        }
    return body


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("model", [CLAUDE, NOVA, LLAMA, PALMYRA])
@pytest.mark.parametrize("system", ["", "Be kind."])
async def test_the_body_is_the_oracles(sdk, model, name, system):
    mine, its = HISTORIES[name]
    body = ours(model, mine, system=system)
    oracle = comparable(await theirs(sdk, model, its, system=system))
    assert set(body) == set(oracle)
    for field in ("messages", "system", "inferenceConfig"):
        assert body.get(field) == oracle.get(field), field
    [tool], [its_tool] = body["toolConfig"]["tools"], oracle["toolConfig"]["tools"]
    spec, its_spec = tool["toolSpec"], its_tool["toolSpec"]
    assert (spec["name"], spec["description"]) == (its_spec["name"], its_spec["description"])
    schema, its_schema = spec["inputSchema"]["json"], its_spec["inputSchema"]["json"]
    assert schema == {key: its_schema[key] for key in schema}


async def test_thinking_goes_back_as_the_oracle_sends_it(sdk):
    mine, its = THINKING
    oracle = comparable(await theirs(sdk, CLAUDE, its, system=""))
    assert ours(CLAUDE, mine)["messages"] == oracle["messages"]


async def test_results_stand_alone_where_the_oracle_sets_them_alone(sdk):
    for model in (LLAMA, PALMYRA):
        mine, its = HISTORIES["a tool that failed, with a steered text"]
        messages = ours(model, mine)["messages"]
        oracle = comparable(await theirs(sdk, model, its, system=""))
        assert messages == oracle["messages"]
        assert [len(message["content"]) for message in messages] == [1] * 5
