"""Passkeys: adding, signing in, the second factor, and everything that must be refused."""

from __future__ import annotations

import dataclasses
import html
import json
import random
import re
import uuid

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import TOTP
from django.core.cache import cache
from django.core.management import call_command
from django.test import Client
from fido2.utils import websafe_encode
from fido2.webauthn import AuthenticatorData

from tests.builders import PASSWORD, make_member, make_user, make_workspace
from tests.fakes.passkey import Passkey
from workspaces import passkeys
from workspaces.models import AuditEvent, SignInKey

pytestmark = pytest.mark.django_db(transaction=True)

HERE = {"HTTP_HOST": "localhost"}
REFUSED = html.escape(str(passkeys.REFUSED))
NEW, BEGIN, SIGN_IN = (f"/accounts/passkeys/{name}/" for name in ("new", "begin", "sign-in"))
AGAIN, SECOND = "/accounts/passkeys/again/", "/accounts/2fa/code/"


@pytest.fixture(autouse=True)
def cache_of_its_own(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    cache.clear()


@pytest.fixture
def bob(db):
    user = make_user("bob@example.com")
    make_member(make_workspace("support"), user)
    return user


def by_password(user) -> tuple[Client, str]:
    """A browser after the first step, and where it was sent."""
    client = Client(**HERE)
    data = {"login": user.email, "password": PASSWORD}
    return client, client.post("/accounts/login/", data).headers["Location"]


def proved(user) -> Client:
    """A browser of somebody who has just typed the password once more."""
    client, where = by_password(user)
    assert where == "/"
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    return client


def asked(page) -> str:
    return html.unescape(re.search(r'data-options="([^"]+)"', page.text)[1])


def add(client: Client, passkey: Passkey, name: str = "Phone"):
    data = {"name": name, "credential": passkey.create(asked(client.get(NEW)))}
    return client.post(NEW, data)


def make(user, name: str = "Phone") -> Passkey:
    passkey = Passkey()
    assert add(proved(user), passkey, name).status_code == 302
    return passkey


def sign_in(passkey: Passkey, client: Client | None = None, **data: str):
    client = client or Client(**HERE)
    options = client.post(BEGIN).text
    return client, client.post(SIGN_IN, {"credential": passkey.get(options), **data})


def actions() -> list[str]:
    return list(AuditEvent.objects.order_by("at").values_list("action", flat=True))


def is_signed_in(client: Client) -> bool:
    return "_auth_user_id" in client.session


# -- adding, renaming, removing ------------------------------------------------------------------


def test_adding_asks_for_the_password_and_gives_recovery_codes(bob):
    client, _where = by_password(bob)
    again = client.get(NEW).headers["Location"]
    assert again.startswith("/accounts/reauthenticate/")
    assert client.post(again, {"password": PASSWORD}).headers["Location"] == NEW
    page = client.get(NEW)
    assert "your password alone no longer signs you in" in page.text
    assert json.loads(asked(page))["publicKey"]["rp"] == {"id": "localhost", "name": "Patchbay"}
    added = add(client, Passkey(), "My <phone>")
    assert added.headers["Location"] == "/accounts/2fa/recovery/"
    row = passkeys.of(bob).get()
    assert row.data["name"] == "My <phone>"
    page = client.get("/profile/").text
    assert "My &lt;phone&gt;" in page
    assert "Recovery codes" in page
    # A second one, and no second set of codes.
    assert add(client, Passkey(), "Key").headers["Location"] == "/profile/"
    kinds = Authenticator.objects.values_list("type", flat=True)
    assert sorted(kinds) == ["recovery_codes", "webauthn", "webauthn"]
    assert actions().count("user.passkey_add") == 2
    # What names a person stays out of the audit.
    assert "phone" not in str(list(AuditEvent.objects.values_list("details", flat=True)))


def test_only_what_is_needed_of_an_answer_is_kept(bob):
    client = proved(bob)
    passkey = Passkey()
    answer = json.loads(passkey.create(asked(client.get(NEW))))
    answer |= {"more": "x", "clientExtensionResults": {"credProps": {"rk": True, "y": "\x00"}}}
    answer["response"]["transports"] = ["usb", "\x00"]
    assert client.post(NEW, {"credential": json.dumps(answer), "name": "A"}).status_code == 302
    kept = passkeys.of(bob).get().data["credential"]
    assert set(kept) == {"id", "rawId", "type", "response", "clientExtensionResults"}
    assert set(kept["response"]) == {"clientDataJSON", "attestationObject"}
    assert is_signed_in(sign_in(passkey)[0])


def test_one_is_renamed_and_removed_by_its_owner_alone(bob):
    make(bob)
    row = passkeys.of(bob).get()
    charlie = proved(make_user("charlie@example.com"))
    there = f"/accounts/passkeys/{row.pk}"
    for path in ("rename", "remove"):
        assert charlie.get(f"{there}/{path}/").status_code == 404
        assert charlie.post(f"{there}/{path}/", {"name": "Mine"}).status_code == 404
    client, where = by_password(bob)
    options = asked(client.get(where))
    passkey = Passkey()
    assert client.post(where, {"credential": passkey.get(options)}).status_code == 200
    client, _answer = recovered(bob)
    assert client.get(f"{there}/rename/").headers["Location"].startswith("/accounts/reauth")
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    assert "Phone" in client.get(f"{there}/rename/").text
    empty = client.post(f"{there}/rename/", {"name": " "})
    assert "Give it a name" in empty.text
    assert client.post(f"{there}/rename/", {"name": "Laptop"}).headers["Location"] == "/profile/"
    row.refresh_from_db()
    assert row.data["name"] == "Laptop"
    page = client.get(f"{there}/remove/").text
    assert "Laptop" in page
    assert "your last second factor" in page
    assert client.post(f"{there}/remove/").headers["Location"] == "/profile/"
    assert not Authenticator.objects.exists()
    assert not SignInKey.objects.exists()
    assert "user.passkey_rename" in actions()
    assert AuditEvent.objects.get(action="user.passkey_remove").details == {"passkey": row.pk}
    assert by_password(bob)[1] == "/"


def recovered(user):
    """A browser signed in by password and recovery code."""
    codes = Authenticator.objects.get(user=user, type="recovery_codes").wrap().get_unused_codes()
    client, where = by_password(user)
    assert where == SECOND
    return client, client.post(where, {"code": codes[0]})


def test_the_app_goes_and_the_passkey_stays(bob):
    make(bob)
    TOTP.activate(bob, "SECRET")
    client, _answer = recovered(bob)
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    page = client.get("/accounts/2fa/app/off/").text
    assert "Your passkeys and the recovery codes stay." in page
    assert client.post("/accounts/2fa/app/off/").status_code == 302
    kinds = Authenticator.objects.values_list("type", flat=True)
    assert sorted(kinds) == ["recovery_codes", "webauthn"]


def test_one_is_added_once_and_there_is_an_end_to_them(bob, monkeypatch):
    client = proved(bob)
    passkey = Passkey()
    add(client, passkey)
    assert html.escape(str(passkeys.KNOWN)) in add(client, passkey).text
    # Somebody else with the same number of a passkey: refused as well.
    other = proved(make_user("charlie@example.com"))
    assert html.escape(str(passkeys.KNOWN)) in add(other, dataclasses.replace(passkey)).text
    monkeypatch.setattr(passkeys, "MOST", 1)
    full = add(client, Passkey(), "Kept name")
    assert "You have 1 passkeys" in full.text
    assert "Kept name" in full.text
    assert passkeys.of(bob).count() == 1


@pytest.mark.parametrize(
    "lie",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://sub.localhost"},
        {"cross_origin": True},
        {"rp_id": "evil.example"},
        {"flags": AuthenticatorData.FLAG.UP},
        {"flags": AuthenticatorData.FLAG(0)},
    ],
    ids=str,
)
def test_what_was_made_elsewhere_or_for_nobody_is_not_added(bob, lie):
    answer = add(proved(bob), Passkey(**lie))
    assert REFUSED in answer.text
    assert not Authenticator.objects.exists()


