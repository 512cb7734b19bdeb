"""The operator's link: it signs one person in, once, for a quarter of an hour."""

from __future__ import annotations

import threading
import time
from urllib.parse import urlsplit

import pytest
from django.core import signing
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from tests.builders import PASSWORD, make_member, make_user, make_workspace
from workspaces import signin_link
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def bob(db):
    user = make_user("bob@example.com")
    make_member(make_workspace("support"), user)
    return user


@pytest.fixture
def link(bob, capsys):
    call_command("signin_link", "Bob@Example.com")
    return urlsplit(capsys.readouterr().out.strip()).path


def test_it_signs_in_by_a_press_and_once(client, client_for, link, bob):
    for _ in range(2):  # looking at it uses nothing up
        assert "bob@example.com" in client.get(link).content.decode()
    assert client.post(link).status_code == 303
    assert client.get("/w/support/").status_code == 200
    other = client_for(None)
    assert other.get(link).status_code == 404
    assert other.post(link).status_code == 404
    assert other.get("/w/support/").status_code == 302
    actions = list(AuditEvent.objects.order_by("at").values_list("action", flat=True))
    assert actions == ["user.sign_in_link", "user.sign_in"]


def test_of_many_presses_at_once_one_gets_in(link, bob):
    barrier, answers = threading.Barrier(5), []

    def press():
        browser = Client()
        barrier.wait()
        try:
            answers.append(browser.post(link).status_code)
        finally:
            connection.close()

    threads = [threading.Thread(target=press) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [303, 404, 404, 404, 404]


@pytest.mark.parametrize("change", ["password", "sign-in", "switched off", "time"])
def test_it_ends_by_itself(client, client_for, link, bob, change, monkeypatch):
    if change == "password":
        bob.set_password("another long one")
        bob.save()
    elif change == "sign-in":
        client_for(None).post("/accounts/login/", {"login": bob.email, "password": PASSWORD})
    elif change == "switched off":
        bob.is_active = False
        bob.save()
    else:
        later = time.time() + 16 * 60
        monkeypatch.setattr(signing.time, "time", lambda: later)
    assert client.post(link).status_code == 404
    assert client.get("/w/support/").status_code == 302


def test_no_other_signed_text_is_a_link(client, bob):
    for token in (
        "x",
        "",
        signing.dumps([str(bob.pk), signin_link._state(bob)], salt="another"),
        signing.dumps("x", salt="patchbay.signin_link"),
        signing.dumps([1, 2, 3], salt="patchbay.signin_link"),
    ):
        assert client.post(f"/sign-in-link/{token}/").status_code == 404


def test_nobody_gets_a_link_for_nobody(bob):
    with pytest.raises(CommandError):
        call_command("signin_link", "eve@example.com")
    bob.is_active = False
    bob.save()
    with pytest.raises(CommandError):
        call_command("signin_link", "bob@example.com")
