"""Signing in at an issuer, by a browser, which obeys the page's own policy on the way there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from oidc_provider_mock import User as Claims
from oidc_provider_mock import run_server_in_thread
from playwright.sync_api import Browser, Page, expect

from tests.system.harness import ADMIN, Patchbay


@pytest.fixture(scope="module")
def patchbay(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Patchbay]:
    claims = {"email": "somebody@example.com", "email_verified": True}
    with run_server_in_thread(user_claims=(Claims(sub="alice-there", claims=claims),)) as issuer:
        env = {
            "PATCHBAY_OIDC_ISSUER": f"http://localhost:{issuer.server_port}",
            "PATCHBAY_OIDC_CLIENT_ID": "patchbay",
            "PATCHBAY_OIDC_CLIENT_SECRET": "secret",
            "PATCHBAY_OIDC_NAME": "Team login",
        }
        with Patchbay(tmp_path_factory.mktemp("sso"), env=env) as running:
            running.setup_admin()
            yield running


def by_password(page: Page, patchbay: Patchbay) -> None:
    page.goto(f"{patchbay.url}/accounts/login/")
    page.fill("[name=login]", ADMIN["email"])
    page.fill("[name=password]", ADMIN["password"])
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/accounts/login" not in url)


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
def test_an_account_is_linked_and_signs_in(patchbay: Patchbay, browser: Browser, scripts: bool):
    page = browser.new_context(java_script_enabled=scripts).new_page()
    by_password(page, patchbay)
    page.goto(f"{patchbay.url}/profile/")
    page.get_by_role("button", name="Link your account there").click()
    page.get_by_role("button", name="Authorize as alice-there").click()
    expect(page.get_by_text("Linked")).to_be_visible()

    other = browser.new_context(java_script_enabled=scripts).new_page()
    other.goto(f"{patchbay.url}/accounts/login/")
    other.get_by_role("button", name="Sign in with Team login").click()
    other.get_by_role("button", name="Authorize as alice-there").click()
    other.wait_for_url(lambda url: url.startswith(patchbay.url))
    other.goto(f"{patchbay.url}/profile/")
    expect(other.get_by_role("heading", name="Profile")).to_be_visible()
    other.get_by_role("button", name="Take the link away").click()
    expect(other.get_by_role("button", name="Link your account there")).to_be_visible()
