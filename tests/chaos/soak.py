"""`make soak HOURS=8`: ordinary load for hours, a fault now and then, and what grows meanwhile.

Each minute people chat, one session measures what Patchbay adds to the provider's own time, all is
checked as by `make chaos`, and the processes are looked at: memory, descriptors, the write-ahead
log, the keys of Valkey. Every fifth minute something breaks. At the end the slopes (a line fitted
to the samples) and the quantiles of the overhead. A process that was killed begins anew; those that
weren't are what a slope tells about. Exit code 1 when anything was lost or done twice.

    python -m tests.chaos.soak [--hours 8] [--seed N] [--postgres]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

MINUTE = 60.0
FAULT_EVERY = 5  # minutes
MODEL = "bench-30tps-30"
TURN_WITHIN = 20.0  # seconds


@dataclass
class Overhead:
    """Milliseconds that Patchbay adds: to the first token, and to each on its way."""

    first: list[float] = field(default_factory=list)
    relay: list[float] = field(default_factory=list)
    failed: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--hours", type=float, default=8)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL instead of SQLite")
    chosen = parser.parse_args()

    import django

    django.setup()
    from tests.chaos.trial import CALM, Trial
    from tests.system.harness import collect_static

    collect_static()
    print(f"seed {chosen.seed}", flush=True)
    with Trial(chosen.seed, on_postgres=chosen.postgres) as trial:
        kinds = list(trial.kinds())
        measured, samples = Measured(trial), [sample(trial)]
        until = samples[0]["minute"] + chosen.hours * 60
        while samples[-1]["minute"] < until:
            began = time.monotonic()
            number = len(samples)
            if number % FAULT_EVERY:
                trial.people.act()
                while time.monotonic() < began + MINUTE * 0.7:
                    measured.turn(f"turn {number} {time.monotonic_ns()}")
                trial.run([CALM], tell=lambda line: None)
            else:
                trial.run([trial.chance.choice(kinds)], tell=lambda line: print(line, flush=True))
            trial.forget()
            samples.append(sample(trial))
            print(line_of(samples[-1]), flush=True)
        report(samples, measured.found, trial)
        return 1 if trial.violations else 0


def sample(trial) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """What there is now: MB, descriptors, MB of the log, keys."""
    from tests.bench.__main__ import memory_of

    found = {"minute": time.monotonic() / 60}
    pids = trial.parts.pids()
    for kind in ("web", "worker", "beat", "valkey"):
        mine = [pid for name, pid in pids.items() if name.partition("-")[0] == kind]
        found[f"{kind} MB"] = memory_of(mine)
        found[f"{kind} descriptors"] = sum(
            len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in mine
        )
    wal = trial.parts.database.with_name(trial.parts.database.name + "-wal")
    found["WAL MB"] = wal.stat().st_size / 1e6 if wal.exists() else 0.0
    found["Redis keys"] = float(trial.parts.redis.dbsize())
    return found


def line_of(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in found.items() if name != "minute")


class Measured:
    """Sessions of one turn, whose provider stamps each token with the time at which it leaves."""

    def __init__(self, trial) -> None:  # type: ignore[no-untyped-def]
        self.parts = trial.parts
        self.found = Overhead()

    def turn(self, text: str) -> None:
        from tests.bench.browser import CSRF, Page, Run
        from tests.system.parts import Chat

        chat = Chat(self.parts, MODEL)
        session = chat.client.cookies["patchbay_session"]
        page = Page(self.parts.port, chat.url, f"patchbay_session={session}; patchbay_csrf={CSRF}")

        async def one() -> Run:
            async with asyncio.timeout(TURN_WITHIN):
                await page.open()
                try:
                    return await page.ask(text)
                finally:
                    page.close()

        try:
            run = asyncio.run(one())
            (asked,) = self.parts.requests_with(text)
            own = asked["first_token_ns"] - asked["received_ns"]
            assert run.first
        except (TimeoutError, ConnectionError, RuntimeError, AssertionError, ValueError):
            self.found.failed += 1
            return
        self.found.first.append((run.first - run.posted - own) / 1e6)
        self.found.relay += [delay / 1e6 for delay in run.delays]


def slope(samples: Sequence[dict[str, float]], name: str) -> float:
    """Of a line fitted to the figure, an hour."""
    rows = [(one["minute"] / 60, one[name]) for one in samples]
    fitted = statistics.linear_regression([x for x, _ in rows], [y for _, y in rows])
    return fitted.slope


def quantiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "–"
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return " / ".join(f"{cuts[n - 1]:.1f}" for n in (50, 95, 99))


def report(samples: list[dict[str, float]], found: Overhead, trial) -> None:  # type: ignore[no-untyped-def]
    minutes = samples[-1]["minute"] - samples[0]["minute"]
    print(f"\n{minutes:.0f} minutes, a sample each; what grew by the hour, the first 3 left out")
    kept = samples[3:] if len(samples) > 5 else samples
    for name in kept[0]:
        if name != "minute":
            values = [one[name] for one in kept]
            print(
                f"  {name:<20} first {values[0]:7.1f}  last {values[-1]:7.1f}"
                f"  most {max(values):7.1f}  slope {slope(kept, name):+8.1f}"
            )
    print(f"\noverhead over the provider, ms, p50 / p95 / p99 ({len(found.first)} turns)")
    print(f"  first token  {quantiles(found.first)}")
    print(f"  a token      {quantiles(found.relay)}")
    print(f"  measured turns that failed: {found.failed}\n\n{trial.table()}\n")
    with contextlib.suppress(BrokenPipeError):
        for line in trial.violations:
            print(f"VIOLATION {line}")


if __name__ == "__main__":
    sys.exit(main())