def test_an_answer_to_no_challenge_is_not_added(bob):
    client = proved(bob)
    old = asked(client.get(NEW))
    client.get(NEW)
    for credential in (Passkey().create(old), "", "{}", "[]", "x" * 30_000, "[" * 15_000):
        answer = client.post(NEW, {"name": "A", "credential": credential})
        assert answer.status_code == 200
        assert REFUSED in answer.text or "Passkeys need JavaScript" in answer.text
    assert not Authenticator.objects.exists()


# -- signing in ----------------------------------------------------------------------------------


def test_one_alone_signs_in(bob):
    passkey = make(bob)
    client, answer = sign_in(passkey)
    assert answer.headers["Location"] == "/"
    assert client.get("/w/support/").status_code == 200
    row = passkeys.of(bob).get()
    assert row.last_used_at is not None
    assert row.data["sign_count"] == passkey.counter == 2
    used = AuditEvent.objects.get(action="user.passkey_use")
    assert used.details == {"passkey": row.pk, "alone": True}
    assert actions()[-1] == "user.sign_in"
    assert "This one" in client.get("/profile/").text  # among the devices


def test_it_leads_where_one_was_going_but_nowhere_else(bob):
    passkey = make(bob)
    _client, answer = sign_in(passkey, next="/w/support/")
    assert answer.headers["Location"] == "/w/support/"
    _client, answer = sign_in(passkey, next="//evil.example/")
    assert answer.headers["Location"] == "/"
    client = Client(**HERE)
    page = client.get("/accounts/login/?next=/w/support/").text
    assert page.count('<input type="hidden" name="next" value="/w/support/">') == 2
    client.post(BEGIN)
    wrong = client.post(SIGN_IN, {"credential": "{}", "next": "/w/support/"})
    assert wrong.headers["Location"] == "/accounts/login/?next=%2Fw%2Fsupport%2F"
    assert REFUSED in client.get(wrong.headers["Location"]).text


