"""One trial: the parts, the people, fault after fault, and the table of what happened."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests import postgres
from tests.chaos import faults
from tests.chaos.people import People
from tests.fakes.server import FakeProviders
from tests.system.harness import START_SECONDS, wait_for
from tests.system.parts import Parts

QUIET_WITHIN = 90.0  # seconds from the end of a fault until nothing runs and nothing waits
WORKERS, WEBS, PEOPLE = 2, 2, 3
CALM = "nothing"


@dataclass
class Row:
    """What happened at all faults of a kind."""

    times: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    recovery: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class Trial:
    """Use it as a context manager; `run` the faults by name."""

    def __init__(self, seed: int, *, on_postgres: bool = False, folder: Path | None = None) -> None:
        self.seed, self.on_postgres = seed, on_postgres
        self.chance = random.Random(seed)
        self.rows: dict[str, Row] = {}
        self.ended_alone: Counter[str] = Counter()
        self._folder = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Trial:
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            folder = self._folder or Path(enter(tempfile.TemporaryDirectory(prefix="patchbay-")))
            server = enter(postgres.server()) if self.on_postgres else None
            fakes = enter(FakeProviders())
            self.parts = Parts(
                folder / "parts",
                fakes,
                database_url=server.url if server else "",
                settings="config.settings" if server else "tests.system.full",
            )
            self.parts.env["FULL"] = str(folder / "full")
            enter(self.parts)
            self.world = faults.World(self.parts, server, self.chance)
            others = {f"web-{n}" for n in range(2, WEBS + 1)}
            for name in (*others, *(f"worker-{n}" for n in range(2, WORKERS + 1))):
                self.parts.run(name)
            for name in others:
                wait_for(lambda n=name: self._answers(n), START_SECONDS, f"{name} answers")
            self.people = People(self.parts, self.seed, PEOPLE, ["web", *sorted(others)])
            stack.callback(self.people.end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.close()

    def _answers(self, web: str) -> bool:
        client = self.parts.client()
        client.base_url = self.parts.url_of(web)
        with contextlib.suppress(Exception):
            return client.get("/readyz").status_code == 200
        return False

    def kinds(self) -> dict[str, faults.Fault]:
        return {**faults.COMMON, **(faults.POSTGRES if self.on_postgres else faults.SQLITE)}

    def run(self, names: Iterable[str], tell: Callable[[str], None] = print) -> None:
        for name in names:
            started = time.monotonic()
            row = self.rows.setdefault(name, Row())
            found = self._once(name, row)
            row.times += 1
            row.violations += found
            tell(f"{name}: {time.monotonic() - started:.0f} s, {'; '.join(found) or 'all is well'}")

    def _once(self, name: str, row: Row) -> list[str]:
        self.people.act()
        before = len(self.parts.fakes.requests())
        with contextlib.suppress(AssertionError):  # replies stream, unless the last fault lasts
            wait_for(lambda: len(self.parts.fakes.requests()) > before + 4, 20)
        if name != CALM:
            self.kinds()[name](self.world)
        over = time.monotonic()
        self.ended_alone.update(faults.supervise(self.parts))
        self.people.pause()
        found = []
        try:
            wait_for(lambda: self._is_quiet(name), QUIET_WITHIN, "quiet")
        except AssertionError:
            found += [f"not quiet after {QUIET_WITHIN:.0f} s: {one}" for one in self.people.stuck()]
        row.recovery.append(time.monotonic() - over)
        found += self.people.violations()
        found += integrity(self.parts)
        row.counts += self.people.counts()
        return found

    def _is_quiet(self, name: str) -> bool:
        self.ended_alone.update(faults.supervise(self.parts))
        if name == "provider gone":  # three failures in a row wait for a person: here is one
            self.people.resume()
        return self.people.is_quiet()

    def forget(self) -> None:
        """Drops the provider's records, which were judged: for trials that last."""
        self.parts.fakes.reset()
        self.people.begin_anew()

    @property
    def violations(self) -> list[str]:
        return [f"{name}: {one}" for name, row in self.rows.items() for one in row.violations]

    def table(self) -> str:
        head = ("fault", "times", "accepted", "answered", "failed", "unsure", "recovery s", "bad")
        lines = [head]
        for name, row in self.rows.items():
            counts = [row.counts[what] for what in ("accepted", "answered", "failed", "unsure")]
            seconds = f"{min(row.recovery):.0f}–{max(row.recovery):.0f}"
            lines.append(tuple(map(str, (name, row.times, *counts, seconds, len(row.violations)))))
        widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if n == 0 else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )


def integrity(parts: Parts) -> Iterator[str]:
    """What the database says of itself, and what no fault may leave behind."""
    if parts.database_url:
        with psycopg.connect(parts.database_url) as server:
            tables = server.execute(
                "SELECT format('%I', tablename) FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall()
            for (table,) in tables:
                server.execute(f"SELECT count(t.*::text) FROM {table} t")
    else:
        with contextlib.closing(sqlite3.connect(parts.database, timeout=20)) as database:
            for pragma in ("integrity_check", "foreign_key_check"):
                said = [line for line in database.execute(f"PRAGMA {pragma}") if line != ("ok",)]
                if said:
                    yield f"{pragma}: {said[:3]}"
    for row in parts.rows(
        "SELECT chat_id, count(*) AS n FROM agent_sessions_turn"
        " WHERE state IN ('pending', 'running') GROUP BY chat_id"
    ):
        if row["n"] > 1:
            yield f"{row['n']} active turns in one session"
    for row in parts.rows(
        "SELECT m.text FROM agent_sessions_message m JOIN agent_sessions_turn t ON t.id = m.turn_id"
        " WHERE NOT m.is_complete AND t.state NOT IN ('pending', 'running')"
    ):
        yield f"a reply counts as growing: {row['text'][:40]!r}"
