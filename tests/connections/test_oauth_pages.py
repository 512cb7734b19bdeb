"""Signing a connection in on its page, as an admin's browser does, and everything that can go
wrong between the button and the tokens."""

import datetime as dt
import json
import re
from html import unescape

import pytest
from django.utils import timezone

from connections import transfer
from connections.choices import Status
from connections.models import Connection, Secret, SignIn
from connections.targets import target_of
from connections.tasks import prune, validate_connection
from tests.builders import make_connection
from tests.fakes.http import Cut
from tests.fakes.issuer import PERSON, TEAM
from tests.fakes.server import FakeProviders
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db

PAGE = "/connections/claude/"


@pytest.fixture(scope="module")
def running():
    with FakeProviders() as fakes:
        yield fakes


@pytest.fixture
def fakes(running, settings):
    running.issuer.__init__()
    settings.OAUTH = running.oauth_settings()
    settings.EGRESS_ALLOW = "127.0.0.0/8,::1"
    return running


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(validate_connection, "apply_async", lambda *args, **options: None)


@pytest.fixture
def page(alice, client_for):
    return client_for(alice)


@pytest.fixture
def claude(fakes, alice):
    return make_connection(
        "claude",
        provider_type="anthropic",
        auth_type="oauth",
        base_url=fakes.anthropic_oauth,
        models=["echo"],
        default_model="echo",
    )


def begin(page, slug="claude"):
    """(address of the provider's page, id of the attempt), as the page shows them."""
    answer = page.post(f"/connections/{slug}/sign-in/")
    assert answer.status_code == 303, answer.text
    html = page.get(f"/connections/{slug}/").text
    url = re.search(r'href="([^"]*/issuer/authorize[^"]*)" target="_blank" rel="noopener', html)
    attempt = re.search(r'name="attempt" value="([^"]+)"', html)
    return unescape(url[1]), attempt[1]


def paste(page, attempt, code, slug="claude"):
    data = {"attempt": attempt, "code": code}
    return page.post(f"/connections/{slug}/sign-in/finish/", data)


def actions_of(prefix="connection.sign"):
    found = AuditEvent.objects.filter(action__startswith=prefix).order_by("at", "pk")
    return list(found.values_list("action", flat=True))


def test_a_person_signs_in_and_out(page, fakes, claude):
    html = page.get(PAGE).text
    assert "restrict the logins of personal plans" in html
    assert "Sign in with Anthropic" in html
    assert claude.status == Status.INCOMPLETE
    url, attempt = begin(page)
    answer = paste(page, attempt, fakes.issuer.agree(url))
    assert (answer.status_code, answer.headers["location"]) == (303, PAGE)
    claude = Connection.objects.with_secrets().get()
    assert claude.status == Status.CHECKING  # asked for after the sign-in
    secret = claude.secrets.get()
    assert (secret.account, secret.account_kind) == ("dana@example.com", "personal")
    assert secret.hints == {}
    assert secret.binding == claude.binding
    stored = json.loads(secret.value.open())
    assert set(stored) == {"access_token", "refresh_token", "issuer"}
    assert set(target_of(claude).secret) == {"access_token"}  # the refresh token stays behind
    html = page.get(PAGE).text
    for said in ("Personal login: dana@example.com", "own login", "Sign out"):
        assert said in html, said
    for token in stored.values():
        assert token == fakes.url or token not in html
    assert "Personal login: dana@example.com" in page.get("/connections/").text
    call = fakes.issuer.calls[0]
    assert (call.kind, call.outcome) == ("application/json", "ok")

    assert page.post(f"{PAGE}sign-out/").status_code == 303
    assert not Secret.objects.exists()
    assert Connection.objects.get().status == Status.INCOMPLETE
    assert "Sign in with Anthropic" in page.get(PAGE).text
    assert actions_of() == ["connection.sign_in_begin", "connection.sign_in", "connection.sign_out"]
    assert actions_of("secret.") == ["secret.store", "secret.destroy"]
    told = json.dumps(list(AuditEvent.objects.values_list("details", flat=True)))
    assert not any(stored[name] in told for name in ("access_token", "refresh_token"))


