"""What an open page is written: at once, but changes that come together as one."""

from __future__ import annotations

import asyncio
import uuid
from types import SimpleNamespace

import orjson
import pytest
from django.db import InterfaceError, OperationalError

from sessions import bus, stream
from sessions.stream import SOON, Encoded, Reader, Viewer


def event(number: int, name: str, **data: object) -> Encoded:
    return Encoded.of(b"%d-0" % number, name.encode(), orjson.dumps(data))


def viewer() -> Viewer:
    made = Viewer("0-0", 0, "en")
    made.catch_up([])
    return made


async def now(waiting: asyncio.Task[bool]) -> bool:
    """What a wait gives that ends without any time going by."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert waiting.done()
    return waiting.result()


async def test_text_is_written_at_once():
    page = viewer()
    waiting = asyncio.create_task(page.wait(60))
    await asyncio.sleep(0)
    page.put(event(1, "text", t="Hello"))
    assert await now(waiting)
    assert b'"Hello"' in page.drain()


async def test_of_changes_that_come_together_the_last_is_written():
    page = viewer()
    for version in (1, 2, 3):
        page.put(event(version, "changed", v=version))
    assert await asyncio.wait_for(page.wait(60), 5)
    written = page.drain()
    assert written.count(b"event: changed") == 1
    assert b'{"v":3}' in written
    assert page.version == 3


async def test_a_change_waits_no_longer_than_the_text_after_it():
    page = viewer()
    page.put(event(1, "changed", v=1))
    page.put(event(2, "text", t="Hello"))
    assert await now(asyncio.create_task(page.wait(60)))
    written = page.drain()
    assert written.index(b"changed") < written.index(b"Hello")
    page.put(event(3, "changed", v=2))
    page.put(event(4, "turn-end", v=3))
    assert await now(asyncio.create_task(page.wait(60)))
    assert page.drain().index(b"changed") < 60


async def test_the_wait_after_a_change_that_was_written_already_is_a_wait():
    page = viewer()
    page.put(event(1, "changed", v=1))
    page.put(event(2, "text", t="Hello"))
    assert await page.wait(60)
    page.drain()
    await asyncio.sleep(2 * SOON)  # the change's own time comes
    assert not await page.wait(60)
    waiting = asyncio.create_task(page.wait(60))
    await asyncio.sleep(SOON)
    assert not waiting.done()
    page.wake_when_due(asyncio.get_running_loop().time())
    await asyncio.sleep(0)
    assert not waiting.done()
    page.wake_when_due(asyncio.get_running_loop().time() + 61)
    assert not await asyncio.wait_for(waiting, 5)


async def test_however_often_the_only_page_is_opened_anew_one_timer_serves_it(monkeypatch):
    reader, page, timers = Reader(), viewer(), []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda _delay, call: timers.append(call))
    for _ in range(3):
        reader.open(page)
        reader.close(page)
    reader.open(page)
    assert len(timers) == 1
    timers.pop()()
    assert len(timers) == 1
    reader.close(page)
    timers.pop()()
    assert not timers
    reader.open(page)
    assert len(timers) == 1


@pytest.mark.parametrize("fault", [OperationalError, InterfaceError])
async def test_a_page_is_followed_though_the_database_is_away(monkeypatch, fault):
    reader, page = Reader(), viewer()

    async def watch(*_: object) -> None:
        return None

    async def look(*_: object) -> None:
        page.put(event(1, "text", t="Hello"))
        raise fault

    monkeypatch.setattr(reader, "watch", watch)
    monkeypatch.setattr(reader, "leave_place", lambda *_: None)
    monkeypatch.setattr(stream, "_reader", lambda: reader)
    monkeypatch.setattr(stream._look, "look", look)
    sign_in = SimpleNamespace(user_id=uuid.uuid4())
    following = stream._follow(sign_in, uuid.uuid4(), page, "place")
    assert b"hello" in await anext(following)
    assert b"Hello" in await anext(following)
    await following.aclose()


async def test_an_event_that_cannot_be_worded_keeps_no_other(monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(stream.wording, "worded", broken)
    page = viewer()
    page.put(event(1, "tool", m="m", b=0, call={}))
    page.put(event(2, "text", t="Hello"))
    assert b"Hello" in page.drain()


class Channel:
    """What a process hears, message by message, and then nothing more."""

    def __init__(self, *heard: list[bytes]) -> None:
        self.heard = list(heard)
        self.silent = asyncio.Event()

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def subscribe(self, _name: str) -> None: ...

    async def parse_response(self, **_: object) -> list[bytes]:
        if not self.heard:
            self.silent.set()
            await asyncio.Event().wait()
        return self.heard.pop(0)


async def test_what_cannot_be_read_on_the_channel_ends_no_listening(monkeypatch):
    reader, page, chat = Reader(), viewer(), uuid.uuid4()
    key = bus.key_of(chat).encode()
    subscribed = [b"subscribe", b"", b""]
    broken = [b"message", b"", b"\n".join([key, b"1-0", b"changed", b"no JSON"])]
    well = [b"message", b"", b"\n".join([key, b"2-0", b"text", b'{"t": "Hello"}'])]
    first, second = Channel(subscribed, broken), Channel(subscribed, well)
    channels = [first, second]

    async def caught_up() -> None: ...

    monkeypatch.setattr(reader._client, "pubsub", lambda: channels.pop(0))
    monkeypatch.setattr(reader, "_catch_up", caught_up)
    monkeypatch.setattr(stream, "LISTEN_AGAIN", 0)
    reader._viewers[key] = {page}
    listening = asyncio.create_task(reader._run())
    await asyncio.wait_for(second.silent.wait(), 10)
    assert reader.is_well
    assert b"Hello" in page.drain()
    listening.cancel()
