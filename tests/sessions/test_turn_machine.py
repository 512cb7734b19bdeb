"""The turn machine on the database alone: what each verb does, and what it refuses."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable

import pytest
from django.db import IntegrityError, connections, transaction
from django.utils import timezone

from connections.models import Connection
from sessions import choosing, queueing, sending, steps, turns
from sessions.leases import LeaseLost
from sessions.models import ChatSession, Message, Turn
from sessions.refusals import Locked, Refused
from tests.builders import give_access, make_connection
from workspaces.models import AuditEvent, User

pytestmark = pytest.mark.django_db(transaction=True)


def deliveries(chat: ChatSession) -> list[tuple[str, str]]:
    rows = Message.objects.filter(chat=chat, role="user").order_by("seq")
    return [(row.text, str(row.delivery)) for row in rows]


def running(chat: ChatSession, bob: User, text: str = "first") -> Turn:
    """A session whose first turn is claimed and has sent its request."""
    sent = sending.send(chat.pk, bob, text)
    turn = turns.claim(sent.turn.pk)
    assert turn is not None
    steps.begin_step(turn, turn.lease_token, 1)
    return turn


def together(count: int, act: Callable[[int], object]) -> list[object]:
    """Runs `act(0..count-1)` at the same moment in threads; results or exceptions, in order."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = act(number)
        except Exception as error:
            results[number] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# -- the lock --------------------------------------------------------------------------------------


def test_the_first_message_locks_the_resolved_connection(chat, bob, connection):
    sending.send(chat.pk, bob, "hello")
    chat.refresh_from_db()
    assert (chat.connection, chat.model) == (connection, "small")
    assert chat.is_locked
    assert chat.title == "hello"
    assert AuditEvent.objects.filter(action="session.lock", target_id=str(chat.pk)).count() == 1


def test_a_locked_session_refuses_another_connection(chat, bob):
    other = make_connection("other")
    sending.send(chat.pk, bob, "hello")
    with pytest.raises(Locked):
        choosing.choose_connection(chat.pk, bob, other)
    chat.refresh_from_db()
    assert chat.connection != other


def test_two_first_messages_on_different_choices_give_one_lock(chat, bob, connection):
    other = make_connection("other")

    def choose_and_send(number: int) -> object:
        choosing.choose_connection(chat.pk, bob, other if number % 2 else connection)
        return sending.send(chat.pk, bob, f"message {number}")

    results = together(4, choose_and_send)
    sent = [result for result in results if isinstance(result, sending.Sent)]
    assert sent, results
    chat.refresh_from_db()
    locked = AuditEvent.objects.filter(action="session.lock", target_id=str(chat.pk))
    assert [event.details["connection"] for event in locked] == [chat.connection.slug]
    assert Turn.objects.filter(chat=chat, state__in=Turn.ACTIVE).count() == 1


def test_a_disabled_connection_refuses_and_never_falls_through(chat, bob, connection):
    make_connection("other")
    sending.send(chat.pk, bob, "hello")
    Connection.objects.filter(pk=connection.pk).update(enabled=False)
    with pytest.raises(Refused) as refused:
        sending.send(chat.pk, bob, "again")
    assert refused.value.kind == "disabled"
    chat.refresh_from_db()
    assert chat.connection == connection
    assert deliveries(chat) == [("hello", "sent")]


def test_a_model_outside_the_workspaces_models_is_refused(chat, bob, connection):
    give_access(chat.workspace, connection, allowed_models=["small"])
    with pytest.raises(Refused):
        choosing.choose_model(chat.pk, bob, "large")
    choosing.choose_model(chat.pk, bob, "small")


# -- sending ---------------------------------------------------------------------------------------


def test_the_same_client_key_is_one_message(chat, bob):
    results = together(6, lambda number: sending.send(chat.pk, bob, "hello", client_key="k1"))
    assert sum(result.created for result in results) == 1
    assert len({result.message.pk for result in results}) == 1
    assert Turn.objects.filter(chat=chat).count() == 1


def test_an_empty_message_is_refused_and_locks_nothing(chat, bob):
    with pytest.raises(Refused):
        sending.send(chat.pk, bob, "  \n ")
    chat.refresh_from_db()
    assert not chat.is_locked