def test_a_team_is_no_person(page, fakes, claude):
    url, attempt = begin(page)
    paste(page, attempt, fakes.issuer.agree(url, TEAM))
    html = page.get(PAGE).text
    assert "Organisation&#x27;s login: ops@example.com" in html
    assert "own login" not in html


@pytest.mark.parametrize("shape", ["whole", "code alone", "spaces", "address"])
def test_the_code_is_taken_however_it_was_copied(page, fakes, claude, shape):
    url, attempt = begin(page)
    code, state = fakes.issuer.agree(url).split("#")
    pasted = {
        "whole": f"{code}#{state}",
        "code alone": code,
        "spaces": f"  {code[:9]}\n{code[9:]}#{state} ",
        "address": f"https://issuer.example/code?code={code}&state={state}",
    }[shape]
    assert paste(page, attempt, pasted).status_code == 303
    assert Secret.objects.exists()


def test_a_form_is_sent_where_the_issuer_takes_one(page, fakes, claude, settings):
    settings.OAUTH = fakes.oauth_settings(
        token_url=f"{fakes.url}/issuer/form/token", json_body=False
    )
    url, attempt = begin(page)
    assert paste(page, attempt, fakes.issuer.agree(url)).status_code == 303
    assert fakes.issuer.calls[0].kind == "application/x-www-form-urlencoded"


def test_a_wrong_code_says_so_and_the_right_one_is_taken_afterwards(page, fakes, claude):
    url, attempt = begin(page)
    answer = paste(page, attempt, "code-wrong")
    assert answer.status_code == 422
    assert "didn&#x27;t take this code" in answer.text
    assert f'value="{attempt}"' in answer.text  # the same attempt goes on
    assert paste(page, attempt, fakes.issuer.agree(url)).status_code == 303
    assert "connection.sign_in_failed" in actions_of()


def test_five_wrong_codes_end_the_attempt(page, fakes, claude):
    url, attempt = begin(page)
    for _ in range(5):
        assert paste(page, attempt, "code-wrong").status_code == 422
    answer = paste(page, attempt, fakes.issuer.agree(url))
    assert answer.status_code == 422
    assert "Begin again" in answer.text
    assert len(fakes.issuer.calls) == 5


@pytest.mark.parametrize(
    "pasted",
    ["", "  ", "#state", "schlüssel", "x" * 20_000, "a\0b", "https://[", "https://x/?code="],
)
def test_what_is_no_code_is_not_sent(page, fakes, claude, pasted):
    _, attempt = begin(page)
    answer = paste(page, attempt, pasted)
    assert answer.status_code == 422
    assert "Paste the code" in answer.text
    assert fakes.issuer.calls == []


def test_another_state_is_refused_and_nothing_is_sent(page, fakes, claude):
    url, attempt = begin(page)
    code = fakes.issuer.agree(url).partition("#")[0]
    answer = paste(page, attempt, f"{code}#another-state")
    assert answer.status_code == 422
    assert "belongs to another sign-in" in answer.text
    assert fakes.issuer.calls == []


def test_two_tabs_go_on_by_themselves(page, fakes, claude):
    first_url, first = begin(page)
    _, second = begin(page)
    assert first != second
    # The second tab's page, the first one's code: its state says where it belongs.
    answer = paste(page, second, fakes.issuer.agree(first_url))
    assert answer.status_code == 303
    assert SignIn.objects.get(pk=first).state == "done"
    answer = paste(page, second, "code-late")
    assert answer.status_code == 422
    assert "was ended" in answer.text


def test_a_double_click_signs_in_once(page, fakes, claude):
    url, attempt = begin(page)
    code = fakes.issuer.agree(url)
    assert paste(page, attempt, code).status_code == 303
    assert paste(page, attempt, code).status_code == 303
    assert len(fakes.issuer.calls) == 1
    assert actions_of().count("connection.sign_in") == 1


def test_a_second_click_during_the_call_is_told_so(page, fakes, claude):
    url, attempt = begin(page)
    SignIn.objects.update(busy_until=timezone.now() + dt.timedelta(seconds=20))
    answer = paste(page, attempt, fakes.issuer.agree(url))
    assert answer.status_code == 422
    assert "being finished already" in answer.text
    assert fakes.issuer.calls == []


