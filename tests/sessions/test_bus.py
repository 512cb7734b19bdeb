"""The worker's writer of events, on a Redis that answers when the test lets it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessions.bus import Writer


class SlowRedis:
    """Takes what a batch adds, and answers once `answers` is set."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.sent: list[str] = []

    async def eval(self, script: str, count: int, *given: Any) -> list[bytes]:
        _most, _seconds, _channel, *events = given[count:]
        self.sent += events[1::3]
        await self.answers.wait()
        return [b"1-1"] * count

    async def aclose(self) -> None: ...


@pytest.fixture
def slow(monkeypatch) -> SlowRedis:
    redis = SlowRedis()
    monkeypatch.setattr("sessions.bus.redis.asyncio.Redis.from_url", lambda *a, **k: redis)
    return redis


async def test_settling_waits_for_events_that_are_on_their_way(slow):
    writer = Writer()
    writer.add("a", "block", {})
    while not slow.sent:
        await asyncio.sleep(0)
    settled = asyncio.create_task(writer.settle())
    done, _ = await asyncio.wait([settled], timeout=0.05)
    assert not done
    slow.answers.set()
    await asyncio.wait_for(settled, 5)
    assert writer.last_id("a") == "1-1"
    await writer.close()


async def test_settling_does_not_wait_for_what_others_add_meanwhile(slow):
    writer = Writer()
    slow.answers.set()
    busy = True

    async def others() -> None:
        while busy:
            writer.add("b", "block", {})
            await asyncio.sleep(0)

    talking = asyncio.create_task(others())
    writer.add("a", "block", {})
    await asyncio.wait_for(writer.settle(), 5)
    busy = False
    await talking
    await asyncio.wait_for(writer.close(), 5)


async def test_an_event_that_cannot_be_written_keeps_no_other(slow):
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    writer = Writer()
    slow.answers.set()
    writer.add("a", "tool", {"call": {"args": {"deep": deep}}})
    writer.add("b", "block", {})
    await asyncio.wait_for(writer.settle(), 5)
    assert slow.sent == ["block"]
    assert (writer.last_id("a"), writer.last_id("b")) == ("", "1-1")
    await writer.close()
