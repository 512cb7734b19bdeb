"""Tokens of a signed-in connection: given out while they last, renewed once, whatever happens."""

import asyncio
import datetime as dt
import json
import logging
import time

import pytest
from django.db import DatabaseError
from django.utils import timezone

from connections import actions, renewal
from connections.choices import Status
from connections.ladder import climb, subject_of, verdict
from connections.models import Connection, Secret
from connections.providers import get
from connections.providers.base import ErrorKind, ModelRequest, ProviderError, TextDelta, Turnlet
from connections.renewal import times_of, values_of
from connections.resolve import resolve
from connections.sentences import Reason
from connections.sign_in import issuer_for
from connections.targets import (
    NotSignedIn,
    OAuthOff,
    SecretUnreadable,
    SignInEnded,
    availability,
    target_of,
)
from connections.tasks import record_turn_outcome
from sessions.queueing import PAUSING
from tests.builders import make_connection
from tests.fakes.http import Cut, Hang
from tests.fakes.server import FakeProviders
from workspaces import egress
from workspaces.models import AuditEvent
from workspaces.runtime import get_runtime

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def running():
    with FakeProviders() as fakes:
        yield fakes


@pytest.fixture
def fakes(running, settings):
    running.reset()
    running.issuer.__init__()
    settings.OAUTH = running.oauth_settings()
    settings.EGRESS_ALLOW = "127.0.0.0/8,::1"
    return running


@pytest.fixture(autouse=True)
def loop():
    """The runtime as a worker has it; its threads let go of the database afterwards."""
    yield
    get_runtime().stop(5)


def signed_in(fakes, *, expired=True, slug="claude", **fields):
    """A connection with tokens of the issuer, which are to be renewed now."""
    values = {"base_url": fakes.anthropic_oauth, "models": ["echo"], "default_model": "echo"}
    made = make_connection(slug, provider_type="anthropic", **(values | fields), auth_type="oauth")
    from connections.providers.wire.oauth import tokens_of

    tokens = tokens_of(fakes.issuer.grant())
    grant = {"account": tokens.account, "account_kind": tokens.kind, **times_of(tokens)}
    from django.db import transaction

    with transaction.atomic():
        values = values_of(tokens, issuer_for("anthropic"))
        actions.store_sign_in("test", made, values, grant=grant)
    if expired:
        fakes.issuer.withdraw()
        Secret.objects.update(renew_at=timezone.now() - dt.timedelta(seconds=1))
    AuditEvent.objects.all().delete()
    return Connection.objects.with_secrets().get(pk=made.pk)


def stored():
    return json.loads(Secret.objects.get().value.open())


async def ask(target, text="hello", model="echo"):
    """One step of a turn; its text."""
    request = ModelRequest(
        model=model, history=[Turnlet("user", [{"t": "text", "text": text}])], max_tokens=100
    )
    client = egress.client_for(egress.provider_policy())
    said = [
        event.text
        async for event in get("anthropic").stream(client, target, request)
        if isinstance(event, TextDelta)
    ]
    return "".join(said)


def on_loop(*coroutines):
    """Their outcomes on the worker's loop, all at once: values and exceptions."""

    async def together():
        return await asyncio.gather(*coroutines, return_exceptions=True)

    return get_runtime().submit(together()).result(60)


def kinds(outcomes):
    return [one.kind if isinstance(one, ProviderError) else one for one in outcomes]


def chats(fakes):
    return [one for one in fakes.requests() if one["path"].endswith("/messages")]


# -- while they last -------------------------------------------------------------------------------


def test_a_token_that_lasts_is_sent_as_it_is_with_the_beta(fakes):
    made = signed_in(fakes, expired=False)
    assert on_loop(ask(target_of(made))) == ["hello"]
    headers = chats(fakes)[0]["headers"]
    assert headers["anthropic-beta"] == "oauth-2025-04-20"
    assert "x-api-key" not in headers
    assert headers["authorization"].startswith("sha256:")
    assert fakes.issuer.calls == []


def test_another_beta_of_the_extra_headers_stays(fakes):
    made = signed_in(fakes, expired=False)
    actions.update("test", made, {}, headers={"anthropic-beta": "context-1m"})
    made = Connection.objects.with_secrets().get()
    on_loop(ask(target_of(made)))
    assert chats(fakes)[0]["headers"]["anthropic-beta"] == "context-1m,oauth-2025-04-20"


