"""What all provider types that speak HTTP have in common: the calls, and how they fail.

Whatever goes wrong in here comes out as a `ProviderError` whose message was scrubbed. How many
bytes a response may have, and that it isn't compressed, is the guarded client's affair
(`workspaces.egress`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, ClassVar

import httpx

from connections.providers import errors
from connections.providers.base import (
    Done,
    ErrorKind,
    Event,
    ListedModel,
    ModelRequest,
    ProviderError,
    Target,
    freshened,
)
from connections.providers.errors import Scrubber
from connections.providers.wire import Decoder, Parser, Wire
from connections.providers.wire.anthropic_messages import AnthropicMessages
from connections.providers.wire.lenient_json import dumps, loads
from connections.providers.wire.openai_completions import OpenAICompletions

CONNECT_TIMEOUT = 10.0  # seconds, as are the next ones
WRITE_TIMEOUT = 30.0
LOOKUP_TIMEOUT = 20.0  # a whole call without a stream
ERROR_BODY_TIMEOUT = 5.0
TAIL_TIMEOUT = 3.0  # for the usage, once the reason of the end is known
CLOSE_TIMEOUT = 0.2  # for the end of the connection, once nothing more is to come
MAX_ERROR_BODY = 64 * 1024
MAX_LOOKUP_BODY = 8 * 1024 * 1024

WIRES: dict[str, Wire] = {wire.name: wire for wire in (AnthropicMessages(), OpenAICompletions())}

# The client's own; one of these from outside would reframe the request or send it elsewhere.
RESERVED_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


class HTTPProvider:
    """A provider type over one of the `WIRES`. Subclasses say how to prove a key for nothing."""

    provider_type: ClassVar[str]
    auth_types: ClassVar[frozenset[str]]
    default_base_url: ClassVar[str] = ""
    default_wire: ClassVar[str]
    takes_tools: ClassVar[bool] = True

    def origin(self, target: Target) -> str:
        return target.base_url or self.default_base_url

    async def list_models(self, client: httpx.AsyncClient, target: Target) -> list[ListedModel]:
        wire = self.wire(target)
        payload = await self.lookup(client, target, wire.models_path)
        entries = payload.get("data") if isinstance(payload, dict) else payload
        if payload == {"object": "list", "data": None}:
            entries = []  # Ollama, before any model was pulled
        if not isinstance(entries, list):
            raise ProviderError(ErrorKind.PROTOCOL, "The list of models is not a list.")
        return wire.models(entries)

    async def stream(
        self, client: httpx.AsyncClient, target: Target, request: ModelRequest
    ) -> AsyncIterator[Event]:
        target, renewed = await freshened(target), False
        try:
            wire = self.wire(target, request.model)
            body = wire.body(request, max_tokens_field=target.max_tokens_field)
            content = dumps(body)
        except ValueError:
            message = "The conversation can't be written as JSON."
            raise ProviderError(ErrorKind.BAD_REQUEST, message) from None
        while True:
            attempt = self._attempt(client, target, request, content)
            try:
                first = await anext(attempt)
                break
            except ProviderError as error:
                # Some servers refuse what they don't know, and usage is not worth a reply.
                refused = error.kind is ErrorKind.BAD_REQUEST and "stream_options" in error.message
                if refused and body.pop("stream_options", None):
                    content = dumps(body)
                elif _token_refused(target, error) and not renewed:
                    target, renewed = await _renewed(target), True
                else:
                    raise
        async with aclosing(attempt):
            yield first
            async for event in attempt:
                yield event

    def wire(self, target: Target, model: str = "") -> Wire:
        """The wire for calls about `model`, "" for those about none."""
        return WIRES[target.wire or self.default_wire]

    async def authorize(
        self, client: httpx.AsyncClient, target: Target, request: httpx.Request
    ) -> None:
        """Puts in what authenticates: the last that is done to a request, so that it can be signed
        as it goes. Raises ProviderError."""
        key = target.secret.get("access_token") or target.secret.get("api_key")
        if not key:
            return
        if not _HEADER_VALUE.fullmatch(key):
            raise ProviderError(
                ErrorKind.AUTH, "The key has characters that no key can have; it was not sent."
            )
        header = target.auth_header or self.wire(target).auth_header
        if "access_token" in target.secret or header == "bearer":
            request.headers["authorization"] = f"Bearer {key}"
        else:
            request.headers["x-api-key"] = key

    async def lookup(
        self,
        client: httpx.AsyncClient,
        target: Target,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        model: str = "",
    ) -> Any:
        """The JSON of a GET, or with a body of a POST; `model` is the one that is asked about.
        Raises ProviderError."""
        target = await freshened(target)
        try:
            return await self._lookup(client, target, path, body, model)
        except ProviderError as error:
            if not _token_refused(target, error):
                raise
        return await self._lookup(client, await _renewed(target), path, body, model)

    async def _lookup(
        self,
        client: httpx.AsyncClient,
        target: Target,
        path: str,
        body: dict[str, Any] | None,
        model: str,
    ) -> Any:
        scrub = Scrubber(target)
        method, content = ("GET", None) if body is None else ("POST", dumps(body))
        with _mapped(scrub):
            try:
                async with asyncio.timeout(LOOKUP_TIMEOUT):
                    request = self._request(
                        client, target, method, path, idle=LOOKUP_TIMEOUT, content=content
                    )
                    await self.authorize(client, target, request)
                    async with _sent(client, request) as response:
                        if response.status_code >= 300:
                            raise await _refusal(response, scrub, model)
                        answer = await _read(response, MAX_LOOKUP_BODY + 1)
            except TimeoutError:
                raise ProviderError(ErrorKind.TIMEOUT, "No answer in time.") from None
        if len(answer) > MAX_LOOKUP_BODY:
            raise ProviderError(ErrorKind.PROTOCOL, "The answer is too large.")
        try:
            return loads(answer)
        except ValueError:
            message = scrub(f"The answer is not JSON: {errors.excerpt(answer)}")
            raise ProviderError(ErrorKind.PROTOCOL, message) from None

    async def _attempt(
        self,
        client: httpx.AsyncClient,
        target: Target,
        request: ModelRequest,
        content: bytes,
    ) -> AsyncIterator[Event]:
        scrub = Scrubber(target)
        wire = self.wire(target, request.model)
        parser, decoder = wire.parser(), wire.decoder(scrub)
        with _mapped(scrub):
            message = self._request(
                client,
                target,
                "POST",
                wire.chat_path(request.model),
                idle=request.idle_timeout,
                content=content,
                headers=wire.headers,
            )
            await self.authorize(client, target, message)
            async with _sent(client, message) as response:
                if response.status_code >= 300:
                    raise await _refusal(response, scrub, request.model)
                await _check_is_stream(response, scrub)
                with _mapped(scrub, answering=True):
                    async for event in _events(response, parser, decoder):
                        yield event
                if not decoder.reason:
                    raise ProviderError(ErrorKind.TRUNCATED, "The reply ended in the middle.")
            yield Done(decoder.reason)

    def _request(
        self,
        client: httpx.AsyncClient,
        target: Target,
        method: str,
        path: str,
        *,
        idle: float,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Request:
        """A request that `authorize` hasn't seen; `path` follows the base, unless it is a URL."""
        base = self.origin(target)
        if not base:
            raise ProviderError(ErrorKind.CONNECT, "The connection has no base URL.")
        timeout = httpx.Timeout(
            connect=CONNECT_TIMEOUT, read=idle, write=WRITE_TIMEOUT, pool=CONNECT_TIMEOUT
        )
        wire = self.wire(target).headers if headers is None else headers
        sent = {"accept-encoding": "identity", **wire}
        if content is not None:
            sent["content-type"] = "application/json"
        for name, value in target.extra_headers.items():
            name = name.lower()
            if name in RESERVED_HEADERS:
                continue
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise ProviderError(
                    ErrorKind.BAD_REQUEST, "An extra header has characters that no header can have."
                )
            sent[name] = value
        url = path if path.startswith("https://") else base + path
        return client.build_request(method, url, content=content, headers=sent, timeout=timeout)


