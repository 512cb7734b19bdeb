"""Deleting a person's data: what goes, what stays without the name, and that it comes to an end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import TOTP
from allauth.socialaccount.models import SocialAccount
from allauth.usersessions.models import UserSession
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.db import models, transaction
from django.test import Client

from connections.models import AlertOptOut
from sessions import keeping
from sessions.models import Attachment, ChatSession, Flag, Message, SearchText, Seen, UsageDay
from tests.builders import (
    PASSWORD,
    add_passkey,
    make_connection,
    make_member,
    make_user,
    make_workspace,
)
from tests.world import make_talk
from workspaces import audit, audit_chain, erasing, people, tasks
from workspaces.models import AuditEvent, Erasure, Invitation, SignInKey, User

pytestmark = pytest.mark.django_db(transaction=True)
NAME = "Robert Q. Tables"


@pytest.fixture
def alice(db):
    return make_user("alice@example.com", is_superuser=True)


@pytest.fixture
def bob(db):
    return make_user("bob@example.com", name=NAME)


@pytest.fixture
def space(bob, alice):
    space = make_workspace("support")
    make_member(space, bob, "admin")
    make_member(space, alice)
    return space


@pytest.fixture
def talk(space, bob):
    return make_talk(space, bob, make_connection())


@pytest.fixture
def asked(monkeypatch):
    """The ids that workers were asked for; no broker is here."""
    ids = []
    monkeypatch.setattr(
        tasks.erase_person, "apply_async", lambda args, **options: ids.append(args[0])
    )
    return ids


def everything_of(bob, alice, space, talk):
    """A row of every kind that has to do with a person."""
    client = Client()
    client.post("/accounts/login/", {"login": bob.email, "password": PASSWORD})
    theirs = make_talk(space, alice, talk.chat.connection, shared=True)
    Message.objects.filter(pk=theirs.said.pk).update(author=bob)
    Flag.objects.create(chat=theirs.chat, user=bob)
    Seen.objects.create(chat=theirs.chat, user=bob)
    SearchText.objects.create(chat=talk.chat, message=talk.said, text="hello")
    UsageDay.objects.create(
        day="2026-01-02", workspace=space, person=bob, person_label=bob.email, model="m", turns=3
    )
    AlertOptOut.objects.create(user=bob)
    TOTP.activate(bob, "SECRET")
    add_passkey(bob, "Phone of bob@example.com")
    EmailAddress.objects.create(user=bob, email="old-bob@example.com")
    SocialAccount.objects.create(user=bob, provider="openid", uid="1")
    LogEntry.objects.create(user=alice, action_flag=2, object_id=str(bob.pk), object_repr=bob.email)
    people.invite(alice, make_workspace("sales"), role="member", email=bob.email)
    with transaction.atomic():
        audit.record(bob, "session.create", talk.chat, giver=bob.email, other="notbob@example.com")
        audit.record(alice, "user.update", bob, fields=["email"])
    audit_chain.seal_pending()
    return client, theirs


def texts():
    """Whatever any table says, in one text."""
    said = []
    for model in apps.get_models():
        names = [
            field.attname
            for field in model._meta.concrete_fields
            if isinstance(field, models.CharField | models.TextField | models.JSONField)
        ]
        said += [f"{model._meta.label} {row}" for row in model._base_manager.values_list(*names)]
    return "\n".join(said)


def test_nothing_names_the_person_afterwards(client_for, alice, bob, space, talk, asked):
    admin = client_for(alice)  # first: it takes the row of its sign-in away
    client, theirs = everything_of(bob, alice, space, talk)
    path = Path(talk.attachment.file.path)
    assert path.exists()
    here = f"/people/{bob.pk}/delete/"
    page = admin.get(here)
    assert page.context["holdings"].sessions == 1
    assert page.context["holdings"].messages == 3
    assert page.context["holdings"].attachments == 1
    assert page.context["holdings"].elsewhere == 1
    assert page.context["devices"] == 1
    wrong = admin.post(here, {"email": "alice@example.com"})
    assert wrong.status_code == 422
    assert not Erasure.objects.exists()
    assert admin.post(here, {"email": " BOB@example.com "}).status_code == 303
    erasure = Erasure.objects.get()
    assert asked == [str(erasure.pk)]
    assert client.get("/w/support/").status_code == 302  # at once, before any worker
    page = admin.get(f"/people/{bob.pk}/")
    assert "0 of 1 sessions are gone" in page.text
    assert admin.get(f"/people/{bob.pk}/progress/").text.strip() in page.text

    tasks.erase_person(asked[0])
    assert not ChatSession.objects.filter(pk=talk.chat.pk).exists()
    assert not path.exists()
    for model in (
        Flag,
        Seen,
        SearchText,
        AlertOptOut,
        SocialAccount,
        EmailAddress,
        SignInKey,
        Authenticator,
    ):
        assert not model.objects.exists(), model
    assert not UserSession.objects.filter(user=bob).exists()
    assert not Attachment.objects.filter(pk=talk.attachment.pk).exists()
    assert not LogEntry.objects.exists()
    assert not Invitation.objects.exclude(email="").exists()
    bob.refresh_from_db()
    assert (bob.name, bob.is_active, bob.has_usable_password()) == ("Deleted person", False, False)
    assert bob.erased_at is not None
    assert not bob.memberships.exists()
    # What others have stays.
    assert Message.objects.get(pk=theirs.said.pk).author == bob
    assert UsageDay.objects.get().turns == 3
    assert "Deleted person" in admin.get(theirs.chat.get_absolute_url()).text
    said = texts()
    assert NAME not in said
    assert "notbob@example.com" in said  # somebody else's
    for line in said.replace("notbob@example.com", "").splitlines():
        assert "bob@example.com" not in line
    # The audit is whole still, and knows the id.
    row = AuditEvent.objects.get(action="session.create")
    assert (row.actor_label, row.actor_id) == ("Deleted person", bob.pk)
    assert row.details == {"giver": "Deleted person", "other": "notbob@example.com"}
    audit_chain.seal_pending()
    assert list(audit_chain.verify()) == []
    assert AuditEvent.objects.filter(action="user.erased").exists()
    # The page of nobody tells that, and nothing more can be done to it.
    page = admin.get(f"/people/{bob.pk}/")
    assert "data is deleted" in page.text
    for verb in ("activate", "sign-in-link", "admin", "deactivate"):
        assert admin.post(f"/people/{bob.pk}/{verb}/").status_code == 404, verb
    assert admin.get("/people/").context["page"].paginator.count == 1


def test_a_row_that_was_changed_after_its_redaction_shows(alice, bob):
    with transaction.atomic():
        for number in range(3):
            audit.record(bob, "user.password", bob, n=number)
    audit_chain.seal_pending()
    audit_chain.redact(bob, {bob.email}, "Deleted person")
    assert list(audit_chain.verify()) == []
    assert audit_chain.redact(bob, {bob.email}, "Deleted person") == 0
    AuditEvent.objects.filter(number=2).update(action="user.sign_in")
    assert [(one.kind, one.number) for one in audit_chain.verify()] == [("changed", 2)]
    AuditEvent.objects.filter(number=2).update(action="user.password")
    # Whoever has no key can't pass a change off as a redaction.
    row = AuditEvent.objects.get(number=1)
    AuditEvent.objects.filter(number=3).update(redaction=row.redaction)
    assert [(one.kind, one.number) for one in audit_chain.verify()] == [("changed", 3)]


def test_a_killed_deletion_goes_on(alice, bob, space, talk, asked, monkeypatch):
    for _number in range(3):
        make_talk(space, bob, talk.chat.connection)
    erasing.begin(alice, bob)
    part, done = keeping._delete_part, []

    class Killed(BaseException):
        pass

    def die_at_the_third(chat_id):
        done.append(chat_id)
        if len(done) == 3:
            raise Killed
        return part(chat_id)

    monkeypatch.setattr(keeping, "_delete_part", die_at_the_third)
    with pytest.raises(Killed):
        tasks.erase_person(asked[0])
    assert ChatSession.objects.filter(owner=bob).count() == 2
    assert Erasure.objects.get().finished_at is None
    monkeypatch.undo()
    tasks.erase_due()
    erasure = Erasure.objects.get()
    assert (erasure.total, erasure.left, erasure.done) == (4, 0, 4)
    assert erasure.finished_at is not None
    assert not ChatSession.objects.exists()
    tasks.erase_person(asked[0])  # once more does no harm
    assert AuditEvent.objects.filter(action="user.erased").count() == 1


def test_two_workers_dont_do_it_twice(alice, bob, space, talk, asked):
    erasure = erasing.begin(alice, bob)
    Erasure.objects.update(busy_until=erasure.started_at + erasing.LEASE)
    assert erasing.due() == []
    assert erasing.run(erasure.pk)
    assert ChatSession.objects.filter(owner=bob).exists()


def test_a_reply_under_way_is_stopped_first(alice, bob, space, talk, asked):
    talk.turn.state = "running"
    talk.turn.save()
    erasure = erasing.begin(alice, bob)
    assert erasing.run(erasure.pk, budget=0.1) is False
    talk.turn.refresh_from_db()
    assert talk.turn.stop_requested_at is not None
    assert talk.chat.messages.filter(delivery="queued").count() == 0
    talk.turn.state = "stopped"
    talk.turn.save()
    assert erasing.run(erasure.pk)
    assert not ChatSession.objects.filter(owner=bob).exists()


def test_one_s_own_data_is_deleted_with_the_password(bob, alice, space, talk, asked):
    client = Client()
    client.post("/accounts/login/", {"login": bob.email, "password": PASSWORD})
    asks = client.get("/profile/delete/")
    assert asks.headers["location"].startswith("/accounts/reauthenticate/")
    client.post("/accounts/reauthenticate/", {"password": PASSWORD, "next": "/profile/delete/"})
    assert "Delete your account" in client.get("/profile/delete/").text
    assert client.post("/profile/delete/", {"email": "x"}).status_code == 422
    page = client.post("/profile/delete/", {"email": bob.email})
    assert page.status_code == 200
    assert "is being deleted" in page.text
    assert client.get("/profile/").status_code == 302
    data = {"login": bob.email, "password": PASSWORD}
    assert Client().post("/accounts/login/", data).status_code == 200  # refused
    tasks.erase_person(asked[0])
    assert json.dumps(list(AuditEvent.objects.values_list("actor_label"))).count(bob.email) == 0


def test_the_last_instance_admin_cannot_go(alice, bob, asked):
    client = Client()
    client.post("/accounts/login/", {"login": alice.email, "password": PASSWORD})
    client.post("/accounts/reauthenticate/", {"password": PASSWORD, "next": "/profile/delete/"})
    page = client.post("/profile/delete/", {"email": alice.email})
    assert page.status_code == 422
    assert "last instance admin" in page.text
    assert not Erasure.objects.exists()
    assert User.objects.get(pk=alice.pk).is_active
