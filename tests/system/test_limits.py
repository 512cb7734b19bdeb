"""One person who does a hundred things at once, beside another who works as ever."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.fakes.server import FakeProviders
from tests.system.harness import Client, wait_for
from tests.system.parts import Chat, Parts

BOB = "bob@example.com"


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Parts]:
    """The product with the limits that it has when nobody sets any."""
    with FakeProviders() as fakes:
        parts = Parts(tmp_path_factory.mktemp("limited"), fakes)
        for name in ("SENDS_PER_MINUTE", "TURNS_PER_PERSON", "STREAMS_PER_PERSON"):
            del parts.env[f"PATCHBAY_{name}"]
        with parts:
            parts.manage(
                *("shell", "-v0", "-c"),
                "from tests.builders import make_member, make_user\n"
                "from workspaces.models import Workspace\n"
                f"make_member(Workspace.objects.get(slug='support'), make_user({BOB!r}))",
            )
            yield parts


async def open_streams(chat: Chat, count: int, within: asyncio.Event, over: asyncio.Event) -> list:
    """Opens them all at once and holds those that were let in until `over`; (status, text)."""
    cookies = dict(chat.client.cookies)
    limits = httpx.Limits(max_connections=None)
    opened = []
    async with httpx.AsyncClient(
        base_url=chat.parts.url, cookies=cookies, trust_env=False, limits=limits, timeout=60
    ) as client:

        async def one() -> None:
            async with client.stream("GET", f"{chat.url}stream/") as answer:
                refused = answer.status_code != 200
                text = (await answer.aread()).decode() if refused else ""
                opened.append((answer.status_code, text))
                if len(opened) == count:
                    within.set()
                if not refused:
                    await over.wait()

        await asyncio.gather(*(one() for _ in range(count)))
    return opened


PAUSE = 0.15  # seconds between two things that bob does


class Work:
    """Somebody's ordinary work: a page, a message, a page, …; the seconds that each took."""

    def __init__(self, client: Client, parts: Parts) -> None:
        self.client, self.parts = client, parts

    def take(self, times: int) -> list[float]:
        chat, took = Chat(self.parts, client=self.client), []
        for number in range(times):
            for ask in (
                lambda: self.client.get(chat.url),
                lambda n=number: chat.send(f"work {n}"),
            ):
                started = time.monotonic()
                assert ask().status_code in (200, 303)
                took.append(time.monotonic() - started)
                time.sleep(PAUSE)
        return took


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def test_a_hundred_streams_and_sends_are_capped_and_others_get_through(limited: Parts):
    """Bob works alone and beside alice's flood in turns, so that both are measured on the same
    machine at the same time; all of it is compared at once."""
    bob = Work(limited.sign_in(BOB), limited)
    bob.take(3)  # every part has been used once
    chats = [Chat(limited) for _ in range(10)]
    answers: list[httpx.Response] = []
    statuses: list[tuple[int, str]] = []

    def flood(number: int) -> None:
        chat = chats[number % len(chats)]
        data = {"text": f"flood {number}", "client_key": uuid.uuid4().hex}
        answers.append(limited.admin.post(f"{chat.url}send/", data=data))

    async def flooded() -> list[float]:
        within, over = asyncio.Event(), asyncio.Event()
        streams = asyncio.create_task(open_streams(chats[0], 100, within, over))
        await asyncio.wait_for(within.wait(), 60)
        with ThreadPoolExecutor(10) as pool:
            flooding = [pool.submit(flood, number) for number in range(100)]
            during = await asyncio.to_thread(bob.take, 6)
            for one in flooding:
                await asyncio.wrap_future(one)
        over.set()
        statuses.extend(await streams)
        return during

    minute = time.time() // 60
    before, during = bob.take(6), asyncio.run(flooded())
    assert Counter(status for status, _ in statuses) == {200: 40, 429: 60}
    assert {text for status, text in statuses if status == 429} == {
        "You have too many pages open. Close some and reload this one."
    }
    said = Counter(one.status_code for one in answers)
    assert said.keys() <= {303, 429}
    if time.time() // 60 == minute:  # else two minutes' worth may have passed
        assert said == {303: 60, 429: 40}
    refused = [one for one in answers if one.status_code == 429]
    for one in refused:
        assert int(one.headers["Retry-After"]) > 0
        assert "as many as one may" in one.text
    for _ in range(3):
        wait_for(lambda: opens(chats[0]), 20, "a stream can be opened again")
        before += bob.take(6)
        during += asyncio.run(flooded())
    slower = p95(during) / p95(before)
    print(f"bob's p95: {p95(before) * 1000:.0f} ms, then {slower:.2f} times that")
    print(f"median {statistics.median(before) * 1e3:.0f}, {statistics.median(during) * 1e3:.0f}")
    # The aim is two. The same two cores make the flood, answer it and run its replies, beside other
    # tests: 2.0 to 2.3 were measured with nothing else running.
    assert slower <= 5
    # The places are free again.
    for chat in chats:
        chat.wait_until_idle(60)
    wait_for(lambda: opens(chats[0]), 20, "a stream can be opened again")


def opens(chat: Chat) -> bool:
    with chat.client.stream("GET", f"{chat.url}stream/") as answer:
        return answer.status_code == 200
