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
from sessions import sending, turns
from sessions.models import ChatSession, Turn
from tests.builders import make_connection, make_member, make_user
from tests.fakes.server import FakeProviders
from workspaces.models import Role, User, Workspace

pytestmark = pytest.mark.django_db(transaction=True)


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
    waiting = sending.send(chat.pk, bob, "for the server's worker", ring=False).turn
    Turn.objects.update(created_at=timezone.now() - dt.timedelta(minutes=1))
    assert ask("--user", bob.email, "--connection", "fake", "Hello there") == "Hello there\n"
    waiting.refresh_from_db()
    assert (waiting.state, waiting.claims) == (Turn.State.PENDING, 0)


def test_a_message_behind_others_is_answered_after_them(chat, bob):
    Connection.objects.update(mid_stream_behavior="queue")
    sending.send(chat.pk, bob, "first", ring=False)
    assert ask("--user", bob.email, "--session", str(chat.pk), "second") == "second\n"
    assert [turn.state for turn in chat.turns.all()] == [Turn.State.DONE, Turn.State.DONE]


def test_a_queue_that_stands_still_is_said_so(chat, bob):
    Connection.objects.update(mid_stream_behavior="queue")
    turn = turns.claim(sending.send(chat.pk, bob, "first", ring=False).turn.pk)
    sending.send(chat.pk, bob, "second", ring=False)
    turns.end(turn, turn.lease_token, Turn.State.FAILED, error_kind="quota")
    with pytest.raises(CommandError, match="paused"):
        ask("--user", bob.email, "--session", str(chat.pk), "third")


def test_a_session_keeps_its_connection(chat, bob):
    make_connection("other", base_url="http://127.0.0.1:9/v1", models=["m"], default_model="m")
    session = ("--user", bob.email, "--session", str(chat.pk))
    assert ask(*session, "--connection", "fake", "first") == "first\n"
    assert ask(*session, "--connection", "fake", "second") == "second\n"
    with pytest.raises(CommandError, match="locked"):
        ask(*session, "--connection", "other", "third")
    assert [message.text for message in chat.messages.filter(role="user")] == ["first", "second"]


def test_the_owner_asks_in_a_session_unless_another_is_named(chat, alice, bob):
    assert ask("--session", str(chat.pk), "mine") == "mine\n"
    assert chat.messages.get(role="user").author == bob
    with pytest.raises(CommandError, match="no such session"):
        ask("--user", alice.email, "--session", str(chat.pk), "not mine")
    ChatSession.objects.update(shared=True)
    assert ask("--user", alice.email, "--session", str(chat.pk), "ours") == "ours\n"


def test_what_is_refused_leaves_no_session(chat, workspace, bob):
    viewer = make_member(workspace, make_user("vera@example.com"), Role.VIEWER).user
    make_connection("paused", enabled=False)
    for arguments, why in (
        (("--user", viewer.email, "hello"), "only read"),
        (("--user", bob.email, "--connection", "paused", "hello"), "paused"),
        (("--user", bob.email, "--connection", "fake", "  "), "Write a message"),
        (("--user", bob.email, "--connection", "nothing", "hello"), "no connection"),
    ):
        with pytest.raises(CommandError, match=why):
            ask(*arguments)
    assert ChatSession.objects.get() == chat
