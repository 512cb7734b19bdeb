"""The threads on which the synchronous parts of requests run.

Django would give each request a thread of its own, with a database connection of its own, and an
open event stream would keep both for as long as it lasts. These threads are shared and kept; on
SQLite so are their connections, which cost more to open than most pages cost to make.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from django.db import connections

# Most of them wait for a lock or an answer: they are many so that one that hangs holds up nobody.
THREADS = 64


class RequestThreads(ThreadPoolExecutor):
    """One call after another on any of the threads: nothing of a request stays behind on one."""

    def __init__(self) -> None:
        super().__init__(THREADS, "patchbay-request")

    def submit[T](self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return super().submit(_with_connections, function, *args, **kwargs)


def _with_connections[T](function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    try:
        return function(*args, **kwargs)
    finally:
        for connection in connections.all(initialized_only=True):
            if connection.in_atomic_block:
                continue
            if connection.settings_dict["CONN_MAX_AGE"] is None:
                connection.close_if_unusable_or_obsolete()
            else:
                connection.close()  # back to the pool, which has fewer than there are threads
