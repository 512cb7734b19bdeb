"""`manage.py ask`: one turn from the command line, in a process of its own."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterator

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings
from django.utils import timezone

from connections.models import Connection
from sessions import turns
from sessions.models import ChatSession, Turn
from tests.builders import make_connection
from tests.fakes.server import FakeProviders
from workspaces.models import User, Workspace

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def fakes() -> Iterator[FakeProviders]:
    with FakeProviders() as running:
        yield running


@pytest.fixture
def chat(workspace: Workspace, bob: User, fakes: FakeProviders) -> Iterator[ChatSession]:
    connection = make_connection(
        "fake", key=fakes.good_key, base_url=fakes.openai, models=["echo"], default_model="echo"
    )
    with override_settings(EGRESS_ALLOW="127.0.0.0/8", TITLES=False):
        yield ChatSession.objects.create(workspace=workspace, owner=bob, connection=connection)


def ask(*arguments: str) -> str:
    output = io.StringIO()
    call_command("ask", "--workspace", "support", *arguments, stdout=output)
    return output.getvalue()


def test_the_reply_is_printed_and_nobody_elses_turn_is_taken(chat, workspace, bob):
    waiting = turns.send(chat.pk, bob, "for the server's worker", ring=False).turn
    Turn.objects.update(created_at=timezone.now() - dt.timedelta(minutes=1))
    assert ask("--user", bob.email, "--connection", "fake", "Hello there") == "Hello there\n"
    waiting.refresh_from_db()
    assert (waiting.state, waiting.claims) == (Turn.State.PENDING, 0)


def test_a_message_behind_others_is_answered_after_them(chat, bob):
    Connection.objects.update(mid_stream_behavior="queue")
    turns.send(chat.pk, bob, "first", ring=False)
    assert ask("--user", bob.email, "--session", str(chat.pk), "second") == "second\n"
    assert [turn.state for turn in chat.turns.all()] == [Turn.State.DONE, Turn.State.DONE]


def test_a_queue_that_stands_still_is_said_so(chat, bob):
    Connection.objects.update(mid_stream_behavior="queue")
    turn = turns.claim(turns.send(chat.pk, bob, "first", ring=False).turn.pk)
    turns.send(chat.pk, bob, "second", ring=False)
    turns.end(turn, turn.lease_token, Turn.State.FAILED, error_kind="quota")
    with pytest.raises(CommandError, match="paused"):
        ask("--user", bob.email, "--session", str(chat.pk), "third")
