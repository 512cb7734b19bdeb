"""What people do with their sessions besides talking: share, flag, archive, delete, export."""

from __future__ import annotations

import json

import pytest
from django.core.files.storage import default_storage
from django.db import connection as database
from django.test.utils import CaptureQueriesContext

from sessions import keeping, sending
from sessions.keeping import Sharing
from sessions.models import Attachment, ChatSession, Flag, Message, Turn, UsageDay
from tests.builders import make_connection, make_member, make_user
from tests.world import make_talk
from workspaces.models import AuditEvent, Role

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def carol(workspace):
    person = make_user("carol@example.com")
    make_member(workspace, person)
    return person


@pytest.fixture
def page(client, bob):
    client.force_login(bob)
    return client


def titles(page, query: str = "") -> list[str]:
    rows = page.get(f"/w/support/{query}").context["rows"]
    return [row.chat.title for row in rows]


def test_colleagues_may_be_let_in_as_readers(client, workspace, bob, carol, connection):
    talk = make_talk(workspace, bob, connection)
    keeping.share(talk.chat.pk, bob, Sharing.READ)
    client.force_login(carol)
    here = talk.chat.get_absolute_url()
    shown = client.get(here)
    assert shown.status_code == 200
    assert "<textarea" not in shown.text
    for action, data in (("send", {"text": "mine"}), ("stop", {}), ("rename", {"title": "x"})):
        assert client.post(f"{here}{action}/", data).status_code == 403
    keeping.share(talk.chat.pk, bob, Sharing.WRITE)
    assert "<textarea" in client.get(here).text
    assert client.post(f"{here}rename/", {"title": "x"}).status_code == 303
    rows = AuditEvent.objects.filter(action="session.share").order_by("at", "id")
    assert [row.details["read_only"] for row in rows] == [True, False]


def test_the_share_menu_takes_three_words(page, workspace, bob, connection):
    talk = make_talk(workspace, bob, connection)
    for word, expected in (("read", "read"), ("true", "true"), ("", "false"), ("x", "false")):
        assert page.post(f"{talk.chat.get_absolute_url()}share/", {"shared": word}).status_code in (
            200,
            303,
        )
        talk.chat.refresh_from_db()
        assert Sharing.of(talk.chat) == expected


def test_a_flag_is_ones_own(client, workspace, bob, carol, connection):
    talk = make_talk(workspace, bob, connection, shared=True)
    here = talk.chat.get_absolute_url()
    client.force_login(carol)
    for _press in range(2):
        assert client.post(f"{here}flag/", {"flag": "true"}).status_code == 303
    assert [flag.user for flag in Flag.objects.all()] == [carol]
    assert titles(client, "?show=flagged") == ["About the invoice"]
    client.force_login(bob)
    assert titles(client, "?show=flagged") == []
    client.force_login(carol)
    client.post(f"{here}flag/", {"flag": "false"})
    assert not Flag.objects.exists()


def test_an_archived_session_leaves_the_list_until_somebody_writes(page, workspace, bob):
    connection = make_connection("local", is_default=True)
    talk = make_talk(workspace, bob, connection)
    talk.chat.queue_paused = ""
    here = talk.chat.get_absolute_url()
    assert page.post(f"{here}archive/", {"archive": "true"}).status_code == 303
    assert (titles(page), titles(page, "?show=archived")) == ([], ["About the invoice"])
    sending.send(talk.chat.pk, bob, "one more thing", ring=False)
    assert titles(page) == ["About the invoice"]
    page.post(f"{here}archive/", {"archive": "true"})
    page.post(f"{here}archive/", {"archive": "false"})
    assert titles(page) == ["About the invoice"]


def test_deleting_asks_and_takes_all_but_what_it_cost(page, workspace, bob, connection):
    talk = make_talk(workspace, bob, connection)
    file = talk.attachment.file.name
    UsageDay.objects.create(day="2026-11-01", turns=1)
    here = talk.chat.get_absolute_url()
    assert "3 messages" in page.get(f"{here}delete/").text
    assert ChatSession.objects.exists()
    assert "The session was deleted." in page.post(f"{here}delete/", follow=True).text
    for model in (ChatSession, Turn, Message, Attachment):
        assert not model.objects.exists()
    assert not default_storage.exists(file)
    assert UsageDay.objects.exists()
    assert AuditEvent.objects.get(action="session.delete").details["owner"] == bob.email
    assert page.post(f"{here}delete/").status_code == 404


