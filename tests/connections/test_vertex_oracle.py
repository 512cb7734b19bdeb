"""Vertex AI is asked as pydantic-ai asks it, through Google's and Anthropic's own libraries."""

from __future__ import annotations

import base64
import json

import httpx
import httpx2
import orjson
import pytest
from anthropic import AsyncAnthropicVertex
from google.auth.credentials import AnonymousCredentials
from google.genai import Client, types
from pydantic_ai import messages as oracle
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google_cloud import GoogleCloudProvider
from pydantic_ai.tools import ToolDefinition

from connections.providers import google_token
from connections.providers.base import ModelRequest, Target, ToolSpec, Turnlet
from connections.providers.wire.gemini import Gemini
from connections.providers.wire.gemini_schema import parameters
from tests.connections.wires import CLOCK, FETCH, answering, asking, replies, said

IMAGE = {"t": "image", "media_type": "image/png", "data": "aGk="}
ANSWER = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "ok"}]}, "finishReason": "STOP"}
    ]
}


class _Anybody(AnonymousCredentials):
    def refresh(self, request):
        self.token = "t"


def offering(tools: list[ToolSpec]) -> ModelRequestParameters:
    return ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=dict(tool.parameters),
            )
            for tool in tools
        ]
    )


async def oracles_body(history: list, tools: list[ToolSpec], system: str) -> dict:
    """What pydantic-ai sends through Google's own library for the same conversation."""
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        event = b"data: " + orjson.dumps(ANSWER) + b"\r\n\r\n"
        return httpx.Response(200, content=event, headers={"content-type": "text/event-stream"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        google = Client(
            vertexai=True,
            project="fake-project",
            location="us-central1",
            credentials=_Anybody(),
            http_options=types.HttpOptions(httpx_async_client=http),
        )
        model = GoogleModel("gemini-2.5-pro", provider=GoogleCloudProvider(client=google))
        for one in history:
            if isinstance(one, oracle.ModelRequest):
                one.instructions = system
        async with model.request_stream(history, {"max_tokens": 100}, offering(tools)) as stream:
            async for _ in stream:
                pass
    return bodies[0]


def neutral(body: dict) -> dict:
    """Without what the two may say differently and mean the same."""
    body = json.loads(json.dumps(body).replace("mime_type", "mimeType"))
    body.pop("toolConfig", None)  # how strictly tools are kept to: its own choice
    body["generationConfig"].pop("responseModalities", None)  # text is what comes anyway
    body["generationConfig"].pop("thinkingConfig", None)  # ours asks for the thoughts
    for content in body["contents"]:
        for part in content["parts"]:
            for kind in ("functionCall", "functionResponse"):
                part.get(kind, {}).pop("id", None)  # made up by whoever sends it
    for tool in body.get("tools", []):
        for function in tool["functionDeclarations"]:
            schema = function.pop("parameters_json_schema", None)
            if schema and (cleaned := parameters(schema)):
                function["parameters"] = cleaned
    return body


def conversations():
    """(name, ours, the oracle's) for the same conversations."""
    signature = base64.b64encode(b"sig").decode()
    signed = {"provider_name": "google-cloud", "provider_details": {"thought_signature": signature}}
    ask = oracle.ModelRequest(parts=[oracle.UserPromptPart("go")])
    yield "a question", [said("go")], [ask]

    image = oracle.BinaryContent(data=b"hi", media_type="image/png")
    yield (
        "an image",
        [Turnlet("user", [{"t": "text", "text": "look"}, IMAGE])],
        [oracle.ModelRequest(parts=[oracle.UserPromptPart(["look", image])])],
    )
    yield (
        "an answer and another question",
        [said("go"), Turnlet("assistant", [{"t": "text", "text": "gone"}]), said("on")],
        [
            ask,
            oracle.ModelResponse(parts=[oracle.TextPart("gone")], provider_name="google-cloud"),
            oracle.ModelRequest(parts=[oracle.UserPromptPart("on")]),
        ],
    )
    call = {"t": "tool_call", "name": "fetch_url", "args": {"url": "u"}}
    done = {"t": "tool_result", "name": "fetch_url", "text": "page"}
    for name, sig in (("a tool loop", None), ("a signed tool loop", signature)):
        mine = {"sig": {"thoughtSignature": sig}} if sig else {}
        yield (
            name,
            [
                said("go"),
                Turnlet(
                    "assistant",
                    [
                        {"t": "thinking", "text": "hm", "sig": {"thought": True}},
                        {"t": "text", "text": "Let me."},
                        {**call, "id": "c1", **mine},
                        {**call, "id": "c2"},
                    ],
                ),
                Turnlet(
                    "user",
                    [
                        {**done, "id": "c1"},
                        {**done, "id": "c2", "is_error": True},
                        {"t": "text", "text": "steered"},
                    ],
                ),
            ],
            [
                ask,
                oracle.ModelResponse(
                    parts=[
                        oracle.ThinkingPart("hm"),
                        oracle.TextPart("Let me."),
                        oracle.ToolCallPart(
                            "fetch_url", {"url": "u"}, "c1", **(signed if sig else {})
                        ),
                        oracle.ToolCallPart("fetch_url", {"url": "u"}, "c2"),
                    ],
                    provider_name="google-cloud",
                ),
                oracle.ModelRequest(
                    parts=[
                        oracle.ToolReturnPart("fetch_url", {"output": "page"}, "c1"),
                        oracle.ToolReturnPart("fetch_url", "page", "c2", outcome="failed"),
                        oracle.UserPromptPart("steered"),
                    ]
                ),
            ],
        )


@pytest.mark.parametrize(
    ("name", "ours", "theirs"), [*conversations()], ids=lambda one: str(one)[:30]
)
async def test_the_body_is_the_one_that_pydantic_ai_sends(name, ours, theirs):
    tools = [CLOCK, FETCH]
    mine = Gemini("/x").body(
        ModelRequest("gemini-2.5-pro", ours, 100, system="Be brief.", tools=tools)
    )
    assert neutral(mine) == neutral(await oracles_body(theirs, tools, "Be brief."))


# -- Claude ----------------------------------------------------------------------------------------

CLAUDE = "claude-sonnet-4-5@20250929"


async def claudes_request(history: list, tools: list[ToolSpec]) -> tuple[str, dict]:
    """Address and body of pydantic-ai's, through Anthropic's library for Vertex AI."""
    seen = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append((str(request.url), json.loads(request.content)))
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=ENDED)

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        anthropic = AsyncAnthropicVertex(
            region="us-east5", project_id="fake-project", access_token="t", http_client=http
        )
        model = AnthropicModel(CLAUDE, provider=AnthropicProvider(anthropic_client=anthropic))
        async with model.request_stream(history, {"max_tokens": 100}, offering(tools)) as stream:
            async for _ in stream:
                pass
    return seen[0]


ENDED = "".join(
    f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
    for event in (
        {
            "type": "message_start",
            "message": {
                "id": "m",
                "type": "message",
                "role": "assistant",
                "model": CLAUDE,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 1, "output_tokens": 1},
            },
        },
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 1},
        },
        {"type": "message_stop"},
    )
)


