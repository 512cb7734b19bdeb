"""A worker that is killed: text is kept, the queue goes on, and nothing is asked twice."""

from __future__ import annotations

import io
import os
import time

import pytest
from PIL import Image

from tests.system.harness import wait_for
from tests.system.parts import Chat, Parts


def unsaved_seconds(chat: Chat) -> float:
    """The age of the newest text that is stored: what a kill at this moment loses at most. Each
    token of the models bench-… is the time at which it was sent."""
    return (time.monotonic_ns() - int(chat.reply(1).split()[-1])) / 1e9


@pytest.mark.parametrize("successor", ["a new worker", "a worker that ran beside it"])
def test_killed_in_mid_reply_the_text_is_kept_and_the_queue_goes_on(parts: Parts, successor: str):
    chat = Chat(parts, "bench-30tps-600")
    chat.send("first")
    chat.wait_for_reply()
    chat.choose("echo")
    queued = ["second", "third", "fourth"]
    for text in queued:
        chat.send(text)
    if successor == "a worker that ran beside it":
        parts.run("worker-2")
    # the worst moment: when the next save is due
    wait_for(lambda: unsaved_seconds(chat) > 0.6, what="text that isn't saved")
    killed, killed_ns = time.monotonic(), time.monotonic_ns()
    parts.end("worker")
    if successor == "a new worker":
        parts.run("worker")
    wait_for(lambda: chat.states()[0] == "interrupted", 30, "the turn is interrupted")
    interrupted = time.monotonic() - killed
    lost = (killed_ns - int(chat.reply(1).split()[-1])) / 1e9
    print(f"{successor}: interrupted after {interrupted:.1f} s, {lost:.2f} s of text lost")
    assert lost <= 1.0
    assert interrupted <= 30
    chat.wait_until_idle()
    assert chat.states() == ["interrupted", "done", "done", "done"]
    assert [chat.reply(number) for number in (2, 3, 4)] == queued
    assert [one["last_user"] for one in parts.fakes.requests()] == ["first", *queued]


def test_a_growing_reply_is_saved_at_least_once_a_second(parts: Parts):
    chat = Chat(parts, "bench-30tps-600")
    chat.send("first")
    chat.wait_for_reply()
    ages, until = [], time.monotonic() + 5
    while time.monotonic() < until:
        ages.append(unsaved_seconds(chat))
        time.sleep(0.01)
    chat.post("stop")
    print(f"text was stored {max(ages):.2f} s after it was sent, at the latest")
    assert 0.1 < max(ages) <= 1.0


def test_a_worker_that_starts_finds_what_nobody_holds_without_a_doorbell(parts: Parts):
    for name in ("beat", "worker", "valkey"):
        parts.end(name)
    chat = Chat(parts)
    chat.send("anybody there?")
    parts.run("worker")
    chat.wait_until_idle(30)
    assert chat.states() == ["done"]
    assert len(parts.requests_with("anybody there?")) == 1


def test_a_row_that_cannot_be_changed_does_not_hold_up_the_others(parts: Parts):
    chats = [Chat(parts, "stall") for _ in range(3)]
    for chat in chats:
        chat.send("first")
        chat.wait_for_reply()
        chat.choose("echo")
        chat.send("second")
    parts.end("worker")
    parts.execute(
        "CREATE TRIGGER broken BEFORE UPDATE ON agent_sessions_turn"
        f" WHEN NEW.chat_id = '{chats[0].id.hex}' BEGIN SELECT RAISE(ABORT, 'broken'); END"
    )
    try:
        parts.run("worker")
        for chat in chats[1:]:
            chat.wait_until_idle(60)
            assert chat.states() == ["interrupted", "done"]
        assert chats[0].states() == ["running"]
    finally:
        parts.execute("DROP TRIGGER broken")
    chats[0].wait_until_idle()
    assert chats[0].states() == ["interrupted", "done"]


def test_a_message_that_kills_its_worker_stops_after_three_claims(parts: Parts):
    """The image of the message is replaced by a pipe that nobody writes to: whoever prepares the
    request hangs in it, and is then killed."""
    parts.end("worker")
    chat = Chat(parts, "vision")
    image = io.BytesIO()
    Image.new("RGB", (2, 2)).save(image, "PNG")
    parts.admin.post(
        f"{chat.url}send/",
        data={"text": "look", "client_key": "k"},
        files={"images": ("x.png", image.getvalue(), "image/png")},
    )
    chat.choose("echo")
    chat.send("after it")
    (file,) = parts.media.rglob("*.png")
    file.unlink()
    os.mkfifo(file)
    for claims in (1, 2, 3):
        parts.run("worker")
        wait_for(lambda n=claims: chat.turns()[0]["claims"] == n, 30, f"claim {claims}")
        other = Chat(parts)
        other.send("others go on")
        other.wait_until_idle()
        assert chat.states() == ["running"]
        parts.end("worker")
        # the wait for the lease's end has a test of its own
        parts.execute(
            "UPDATE agent_sessions_turn SET lease_until = created_at WHERE chat_id = ?",
            chat.id.hex,
        )
    parts.run("worker")
    wait_for(lambda: chat.states()[0] == "failed", 30, "the turn is given up")
    assert (chat.turns()[0]["claims"], chat.turns()[0]["error_kind"]) == (3, "worker_lost")
    assert not parts.requests_with("look")
    file.unlink()
    file.write_bytes(image.getvalue())
    chat.wait_until_idle()
    assert chat.states() == ["failed", "done"]
    asked = [one["texts"][-1]["text"] for one in parts.fakes.requests()]
    assert [text for text in asked if text != "others go on"] == [chat.reply(2)]
    assert "after it" in chat.reply(2)
