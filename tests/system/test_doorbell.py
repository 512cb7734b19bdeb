"""Tasks are only a doorbell: rung many times, at once, or late, one turn makes one request."""

from __future__ import annotations

import uuid

from tests.system.harness import wait_for
from tests.system.parts import Chat, Parts


def consumed(parts: Parts) -> bool:
    """The workers have taken every task there was."""
    return not parts.redis.llen("patchbay:celery:turns")


def test_a_task_published_many_times_gives_one_request_and_one_reply(parts: Parts):
    parts.run("worker-2")
    chats = [Chat(parts, "fast-60tps-12") for _ in range(5)]
    for chat in chats:  # both workers are up
        chat.send("hello")
    for chat in chats:
        chat.wait_until_idle()
    for worker in parts.workers():
        parts.freeze(worker)
    for number, chat in enumerate(chats):
        chat.send(f"question {number}")
    for chat in chats:  # delivered at the same moment, to both
        parts.ring(chat.turns()[-1]["id"], 20)
    for worker in parts.workers():
        parts.thaw(worker)
    for chat in chats:  # in the middle
        wait_for(lambda chat=chat: chat.states()[-1] != "pending", what="the turn is taken")
        parts.ring(chat.turns()[-1]["id"], 5)
    for chat in chats:
        chat.wait_until_idle()
    parts.execute(  # after two hours
        "UPDATE agent_sessions_turn SET created_at = datetime(created_at, '-2 hours'),"
        " started_at = datetime(started_at, '-2 hours'), ended_at = datetime(ended_at, '-2 hours')"
    )
    for chat in chats:
        parts.ring(chat.turns()[-1]["id"], 5)
    parts.ring(str(uuid.uuid4()), 5)  # a turn that is gone
    wait_for(lambda: consumed(parts), what="every task is taken")
    last = Chat(parts)  # what was rung before is dealt with when this is answered
    last.send("last")
    last.wait_until_idle()
    for number, chat in enumerate(chats):
        assert chat.states() == ["done", "done"]
        assert [turn["claims"] for turn in chat.turns()] == [1, 1]
        assert len(chat.messages("assistant")) == 2
        assert len(parts.requests_with(f"question {number}")) == 1
    assert len(parts.fakes.requests()) == 11
