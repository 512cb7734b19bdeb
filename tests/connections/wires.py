"""What the tests of the two wires share: targets on the fake providers and a way to collect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from connections import providers
from connections.providers.base import (
    Event,
    ModelRequest,
    ProviderError,
    Target,
    TextDelta,
    ToolSpec,
    Turnlet,
)
from tests.fakes.server import GOOD_KEY, FakeProviders
from workspaces.egress import Policy, guarded_client

WIRES = ("openai-completions", "anthropic-messages")
TYPES = {"openai-completions": "openai_compat", "anthropic-messages": "anthropic_compat"}
CLOCK = ToolSpec("current_time", "The time.", {"type": "object", "properties": {}})
FETCH = ToolSpec(
    "fetch_url",
    "A page.",
    {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]},
)


def client(**options: Any) -> httpx.AsyncClient:
    """The product's own way out, allowed to reach loopback."""
    return guarded_client(Policy.parse("127.0.0.0/8"), **options)


def target(fakes: FakeProviders, wire: str, *, key: str = GOOD_KEY, **more: Any) -> Target:
    base = fakes.openai if wire == "openai-completions" else fakes.anthropic
    about = {
        "provider_type": TYPES[wire],
        "auth_type": "api_key_with_endpoint",
        "base_url": base,
        "secret": {"api_key": key},
    }
    return Target(**(about | more))


def said(text: str) -> Turnlet:
    return Turnlet("user", [{"t": "text", "text": text}])


def asking(model: str, text: str = "hello there", **more: Any) -> ModelRequest:
    about = {"history": [said(text)], "max_tokens": 4000, "idle_timeout": 10}
    return ModelRequest(model, **(about | more))


async def replies(
    http: httpx.AsyncClient, where: Target, request: ModelRequest
) -> tuple[list[Event], ProviderError | None]:
    """All events, and the error they ended with."""
    events: list[Event] = []
    try:
        async for event in providers.get(where.provider_type).stream(http, where, request):
            events.append(event)
    except ProviderError as error:
        return events, error
    return events, None


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def only(kind: type, events: Sequence[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


class Chunks(httpx.AsyncByteStream):
    def __init__(self, chunks: Sequence[bytes | Exception]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


def canned(*chunks: bytes | Exception, status: int = 200, headers: Any = None) -> httpx.AsyncClient:
    """A client whose every answer is these chunks; an exception among them is raised."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=headers, stream=Chunks(chunks))

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


def answering(
    asked: list[httpx.Request], body: bytes = b"", *, status: int = 200, headers: Any = None
) -> httpx.AsyncClient:
    """As `canned`; what it is asked is appended to `asked`."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, headers=headers, stream=Chunks([body]))

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))
