"""JSON-RPC over the standard streams of a program: one message a line, as Codex has it.

We ask (`request`), it tells (`notifications`), and it may ask back: what no handler is registered
for is refused. The program gets the environment it is given and nothing else, lives in a session of
its own, and doesn't outlive us: its input ends with us, and Linux kills it when the thread that
started it ends.

    RPCError
    ├── Refused      the program answered with an error
    ├── Closed       the program has ended, or what it writes can't be read
    ├── Late         no answer in time
    └── CannotStart  there is no such program, or it can't be run
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

from connections.providers.wire.lenient_json import dumps, loads

MAX_LINE = 32 * 1024 * 1024  # bytes of one message
MAX_WAITING = 1_000  # notifications that nobody has taken; the program waits then
MAX_WORDS = 2_000  # bytes kept of its error stream, the last ones
REQUEST_SECONDS = 30.0
EXIT_SECONDS = 1.0  # for an end of its own accord, once its input has ended
_REFUSED = -32601  # "method not found"

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


class RPCError(Exception):
    """The text is for logs and admins; it may hold words of the program."""


class Refused(RPCError):
    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(f"{method}: {message}")
        self.method, self.code, self.message = method, code, message


class Closed(RPCError):
    """`exit_code` is None while the program hasn't ended."""

    def __init__(self, text: str, exit_code: int | None = None) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Late(RPCError):
    pass


class CannotStart(RPCError):
    pass


@dataclass(frozen=True, slots=True)
class Notification:
    method: str
    params: Mapping[str, Any]


