"""Signing in at an OpenID Connect issuer: a real one, and what it may not do."""

from __future__ import annotations

import html
import re
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialToken
from django.test import Client
from oidc_provider_mock import User as Claims
from oidc_provider_mock import run_server_in_thread

from tests.builders import PASSWORD, make_member, make_user, make_workspace
from workspaces import people
from workspaces.models import AuditEvent, Role, User

pytestmark = pytest.mark.django_db(transaction=True)

PEOPLE = (
    Claims(sub="bob-there", claims={"email": "bob@example.com", "email_verified": True}),
    Claims(sub="new", claims={"email": "new@example.com", "email_verified": True, "name": "New"}),
    Claims(sub="unverified", claims={"email": "bob@example.com", "email_verified": False}),
    Claims(sub="silent", claims={}),
)


def configure(settings, address: str) -> None:
    import hashlib

    provider = "oidc-" + hashlib.sha256(address.encode()).hexdigest()[:12]
    settings.OIDC = {
        "issuer": address,
        "client_id": "patchbay",
        "client_secret": "issuer-canary-secret",
        "name": "Team login",
    }
    settings.OIDC_IS_SET_UP = True
    settings.OIDC_PROVIDER = provider
    settings.SOCIALACCOUNT_PROVIDERS = {
        "openid_connect": {
            "APPS": [
                {
                    "provider_id": provider,
                    "name": "Team login",
                    "client_id": "patchbay",
                    "secret": "issuer-canary-secret",
                    "settings": {"server_url": address, "oauth_pkce_enabled": True},
                }
            ]
        }
    }


@pytest.fixture
def issuer(settings):
    with run_server_in_thread(user_claims=PEOPLE) as server:
        address = f"http://localhost:{server.server_port}"
        configure(settings, address)
        yield address


@pytest.fixture
def bob(db):
    user = make_user("bob@example.com")
    make_member(make_workspace("support"), user)
    return user


def leave(client: Client, **data: str) -> str:
    """The way to the issuer; the address that it is asked at."""
    answer = client.post("/accounts/sso/", data)
    assert answer.status_code == 200, answer.text
    return html.unescape(re.search(r'data-variant="primary" href="([^"]+)"', answer.text)[1])


def agree(address: str, sub: str) -> str:
    """What the person does at the issuer; the path and query of the way back."""
    answer = httpx.post(address, data={"sub": sub}, trust_env=False)
    assert answer.status_code == 302, answer.text
    back = urlsplit(answer.headers["location"])
    return f"{back.path}?{back.query}"


def sign_in(client: Client, sub: str, **data: str):
    return client.get(agree(leave(client, **data), sub))


def is_signed_in(client: Client) -> bool:
    return "_auth_user_id" in client.session


def linked(client_for, user, sub: str) -> None:
    assert sign_in(client_for(user), sub, process="connect").status_code == 302


def test_a_linked_person_signs_in(client, client_for, issuer, bob):
    assert "Sign in with Team login" in client.get("/accounts/login/").text
    linked(client_for, bob, "bob-there")
    assert "Linked" in client_for(bob).get("/profile/").text
    answer = sign_in(client, "bob-there", next="/profile/")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/profile/")
    assert client.get("/w/support/").status_code == 200
    assert [row.action for row in AuditEvent.objects.filter(action="user.link")] == ["user.link"]
    account = SocialAccount.objects.get()
    assert account.uid == "bob-there"
    assert not SocialToken.objects.exists()
    assert not SocialApp.objects.exists()


@pytest.mark.parametrize("sub", ["bob-there", "unverified", "new", "silent"])
def test_the_address_alone_signs_nobody_in(client, issuer, bob, sub):
    answer = sign_in(client, sub)
    assert answer.status_code == 400
    assert "Nobody here is linked" in answer.text
    assert not is_signed_in(client)
    assert not SocialAccount.objects.exists()
    assert User.objects.count() == 1


def test_the_same_subject_of_another_issuer_is_somebody_else(
    client, client_for, issuer, bob, settings
):
    linked(client_for, bob, "bob-there")
    with run_server_in_thread(user_claims=PEOPLE) as other:
        configure(settings, f"http://localhost:{other.server_port}")
        assert sign_in(client, "bob-there").status_code == 400
    assert not is_signed_in(client)


def test_an_issuer_that_calls_itself_otherwise_is_refused(client, issuer, settings):
    settings.OIDC = {**settings.OIDC, "issuer": "https://login.example.com"}
    answer = client.post("/accounts/sso/")
    assert answer.status_code == 400
    assert "doesn't answer as an OpenID Connect issuer" in answer.text.replace("&#x27;", "'")


@pytest.mark.parametrize("state", ["missing", "made up", "another browser's", "replayed"])
def test_a_state_that_isnt_ones_own_signs_nobody_in(client, client_for, issuer, bob, state):
    linked(client_for, bob, "bob-there")
    other = Client()
    back = agree(leave(other), "bob-there")
    assert leave(client)
    if state == "missing":
        back = re.sub(r"[?&]state=[^&]*", "", back)
    elif state == "made up":
        back = re.sub(r"state=[^&]*", "state=x", back)
    elif state == "replayed":
        assert other.get(back).status_code == 302
        other.logout()
        client = other
    answer = client.get(back)
    assert answer.status_code == 400
    assert not is_signed_in(client)


