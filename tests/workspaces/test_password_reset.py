"""A new password by mail, with a real mail server at the other end."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from django.core.cache import cache
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from config import env
from tests.builders import PASSWORD, make_member, make_user, make_workspace
from tests.fakes import mail
from workspaces import tasks
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db(transaction=True)

NEW = "an entirely new password"


@pytest.fixture
def sink(settings):
    with mail.running() as sink:
        settings.MAIL_IS_SET_UP = True
        settings.MAILERS = {"default": env.mailer(sink.url)}
        yield sink


@pytest.fixture(autouse=True)
def asked(monkeypatch, settings):
    """The worker's side runs in this process, after what the page does."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    ids: list[str] = []
    monkeypatch.setattr(
        tasks.mail_reset, "apply_async", lambda args, **options: ids.append(args[0])
    )
    cache.clear()
    return ids


@pytest.fixture
def bob(db):
    user = make_user("bob@example.com")
    make_member(make_workspace("support"), user)
    return user


def ask(client: Client, address: str):
    return client.post("/accounts/password/reset/", {"email": address}, follow=True)


def mailed(sink: mail.Sink, asked: list[str]) -> str:
    """The path of the link in the mail."""
    for pk in asked:
        tasks.mail_reset(pk)
    text = sink.mails[-1].get_payload(decode=True).decode()
    return urlsplit(re.search(r"https?://\S+", text)[0]).path


def choose(client: Client, path: str):
    form = client.get(path, follow=True)
    action = re.search(r'action="(/accounts/password/reset/key/[^"]+)"', form.text)[1]
    return client.post(action, {"password1": NEW, "password2": NEW}, follow=True)


def test_a_link_by_mail_changes_the_password_once(client, client_for, sink, asked, bob):
    elsewhere = client_for(bob)
    assert elsewhere.get("/w/support/").status_code == 200
    assert "Look into your mail" in ask(client, "Bob@Example.com").text
    path = mailed(sink, asked)
    assert sink.mails[0]["To"] == bob.email
    assert "Your password is changed" in choose(client, path).text
    bob.refresh_from_db()
    assert bob.check_password(NEW)
    assert elsewhere.get("/w/support/").status_code == 302  # signed out
    assert AuditEvent.objects.filter(action="user.password").count() == 1
    other = Client()
    answer = other.get(path)
    assert answer.status_code == 400
    assert "This link can" in answer.text


def test_who_is_unknown_gets_the_same_answer(client, sink, asked, bob):
    known, unknown = ask(client, bob.email), ask(client, "nobody@example.com")
    strip = re.compile(
        r'nonce="[^"]*"|name="csrfmiddlewaretoken" value="[^"]*"|"x-csrftoken": "[^"]*"', re.I
    )
    assert strip.sub("", known.text) == strip.sub("", unknown.text)
    assert len(asked) == 2  # a worker is asked for both
    for pk in asked:
        tasks.mail_reset(pk)
    assert [mail["To"] for mail in sink.mails] == [bob.email]


def test_the_page_does_the_same_for_who_is_unknown(sink, asked, bob):
    """The same queries and the same request to a worker: no time tells the two apart."""
    done = []
    for address in (bob.email, "nobody@example.com"):
        cache.clear()
        with CaptureQueriesContext(connection) as queries:
            answer = Client().post("/accounts/password/reset/", {"email": address})
        assert answer.status_code == 302
        done.append([re.sub(r"'[^']*'", "?", query["sql"]) for query in queries])
    assert done[0] == done[1]
    assert [len(pk) for pk in asked] == [36, 36]


@pytest.mark.parametrize("key", ["null", "x", "another's", "used", "x" * 400])
def test_a_token_that_isnt_right_is_400(client, sink, asked, bob, key):
    carol = make_user("carol@example.com")
    ask(client, bob.email)
    path = mailed(sink, asked)
    head, _dash, token = path.rstrip("/").rpartition("/")[2].partition("-")
    if key == "another's":
        head, key = tasks.user_pk_to_url_str(carol), token
    elif key == "used":
        choose(client, path)
        key = token
    answer = Client().get(f"/accounts/password/reset/key/{head}-{key}/")
    assert answer.status_code == 400
    answer = Client().post(
        f"/accounts/password/reset/key/{head}-set-password/", {"password1": NEW, "password2": NEW}
    )
    assert answer.status_code == 400
    carol.refresh_from_db()
    assert carol.check_password(PASSWORD)


def test_an_empty_token_is_not_there(client, sink):
    assert client.get("/accounts/password/reset/key/").status_code == 404
    assert client.get("/accounts/password/reset/key/x-/").status_code in (400, 404)


def test_who_is_switched_off_gets_no_mail(client, sink, asked, bob):
    bob.is_active = False
    bob.save()
    ask(client, bob.email)
    for pk in asked:
        tasks.mail_reset(pk)
    assert sink.mails == []


def test_a_dead_mail_server_or_broker_is_no_fault(client, settings, bob, monkeypatch):
    settings.MAIL_IS_SET_UP = True
    settings.MAILERS = {"default": env.mailer("smtp://127.0.0.1:9")}
    tasks.mail_reset(str(bob.pk))

    def broken(*args, **options):
        raise OSError

    monkeypatch.setattr(tasks.mail_reset, "apply_async", broken)
    assert "Look into your mail" in ask(client, bob.email).text


def test_without_a_mail_server_it_isnt_offered(client, bob, settings):
    settings.MAIL_IS_SET_UP = False
    assert "Forgot your password?" not in client.get("/accounts/login/").text
    assert client.get("/accounts/password/reset/").status_code == 404


def test_asking_often_is_throttled(client, sink, bob):
    answers = [
        client.post("/accounts/password/reset/", {"email": bob.email}).status_code
        for _attempt in range(12)
    ]
    assert answers[0] == 302
    assert 429 in answers


def test_twenty_wrong_passwords_are_throttled_and_the_right_one_waits_too(client, bob):
    said = ""
    for _attempt in range(20):
        data = {"login": bob.email, "password": "not the password"}
        said = client.post("/accounts/login/", data).text
    assert "Too many attempts to sign in failed" in said
    right = {"login": bob.email, "password": PASSWORD}
    client.post("/accounts/login/", right)
    assert "_auth_user_id" not in client.session
