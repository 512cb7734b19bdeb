"""Statements that are built once: they find, write and lock what the ORM would."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
from django.db import connection, transaction
from django.db.models import Exists, OuterRef
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from sessions.models import ChatSession, Message, Turn
from tests.builders import make_connection, make_user, make_workspace
from workspaces.statements import Select, insert, prefetched, update

pytestmark = pytest.mark.django_db


@pytest.fixture
def chat():
    connection = make_connection(models=["small", {"id": "large"}])
    return ChatSession.objects.create(
        workspace=make_workspace(), owner=make_user(), connection=connection, title="One"
    )


def test_rows_are_what_the_orm_makes_of_them(chat):
    chats = ChatSession.objects.select_related("workspace", "owner", "connection", "continued_from")
    select = Select(lambda chat_id: chats.filter(pk=chat_id))
    theirs = chats.get(pk=chat.pk)
    for _again in range(2):
        with CaptureQueriesContext(connection) as seen:
            ours = select.first(chat.pk)
            for name in ("workspace", "owner", "connection"):
                one, other = getattr(ours, name), getattr(theirs, name)
                assert (one, vars(one).keys()) == (other, vars(other).keys())
            assert ours.connection.models == theirs.connection.models
            assert ours.continued_from is None
        assert len(seen) == 1
        values = {f.attname: getattr(theirs, f.attname) for f in ChatSession._meta.concrete_fields}
        assert {name: getattr(ours, name) for name in values} == values
        assert not ours._state.adding


def test_each_call_brings_its_own_values(chat):
    select = Select(
        lambda chat_id, since: (
            Message.objects.filter(chat_id=chat_id, created_at__gte=since)
            .exclude(delivery__in=Message.WAITING)
            .order_by("-seq")
        )
    )
    now = timezone.now()
    for seq in (1, 2, 3):
        delivery = "queued" if seq == 2 else "sent"
        Message.objects.create(chat=chat, seq=seq, role="user", delivery=delivery)
    assert [m.seq for m in select.all(chat.pk, now)] == [3, 1]
    assert select.all(uuid.uuid4(), now) == []
    assert select.all(chat.pk, timezone.now() + dt.timedelta(hours=1)) == []
    assert select.first(uuid.uuid4(), now) is None


def test_none_is_refused_rather_than_compared(chat):
    select = Select(lambda source: ChatSession.objects.filter(continued_from_id=source))
    with pytest.raises(TypeError):
        select.all(chat.continued_from_id)


def test_annotations_and_values_come_along(chat):
    Turn.objects.create(chat=chat, number=1)
    turns = Turn.objects.filter(chat=OuterRef("pk"))
    annotated = Select(
        lambda chat_id: ChatSession.objects.filter(pk=chat_id).annotate(has_turns=Exists(turns))
    )
    assert annotated.first(chat.pk).has_turns is True
    values = Select(
        lambda chat_id: ChatSession.objects.filter(pk=chat_id).values_list("pk", "title")
    )
    assert values.all(chat.pk) == [(chat.pk, "One")]


def test_a_query_that_prefetches_is_refused(chat):
    with pytest.raises(AssertionError):
        Select(lambda: ChatSession.objects.prefetch_related("turns")).all()


def test_a_row_is_inserted_as_the_orm_does(chat):
    turn = Turn(chat=chat, number=1, model="small")
    insert(turn)
    message = Message(chat=chat, seq=1, role="user", text="é", parts=[{"t": "text"}], turn=turn)
    insert(message)
    stored = Message.objects.get()
    for field in Message._meta.concrete_fields:
        assert getattr(stored, field.attname) == getattr(message, field.attname), field.name
    assert not message._state.adding


def test_an_update_leaves_other_columns_alone(chat):
    ChatSession.objects.filter(pk=chat.pk).update(title="Theirs")
    chat.title, chat.version, chat.queue_not_before = "Ours", 7, None
    assert update(chat, "version", "queue_not_before")
    stored = ChatSession.objects.get()
    assert (stored.title, stored.version) == ("Theirs", 7)


def test_an_update_with_a_condition_says_whether_it_held(chat):
    token = uuid.uuid4()
    turn = Turn.objects.create(chat=chat, number=1, state="running", lease_token=token)
    turn.step = 3
    assert not update(turn, "step", lease_token=uuid.uuid4(), state="running")
    assert Turn.objects.get().step == 0
    assert update(turn, "step", lease_token=token, state=Turn.State.RUNNING)
    assert Turn.objects.get().step == 3
    turn.delete()
    assert not update(Turn(pk=uuid.uuid4(), step=1), "step")


def test_related_rows_that_are_known_cost_no_query(chat):
    prefetched(chat, "turns", [Turn(chat=chat, number=5)], Turn)
    with CaptureQueriesContext(connection) as seen:
        assert [turn.number for turn in chat.turns.all()] == [5]
    assert not seen.captured_queries


def test_a_lock_is_taken_again_at_each_call(chat):
    select = Select(lambda chat_id: ChatSession.objects.select_for_update().filter(pk=chat_id))
    for _again in range(2):
        with transaction.atomic(), CaptureQueriesContext(connection) as seen:
            select.first(chat.pk)
        has_lock = "FOR UPDATE" in seen.captured_queries[0]["sql"]
        assert has_lock == (connection.vendor == "postgresql")


@pytest.mark.django_db(transaction=True)
def test_a_lock_without_a_transaction_would_hold_nothing(chat):
    select = Select(lambda chat_id: ChatSession.objects.select_for_update().filter(pk=chat_id))
    with transaction.atomic():
        assert select.first(chat.pk) == chat
    with pytest.raises(TransactionManagementError):
        select.first(chat.pk)
