"""Budgets: a month's total, its notice and its stop, over a workspace and over a connection."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.db import transaction

from connections import budgets
from connections.budgets import Limits
from connections.models import Budget
from connections.registry import Used
from tests.builders import make_connection, make_member, make_user, make_workspace
from workspaces.models import AuditEvent, Role

pytestmark = pytest.mark.django_db(transaction=True)

NOVEMBER = dt.datetime(2026, 11, 27, 12, tzinfo=dt.UTC)
DECEMBER = dt.datetime(2026, 12, 1, 0, 0, 1, tzinfo=dt.UTC)


@pytest.fixture
def design():
    return make_workspace("design")


@pytest.fixture
def local():
    return make_connection("local")


def limit(alice, target, now=NOVEMBER, **limits):
    budgets.set_limits(alice, target, Limits(**limits), now=now)
    return Budget.objects.get()


def spend(design, local, cost="0", tokens=0, now=NOVEMBER, **more):
    used = Used(Decimal(cost), tokens, **more)
    with transaction.atomic():
        budgets.add(used, workspace_id=design.pk, connection_id=local.pk, now=now)


def refusal(design, local, now=NOVEMBER):
    return budgets.refusal(design.pk, local.pk, now=now)


def test_a_hard_limit_names_the_budget_its_amount_and_the_day_it_begins_anew(alice, design, local):
    limit(alice, design, hard_cost=Decimal(50))
    spend(design, local, "49.999999")
    assert refusal(design, local) == ""
    spend(design, local, "0.000001")
    assert refusal(design, local) == (
        "Design has used its budget of $50.00 for November. It begins anew on 1 December."
    )


def test_a_connection_s_budget_holds_in_every_workspace_and_nowhere_else(alice, design, local):
    limit(alice, local, hard_tokens=2_000_000)
    spend(design, local, tokens=2_000_000)
    said = "The connection Local has used its budget of 2,000,000 tokens for November."
    assert refusal(make_workspace("sales"), local).startswith(said)
    assert refusal(design, make_connection("other")) == ""
    assert budgets.refusal(design.pk, None, now=NOVEMBER) == ""


def test_the_next_month_begins_anew_without_any_task(alice, design, local):
    limit(alice, design, hard_cost=Decimal(5))
    spend(design, local, "7")
    assert refusal(design, local)
    assert refusal(design, local, DECEMBER) == ""
    assert budgets.standing_of(design, now=DECEMBER).used == Used()
    spend(design, local, "1", now=DECEMBER)
    row = Budget.objects.get()
    assert (row.month, row.cost) == (dt.date(2026, 12, 1), 1)


def test_a_clock_that_lags_behind_takes_nothing_back(alice, design, local):
    limit(alice, design, hard_cost=Decimal(5))
    spend(design, local, "3", now=DECEMBER)
    spend(design, local, "3", now=NOVEMBER)
    assert "December" in refusal(design, local, NOVEMBER)


def test_each_passing_stands_once_a_month_in_the_audit_of_the_workspace(alice, design, local):
    limit(alice, design, soft_cost=Decimal(1), hard_cost=Decimal(3))
    for now in (NOVEMBER, DECEMBER):
        for _ in range(4):
            spend(design, local, "1", now=now)
    told = AuditEvent.objects.filter(action__in=("budget.soft", "budget.hard")).order_by("at")
    assert [(one.action, one.details["month"]) for one in told] == [
        *(("budget.soft", "2026-11"), ("budget.hard", "2026-11")),
        *(("budget.soft", "2026-12"), ("budget.hard", "2026-12")),
    ]
    assert {one.workspace_id for one in told} == {design.pk}
    assert {one.target_label for one in told} == {"Design"}


def test_limits_are_judged_and_taken_away(alice, design):
    with pytest.raises(ValidationError) as caught:
        budgets.set_limits(alice, design, Limits(soft_cost=Decimal(9), hard_cost=Decimal(5)))
    assert set(caught.value.error_dict) == {"soft_cost"}
    with pytest.raises(ValidationError):
        budgets.set_limits(alice, design, Limits(hard_tokens=0))
    assert not Budget.objects.exists()
    assert limit(alice, design, hard_tokens=5)
    assert budgets.set_limits(alice, design, Limits(hard_tokens=5)) is False
    assert budgets.set_limits(alice, design, Limits()) is True
    assert not Budget.objects.exists()
    actions = AuditEvent.objects.filter(action__startswith="budget.").order_by("at")
    assert [one.action for one in actions] == ["budget.update", "budget.remove"]


def test_a_look_is_one_query_whatever_was_used(alice, design, local, django_assert_num_queries):
    limit(alice, design, hard_cost=Decimal(5))
    budgets.set_limits(alice, local, Limits(hard_cost=Decimal(5)))
    with django_assert_num_queries(1):
        budgets.refusal(design.pk, local.pk)


# -- the pages -------------------------------------------------------------------------------------


def test_an_admin_gives_a_connection_a_budget_and_sees_it_there(client, alice, local):
    client.force_login(alice)
    assert "Set a budget" in client.get("/connections/local/").content.decode()
    data = {"soft_cost": "40", "hard_cost": "50", "hard_tokens": ""}
    response = client.post("/connections/local/budget/", data)
    assert (response.status_code, response.url) == (303, "/connections/local/")
    page = client.get("/connections/local/").content.decode()
    assert "of $50.00" in page
    assert "notice at $40.00" in page
    assert "Close to its budget" not in page
    Budget.objects.update(cost=41, unpriced=1)
    page = client.get("/connections/local/").content.decode()
    assert "Close to its budget" in page
    assert "Some of this use has no known price" in page
    Budget.objects.update(cost=51)
    assert "Budget used up" in client.get("/connections/local/").content.decode()


@pytest.mark.parametrize(
    ("name", "value"),
    [("hard_cost", "a lot"), ("hard_cost", "-1"), ("hard_tokens", "1.5"), ("soft_cost", "1e400")],
)
def test_what_makes_no_sense_comes_back_as_typed(client, alice, local, name, value):
    client.force_login(alice)
    response = client.post("/connections/local/budget/", {"soft_tokens": "7", name: value})
    assert response.status_code == 422
    page = response.content.decode()
    assert f'value="{value}"' in page
    assert 'value="7"' in page
    assert "Not saved yet" in page
    assert not Budget.objects.exists()


def test_a_workspace_s_admins_see_its_budget_and_members_do_not(client, alice, bob, workspace):
    client.force_login(alice)
    assert client.post("/w/support/usage/budget/", {"hard_cost": "12"}).status_code == 303
    assert "of $12.00" in client.get("/w/support/usage/").content.decode()
    wadmin = make_user("wadmin@example.com")
    make_member(workspace, wadmin, Role.ADMIN)
    client.force_login(wadmin)
    page = client.get("/w/support/usage/").content.decode()
    assert "of $12.00" in page
    assert "usage/budget/" not in page
    assert client.post("/w/support/usage/budget/", {"hard_cost": "99"}).status_code == 403
    client.force_login(bob)
    assert "of $12.00" not in client.get("/w/support/usage/").content.decode()
    assert Budget.objects.get().hard_cost == 12
