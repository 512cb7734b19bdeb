"""Signing in and out, and what the audit keeps of it."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.builders import PASSWORD
from workspaces import audit
from workspaces.models import AuditEvent, User

pytestmark = pytest.mark.django_db


def sign_in(client: Client, email: str = "bob@example.com", password: str = PASSWORD):
    return client.post("/accounts/login/", {"login": email, "password": password})


def test_sign_in_and_out_are_recorded(bob: User):
    client = Client()
    assert sign_in(client).status_code == 302
    client.post("/accounts/logout/")
    events = AuditEvent.objects.filter(actor=bob).order_by("at")
    assert [event.action for event in events] == ["user.sign_in", "user.sign_out"]


def test_a_wrong_password_signs_nobody_in(bob: User):
    client = Client()
    assert sign_in(client, password="wrong").status_code == 200
    assert "_auth_user_id" not in client.session
    assert not AuditEvent.objects.exists()


def test_a_sign_in_that_cannot_be_recorded_does_not_happen(bob: User, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no row")

    monkeypatch.setattr(audit, "record", refuse)
    client = Client(raise_request_exception=False)
    assert sign_in(client).status_code == 500
    assert client.get("/connections/").status_code == 302


def test_an_address_is_taken_in_any_case(bob: User):
    client = Client()
    assert sign_in(client, email=" Bob@Example.COM ").status_code == 302
    assert client.session["_auth_user_id"] == str(bob.pk)