async def _events(
    response: httpx.Response, parser: Parser, decoder: Decoder
) -> AsyncIterator[Event]:
    """What the decoder makes of the body. Ends with the stream, or when nothing more is to come."""
    out: list[Event] = []
    # Once it speaks, what comes may wait a moment for what comes on other streams.
    stream = response.extensions.get("network_stream")
    be_calm = (stream and stream.get_extra_info("be_calm")) or _as_it_is
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            try:
                for name, data in parser.feed(chunk):
                    decoder.feed(name, data, out)
            except ProviderError:
                for event in out:  # what came before the failure, in the same bytes
                    yield event
                raise
            if out:
                for event in out:
                    yield event
                out.clear()
                be_calm(True)
            if decoder.reason:
                break
        be_calm(False)
        # The reply is complete. What is left is its usage and the end of the response, which lets
        # the connection be used again; neither is worth a long wait or a failure.
        while decoder.reason:
            seconds = CLOSE_TIMEOUT if decoder.over else TAIL_TIMEOUT
            try:
                chunk = await asyncio.wait_for(anext(chunks), seconds)
            except (StopAsyncIteration, TimeoutError, httpx.HTTPError):
                break
            if not decoder.over:
                with _unreadable_ignored():
                    for name, data in parser.feed(chunk):
                        decoder.feed(name, data, out)
    if not decoder.over:
        with _unreadable_ignored():  # half an event: the stream was cut, its sender is not at fault
            for name, data in parser.close():
                decoder.feed(name, data, out)
    if decoder.reason:
        decoder.finish(out)
    for event in out:
        yield event


