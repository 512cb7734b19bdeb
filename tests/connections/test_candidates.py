"""A new secret beside the one in use: checked, promoted in one step, or left for a person."""

import datetime as dt
import json
import re
import secrets
import threading

import pytest
from django.core.exceptions import ValidationError
from django.db import connections
from django.utils import timezone

from connections import actions, alerts, candidates, deleting
from connections.choices import Outcome, Rung, Status
from connections.ladder import RungResult, subject_of
from connections.ladder import climb as climb_ladder
from connections.models import Alert, Connection, ProbeResult, Secret, SecretCandidate
from connections.targets import target_of
from connections.tasks import (
    ASKED_FOR,
    RUNNING_FOR,
    _take,
    _write_down,
    check,
    check_candidate,
    probe,
    prune,
    request_validation,
    validate_connection,
)
from tests.builders import KEY, make_connection, make_secret, make_user
from workspaces import rotation, vault
from workspaces.models import AuditEvent
from workspaces.runtime import get_runtime

pytestmark = pytest.mark.django_db(transaction=True)

NEW = "sk-new-0123456789-abcdef-n3W1"
PAGE, FORM = "/connections/fake/", "/connections/fake/secret/"
State = SecretCandidate.State


@pytest.fixture(autouse=True)
def world(settings):
    settings.EGRESS_ALLOW = "127.0.0.0/8,::1"
    yield
    get_runtime().stop(5)


@pytest.fixture(autouse=True)
def rung(monkeypatch):
    """The connections of which workers would have been told."""
    told = []
    monkeypatch.setattr(check_candidate, "apply_async", lambda args, **more: told.append(args[0]))
    monkeypatch.setattr(validate_connection, "apply_async", lambda args, **more: None)
    return told


@pytest.fixture
def page(alice, client_for):
    return client_for(alice)


@pytest.fixture
def local(fakes):
    """In use with a key that the provider doesn't take any more."""
    return make_connection(
        "fake", base_url=fakes.openai, key=KEY, models=["echo"], default_model="echo"
    )


def enter(page, key, **data):
    return page.post(FORM, {"api_key": key, **data})


def climb(connection):
    get_runtime().submit(check(connection.pk)).result(30)


def in_use(connection):
    fresh = Connection.objects.with_secrets().get(pk=connection.pk)
    return target_of(fresh).secret["api_key"]


def audited(action):
    return AuditEvent.objects.filter(action=action)


def test_what_passes_takes_the_place_of_the_old_one_in_one_step(page, alice, local, fakes, rung):
    before = bytes(local.secrets.get().value.stored)
    assert enter(page, fakes.good_key).status_code == 303
    assert rung == [str(local.pk)]
    assert in_use(local) == KEY
    html = page.get(PAGE).text
    assert 'id="candidate"' in html
    assert fakes.good_key not in html
    climb(local)
    assert in_use(local) == fakes.good_key
    assert not SecretCandidate.objects.exists()
    assert bytes(local.secrets.get().value.stored) != before
    local.refresh_from_db()
    assert (local.status, local.revision) == (Status.VALID, 1)
    result = ProbeResult.objects.get()
    assert (result.trigger, result.passed, result.requested_by) == ("candidate", True, alice)
    event = audited("secret.promote").get()
    assert (event.actor, event.target_id) == (alice, str(local.pk))
    assert event.details["host"] == local.origin
    assert event.details["proven"] is True
    everything = json.dumps(list(AuditEvent.objects.values_list("details", flat=True)))
    assert fakes.good_key not in everything
    assert fakes.good_key[-4:] not in everything


def test_the_page_asks_for_itself_until_it_is_over(page, local, fakes):
    enter(page, fakes.good_key)
    ask = {"HTTP_HX_REQUEST": "true", "HTTP_HX_TARGET": "candidate"}
    waiting = page.get(PAGE, **ask)
    assert "every 1s" in waiting.text
    assert "HX-Refresh" not in waiting.headers
    climb(local)
    assert page.get(PAGE, **ask).headers["HX-Refresh"] == "true"


