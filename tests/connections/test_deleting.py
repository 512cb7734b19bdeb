"""Deleting a connection: what depends on it, a successor, and taking it back for a week."""

import datetime as dt

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from connections import deleting, registry
from connections.actions import reorder
from connections.deleting import delete, purge_tombstones, undo
from connections.grants import set_workspace_default
from connections.models import Connection, WorkspaceConnection
from connections.registry import Dependents
from sessions.continuing import successors
from sessions.models import ChatSession
from tests.builders import give_access, make_connection, make_workspace
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db


def names() -> list[str]:
    return list(Connection.objects.living().values_list("slug", flat=True))


def default_of(workspace) -> str | None:
    row = WorkspaceConnection.objects.filter(workspace=workspace, is_default=True).first()
    return row.connection.slug if row else None


@pytest.fixture
def used():
    """Connections that a session of an app above points at."""
    ids = set()

    def count(asked):
        return {pk: Dependents(sessions=1) for pk in asked if pk in ids}

    registry.count_dependents_with(count)
    yield ids
    registry._counters.remove(count)


def test_a_slug_is_freed_after_a_week_without_sessions(alice, used):
    old, pointed_at, fresh = (make_connection(slug) for slug in ("old", "kept", "fresh"))
    for made in (old, pointed_at, fresh):
        delete(alice, made)
    week_ago = timezone.now() - dt.timedelta(days=7, minutes=1)
    Connection.objects.filter(slug__in=["old", "kept"]).update(deleted_at=week_ago)
    used.add(pointed_at.pk)
    assert purge_tombstones() == 1
    assert set(Connection.objects.values_list("slug", flat=True)) == {"kept", "fresh"}


def test_deleting_says_what_depends_on_it(alice, used):
    made = make_connection()
    used.add(made.pk)
    assert delete(alice, made).dependents.sessions == 1


def test_a_successor_becomes_the_default_wherever_it_was(alice, workspace):
    closed_off = make_workspace("closed-off")
    old = make_connection("old", is_default=True)
    heir = make_connection("heir", access="chosen")
    make_connection("first")
    reorder(alice, [c.pk for c in Connection.objects.order_by("slug")])
    for space in (workspace, closed_off):
        give_access(space, old, is_default=True)
    give_access(workspace, heir)
    deleted = delete(alice, old, successor=heir)
    assert deleted.new_default == heir
    assert deleted.cleared_workspaces == [closed_off.name]
    assert (default_of(workspace), default_of(closed_off)) == ("heir", None)
    row = AuditEvent.objects.get(action="connection.delete")
    assert (row.details["successor"], row.details["moved_workspaces"]) == ("heir", ["Support"])


def test_its_sessions_are_offered_the_successor_first(alice, bob, workspace):
    from connections.resolve import Candidates

    first, old, heir = (make_connection(slug) for slug in ("first", "old", "heir"))
    chat = ChatSession.objects.create(
        workspace=workspace, owner=bob, connection=old, locked_at=timezone.now()
    )
    delete(alice, old, successor=heir)
    chat.refresh_from_db()
    offered = successors(chat, Candidates.of(workspace))
    assert [one.connection for one in offered] == [heir, first]


@pytest.mark.parametrize("which", ["itself", "deleted"])
def test_a_successor_that_cannot_be_one_changes_nothing(alice, which):
    old, gone = make_connection("old"), make_connection("gone")
    delete(alice, gone)
    with pytest.raises(ValidationError):
        delete(alice, old, successor=old if which == "itself" else gone)
    assert names() == ["old"]


def test_undo_brings_back_all_but_the_secret(alice, workspace):
    a, b, c = (make_connection(slug) for slug in "abc")
    reorder(alice, [a.pk, b.pk, c.pk])
    Connection.objects.filter(pk=b.pk).update(is_default=True)
    assert b.secrets.exists()
    row = give_access(workspace, b, is_default=True)
    row.granted_models, row.allowed_models = ["small", "large"], ["small"]
    row.save()
    b.refresh_from_db()
    delete(alice, b, successor=c)
    assert (names(), default_of(workspace)) == (["a", "c"], "c")
    restored = undo(alice, b)
    assert (restored.is_default, restored.kept_defaults) == (True, [])
    assert (names(), default_of(workspace)) == (["a", "b", "c"], "b")
    b.refresh_from_db()
    back = b.workspace_rows.get()
    assert (back.granted_models, back.allowed_models) == (["small", "large"], ["small"])
    assert b.is_default
    assert not b.secrets.exists()
    assert (b.cleared, b.successor) == ({}, None)
    assert AuditEvent.objects.filter(action="connection.restore").count() == 1


def test_undo_takes_no_default_away_that_somebody_chose_since(alice, workspace):
    old, heir, other = (make_connection(slug) for slug in ("old", "heir", "other"))
    Connection.objects.filter(pk=old.pk).update(is_default=True)
    give_access(workspace, old, is_default=True)
    delete(alice, old, successor=heir)
    set_workspace_default(alice, workspace, other)
    Connection.objects.filter(pk=heir.pk).update(is_default=False)
    Connection.objects.filter(pk=other.pk).update(is_default=True)
    restored = undo(alice, old)
    assert (restored.is_default, restored.kept_defaults) == (False, ["Support"])
    assert default_of(workspace) == "other"
    assert Connection.objects.get(is_default=True) == other


def test_undo_outlives_a_workspace_that_is_gone(alice):
    gone = make_workspace("gone")
    old = make_connection("old")
    give_access(gone, old, is_default=True)
    delete(alice, old)
    gone.delete()
    assert undo(alice, old).workspaces == []


@pytest.mark.parametrize("state", ["living", "too long ago"])
def test_what_cannot_be_brought_back_is_refused(alice, state):
    made = make_connection("made")
    if state == "too long ago":
        delete(alice, made)
        before = timezone.now() - deleting.UNDO_FOR - dt.timedelta(seconds=1)
        Connection.objects.filter(pk=made.pk).update(deleted_at=before)
    with pytest.raises(ValidationError):
        undo(alice, made)


def test_the_pages_delete_with_a_successor_and_bring_back(client, alice, workspace):
    client.force_login(alice)
    old = make_connection("old", name="Old one", is_default=True)
    make_connection("heir", name="The heir")
    give_access(workspace, old, is_default=True)
    assert "The heir" in client.get("/connections/old/delete/confirm/").text
    assert client.post("/connections/old/delete/", {"successor": "nobody"}).status_code == 404
    page = client.post("/connections/old/delete/", {"successor": "heir"}, follow=True).text
    assert "“The heir” is the global default now." in page
    assert "1 recently deleted" in page
    assert "Old one" in client.get("/connections/deleted/").text
    page = client.post("/connections/old/restore/", follow=True).text
    assert "“Old one” is back, without its secret." in page
    assert default_of(workspace) == "old"
    assert client.post("/connections/old/restore/").status_code == 404
