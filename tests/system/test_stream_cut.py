"""The event stream, cut and lost in every way: what a page shows is what is stored."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.harness import wait_for
from tests.system.page import Page
from tests.system.parts import Chat, Parts


def answered(turns: int) -> Callable[[Page], bool]:
    """Whether a page shows so many turns, the last of them over."""
    return lambda page: len(page.turns) == turns and page.state not in ("pending", "running")


def cuts(chance: random.Random) -> Iterator[int]:
    """After how many bytes connections break: mostly within the first event, of which text has 150
    bytes and a rendered block some thousands."""
    while True:
        yield chance.randrange(1, chance.choice([300] * 6 + [2_000, 20_000]))


def check_shown(page: Page, chat: Chat) -> None:
    """What the page shows, what a reload shows and what is stored are the same."""
    fresh = Page(chat)
    assert page.shown() == fresh.shown()
    assert page.waiting == fresh.waiting == []
    last = chat.messages("assistant")[-1]
    if "```" not in last["text"]:
        assert page.text() == " ".join(last["text"].split())


def test_a_stream_cut_a_hundred_times_has_no_gap_and_no_repeat(parts: Parts):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    chat = Chat(parts, "fast-60tps-240")
    page, turns = Page(chat), 0
    while page.connects < 100:
        chat.send(f"question {turns}")
        turns += 1
        page.follow(answered(turns), cuts=cuts(chance))
    print(f"{page.connects} connections, {turns} turns, {page.rebuilds} times from the start")
    assert page.rebuilds == 0
    check_shown(page, chat)
    assert len(parts.fakes.requests()) == turns


@pytest.mark.parametrize("model", ["markdown", "thinking-tools", "tools-2-0.2s"])
def test_every_kind_of_block_survives_the_cuts(parts: Parts, model: str):
    chance = random.Random(model)
    chat = Chat(parts, model, connection="steer-anthropic")
    page = Page(chat)
    chat.send("first")
    page.follow(answered(1), cuts=cuts(chance))
    assert page.rebuilds == 0
    check_shown(page, chat)


def test_a_reload_a_second_device_and_a_page_that_stayed_show_the_same(parts: Parts):
    chat = Chat(parts, "fast-60tps-240")
    stayed, second = Page(chat), Page(chat, client=parts.sign_in_admin())
    chat.send("first")
    pool = ThreadPoolExecutor(2)
    watching = [pool.submit(page.follow, answered(1)) for page in (stayed, second)]
    reloaded = Page(chat)
    for words in (20, 60, 120):
        reloaded.follow(lambda page, n=words: page.messages() and len(page.text().split()) > n)
        before = reloaded.text()
        reloaded.reload()
        reloaded.follow(lambda page, before=before: page.text().startswith(before))
        assert reloaded.state == "running", "it shows the text so far at once"
    reloaded.follow(answered(1))
    for one in watching:
        one.result()
    pool.shutdown()
    for page in (stayed, second, reloaded):
        assert page.rebuilds == 0
        check_shown(page, chat)
    assert len(parts.fakes.requests()) == 1


@pytest.mark.parametrize("fault", ["flushed", "killed"])
def test_a_page_is_whole_again_after_redis_lost_everything(parts: Parts, fault: str):
    chat = Chat(parts, "fast-60tps-420")
    page = Page(chat)
    chat.send("first")
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(page.follow, answered(1))
        chat.wait_for_reply(200)
        if fault == "flushed":
            parts.redis.flushall()
        else:
            parts.end("valkey")
            chat.wait_for_reply(len(chat.reply(1)) + 200)
            parts.start_valkey()
        watching.result()
    print(f"{fault}: {page.rebuilds} times from the start, {page.connects} connections")
    check_shown(page, chat)
    assert len(parts.fakes.requests()) == 1
    chat.send("second")  # and goes on as before
    page.follow(answered(2))
    check_shown(page, chat)


def test_a_closed_tab_ends_nothing(parts: Parts):
    chat = Chat(parts, "fast-60tps-120")
    page = Page(chat)
    chat.send("first")
    page.follow(lambda page: page.messages() and page.messages()[-1].blocks)  # then it is closed
    chat.wait_until_idle()
    assert chat.states() == ["done"]
    assert [one["end"] for one in parts.fakes.requests()] == ["done"]
    later = Page(chat)
    wait_for(lambda: answered(1)(later), what="the page shows the whole reply")
    check_shown(later, chat)


def test_a_stream_that_has_nothing_to_say_is_kept_open_through_a_proxy(parts: Parts):
    """nginx, as it comes, gives a silent upstream 60 seconds and holds back what it may buffer."""
    page = Page(chat := Chat(parts))
    address = f"{chat.url}stream/?after={page.cursor}&v={page.version}"
    asked = time.monotonic()
    with chat.client.stream("GET", address, timeout=40) as answer:
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"
        pieces = answer.iter_raw()
        assert next(pieces)
        first = time.monotonic()
        assert first - asked < 3
        assert next(pieces) == b": still here\n\n"
        assert 14 < time.monotonic() - first < 18
