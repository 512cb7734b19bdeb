"""The bodies that go to Gemini are those that pydantic-ai sends through Google's own library."""

from __future__ import annotations

import base64
import json

import httpx
import orjson
import pytest
from google.auth.credentials import AnonymousCredentials
from google.genai import Client, types
from pydantic_ai import messages as oracle
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.providers.google_cloud import GoogleCloudProvider
from pydantic_ai.tools import ToolDefinition

from connections.providers.base import ModelRequest, ToolSpec, Turnlet
from connections.providers.wire.gemini import Gemini
from connections.providers.wire.gemini_schema import parameters
from tests.connections.wires import CLOCK, FETCH, said

IMAGE = {"t": "image", "media_type": "image/png", "data": "aGk="}
ANSWER = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "ok"}]}, "finishReason": "STOP"}
    ]
}


class _Anybody(AnonymousCredentials):
    def refresh(self, request):
        self.token = "t"


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
        offered = [
            ToolDefinition(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=dict(tool.parameters),
            )
            for tool in tools
        ]
        for one in history:
            if isinstance(one, oracle.ModelRequest):
                one.instructions = system
        parameters = ModelRequestParameters(function_tools=offered)
        async with model.request_stream(history, {"max_tokens": 100}, parameters) as stream:
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
