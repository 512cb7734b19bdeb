"""Signing in to ChatGPT on the connection's page: the real Codex binary in a worker's loop, a fake
issuer, and a person who types the code, or doesn't."""

import asyncio
import contextlib
import datetime as dt
import json
import time

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from connections import deleting, device
from connections.choices import Status
from connections.issuers import issuer_for
from connections.models import Connection, Secret, SignIn
from connections.providers import get
from connections.providers.base import ErrorKind, ModelRequest, ProviderError, TextDelta, Turnlet
from connections.providers.wire.oauth import Tokens
from connections.sign_in import keep
from connections.targets import target_of
from connections.tasks import sign_in_by_device, validate_connection, validate_due
from tests.builders import make_connection
from tests.connections.codex import homes, processes
from tests.fakes.device import DeviceIssuer
from tests.fakes.server import key_hash
from workspaces import egress
from workspaces.models import AuditEvent
from workspaces.runtime import get_runtime

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/connections/chatgpt/"
FRAGMENT = {"HX-Request": "true", "HX-Target": "sign-in"}


@pytest.fixture
def issuer(settings):
    """On the worker's loop; its threads let go of the database afterwards."""
    made = DeviceIssuer()
    get_runtime().submit(made.__aenter__()).result(10)
    settings.EGRESS_ALLOW = "127.0.0.0/8"
    settings.OAUTH = {
        "openai": {
            "client_id": "ours",
            "token_url": f"{made.url}/oauth/token",
            "json_body": True,
        }
    }
    yield made
    get_runtime().submit(made.__aexit__()).result(10)
    get_runtime().stop(5)
    assert processes() == []
    assert homes() == []


@pytest.fixture(autouse=True)
def doorbell(monkeypatch):
    """Whom the workers were told of."""
    rung = []
    monkeypatch.setattr(validate_connection, "apply_async", lambda *args, **options: None)
    monkeypatch.setattr(
        sign_in_by_device, "apply_async", lambda args, **options: rung.append(args[0])
    )
    monkeypatch.setattr(device, "LOOK", 0.1)
    return rung


@pytest.fixture
def page(alice, client_for):
    return client_for(alice)


@pytest.fixture
def chatgpt(fakes):
    fakes.reset()
    return make_connection(
        "chatgpt",
        provider_type="openai",
        auth_type="oauth",
        base_url=fakes.openai_nokey,
        models=["echo"],
        default_model="echo",
    )


def begin(page, doorbell):
    """Presses the button, and lets a worker hear the bell."""
    answer = page.post(f"{PAGE}sign-in/")
    assert answer.status_code == 303, answer.text
    sign_in_by_device(doorbell[-1])
    return SignIn.objects.get(pk=doorbell[-1])


