"""JSON-RPC over pipes, against small programs that behave well and badly."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from connections.providers.wire import jsonrpc
from connections.providers.wire.jsonrpc import Peer
from tests.connections.codex import is_alive

HEAD = """
import json, os, sys, time
def say(**message):
    sys.stdout.write(json.dumps(message) + "\\n"); sys.stdout.flush()
def hear():
    line = sys.stdin.readline()
    return json.loads(line) if line else sys.exit(0)
"""
Start = Callable[..., Awaitable[Peer]]


@pytest.fixture
async def start(tmp_path: Path):
    peers = []

    async def begin(body: str, **options: Any) -> Peer:
        program = tmp_path / "program.py"
        program.write_text(HEAD + textwrap.dedent(body))
        peer = await Peer.start(
            [sys.executable, "-I", str(program)],
            env=options.pop("env", {}),
            cwd=str(tmp_path),
            **options,
        )
        peers.append(peer)
        return peer

    yield begin
    for peer in peers:
        await peer.close()
        assert not is_alive(peer.pid)


ECHO = """
while True:
    asked = hear()
    if "id" in asked:
        say(id=asked["id"], result={"method": asked["method"], **asked["params"]})
"""


async def test_a_request_gets_its_own_answer_whatever_the_order(start: Start):
    peer = await start("""
        first, second = hear(), hear()
        say(id=second["id"], result=second["params"])
        say(id=first["id"], result=first["params"])
        hear()
    """)
    answers = await asyncio.gather(peer.request("a", {"n": 1}), peer.request("a", {"n": 2}))
    assert answers == [{"n": 1}, {"n": 2}]


async def test_a_refusal_has_its_code_and_words(start: Start):
    peer = await start("""
        say(id=hear()["id"], error={"code": -32600, "message": "no active turn to steer"})
        hear()
    """)
    with pytest.raises(jsonrpc.Refused, match="no active turn") as caught:
        await peer.request("turn/steer", {})
    assert caught.value.code == -32600


async def test_an_answer_that_does_not_come_is_late_and_the_next_is_not(start: Start):
    peer = await start("""
        late = hear()
        asked = hear()
        say(id=late["id"], result="late")
        say(id=asked["id"], result="in time")
        hear()
    """)
    with pytest.raises(jsonrpc.Late):
        await peer.request("slow", {}, seconds=0.05)
    assert await peer.request("quick", {}) == "in time"


async def test_notifications_come_in_order_then_the_end(start: Start):
    peer = await start("""
        for n in range(3000):
            say(method="tick", params={"n": n})
        sys.exit(3)
    """)
    heard = []
    with pytest.raises(jsonrpc.Closed) as caught:
        async for one in peer.notifications():
            heard.append(one.params["n"])
    assert heard == list(range(3000))
    assert isinstance(caught.value, jsonrpc.Closed)
    with pytest.raises(jsonrpc.Closed):
        await peer.request("anything", {})


async def test_who_is_not_read_waits_and_is_not_collected(start: Start):
    peer = await start("""
        n = 0
        while True:
            say(method="tick", params={"n": n, "text": "x" * 1000})
            n += 1
    """)
    while peer._heard.qsize() < jsonrpc.MAX_WAITING:
        await asyncio.sleep(0.01)
    before = peer._heard.qsize()
    await asyncio.sleep(0.2)
    assert peer._heard.qsize() == before == jsonrpc.MAX_WAITING
    began = time.monotonic()
    await peer.close()  # though it is stuck in a write
    assert time.monotonic() - began < 10


async def test_what_it_asks_is_refused_but_for_what_a_handler_takes(start: Start):
    async def tokens(params: dict[str, Any]) -> dict[str, Any]:
        return {"accessToken": f"new after {params['reason']}"}

    async def broken(params: dict[str, Any]) -> None:
        raise ValueError("sk-a-secret")

    peer = await start(
        """
        methods = ["item/commandExecution/requestApproval", "tokens", "broken"]
        for number, method in enumerate(methods):
            say(id=f"s{number}", method=method, params={"reason": "expired"})
        answers = sorted((hear() for _ in range(3)), key=lambda a: a["id"])
        say(method="answers", params={"answers": answers})
        hear()
        """,
        handlers={"tokens": tokens, "broken": broken},
    )
    heard = await anext(peer.notifications())
    refused, took, failed = heard.params["answers"]
    assert refused["error"]["code"] == -32601
    assert took["result"] == {"accessToken": "new after expired"}
    assert failed["error"]["message"] == "ValueError"


@pytest.mark.parametrize("line", ["not json", "[1]", '"text"'])
async def test_what_is_not_a_message_ends_it(start: Start, line: str):
    peer = await start(f"""
        print({line!r}, flush=True)
        time.sleep(60)
    """)
    with pytest.raises(jsonrpc.Closed, match="can't be read"):
        await peer.request("anything", {})
    with pytest.raises(jsonrpc.Closed):
        await anext(peer.notifications())


async def test_a_long_line_is_read_and_an_endless_one_is_not(start: Start, monkeypatch):
    peer = await start("""
        say(method="long", params={"text": "x" * 5_000_000})
        hear()
    """)
    assert len((await anext(peer.notifications())).params["text"]) == 5_000_000
    monkeypatch.setattr(jsonrpc, "MAX_LINE", 100_000)
    peer = await start("""
        while True:
            sys.stdout.write("x" * 65536)
    """)
    with pytest.raises(jsonrpc.Closed):
        await anext(peer.notifications())


async def test_a_full_error_stream_stops_nobody(start: Start):
    peer = await start("""
        sys.stderr.write("noise " * 200_000 + "the last words")
        sys.stderr.flush()
        say(id=hear()["id"], result="done")
        hear()
    """)
    assert await peer.request("anything", {}) == "done"
    assert peer.words.endswith("the last words")
    assert len(peer.words) <= jsonrpc.MAX_WORDS


async def test_a_program_that_does_not_end_is_killed(start: Start):
    peer = await start("""
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say(method="up", params={})
        while True:
            time.sleep(60)
    """)
    await anext(peer.notifications())
    await peer.close()
    assert not is_alive(peer.pid)


async def test_it_is_ended_when_who_closes_it_is_cancelled(start: Start):
    peer = await start("""
        say(method="up", params={})
        while True:
            time.sleep(60)
    """)
    await anext(peer.notifications())
    closing = asyncio.create_task(peer.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    for _ in range(500):
        if not is_alive(peer.pid):
            break
        await asyncio.sleep(0.01)
    assert not is_alive(peer.pid)


async def test_its_environment_is_what_it_was_given(start: Start, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-server")
    peer = await start(
        """
        say(method="up", params={"env": dict(os.environ), "sid": os.getsid(0)})
        hear()
        """,
        env={"HOME": "/nowhere"},
    )
    params = (await anext(peer.notifications())).params
    assert {name for name in params["env"] if not name.startswith("LC_")} == {"HOME"}
    assert params["sid"] != os.getsid(0)


async def test_a_program_that_is_not_there_can_not_start(tmp_path: Path):
    with pytest.raises(jsonrpc.CannotStart):
        await Peer.start([str(tmp_path / "nothing")], env={}, cwd=str(tmp_path))


async def test_hundred_requests_at_once(start: Start):
    peer = await start(ECHO)
    answers = await asyncio.gather(*(peer.request("echo", {"n": n}) for n in range(100)))
    assert [one["n"] for one in answers] == list(range(100))
