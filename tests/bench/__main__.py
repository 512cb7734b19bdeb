"""`make bench`: what Patchbay adds to a provider's own time, and what a relayed token costs.

A fake provider stamps every token with the time it leaves. In the same run a direct client, a
minimal relay (`relay.py`) and Patchbay pass the same replies on: Patchbay as real processes with
its limits on, each session in a page as a browser has it open (`browser.py`). Absolute figures
belong to the machine; the ratios are what to compare.

    python -m tests.bench [--levels alone,10,steady,burst] [--hold MINUTES]

    alone    one session, one message after another
    steady   10 new messages a second up to 100 sessions at once
    burst    100 new messages a second up to 300 sessions at once
    N        N sessions, 10 new messages a second

With `--hold` every page asks again as its reply ends, and the memory is told each minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import orjson

from tests.bench.browser import CSRF, Page, Run
from tests.fakes.app import GOOD_KEY
from tests.system.harness import ROOT, Patchbay, _processes, collect_static

PEOPLE_SHARE = 20  # sessions a person: the product bounds what one person has at once
ENV = {
    "PATCHBAY_TITLES": "off",
    "PATCHBAY_SENDS_PER_MINUTE": "60",
    "PATCHBAY_TURNS_PER_PERSON": "25",
    "PATCHBAY_STREAMS_PER_PERSON": "40",
}
SPEED = 30  # tokens a second of a reply
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Level:
    name: str
    sessions: int
    rate: float  # new messages a second
    tokens: int  # of a reply
    messages: int = 1  # a session, one after another

    @classmethod
    def of(cls, name: str) -> Level:
        match name:
            case "alone":
                return cls(name, 1, 10, 60, messages=8)
            case "steady":
                return cls(name, 100, 10, 390)
            case "burst":
                return cls(name, 300, 100, 300)
        # All sessions overlap: the first lasts until the last began.
        return cls(name, int(name), 10, max(300, 3 * int(name) + 90))


def quantiles(values: Iterable[float]) -> str:
    rows = sorted(values)
    if not rows:
        return "–"
    p99 = rows[min(len(rows) - 1, int(len(rows) * 0.99))]
    return f"{statistics.median(rows):7.1f} / {p99:7.1f}"


def cpu_of(pids: dict[str, int]) -> dict[str, float]:
    """Seconds of CPU of each process with its descendants."""
    children: dict[int, list[int]] = {}
    for pid, parent, _ in _processes():
        children.setdefault(parent, []).append(pid)

    def total(pid: int) -> float:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        own = (int(fields[11]) + int(fields[12])) / TICK
        return own + sum(total(child) for child in children.get(pid, ()))

    return {name: total(pid) for name, pid in pids.items()}


def memory_of(pids: Iterable[int]) -> float:
    """Proportional memory of the processes together, in MB."""
    kilobytes = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        kilobytes += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
    return kilobytes / 1024


# -- without Patchbay ------------------------------------------------------------------------------


async def straight(url: str, level: Level) -> list[Run]:
    """The same replies by a plain client, from the provider or from a relay."""
    model = model_of(level)
    async with httpx.AsyncClient(
        trust_env=False, timeout=60, limits=httpx.Limits(max_connections=None)
    ) as client:

        async def one(number: int) -> list[Run]:
            await asyncio.sleep(number / level.rate)
            return [await ask(client, url, model) for _ in range(level.messages)]

        runs = await asyncio.gather(*(one(number) for number in range(level.sessions)))
    return [run for session in runs for run in session]


async def ask(client: httpx.AsyncClient, url: str, model: str) -> Run:
    run = Run(posted=time.monotonic_ns())
    messages = [{"role": "user", "content": "go"}]
    body = {"model": model, "stream": True, "max_tokens": 4096, "messages": messages}
    async with client.stream(
        "POST",
        f"{url}/openai/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {GOOD_KEY}"},
    ) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in orjson.loads(line[6:])["choices"]:
                    if text := choice["delta"].get("content"):
                        run.take(text)
    return run


def own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def model_of(level: Level) -> str:
    return f"bench-{SPEED}tps-{level.tokens}"


@contextmanager
def running(*command: str) -> Iterator[tuple[str, int]]:
    """A server of ours: its address and process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait()


# -- through Patchbay ------------------------------------------------------------------------------


