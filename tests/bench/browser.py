"""A session's page as a browser has it open, at as little of our own CPU as possible.

It does what `static/js/stream.js` does: one event stream, the message posted as htmx posts it, and
the turns fetched again when the server speaks of a version, or of a message, that the page lacks.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import dataclass, field
from urllib.parse import urlencode

import orjson

CSRF = "b" * 32
_VERSION = re.compile(rb'data-chat-version="(\d+)"')
_MESSAGE = re.compile(rb'data-message="([0-9a-f-]{36})"')
_TURN = re.compile(rb'data-turn="(\d+)"')


@dataclass
class Run:
    """One reply, times in monotonic nanoseconds."""

    posted: int = 0
    answered: int = 0
    first: int = 0
    stamps: list[int] = field(default_factory=list)  # when each token left the provider
    delays: list[int] = field(default_factory=list)  # a token's way
    fetches: int = 0

    def take(self, text: str) -> None:
        now = time.monotonic_ns()
        self.first = self.first or now
        for stamp in map(int, text.split()):
            self.stamps.append(stamp)
            self.delays.append(now - stamp)

    @property
    def out_of_order(self) -> int:
        return sum(b <= a for a, b in zip(self.stamps, self.stamps[1:], strict=False))


class Page:
    """One session's page. `open` it, then `ask` as often as one likes, then `close` it."""

    def __init__(self, port: int, path: str, cookie: str) -> None:
        self._port, self._path, self._cookie = port, path, cookie
        self._version = self._newest = 0
        self._turn = 0
        self._messages: set[str] = set()
        self._run = Run()
        self._over: asyncio.Future[None]
        self._requests: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._fetching: asyncio.Task[None] | None = None
        self._again = False
        self._known: dict[tuple[str, int], int] = {}  # message, block → UTF-16 units that are shown

    async def open(self) -> None:
        ready = asyncio.get_running_loop().create_future()
        self._over = asyncio.get_running_loop().create_future()
        self._stream = asyncio.create_task(self._follow(ready))
        self._stream.add_done_callback(self._ended)
        await ready

    async def ask(self, text: str = "go") -> Run:
        """Sends a message and follows the reply to its end."""
        self._run = run = Run()
        self._over = asyncio.get_running_loop().create_future()
        sent = {"text": text, "client_key": uuid.uuid4().hex, "since": self._turn}
        body = urlencode(sent).encode()
        run.posted = time.monotonic_ns()
        status, answer = await self._request("POST", "send/", body)
        run.answered = time.monotonic_ns()
        if status != 200:
            raise RuntimeError(f"refused: {status} {answer[:500]!r}")
        self._read(answer)
        await self._over
        while self._fetching is not None:
            await asyncio.wait([self._fetching])
        return run

    def close(self) -> None:
        self._stream.cancel()
        if self._requests is not None:
            self._requests[1].close()

    # -- the event stream --------------------------------------------------------------------------

    async def _follow(self, ready: asyncio.Future[None]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        writer.write(self._head("GET", "stream/", b""))
        name = b""
        try:
            while line := await reader.readline():
                if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                    raise ConnectionError(line.decode())
                if line.startswith(b": hello"):
                    ready.set_result(None)
                elif line.startswith(b"event: "):
                    name = line[7:].strip()
                elif line.startswith(b"data: "):
                    self._hear(name, orjson.loads(line[6:]))
            raise ConnectionError("the stream ended early")
        finally:
            writer.close()

    def _ended(self, stream: asyncio.Task[None]) -> None:
        if not stream.cancelled() and not self._over.done():
            self._over.set_exception(stream.exception() or ConnectionError("the stream ended"))

    def _hear(self, name: bytes, data: dict) -> None:
        if name == b"text":
            if data["m"] not in self._messages:
                self._fetch()
            place = (data["m"], data["b"])
            known, text = self._known.get(place, 0), data["t"]
            if data["o"] > known:
                raise ConnectionError("text is missing")
            if new := text[known - data["o"] :]:
                self._known[place] = known + len(new)
                self._run.take(new)
        elif name in (b"changed", b"turn-end"):
            self._newest = max(self._newest, data["v"])
            if self._newest > self._version:
                self._fetch()
            if name == b"turn-end" and not self._over.done():
                self._over.set_result(None)
        elif name == b"refresh":
            raise ConnectionError("told to start again")

    # -- requests ----------------------------------------------------------------------------------

    def _fetch(self) -> None:
        if self._fetching is not None:
            self._again = True
        else:
            self._fetching = asyncio.create_task(self._refetch())

    async def _refetch(self) -> None:
        while True:
            self._again = False
            self._run.fetches += 1
            status, answer = await self._request("GET", f"turns/?since={self._turn}", b"")
            if status != 200:
                raise RuntimeError(f"no turns: {status}")
            self._read(answer)
            if not self._again and self._version >= self._newest:
                break
        self._fetching = None

    def _read(self, html: bytes) -> None:
        self._version = max(self._version, *(int(one) for one in _VERSION.findall(html)))
        self._newest = max(self._newest, self._version)
        self._messages |= {one.decode() for one in _MESSAGE.findall(html)}
        self._turn = max(self._turn, *(int(one) for one in _TURN.findall(html)), 0)

    def _head(self, method: str, path: str, body: bytes) -> bytes:
        form = "Content-Type: application/x-www-form-urlencoded\r\n" if body else ""
        stream = path == "stream/"
        return (
            f"{method} {self._path}{path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Cookie: {self._cookie}\r\nX-CSRFToken: {CSRF}\r\n"
            f"Origin: http://127.0.0.1:{self._port}\r\n{form}"
            f"{'' if stream else 'HX-Request: true' + chr(13) + chr(10)}"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def _request(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        async with self._one_at_a_time:
            if self._requests is None or self._requests[0].at_eof():
                self._requests = await asyncio.open_connection(
                    "127.0.0.1", self._port, limit=1 << 20
                )
            reader, writer = self._requests
            writer.write(self._head(method, path, body))
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            assert length is not None, head
            return int(head[9:12]), await reader.readexactly(int(length[1]))