def test_the_session_is_another_one_afterwards(bob):
    passkey = make(bob)
    client = Client(**HERE)
    client.post(BEGIN)
    before = client.session.session_key
    sign_in(passkey, client)
    assert client.session.session_key != before


@pytest.mark.parametrize(
    "lie",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://sub.localhost"},
        {"cross_origin": True},
        {"rp_id": "evil.example"},
        {"flags": AuthenticatorData.FLAG.UP},
        {"flags": AuthenticatorData.FLAG(0)},
        {"key": Passkey().key},
        {"raw_id": b"another"},
        {"user": websafe_encode(uuid.uuid4().bytes)},
        {"user": websafe_encode(b"bob@example.com")},
        {"user": ""},
    ],
    ids=[
        *("origin", "subdomain", "frame", "rp", "unverified", "absent"),
        *("key", "id", "stranger", "address", "nobody"),
    ],
)
def test_a_wrong_or_foreign_answer_signs_nobody_in(bob, lie):
    passkey = make(bob)
    client, answer = sign_in(dataclasses.replace(passkey, **lie))
    assert answer.headers["Location"] == "/accounts/login/"
    assert not is_signed_in(client)
    assert REFUSED in client.get("/accounts/login/").text
    assert "user.passkey_use" not in actions()
    assert is_signed_in(sign_in(passkey)[0])


def test_another_persons_passkey_is_not_this_persons(bob):
    make(bob)
    charlies = make(make_user("charlie@example.com"))
    charlies.user = websafe_encode(bob.pk.bytes)
    assert not is_signed_in(sign_in(charlies)[0])


