"""A workspace's settings: name, instructions, and how long sessions are kept."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from django.utils import timezone

from sessions import keeping
from sessions.models import Attachment, ChatSession, Flag, SearchText
from sessions.tasks import delete_doomed, expire
from tests.builders import make_connection, make_member, make_user, make_workspace
from tests.world import make_talk
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db(transaction=True)
HERE = "/w/support/settings/"


@pytest.fixture
def space(db):
    return make_workspace("support")


@pytest.fixture
def bob(space):
    user = make_user("bob@example.com")
    make_member(space, user, "admin")
    return user


@pytest.fixture
def connection(db):
    return make_connection()


def talk_of(days, space, owner, connection):
    talk = make_talk(space, owner, connection)
    then = timezone.now() - dt.timedelta(days=days)
    ChatSession.objects.filter(pk=talk.chat.pk).update(updated_at=then)
    return talk


def test_name_and_instructions_are_saved(client_for, space, bob):
    client = client_for(bob)
    assert client.post(HERE, {"name": "Help desk", "instructions": "Be brief."}).status_code == 303
    space.refresh_from_db()
    assert (space.name, space.slug, space.instructions) == ("Help desk", "support", "Be brief.")
    assert space.retention_days is None
    row = AuditEvent.objects.get(action="workspace.update")
    assert row.details == {"changed": ["name", "instructions"], "name_before": "Support"}
    # Nothing changed: no row.
    client.post(HERE, {"name": "Help desk", "instructions": "Be brief."})
    assert AuditEvent.objects.filter(action="workspace.update").count() == 1


@pytest.mark.parametrize("days", ["0", "-1", "3651", "1.5", "soon", "9" * 40])
def test_days_that_make_no_sense_are_refused_as_typed(client_for, space, bob, days):
    page = client_for(bob).post(HERE, {"name": "Help", "retention_days": days})
    assert page.status_code == 422
    assert days in page.text
    space.refresh_from_db()
    assert (space.name, space.retention_days) == ("Support", None)


def test_a_retention_is_saved_after_its_preview_alone(client_for, space, bob, connection):
    for days in (100, 95, 10):
        talk_of(days, space, bob, connection)
    Flag.objects.create(chat=talk_of(99, space, bob, connection).chat, user=bob)
    client, form = client_for(bob), {"name": "Support", "retention_days": "90"}
    page = client.post(HERE, form)
    assert page.status_code == 200
    assert "2 sessions from before" in page.text
    assert "One as old stays" in page.text
    # Of other days than those that were seen, the preview comes again.
    assert client.post(HERE, {**form, "confirmed": "91"}).status_code == 200
    space.refresh_from_db()
    assert space.retention_days is None
    assert "deleted 90 days" not in client.get("/w/support/").text
    assert client.post(HERE, {**form, "confirmed": "90"}).status_code == 303
    space.refresh_from_db()
    assert space.retention_days == 90
    assert "Sessions are deleted 90 days after their last message" in client.get("/w/support/").text
    # Keeping them longer asks nothing.
    assert client.post(HERE, {**form, "retention_days": "120"}).status_code == 303
    assert client.post(HERE, {**form, "retention_days": ""}).status_code == 303
    space.refresh_from_db()
    assert space.retention_days is None


def test_old_sessions_go_with_all_that_is_theirs(space, bob, connection):
    space.retention_days = 90
    space.save()
    old, fresh = talk_of(91, space, bob, connection), talk_of(89, space, bob, connection)
    flagged, working = talk_of(200, space, bob, connection), talk_of(200, space, bob, connection)
    elsewhere = talk_of(300, make_workspace("sales"), bob, connection)
    Flag.objects.create(chat=flagged.chat, user=bob)
    working.turn.state = "running"
    working.turn.lease_until = timezone.now()
    working.turn.save()
    SearchText.objects.create(chat=old.chat, message=old.said, text="hello")
    path = Path(old.attachment.file.path)
    assert path.exists()
    expire()
    delete_doomed()
    kept = {one.chat.pk for one in (fresh, flagged, working, elsewhere)}
    assert set(ChatSession.objects.values_list("pk", flat=True)) == kept
    assert not SearchText.objects.exists()
    assert not Attachment.objects.filter(pk=old.attachment.pk).exists()
    assert not path.exists()
    row = AuditEvent.objects.get(action="session.expire")
    assert (row.actor_label, row.details["sessions"], row.details["days"]) == ("schedule", 1, 90)
    expire()
    assert AuditEvent.objects.filter(action="session.expire").count() == 1


def test_a_doomed_session_is_gone_for_people_before_its_rows_are(
    client_for, space, bob, connection, monkeypatch
):
    monkeypatch.setattr(keeping, "PART", 1)
    talk = talk_of(1, space, bob, connection)
    keeping.doom(ChatSession.objects.filter(pk=talk.chat.pk))
    client, here = client_for(bob), talk.chat.get_absolute_url()
    assert client.get(here).status_code == 404
    assert client.post(f"{here}send/", {"text": "too late"}).status_code == 404
    assert talk.chat.title not in client.get("/w/support/").text
    # A worker that is killed after a piece: the next goes on with what is left.
    assert keeping._delete_part(talk.chat.pk)
    assert talk.chat.messages.count() == 2
    assert keeping.delete_doomed() == 0
    assert not ChatSession.objects.exists()