async def through(
    patchbay: Patchbay, seeded: list[tuple[str, str]], level: Level, *, until: float = 0.0
) -> list[Run]:
    """The replies as pages get them; with `until` (monotonic) pages ask again until then."""

    async def one(number: int) -> list[Run]:
        path, key = seeded[number]
        cookie = f"patchbay_session={key}; patchbay_csrf={CSRF}"
        page = Page(patchbay.port, path, cookie)
        await asyncio.sleep(number / level.rate)
        await page.open()
        await asyncio.sleep(0.5)
        runs = []
        while len(runs) < level.messages or time.monotonic() < until:
            runs.append(await page.ask())
            await asyncio.sleep(0.3)
        page.close()
        return runs

    runs = await asyncio.gather(*(one(number) for number in range(level.sessions)))
    return [run for session in runs for run in session]


SEED = """
import json
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from sessions.models import ChatSession
from connections.models import Connection
from tests.builders import make_connection, make_member, make_user
from workspaces.models import User, Workspace
space = Workspace.objects.get(slug="support")
if not Connection.objects.exists():
    make_connection("bench", base_url={base!r}, models=[{model!r}], default_model={model!r},
                    key={key!r}, is_default=True)
out = []
for number in range({count}):
    email = f"p{{number // {share}}}@example.com"
    user = User.objects.filter(email=email).first()
    if user is None:
        user = make_user(email)
        make_member(space, user)
    if number % {share} == 0:
        store = SessionStore()
        store[SESSION_KEY] = str(user.pk)
        store[BACKEND_SESSION_KEY] = "allauth.account.auth_backends.AuthenticationBackend"
        store[HASH_SESSION_KEY] = user.get_session_auth_hash()
        store.create()
    chat = ChatSession.objects.create(workspace=space, owner=user)
    out.append([chat.get_absolute_url(), store.session_key])
print("OUT" + json.dumps(out))
"""

LOOK = """
import json
from sessions.models import Message, Turn
out = []
for turn in Turn.objects.order_by("created_at"):
    sent = Message.objects.get(turn=turn, step=0)
    out.append([sent.created_at.timestamp(), turn.started_at.timestamp()])
print("OUT" + json.dumps(out))
"""


def shell(patchbay: Patchbay, code: str) -> Any:
    output = patchbay.manage("shell", "-v", "0", "-c", code).stdout
    return json.loads(output[output.index("OUT") + 3 :])


def measure(level: Level, hold: float, folder: Path) -> None:
    print(
        f"\n{level.name}: {level.sessions} session(s), {level.rate:.0f} new a second, "
        f"{level.messages} x {level.tokens} tokens at {SPEED} tokens/s",
        flush=True,
    )
    tables = []
    with running("tests.fakes") as (fakes, _pid):
        before = own_cpu()
        runs = asyncio.run(straight(fakes, level))
        tables.append(Table("direct client", runs, taken(fakes), {"client": own_cpu() - before}))
        with running("tests.bench.relay", fakes, GOOD_KEY) as (url, pid):
            asyncio.run(straight(url, replace(level, sessions=1, messages=1)))
            taken(fakes)
            before = cpu_of({"relay": pid})
            runs = asyncio.run(straight(url, level))
            used = spent(before, cpu_of({"relay": pid}))
            tables.append(Table("minimal relay", runs, taken(fakes), used, memory_of([pid])))
        with Patchbay(folder / level.name, env=ENV) as patchbay:
            tables.insert(0, patchbays(patchbay, fakes, level, hold))
    for table in tables:
        table.show(level)
    ours, direct, relay = tables
    print(
        f"  CPU a token, ratio to the direct client {ours.cost / direct.cost:.1f}, to the minimal "
        f"relay {ours.cost / relay.cost:.1f}",
        flush=True,
    )


def patchbays(patchbay: Patchbay, fakes: str, level: Level, hold: float) -> Table:
    patchbay.setup_admin()
    base, count = f"{fakes}/openai/v1", level.sessions + 1
    names = {"base": base, "model": model_of(level), "key": GOOD_KEY, "count": count}
    seeded = shell(patchbay, SEED.format(**names, share=PEOPLE_SHARE))
    # Some replies before the clock runs, so that every part has been used.
    asyncio.run(through(patchbay, seeded[-1:], replace(level, sessions=1, messages=2)))
    taken(fakes)
    before = cpu_of(patchbay.pids())
    memory: list[float] = []
    runs = asyncio.run(watched(patchbay, seeded, level, hold, memory))
    used = spent(before, cpu_of(patchbay.pids()))
    records = taken(fakes)
    rows = shell(patchbay, LOOK)
    return Table("Patchbay", runs, records, used, max(memory), rows[-len(runs) :])