def test_nul_and_lone_surrogates_are_replaced(chat, bob):
    sent = sending.send(chat.pk, bob, "a\x00b\ud83dc")
    sent.message.refresh_from_db()
    assert sent.message.text == "a\ufffdb\ufffdc"


@pytest.mark.parametrize(("behaviour", "delivery"), [("steer", "steering"), ("queue", "queued")])
def test_a_mid_stream_message_follows_the_connections_behaviour(
    chat, bob, connection, behaviour, delivery
):
    running(chat, bob)
    # The setting counts at the moment of sending.
    Connection.objects.filter(pk=connection.pk).update(mid_stream_behavior=behaviour)
    sending.send(chat.pk, bob, "second")
    assert deliveries(chat) == [("first", "sent"), ("second", delivery)]


def test_the_database_allows_one_active_turn_a_session(chat, bob):
    sending.send(chat.pk, bob, "hello")
    with pytest.raises(IntegrityError), transaction.atomic():
        Turn.objects.create(chat=chat, number=99)


def test_fifty_sends_at_once_keep_one_active_turn_and_every_message(chat, bob, connection):
    Connection.objects.filter(pk=connection.pk).update(mid_stream_behavior="queue")
    results = together(
        10,
        lambda n: [sending.send(chat.pk, bob, f"m{n}-{i}", client_key=f"{n}-{i}") for i in (1, 2)],
    )
    assert all(isinstance(result, list) for result in results), results
    rows = list(Message.objects.filter(chat=chat).order_by("seq").values_list("seq", flat=True))
    assert rows == list(range(1, 21))
    assert Turn.objects.filter(chat=chat).count() == 1


# -- claims and leases -----------------------------------------------------------------------------


def test_a_task_delivered_many_times_at_once_gives_one_claim(chat, bob):
    turn = sending.send(chat.pk, bob, "hello").turn
    results = together(8, lambda number: turns.claim(turn.pk))
    assert sum(result is not None for result in results) == 1, results


def test_a_claim_of_a_turn_that_is_over_finds_nothing(chat, bob):
    turn = running(chat, bob)
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    assert turns.claim(turn.pk) is None


def test_the_use_of_a_secret_is_audited_once_a_turn(chat, bob, connection):
    running(chat, bob)
    event = AuditEvent.objects.get(action="secret.use")
    assert event.target_id == str(connection.pk)
    assert event.details["host"] == "https://llm.example.com:443"


def test_a_worker_that_lost_its_lease_cannot_write(chat, bob):
    turn = running(chat, bob)
    reply = Message.objects.get(turn=turn, role="assistant")
    Turn.objects.filter(pk=turn.pk).update(lease_until=timezone.now() - dt.timedelta(seconds=1))
    turns.sweep()
    token = turn.lease_token
    late = steps.Progress(turn.pk, token, reply.pk, "x", [], "")
    assert steps.save_progress([late]) == {token}
    assert not Message.objects.filter(text="x").exists()
    with pytest.raises(LeaseLost):
        steps.begin_step(turn, token, 2)
    with pytest.raises(LeaseLost):
        turns.end(turn, token, Turn.State.DONE)
    turn.refresh_from_db()
    assert turn.state == Turn.State.INTERRUPTED


def test_a_lease_lost_before_the_request_is_claimed_again_three_times(chat, bob):
    turn = sending.send(chat.pk, bob, "hello").turn
    for _ in range(3):
        assert turns.claim(turn.pk) is not None
        Turn.objects.filter(pk=turn.pk).update(lease_until=timezone.now() - dt.timedelta(seconds=1))
        turns.sweep()
    turn.refresh_from_db()
    assert (turn.state, turn.error_kind) == (Turn.State.FAILED, "worker_lost")


def test_a_turn_put_back_by_workers_that_end_in_good_order_is_claimed_again_and_again(chat, bob):
    turn = sending.send(chat.pk, bob, "hello").turn
    for _ in range(5):
        claimed = turns.claim(turn.pk)
        assert claimed is not None
        turns.end(claimed, claimed.lease_token, Turn.State.INTERRUPTED)
    turn.refresh_from_db()
    assert (turn.state, turn.claims) == (Turn.State.PENDING, 0)