@pytest.mark.parametrize(
    ("lifetime", "early"), [(3600, 300), (601, 300), (400, 200), (10, 5), (None, None)]
)
def test_five_minutes_before_its_end_or_at_half_time_it_is_renewed(fakes, lifetime, early):
    fakes.issuer.lifetime = lifetime
    signed_in(fakes, expired=False)
    secret = Secret.objects.get()
    if lifetime is None:
        assert (secret.expires_at, secret.renew_at) == (None, None)
    else:
        assert secret.expires_at - secret.renew_at == dt.timedelta(seconds=early)


# -- renewed by exactly one ------------------------------------------------------------------------


def test_twenty_at_once_on_an_expired_token_are_one_renewal(fakes):
    made = signed_in(fakes)
    before = stored()
    fakes.issuer.hold = 0.3
    outcomes = on_loop(*(ask(target_of(made), f"m{n}") for n in range(20)))
    assert outcomes == [f"m{n}" for n in range(20)]
    assert [call.outcome for call in fakes.issuer.calls] == ["ok"]
    assert {one["status"] for one in chats(fakes)} == {200}
    after = stored()
    assert after["refresh_token"] != before["refresh_token"]
    secret = Secret.objects.get()
    assert (secret.renewing_until, secret.renewing_token, secret.renewals) == (None, None, 1)
    assert secret.renew_at > timezone.now()
    assert (secret.account, secret.account_kind) == ("dana@example.com", "personal")
    event = AuditEvent.objects.get()
    assert (event.action, event.actor_label) == ("secret.renew", "worker")
    assert after["access_token"] not in json.dumps(event.details)


def test_who_comes_later_uses_what_is_stored(fakes):
    made = signed_in(fakes)
    stale = [target_of(made) for _ in range(3)]
    for target in stale:
        assert on_loop(ask(target)) == ["hello"]
    assert len(fakes.issuer.calls) == 1


def test_who_waits_for_another_process_holds_no_database_thread(fakes):
    made = signed_in(fakes)
    until = timezone.now() + dt.timedelta(seconds=60)
    Secret.objects.update(renewing_until=until, renewing_token=made.pk)
    waiting = get_runtime().submit(ask(target_of(made)))
    looks = []
    for _ in range(20):  # each of them would wait if the four threads were taken
        started = time.monotonic()
        get_runtime().submit(get_runtime().db(Secret.objects.count)).result(10)
        looks.append(time.monotonic() - started)
    assert max(looks) < 2
    assert not waiting.done()
    # The other one has stored its tokens.
    fresh = fakes.issuer.grant()
    with_lease_over(fresh)
    assert waiting.result(20) == "hello"
    assert fakes.issuer.calls == []


def with_lease_over(answer, error=""):
    from connections.providers.wire.oauth import tokens_of
    from workspaces.vault import Plain

    secret = Secret.objects.select_related("connection").get()
    if answer:
        tokens = tokens_of(answer)
        secret.value = Plain(json.dumps(values_of(tokens, issuer_for("anthropic"))))
        secret.renew_at = times_of(tokens)["renew_at"]
    secret.renewals += 1
    secret.renewal_error = error
    secret.renewing_until = secret.renewing_token = None
    secret.save()


def test_who_waited_for_a_failure_takes_it_for_his_own(fakes):
    made = signed_in(fakes)
    until = timezone.now() + dt.timedelta(seconds=60)
    Secret.objects.update(renewing_until=until, renewing_token=made.pk)
    waiting = get_runtime().submit(ask(target_of(made)))
    time_to_look(fakes)
    with_lease_over(None, ErrorKind.SERVER.value)
    with pytest.raises(ProviderError) as raised:
        waiting.result(20)
    assert raised.value.kind is ErrorKind.SERVER
    assert fakes.issuer.calls == []


def time_to_look(fakes):
    """Until a wait has begun: it is the one flight of this process."""
    fakes.wait_for(lambda: renewal._flights)
    time.sleep(0.2)


def test_a_lease_whose_holder_died_is_taken_over(fakes):
    made = signed_in(fakes)
    until = timezone.now() + dt.timedelta(seconds=0.5)
    Secret.objects.update(renewing_until=until, renewing_token=made.pk)
    assert on_loop(ask(target_of(made))) == ["hello"]
    assert len(fakes.issuer.calls) == 1


def test_a_wait_has_an_end(fakes, monkeypatch):
    monkeypatch.setattr(renewal, "WAIT", 0.3)
    made = signed_in(fakes)
    until = timezone.now() + dt.timedelta(seconds=60)
    Secret.objects.update(renewing_until=until, renewing_token=made.pk)
    assert kinds(on_loop(ask(target_of(made)))) == [ErrorKind.TIMEOUT]