class Peer:
    """A running program. `start` it, and `close` it whatever happens: `async with` does both."""

    def __init__(
        self, process: asyncio.subprocess.Process, handlers: Mapping[str, Handler]
    ) -> None:
        self._process = process
        self._handlers = handlers
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._heard: asyncio.Queue[Notification | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._fault = ""  # why nothing more can be read
        self._over = False
        self._closed = False
        self._answers: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Lock()
        self._words = b""
        self._reader = asyncio.create_task(self._read(), name=f"json-rpc {process.pid}")
        self._errors = asyncio.create_task(self._listen(), name=f"json-rpc errors {process.pid}")

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        handlers: Mapping[str, Handler] | None = None,
    ) -> Self:
        """Raises `CannotStart`."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                preexec_fn=_die_with_us(),
            )
        except (OSError, ValueError) as error:
            raise CannotStart(f"{type(error).__name__}") from None
        return cls(process, handlers or {})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def words(self) -> str:
        """The last of what it wrote to its error stream: its own words, not ours."""
        return self._words.decode("utf-8", "replace")

    # -- what we say -------------------------------------------------------------------------------

    async def request(
        self, method: str, params: Mapping[str, Any], *, seconds: float = REQUEST_SECONDS
    ) -> Any:
        """The result. Raises `Refused`, `Closed` or `Late`."""
        if self._over:
            raise self._end()
        self._number += 1
        number = self._number
        answer = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            async with asyncio.timeout(seconds):
                await self._write({"id": number, "method": method, "params": params})
                return await answer
        except TimeoutError:
            raise Late(f"{method}: no answer in {seconds:g} s") from None
        finally:
            del self._asked[number]

    async def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Raises `Closed`."""
        await self._write({"method": method, **({} if params is None else {"params": params})})

    async def notifications(self) -> AsyncIterator[Notification]:
        """What the program tells, in order, for one reader. Raises `Closed` when it ends."""
        while True:
            heard = await self._heard.get()
            self._room.set()
            if heard is None:
                raise self._end()
            yield heard

    async def _write(self, message: Mapping[str, Any]) -> None:
        line = dumps(message) + b"\n"
        stdin = self._process.stdin
        assert stdin is not None
        try:
            async with self._writing:
                stdin.write(line)
                await stdin.drain()
        except (OSError, RuntimeError):  # RuntimeError: uvloop's, for a pipe that is closed
            # A pipe closes a moment before its process is known to have ended.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._process.wait()
            raise self._end() from None

    # -- what it says ------------------------------------------------------------------------------

    async def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            async with aclosing(_lines(stdout)) as lines:
                async for line in lines:
                    await self._take(line)
        except ValueError:  # a line past the limit, or one that isn't JSON
            self._fault = "it wrote what can't be read"
            self._kill()
        except OSError:
            pass
        finally:
            self._over = True
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(self._end())
            self._heard.put_nowait(None)

    async def _listen(self) -> None:
        """Drains the error stream, so that the program never waits for a reader."""
        stderr = self._process.stderr
        assert stderr is not None
        with contextlib.suppress(OSError, RuntimeError):
            while chunk := await stderr.read(1 << 16):
                self._words = (self._words + chunk)[-MAX_WORDS:]

    async def _take(self, line: bytes) -> None:
        message = loads(line)
        if not isinstance(message, dict):
            raise ValueError("not an object")
        method, number, params = message.get("method"), message.get("id"), message.get("params")
        if isinstance(method, str):
            params = params if isinstance(params, dict) else {}
            if number is None:
                while self._heard.qsize() >= MAX_WAITING:
                    self._room.clear()
                    await self._room.wait()
                self._heard.put_nowait(Notification(method, params))
            else:
                task = asyncio.create_task(self._answer(number, method, params))
                self._answers.add(task)
                task.add_done_callback(self._answers.discard)
            return
        answer = self._asked.get(number) if isinstance(number, int) else None
        if answer is None or answer.done():
            return  # it was given up meanwhile
        error = message.get("error")
        if isinstance(error, dict):
            code = error.get("code")
            answer.set_exception(
                Refused(
                    f"request {number}",
                    code if isinstance(code, int) else 0,
                    str(error.get("message", "")),
                )
            )
        else:
            answer.set_result(message.get("result"))

    async def _answer(self, number: Any, method: str, params: dict[str, Any]) -> None:
        handler = self._handlers.get(method)
        reply: dict[str, Any] = {"id": number}
        if handler is None:
            reply["error"] = {"code": _REFUSED, "message": "This client does not do that."}
        else:
            try:
                reply["result"] = await handler(params)
            except Exception as error:
                # By its type alone: what a handler holds may be a secret.
                reply["error"] = {"code": -32000, "message": type(error).__name__}
        with contextlib.suppress(RPCError):
            await self._write(reply)

    # -- the end -----------------------------------------------------------------------------------

    def _end(self) -> Closed:
        code = self._process.returncode
        how = self._fault or ("it ended" if code is None else f"it ended with {_how(code)}")
        return Closed(how, code)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Ends its input, and kills it when it doesn't end by itself soon. Safe to call twice, and
        cancelled in the middle it has killed the program."""
        if self._closed:
            return
        self._closed = True
        process = self._process
        try:
            with contextlib.suppress(OSError, RuntimeError):
                assert process.stdin is not None
                process.stdin.close()
            # Nobody reads any more: a program that waits for a reader could not end.
            self._reader.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_drained(process), EXIT_SECONDS)
        finally:
            for task in (*self._answers, self._errors):
                task.cancel()
            if process.returncode is None:
                self._kill()
        await process.wait()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Not `readline`: it would let two of the longest lines wait unread. Raises ValueError."""
    pieces: list[bytes] = []
    size = 0
    while chunk := await stream.read(1 << 16):
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join((*pieces, end))
            pieces, size = [], 0
        pieces.append(rest)
        size += len(rest)
        if size > MAX_LINE:
            raise ValueError("the line is too long")
    if size:
        yield b"".join(pieces)


async def _drained(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    with contextlib.suppress(OSError, RuntimeError):
        while await process.stdout.read(1 << 16):
            pass
    await process.wait()


def _die_with_us() -> Callable[[], None] | None:
    """For the time between fork and exec: Linux kills the program when the thread that started it
    ends. Elsewhere the end of its input has to do."""
    if not sys.platform.startswith("linux"):
        return None
    # PyDLL keeps the interpreter's lock: after a fork nobody else could give it back.
    prctl, pr_set_pdeathsig, parent = ctypes.PyDLL(None).prctl, 1, os.getpid()

    def die_with_us() -> None:
        prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return die_with_us


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
