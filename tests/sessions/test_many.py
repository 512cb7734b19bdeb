"""What many rows cost: the same queries as few, and the indexes that were made for them."""

import datetime as dt

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from connections.models import Connection
from sessions.models import ChatSession, Message, Turn, UsageDay
from sessions.transcript import MOST_CARDS, PAGE
from sessions.usage import SHOWN
from tests.builders import make_connection, make_member, make_user, make_workspace
from tests.world import make_talk

pytestmark = pytest.mark.django_db


@pytest.fixture
def page(alice, client_for):
    return client_for(alice)


def cost(page, address):
    page.get(address)
    with CaptureQueriesContext(database) as queries:
        assert page.get(address).status_code == 200
    return len(queries)


@pytest.mark.skipif(database.vendor != "sqlite", reason="a plan of SQLite's")
def test_what_is_under_way_is_found_by_its_partial_index():
    active = Turn.objects.filter(state__among=Turn.ACTIVE, lease_until__lt=timezone.now())
    assert "active_turns" in active.order_by().explain()
    waiting = Message.objects.filter(delivery__among=Message.WAITING).order_by().values("chat")
    assert "waiting_messages" in waiting.explain()


def test_among_is_for_constants_alone():
    with pytest.raises(ValueError, match="constants"):
        list(Turn.objects.filter(state__among=["x' OR '1'='1"]))


def test_among_finds_what_in_finds(chat):
    turn = Turn.objects.create(chat=chat, number=1, state="running")
    Turn.objects.create(chat=chat, number=2, state="done")
    assert list(Turn.objects.filter(state__among=Turn.ACTIVE)) == [turn]
    assert Turn.objects.exclude(state__among=Turn.ACTIVE).get().number == 2
    assert list(ChatSession.objects.filter(turns__state__among=Turn.ACTIVE)) == [chat]


def test_a_session_costs_the_same_for_any_number_of_turns(page, workspace, alice, connection):
    chat = make_talk(workspace, alice, connection).chat

    def add(first, count):
        turns = [Turn(chat=chat, number=first + n, state="done") for n in range(count)]
        Turn.objects.bulk_create(turns)
        Message.objects.bulk_create(
            Message(
                chat=chat, turn=turn, seq=turn.number * 3 + step, step=step, role=role, text="a"
            )
            for turn in turns
            for step, role in enumerate(("user", "assistant"))
        )

    add(2, 3)
    few = cost(page, chat.get_absolute_url())
    add(5, 2 * PAGE)
    assert cost(page, chat.get_absolute_url()) == few
    html = page.get(chat.get_absolute_url()).text
    assert html.count('<section class="turn"') == PAGE
    older = page.get(f"{chat.get_absolute_url()}turns/?before={PAGE + 5}").text
    assert f'id="turn-{PAGE + 4}"' in older


def test_a_new_session_offers_every_connection_at_the_same_cost(
    page, workspace, alice, connection, chat
):
    chat.owner = alice
    chat.save()
    here = chat.get_absolute_url()
    few = cost(page, here)
    for n in range(MOST_CARDS + 100):
        make_connection(f"c{n:03}", position=n + 1)
    assert cost(page, here) == few
    html = page.get(here).text
    assert html.count('class="capability"') == MOST_CARDS
    assert html.count("<option value=") >= 101
    far = f"c{MOST_CARDS + 99:03}"
    assert f'<option value="{far}">' in html
    page.post(f"{here}connection/", {"connection": far})
    assert cost(page, here) == few
    chosen = page.get(here).text
    assert f'name="connection" value="{far}" checked' in chosen
    assert f'<option value="{far}">' not in chosen


def test_the_first_usable_connection_may_stand_behind_a_hundred_that_are_not(workspace):
    from connections.resolve import resolve

    for n in range(120):
        make_connection(f"c{n:03}", key=None, position=n)
    last = make_connection("usable", position=200)
    assert resolve(workspace).connection == last


def test_the_ai_settings_take_a_connection_from_far_back(page, workspace):
    for n in range(110):
        make_connection(f"c{n:03}", position=n)
    html = page.get("/w/support/settings/ai/?page=4&without=c105").text
    assert 'id="connection-c105"' in html
    assert "Without c105" in html.replace("C105", "c105")


def test_switching_off_costs_the_same_for_any_number_of_workspaces(page, workspace, bob):
    def add(names):
        for name in names:
            space = make_workspace(name)
            make_member(space, bob)
            make_member(space, make_user(f"heir-{name}@example.com"))
            ChatSession.objects.create(workspace=space, owner=bob)

    here = f"/people/{bob.pk}/deactivate/"
    add(["one"])
    few = cost(page, here)
    add(["two", "three", "four"])
    assert cost(page, here) == few
    html = page.get(here).text
    assert all(f"heir-{name}@example.com" in html for name in ("one", "two", "three", "four"))


def test_usage_names_the_largest_and_sums_up_the_others(page, workspace, bob):
    def add(first, count):
        UsageDay.objects.bulk_create(
            UsageDay(
                day=timezone.now().astimezone(dt.UTC).date(),
                workspace=workspace,
                workspace_label="Support",
                connection_label=f"Connection {n}",
                person=bob,
                person_label="bob",
                model=f"m{n}",
                turns=1,
                input_tokens=1000 + n,
            )
            for n in range(first, first + count)
        )

    add(0, 3)
    few = cost(page, "/w/support/usage/")
    assert "All others" not in page.get("/w/support/usage/").text
    add(3, SHOWN + 4)
    assert cost(page, "/w/support/usage/") == few
    html = page.get("/w/support/usage/").text
    assert "All others, in the CSV" in html
    assert html.count("<td data-main>") == SHOWN + 1
    assert f"Connection {SHOWN + 6}<" in html
    assert "Connection 0<" not in html
    assert page.get("/w/support/usage/export/").text.count("\n") >= SHOWN + 7
    assert Connection.objects.count() == 0