def test_somebody_who_goes_away_leaves_the_renewal_to_the_others(fakes):
    made = signed_in(fakes)
    fakes.issuer.hold = 0.5

    async def one_is_stopped():
        first = asyncio.ensure_future(ask(target_of(made), "first"))
        second = asyncio.ensure_future(ask(target_of(made), "second"))
        while not fakes.issuer.calls:
            await asyncio.sleep(0.01)
        first.cancel()
        return await second

    assert get_runtime().submit(one_is_stopped()).result(30) == "second"
    assert len(fakes.issuer.calls) == 1


def test_a_worker_that_is_stopped_stores_what_the_issuer_answers(fakes):
    made = signed_in(fakes)
    before = stored()
    fakes.issuer.hold = 1.0
    get_runtime().submit(ask(target_of(made)))
    fakes.wait_for(lambda: fakes.issuer.calls)
    get_runtime().stop(0.1)
    assert stored()["refresh_token"] != before["refresh_token"]
    assert Secret.objects.get().renewals == 1


# -- a token that is refused before its time -------------------------------------------------------


def test_a_refused_token_is_renewed_once_and_the_call_made_again(fakes):
    made = signed_in(fakes, expired=False)
    fakes.issuer.withdraw()
    outcomes = on_loop(*(ask(target_of(made), f"m{n}") for n in range(5)))
    assert outcomes == [f"m{n}" for n in range(5)]
    assert len(fakes.issuer.calls) == 1


def test_a_second_refusal_fails_as_authentication(fakes, monkeypatch):
    made = signed_in(fakes, expired=False)
    monkeypatch.setattr(type(fakes.issuer), "is_good", lambda self, token: False)
    assert kinds(on_loop(ask(target_of(made)))) == [ErrorKind.AUTH]
    assert len(fakes.issuer.calls) == 1
    assert [one["status"] for one in chats(fakes)] == [401, 401]


def test_a_list_of_models_renews_too(fakes):
    made = signed_in(fakes, expired=False)
    fakes.issuer.withdraw()

    async def listed():
        client = egress.client_for(egress.provider_policy())
        return await get("anthropic").list_models(client, target_of(made))

    (models,) = on_loop(listed())
    assert "echo" in {model.id for model in models}
    assert len(fakes.issuer.calls) == 1


def test_a_short_life_renews_at_each_use_and_never_in_a_circle(fakes):
    made = signed_in(fakes)
    fakes.issuer.lifetime = 0.001
    on_loop(ask(target_of(made)))
    assert len(fakes.issuer.calls) == 2  # the renewal, and the one that the refusal forced
    assert len(chats(fakes)) == 2


# -- what can go wrong -----------------------------------------------------------------------------


def test_a_grant_that_is_over_asks_for_a_sign_in_and_never_again_for_tokens(fakes, workspace):
    made = signed_in(fakes)
    fakes.issuer.end()
    outcomes = on_loop(*(ask(target_of(made)) for _ in range(20)))
    assert set(kinds(outcomes)) == {ErrorKind.SIGN_IN_AGAIN}
    assert len(fakes.issuer.calls) == 1
    assert chats(fakes) == []
    secret = Secret.objects.get()
    assert json.loads(secret.value.open()) == {}  # what is of no use isn't kept
    assert (secret.account, secret.ended_at is None) == ("dana@example.com", False)
    made = Connection.objects.with_secrets().get()
    assert made.status == Status.INCOMPLETE
    assert availability(made) is ErrorKind.SIGN_IN_AGAIN
    assert resolve(workspace).trace[-1].reason is ErrorKind.SIGN_IN_AGAIN
    assert ErrorKind.SIGN_IN_AGAIN in PAUSING
    with pytest.raises(SignInEnded):
        target_of(made)
    assert [e.action for e in AuditEvent.objects.all()] == ["connection.sign_in_ended"]
    # A turn that had begun before asks nobody.
    assert kinds(on_loop(ask(target_of_stale(fakes, made)))) == [ErrorKind.SIGN_IN_AGAIN]
    assert len(fakes.issuer.calls) == 1


def target_of_stale(fakes, made):
    from connections.providers.base import Target

    past = timezone.now() - dt.timedelta(seconds=1)
    old = renewal.Stored({"access_token": "sk-fake-oat-old"}, past)
    fresh = renewal.Renewed(made.secrets.get().pk, old)
    return Target("anthropic", "oauth", fakes.anthropic_oauth, secret=old.fields, fresh=fresh)


