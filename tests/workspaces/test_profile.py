"""A person's own page: name, devices."""

from __future__ import annotations

import datetime as dt

import pytest
from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.builders import PASSWORD, make_member, make_user, make_workspace
from workspaces.devices import name_of
from workspaces.models import AuditEvent
from workspaces.tasks import forget_ended_sign_ins

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


def test_a_choice_that_always_has_a_value_is_not_called_optional(client_for, bob):
    html = client_for(bob).get("/profile/").text
    assert 'Your name<span class="field-optional">' in html
    assert "Language</label>" in html


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


def test_what_has_ended_is_forgotten(bob):
    here, there, long_ago = sign_in(), sign_in(), sign_in()
    there.post("/accounts/logout/")
    Session.objects.filter(session_key=long_ago.session.session_key).update(
        expire_date=timezone.now() - dt.timedelta(seconds=1)
    )
    forget_ended_sign_ins()
    kept = here.session.session_key
    assert list(UserSession.objects.values_list("session_key", flat=True)) == [kept]
    assert list(Session.objects.values_list("session_key", flat=True)) == [kept]


def test_a_sign_in_costs_the_same_after_many(bob):
    def cost() -> int:
        with CaptureQueriesContext(database) as queries:
            sign_in()
        return len(queries)

    sign_in()
    few = cost()
    for _time in range(5):
        sign_in()
    assert cost() == few


def test_a_new_password_keeps_this_device_in_the_list(bob):
    here = sign_in()
    new = "another long enough password"
    data = {"oldpassword": PASSWORD, "password1": new, "password2": new}
    assert here.post("/accounts/password/change/", data).status_code == 302
    assert [device.is_current for device in here.get("/profile/").context["devices"]] == [True]


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