@pytest.mark.parametrize("back", ["", "?error=access_denied&state=x", "?code=x&state=y", "?code=x"])
def test_a_broken_way_back_is_a_clear_page(client, issuer, back):
    assert leave(client)
    answer = client.get(f"/accounts/sso/callback/{back}")
    assert answer.status_code == 400
    assert "come to an end" in answer.text


def test_a_code_that_the_issuer_refuses_signs_nobody_in(client, issuer):
    state = parse_qs(urlsplit(leave(client)).query)["state"][0]
    answer = client.get("/accounts/sso/callback/", {"code": "made-up", "state": state})
    assert answer.status_code == 400
    assert not is_signed_in(client)


def test_an_issuer_that_is_gone_is_a_clear_page(client, settings):
    configure(settings, "http://localhost:9")
    answer = client.post("/accounts/sso/")
    assert answer.status_code == 400
    assert "Tell your operator" in answer.text


def test_a_link_is_made_by_who_is_signed_in_alone(client, issuer):
    assert client.post("/accounts/sso/", {"process": "connect"}).status_code == 400
    assert client.get("/accounts/sso/").status_code == 405


def test_an_account_there_is_of_one_person_here(client_for, issuer, bob):
    linked(client_for, bob, "bob-there")
    carol = make_user("carol@example.com")
    sign_in(client_for(carol), "bob-there", process="connect")
    assert SocialAccount.objects.get().user == bob


def test_who_is_switched_off_stays_out(client, client_for, issuer, bob):
    linked(client_for, bob, "bob-there")
    bob.is_active = False
    bob.save()
    sign_in(client, "bob-there")
    assert not is_signed_in(client)


# -- invitations -----------------------------------------------------------------------------------


def invited(email: str = "") -> str:
    alice = make_user("alice@example.com", is_superuser=True)
    _invitation, link = people.invite(alice, make_workspace("sales"), role=Role.MEMBER, email=email)
    return link.rstrip("/").rpartition("/")[2]


def test_an_invitation_lets_somebody_new_in(client, issuer):
    token = invited()
    assert "Join with Team login" in client.get(f"/invitations/{token}/").text
    assert sign_in(client, "new", invitation=token, next="/w/sales/").status_code == 302
    assert client.get("/w/sales/").status_code == 200
    new = User.objects.get(email="new@example.com")
    assert (new.name, new.has_usable_password()) == ("New", False)
    client.logout()
    assert sign_in(client, "new").status_code == 302
    assert is_signed_in(client)


@pytest.mark.parametrize(
    ("sub", "email", "said"),
    [
        ("unverified", "", "vouch"),
        ("silent", "", "vouch"),
        ("new", "other@example.com", "another address"),
        ("bob-there", "", "has an account already"),
    ],
)
def test_an_invitation_lets_nobody_else_in(client, issuer, bob, sub, email, said):
    token = invited(email)
    before = User.objects.count()
    answer = sign_in(client, sub, invitation=token)
    assert answer.status_code == 400
    assert said in answer.text
    assert not is_signed_in(client)
    assert not SocialAccount.objects.exists()
    assert User.objects.count() == before
    assert people.find(token) is not None  # it isn't used up


def test_an_invitation_is_of_one_attempt(client, issuer):
    token = invited()
    leave(client, invitation=token)
    assert sign_in(client, "new").status_code == 400


# -- the issuer alone ------------------------------------------------------------------------------


def test_with_the_issuer_alone_every_other_way_is_closed(client, issuer, bob, settings, capsys):
    from django.core.management import CommandError, call_command

    from workspaces import signin_link

    link = urlsplit(signin_link.make(bob)).path
    token = invited()
    settings.SSO_ONLY = True
    settings.MAIL_IS_SET_UP = True
    page = client.get("/accounts/login/").text
    assert 'type="password"' not in page
    answer = client.post("/accounts/login/", {"login": bob.email, "password": PASSWORD})
    assert "Passwords are switched off here" in answer.text
    assert client.get("/accounts/password/reset/").status_code == 404
    assert client.post("/accounts/password/reset/", {"email": bob.email}).status_code == 404
    assert client.post(link).status_code == 404
    join = f"/invitations/{token}/"
    assert 'type="password"' not in client.get(join).text
    data = {"email": "x@example.com", "name": "", "password": "a long enough password"}
    assert client.post(join, data).status_code == 422
    with pytest.raises(CommandError, match="SSO_ONLY"):
        call_command("signin_link", bob.email)
    assert not is_signed_in(client)
    assert User.objects.count() == 2
    assert sign_in(client, "new", invitation=token).status_code == 302
    assert is_signed_in(client)


def test_nothing_of_it_is_there_when_it_isnt_set_up(client, bob):
    assert "Sign in with" not in client.get("/accounts/login/").text
    assert client.post("/accounts/sso/").status_code == 404
    assert client.get("/accounts/sso/callback/").status_code == 404
    client.force_login(bob)
    assert "Link your account there" not in client.get("/profile/").text