def test_a_claim_and_a_stop_at_the_same_moment_both_go_through(workspace, bob, connection):
    """Both want the session and the turn: in two orders they would wait for each other."""
    for _ in range(5):
        chat = ChatSession.objects.create(workspace=workspace, owner=bob)
        turn = sending.send(chat.pk, bob, "hello").turn
        acts = [lambda pk=turn.pk: turns.claim(pk), lambda pk=chat.pk: turns.stop(pk, bob)]
        results = together(8, lambda number, acts=acts: acts[number % 2]())
        assert not [result for result in results if isinstance(result, Exception)], results
        turn.refresh_from_db()
        assert turn.state == Turn.State.STOPPED or turn.stop_requested_at is not None


def test_an_interrupted_turn_keeps_its_text_and_the_queue_goes_on(chat, bob, connection):
    Connection.objects.filter(pk=connection.pk).update(mid_stream_behavior="queue")
    turn = running(chat, bob)
    sending.send(chat.pk, bob, "second")
    reply = Message.objects.get(turn=turn, role="assistant")
    parts = [{"t": "text", "text": "so far"}]
    far = steps.Progress(turn.pk, turn.lease_token, reply.pk, "so far", parts, "1-0")
    assert steps.save_progress([far]) == set()
    Turn.objects.filter(pk=turn.pk).update(lease_until=timezone.now() - dt.timedelta(seconds=1))
    turns.sweep()
    turn.refresh_from_db()
    reply.refresh_from_db()
    assert (turn.state, reply.text, reply.is_complete) == ("interrupted", "so far", True)
    following = Turn.objects.get(chat=chat, number=2)
    assert following.state == Turn.State.PENDING
    assert deliveries(chat) == [("first", "sent"), ("second", "sent")]


def test_the_sweep_finds_a_pending_turn_that_no_doorbell_reached(chat, bob):
    turn = sending.send(chat.pk, bob, "hello", ring=False).turn
    Turn.objects.filter(pk=turn.pk).update(created_at=timezone.now() - dt.timedelta(seconds=5))
    assert turns.sweep() == [turn.pk]


def test_many_sweeps_at_once_are_harmless(chat, bob, connection):
    Connection.objects.filter(pk=connection.pk).update(mid_stream_behavior="queue")
    turn = running(chat, bob)
    for number in range(3):
        sending.send(chat.pk, bob, f"queued {number}")
    Turn.objects.filter(pk=turn.pk).update(lease_until=timezone.now() - dt.timedelta(seconds=1))
    results = together(4, lambda number: turns.sweep())
    assert not [result for result in results if isinstance(result, Exception)], results
    assert Turn.objects.filter(chat=chat).count() == 2


# -- steering --------------------------------------------------------------------------------------


def test_steering_is_taken_between_steps_in_order(chat, bob):
    turn = running(chat, bob)
    sending.send(chat.pk, bob, "one")
    sending.send(chat.pk, bob, "two")
    step = steps.begin_step(turn, turn.lease_token, 2)
    assert [message.text for message in step.steered] == ["one", "two"]
    assert deliveries(chat)[1:] == [("one", "delivered"), ("two", "delivered")]
    assert set(Message.objects.filter(text__in=["one", "two"]).values_list("step", flat=True)) == {
        1
    }


def test_steering_that_was_not_delivered_is_queued_once_as_the_same_message(chat, bob):
    turn = running(chat, bob)
    late = sending.send(chat.pk, bob, "late").message
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    late.refresh_from_db()
    following = Turn.objects.get(chat=chat, number=2)
    assert (late.delivery, late.turn) == ("sent", following)
    assert Message.objects.filter(chat=chat, text="late").count() == 1


def test_a_send_at_the_instant_of_the_end_is_delivered_exactly_once(chat, bob):
    turn = running(chat, bob)
    together(
        2,
        lambda number: (
            sending.send(chat.pk, bob, "edge")
            if number
            else turns.end(turn, turn.lease_token, Turn.State.DONE)
        ),
    )
    edge = Message.objects.get(chat=chat, text="edge")
    assert edge.turn is not None and edge.turn.number == 2
    assert Turn.objects.filter(chat=chat).count() == 2