def test_what_fails_leaves_the_old_one_in_use_and_says_why(page, local, rung):
    request = probe(local.pk, force=True)
    get_runtime().submit(request).result(30)
    health = Connection.objects.values("health", "health_at", "revision").get()
    enter(page, NEW)
    climb(local)
    there = SecretCandidate.objects.get()
    assert (there.state, there.error_kind) == (State.FAILED, "auth")
    assert in_use(local) == KEY
    # It says nothing of the connection itself.
    assert Connection.objects.values("health", "health_at", "revision").get() == health
    html = page.get(PAGE).text
    for words in ("Try again", "Use it anyway", "Discard", "The old secret stays in use."):
        assert words in html
    assert NEW not in html


def test_the_ladder_shows_how_far_it_has_climbed(local, alice, fakes):
    candidates.enter(alice, local, {"api_key": fakes.good_key})
    taken = candidates.take(local.pk, lease=RUNNING_FOR)
    seen = []

    async def tell(results):
        seen.append([result.rung.value for result in results])

    subject = subject_of(taken.connection, secret=taken.values)
    get_runtime().submit(climb_ladder(subject, tell=tell)).result(30)
    assert [len(rungs) for rungs in seen] == [1, 2, 3, 4]


def test_a_double_click_is_one_check(page, local, fakes, rung):
    for _ in range(2):
        assert enter(page, fakes.good_key).status_code == 303
    assert SecretCandidate.objects.count() == 1
    assert audited("secret.try").count() == 1
    climb(local)
    assert enter(page, fakes.good_key).status_code == 303  # a third, after all was done
    assert not SecretCandidate.objects.exists()


def test_another_admins_new_secret_is_not_replaced_unseen(page, local, client_for):
    other = client_for(make_user("dora@example.com", is_superuser=True))
    enter(other, "sk-other-0123456789-abcdef")
    refused = enter(page, NEW)
    assert refused.status_code == 422
    assert "dora@example.com entered another new secret" in refused.text
    assert NEW not in refused.text
    first = SecretCandidate.objects.get()
    assert enter(page, NEW, replaces=str(first.pk)).status_code == 303
    assert candidates.opened(SecretCandidate.objects.get()) == {"api_key": NEW}
    assert audited("secret.discard").get().details["reason"] == "replaced"
    # Who looks at a page of before doesn't promote what he never saw.
    stale = other.post(FORM + "use/", {"candidate": str(first.pk)})
    assert stale.status_code == 400
    assert in_use(local) == KEY


def test_with_htmx_the_browser_keeps_the_headers_that_were_typed(page, gateway):
    given = {
        "api_key": "two\nlines",
        "extra_headers": "X-Gateway-Key: of-a-new-kind",
        "replaces": "",
        "entered_for": gateway.binding,
    }
    answer = page.post(FORM, given, HTTP_HX_REQUEST="true")
    assert answer.status_code == 422
    assert answer.text.lstrip().startswith("<form")
    assert "of-a-new-kind" not in answer.text
    assert re.findall(r'name="(\w+)"[^>]* hx-preserve', answer.text) == ["extra_headers"]
    answer = page.post(FORM, given | {"api_key": ""}, HTTP_HX_REQUEST="true")
    assert answer.headers["HX-Redirect"] == gateway.get_absolute_url()


def test_the_form_of_before_another_address_is_refused(page, alice, local):
    old = local.binding
    actions.update(
        alice, local, {"base_url": "http://127.0.0.2:1/v1"}, secret={"api_key": KEY}, resolve=False
    )
    answer = enter(page, NEW, entered_for=old)
    assert answer.status_code == 422
    assert "127.0.0.2" in answer.text
    assert not SecretCandidate.objects.exists()


