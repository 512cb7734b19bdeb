"""A person's own page: name, devices."""

from __future__ import annotations

import pytest
from allauth.usersessions.models import UserSession
from django.test import Client

from tests.builders import PASSWORD, make_member, make_user, make_workspace
from workspaces.devices import name_of
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db(transaction=True)

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.fixture
def bob(db):
    user = make_user("bob@example.com")
    make_member(make_workspace("support"), user)
    return user


def sign_in(**headers: str) -> Client:
    client = Client(headers={"user-agent": "", **headers})
    data = {"login": "bob@example.com", "password": PASSWORD}
    assert client.post("/accounts/login/", data).status_code == 302
    return client


def test_a_name_is_saved(client_for, bob):
    client = client_for(bob)
    assert client.post("/profile/", {"name": "  Bob "}).status_code == 303
    bob.refresh_from_db()
    assert bob.name == "Bob"
    assert client.post("/profile/", {"name": "x" * 151}).status_code == 422
    assert AuditEvent.objects.get(action="user.update").details == {"fields": ["name"]}


def test_devices_are_listed_and_signed_out(bob):
    here, there, elsewhere = sign_in(**{"user-agent": FIREFOX}), sign_in(), sign_in()
    page = here.get("/profile/")
    assert len(page.context["devices"]) == 3
    assert page.context["devices"][0].is_current
    assert "Firefox on Linux" in page.text
    gone = UserSession.objects.get(session_key=there.session.session_key)
    assert here.post(f"/profile/devices/{gone.pk}/sign-out/").status_code == 303
    assert there.get("/profile/").status_code == 302
    assert elsewhere.get("/profile/").status_code == 200
    assert here.post("/profile/devices/sign-out/").status_code == 303
    assert elsewhere.get("/profile/").status_code == 302
    assert here.get("/profile/").status_code == 200
    assert len(here.get("/profile/").context["devices"]) == 1
    assert AuditEvent.objects.filter(action="user.devices").count() == 2


def test_a_strangers_device_isnt_there(client_for, bob):
    mine = sign_in()
    device = UserSession.objects.get(session_key=mine.session.session_key)
    carol = client_for(make_user("carol@example.com"))
    assert carol.post(f"/profile/devices/{device.pk}/sign-out/").status_code == 404
    assert mine.get("/profile/").status_code == 200


def test_who_signed_out_is_no_device(bob):
    here, there = sign_in(), sign_in()
    there.post("/accounts/logout/")
    assert len(here.get("/profile/").context["devices"]) == 1


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (FIREFOX, "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) Chrome/140.0 Safari/537.36 Edg/140.0", "Edge on Windows"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15) Safari/605.1.15", "Safari on macOS"),
        ("curl/8.0", "A program"),
        ("", "A program"),
    ],
)
def test_a_browser_is_named(agent, name):
    assert name_of(agent) == name
