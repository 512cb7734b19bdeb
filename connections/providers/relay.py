"""The way out of a Codex process: a server on loopback that forwards its requests, with the key.

The process is given an address on this machine and a token that is good for nothing else. What it
asks for leaves through the guarded client, with the secret put in here; nothing but its own
requests for a reply passes, and none that offers a tool. The relay sees what the provider answers,
so it, not the process, knows how a reply ended (`failure`, `reason`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Self

import h11
import httpx

from connections.providers import errors
from connections.providers.base import ErrorKind, ProviderError, Usage
from connections.providers.errors import Scrubber
from connections.providers.http import _check_is_stream, _mapped, _refusal, _sent
from connections.providers.wire.lenient_json import dumps, loads
from connections.providers.wire.numbers import count
from connections.providers.wire.sse import SSEParser

logger = logging.getLogger(__name__)

MAX_BODY = 64 * 1024 * 1024  # of a request; its images may have 20 MiB, or more once redrawn
READ_SECONDS = 30.0  # for a whole request of the process
GATE_SECONDS = 10.0  # for what is asked before a reply may end
UNASKED = 4  # requests beyond those that a message caused: the model calls tools that aren't there
MAX_REFUSAL = 20_000  # characters

_INCOMPLETE = {"max_output_tokens": "length", "content_filter": "refusal"}
_DELTA = b"response.output_text.delta"

# Makes the request that leaves of the headers and the body that came. Raises ProviderError.
Make = Callable[[Mapping[str, str], bytes], Awaitable[httpx.Request]]
# Asked before the end of a reply is passed on; True when something was put into the turn meanwhile.
Gate = Callable[[], Awaitable[bool]]


class Relay:
    """One for each process: `start` it, give the process `base_url` and `token`, `close` it.

    With `tells_401` the process hears of a refused token, so that it asks for another; of any
    other refusal it hears only that there was one, and doesn't try again.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        make: Make,
        scrub: Scrubber,
        *,
        model: str,
        gate: Gate,
        token: str = "",
        tells_401: bool = False,
    ) -> None:
        self.token = token or secrets.token_urlsafe(32)
        self.base_url = ""
        self.scrub = scrub
        self.tells_401 = tells_401
        # of the last request
        self.failure: ProviderError | None = None
        self.reason = ""  # "stop", "length", "refusal", "other", or "" when it has no end yet
        self.refusal = ""  # the provider's words of a refusal, which the process drops
        self.usage: Usage | None = None
        self._client, self._make = client, make
        self._model, self._gate = model, gate
        self._left = 1 + UNASKED
        self._path = f"/{secrets.token_urlsafe(8)}/v1"
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}{self._path}"
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self._tasks)

    async def close(self) -> None:
        """Takes nothing more and breaks off what is under way: the provider's side is closed."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2)

    # -- the process's side ------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await _Exchange(self, reader, writer).run()
        except (asyncio.CancelledError, OSError, h11.ProtocolError):
            pass  # it is over, whoever ended it
        finally:
            self._tasks.discard(task)
            writer.close()

    def allows(self, request: h11.Request) -> int:
        """0, or the status that refuses it."""
        headers = dict(request.headers)
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(given, self.token.encode()):
            return 401
        if (request.method, request.target) != (b"POST", f"{self._path}/responses".encode()):
            return 404
        return 0

    # -- the provider's side -----------------------------------------------------------------------

    async def answer(self, headers: Mapping[str, str], body: bytes) -> AsyncIterator[bytes]:
        """The bytes of the provider's event stream. Whatever goes wrong is `failure` afterwards,
        and raised."""
        self.failure, self.reason, self.refusal, self.usage = None, "", "", None
        try:
            self._left -= 1
            if self._left < 0:
                raise ProviderError(
                    ErrorKind.PROTOCOL, "The model goes on calling tools that it was not offered."
                )
            with _mapped(self.scrub):
                request = await self._make(headers, body)
                async with _sent(self._client, request) as response:
                    if response.status_code >= 300:
                        raise await _refusal(response, self.scrub, self._model)
                    await _check_is_stream(response, self.scrub)
                    with _mapped(self.scrub, answering=True):
                        async with aclosing(self._pass_on(response)) as chunks:
                            async for chunk in chunks:
                                yield chunk
            if not self.reason:
                raise ProviderError(ErrorKind.TRUNCATED, "The reply ended in the middle.")
        except ProviderError as error:
            self.failure = error
            raise
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            # By its type alone: what a fault of ours holds may be a secret.
            logger.error("the relay failed: %s", type(error).__name__)
            self.failure = ProviderError(ErrorKind.PROCESS, "The relay failed.")
            raise self.failure from None

    async def _pass_on(self, response: httpx.Response) -> AsyncIterator[bytes]:
        parser = SSEParser()
        async with aclosing(response.aiter_raw()) as chunks:
            async for chunk in chunks:
                try:
                    for name, data in parser.feed(chunk):
                        await self._look(name, data)
                except ProviderError:
                    yield chunk  # what stands before the fault is part of the reply
                    raise
                yield chunk
                if self.reason:
                    return
        for name, data in parser.close():
            await self._look(name, data)
        if self.reason:
            yield b"\n\n"

    async def _look(self, name: bytes, data: bytes) -> None:
        """What an event says of the reply as a whole."""
        if name == _DELTA or self.reason or data == b"[DONE]":
            return
        try:
            event = loads(data)
        except ValueError:
            event = None
        if type(event) is not dict:
            raise ProviderError(ErrorKind.PROTOCOL, "A part of the stream is not a JSON object.")
        response = event.get("response")
        response = response if type(response) is dict else {}
        match event.get("type"):
            case "response.refusal.delta":
                self.refusal = (self.refusal + str(event.get("delta", "")))[:MAX_REFUSAL]
            case "response.completed":
                self.usage = _usage(response.get("usage"))
                if await self._let_in():
                    self._left += 1
                self.reason = "refusal" if self.refusal else "stop"
            case "response.incomplete":
                self.usage = _usage(response.get("usage"))
                details = response.get("incomplete_details")
                why = details.get("reason") if type(details) is dict else None
                self.reason = _INCOMPLETE.get(str(why), "other")
            case "response.failed" | "response.cancelled":
                raise errors.from_payload({"error": response.get("error") or {}}, self.scrub)
            case "error":
                about = event.get("error")
                if type(about) is not dict:
                    about = {name: event.get(name) for name in ("code", "message", "param")}
                raise errors.from_payload({"error": about}, self.scrub)
            case _ if event.get("error") and "type" not in event:
                raise errors.from_payload(event, self.scrub)

    async def _let_in(self) -> bool:
        try:
            async with asyncio.timeout(GATE_SECONDS):
                return await self._gate()
        except Exception as error:
            # What waits is then answered after this turn.
            logger.warning("steering: %s", type(error).__name__)
            return False


class _Exchange:
    """One request of the process and its answer; the connection is closed after it."""

    def __init__(
        self, relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._relay, self._reader, self._writer = relay, reader, writer
        self._http = h11.Connection(h11.SERVER)
        self._headers: dict[str, str] = {}

    async def run(self) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                body = await self._body()
        except TimeoutError:
            return
        if body is None:
            return
        answering = asyncio.create_task(self._answer(body))
        leaving = asyncio.create_task(self._reader.read(1))
        try:
            # Whichever comes first: the answer's end, or the process hangs up.
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, leaving):
                task.cancel()
            for ended in await asyncio.gather(answering, leaving, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, OSError):
                    logger.error("the relay failed: %s", type(ended).__name__)

    async def _body(self) -> bytes | None:
        """The body of a request that may pass; None when it was refused."""
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(1 << 18))
            elif isinstance(event, h11.Request):
                if status := self._relay.allows(event):
                    await self._say(status)
                    return None
                self._headers = {
                    name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers
                }
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    self._relay.failure = ProviderError(
                        ErrorKind.TOO_LARGE, f"The request has more than {MAX_BODY} bytes."
                    )
                    await self._say(413)
                    return None
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            else:
                return None

    async def _say(self, status: int) -> None:
        words = dumps({"error": {"message": "refused"}})
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(words))),
            ("connection", "close"),
        ]
        self._writer.write(
            self._http.send(h11.Response(status_code=status, headers=headers))
            + self._http.send(h11.Data(data=words))
            + self._http.send(h11.EndOfMessage())
        )
        await self._writer.drain()

    async def _answer(self, body: bytes) -> None:
        async with aclosing(self._relay.answer(self._headers, body)) as chunks:
            await self._send(chunks)

    async def _send(self, chunks: AsyncIterator[bytes]) -> None:
        try:
            first = await anext(chunks)
        except ProviderError as error:
            await self._say(401 if self._relay.tells_401 and error.status == 401 else 400)
            return
        except StopAsyncIteration:
            await self._say(400)
            return
        headers = [("content-type", "text/event-stream"), ("connection", "close")]
        self._writer.write(self._http.send(h11.Response(status_code=200, headers=headers)))
        self._writer.write(self._http.send(h11.Data(data=first)))
        await self._writer.drain()
        with contextlib.suppress(ProviderError):
            async for chunk in chunks:
                self._writer.write(self._http.send(h11.Data(data=chunk)))
                await self._writer.drain()
            self._writer.write(self._http.send(h11.EndOfMessage()))
            await self._writer.drain()


def _usage(given: Any) -> Usage | None:
    if type(given) is not dict:
        return None
    details = given.get("input_tokens_details")
    details = details if type(details) is dict else {}
    return Usage(
        input_tokens=count(given.get("input_tokens")),
        output_tokens=count(given.get("output_tokens")),
        cache_read_tokens=count(details.get("cached_tokens")),
        cache_write_tokens=count(details.get("cache_write_tokens")),
    )