def test_nothing_typed_and_the_one_in_use_make_no_candidate(page, local):
    assert enter(page, "").status_code == 422
    assert enter(page, "clé").status_code == 422
    assert enter(page, KEY).status_code == 303
    assert not SecretCandidate.objects.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"provider_type": "anthropic", "auth_type": "environment"},
        {"provider_type": "anthropic", "auth_type": "oauth"},
    ],
)
def test_what_takes_no_typed_secret_has_no_such_page(page, fields):
    make_connection("fake", base_url="", **fields)
    assert page.get(FORM).status_code == 409
    assert enter(page, NEW).status_code == 409
    assert "Replace the secret" not in page.get(PAGE).text


def test_use_it_anyway_promotes_and_validates(page, alice, local):
    enter(page, NEW)
    climb(local)
    there = SecretCandidate.objects.get()
    assert page.post(FORM + "use/", {"candidate": str(there.pk)}).status_code == 303
    assert in_use(local) == NEW
    assert not SecretCandidate.objects.exists()
    assert audited("secret.promote").get().details["proven"] is False
    local.refresh_from_db()
    assert local.status == Status.CHECKING
    # Pressed twice: the second has nothing to do.
    assert page.post(FORM + "use/", {"candidate": str(there.pk)}).status_code == 400


def test_of_two_admins_at_once_one_decides(alice, local):
    candidates.enter(alice, local, {"api_key": NEW})
    SecretCandidate.objects.update(checking_until=None)
    there, barrier = str(SecretCandidate.objects.get().pk), threading.Barrier(2)
    said = []

    def press(verb):
        barrier.wait()
        try:
            verb(alice, local, there)
            said.append(verb.__name__)
        except ValidationError:
            said.append("refused")
        finally:
            connections.close_all()

    verbs = (candidates.use_anyway, candidates.discard)
    threads = [threading.Thread(target=press, args=(verb,)) for verb in verbs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "refused" in said
    (winner,) = set(said) - {"refused"}
    assert in_use(local) == (NEW if winner == "use_anyway" else KEY)
    assert not SecretCandidate.objects.exists()


def test_nothing_is_promoted_unproven_while_it_is_checked(page, local):
    enter(page, NEW)
    there = SecretCandidate.objects.get()
    assert page.post(FORM + "use/", {"candidate": str(there.pk)}).status_code == 400
    assert in_use(local) == KEY


def test_try_again_checks_again_and_discard_destroys(page, local, rung):
    enter(page, NEW)
    climb(local)
    data = {"candidate": str(SecretCandidate.objects.get().pk)}
    for _ in range(2):
        assert page.post(FORM + "again/", data).status_code == 303
    assert len(rung) == 2
    assert audited("secret.check").count() == 1
    assert SecretCandidate.objects.get().is_checking
    assert page.post(FORM + "discard/", data).status_code == 303
    assert not SecretCandidate.objects.exists()
    climb(local)  # the message of then
    assert in_use(local) == KEY
    assert audited("secret.discard").get().details["reason"] == "asked"


def test_a_check_whose_worker_died_is_due_again_and_the_late_one_writes_nothing(
    alice, local, fakes
):
    candidates.enter(alice, local, {"api_key": fakes.good_key})
    dead = candidates.take(local.pk, lease=RUNNING_FOR)
    assert candidates.take(local.pk, lease=RUNNING_FOR) is None
    assert candidates.due() == []
    past = timezone.now() - dt.timedelta(seconds=1)
    SecretCandidate.objects.update(due_at=past, checking_until=past)
    assert not SecretCandidate.objects.get().is_checking
    assert candidates.due() == [local.pk]
    second = candidates.take(local.pk, lease=RUNNING_FOR)
    assert second is not None
    candidates.note(dead, [])
    failed = [RungResult(rung, Outcome.FAILED, kind="auth") for rung in Rung]
    assert candidates.settle(dead, failed, next_check_at=timezone.now()) is False
    assert SecretCandidate.objects.get().state == State.CHECKING
    assert candidates.settle(second, failed, next_check_at=timezone.now()) is False
    assert SecretCandidate.objects.get().state == State.FAILED


def test_no_worker_is_said_and_the_sweep_takes_it_later(page, local, fakes):
    enter(page, fakes.good_key)
    SecretCandidate.objects.update(checking_until=timezone.now() - ASKED_FOR)
    assert "No worker has checked it yet" in page.get(PAGE).text
    assert candidates.due() == [local.pk]
    climb(local)
    assert in_use(local) == fakes.good_key


def test_an_edit_during_the_check_has_it_checked_anew(alice, local, fakes):
    candidates.enter(alice, local, {"api_key": fakes.good_key})
    taken = candidates.take(local.pk, lease=RUNNING_FOR)
    actions.update(alice, local, {"models": ["echo", "other"]})
    assert candidates.settle(taken, _passed(), next_check_at=timezone.now()) is True
    assert in_use(local) == KEY
    assert candidates.due() == [local.pk]


def _passed():
    return [RungResult(rung, Outcome.PASSED, 1) for rung in Rung]


@pytest.mark.parametrize("what", ["address", "auth type", "another secret", "delete"])
def test_what_makes_it_senseless_discards_it(alice, local, what):
    candidates.enter(alice, local, {"api_key": NEW})
    taken = candidates.take(local.pk, lease=RUNNING_FOR)
    if what == "address":
        changes = {"base_url": "http://127.0.0.2:1/v1"}
        actions.update(alice, local, changes, secret={"api_key": KEY}, resolve=False)
    elif what == "auth type":
        actions.update(alice, local, {"auth_type": "none"})
    elif what == "another secret":
        actions.update(alice, local, {}, secret={"api_key": "sk-direct-0123456789-abcdef"})
    else:
        deleting.delete(alice, local)
    assert not SecretCandidate.objects.exists()
    assert audited("secret.discard").count() == 1
    assert candidates.settle(taken, _passed(), next_check_at=timezone.now()) is False
    assert not audited("secret.promote").exists()


def test_a_paused_connection_gets_its_new_secret_and_stays_paused(page, alice, local, fakes):
    actions.set_enabled(alice, local, False)
    enter(page, fakes.good_key)
    climb(local)
    assert in_use(local) == fakes.good_key
    local.refresh_from_db()
    assert local.status == Status.DISABLED


def test_it_does_not_live_for_ever(page, local, fakes):
    enter(page, fakes.good_key)
    SecretCandidate.objects.update(expires_at=timezone.now())
    assert 'id="candidate"' not in page.get(PAGE).text
    there = SecretCandidate.objects.get()
    assert page.post(FORM + "use/", {"candidate": str(there.pk)}).status_code == 400
    assert candidates.due() == []
    climb(local)
    assert in_use(local) == KEY
    prune()
    assert not SecretCandidate.objects.exists()
    event = audited("secret.discard").get()
    assert (event.actor_label, event.details["reason"]) == ("schedule", "expired")


def test_a_probe_of_the_old_secret_does_not_judge_the_new_one(alice, local, fakes):
    request_validation([local], alice)
    connection, result = _take(local.pk)
    candidates.enter(alice, local, {"api_key": fakes.good_key})
    climb(local)
    _write_down(
        connection, result, [RungResult(rung, Outcome.FAILED, kind="auth") for rung in Rung]
    )
    local.refresh_from_db()
    assert local.status == Status.VALID


# -- the vault -------------------------------------------------------------------------------------


def test_it_is_rotated_and_moved_nowhere(alice, local, settings):
    candidates.enter(alice, local, {"api_key": NEW})
    there = SecretCandidate.objects.get()
    old = there.value.key_id
    settings.SECRET_KEYS = [secrets.token_urlsafe(32), *_keys(settings)]
    errors = [step.error for step in rotation.rotate() if step.error]
    there = SecretCandidate.objects.get()
    assert errors == []
    assert there.value.key_id != old
    assert candidates.opened(there) == {"api_key": NEW}
    # Its ciphertext opens in no other row.
    stored = Secret.objects.get()
    Secret.objects.filter(pk=stored.pk).update(value=there.value.stored)
    assert not Secret.objects.get().readable


def _keys(settings):
    return list(settings.SECRET_KEYS) or vault.file_keys()


def test_one_that_cannot_be_read_says_so_and_is_not_used(page, alice, local, settings):
    enter(page, NEW)
    settings.SECRET_KEYS = [secrets.token_urlsafe(32)]
    climb(local)
    there = SecretCandidate.objects.get()
    assert (there.state, there.error_kind) == (State.FAILED, "sealed")
    html = page.get(PAGE)
    assert html.status_code == 200
    assert page.get("/connections/").status_code == 200
    assert page.post(FORM + "use/", {"candidate": str(there.pk)}).status_code == 400
    assert page.post(FORM + "discard/", {"candidate": str(there.pk)}).status_code == 303


# -- its age ---------------------------------------------------------------------------------------


def aged(connection, days):
    at = timezone.now() - dt.timedelta(days=days, minutes=1)
    connection.secrets.update(created_at=at)


def test_the_age_of_a_secret_is_shown_and_said_quietly_when_it_is_old(page, local, settings):
    settings.SECRET_MAX_AGE_DAYS = 180
    aged(local, 94)
    assert "Entered 94 days ago" in page.get(PAGE).text
    assert "The secret is old" not in page.get(PAGE).text
    assert "secrets=old" not in page.get("/connections/").text
    aged(local, 194)
    make_connection("young")
    assert "The secret is old" in page.get(PAGE).text
    html = page.get("/connections/").text
    assert "Secret: entered 194 days ago" in html
    assert "1 secret is old" in html
    only = page.get("/connections/?secrets=old").text
    assert "connection-fake" in only
    assert "connection-young" not in only
    settings.SECRET_MAX_AGE_DAYS = 0
    assert "The secret is old" not in page.get(PAGE).text
    html = page.get("/connections/").text
    assert "secrets=old" not in html
    assert "is old" not in html
    assert "Secret: entered" not in html


def test_of_an_old_secret_people_are_told_once(local, settings, alice):
    settings.SECRET_MAX_AGE_DAYS = 180
    settings.MAIL_IS_SET_UP = True
    assert alerts.remind_of_age() == 0
    aged(local, 200)
    assert alerts.remind_of_age() == 1
    assert alerts.remind_of_age() == 0
    told = Alert.objects.get()
    assert (told.state, told.mail) == ("old_secret", "due")
    message = alerts.claim("mail")
    assert message.subject == "Patchbay: 1 secret is old"
    assert "/connections/fake/" in message.text
    # The next secret is told of anew.
    actions.update(alice, local, {}, secret={"api_key": NEW})
    aged(local, 200)
    assert alerts.remind_of_age() == 1


# -- extra headers ---------------------------------------------------------------------------------

GATEWAY = {"X-Gateway-Key": "gw-old-0123456789-abcdef"}
NEW_GATEWAY = {"X-Gateway-Key": "gw-new-0123456789-n3W2", "X-Team": "support"}
TYPED = "".join(f"{name}: {value}\n" for name, value in NEW_GATEWAY.items())


@pytest.fixture
def gateway(fakes):
    """In use with a key that the provider takes, and a header for the gateway before it."""
    connection = make_connection(
        "fake", base_url=fakes.openai, key=fakes.good_key, models=["echo"], default_model="echo"
    )
    make_secret(connection, GATEWAY, Secret.Purpose.HEADERS)
    return Connection.objects.with_secrets().get()


def headers_in_use(connection):
    return target_of(Connection.objects.with_secrets().get(pk=connection.pk)).extra_headers


def test_new_headers_are_checked_with_the_key_in_use_and_take_their_place(page, gateway, fakes):
    fakes.reset()
    assert 'name="extra_headers"' in page.get(FORM).text
    assert enter(page, "", extra_headers=TYPED).status_code == 303
    assert headers_in_use(gateway) == GATEWAY
    climb(gateway)
    came = fakes.requests()
    assert came
    for request in came:
        assert request["headers"]["x-gateway-key"] == NEW_GATEWAY["X-Gateway-Key"]
        assert request["headers"]["x-team"] == "support"
    assert not SecretCandidate.objects.exists()
    assert headers_in_use(gateway) == NEW_GATEWAY
    assert in_use(gateway) == fakes.good_key
    assert [one.details["purpose"] for one in audited("secret.promote")] == ["headers"]
    seen = json.dumps(list(AuditEvent.objects.values_list("details", flat=True)))
    seen += page.get(PAGE).text + page.get(FORM).text
    for value in (*GATEWAY.values(), NEW_GATEWAY["X-Gateway-Key"]):
        assert value not in seen


def test_a_key_and_headers_are_one_candidate(page, gateway, fakes):
    enter(page, NEW, extra_headers=TYPED)
    climb(gateway)
    assert SecretCandidate.objects.get().state == State.FAILED
    assert (headers_in_use(gateway), in_use(gateway)) == (GATEWAY, fakes.good_key)
    there = SecretCandidate.objects.get()
    page.post(FORM + "use/", {"candidate": str(there.pk)})
    assert (headers_in_use(gateway), in_use(gateway)) == (NEW_GATEWAY, NEW)
    assert {one.details["purpose"] for one in audited("secret.promote")} == {"auth", "headers"}


def test_a_new_key_is_checked_with_the_headers_in_use(page, alice, gateway, fakes):
    actions.update(alice, gateway, {}, secret={"api_key": KEY})
    fakes.reset()
    enter(page, fakes.good_key)
    climb(gateway)
    assert in_use(gateway) == fakes.good_key
    assert headers_in_use(gateway) == GATEWAY
    assert all(r["headers"]["x-gateway-key"] == GATEWAY["X-Gateway-Key"] for r in fakes.requests())


@pytest.mark.parametrize("typed", ["", "{}", "no colon", "Host: evil.example", "Authorization: x"])
def test_headers_that_make_no_sense_are_refused_and_never_shown(page, gateway, typed):
    answer = enter(page, "", extra_headers=typed)
    assert answer.status_code == 422
    assert "no colon" not in answer.text
    assert not SecretCandidate.objects.exists()


def test_headers_in_use_make_no_candidate_and_an_edit_of_them_discards_it(page, alice, gateway):
    old = "X-Gateway-Key: " + GATEWAY["X-Gateway-Key"]
    assert enter(page, "", extra_headers=old).status_code == 303
    assert not SecretCandidate.objects.exists()
    enter(page, "", extra_headers=TYPED)
    actions.update(alice, gateway, {}, headers="X-Gateway-Key: a third one")
    assert not SecretCandidate.objects.exists()
    assert audited("secret.discard").get().details["reason"] == "replaced"


def test_headers_of_a_connection_without_a_typed_key_are_replaced_too(page, fakes):
    connection = make_connection(
        "fake",
        auth_type="none",
        base_url=fakes.openai_nokey,
        models=["echo"],
        default_model="echo",
    )
    assert page.get(FORM).status_code == 409
    make_secret(connection, GATEWAY, Secret.Purpose.HEADERS)
    assert "Replace the secret" in page.get(PAGE).text
    assert "api_key" not in page.get(FORM).text
    page.post(FORM, {"extra_headers": TYPED})
    climb(connection)
    assert headers_in_use(connection) == NEW_GATEWAY


def test_the_edit_form_points_to_the_safer_way_where_people_would_notice(page, local):
    assert FORM not in page.get(PAGE + "edit/").text
    Connection.objects.update(health=Status.VALID, last_used_at=timezone.now())
    assert FORM in page.get(PAGE + "edit/").text
