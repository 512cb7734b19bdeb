"""TCP and TLS on the running loop, in the shape that httpcore takes.

httpcore's own runs on anyio, which opens a cancel scope for every read: for a stream of tokens that
is a third of what reading them costs. Here a connection has one timer, set again only when it goes
off early, and a read that finds bytes waiting returns at once. Checks no address: see
`workspaces.egress`.
"""

# The signatures of the network streams are httpcore's:
# ruff: noqa: ASYNC109

from __future__ import annotations

import asyncio
import ssl
import weakref
from collections.abc import Callable
from typing import Any

import httpcore

# What is read ahead before the sender is told to wait.
READ_AHEAD = 256 * 1024
FEW = 4  # calm streams, up to which each is read as its bytes come
BEAT = 0.025  # seconds between two beats, and how much longer with each calm stream
BEAT_A_STREAM = 0.0008
LONGEST_BEAT = 0.07


_HUNG_UP = "The other side hung up during the handshake."


async def connect(
    host: str, port: int, *, timeout: float, socket_options: Any = None
) -> httpcore.AsyncNetworkStream:
    """A connection to an address. Raises `httpcore.ConnectTimeout` or `ConnectError`."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout):
            transport, wire = await loop.create_connection(_Wire, host, port)
    except TimeoutError as error:
        raise httpcore.ConnectTimeout(f"{host} did not answer in time") from error
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    found = transport.get_extra_info("socket")
    for option in socket_options or ():
        found.setsockopt(*option)
    return Stream(transport, wire)


class _Beat:
    """The moments at which the readers of calm streams are woken, all of them together: each time
    costs the whole way from here to what reads, however little came."""

    def __init__(self) -> None:
        self.calm = 0  # streams
        self.after: Callable[[], object] = lambda: None  # what follows, when all have read
        self._due: list[_Wire] = []

    def wake_later(self, wire: _Wire) -> None:
        if not self._due:
            seconds = min(BEAT + BEAT_A_STREAM * self.calm, LONGEST_BEAT)
            asyncio.get_running_loop().call_later(seconds, self._strike)
        self._due.append(wire)

    def _strike(self) -> None:
        due, self._due = self._due, []
        for wire in due:
            wire.strike()
        asyncio.get_running_loop().call_soon(self.after)


_beats: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Beat] = weakref.WeakKeyDictionary()


def beat() -> _Beat:
    """The running loop's."""
    return _beats.setdefault(asyncio.get_running_loop(), _Beat())


class _Wire(asyncio.Protocol):
    """Bytes that came, and who waits for them."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self._beat: _Beat | None = None  # of a calm stream
        self._is_due = False
        self.over = False  # nothing more comes
        self.failure: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()

    # -- what the loop calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > READ_AHEAD and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()
        if self._beat is None or self._beat.calm <= FEW:
            self.wake()
        elif not self._is_due:
            self._is_due = True
            self._beat.wake_later(self)

    def eof_received(self) -> None:
        self.over = True
        self.wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.over = True
        self.failure = self.failure or error
        self.be_calm(False)
        self._can_write.set()
        self.wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    # -- what the stream calls ---------------------------------------------------------------------

    def take(self, most: int) -> bytes:
        data = bytes(self.buffer[:most])
        del self.buffer[:most]
        if self._paused and len(self.buffer) <= READ_AHEAD // 2 and self._transport:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def wait(self, timeout: float | None) -> None:
        """Until bytes are there, or the end. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        if timeout is not None:
            self._deadline = loop.time() + timeout
            if self._timer is None:
                self._timer = loop.call_later(timeout, self._late)
            elif self._timer.when() > self._deadline:
                self._timer.cancel()
                self._timer = loop.call_later(timeout, self._late)
        else:
            self._deadline = float("inf")
        try:
            await self._waiter
        finally:
            self._waiter = None

    def be_calm(self, calm: bool) -> None:
        """Whether what comes may wait for the next beat."""
        if calm == (self._beat is not None):
            return
        if calm and not self.over:
            self._beat = beat()
            self._beat.calm += 1
        elif self._beat is not None:
            self._beat.calm -= 1
            self._beat = None

    async def drained(self) -> None:
        await self._can_write.wait()

    def strike(self) -> None:
        self._is_due = False
        if self.buffer:  # else it was read in passing, and who waits now waits for what follows
            self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _late(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        loop = self._waiter.get_loop()
        if self.buffer:
            self.wake()
        elif loop.time() >= self._deadline - 0.001:
            self._waiter.set_exception(TimeoutError())
        elif self._deadline != float("inf"):
            self._timer = loop.call_at(self._deadline, self._late)


class Stream(httpcore.AsyncNetworkStream):
    """One connection, plain or with TLS."""

    def __init__(self, transport: asyncio.Transport, wire: _Wire) -> None:
        self._transport, self._wire = transport, wire

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        wire = self._wire
        if not wire.buffer and not wire.over:
            try:
                await wire.wait(timeout)
            except TimeoutError:
                raise httpcore.ReadTimeout("Nothing came in time.") from None
        if wire.buffer:
            return wire.take(max_bytes)
        if wire.failure is not None:
            raise httpcore.ReadError(str(wire.failure)) from wire.failure
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if self._transport.is_closing():
            raise httpcore.WriteError("The connection is closed.")
        self._wire.be_calm(False)
        self._transport.write(buffer)
        try:
            async with asyncio.timeout(timeout):
                await self._wire.drained()
        except TimeoutError:
            raise httpcore.WriteTimeout("The other side doesn't take the request.") from None
        if self._wire.failure is not None:
            raise httpcore.WriteError(str(self._wire.failure)) from self._wire.failure

    async def aclose(self) -> None:
        self._transport.close()
        # What wasn't sent by now never has to be; waiting for it could take as long as one likes.
        await asyncio.sleep(0)
        self._transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            transport = await self._handshake(ssl_context, server_hostname, timeout)
        except TimeoutError as error:
            self._transport.abort()
            raise httpcore.ConnectTimeout("No handshake in time.") from error
        except ssl.SSLError as error:
            self._transport.abort()
            raise httpcore.ConnectError(str(error)) from error
        self._wire.connection_made(transport)
        return Stream(transport, self._wire)

    async def _handshake(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> asyncio.Transport:
        """Whatever ends it is a failure of TLS, `ssl.SSLError`: the connection itself was made."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                transport = await loop.start_tls(
                    self._transport, self._wire, ssl_context, server_hostname=server_hostname
                )
        except (TimeoutError, ssl.SSLError):
            raise
        except OSError as error:
            raise ssl.SSLError(str(error) or _HUNG_UP) from error
        if transport is None:
            raise ssl.SSLError(_HUNG_UP)
        return transport

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "be_calm":  # through httpx nothing but such names reaches a stream
                return self._wire.be_calm
            case "ssl_object" | "socket":
                return self._transport.get_extra_info(info)
            case "client_addr":
                return self._transport.get_extra_info("sockname")
            case "server_addr":
                return self._transport.get_extra_info("peername")
            case "is_readable":  # on an idle connection: it is of no more use
                return self._wire.over or bool(self._wire.buffer)
        return None
