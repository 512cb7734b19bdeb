"""Usage: every ended turn counted once, on its day, and shown to whom it concerns."""

from __future__ import annotations

import csv
import datetime as dt
import io
import uuid
from decimal import Decimal

import pytest
from django.db import transaction
from django.utils import timezone

from connections.capabilities import cost_of
from connections.models import Connection
from connections.providers.base import Usage
from sessions import sending, steps, turns, usage
from sessions.models import ChatSession, Turn, UsageDay
from tests.builders import make_connection, make_member, make_user
from workspaces.models import Role

pytestmark = pytest.mark.django_db(transaction=True)


def used(chat, who, *, state=Turn.State.DONE, cost="0.5", tokens=(100, 10), text="hello"):
    turn = turns.claim(sending.send(chat.pk, who, text, ring=False).turn.pk)
    steps.begin_step(turn, turn.lease_token, 1)
    Turn.objects.filter(pk=turn.pk).update(input_tokens=tokens[0], output_tokens=tokens[1])
    turns.end(turn, turn.lease_token, state, cost=cost and Decimal(cost))
    return turn


def test_turns_add_up_on_their_day_however_they_end(chat, bob):
    used(chat, bob)
    used(chat, bob, state=Turn.State.STOPPED)
    used(chat, bob, state=Turn.State.FAILED, cost=None, tokens=(7, 0))
    (row,) = UsageDay.objects.all()
    assert (row.turns, row.input_tokens, row.output_tokens) == (3, 207, 20)
    assert (row.cost, row.unpriced, row.covered) == (Decimal("1.0"), 1, 0)
    assert (row.person, row.person_label) == (bob, "bob@example.com")
    assert row.day == timezone.now().astimezone(dt.UTC).date()


def test_a_turn_that_never_reached_a_provider_is_not_counted(chat, bob):
    turn = turns.claim(sending.send(chat.pk, bob, "hello", ring=False).turn.pk)
    turns.end(turn, turn.lease_token, Turn.State.FAILED, error_kind="disabled")
    assert not UsageDay.objects.exists()


def test_a_worker_that_vanished_in_mid_reply_counts_once(chat, bob):
    turn = turns.claim(sending.send(chat.pk, bob, "hello", ring=False).turn.pk)
    steps.begin_step(turn, turn.lease_token, 1)
    Turn.objects.update(input_tokens=5, lease_until=timezone.now() - dt.timedelta(seconds=1))
    turns.sweep()
    turns.sweep()
    assert UsageDay.objects.get().turns == 1


def test_a_signed_in_account_covers_its_turns(chat, bob, connection):
    Connection.objects.filter(pk=connection.pk).update(auth_type="oauth")
    connection.refresh_from_db()
    row = usage_row(chat, bob)
    assert (row.covered, row.unpriced) == (1, 0)
    spent = Usage(input_tokens=10, output_tokens=10)
    own = make_connection("claude", provider_type="anthropic")
    assert cost_of(own, "claude-sonnet-4-6", spent) is not None
    own.auth_type = "oauth"
    assert cost_of(own, "claude-sonnet-4-6", spent) is None


def usage_row(chat, bob):
    turn = Turn.objects.create(
        chat=chat, number=1, state="running", started_by=bob, request_sent=True, input_tokens=3
    )
    chat.connection = Connection.objects.get(slug="local")
    with transaction.atomic():
        usage.count(chat, turn)
    return UsageDay.objects.get()


def test_members_see_the_sums_and_of_people_themselves(client, chat, bob, workspace):
    carol = make_user("carol@example.com")
    make_member(workspace, carol)
    other = ChatSession.objects.create(workspace=workspace, owner=carol)
    used(chat, bob, cost="0.25")
    used(other, carol, cost="0.75")
    client.force_login(bob)
    page = client.get("/w/support/usage/").content.decode()
    assert "$1.00" in page
    page = client.get("/w/support/usage/?by=person").content.decode()
    assert "bob@example.com</td>" in page
    assert "carol@example.com" not in page
    export = client.get("/w/support/usage/export/?by=person").content.decode()
    assert "carol" not in export
    wadmin = make_user("wadmin@example.com")
    make_member(workspace, wadmin, Role.ADMIN)
    client.force_login(wadmin)
    page = client.get("/w/support/usage/?by=person").content.decode()
    assert "carol@example.com</td>" in page
    export = client.get("/w/support/usage/export/?by=model").content.decode()
    (row,) = csv.DictReader(io.StringIO(export))
    assert (row["model"], row["turns"], Decimal(row["cost"])) == ("small", "2", 1)


def test_a_chart_has_a_bar_for_each_day_that_was_used(client, chat, bob, alice):
    used(chat, bob)
    today = timezone.now().astimezone(dt.UTC).date()
    for days in (3, 40):
        row = UsageDay.objects.get(day=today)
        row.pk, row.day = uuid.uuid4(), today - dt.timedelta(days=days)
        row.save(force_insert=True)
    client.force_login(alice)
    for days, bars in ((7, 2), (90, 3)):
        page = client.get(f"/usage/?days={days}&by=workspace").content.decode()
        assert page.count("<rect ") == bars
    assert "Support" in page


def test_the_page_takes_the_same_queries_for_any_number(
    client, chat, bob, django_assert_max_num_queries
):
    today = timezone.now().astimezone(dt.UTC).date()
    UsageDay.objects.bulk_create(
        UsageDay(
            day=today - dt.timedelta(days=n % 90),
            workspace=chat.workspace,
            model=f"m{n}",
            turns=1,
            input_tokens=5,
        )
        for n in range(900)
    )
    client.force_login(bob)
    with django_assert_max_num_queries(7):
        page = client.get("/w/support/usage/?days=90&by=model").content.decode()
    assert page.count("<rect ") == 90


def test_what_was_deleted_keeps_its_name(client, chat, bob, workspace, alice):
    used(chat, bob)
    bob.chats.all().delete()
    bob.delete()
    client.force_login(alice)
    assert "bob@example.com" in client.get("/usage/?by=person").content.decode()
