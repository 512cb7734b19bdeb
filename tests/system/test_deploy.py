"""A deploy: workers are told to end and others begin, while replies stream and messages wait."""

from __future__ import annotations

import signal
import time
import uuid

from tests.system.harness import wait_for
from tests.system.parts import Chat, Parts


def test_told_to_end_with_twenty_live_replies_no_message_is_lost(parts: Parts):
    """Half of the replies can end within the worker's grace, half can't."""
    models = ["fast-60tps-120", "bench-30tps-600"]
    chats = [Chat(parts, models[number % 2]) for number in range(20)]
    for number, chat in enumerate(chats):
        chat.send(f"first {number}")
    for chat in chats:
        chat.wait_for_reply()
        chat.choose("echo")
    for number, chat in enumerate(chats):
        chat.send(f"second {number}")
    parts.run("worker-2")
    told = time.monotonic()
    parts.end("worker", signal.SIGTERM)
    took = time.monotonic() - told
    print(f"the worker ended {took:.1f} s after it was told to")
    assert took < 25
    for number, chat in enumerate(chats):
        chat.wait_until_idle(60)
        assert chat.states()[1:] == ["done"]
        assert chat.reply(2) == f"second {number}"
        assert len(parts.requests_with(f"first {number}")) == 1
        assert len(parts.requests_with(f"second {number}")) == 1
    ends = [(chat.states()[0], len(chat.reply(1).split())) for chat in chats]
    assert {state for state, _ in ends[::2]} == {"done"}
    assert {state for state, _ in ends[1::2]} == {"interrupted"}
    # Up to the end, not only up to the last checkpoint: at 30 tokens a second for the grace.
    assert all(words > 100 for _, words in ends[1::2])


def test_tasks_of_another_version_do_no_harm(parts: Parts):
    """What an older or newer process published is taken as far as it says anything."""
    for name, arguments, more in (
        ("sessions.tasks.run_turn", (str(uuid.uuid4()),), {}),
        ("sessions.tasks.run_turn", (str(uuid.uuid4()), "one more"), {}),
        ("sessions.tasks.run_turn", ("no id",), {}),
        ("sessions.tasks.was_removed", (), {"of": "an older version"}),
        ("sessions.tasks.sweep", (), {}),
    ):
        parts.celery.send_task(name, arguments, more, queue="turns")
    wait_for(lambda: not parts.redis.llen("patchbay:celery:turns"), 30, "all are taken")
    chat = Chat(parts)
    chat.send("still there?")
    chat.wait_until_idle()
    assert chat.states() == ["done"]
    assert "worker" in parts.pids()
