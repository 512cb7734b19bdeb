"""What a request may cost before anybody looks at it: its size, and how long it may take to come.

The event loop reads requests, so a slow sender holds a connection and no thread. Still, memory and
connections are finite: a head must be whole within `HEAD_SECONDS`, and a body keep up with
`BODY_RATE` after `BODY_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from asgiref.typing import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    Scope,
)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from config.static import SAFE_HEADERS

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
BODY_SECONDS = 10.0
BODY_RATE = 16 * 1024  # bytes a second
LINGER_SECONDS = 2.0

_TEXTS = {
    408: b"The request came too slowly. Try again.\n",
    413: b"The request is too large.\n",
}


class HeadLimits(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection, closed when a request's head is too long or too slow."""

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # A body may have begun in the same bytes: only a head still open is too long.
        if self._in_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._start_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def _start_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()


class BodyLimits:
    """Refuses a body over `limit` bytes with 413, one that comes too slowly with 408.

    Once the body is complete, messages pass untouched: an event stream costs nothing here.
    """

    def __init__(self, app: ASGI3Application, *, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _announced(scope) > self.limit:
            await _refuse(413, receive, send)
            return
        body = _Body(receive, self.limit)
        await self.app(scope, body.receive, body.guard(send))
        if body.refusal and not body.answered:
            await _refuse(body.refusal, receive, send)


class _Body:
    def __init__(self, receive: ASGIReceiveCallable, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self._complete = False
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        self.refusal = 0
        self.answered = False

    async def receive(self) -> ASGIReceiveEvent:
        if self._complete:
            return await self._receive()
        if self.refusal:
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self._deadline + self._size / BODY_RATE):
                message = await self._receive()
        except TimeoutError:
            return self._refuse(408)
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > self._limit:
                return self._refuse(413)
            self._complete = not message.get("more_body", False)
        return message

    def _refuse(self, status: int) -> ASGIReceiveEvent:
        # Django takes it for a client that went away and drops what it has; the answer is ours.
        self.refusal = status
        return {"type": "http.disconnect"}

    def guard(self, send: ASGISendCallable) -> ASGISendCallable:
        async def guarded(message: Any) -> None:
            self.answered = True
            await send(message)

        return guarded


def _announced(scope: Any) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            with contextlib.suppress(ValueError):
                return int(value)
    return 0


async def _refuse(status: int, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    text = _TEXTS[status]
    headers = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]
    headers += [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(text)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    await send(
        {"type": "http.response.start", "status": status, "headers": headers, "trailers": False}
    )
    await send({"type": "http.response.body", "body": text, "more_body": True})
    if status == 413:
        # Closing on bytes still under way resets the connection, and a browser then shows that
        # instead of the answer: what comes within a moment is read and thrown away.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        break
    await send({"type": "http.response.body", "body": b"", "more_body": False})