def test_an_expired_attempt_says_so(page, fakes, claude):
    url, attempt = begin(page)
    SignIn.objects.update(expires_at=timezone.now() - dt.timedelta(seconds=1))
    answer = paste(page, attempt, fakes.issuer.agree(url))
    assert answer.status_code == 422
    assert "expired" in answer.text
    assert "Sign in with Anthropic" in answer.text  # and how to begin again
    assert fakes.issuer.calls == []


def test_a_cancelled_attempt_is_over(page, fakes, claude):
    url, attempt = begin(page)
    assert page.post(f"{PAGE}sign-in/cancel/").status_code == 303
    assert 'name="attempt"' not in page.get(PAGE).text
    assert paste(page, attempt, fakes.issuer.agree(url)).status_code == 422
    assert not Secret.objects.exists()


def test_the_attempt_of_somebody_else_or_of_nobody_is_unknown(page, fakes, claude, client_for):
    from tests.builders import make_user

    url, attempt = begin(page)
    other = client_for(make_user("second@example.com", is_superuser=True))
    code = fakes.issuer.agree(url)
    for client, one in ((other, attempt), (page, "no-id"), (page, "")):
        answer = paste(client, one, code)
        assert answer.status_code == 422
        assert "known any more" in answer.text
    assert fakes.issuer.calls == []


def test_an_edit_in_between_ends_it(page, fakes, claude):
    url, attempt = begin(page)
    Connection.objects.update(base_url="https://elsewhere.example.com")
    answer = paste(page, attempt, fakes.issuer.agree(url))
    assert answer.status_code == 422
    assert "settings were changed" in answer.text
    assert fakes.issuer.calls == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (500, "gave no tokens"),
        (Cut, "gave no tokens"),
        (302, "redirected"),
        ((200, {"token_type": "mac"}), "gave no tokens"),
        ((200, {"access_token": "has a space"}), "gave no tokens"),
        ((200, b"<html>"), "gave no tokens"),
        ((401, {"error": "invalid_client"}), "PATCHBAY_OAUTH_ANTHROPIC_CLIENT_ID"),
        ((400, {"error": {"type": "invalid_grant"}}), "take this code"),
    ],
)
def test_an_issuer_that_fails_leaves_the_attempt_open(page, fakes, claude, fault, words):
    url, attempt = begin(page)
    code = fakes.issuer.agree(url)
    fakes.issuer.faults = [fault]
    answer = paste(page, attempt, code)
    assert answer.status_code == 422
    assert words in unescape(answer.text)
    assert code.partition("#")[0] not in answer.text
    assert not Secret.objects.exists()
    assert paste(page, attempt, code).status_code == 303


def test_the_issuer_is_reached_by_the_egress_policy_only(page, fakes, claude, settings):
    url, attempt = begin(page)
    settings.EGRESS_ALLOW = ""
    answer = paste(page, attempt, fakes.issuer.agree(url))
    assert answer.status_code == 422
    assert "loopback address" in answer.text
    assert fakes.issuer.calls == []


def test_while_it_is_off_the_pages_say_who_can_change_it(page, fakes, claude, settings):
    _, attempt = begin(page)
    settings.OAUTH = fakes.oauth_settings(client_id="")
    said = "the operator must set PATCHBAY_OAUTH_ANTHROPIC_CLIENT_ID"
    html = page.get(PAGE).text
    assert said in html
    assert "Sign in with" not in html
    form = {"_refresh": "1", "provider_type": "anthropic", "auth_type": "oauth"}
    assert said in page.post("/connections/new/", form).text
    for answer in (page.post(f"{PAGE}sign-in/"), paste(page, attempt, "code")):
        assert answer.status_code == 400
        assert said in answer.text


def test_what_is_signed_in_can_be_signed_out_while_it_is_off(page, fakes, claude, settings):
    url, attempt = begin(page)
    paste(page, attempt, fakes.issuer.agree(url))
    settings.OAUTH = fakes.oauth_settings(client_id="")
    html = page.get(PAGE).text
    assert "Signing in is off" in html
    assert f'formaction="{PAGE}sign-out/"' in html
    page.post(f"{PAGE}sign-out/")
    assert not Secret.objects.exists()


