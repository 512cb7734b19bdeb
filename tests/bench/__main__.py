"""`make bench`: what Patchbay adds to a provider's own time, and what a relayed token costs.

A fake provider stamps every token with the time it leaves; a direct client and Patchbay (the real
processes, with an event stream open for each session as a browser has it) relay the same replies in
the same run. Absolute figures belong to the machine; the ratios are what to compare.

    python -m tests.bench [--sessions 1,20,100] [--rate 10] [--tokens 300]
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
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson

from tests.fakes.app import GOOD_KEY
from tests.system.harness import ROOT, Patchbay, _processes, collect_static

PEOPLE_SHARE = 20  # sessions a person: the product bounds the pages one person has open
CSRF = "b" * 32
ENV = {
    "PATCHBAY_TITLES": "off",
    **{f"PATCHBAY_{name}": "0" for name in ("STREAMS_PER_PERSON", "TURNS_PER_PERSON")},
}
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    """One session's reply, times in monotonic nanoseconds."""

    posted: int = 0
    answered: int = 0
    first: int = 0
    delays: list[int] = field(default_factory=list)  # a token's way, in nanoseconds


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


# -- the direct client -----------------------------------------------------------------------------


async def direct(fakes: str, count: int, rate: float, model: str) -> tuple[list[Run], float]:
    """The same replies without Patchbay; the runs and this process's CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    async with httpx.AsyncClient(
        trust_env=False, timeout=60, limits=httpx.Limits(max_connections=None)
    ) as client:

        async def one(number: int) -> Run:
            await asyncio.sleep(number / rate)
            run = Run(posted=time.monotonic_ns())
            body = {
                "model": model,
                "stream": True,
                "max_tokens": 4096,
                "messages": [{"role": "user", "content": "go"}],
            }
            async with client.stream(
                "POST",
                f"{fakes}/openai/v1/chat/completions",
                json=body,
                headers={"authorization": f"Bearer {GOOD_KEY}"},
            ) as response:
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    for choice in orjson.loads(line[6:])["choices"]:
                        if text := choice["delta"].get("content"):
                            take(run, text)
            return run

        runs = await asyncio.gather(*(one(number) for number in range(count)))
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return list(runs), used


def take(run: Run, text: str) -> None:
    now = time.monotonic_ns()
    run.first = run.first or now
    run.delays.extend(now - int(stamp) for stamp in text.split())


# -- through Patchbay ------------------------------------------------------------------------------


async def follow(port: int, path: str, cookie: str, run: Run, ready: asyncio.Event) -> None:
    """An event stream as a browser holds it, read with as little of our own CPU as possible."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(
        f"GET {path}stream/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {cookie}\r\n\r\n".encode()
    )
    name = b""
    try:
        while True:
            line = await reader.readline()
            if not line:
                raise ConnectionError("the stream ended early")
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                raise ConnectionError(line.decode())
            if line.startswith(b": hello"):
                ready.set()
            elif line.startswith(b"event: "):
                name = line[7:].strip()
            elif line.startswith(b"data: ") and name == b"text":
                take(run, orjson.loads(line[6:])["t"])
            elif line.startswith(b"data: ") and name == b"turn-end":
                return
    finally:
        writer.close()


async def through(
    patchbay: Patchbay, paths: list[str], cookies: list[str], rate: float
) -> list[Run]:
    async with httpx.AsyncClient(base_url=patchbay.url, trust_env=False, timeout=60) as client:

        async def one(number: int) -> Run:
            await asyncio.sleep(number / rate)
            run, ready, path, cookie = Run(), asyncio.Event(), paths[number], cookies[number]
            stream = asyncio.create_task(follow(patchbay.port, path, cookie, run, ready))
            await asyncio.wait(
                [stream, asyncio.create_task(ready.wait())], return_when="FIRST_COMPLETED"
            )
            await asyncio.sleep(0.3)
            run.posted = time.monotonic_ns()
            answer = await client.post(
                f"{path}send/",
                data={"text": "go"},
                headers={"Cookie": cookie, "X-CSRFToken": CSRF, "Origin": patchbay.url},
            )
            run.answered = time.monotonic_ns()
            if answer.status_code != 303:
                raise RuntimeError(f"refused: {answer.status_code} {answer.text[:500]}")
            await stream
            return run

        return list(await asyncio.gather(*(one(number) for number in range(len(paths)))))


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
out = {}
for turn in Turn.objects.select_related("chat__workspace"):
    sent = Message.objects.get(turn=turn, step=0)
    out[turn.chat.get_absolute_url()] = [sent.created_at.timestamp(), turn.started_at.timestamp()]