# -- the queue -------------------------------------------------------------------------------------


@pytest.fixture
def queue(chat, bob, connection) -> list[Message]:
    """A running turn and three queued messages behind it."""
    Connection.objects.filter(pk=connection.pk).update(mid_stream_behavior="queue")
    running(chat, bob)
    return [sending.send(chat.pk, bob, text).message for text in ("a", "b", "c")]


def end_running(chat: ChatSession, state: Turn.State, **why: object) -> None:
    turn = Turn.objects.get(chat=chat, state__in=Turn.ACTIVE)
    if turn.state == Turn.State.PENDING:
        turn = turns.claim(turn.pk)
    turns.end(turn, turn.lease_token, state, **why)


def test_queued_messages_are_answered_one_turn_each_in_order(chat, queue):
    for _ in range(4):
        end_running(chat, Turn.State.DONE)
    rows = Message.objects.filter(chat=chat, role="user").order_by("turn__number")
    assert [(row.text, row.turn.number) for row in rows] == [
        ("first", 1),
        ("a", 2),
        ("b", 3),
        ("c", 4),
    ]


def test_queued_messages_can_be_reordered_edited_and_cancelled(chat, queue):
    a, b, c = queue
    queueing.move(chat.pk, c.pk, earlier=True)
    queueing.move(chat.pk, c.pk, earlier=True)
    queueing.edit(chat.pk, a.pk, a.author, "a, edited")
    queueing.cancel(chat.pk, b.pk)
    assert [message.text for message in queueing.waiting(chat)] == ["c", "a, edited"]


def test_a_queued_message_can_be_promoted_to_steering(chat, queue):
    queueing.promote(chat.pk, queue[1].pk)
    turn = Turn.objects.get(chat=chat, state="running")
    step = steps.begin_step(turn, turn.lease_token, 2)
    assert [message.text for message in step.steered] == ["b"]


def test_a_claimed_message_cannot_be_changed_any_more(chat, queue):
    end_running(chat, Turn.State.DONE)
    for act in (
        lambda: queueing.edit(chat.pk, queue[0].pk, queue[0].author, "x"),
        lambda: queueing.cancel(chat.pk, queue[0].pk),
        lambda: queueing.promote(chat.pk, queue[0].pk),
    ):
        with pytest.raises(Refused):
            act()


@pytest.mark.parametrize("kind", ["auth", "forbidden", "quota", "sealed", "disabled", "deleted"])
def test_a_failure_that_another_try_cannot_cure_pauses_the_queue(chat, queue, kind):
    end_running(chat, Turn.State.FAILED, error_kind=kind)
    chat.refresh_from_db()
    assert chat.queue_paused == kind
    assert not Turn.objects.filter(chat=chat, state__in=Turn.ACTIVE).exists()
    turns.sweep()
    assert not Turn.objects.filter(chat=chat, state__in=Turn.ACTIVE).exists()
    queueing.resume(chat.pk)
    assert Turn.objects.get(chat=chat, state__in=Turn.ACTIVE).number == 2


@pytest.mark.parametrize("kind", ["server", "timeout", "internal", "turn_timeout", "worker_lost"])
def test_after_another_failure_the_next_waits_and_three_in_a_row_pause(chat, queue, kind):
    for expected in (5, 10):
        end_running(chat, Turn.State.FAILED, error_kind=kind)
        chat.refresh_from_db()
        wait = (chat.queue_not_before - timezone.now()).total_seconds()
        assert expected - 2 < wait <= expected
        assert not Turn.objects.filter(chat=chat, state__in=Turn.ACTIVE).exists()
        ChatSession.objects.filter(pk=chat.pk).update(queue_not_before=timezone.now())
        turns.sweep()
    end_running(chat, Turn.State.FAILED, error_kind=kind)
    chat.refresh_from_db()
    assert chat.queue_paused == kind


def test_retry_after_sets_the_wait(chat, queue):
    end_running(chat, Turn.State.FAILED, error_kind="rate_limited", retry_after=42.0)
    chat.refresh_from_db()
    assert 39 < (chat.queue_not_before - timezone.now()).total_seconds() <= 42


# -- stop and retry --------------------------------------------------------------------------------