async def watched(
    patchbay: Patchbay,
    seeded: list[tuple[str, str]],
    level: Level,
    hold: float,
    memory: list[float],
) -> list[Run]:
    """The replies, while the memory of all processes is looked at."""
    assert patchbay.process is not None
    pids = [*patchbay.pids().values(), patchbay.process.pid]

    async def look() -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(60 if hold else 2)
            memory.append(memory_of(pids))
            if hold:
                minutes = (time.monotonic() - started) / 60
                print(f"  memory after {minutes:4.1f} min  {memory[-1]:.0f} MB", flush=True)

    looking = asyncio.create_task(look())
    try:
        return await through(patchbay, seeded, level, until=time.monotonic() + 60 * hold)
    finally:
        looking.cancel()
        memory.append(memory_of(pids))


def taken(fakes: str) -> list[dict[str, Any]]:
    """The provider's own record of the replies since it was asked last."""
    found = httpx.get(f"{fakes}/_requests", trust_env=False).json()
    httpx.post(f"{fakes}/_reset", trust_env=False)
    return [record for record in found if record["first_token_ns"]]


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


@dataclass
class Table:
    """What one way of relaying came to. `used`: seconds of CPU by process."""

    name: str
    runs: list[Run]
    records: list[dict[str, Any]]
    used: dict[str, float]
    memory: float = 0.0
    rows: Sequence[tuple[float, float]] = ()  # when a message was stored, and its turn claimed

    @property
    def relayed(self) -> int:
        return sum(len(run.delays) for run in self.runs)

    @property
    def cost(self) -> float:
        return sum(self.used.values()) / self.relayed * 1e6

    def show(self, level: Level) -> None:
        # Requests carry no session, but each first token its time.
        runs = sorted(self.runs, key=lambda run: run.stamps[0])
        asked = sorted(self.records, key=lambda record: record["first_token_ns"])
        own = [record["first_token_ns"] - record["received_ns"] for record in asked]
        added = [
            (run.first - run.posted - provider) / 1e6
            for run, provider in zip(runs, own, strict=True)
        ]
        shares = ", ".join(f"{n} {s / self.relayed * 1e6:.0f}" for n, s in self.used.items())
        lost = len(self.runs) * level.tokens - self.relayed
        wrong = sum(run.out_of_order for run in self.runs)
        print(f"  {self.name}")
        print(f"    first token added, p50 / p99 ms {quantiles(added)}")
        for name, values in self._parts(asked).items():
            print(f"      {name:<30}{quantiles(values)}")
        delays = (delay / 1e6 for run in self.runs for delay in run.delays)
        print(f"    relay of a token, p50 / p99 ms  {quantiles(delays)}")
        print(f"    CPU a token                     {self.cost:.0f} µs ({shares})")
        if self.memory:
            print(f"    memory at most                  {self.memory:.0f} MB")
        print(f"    tokens                          {self.relayed}, {lost} lost, {wrong} misplaced")

    def _parts(self, asked: list[dict[str, Any]]) -> dict[str, list[float]]:
        """The way of a message to the first token, as far as it is known."""
        if not self.rows:
            return {}
        offset = time.time_ns() - time.monotonic_ns()
        received = sorted((record["received_ns"] + offset) / 1e6 for record in asked)
        claimed = sorted(row[1] * 1e3 for row in self.rows)
        return {
            "POST answered": [(run.answered - run.posted) / 1e6 for run in self.runs],
            "stored to claimed": [(row[1] - row[0]) * 1e3 for row in self.rows],
            "claimed to request": [a - b for a, b in zip(received, claimed, strict=False)],
            "provider's token to page": [run.delays[0] / 1e6 for run in self.runs],
            "fetches of the turns (number)": [float(run.fetches) for run in self.runs],
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--levels", default="alone,10,steady,burst", help="with commas")
    parser.add_argument("--hold", type=float, default=0.0, help="minutes a level lasts at least")
    chosen = parser.parse_args()
    collect_static()
    with tempfile.TemporaryDirectory(prefix="patchbay-bench-") as folder:
        for name in chosen.levels.split(","):
            level = Level.of(name)
            if chosen.hold:
                level = replace(level, tokens=1500)  # within the sends a person may have a minute
            measure(level, chosen.hold, Path(folder))


if __name__ == "__main__":
    main()
