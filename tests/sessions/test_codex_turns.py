"""Turns on an OpenAI connection, through the real Codex binary: steering, receipts, stop, queue."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import override_settings

from connections.models import Connection
from connections.providers import codex
from connections.targets import availability
from sessions import choosing, queueing, sending, steps, turns
from sessions.images import check_images
from sessions.leases import LeaseLost
from sessions.models import ChatSession, Message, Turn
from sessions.refusals import Refused
from sessions.wording import notice
from sessions.worker import Crew
from tests.builders import make_connection
from tests.connections.codex import homes, processes
from tests.crew import running_crew
from tests.fakes.server import FakeProviders
from tests.sessions.test_agent import ended, finish, until
from tests.world import png
from workspaces.models import User, Workspace

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def crew(fakes: FakeProviders) -> Iterator[Crew]:
    fakes.reset()
    with running_crew() as running:
        yield running
    assert homes() == []


@pytest.fixture
def openai(fakes: FakeProviders, db: None) -> Connection:
    return make_connection(
        "codex",
        key=fakes.good_key,
        provider_type="openai",
        base_url=fakes.openai,
        models=["echo", "fast-30tps-45", "fast-30tps-300", "stall", "vision", "err-401", "cut"],
        default_model="echo",
    )


@pytest.fixture
def begin(
    crew: Crew, workspace: Workspace, bob: User, openai: Connection
) -> Callable[..., tuple[ChatSession, Turn]]:
    """`begin(model, text)`: a new session whose first turn is taken by a worker."""

    def start(model: str, text: str = "first") -> tuple[ChatSession, Turn]:
        chat = ChatSession.objects.create(
            workspace=workspace, owner=bob, connection=openai, model=model
        )
        turn = sending.send(chat.pk, bob, text, ring=False).turn
        assert turn is not None
        assert crew.take(turn.pk)
        return chat, turn

    return start


def speaks(chat: ChatSession) -> bool:
    return Message.objects.filter(chat=chat, role="assistant").exclude(text="").exists()


def transcript(chat: ChatSession) -> list[tuple[str, str, str]]:
    rows = Message.objects.filter(chat=chat, turn__isnull=False).order_by(
        "turn__number", "step", "role", "place", "seq"
    )
    return [(row.role, str(row.delivery), row.text[:20]) for row in rows]


def test_a_reply_is_stored_with_its_usage_and_the_next_turn_has_the_history(
    begin, crew, bob, fakes
):
    chat, turn = begin("echo", "one")
    assert ended(turn).state == Turn.State.DONE
    assert turn.input_tokens and turn.output_tokens
    finish(crew, sending.send(chat.pk, bob, "two", ring=False).turn)
    texts = [(row["role"], row["text"]) for row in fakes.requests()[-1]["texts"]]
    assert texts == [("user", "one"), ("assistant", "one"), ("user", "two")]
    assert fakes.requests()[-1]["tools"] == []


def test_a_steered_message_stands_between_two_replies_of_one_turn(begin, bob, fakes):
    chat, turn = begin("fast-30tps-45")
    until(lambda: speaks(chat))
    steered = sending.send(chat.pk, bob, "and be brief").message
    more = sending.send(chat.pk, bob, "in French").message
    assert {steered.delivery, more.delivery} == {"steering"}
    turn = ended(turn)
    assert turn.state == Turn.State.DONE, turn.error_detail
    assert [row[:2] for row in transcript(chat)] == [
        ("user", "sent"),
        ("assistant", "sent"),
        ("user", "delivered"),
        ("user", "delivered"),
        ("assistant", "sent"),
    ]
    assert [row[2] for row in transcript(chat)[2:4]] == ["and be brief", "in French"]
    assert Turn.objects.filter(chat=chat).count() == 1
    assert turn.step == 2
    first, second = fakes.requests()
    assert first["end"] == "done"
    assert [row["text"] for row in second["texts"]][-2:] == ["and be brief", "in French"]
    # Both replies count, and the context is that of the last.
    said = Message.objects.filter(chat=chat, role="assistant").order_by("step")
    assert [message.is_complete for message in said] == [True, True]
    assert turn.output_tokens == 90
    assert turn.context_tokens < turn.input_tokens + turn.output_tokens


def test_a_message_that_waits_can_be_changed_until_the_reply_ends(begin, bob, fakes):
    chat, turn = begin("fast-30tps-45")
    until(lambda: speaks(chat))
    kept = sending.send(chat.pk, bob, "kept").message
    changed = sending.send(chat.pk, bob, "as written").message
    gone = sending.send(chat.pk, bob, "never").message
    queueing.edit(chat.pk, changed.pk, bob, "as changed")
    queueing.cancel(chat.pk, gone.pk)
    ended(turn)
    texts = [row["text"] for row in fakes.requests()[-1]["texts"]]
    assert texts[-2:] == ["kept", "as changed"]
    kept.refresh_from_db()
    assert kept.delivery == "delivered"


def test_a_steered_image_reaches_the_model(begin, bob, fakes):
    chat, turn = begin("fast-30tps-45")
    until(lambda: speaks(chat))
    images = check_images([SimpleUploadedFile("x.png", png(), "image/png")])
    sending.send(chat.pk, bob, "look", images=images)
    assert ended(turn).state == Turn.State.DONE
    assert fakes.requests()[-1]["images"] == ["image/png"]


def test_stop_closes_the_request_and_steering_goes_on_once_in_a_turn_of_its_own(
    begin, crew, bob, fakes
):
    chat, turn = begin("fast-30tps-300")
    until(lambda: speaks(chat))
    sending.send(chat.pk, bob, "after the stop")
    choosing.choose_model(chat.pk, bob, "echo")
    turns.stop(chat.pk, bob, queued="continue")
    asked = time.monotonic()
    fakes.wait_for(lambda: fakes.requests(end="aborted"), seconds=5)
    assert time.monotonic() - asked < 2
    assert ended(turn).state == Turn.State.STOPPED
    follow = Turn.objects.get(chat=chat, number=2)
    crew.take(follow.pk)
    assert ended(follow).state == Turn.State.DONE
    assert transcript(chat)[-2:] == [
        ("user", "sent", "after the stop"),
        ("assistant", "sent", "after the stop"),
    ]
    assert len([r for r in fakes.requests() if r["last_user"] == "after the stop"]) == 1


def test_steering_of_a_reply_that_fails_is_queued_once(begin, bob):
    chat, turn = begin("stall")
    until(lambda: speaks(chat))
    sending.send(chat.pk, bob, "later")
    (pid,) = processes()
    os.kill(pid, signal.SIGKILL)
    turn = ended(turn)
    assert (turn.state, turn.error_kind) == ("failed", "process")
    waiting = Message.objects.get(chat=chat, text="later")
    assert (waiting.delivery, waiting.turn) == ("queued", None)
    assert Message.objects.get(chat=chat, role="assistant").text == "And then nothing"


def test_queue_means_a_turn_of_its_own(begin, crew, bob, fakes, openai):
    Connection.objects.update(mid_stream_behavior="queue")
    chat, turn = begin("fast-30tps-45")
    until(lambda: speaks(chat))
    assert sending.send(chat.pk, bob, "next").message.delivery == "queued"
    ended(turn)
    follow = Turn.objects.get(chat=chat, number=2)
    crew.take(follow.pk)
    assert ended(follow).state == Turn.State.DONE
    assert len(fakes.requests()) == 2


@pytest.mark.parametrize(("model", "kind"), [("err-401", "auth"), ("cut", "truncated")])
def test_a_failure_has_its_kind_and_is_not_tried_again(begin, fakes, model, kind):
    _, turn = begin(model)
    turn = ended(turn)
    assert (turn.state, turn.error_kind) == ("failed", kind)
    assert len(fakes.requests()) == 1


def test_who_waits_for_a_process_is_told_so(begin, crew, bob, fakes, monkeypatch):
    codex._semaphores.clear()
    said: list[tuple[str, str]] = []
    with override_settings(CODEX_PROCESSES=1):
        first, _ = begin("fast-30tps-300")
        until(lambda: speaks(first))
        add = crew.writer.add

        def spy(chat_id, name, data, **options):
            if name == "say":
                said.append((chat_id, notice(data["said"])))
            add(chat_id, name, data, **options)

        monkeypatch.setattr(crew.writer, "add", spy)
        second, other = begin("echo")
        until(lambda: said)
        turns.stop(first.pk, bob)
        assert ended(other).state == Turn.State.DONE
    assert said == [(str(second.pk), "Waiting for a free Codex process…"), (str(second.pk), "")]
    codex._semaphores.clear()


# -- claimed and not yet delivered -----------------------------------------------------------------


@pytest.fixture
def claimed(chat: ChatSession, bob: User, connection: Connection) -> tuple[Turn, Message]:
    """A running turn and a steering message that is with the provider."""
    Connection.objects.update(mid_stream_behavior="steer")
    turn = turns.claim(sending.send(chat.pk, bob, "first").turn.pk)
    steps.begin_step(turn, turn.lease_token, 1)
    message = sending.send(chat.pk, bob, "steered").message
    assert [one.pk for one in steps.claim_steering(turn, turn.lease_token)] == [message.pk]
    return turn, message


def test_a_claimed_message_is_claimed_once_and_changed_by_nobody(claimed, chat, bob):
    turn, message = claimed
    assert steps.claim_steering(turn, turn.lease_token) == []
    for change in (
        lambda: queueing.cancel(chat.pk, message.pk),
        lambda: queueing.edit(chat.pk, message.pk, bob, "other"),
        lambda: queueing.promote(chat.pk, message.pk),
    ):
        with pytest.raises(Refused):
            change()
    message.refresh_from_db()
    assert (message.delivery, message.text) == ("steering", "steered")
    # Nobody sees it twice: it waits, and isn't part of the turn so far.
    assert [one.pk for one in queueing.waiting(chat)] == [message.pk]


def test_a_receipt_delivers_it_into_the_step_before(claimed, chat):
    turn, message = claimed
    steps.begin_step(turn, turn.lease_token, 2, receipt=message.pk)
    message.refresh_from_db()
    assert (message.delivery, message.turn, message.step) == ("delivered", turn, 1)


def test_without_a_receipt_it_is_queued_once(claimed, chat):
    turn, message = claimed
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    message.refresh_from_db()
    follow = Turn.objects.get(chat=chat, number=2)
    assert (message.delivery, message.turn) == ("sent", follow)
    assert Message.objects.filter(chat=chat, role="user").count() == 2


def test_a_receipt_after_stop_changes_nothing(claimed, chat, bob):
    turn, message = claimed
    (returned,) = turns.stop(chat.pk, bob)
    assert returned.pk == message.pk
    steps.begin_step(turn, turn.lease_token, 2, receipt=message.pk)
    steps.deliver_steered(turn, turn.lease_token, message.pk, 1)
    message.refresh_from_db()
    assert (message.delivery, message.turn) == ("cancelled", None)


def test_after_stop_nothing_more_is_claimed(chat, bob, connection):
    Connection.objects.update(mid_stream_behavior="steer")
    turn = turns.claim(sending.send(chat.pk, bob, "first").turn.pk)
    sending.send(chat.pk, bob, "steered")
    Turn.objects.update(stop_requested_at="2026-01-01T00:00Z")
    assert steps.claim_steering(turn, turn.lease_token) == []


def test_a_lost_lease_claims_and_delivers_nothing(claimed, chat, bob):
    turn, message = claimed
    more = sending.send(chat.pk, bob, "more").message
    token = turn.lease_token
    Turn.objects.update(lease_token="00000000-0000-0000-0000-000000000001")
    with pytest.raises(LeaseLost):
        steps.claim_steering(turn, token)
    with pytest.raises(LeaseLost):
        steps.deliver_steered(turn, token, message.pk, 1)
    with pytest.raises(LeaseLost):
        steps.begin_step(turn, token, 2, receipt=message.pk)
    for one in (message, more):
        one.refresh_from_db()
        assert one.delivery == "steering"


# -- pages and the binary --------------------------------------------------------------------------


def test_the_page_says_that_workspace_tools_do_not_apply(client_for, bob, workspace, openai):
    client = client_for(bob)
    other = make_connection("other")
    chat = ChatSession.objects.create(workspace=workspace, owner=bob, connection=openai)
    page = client.get(chat.get_absolute_url()).content.decode()
    assert page.count("None: workspace tools don't apply") == 1
    assert "Workspace tools don't apply on this connection" in page
    chat.connection = other
    chat.save()
    page = client.get(chat.get_absolute_url()).content.decode()
    assert "Workspace tools don't apply on this connection" not in page


@pytest.mark.parametrize("paths", [(), ("/nowhere/codex",), ("codex",), ("/etc",)])
def test_without_the_binary_nothing_is_sent_and_the_sentence_names_the_command(
    client_for, alice, bob, workspace, openai, fakes, paths
):
    fakes.reset()
    with override_settings(CODEX_PATHS=paths):
        assert availability(openai) == "codex_missing"
        chat = ChatSession.objects.create(workspace=workspace, owner=bob, connection=openai)
        with pytest.raises(Refused) as refused:
            sending.send(chat.pk, alice, "hello")
        assert "make codex" in refused.value.sentence
    assert fakes.requests() == []


def test_a_path_that_the_operator_took_back_is_run_no_more(openai):
    assert availability(openai) is None
    openai.codex_path = "/opt/codex/codex"
    assert availability(openai) == "codex_missing"
