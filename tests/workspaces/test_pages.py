"""Set-up, sign-in, the password, the start page: what they say and where typing begins."""

from __future__ import annotations

import re

import pytest
from django.test import Client

from tests.builders import PASSWORD, make_user
from workspaces.models import User


def focused(html: str) -> list[str]:
    """The names of the fields that ask for the focus."""
    return re.findall(r'<input[^>]*\bname="(\w+)"[^>]*\bautofocus', html)


@pytest.mark.django_db
def test_a_person_without_a_workspace_is_told_so(client_for, workspace):
    page = client_for(make_user("dora@example.com")).get("/")
    assert page.status_code == 200
    assert "no workspace has you as a member" in page.text
    assert "/accounts/logout/" in page.text


@pytest.mark.django_db
def test_set_up_says_what_is_missing_and_puts_the_focus_there(client: Client):
    assert focused(client.get("/setup/").text) == ["token"]
    page = client.post(
        "/setup/", {"token": "x" * 40, "email": "not one", "password": "", "workspace": ""}
    )
    assert page.status_code == 422
    assert "<title>Not done yet: " in page.text
    for sentence in (
        "This isn&#x27;t an e-mail address.",
        "Choose a password.",
        "Give the workspace a name.",
    ):
        assert sentence in page.text
    assert focused(page.text) == ["token"]
    assert not User.objects.exists()


@pytest.mark.django_db
def test_a_wrong_password_says_what_to_do(client: Client, bob: User):
    assert focused(client.get("/accounts/login/").text) == ["login"]
    page = client.post("/accounts/login/", {"login": bob.email, "password": "wrong"})
    assert "don&#x27;t go together. Check both" in page.text
    assert "<title>Not done yet: Sign in" in page.text


@pytest.mark.django_db
def test_the_password_form_begins_at_what_is_wrong(client_for, bob: User):
    client = client_for(bob)
    assert focused(client.get("/accounts/password/change/").text) == ["oldpassword"]
    new = {"password1": "another long enough one", "password2": "not the same at all"}
    page = client.post("/accounts/password/change/", {"oldpassword": PASSWORD, **new})
    assert focused(page.text) == ["password2"]
