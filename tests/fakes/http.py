"""A small HTTP/1.1 server, so that a fake provider can do what frameworks don't allow: reset a
connection in the middle, fall silent, notice at once that the client has gone, and send thousands
of small chunks a second for little."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Callable, Iterator
from http import HTTPStatus
from socket import SO_LINGER, SOL_SOCKET

import httptools
import orjson


class Cut:
    """A step that resets the connection."""


class Hang:
    """A step after which nothing comes any more, until the client goes."""


# What a reply consists of: bytes to send, seconds to wait, or one of the two above.
Step = bytes | float | type[Cut] | type[Hang]


class Exchange:
    """One request and its reply. Reply with `respond` (whole) or `play` (in chunks, over time)."""

    def __init__(self, connection: _Connection, method: str, target: str, headers, body: bytes):
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers: dict[str, str] = headers
        self.body = body
        self.over = False
        # called once, with "done", "cut", "early-end" or "aborted" (by the client)
        self.on_end: Callable[[str], None] = lambda how: None
        self._connection = connection
        self._steps: Iterator[Step] = iter(())
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._wait_for_drain = False

    def respond(self, status: int, content, headers: dict[str, str] | None = None) -> None:
        if not isinstance(content, bytes):
            content = orjson.dumps(content)
        head = {"content-type": "application/json", **(headers or {})}
        head["content-length"] = str(len(content))
        self._connection.transport.write(_head(status, head) + content)
        self._end("done")

    def play(self, steps: Iterator[Step], headers: dict[str, str]) -> None:
        """Sends the steps as the chunks of a 200. A step is asked for at the moment it is sent."""
        head = {**headers, "transfer-encoding": "chunked"}
        self._connection.transport.write(_head(200, head))
        self._steps = steps
        self._due = asyncio.get_running_loop().time()
        self._play()

    def _play(self) -> None:
        transport = self._connection.transport
        for step in self._steps:
            if type(step) is bytes:
                transport.write(b"%x\r\n%b\r\n" % (len(step), step))
                if transport.is_closing():  # nothing would ever pause an endless reply
                    return
                if self._connection.paused:
                    self._wait_for_drain = True
                    return
            elif step is Cut:
                self._end("cut")
                linger = struct.pack("ii", 1, 0)  # closing with this sends a reset
                transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)
                transport.abort()
                return
            elif step is Hang:
                return
            else:  # from when the last one was due, so that lateness doesn't add up
                self._due += step
                self._timer = asyncio.get_running_loop().call_at(self._due, self._play)
                return
        transport.write(b"0\r\n\r\n")
        self._end("done")

    def drained(self) -> None:
        if self._wait_for_drain and not self.over:
            self._wait_for_drain = False
            self._play()

    def lost(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._end("aborted")

    def _end(self, how: str) -> None:
        if not self.over:
            self.over = True
            self.on_end(how)


def _head(status: int, headers: dict[str, str]) -> bytes:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus else "Overloaded"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _Connection(asyncio.Protocol):
    def __init__(self, app: Callable[[Exchange], None], connections: set[_Connection]) -> None:
        self._app = app
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self.paused = False

    def connection_made(self, transport) -> None:
        self.transport = transport
        self._connections.add(self)

    def connection_lost(self, exc) -> None:
        self._connections.discard(self)
        if self._exchange:
            self._exchange.lost()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._exchange:
            self._exchange.drained()

    # called by the parser

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        target = self._url.decode("latin-1")
        self._exchange = Exchange(self, method, target, self._headers, b"".join(self._body))
        self._app(self._exchange)


class Server:
    """Listens from `start` to `stop`; `app` is called on the loop with each `Exchange`."""

    def __init__(self, app: Callable[[Exchange], None]) -> None:
        self._app = app
        self.connections: set[_Connection] = set()

    async def start(
        self, host: str = "127.0.0.1", port: int = 0, *, tls: ssl.SSLContext | None = None
    ) -> int:
        """Returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self._app, self.connections), host, port, backlog=1024, ssl=tls
        )
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        # One that was just accepted becomes a connection within the loop's next turns, and is gone
        # a turn after its abort.
        for _ in range(50):
            for connection in list(self.connections):
                connection.transport.abort()
            await asyncio.sleep(0)
        await self._server.wait_closed()
