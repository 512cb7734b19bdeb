"""A process's event loop for everything that talks to the outside: turns, probes, titles.

Celery's threads hand their coroutines over and return; one loop then carries hundreds of streams
for the cost that one thread each would multiply. The loop never touches the ORM: `db()` runs a
function on a small pool of database threads (asgiref's `sync_to_async` would run them all on one).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import gc
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from django.db import connections

from workspaces import egress

logger = logging.getLogger(__name__)

DB_THREADS = 4
# Seconds after which a thread that computes lets another one go on. Each database call of a request
# or a turn lets go of the interpreter, and has to wait that long to get it back from a busy loop.
TURN = 0.0005


def settle_in() -> None:
    """For a process that has loaded what it needs: its threads take shorter turns, and what it
    loaded is never looked at again for garbage (a tenth of a second each time)."""
    sys.setswitchinterval(TURN)
    gc.collect()
    gc.freeze()


class Runtime:
    """One event loop on a thread of its own, and the database threads beside it."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(DB_THREADS, "patchbay-db")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._local = threading.local()
        self.draining = False

    def start(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            ready = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(ready,), name="patchbay-loop", daemon=True
            )
            self._thread.start()
            ready.wait()

    def _run(self, ready: threading.Event) -> None:
        try:
            import uvloop

            self.loop = uvloop.new_event_loop()
        except ImportError:
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(ready.set)
        self.loop.run_forever()

    def submit(
        self, coroutine: Coroutine[Any, Any, Any], *, name: str = ""
    ) -> concurrent.futures.Future[Any]:
        """Starts a coroutine on the loop, from any thread. An exception is logged by its type and
        place, never with its values."""
        self.start()
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(self._tracked(coroutine, name), self.loop)

    async def _tracked(self, coroutine: Coroutine[Any, Any, Any], name: str) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await coroutine
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.error("%s failed: %s", name or "task", type(error).__name__, exc_info=True)
            raise
        finally:
            self._tasks.discard(task)

    async def db[T](self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a function that uses the ORM on a database thread; awaits its result."""
        loop = asyncio.get_running_loop()
        call = functools.partial(self._with_connection, function, *args, **kwargs)
        # What a line of the log is about goes along.
        return await loop.run_in_executor(self._pool, contextvars.copy_context().run, call)

    def _with_connection[T](self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        # The thread keeps its connection; one that broke (a database restart) is dropped first.
        for connection in connections.all(initialized_only=True):
            if connection.errors_occurred and not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()
        return function(*args, **kwargs)

    @property
    def running(self) -> int:
        """How many coroutines are under way."""
        return len(self._tasks)

    def stop(self, grace: float) -> None:
        """Lets what runs end within `grace` seconds, cancels the rest (each task then writes how
        far it came), and ends the loop. Safe to call twice."""
        with self._lock:
            thread, loop, self._thread = self._thread, self.loop, None
        if thread is None or loop is None:
            return
        self.draining = True
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._drain(grace), loop).result(grace + 10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        self._close_databases()
        self._pool.shutdown(wait=True)
        if not loop.is_running():
            loop.close()

    def _close_databases(self) -> None:
        # A connection is closed by the thread it belongs to: each takes one of these and waits
        # for the others, so that none takes two.
        everyone = threading.Barrier(DB_THREADS)

        def close() -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                everyone.wait(5)
            connections.close_all()

        for _ in range(DB_THREADS):
            self._pool.submit(close)

    async def _drain(self, grace: float) -> None:
        tasks = set(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=8)
        await egress.close_clients()


_runtime: Runtime | None = None
_guard = threading.Lock()


def get_runtime() -> Runtime:
    """The process's runtime, started on first use (after a fork a child makes its own)."""
    global _runtime
    with _guard:
        if _runtime is None or (_runtime._thread is None and _runtime.draining):
            _runtime = Runtime()
    _runtime.start()
    return _runtime