def until(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
    return value


def shown(page, words):
    return until(lambda: words in (html := page.get(PAGE).text) and html)


def signed_in(page, issuer, doorbell):
    begin(page, doorbell)
    shown(page, "ABCD-12345")
    issuer.approve()
    shown(page, "Personal login: carol@example.com")
    return Connection.objects.with_secrets().get()


async def ask(target):
    request = ModelRequest(
        model="echo", history=[Turnlet("user", [{"t": "text", "text": "hello"}])], max_tokens=100
    )
    stream = get("openai").stream(egress.client_for(egress.provider_policy()), target, request)
    async with contextlib.aclosing(stream) as events:
        return "".join([one.text async for one in events if isinstance(one, TextDelta)])


def test_a_person_types_the_code_and_the_connection_answers(page, issuer, chatgpt, doorbell, fakes):
    assert "restrict the logins of personal plans" in page.get(PAGE).text
    page.post(f"{PAGE}sign-in/")
    html = page.get(PAGE).text
    assert "Asking for a code" in html
    assert 'hx-trigger="every 2s"' in html
    sign_in_by_device(doorbell[-1])
    html = shown(page, "ABCD-12345")
    assert f'href="{issuer.url}/codex/device" target="_blank" rel="noopener noreferrer"' in html
    fragment = page.get(PAGE, headers=FRAGMENT)
    assert fragment.text.lstrip().startswith('<section class="section" id="sign-in"')
    assert "HX-Refresh" not in fragment.headers
    issuer.approve()
    html = shown(page, "Personal login: carol@example.com")
    fragment = page.get(PAGE, headers=FRAGMENT)
    assert fragment.headers["HX-Refresh"] == "true"
    assert "ABCD-12345" not in html
    made = Connection.objects.with_secrets().get()
    assert made.status == Status.CHECKING
    stored = json.loads(Secret.objects.get().value.open())
    assert set(stored) == {"access_token", "refresh_token", "issuer", "account_id"}
    assert dict(target_of(made).secret).keys() == {"access_token", "account_id"}
    assert Secret.objects.get().renew_at > timezone.now() + dt.timedelta(minutes=50)
    assert issuer.client_ids == {"ours"}

    assert get_runtime().submit(ask(target_of(made))).result(60) == "hello"
    record = fakes.requests()[-1]
    assert record["key"] == key_hash(stored["access_token"])
    assert record["headers"]["chatgpt-account-id"] == "account-7"

    # An hour later: renewed by us, and the process is none the wiser.
    Secret.objects.update(renew_at=timezone.now())
    made = Connection.objects.with_secrets().get()
    assert get_runtime().submit(ask(target_of(made))).result(60) == "hello"
    renewed = json.loads(Secret.objects.get().value.open())
    assert renewed["refresh_token"] == issuer.tokens["refresh_token"] != stored["refresh_token"]
    assert renewed["account_id"] == "account-7"
    assert fakes.requests()[-1]["key"] == key_hash(renewed["access_token"])
    assert Secret.objects.get().renew_at > timezone.now() + dt.timedelta(minutes=50)
    said = json.dumps(list(AuditEvent.objects.values("action", "details")))
    for token in (*stored.values(), *issuer.tokens.values()):
        assert token in (stored["issuer"], "account-7") or token not in said


def test_a_sign_in_that_is_over_is_told(page, issuer, chatgpt, doorbell):
    made = signed_in(page, issuer, doorbell)
    issuer.make_tokens()  # ours are used up
    Secret.objects.update(renew_at=timezone.now())
    made = Connection.objects.with_secrets().get()
    with pytest.raises(ProviderError) as raised:
        get_runtime().submit(ask(target_of(made))).result(60)
    assert raised.value.kind is ErrorKind.SIGN_IN_AGAIN
    assert "Sign in again" in page.get(PAGE).text


def test_cancel_ends_the_process(page, issuer, chatgpt, doorbell):
    begin(page, doorbell)
    shown(page, "ABCD-12345")
    assert len(processes()) == 1
    page.post(f"{PAGE}sign-in/cancel/")
    until(lambda: not processes())
    html = page.get(PAGE).text
    assert "ABCD-12345" not in html
    assert "Sign in with OpenAI" in html
    assert not Secret.objects.exists()


def test_beginning_again_ends_the_first_process(page, issuer, chatgpt, doorbell):
    first = begin(page, doorbell)
    shown(page, "ABCD-12345")
    second = begin(page, doorbell)
    first.refresh_from_db()
    assert (first.state, first.pk != second.pk) == ("cancelled", True)
    shown(page, "ABCD-12345")
    until(lambda: len(processes()) == 1)
    page.post(f"{PAGE}sign-in/cancel/")


def test_two_workers_take_it_once(page, issuer, chatgpt, doorbell):
    attempt = begin(page, doorbell)
    sign_in_by_device(str(attempt.pk))
    sign_in_by_device(str(attempt.pk))
    shown(page, "ABCD-12345")
    assert len([path for path in issuer.paths if path.endswith("/usercode")]) == 1
    sign_in_by_device(str(attempt.pk))
    issuer.approve()
    shown(page, "Personal login")
    assert len([path for path in issuer.paths if path.endswith("/usercode")]) == 1


def test_a_message_that_got_lost_is_found_by_the_sweep(page, issuer, chatgpt, doorbell):
    page.post(f"{PAGE}sign-in/")
    Connection.objects.update(next_check_at=timezone.now() + dt.timedelta(hours=1))
    validate_due()
    shown(page, "ABCD-12345")
    page.post(f"{PAGE}sign-in/cancel/")


def test_a_denied_code_says_so(page, issuer, chatgpt, doorbell):
    begin(page, doorbell)
    shown(page, "ABCD-12345")
    issuer.state = "denied"
    html = shown(page, "The provider refused the sign-in")
    assert "Sign in with OpenAI" in html
    events = AuditEvent.objects.filter(action="connection.sign_in_failed")
    assert [event.details["error"] for event in events] == ["auth"]


def test_an_issuer_that_gives_no_code_says_so(page, issuer, chatgpt, doorbell):
    issuer.refuses_codes = True
    begin(page, doorbell)
    shown(page, "No connection to the provider")


def test_a_code_that_nobody_types_runs_out(page, issuer, chatgpt, doorbell):
    begin(page, doorbell)
    shown(page, "ABCD-12345")
    SignIn.objects.update(expires_at=timezone.now() - dt.timedelta(seconds=1))
    assert "The code has expired" in page.get(PAGE).text
    until(lambda: not processes())


def test_a_worker_that_died_is_told(page, issuer, chatgpt, doorbell):
    begin(page, doorbell)
    shown(page, "ABCD-12345")
    get_runtime().submit(_killed()).result(10)
    SignIn.objects.update(busy_until=timezone.now() - dt.timedelta(seconds=1))
    html = page.get(PAGE).text
    assert "The worker that waited was stopped" in html
    assert "ABCD-12345" not in html
    assert device.waiting() == []  # its process is gone: nobody can go on with it


async def _killed():
    for task in get_runtime()._tasks - {asyncio.current_task()}:
        task.cancel()


def test_a_deleted_connection_keeps_nothing(page, issuer, chatgpt, doorbell, alice):
    begin(page, doorbell)
    shown(page, "ABCD-12345")
    deleting.delete(alice, chatgpt)
    issuer.approve()
    until(lambda: not processes())
    assert not Secret.objects.exists()


def test_without_the_binary_the_page_says_how_to_get_it(page, issuer, chatgpt, settings):
    settings.CODEX_PATHS = ()
    html = page.get(PAGE).text
    assert "Nobody can sign in now" in html
    assert "Sign in with OpenAI" not in html


def test_while_it_is_off_the_page_names_the_setting(page, issuer, chatgpt, settings):
    settings.OAUTH = {"openai": {**settings.OAUTH["openai"], "client_id": ""}}
    assert "PATCHBAY_OAUTH_OPENAI_CLIENT_ID" in page.get(PAGE).text
    assert page.post(f"{PAGE}sign-in/").status_code == 400


def test_a_code_can_not_be_pasted_into_it(page, issuer, chatgpt, doorbell):
    page.post(f"{PAGE}sign-in/")
    attempt = SignIn.objects.get()
    data = {"attempt": str(attempt.pk), "code": "code"}
    answer = page.post(f"{PAGE}sign-in/finish/", data)
    assert answer.status_code == 422
    assert "known any more" in answer.text


def test_who_is_no_admin_any_more_signs_nothing_in(page, issuer, chatgpt, doorbell, alice):
    """The code is on a page of theirs, and their account would answer everybody."""
    begin(page, doorbell)
    shown(page, "ABCD-12345")
    type(alice).objects.filter(pk=alice.pk).update(is_superuser=False)
    until(lambda: processes() == [])
    issuer.approve()
    attempt = SignIn.objects.get()
    assert attempt.state != SignIn.State.DONE
    tokens = Tokens("access", "refresh", 3600.0, "carol", "personal", {"account_id": "a"})
    with pytest.raises(ValidationError):  # tokens that came at the same moment
        keep(alice, chatgpt, attempt, tokens, issuer_for("openai"))
    assert not Secret.objects.exists()