def test_a_challenge_is_answered_once(bob):
    passkey = make(bob)
    client = Client(**HERE)
    answer = passkey.get(client.post(BEGIN).text)
    assert not is_signed_in(_posted(Client(**HERE), answer))  # in a browser that asked for none
    stranger = Client(**HERE)
    stranger.post(BEGIN)
    assert not is_signed_in(_posted(stranger, answer))  # in one that asked for another
    assert is_signed_in(_posted(client, answer))
    client.post("/accounts/logout/")
    assert not is_signed_in(_posted(client, answer))  # replayed
    # Wrongly answered it is used up too.
    options = client.post(BEGIN).text
    assert not is_signed_in(_posted(client, "{}"))
    assert not is_signed_in(_posted(client, passkey.get(options)))


def _posted(client: Client, answer: str) -> Client:
    assert client.post(SIGN_IN, {"credential": answer}).status_code == 303 or is_signed_in(client)
    return client


def test_a_counter_that_goes_back_is_refused_and_noted(bob):
    passkey = make(bob)
    sign_in(passkey)
    copy = dataclasses.replace(passkey)
    sign_in(passkey)
    client, _answer = sign_in(copy)
    assert not is_signed_in(client)
    assert "may have been copied" in client.get("/accounts/login/").text
    row = passkeys.of(bob).get()
    assert AuditEvent.objects.get(action="user.passkey_refused").details == {"passkey": row.pk}
    assert row.data["sign_count"] == passkey.counter
    assert is_signed_in(sign_in(passkey)[0])


def test_one_that_counts_nothing_is_accepted_each_time(bob):
    passkey = Passkey(counter=0)
    add(proved(bob), passkey)
    for _time in range(2):
        passkey.counter = -1
        assert is_signed_in(sign_in(passkey)[0])


def test_who_is_switched_off_stays_out(bob):
    passkey = make(bob)
    client = Client(**HERE)
    options = client.post(BEGIN).text
    type(bob).objects.update(is_active=False)
    client.post(SIGN_IN, {"credential": passkey.get(options)})
    assert not is_signed_in(client)
    assert "user.passkey_use" not in actions()


def test_sso_only_has_no_way_in_by_a_passkey(bob, settings):
    passkey = make(bob)
    client = Client(**HERE)
    options = client.post(BEGIN).text
    settings.SSO_ONLY = True
    settings.OIDC = {**settings.OIDC, "name": "Team login"}
    assert client.post(BEGIN).status_code == 404
    assert client.post(SIGN_IN, {"credential": passkey.get(options)}).status_code == 404
    assert not is_signed_in(client)
    assert "passkey" not in client.get("/accounts/login/").text


def test_attempts_are_throttled_by_address(bob, settings):
    passkey = make(bob)
    settings.MFA_RATE_LIMITS = {"webauthn_login": "4/m/ip"}
    client = Client(**HERE)
    for _time in range(2):
        client.post(BEGIN)
        client.post(SIGN_IN, {"credential": "{}"})
    assert client.post(BEGIN).status_code == 429
    answer = client.post(SIGN_IN, {"credential": "{}"}, follow=True)
    assert "Too many attempts to sign in failed" in answer.text
    cache.clear()
    assert is_signed_in(sign_in(passkey)[0])


def test_get_signs_nobody_in_and_signing_in_twice_is_no_fault(bob):
    passkey = make(bob)
    client, _answer = sign_in(passkey)
    assert client.get(SIGN_IN).status_code == 405
    assert client.get(BEGIN).status_code == 405
    assert client.post(SIGN_IN, {"credential": passkey.get(client.post(BEGIN).text)}).url == "/"


# -- the second factor, and proving it is you ------------------------------------------------------


def test_it_is_the_second_factor_after_a_password(bob):
    passkey = make(bob)
    client, where = by_password(bob)
    assert where == SECOND
    page = client.get(where)
    assert "Use a passkey" in page.text
    assert "A recovery code" in page.text
    ids = [one["id"] for one in json.loads(asked(page))["publicKey"]["allowCredentials"]]
    assert ids == [websafe_encode(passkey.raw_id)]
    foreign = client.post(where, {"credential": Passkey(user=passkey.user).get(asked(page))})
    assert REFUSED in foreign.text
    assert not is_signed_in(client)
    done = client.post(where, {"credential": passkey.get(asked(foreign))})
    assert done.headers["Location"] == "/"
    assert client.get("/w/support/").status_code == 200
    assert AuditEvent.objects.get(action="user.passkey_use").details["alone"] is False


