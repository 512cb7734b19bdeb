"""What a worker process does beside its turns: heartbeats, checkpoints, Stop, and the sweep.

`Crew` holds the turns that this process runs. The heartbeat has a thread of its own, so that a
busy loop or a slow database thread doesn't cost the leases; it also hears of Stop from the
database, so that Stop works with Redis dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid

from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections, connection

from sessions import alive, leases, search, steps, turns
from sessions.agent import Agent, Live
from sessions.bus import Writer
from sessions.reply import text_of
from sessions.toolbox import servers_of
from workspaces import audit_chain, logs
from workspaces.egress import close_clients
from workspaces.runtime import Runtime, get_runtime

logger = logging.getLogger(__name__)

HEARTBEAT = 4.0  # seconds; a lease lasts 15
LISTEN = 0.5  # seconds between two looks for Stop
CHECKPOINT = 0.8  # a worker that is killed loses less than a second of text
SWEEP = 3.0


class Crew:
    """The turns that this process runs, and the threads that keep them. With `sweeps` off it runs
    what it is told to, and looks for nothing else: for commands."""

    def __init__(self, runtime: Runtime, *, sweeps: bool = True) -> None:
        self.runtime = runtime
        self._sweeps = sweeps
        self.live: dict[uuid.UUID, Live] = {}  # by lease token
        self._writer: Writer | None = None
        self._draining = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def writer(self) -> Writer:
        """The process's one writer; made on the loop that uses it."""
        if self._writer is None:
            self._writer = Writer()
        return self._writer

    def start(self) -> None:
        """Starts the threads and the loop's chores, once."""
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._keep, name="patchbay-lease", daemon=True)
            self._thread.start()
        self.runtime.submit(self._chores(), name="chores")

    @property
    def has_room(self) -> bool:
        return not self._draining and len(self.live) < settings.TURNS_PER_WORKER

    def take(self, turn_id: uuid.UUID) -> bool:
        """Claims a turn and starts it on the loop; False when it isn't to be had or no room is
        left (the row waits for a sweep). Blocks for one transaction."""
        if not self.has_room:
            return False
        turn = turns.claim(turn_id)
        if turn is None or turn.lease_token is None:
            return False
        live = Live(turn, turn.lease_token, servers_of(turn))
        self.live[live.token] = live
        self.start()
        with logs.about(session_id=turn.chat_id, turn_id=turn.pk):  # the coroutine inherits it
            self.runtime.submit(self._run(live), name="turn")
        return True

    async def _run(self, live: Live) -> None:
        live.task = asyncio.current_task()
        if live.why and live.task is not None:  # cancelled between the claim and here
            live.task.cancel()
        try:
            await Agent(live, self.runtime, self.writer).run()
        finally:
            self.live.pop(live.token, None)
        if live.turn.number == 1:
            from sessions.titles import make_title

            await make_title(self.runtime, live.turn.chat_id)

    # -- the loop's chores -----------------------------------------------------------------------

    async def _chores(self) -> None:
        """Checkpoints of all growing replies in one transaction a second, the open block drawn,
        the audit sealed, and the sweep."""
        swept = 0.0
        while not self._closing.is_set():
            started = time.monotonic()
            try:
                await self._checkpoint()
                if self._sweeps and not self._draining and started - swept >= SWEEP:
                    swept = started
                    await self.runtime.db(alive.tell, alive.WORKER)
                    await self._sweep()
                    await self.runtime.db(search.take_in)
                if self._sweeps:
                    await self.runtime.db(audit_chain.seal_pending)
            except (DatabaseError, InterfaceError) as error:
                # Nobody's lease could be renewed: whoever holds one gets a moment for it.
                swept = time.monotonic()
                logger.warning("the database doesn't answer (%s)", type(error).__name__)
            except Exception as error:
                # Without its chores a worker would answer nothing that the doorbell missed.
                logger.error("a chore failed: %s", type(error).__name__, exc_info=True)
            await asyncio.sleep(max(0.05, CHECKPOINT - (time.monotonic() - started)))

    async def _checkpoint(self) -> None:
        rows: list[steps.Progress] = []
        for live in list(self.live.values()):
            reply, message_id = live.reply, live.message_id
            if reply is None or message_id is None or not reply.changed:
                continue
            reply.changed = False
            cursor = self.writer.last_id(str(live.turn.chat_id))
            parts = reply.snapshot()
            token, turn_id = live.token, live.turn.pk
            rows.append(steps.Progress(turn_id, token, message_id, text_of(parts), parts, cursor))
            reply.render_open()
        if not rows:
            return
        try:
            lost = await self.runtime.db(steps.save_progress, rows)
        except (DatabaseError, InterfaceError):
            for row in rows:
                if (live := self.live.get(row.token)) and live.reply is not None:
                    live.reply.changed = True
            raise
        for token in lost:
            if token in self.live:
                self.live[token].cancel("lost")

    async def _sweep(self) -> None:
        for turn_id in await self.runtime.db(turns.sweep):
            if not self.has_room:
                return
            await self.runtime.db(self.take, turn_id)

    # -- the heartbeat's thread ------------------------------------------------------------------

    def _keep(self) -> None:
        beaten = time.monotonic()
        while not self._closing.wait(LISTEN):
            tokens = list(self.live)
            if not tokens:
                beaten = time.monotonic()
                continue
            try:
                for token in leases.stops_requested(tokens):
                    self._cancel(token, "stop")
                if time.monotonic() - beaten >= HEARTBEAT:
                    beaten = time.monotonic()
                    for token in leases.without_access(tokens):
                        self._cancel(token, "stop")
                    for token in set(tokens) - leases.renew(tokens):
                        self._cancel(token, "lost")
            except (DatabaseError, InterfaceError) as error:
                beaten = 0.0  # with the first answer, before a sweep takes the lease for lost
                logger.warning("heartbeat: no database (%s)", type(error).__name__)
                with contextlib.suppress(DatabaseError, InterfaceError):
                    connection.close()
            except Exception as error:
                # A heart that stops costs every turn of this process its lease.
                logger.error("heartbeat: %s", type(error).__name__, exc_info=True)
        close_old_connections()
        connection.close()

    def _cancel(self, token: uuid.UUID, why: str) -> None:
        live = self.live.get(token)
        loop = self.runtime.loop
        if live is not None and loop is not None:
            loop.call_soon_threadsafe(live.cancel, why)

    # -- the end ---------------------------------------------------------------------------------

    def drain(self) -> None:
        """Takes no more turns from now on."""
        self._draining = True

    def close(self, grace: float) -> None:
        """Takes no more turns, lets the running ones end within `grace` seconds, then cancels
        them with their text kept. The heartbeat goes on until the last has ended."""
        self.drain()
        deadline = time.monotonic() + grace
        while self.live and time.monotonic() < deadline:
            time.sleep(0.1)
        for token in list(self.live):
            self._cancel(token, "drain")
        deadline = time.monotonic() + 5
        while self.live and time.monotonic() < deadline:
            time.sleep(0.05)
        self._closing.set()
        if self._thread is not None:
            self._thread.join(5)
        if self.runtime.loop is not None:
            with contextlib.suppress(Exception):
                self.runtime.submit(self._let_go()).result(5)

    async def _let_go(self) -> None:
        if self._writer is not None:
            await self._writer.close()
        await close_clients()


_crew: Crew | None = None
_guard = threading.Lock()


def get_crew() -> Crew:
    """The process's crew, made on first use."""
    global _crew
    with _guard:
        if _crew is None:
            _crew = Crew(get_runtime())
        return _crew