def test_stop_returns_the_queued_texts_or_lets_them_go_on(chat, queue):
    assert [message.text for message in turns.stop(chat.pk, chat.owner)] == ["a", "b", "c"]
    assert {delivery for _, delivery in deliveries(chat)[1:]} == {"cancelled"}
    end_running(chat, Turn.State.STOPPED)
    assert not Turn.objects.filter(chat=chat, state__in=Turn.ACTIVE).exists()


def test_what_waits_stands_in_the_order_in_which_it_goes(chat, queue):
    queueing.promote(chat.pk, queueing.waiting(chat)[2].pk)
    assert [message.text for message in queueing.waiting(chat)] == ["c", "a", "b"]
    assert [message.text for message in queueing.waiting_messages(chat)] == ["c", "a", "b"]


def test_stop_leaves_colleagues_messages_in_the_queue(chat, bob, alice, queue):
    sending.send(chat.pk, alice, "from alice")
    assert [message.text for message in turns.stop(chat.pk, alice)] == ["from alice"]
    assert [message.text for message in queueing.waiting(chat)] == ["a", "b", "c"]


def test_a_colleague_cannot_rewrite_what_goes_out_under_anothers_name(chat, alice, queue):
    with pytest.raises(Refused):
        queueing.edit(chat.pk, queue[0].pk, alice, "something else")


def test_stop_with_continue_goes_on_with_the_queue(chat, queue):
    assert turns.stop(chat.pk, chat.owner, queued="continue") == []
    end_running(chat, Turn.State.STOPPED)
    assert Turn.objects.get(chat=chat, state="pending").number == 2


def test_stop_with_another_word_changes_nothing(chat, queue):
    with pytest.raises(Refused):
        turns.stop(chat.pk, chat.owner, queued="Continue")
    assert {delivery for _, delivery in deliveries(chat)[1:]} == {"queued"}
    assert not Turn.objects.filter(chat=chat, stop_requested_at__isnull=False).exists()


def test_stop_ends_a_turn_that_no_worker_has_taken(chat, bob):
    sending.send(chat.pk, bob, "hello")
    turns.stop(chat.pk, bob)
    assert Turn.objects.get(chat=chat).state == Turn.State.STOPPED


def test_a_message_sent_after_stop_waits_for_its_own_turn(chat, bob):
    turn = running(chat, bob)
    turns.stop(chat.pk, bob)
    sending.send(chat.pk, bob, "next")
    assert deliveries(chat)[1] == ("next", "queued")
    turns.end(turn, turn.lease_token, Turn.State.STOPPED)
    assert Turn.objects.get(chat=chat, state="pending").number == 2


def test_retry_runs_the_last_turn_again_with_all_that_people_said(chat, bob):
    turn = running(chat, bob)
    sending.send(chat.pk, bob, "steered")
    steps.begin_step(turn, turn.lease_token, 2)
    turns.end(turn, turn.lease_token, Turn.State.FAILED, error_kind="server")
    again = turns.retry(chat.pk, bob)
    assert (again.pk, again.number) == (turn.pk, 1)
    rows = Message.objects.filter(turn=turn).order_by("place")
    assert [(row.text, row.step) for row in rows] == [("first", 0), ("steered", 0)]
    again.refresh_from_db()
    assert (again.state, again.error_kind, again.claims) == ("pending", "", 0)


def test_a_first_step_begun_twice_of_a_retried_turn_steers_nothing_in(chat, bob):
    turn = running(chat, bob)
    sending.send(chat.pk, bob, "steered")
    steps.begin_step(turn, turn.lease_token, 2)
    turns.end(turn, turn.lease_token, Turn.State.FAILED, error_kind="server")
    again = turns.claim(turns.retry(chat.pk, bob).pk)
    first = steps.begin_step(again, again.lease_token, 1)
    # Nobody knew whether the commit arrived. The history has the message already.
    second = steps.begin_step(again, again.lease_token, 1)
    assert (second.message_id, first.steered, second.steered) == (first.message_id, [], [])


def test_a_done_turn_cannot_be_retried(chat, bob):
    turn = running(chat, bob)
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    with pytest.raises(Refused):
        turns.retry(chat.pk, bob)