def test_a_connection_with_a_key_has_no_sign_in(page, fakes):
    make_connection("claude", provider_type="anthropic", key="sk-ant-0123")
    assert 'id="sign-in"' not in page.get(PAGE).text
    assert page.post(f"{PAGE}sign-in/").status_code == 400
    assert page.post(f"{PAGE}sign-out/").status_code == 303
    assert Secret.objects.count() == 1


def test_a_signed_in_connection_can_not_be_pointed_elsewhere(page, fakes, claude):
    url, attempt = begin(page)
    paste(page, attempt, fakes.issuer.agree(url))
    for change in ({"base_url": "https://evil.example.com"}, {"auth_type": "api_key"}):
        answer = page.post(f"{PAGE}edit/", {**change})
        assert answer.status_code == 422
    elsewhere = page.post(f"{PAGE}edit/", {"base_url": "https://evil.example.com"})
    assert "Sign out on the connection" in elsewhere.text
    claude.refresh_from_db()
    assert claude.base_url == fakes.anthropic_oauth
    # The path alone may change, and a key may take its place.
    assert page.post(f"{PAGE}edit/", {"base_url": f"{fakes.url}/other"}).status_code == 303
    keyed = {"auth_type": "api_key", "api_key": "sk-ant-0123456789-0123456789"}
    assert page.post(f"{PAGE}edit/", keyed).status_code == 303
    secret = Secret.objects.get()
    assert (secret.account, secret.account_kind, secret.renew_at) == ("", "", None)
    assert json.loads(secret.value.open()) == {"api_key": "sk-ant-0123456789-0123456789"}


def test_a_deleted_connection_keeps_no_attempt_and_no_token(page, fakes, claude):
    url, attempt = begin(page)
    paste(page, attempt, fakes.issuer.agree(url))
    page.post(f"{PAGE}sign-in/")
    page.post(f"{PAGE}delete/")
    assert not Secret.objects.exists()
    assert not SignIn.objects.exists()


def test_members_see_nothing_of_the_account(page, fakes, claude, bob, client_for):
    url, attempt = begin(page)
    paste(page, attempt, fakes.issuer.agree(url))
    member = client_for(bob)
    for address in ("/w/support/settings/ai/", "/w/support/"):
        html = member.get(address).text
        assert "dana@example.com" not in html
        assert "ersonal login" not in html
    assert member.get(PAGE).status_code == 403


def test_an_export_holds_no_token_and_no_account(page, alice, fakes, claude):
    url, attempt = begin(page)
    paste(page, attempt, fakes.issuer.agree(url))
    stored = json.loads(Secret.objects.get().value.open())
    text = json.dumps(transfer.export_document(alice).document)
    assert '"oauth"' in text
    for hidden in (stored["access_token"], stored["refresh_token"], "dana@example.com"):
        assert hidden not in text


def test_attempts_are_bounded_and_forgotten(page, fakes, claude):
    for _ in range(13):
        begin(page)
    assert SignIn.objects.filter(state="open").count() == 10
    prune()
    assert SignIn.objects.count() == 13
    SignIn.objects.update(expires_at=timezone.now() - dt.timedelta(days=2))
    prune()
    assert not SignIn.objects.exists()


def test_without_the_audit_row_nobody_is_signed_in(page, fakes, claude, monkeypatch):
    from connections import actions

    url, attempt = begin(page)

    def broken(*args, **details):
        raise RuntimeError("the audit can't be written")

    monkeypatch.setattr(actions, "record", broken)
    with pytest.raises(RuntimeError):
        paste(page, attempt, fakes.issuer.agree(url))
    assert not Secret.objects.exists()


def test_a_label_is_text_and_nothing_else(page, fakes, claude):
    url, attempt = begin(page)
    account = {"account": {"email_address": "<script>alert(1)</script>\x00" + "x" * 500}}
    paste(page, attempt, fakes.issuer.agree(url, account))
    assert len(Secret.objects.get().account) == 200
    html = page.get(PAGE).text
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert PERSON["account"]["email_address"] not in html