def same_to_claude(body: dict) -> dict:
    """Without what the two may say differently and mean the same: a text as a text or as a list of
    one, the default said or not, which of the versions that Google takes."""
    body = dict(body)
    body.pop("anthropic_version")
    body.pop("tool_choice", None)
    if isinstance(body.get("system"), list):
        body["system"] = body["system"][0]["text"]
    for message in body["messages"]:
        for block in message["content"]:
            if block["type"] == "tool_result":
                block.setdefault("is_error", False)
                if isinstance(block["content"], list):
                    block["content"] = block["content"][0]["text"]
    return body


async def test_claude_is_asked_as_pydantic_ai_asks():
    ours = [
        said("go"),
        Turnlet(
            "assistant",
            [
                {"t": "thinking", "text": "hm", "sig": "s"},
                {"t": "text", "text": "Let me."},
                {"t": "tool_call", "id": "c1", "name": "fetch_url", "args": {"url": "u"}},
            ],
        ),
        Turnlet(
            "user",
            [
                {"t": "tool_result", "id": "c1", "name": "fetch_url", "text": "page"},
                {"t": "text", "text": "steered"},
                IMAGE,
            ],
        ),
    ]
    image = oracle.BinaryContent(data=b"hi", media_type="image/png")
    theirs = [
        oracle.ModelRequest(parts=[oracle.UserPromptPart("go")], instructions="Be brief."),
        oracle.ModelResponse(
            parts=[
                oracle.ThinkingPart("hm", signature="s", provider_name="anthropic"),
                oracle.TextPart("Let me."),
                oracle.ToolCallPart("fetch_url", {"url": "u"}, "c1"),
            ],
            provider_name="anthropic",
        ),
        oracle.ModelRequest(
            parts=[
                oracle.ToolReturnPart("fetch_url", "page", "c1"),
                oracle.UserPromptPart(["steered", image]),
            ],
            instructions="Be brief.",
        ),
    ]
    where = Target("vertex", "environment", region="us-east5", project="fake-project")
    google_token._kept["environment"] = google_token.Token("t", 1e12)
    asked: list[httpx.Request] = []
    try:
        async with answering(asked, status=404) as http:
            request = asking(
                CLAUDE, history=ours, max_tokens=100, system="Be brief.", tools=[CLOCK, FETCH]
            )
            await replies(http, where, request)
    finally:
        google_token._kept.clear()
    url, body = await claudes_request(theirs, [CLOCK, FETCH])
    assert str(asked[0].url) == url
    assert same_to_claude(json.loads(asked[0].content)) == same_to_claude(body)
