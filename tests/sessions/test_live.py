"""Who uses a connection now: shown to instance admins on its page, and stopped from there."""

import uuid

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext

from connections.registry import live_on
from sessions import sending, steps, turns
from sessions.models import ChatSession, Turn
from tests.builders import make_connection, make_workspace
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db

PAGE, STOP = "/connections/local/", "/connections/local/live/stop/"
ASK = {"HTTP_HX_REQUEST": "true", "HTTP_HX_TARGET": "live"}


@pytest.fixture
def page(alice, client_for):
    return client_for(alice)


def running(chat, person, text="the plan of the merger"):
    turn = turns.claim(sending.send(chat.pk, person, text).turn.pk)
    steps.begin_step(turn, turn.lease_token, 1)
    return turn


def test_a_private_session_shows_its_workspace_and_person_alone(chat, bob, page):
    running(chat, bob)
    sending.send(chat.pk, bob, "and a question behind it")
    html = page.get(PAGE, **ASK).text
    assert html.lstrip().startswith('<section class="section" id="live"')
    for words in ("Private session", "Support", bob.email, "1 reply under way", "1 message waits"):
        assert words in html
    assert "merger" not in html
    assert str(chat.pk) not in html
    assert "merger" not in page.get(PAGE).text


def test_a_shared_session_shows_its_title_and_the_way_there(chat, bob, page):
    ChatSession.objects.update(shared=True)
    running(chat, bob)
    html = page.get(PAGE, **ASK).text
    assert "the plan of the merger" in html
    assert f'href="/w/support/sessions/{chat.pk}/"' in html


def test_stop_ends_that_reply_and_no_later_one(chat, bob, alice, page, connection):
    first = running(chat, bob)
    answer = page.post(STOP, {"turn": str(first.pk)})
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{PAGE}#live")
    first.refresh_from_db()
    assert first.stop_requested_at is not None
    assert "Being stopped" in page.get(PAGE, **ASK).text
    event = AuditEvent.objects.get(action="session.stop")
    assert (event.actor, event.workspace_id) == (alice, chat.workspace_id)
    assert event.details == {"session": str(chat.pk), "person": bob.email}
    assert "merger" not in event.target_label
    turns.end(first, first.lease_token, Turn.State.STOPPED)
    second = running(chat, bob, "go on")
    page.post(STOP, {"turn": str(first.pk)})  # of a page that is out of date
    second.refresh_from_db()
    assert second.stop_requested_at is None
    assert AuditEvent.objects.filter(action="session.stop").count() == 1


def test_stop_all_stops_those_of_this_connection(chat, workspace, bob, page, connection):
    elsewhere = ChatSession.objects.create(
        workspace=workspace, owner=bob, connection=make_connection("other")
    )
    pending = ChatSession.objects.create(workspace=workspace, owner=bob)
    here, there = running(chat, bob), running(elsewhere, bob)
    waits = sending.send(pending.pk, bob, "hello").turn
    assert page.post(STOP, {"turn": "all"}).status_code == 303
    for turn in (here, there, waits):
        turn.refresh_from_db()
    assert (here.stop_requested_at is None, there.stop_requested_at is None) == (False, True)
    assert waits.state == "stopped"
    assert AuditEvent.objects.filter(action="session.stop").count() == 2
    page.post(STOP, {"turn": "all"})
    assert AuditEvent.objects.filter(action="session.stop").count() == 2


def test_another_connections_reply_is_not_stopped_from_here(chat, bob, page):
    make_connection("other")
    turn = running(chat, bob)
    page.post("/connections/other/live/stop/", {"turn": str(turn.pk)})
    turn.refresh_from_db()
    assert turn.stop_requested_at is None
    assert page.post(STOP, {"turn": str(uuid.uuid4())}).status_code == 303
    for nonsense in ("", "x", "None"):
        assert page.post(STOP, {"turn": nonsense}).status_code == 400


def test_the_queries_do_not_grow_and_the_page_is_bounded(bob, alice, connection):
    def count():
        with CaptureQueriesContext(
            database,
        ) as found:
            live = live_on(connection.pk, alice, most=20)
        return len(found), live

    spaces = [make_workspace(f"space-{n}") for n in range(25)]
    for space in spaces[:2]:
        _begun(space, bob, connection)
    few, _live = count()
    for space in spaces[2:]:
        _begun(space, bob, connection)
    many, live = count()
    assert few == many == 3
    assert (len(live.turns), live.total, live.more) == (20, 25, 5)


def _begun(space, person, connection):
    chat = ChatSession.objects.create(workspace=space, owner=person, connection=connection)
    Turn.objects.create(chat=chat, number=1, started_by=person)
