"""A second factor: codes of an authenticator app, recovery codes; their secrets in the vault."""

from __future__ import annotations

import re
import time

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.core.cache import cache
from django.core.management import call_command
from django.db import connection as database
from django.test import Client

from tests.builders import PASSWORD, make_member, make_user, make_workspace
from workspaces.models import AuditEvent, SignInKey

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def cache_of_its_own(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    cache.clear()


@pytest.fixture
def bob(db):
    user = make_user("bob@example.com")
    make_member(make_workspace("support"), user)
    return user


def code_of(secret: str) -> str:
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30))


def by_password() -> tuple[Client, str]:
    """A browser after the first step, and where it was sent."""
    client = Client()
    data = {"login": "bob@example.com", "password": PASSWORD}
    return client, client.post("/accounts/login/", data).headers["Location"]


def switch_on() -> tuple[Client, str, list[str]]:
    """The browser in which it was done, the app's key, the recovery codes."""
    client, _where = by_password()
    again = client.get("/accounts/2fa/app/").headers["Location"]
    assert again.startswith("/accounts/reauthenticate/")
    assert client.post(again, {"password": "wrong"}).status_code == 200
    assert client.post(again, {"password": PASSWORD}).headers["Location"] == "/accounts/2fa/app/"
    form = client.get("/accounts/2fa/app/")
    secret = re.search(r"<code>(\w+)</code>", form.text)[1]
    wrong = client.post("/accounts/2fa/app/", {"code": "000000"})
    assert "This code isn&#x27;t right" in wrong.text
    secret = re.search(r"<code>(\w+)</code>", wrong.text)[1]
    page = client.post("/accounts/2fa/app/", {"code": code_of(secret)}, follow=True)
    codes = re.search(r'<pre class="codes">([^<]*)</pre>', page.text)[1].split()
    assert len(codes) == 10
    return client, secret, codes


def test_the_password_alone_no_longer_signs_in(bob):
    _first, _secret, codes = switch_on()
    client, where = by_password()
    assert where == "/accounts/2fa/code/"
    assert client.get("/w/support/").status_code == 302
    assert "_auth_user_id" not in client.session
    assert client.post(where, {"code": "123456"}).status_code == 200
    assert client.get("/w/support/").status_code == 302
    assert client.post(where, {"code": codes[0]}).status_code == 302
    assert client.get("/w/support/").status_code == 200
    # A recovery code works once.
    again, where = by_password()
    assert again.post(where, {"code": codes[0]}).status_code == 200
    assert again.get("/w/support/").status_code == 302


def test_its_secrets_are_in_the_vault(bob):
    _client, secret, codes = switch_on()
    with database.cursor() as cursor:
        cursor.execute("SELECT data FROM mfa_authenticator")
        stored = str(cursor.fetchall())
        cursor.execute("SELECT value FROM workspaces_signinkey")
        stored += str([bytes(value) for (value,) in cursor.fetchall()])
    assert SignInKey.objects.count() == 2
    for one in (secret, *codes):
        assert one not in stored
    words = str(list(AuditEvent.objects.values_list("action", "details")))
    assert "user.second_factor_on" in words
    assert secret not in words


def test_it_is_switched_off_and_leaves_nothing(bob):
    client, _secret, _codes = switch_on()
    assert "Switch off" in client.get("/profile/").text
    assert client.post("/accounts/2fa/app/off/").status_code == 302
    assert not Authenticator.objects.exists()
    assert not SignInKey.objects.exists()
    _client, where = by_password()
    assert where == "/"


def test_the_operator_lets_in_who_lost_the_device(bob, capsys):
    switch_on()
    call_command("signin_link", bob.email, "--without-second-factor")
    assert "/sign-in-link/" in capsys.readouterr().out
    assert not Authenticator.objects.exists()
    assert not SignInKey.objects.exists()
    assert AuditEvent.objects.filter(action="user.second_factor_off").exists()


def test_a_stranger_to_the_first_step_sees_no_second(client, bob):
    assert client.get("/accounts/2fa/code/").status_code == 302
    assert client.post("/accounts/2fa/code/", {"code": "123456"}).status_code == 302
