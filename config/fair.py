"""One person's requests don't crowd out another's.

The threads and the interpreter of a web process are shared. Of one sign-in a single request is
worked on at a time; the others wait for their turn, in their order. One that takes long (a name
server that doesn't answer) gives up its place after a moment and goes on beside the next, so that
it doesn't hold up its person's other pages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

LONGEST = 0.25  # seconds for which a request keeps its place


class FairShare:
    """`turn` is held around the work on a request, not while its body comes or its answer goes."""

    def __init__(self) -> None:
        # Of each sign-in that is worked for: who waits.
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, sign_in: str) -> AsyncIterator[None]:
        """Waits for the turn of a sign-in, its session cookie; "" passes: who isn't signed in can
        do little."""
        if not sign_in:
            yield
            return
        await self._wait(sign_in)
        has_place = True

        def leave() -> None:
            nonlocal has_place
            if has_place:
                has_place = False
                self._next(sign_in)

        late = asyncio.get_running_loop().call_later(LONGEST, leave)
        try:
            yield
        finally:
            late.cancel()
            leave()

    async def _wait(self, sign_in: str) -> None:
        line = self._lines.get(sign_in)
        if line is None:
            self._lines[sign_in] = deque()
            return
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the place was given while the request went away
                self._next(sign_in)
            raise

    def _next(self, sign_in: str) -> None:
        line = self._lines[sign_in]
        while line:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._lines[sign_in]
