"""One person's requests don't crowd out another's.

The threads and the interpreter of a web process are shared. Of one sign-in so many requests are
worked on at a time; the others wait for their turn, for a moment at most: one that takes long (a
name server that doesn't answer) mustn't hold up a person's other pages. A request counts until its
answer begins, so an event stream counts while it is let in.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from asgiref.typing import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)
from django.http import parse_cookie

AT_ONCE = 2
LONGEST_WAIT = 2.0  # seconds


@dataclass(slots=True)
class _Line:
    """The requests of one sign-in: how many are worked on, and who waits."""

    busy: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class FairShare:
    """Requests without a session cookie pass: who isn't signed in can do little."""

    def __init__(self, app: ASGI3Application, *, cookie: str) -> None:
        self.app = app
        self._cookie = cookie
        self._lines: dict[str, _Line] = {}

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        key = session_of(scope, self._cookie) if scope["type"] == "http" else ""
        if not key:
            await self.app(scope, receive, send)
            return
        line = self._lines.setdefault(key, _Line())
        line.busy += 1
        let_go = False

        def leave() -> None:
            nonlocal let_go
            if not let_go:
                let_go = True
                self._leave(key, line)

        async def noted(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start":
                leave()
            await send(message)

        try:
            if line.busy > AT_ONCE:
                await _wait(line)
            await self.app(scope, receive, noted)
        finally:
            leave()

    def _leave(self, key: str, line: _Line) -> None:
        line.busy -= 1
        while line.waiting:
            turn = line.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        if not line.busy:
            self._lines.pop(key, None)


async def _wait(line: _Line) -> None:
    turn = asyncio.get_running_loop().create_future()
    line.waiting.append(turn)
    try:
        await asyncio.wait([turn], timeout=LONGEST_WAIT)
    finally:
        turn.cancel()  # who waited long enough, or went away, has no place in the line any more


def session_of(scope: Scope, name: str) -> str:
    """The session cookie's value as Django will read it, "" without one."""
    cookies = [value.decode("latin-1") for header, value in scope["headers"] if header == b"cookie"]
    return parse_cookie("; ".join(cookies)).get(name, "")
