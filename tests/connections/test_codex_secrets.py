"""The Codex process holds nothing that is worth taking, and doesn't outlive its worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import httpx
import pytest
from django.conf import settings

from connections import providers
from connections.providers import codex_home, relay
from connections.providers.base import TextDelta
from tests.connections.codex import homes, is_alive, processes, readable_memory, target
from tests.connections.wires import asking, client, said
from tests.fakes.server import GOOD_KEY

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-of-the-server-0123456789"
WORDS = "what-a-person-wrote-in-confidence"
CODEX = providers.get("openai")


@pytest.fixture
async def running(fakes, monkeypatch) -> AsyncIterator[int]:
    """A process in the middle of a reply, in a server with much in its environment; its id."""
    fakes.reset()
    for name in (
        *("OPENAI_API_KEY", "CODEX_API_KEY", "CODEX_HOME", "AWS_SECRET_ACCESS_KEY"),
        *("DATABASE_URL", "PATCHBAY_SECRET_KEYS", "HTTP_PROXY", "HTTPS_PROXY", "OPENAI_BASE_URL"),
        *("CODEX_APP_SERVER_LOGIN_ISSUER", "CODEX_REFRESH_TOKEN_URL_OVERRIDE", "RUST_LOG"),
    ):
        monkeypatch.setenv(name, CANARY)
    where = target(fakes, extra_headers={"X-Secret": "header-secret-0123456789"})
    history = [said(f"{WORDS} one"), said(f"{WORDS} two")]
    async with client() as http:
        stream = CODEX.stream(http, where, asking("stall", history=history))
        assert isinstance(await anext(stream), TextDelta)
        (pid,) = processes()
        yield pid
        await stream.aclose()


def lineage(pid: int) -> list[int]:
    """The process and everything below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


async def test_environment_arguments_directory_and_home_hold_nothing(running, monkeypatch):
    (home,) = homes()
    for pid in lineage(running):
        proc = Path(f"/proc/{pid}")
        environ = dict(
            pair.split("=", 1)
            for pair in (proc / "environ").read_bytes().decode().split("\0")
            if pair
        )
        assert environ == {
            "HOME": f"{home}/home",
            "CODEX_HOME": f"{home}/home",
            "TMPDIR": str(home),
            "PATH": "/nonexistent",
            "LANG": "C.UTF-8",
        }
        command = (proc / "cmdline").read_bytes().decode().split("\0")
        assert command[1:] == ["app-server", "--strict-config", ""]
        assert (proc / "cwd").readlink() == home / "cwd"
    assert list((home / "cwd").iterdir()) == []
    assert (home.stat().st_mode & 0o777) == 0o700


def secret_pieces() -> list[bytes]:
    return [GOOD_KEY.encode(), b"header-secret-0123456789", CANARY.encode(), WORDS.encode()]


async def test_no_key_and_no_word_is_on_its_disk_while_it_runs(running):
    (home,) = homes()
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        for piece in secret_pieces():
            assert piece not in content, path.name
    assert not list(home.rglob("auth.json"))
    assert not list(home.rglob("rollout-*"))


async def test_no_key_is_in_its_memory(running):
    """The one thing that matters of all: what isn't there can't be taken."""
    for pid in lineage(running):
        held = readable_memory(pid)
        assert WORDS.encode() in held or pid != running  # the search finds what is there
        assert GOOD_KEY.encode() not in held
        assert b"header-secret-0123456789" not in held
        assert CANARY.encode() not in held


async def test_it_connects_to_nothing_but_the_relay(running, fakes):
    (record,) = fakes.requests()
    assert record["headers"]["host"] == fakes.url.removeprefix("http://")
    inodes = set()
    for descriptor in Path(f"/proc/{running}/fd").iterdir():
        try:
            link = str(descriptor.readlink())
        except OSError:
            continue
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    there = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{running}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                there.add(fields[2].partition(":")[0])
    assert there == {"0100007F"}  # 127.0.0.1


async def test_nothing_of_a_turn_is_left_afterwards(fakes):
    async with client() as http:
        async for _ in CODEX.stream(http, target(fakes), asking("echo", WORDS)):
            pass
    assert homes() == []
    assert processes() == []
    kept = [path for path in (Path(settings.DATA_DIR) / "codex").rglob("*") if path.is_file()]
    assert [path.parent.name for path in kept] == ["models"] * len(kept)
    for path in kept:
        assert not any(piece in path.read_bytes() for piece in secret_pieces())


