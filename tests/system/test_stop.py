"""Stop: the provider's stream is closed at once, what was said stays, and so does the queue."""

from __future__ import annotations

import time

import pytest

from tests.system.harness import wait_for
from tests.system.page import Page, draft_in
from tests.system.parts import Chat, Parts


@pytest.mark.parametrize("model", ["fast-30tps-300", "stall", "stall-first", "tools-3-3s"])
@pytest.mark.parametrize("queued", ["return", "continue"])
def test_stop_closes_the_stream_keeps_the_text_and_the_queue(parts: Parts, model: str, queued: str):
    chat = Chat(parts, model)
    chat.send("first")
    wait_for(lambda: parts.requests_with("first"), what="the request")
    if model != "stall-first":
        chat.wait_for_reply(4)
    chat.choose("echo")
    for text in ("second", "third"):
        chat.send(text)
    said = chat.reply(1)
    asked = time.monotonic()
    answer = chat.post("stop", queued=queued, text="half a thought")
    wait_for(lambda: parts.requests_with("first")[-1]["end"], 2, "the stream is closed")
    closed = time.monotonic() - asked
    print(f"{model}: closed {closed:.2f} s after Stop")
    assert closed <= 2
    assert parts.requests_with("first")[-1]["end"] == "aborted"
    chat.wait_until_idle()
    assert chat.states()[0] == "stopped"
    assert chat.reply(1).startswith(said)
    if queued == "return":
        assert chat.states() == ["stopped"]
        assert {one["text"]: one["delivery"] for one in chat.messages()} == {
            "first": "sent",
            "second": "cancelled",
            "third": "cancelled",
        }
        assert draft_in(answer.text) == "half a thought\n\nsecond\n\nthird"
    else:
        assert chat.states() == ["stopped", "done", "done"]
        assert chat.reply(2).endswith("second")  # also the first, where it had no answer
        assert chat.reply(3) == "third"
        assert draft_in(answer.text) == "half a thought"
    assert not Page(chat).waiting


def test_stop_works_while_redis_is_dead(parts: Parts):
    chat = Chat(parts, "stall")
    chat.send("first")
    chat.wait_for_reply()
    parts.end("valkey")
    asked = time.monotonic()
    chat.post("stop")
    wait_for(lambda: parts.requests_with("first")[0]["end"] == "aborted", 6, "it is closed")
    print(f"closed {time.monotonic() - asked:.2f} s after Stop was pressed")
    chat.wait_until_idle()
    assert chat.states() == ["stopped"]
    assert chat.reply(1) == "And then nothing"