def test_the_pages_say_sign_in_again(fakes, alice, client_for):
    made = signed_in(fakes)
    fakes.issuer.end()
    on_loop(ask(target_of(made)))
    page = client_for(alice)
    html = page.get("/connections/claude/").text
    assert 'data-status="incomplete"' in html
    assert html.count("Sign in again") >= 2
    assert "dana@example.com" in html
    assert "Sign in again" in page.get("/connections/").text


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (500, ErrorKind.SERVER),
        (503, ErrorKind.OVERLOADED),
        ((429, {"error": "slow_down"}), ErrorKind.RATE_LIMITED),
        ((403, {"error": "access_denied"}), ErrorKind.FORBIDDEN),
        ((401, {"error": "invalid_client"}), ErrorKind.FORBIDDEN),
        ((400, {"error": "invalid_request"}), ErrorKind.BAD_REQUEST),
        ((200, b"<html>"), ErrorKind.PROTOCOL),
        ((200, []), ErrorKind.PROTOCOL),
        ((200, {"access_token": 7}), ErrorKind.PROTOCOL),
        ((200, {"access_token": "x" * 20_000}), ErrorKind.PROTOCOL),
        ((200, {"access_token": "x" * 400_000}), ErrorKind.PROTOCOL),
        (302, ErrorKind.REDIRECT),
        (307, ErrorKind.REDIRECT),
        (Cut, ErrorKind.CONNECT),
    ],
)
def test_a_failure_has_its_kind_counts_for_all_and_the_next_turn_tries_anew(fakes, fault, kind):
    made = signed_in(fakes)
    before = stored()
    fakes.issuer.faults = [fault]
    outcomes = on_loop(*(ask(target_of(made)) for _ in range(5)))
    assert set(kinds(outcomes)) == {kind}
    assert len(fakes.issuer.calls) == 1
    assert stored() == before
    event = AuditEvent.objects.get()
    assert (event.action, event.details["error"]) == ("secret.renew_failed", kind.value)
    assert all(before["refresh_token"] not in str(one) for one in outcomes)
    assert on_loop(ask(target_of(made))) == ["hello"]


def test_an_issuer_that_falls_silent_is_given_up(fakes, monkeypatch):
    monkeypatch.setattr("connections.providers.wire.oauth.SECONDS", 0.3)
    made = signed_in(fakes)
    fakes.issuer.faults = [Hang]
    assert kinds(on_loop(ask(target_of(made)))) == [ErrorKind.TIMEOUT]
    assert Secret.objects.get().renewing_until is None


def test_the_egress_policy_counts_for_the_issuer_too(fakes, settings):
    made = signed_in(fakes, base_url="https://llm.example.com")
    settings.EGRESS_ALLOW = ""
    assert kinds(on_loop(ask(target_of(made)))) == [ErrorKind.EGRESS]
    assert fakes.issuer.calls == []


def test_a_name_that_turns_into_a_loopback_address_is_refused_at_the_call(
    fakes, settings, monkeypatch
):
    import ipaddress

    made = signed_in(fakes)
    settings.EGRESS_ALLOW = ""
    port = fakes.url.rpartition(":")[2]
    settings.OAUTH = fakes.oauth_settings(token_url=f"http://issuer.example:{port}/issuer/token")
    change_issuer(f"http://issuer.example:{port}")
    monkeypatch.setattr(egress, "lookup", lambda host, p: [ipaddress.ip_address("127.0.0.1")])
    assert kinds(on_loop(ask(target_of(made)))) == [ErrorKind.EGRESS]
    assert fakes.issuer.calls == []


def change_issuer(origin):
    from workspaces.vault import Plain

    secret = Secret.objects.select_related("connection").get()
    secret.value = Plain(json.dumps(json.loads(secret.value.open()) | {"issuer": origin}))
    secret.save()


def test_a_refresh_token_goes_to_nobody_but_its_issuer(fakes, settings):
    made = signed_in(fakes)
    with FakeProviders() as other:
        settings.OAUTH = other.oauth_settings()
        assert kinds(on_loop(ask(target_of(made)))) == [ErrorKind.SIGN_IN_AGAIN]
        assert other.requests() == []
    assert fakes.issuer.calls == []


def test_a_sign_out_during_a_renewal_wins(fakes):
    made = signed_in(fakes)
    fakes.issuer.hold = 0.5
    running = get_runtime().submit(ask(target_of(made)))
    fakes.wait_for(lambda: fakes.issuer.calls)
    assert actions.sign_out("test", made)
    with pytest.raises(ProviderError):
        running.result(20)
    assert not Secret.objects.exists()
    assert chats(fakes) == []