def test_recovery_codes_still_work_and_the_passkey_is_not_needed(bob):
    make(bob)
    client, answer = recovered(bob)
    assert answer.headers["Location"] == "/"
    assert client.get("/w/support/").status_code == 200


def test_another_persons_passkey_is_no_second_factor(bob):
    make(bob)
    charlies = make(make_user("charlie@example.com"))
    client, where = by_password(bob)
    answer = client.post(where, {"credential": charlies.get(asked(client.get(where)))})
    assert REFUSED in answer.text
    assert not is_signed_in(client)


def test_failures_of_the_second_step_are_counted_with_the_codes(bob):
    passkey = make(bob)
    client, where = by_password(bob)
    for _time in range(5):
        client.post(where, {"credential": "{}"})
    answer = client.post(where, {"credential": passkey.get(asked(client.get(where)))})
    assert "Too many attempts to sign in failed" in answer.text
    assert not is_signed_in(client)


def test_the_challenge_of_the_first_step_signs_in_nobody_without_a_look_at_the_holder(bob):
    """A key found in the street, and an account of one's own to ask a challenge with."""
    found = make(bob)
    mallory = make_user("mallory@example.com")
    make(mallory)
    client, where = by_password(mallory)
    found.flags = AuthenticatorData.FLAG.UP
    client.post(SIGN_IN, {"credential": found.get(asked(client.get(where)))})
    assert not is_signed_in(client)


def test_it_proves_who_is_there_before_a_change(bob):
    passkey = make(bob)
    client, _answer = sign_in(passkey)
    assert client.get(NEW).headers["Location"].startswith("/accounts/reauthenticate/")
    page = client.get(f"/accounts/reauthenticate/?next={NEW}").text
    assert f'href="{AGAIN}?next={html.escape(NEW.replace("/", "%2F"))}"' in page
    page = client.get(f"{AGAIN}?next={NEW}")
    wrong = client.post(AGAIN, {"credential": Passkey().get(asked(page)), "next": NEW})
    assert REFUSED in wrong.text
    right = client.post(AGAIN, {"credential": passkey.get(asked(wrong)), "next": NEW})
    assert right.headers["Location"] == NEW
    assert client.get(NEW).status_code == 200


# -- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("public", "domain"),
    [
        ("http://127.0.0.1:8000", "localhost"),
        ("http://[::1]:8000", "localhost"),
        ("https://localhost", "localhost"),
        ("https://patchbay.example.com", "patchbay.example.com"),
        ("https://Patchbay.example.com:8443", "patchbay.example.com"),
        ("http://patchbay.example.com", ""),
        ("https://192.0.2.7", ""),
        ("https://[2001:db8::1]", ""),
    ],
)
def test_they_belong_to_the_name_in_the_public_address(settings, public, domain):
    settings.PUBLIC_URL = public
    assert passkeys.domain() == domain


def test_at_a_number_the_pages_say_where_to_go(bob):
    passkey = make(bob)
    client = Client(HTTP_HOST="127.0.0.1:8000")
    assert "passkey" not in client.get("/accounts/login/").text
    assert client.post(BEGIN).status_code == 404
    client.post("/accounts/login/", {"login": bob.email, "password": PASSWORD})
    page = client.get(SECOND).text
    assert f'<a href="http://localhost:8000{SECOND}">Open this page at http://localhost' in page
    assert "Use a passkey" not in page
    codes = Authenticator.objects.get(type="recovery_codes").wrap().get_unused_codes()
    assert client.post(SECOND, {"code": codes[0]}).status_code == 302
    page = client.get("/profile/?a=1&b").text
    assert 'href="http://localhost:8000/profile/?a=1&amp;b"' in page
    assert "Add a passkey" not in page
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    page = client.get(NEW).text
    assert "Open this page at" in page
    assert "data-options" not in page
    assert passkey.counter == 1


