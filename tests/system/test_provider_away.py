"""A provider that can't be reached for a moment: tried again twice, told on the page, no crowd."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from tests.system.harness import wait_for
from tests.system.page import Page
from tests.system.parts import Chat, Parts


def test_a_moment_is_bridged_and_told_and_nothing_is_asked_twice(parts: Parts):
    chats = [Chat(parts) for _ in range(10)]
    page = Page(chats[0])
    parts.fakes.go_away()
    try:
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda n: chats[n].send(f"away {n}"), range(10)))
        page.follow(lambda page: page.notices)
    finally:
        parts.fakes.come_back()
    assert "The provider can't be reached. Trying again in " in page.notices[0]
    for number, chat in enumerate(chats):
        chat.wait_until_idle(30)
        assert chat.states() == ["done"]
        assert len(parts.requests_with(f"away {number}")) == 1
    came = sorted(record["received_ns"] / 1e9 for record in parts.fakes.requests())
    print(f"after it was back the ten came within {came[-1] - came[0]:.2f} s")
    assert came[-1] - came[0] > 0.2  # not all in one moment


def test_away_for_longer_it_fails_visibly_within_twenty_seconds(parts: Parts):
    chat = Chat(parts)
    parts.fakes.go_away()
    try:
        began = time.monotonic()
        chat.send("anybody?")
        wait_for(lambda: chat.states() == ["failed"], 25, "the turn fails")
        assert 2 + 4 <= time.monotonic() - began <= 22
    finally:
        parts.fakes.come_back()
    assert chat.turns()[0]["error_kind"] == "connect"
    assert f'action="{chat.url}retry/"' in parts.admin.get(chat.url).text
    chat.post("retry")
    chat.wait_until_idle()
    assert (chat.states(), chat.reply(1)) == (["done"], "anybody?")
