"""Handing sessions over: one, or all that somebody leaves behind."""

from __future__ import annotations

import pytest

from sessions.models import ChatSession, Flag
from tests.builders import make_connection, make_member, make_user, make_workspace
from tests.world import make_talk
from workspaces.models import AuditEvent, Membership, User

pytestmark = pytest.mark.django_db


@pytest.fixture
def dora(workspace):
    user = make_user("dora@example.com")
    make_member(workspace, user)
    return user


@pytest.fixture
def wadmin(workspace):
    user = make_user("wadmin@example.com")
    make_member(workspace, user, "admin")
    return user


@pytest.fixture
def talk(workspace, bob):
    return make_talk(workspace, bob, make_connection())


def leave_no_message_waiting(talk):
    talk.queued.delivery = "cancelled"
    talk.queued.save()


def test_the_owner_hands_a_private_session_over(client_for, talk, bob, dora):
    leave_no_message_waiting(talk)
    Flag.objects.create(chat=talk.chat, user=bob)
    client, here = client_for(bob), talk.chat.get_absolute_url()
    assert f"{here}transfer/" in client.get("/w/support/").text
    assert "dora@example.com" in client.get(f"{here}transfer/").text
    assert client.post(f"{here}transfer/", {"receiver": str(dora.pk)}).status_code == 303
    assert client.get(here).status_code == 404
    assert client_for(dora).get(here).status_code == 200
    assert not Flag.objects.exists()
    row = AuditEvent.objects.get(action="session.transfer")
    assert row.details == {"giver": bob.email, "receiver": dora.email}


def test_it_waits_while_messages_wait_or_a_reply_runs(client_for, talk, bob, dora):
    client, here = client_for(bob), talk.chat.get_absolute_url()
    data = {"receiver": str(dora.pk)}
    assert client.post(f"{here}transfer/", data).status_code == 409
    leave_no_message_waiting(talk)
    talk.turn.state = "running"
    talk.turn.save()
    page = client.post(f"{here}transfer/", data)
    assert page.status_code == 409
    assert "Stop it first" in page.text
    talk.chat.refresh_from_db()
    assert talk.chat.owner == bob


def test_only_who_may_hold_sessions_there_gets_one(client_for, talk, bob, workspace, charlie):
    viewer, off = make_user("viewer@example.com"), make_user("off@example.com", is_active=False)
    make_member(workspace, viewer, "viewer")
    make_member(workspace, off)
    leave_no_message_waiting(talk)
    client, here = client_for(bob), talk.chat.get_absolute_url()
    for wrong in ("", "x", str(bob.pk), str(viewer.pk), str(off.pk), str(charlie.pk)):
        assert client.post(f"{here}transfer/", {"receiver": wrong}).status_code == 422, wrong
    talk.chat.refresh_from_db()
    assert talk.chat.owner == bob


def test_an_admin_hands_over_a_shared_session_of_who_is_gone(client_for, talk, bob, dora, wadmin):
    leave_no_message_waiting(talk)
    ChatSession.objects.filter(pk=talk.chat.pk).update(shared=True)
    client, here = client_for(wadmin), f"{talk.chat.get_absolute_url()}transfer/"
    assert client.get(here).status_code == 403
    assert here not in client.get("/w/support/").text
    User.objects.filter(pk=bob.pk).update(is_active=False)
    assert here in client.get("/w/support/").text
    assert client_for(dora).get(here).status_code == 403
    assert client.post(here, {"receiver": str(dora.pk)}).status_code == 303
    talk.chat.refresh_from_db()
    assert talk.chat.owner == dora
    assert talk.chat.shared


def test_removing_a_member_hands_the_sessions_over(client_for, talk, bob, dora, wadmin):
    row = Membership.objects.get(user=bob)
    there = make_talk(make_workspace("sales"), bob, talk.chat.connection)
    client, here = client_for(wadmin), f"/w/support/members/{row.pk}/remove/"
    assert "has one session here" in client.get(here).text
    assert client.post(here, {"receiver": "nobody"}).status_code == 422
    assert Membership.objects.filter(pk=row.pk).exists()
    assert client.post(here, {"receiver": str(dora.pk)}).status_code == 303
    talk.chat.refresh_from_db()
    there.chat.refresh_from_db()
    assert (talk.chat.owner, there.chat.owner) == (dora, bob)
    assert not talk.chat.shared
    assert not Membership.objects.filter(pk=row.pk).exists()


def test_what_was_left_behind_is_handed_over_later(client_for, talk, bob, dora, wadmin):
    client = client_for(wadmin)
    here = f"/w/support/members/people/{bob.pk}/transfer/"
    # No admin takes the private sessions of a member who is there.
    assert client.get(here).status_code == 404
    assert client.post(here, {"receiver": str(dora.pk)}).status_code == 404
    assert "Sessions left behind" not in client.get("/w/support/members/").text
    row = Membership.objects.get(user=bob)
    assert client.post(f"/w/support/members/{row.pk}/remove/").status_code == 303
    assert here in client.get("/w/support/members/").text
    assert "Sessions left behind" not in client_for(dora).get("/w/support/members/").text
    assert client.post(here, {}).status_code == 422
    assert client.post(here, {"receiver": str(dora.pk)}).status_code == 303
    talk.chat.refresh_from_db()
    assert talk.chat.owner == dora
    assert client_for(dora).get(talk.chat.get_absolute_url()).status_code == 200
    assert client.get(talk.chat.get_absolute_url()).status_code == 404  # private, also to admins
