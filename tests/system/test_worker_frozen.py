"""A worker that is frozen past its lease and wakes up again: the turn is no longer its own."""

from __future__ import annotations

import time

from tests.system.harness import wait_for
from tests.system.page import Page
from tests.system.parts import Chat, Parts


def test_a_worker_that_wakes_after_its_lease_cannot_write(parts: Parts):
    chat = Chat(parts, "bench-30tps-3000")
    page = Page(chat)
    chat.send("first")
    page.follow(lambda page: page.messages() and page.messages()[-1].blocks)
    chat.wait_for_reply()
    chat.choose("echo")
    chat.send("second")
    parts.run("worker-2")
    frozen = time.monotonic()
    parts.freeze("worker")
    wait_for(lambda: chat.states()[0] == "interrupted", 30, "another worker has ended the turn")
    print(f"interrupted {time.monotonic() - frozen:.1f} s after the worker froze")
    chat.wait_until_idle()
    stored = (chat.turns(), chat.messages("assistant"))
    parts.thaw("worker")
    woken = time.monotonic()
    wait_for(lambda: parts.requests_with("first")[0]["end"] == "aborted", 15, "it gives up")
    print(f"the woken worker gave up after {time.monotonic() - woken:.1f} s")
    assert (chat.turns(), chat.messages("assistant")) == stored
    # and it works on, as any other
    parts.end("worker-2")
    chat.send("third")
    page.follow(lambda page: len(page.turns) == 3 and page.state == "done")
    assert chat.states() == ["interrupted", "done", "done"]
    assert chat.messages("assistant")[:2] == stored[1]
    assert page.shown() == Page(chat).shown()
    assert [one["last_user"] for one in parts.fakes.requests()] == ["first", "second", "third"]