def test_a_new_sign_in_during_a_renewal_wins(fakes):
    made = signed_in(fakes)
    fakes.issuer.hold = 0.5
    running = get_runtime().submit(ask(target_of(made)))
    fakes.wait_for(lambda: fakes.issuer.calls)
    from django.db import transaction

    with transaction.atomic():
        values = {"access_token": "mine", "refresh_token": "r", "issuer": fakes.url}
        grant = {"account": "new@example.com", "account_kind": "personal"}
        actions.store_sign_in("test", made, values, grant=grant)
    with pytest.raises(ProviderError):
        running.result(20)
    assert stored()["access_token"] == "mine"
    assert Secret.objects.get().account == "new@example.com"


def test_a_database_that_fails_for_a_moment_costs_no_sign_in(fakes, monkeypatch):
    made = signed_in(fakes)
    real, failures = renewal._save, []

    def fails_once(*arguments):
        if not failures:
            failures.append(True)
            raise DatabaseError("gone for a moment")
        return real(*arguments)

    monkeypatch.setattr(renewal, "_save", fails_once)
    assert on_loop(ask(target_of(made))) == ["hello"]
    assert len(fakes.issuer.calls) == 1


def test_without_the_audit_row_no_new_tokens_are_used(fakes, monkeypatch):
    made = signed_in(fakes)
    before = stored()

    def broken(*args, **details):
        raise DatabaseError("the audit can't be written")

    monkeypatch.setattr(renewal, "record", broken)
    monkeypatch.setattr(renewal, "SAVE_TRIES", 1)
    (outcome,) = on_loop(ask(target_of(made)))
    assert isinstance(outcome, DatabaseError)
    assert stored() == before
    assert chats(fakes) == []


def test_nothing_of_a_token_is_logged(fakes, caplog):
    caplog.set_level(logging.DEBUG)
    made = signed_in(fakes)
    values = list(stored().values())[:2]
    fakes.issuer.faults = [500, Cut, (400, {"error": " ".join(values)})]
    for _ in range(4):
        on_loop(ask(target_of(made)))
    fakes.issuer.end()
    Secret.objects.update(renew_at=timezone.now())
    values += list(stored().values())[:2]
    on_loop(ask(target_of(made)))
    text = caplog.text + repr(target_of_stale(fakes, made))
    text += json.dumps(list(AuditEvent.objects.values_list("details", flat=True)))
    assert "could not be renewed" in text
    assert not [value for value in values if value in text]


# -- the configuration -----------------------------------------------------------------------------


def test_nobody_signed_in_says_so(fakes):
    made = make_connection("claude", provider_type="anthropic", auth_type="oauth")
    with pytest.raises(NotSignedIn):
        target_of(made)
    assert availability(made) is Reason.NOT_SIGNED_IN


def test_an_operator_who_switches_it_off_stops_the_calls(fakes, settings):
    made = signed_in(fakes, expired=False)
    target = target_of(made)
    settings.OAUTH = fakes.oauth_settings(client_id="")
    with pytest.raises(OAuthOff):
        target_of(made)
    Secret.objects.update(renew_at=timezone.now())
    fakes.issuer.withdraw()
    assert kinds(on_loop(ask(target))) == [ErrorKind.FORBIDDEN]
    assert fakes.issuer.calls == []


def test_a_bit_that_flipped_seals_it(fakes):
    made = signed_in(fakes)
    from workspaces.fields import Stored

    secret = made.secrets.get()
    raw = bytearray(secret.value.stored)
    raw[-1] ^= 1
    Secret.objects.update(value=Stored(bytes(raw)))
    made = Connection.objects.with_secrets().get()
    assert made.status == Status.SEALED
    with pytest.raises(SecretUnreadable):
        target_of(made)


def test_a_probe_climbs_with_renewed_tokens(fakes):
    made = signed_in(fakes)
    (results,) = on_loop(climb(subject_of(made)))
    assert verdict(results).passed is True
    assert len(fakes.issuer.calls) == 1


def test_a_probe_of_a_sign_in_that_is_over_fails_at_authentication(fakes):
    made = signed_in(fakes)
    fakes.issuer.end()
    (results,) = on_loop(climb(subject_of(made)))
    failed = next(one for one in results if one.outcome == "failed")
    assert (failed.rung, failed.kind) == ("auth", ErrorKind.SIGN_IN_AGAIN)


def test_a_turn_that_found_the_sign_in_over_marks_the_connection(fakes):
    made = signed_in(fakes, expired=False)
    record_turn_outcome(made.pk, ErrorKind.SIGN_IN_AGAIN.value)
    made.refresh_from_db()
    assert (made.health, made.health_error) == (Status.FAILED, ErrorKind.SIGN_IN_AGAIN)