def test_a_session_that_answers_is_not_deleted(page, workspace, bob):
    connection = make_connection("local", is_default=True)
    chat = ChatSession.objects.create(workspace=workspace, owner=bob, connection=connection)
    sending.send(chat.pk, bob, "hello", ring=False)
    answer = page.post(f"{chat.get_absolute_url()}delete/", follow=True)
    assert "Stop it, then delete" in answer.text
    assert ChatSession.objects.exists()


def test_a_session_that_is_gone_without_its_audit_row_cannot_be(workspace, bob, connection, broken):
    talk = make_talk(workspace, bob, connection)
    with broken("session.delete"), pytest.raises(RuntimeError):
        keeping.delete(talk.chat.pk, bob)
    assert ChatSession.objects.exists()
    assert default_storage.exists(talk.attachment.file.name)


@pytest.fixture
def broken(monkeypatch):
    """The audit can't be written."""
    import contextlib

    from workspaces import audit

    @contextlib.contextmanager
    def breaks(action):
        def record(actor, what, *args, **kwargs):
            assert what == action
            raise RuntimeError

        with monkeypatch.context() as patch:
            patch.setattr(audit, "record", record)
            yield

    return breaks


def test_the_list_is_filtered_and_comes_back_as_it_was(page, workspace, bob, carol, connection):
    other = make_connection("other")
    make_talk(workspace, bob, connection)
    theirs = make_talk(workspace, carol, other, shared=True).chat
    ChatSession.objects.filter(pk=theirs.pk).update(title="Theirs")
    make_talk(workspace, carol, make_connection("hidden"))
    assert titles(page, "?show=mine") == ["About the invoice"]
    assert titles(page, "?show=shared") == ["Theirs"]
    assert titles(page, "?connection=other") == ["Theirs"]
    assert titles(page, "?show=working") == []
    assert page.get("/w/support/?show=nonsense").status_code == 422
    shown = page.get("/w/support/?show=shared")
    assert "Hidden" not in shown.text  # a connection of a session that isn't theirs to see
    assert 'value="show=shared"' in shown.text
    answer = page.post(
        f"{theirs.get_absolute_url()}flag/", {"flag": "true", "kept": "show=shared&x=//evil"}
    )
    assert answer.headers["Location"] == "/w/support/?show=shared"


@pytest.mark.parametrize("query", ["", "?q=invoice", "?q=in", "?show=flagged"])
def test_the_list_costs_the_same_for_any_number(page, workspace, bob, connection, query):
    from sessions import search

    def cost() -> int:
        with CaptureQueriesContext(
            database,
        ) as queries:
            page.get(f"/w/support/{query}")
        return len(queries)

    def add(count):
        for _number in range(count):
            keeping.flag(make_talk(workspace, bob, connection).chat, bob, True)
        search.take_in(100)

    add(2)
    page.get("/w/support/")
    few = cost()
    add(10)
    assert cost() == few


def test_an_export_has_the_conversation_and_no_secret(page, workspace, bob, connection):
    talk = make_talk(workspace, bob, connection)
    Message.objects.filter(chat=talk.chat, role="assistant").update(
        parts=[
            {"t": "thinking", "text": "hm", "sig": "sealed-by-provider"},
            {"t": "text", "text": "a reply"},
        ]
    )
    here = f"{talk.chat.get_absolute_url()}export/"
    text = page.get(here)
    assert text.headers["Content-Type"].startswith("text/markdown")
    assert "attachment" in text.headers["Content-Disposition"]
    assert text.headers["X-Content-Type-Options"] == "nosniff"
    order = [text.text.index(part) for part in ("# About the invoice", "hello", "a reply", "later")]
    assert order == sorted(order)
    whole = json.loads(page.get(f"{here}?format=json").text)
    assert [m["text"] for m in whole["messages"]] == ["hello", "a reply", "later"]
    assert whole["messages"][0]["images"] == ["image-1.png"]
    assert whole["messages"][1]["parts"][0] == {"t": "thinking", "text": "hm"}
    for body in (text.text, json.dumps(whole)):
        assert "sealed-by-provider" not in body
        assert connection.base_url not in body


def test_roles_of_the_verbs(client, workspace, bob, connection):
    """The owner as a mere viewer reads and exports; the rest is for those who may write."""
    talk = make_talk(workspace, bob, connection)
    bob.memberships.update(role=Role.VIEWER)
    client.force_login(bob)
    here = talk.chat.get_absolute_url()
    assert client.get(f"{here}export/").status_code == 200
    for action in ("archive", "delete", "share"):
        assert client.post(f"{here}{action}/").status_code == 403