print("OUT" + json.dumps(out))
"""


def shell(patchbay: Patchbay, code: str) -> object:
    output = patchbay.manage("shell", "-v", "0", "-c", code).stdout
    return json.loads(output[output.index("OUT") + 3 :])


def measure(count: int, rate: float, tokens: int, folder: Path) -> None:
    fakes_process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert fakes_process.stdout is not None
        fakes = fakes_process.stdout.readline().strip()
        model = f"bench-30tps-{tokens}"
        straight, straight_cpu = asyncio.run(direct(fakes, count, rate, model))
        with Patchbay(folder / str(count), env=ENV) as patchbay:
            patchbay.setup_admin()
            seeded = shell(
                patchbay,
                SEED.format(
                    base=f"{fakes}/openai/v1",
                    model=model,
                    key=GOOD_KEY,
                    count=count + 1,
                    share=PEOPLE_SHARE,
                ),
            )
            paths = [path for path, _ in seeded]
            cookies = [f"patchbay_session={key}; patchbay_csrf={CSRF}" for _, key in seeded]
            # One reply before the clock runs, so that every part has been used once.
            asyncio.run(through(patchbay, paths[-1:], cookies[-1:], rate))
            httpx.post(f"{fakes}/_reset", trust_env=False)
            before = cpu_of(patchbay.pids())
            runs = asyncio.run(through(patchbay, paths[:-1], cookies[:-1], rate))
            after = cpu_of(patchbay.pids())
            memory = memory_of(patchbay.pids().values())
            rows = shell(patchbay, LOOK)
            records = httpx.get(f"{fakes}/_requests", trust_env=False).json()
    finally:
        fakes_process.terminate()
        fakes_process.wait()
    report(count, tokens, straight, straight_cpu, runs, paths, rows, records, before, after, memory)


def report(
    count, tokens, straight, straight_cpu, runs, paths, rows, records, before, after, memory
):
    offset = time.time_ns() - time.monotonic_ns()
    # Requests carry no session: both lists in the order of time are the same order at this rate.
    asked = sorted((r for r in records if r["first_token_ns"]), key=lambda r: r["received_ns"])
    claimed = sorted((rows[path] for path in paths[:-1]), key=lambda row: row[1])
    own = [r["first_token_ns"] - r["received_ns"] for r in asked]
    mean_own = statistics.median(own)
    added = [(run.first - run.posted - mean_own) / 1e6 for run in runs]
    direct_added = [(run.first - run.posted - mean_own) / 1e6 for run in straight]
    parts = {
        "POST answered": [(run.answered - run.posted) / 1e6 for run in runs],
        "doorbell (stored to claimed)": [(row[1] - row[0]) * 1e3 for row in claimed],
        "claimed to request": [
            (record["received_ns"] + offset) / 1e6 - row[1] * 1e3
            for record, row in zip(asked, claimed, strict=False)
        ],
        "provider's token to browser": [run.delays[0] / 1e6 for run in runs if run.delays],
    }
    relayed = sum(len(run.delays) for run in runs)
    used = {name: after[name] - before[name] for name in after}
    each = {name: seconds / relayed * 1e6 for name, seconds in used.items()}
    lost = count * tokens - relayed
    straight_each = straight_cpu / sum(len(run.delays) for run in straight) * 1e6
    print(f"\n{count} concurrent session(s), {tokens} tokens each at 30 tokens/s")
    print("  ms, median / p99              Patchbay             direct client")
    print(f"  first token added     {quantiles(added)}     {quantiles(direct_added)}")
    for name, values in parts.items():
        print(f"    {name:<28}{quantiles(values)}")
    print(
        f"  relay of a token      {quantiles(d / 1e6 for r in runs for d in r.delays)}"
        f"     {quantiles(d / 1e6 for r in straight for d in r.delays)}"
    )
    shares = ", ".join(f"{name} {cost:.0f}" for name, cost in each.items())
    total = sum(each.values())
    print(
        f"  CPU a token           {total:.0f} µs ({shares}); direct client {straight_each:.0f} µs"
    )
    print(f"  ratio to direct       CPU {total / straight_each:.1f} x")
    print(f"  memory                {memory:.0f} MB (proportional, all processes)")
    print(f"  tokens                {relayed} relayed, {lost} lost", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--sessions", default="1,20,100", help="concurrent sessions, with commas")
    parser.add_argument("--rate", type=float, default=10, help="new messages a second")
    parser.add_argument("--tokens", type=int, default=300, help="tokens of a reply, 30 a second")
    chosen = parser.parse_args()
    collect_static()
    with tempfile.TemporaryDirectory(prefix="patchbay-bench-") as folder:
        for count in map(int, chosen.sessions.split(",")):
            # At the highest level all streams overlap: the first lasts until the last began.
            tokens = max(chosen.tokens, int(30 * count / chosen.rate) + 90)
            measure(count, chosen.rate, tokens, Path(folder))


if __name__ == "__main__":
    main()