WORKER = """
import asyncio, os, sys
import django
django.setup()
from tests.connections.codex import processes, target
from tests.connections.wires import asking, client
from connections import providers

class Fakes:
    openai = sys.argv[1]

async def main():
    async with client() as http:
        stream = providers.get("openai").stream(http, target(Fakes), asking("stall"))
        await anext(stream)
        print(*processes(), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_worker_that_is_killed_leaves_no_process(fakes, loop, tmp_path):
    body = WORKER
    if loop == "uvloop":
        body = body.replace("asyncio.run(main())", "import uvloop; uvloop.run(main())")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PATCHBAY_DATA_DIR": str(tmp_path / "data"),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PYTHONPATH": str(ROOT),
    }
    worker = subprocess.Popen(
        [sys.executable, "-c", body, fakes.openai],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        assert is_alive(pid)
        fakes.wait_for(lambda: fakes.requests(model="stall", end=""))
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
    fakes.wait_for(lambda: not is_alive(pid), 5)
    left = list((tmp_path / "data" / "codex" / "homes").iterdir())
    assert len(left) == 1  # which the next one sweeps
    codex_home._sweep(left[0].parent)
    assert not left[0].exists()


# -- the relay -------------------------------------------------------------------------------------


@pytest.fixture
async def door(fakes) -> AsyncIterator[tuple[relay.Relay, httpx.AsyncClient]]:
    """A relay that would pass everything on, and a client of its side of the process."""
    fakes.reset()
    where = target(fakes)
    request = asking("echo")

    async def nothing() -> bool:
        return False

    async with client() as http, httpx.AsyncClient(trust_env=False) as caller:

        async def make(headers: Mapping[str, str], body: bytes) -> httpx.Request:
            return await CODEX.outgoing(http, where, request, headers, body)

        scrub = relay.Scrubber(where)
        async with relay.Relay(http, make, scrub, model="echo", gate=nothing) as opened:
            yield opened, caller


BODY = {
    "model": "echo",
    "stream": True,
    "store": False,
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    ],
}


async def test_the_right_request_passes(door, fakes):
    opened, caller = door
    answer = await caller.post(
        f"{opened.base_url}/responses",
        json=BODY,
        headers={"authorization": f"Bearer {opened.token}", "x-from-the-process": "1"},
    )
    assert answer.status_code == 200
    assert "response.completed" in answer.text
    assert opened.reason == "stop"
    assert "x-from-the-process" not in fakes.requests()[0]["headers"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {GOOD_KEY}"},
        {"authorization": "Basic TOKEN"},
    ],
)
async def test_without_the_token_nothing_passes(door, fakes, headers):
    opened, caller = door
    headers = {n: v.replace("TOKEN", opened.token) for n, v in headers.items()}
    answer = await caller.post(f"{opened.base_url}/responses", json=BODY, headers=headers)
    assert answer.status_code == 401
    assert fakes.requests() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/responses"),
        ("POST", "/chat/completions"),
        ("POST", "/responses/compact"),
        ("POST", "/responses?x=1"),
        ("POST", "/../v1/responses"),
        ("GET", "/models"),
        ("CONNECT", "/responses"),
    ],
)
async def test_nothing_but_the_one_call_passes(door, fakes, method, path):
    opened, caller = door
    headers = {"authorization": f"Bearer {opened.token}"}
    url = opened.base_url + path
    if ".." in path:
        url = opened.base_url.removesuffix("/v1") + "/%2e%2e/responses"
    answer = await caller.request(method, url, json=BODY, headers=headers)
    assert answer.status_code == 404
    assert fakes.requests() == []


async def test_a_relay_that_is_closed_answers_nobody(door, fakes):
    opened, caller = door
    await opened.close()
    with pytest.raises(httpx.ConnectError):
        await caller.post(f"{opened.base_url}/responses", json=BODY)


async def test_a_body_that_is_too_large_is_refused(door, fakes, monkeypatch):
    monkeypatch.setattr(relay, "MAX_BODY", 100_000)
    opened, caller = door
    headers = {"authorization": f"Bearer {opened.token}"}
    body = {**BODY, "padding": "x" * 200_000}
    answer = await caller.post(f"{opened.base_url}/responses", json=body, headers=headers)
    assert answer.status_code == 413
    assert fakes.requests() == []


async def test_a_request_that_does_not_end_is_given_up(door, monkeypatch):
    monkeypatch.setattr(relay, "READ_SECONDS", 0.2)
    opened, _ = door
    port = int(opened.base_url.split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /responses HTTP/1.1\r\nhost: x\r\n")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"x" * 100_000])
async def test_what_is_no_request_ends_the_connection(door, raw):
    opened, _ = door
    port = int(opened.base_url.split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    writer.write_eof()
    with contextlib.suppress(ConnectionResetError):
        assert b"200" not in await asyncio.wait_for(reader.read(), 10)
    writer.close()