def test_over_plain_http_to_another_machine_the_pages_say_why(bob, settings):
    settings.PUBLIC_URL, settings.ALLOWED_HOSTS = "http://patchbay.lan", ["patchbay.lan"]
    client = Client(HTTP_HOST="patchbay.lan")
    client.post("/accounts/login/", {"login": bob.email, "password": PASSWORD})
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    for path in ("/profile/", NEW):
        assert "only at an https address with a host name" in client.get(path).text


def test_over_plain_http_the_app_is_still_a_second_factor(bob, settings):
    settings.PUBLIC_URL, settings.ALLOWED_HOSTS = "http://192.0.2.7", ["192.0.2.7"]
    TOTP.activate(bob, "SECRET")
    client = Client(HTTP_HOST="192.0.2.7")
    client.post("/accounts/login/", {"login": bob.email, "password": PASSWORD})
    page = client.get(SECOND)
    assert page.status_code == 200
    assert "passkey" not in page.text
    assert client.post(SECOND, {"credential": "{}"}).status_code == 200


def test_the_public_address_counts_where_a_proxy_hides_the_scheme(bob, settings):
    """The browser is at https; what reaches the server says http."""
    settings.PUBLIC_URL = "https://patchbay.example.com"
    settings.ALLOWED_HOSTS = ["patchbay.example.com"]
    passkey = Passkey(origin=settings.PUBLIC_URL, rp_id="patchbay.example.com")
    client = Client(HTTP_HOST="patchbay.example.com")
    client.post("/accounts/login/", {"login": bob.email, "password": PASSWORD})
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    assert add(client, passkey).status_code == 302
    subdomain = Passkey(origin="https://x.patchbay.example.com", rp_id="patchbay.example.com")
    assert REFUSED in add(client, subdomain).text


# -- others --------------------------------------------------------------------------------------


def test_the_operator_takes_them_away(bob, capsys):
    make(bob)
    call_command("signin_link", bob.email, "--without-second-factor")
    assert not Authenticator.objects.exists()
    assert AuditEvent.objects.filter(action="user.second_factor_off").exists()


@pytest.mark.parametrize("part", ["authenticatorData", "clientDataJSON", "signature", "rawId"])
def test_no_broken_byte_is_a_fault(bob, part, settings):
    settings.MFA_RATE_LIMITS = {"webauthn_login": "1000/m/ip"}
    passkey = make(bob)
    client = Client(**HERE)
    dice = random.Random(part)
    for _time in range(60):
        answer = json.loads(passkey.get(client.post(BEGIN).text))
        place = answer if part == "rawId" else answer["response"]
        text = list(place[part])
        for _change in range(dice.randint(1, 3)):
            text[dice.randrange(len(text))] = dice.choice("AZaz09-_=é\x00")
        place[part] = dice.choice(
            ["".join(text)[: dice.randrange(len(text))], "".join(text), None, 7, [], {}, [[]]]
        )
        if part == "rawId":
            answer["id"] = place[part]
        given = client.post(SIGN_IN, {"credential": json.dumps(answer)})
        assert given.status_code in (302, 303)
        if is_signed_in(client):  # base64 has bits that say nothing
            client = Client(**HERE)


def test_no_broken_byte_of_a_new_one_is_a_fault(bob):
    client = proved(bob)
    dice = random.Random(7)
    for _time in range(150):
        answer = json.loads(Passkey().create(asked(client.get(NEW))))
        part = dice.choice(["attestationObject", "clientDataJSON"])
        text = list(answer["response"][part])
        for _change in range(dice.randint(1, 3)):
            text[dice.randrange(len(text))] = dice.choice("AZaz09-_=é\x00")
        answer["response"][part] = "".join(text)[: dice.randrange(len(text) * 4)]
        given = client.post(NEW, {"name": "A", "credential": json.dumps(answer)})
        assert given.status_code in (200, 302)
        passkeys.of(bob).delete()
