"""What breaks: each fault does its harm, lets it last, and mends what a supervisor would mend."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.postgres import Server
from tests.system.parts import Parts


@dataclass
class World:
    """The running parts; `postgres` only where that is the database."""

    parts: Parts
    postgres: Server | None
    chance: random.Random

    def some(self, kind: str) -> str:
        return self.chance.choice([name for name in self.parts.running if name.startswith(kind)])

    def last(self, least: float, most: float) -> None:
        """How long harm lasts is what a fault is made of: no condition ends it."""
        time.sleep(self.chance.uniform(least, most))


Fault = Callable[[World], None]


def _killed(kind: str, number: int = signal.SIGKILL) -> Fault:
    def fault(world: World) -> None:
        name = world.some(kind)
        world.parts.end(name, number)
        world.last(0, 3)
        world.parts.run(name)

    return fault


def _frozen(kind: str, least: float, most: float) -> Fault:
    def fault(world: World) -> None:
        name = world.some(kind)
        world.parts.freeze(name)
        world.last(least, most)
        world.parts.thaw(name)

    return fault


def _all_workers_killed(world: World) -> None:
    names = world.parts.workers()
    for name in names:
        world.parts.end(name)
    world.last(0, 5)
    for name in names:
        world.parts.run(name)


def _valkey(*, empty: bool) -> Fault:
    def fault(world: World) -> None:
        world.parts.end("valkey")
        world.last(0, 5)
        world.parts.start_valkey(empty=empty)

    return fault


def _provider_gone(world: World) -> None:
    world.parts.fakes.go_away()
    world.last(2, 20)
    world.parts.fakes.come_back()


def stop_postgres(world: World, seconds: float = 30) -> None:
    assert world.postgres is not None
    world.postgres.stop()
    time.sleep(seconds)
    world.postgres.start()


def _database_full(world: World) -> None:
    with database_full(world.parts):
        world.last(5, 15)


def _disk_full(world: World) -> None:
    with disk_full(world.parts):
        world.last(5, 15)


@contextlib.contextmanager
def database_full(parts: Parts) -> Iterator[None]:
    """SQLite gets no further page (the parts run with the settings of `tests.system.full`)."""
    flag = Path(parts.env["FULL"])
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


@contextlib.contextmanager
def disk_full(parts: Parts) -> Iterator[None]:
    """No file of web, workers and beat can be written any further: logs, images and schedule too.
    Not Valkey's: one that can't write its file ends, which is a fault of its own."""
    limits = {}
    for name, pid in parts.pids().items():
        if name != "valkey":
            with contextlib.suppress(ProcessLookupError):
                limits[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[pid][1]))
    try:
        yield
    finally:
        for pid, limit in limits.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)


COMMON: dict[str, Fault] = {
    "worker killed": _killed("worker"),
    "all workers killed": _all_workers_killed,
    "worker told to end": _killed("worker", signal.SIGTERM),
    "worker frozen": _frozen("worker", 2, 8),
    "worker frozen past its lease": _frozen("worker", 17, 20),
    "beat killed": _killed("beat"),
    "beat frozen": _frozen("beat", 5, 15),
    "web killed": _killed("web"),
    "web told to end": _killed("web", signal.SIGTERM),
    "web frozen": _frozen("web", 2, 12),
    "Valkey killed, restarted with its file": _valkey(empty=False),
    "Valkey killed, restarted empty": _valkey(empty=True),
    "Valkey frozen": _frozen("valkey", 2, 15),
    "provider gone": _provider_gone,
}
SQLITE: dict[str, Fault] = {"database full": _database_full, "disk full": _disk_full}
POSTGRES: dict[str, Fault] = {"PostgreSQL stopped": stop_postgres}


def supervise(parts: Parts) -> list[str]:
    """Starts what ended by itself, as a supervisor does; its names."""
    ended = [name for name, one in parts.running.items() if one.poll() is not None]
    for name in ended:
        del parts.running[name]
        if name == "valkey":
            parts.start_valkey(empty=False)
        else:
            parts.run(name)
    return ended