def _as_it_is(calm: bool) -> None:
    """A stream that isn't of `workspaces.network`."""


def _token_refused(target: Target, error: ProviderError) -> bool:
    """Whether another token may help: withdrawn before its time, or a clock that is wrong."""
    return target.fresh is not None and error.kind is ErrorKind.AUTH and error.status == 401


async def _renewed(target: Target) -> Target:
    return await freshened(target, rejected=target.secret.get("access_token", ""))


@contextmanager
def _unreadable_ignored() -> Iterator[None]:
    try:
        yield
    except ProviderError as error:
        if error.kind is not ErrorKind.PROTOCOL:
            raise


@asynccontextmanager
async def _sent(client: httpx.AsyncClient, request: httpx.Request) -> AsyncIterator[httpx.Response]:
    response = await client.send(request, stream=True, follow_redirects=False)
    try:
        yield response
    finally:
        await response.aclose()


@contextmanager
def _mapped(scrub: Scrubber, *, answering: bool = False) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        # `from None`: httpx's exceptions hold the request, and with it the key
        raise errors.from_exception(error, scrub, answering=answering) from None


async def _refusal(response: httpx.Response, scrub: Scrubber, model: str = "") -> ProviderError:
    try:
        async with asyncio.timeout(ERROR_BODY_TIMEOUT):
            body = await _read(response, MAX_ERROR_BODY)
    except (TimeoutError, httpx.HTTPError):
        body = b""  # the status is enough
    return errors.from_response(response.status_code, response.headers, body, scrub, model=model)


async def _check_is_stream(response: httpx.Response, scrub: Scrubber) -> None:
    """Some servers answer 200 with an error, and some addresses are web pages."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "text/html"):
        return
    try:
        async with asyncio.timeout(ERROR_BODY_TIMEOUT):
            body = await _read(response, MAX_ERROR_BODY)
    except TimeoutError:
        body = b""
    try:
        payload = errors.unwrapped(loads(body))
    except ValueError:
        payload = None
    if isinstance(payload, dict) and payload.get("error"):
        raise errors.from_payload(payload, scrub, otherwise=ErrorKind.PROTOCOL)
    raise ProviderError(
        ErrorKind.PROTOCOL, scrub(f"The answer is not a stream but {kind}: {errors.excerpt(body)}")
    )


async def _read(response: httpx.Response, limit: int) -> bytes:
    """The first `limit` bytes of the body."""
    body = bytearray()
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) >= limit:
                break
    return bytes(body[:limit])
