"""A person's way through an installation, by browsers: invited, let in, deleted."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.system.harness import ADMIN, Patchbay


@pytest.fixture(scope="module")
def patchbay(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Patchbay]:
    with Patchbay(tmp_path_factory.mktemp("people")) as running:
        running.setup_admin()
        yield running


def test_somebody_comes_and_goes(
    patchbay: Patchbay, browser: Browser, browser_page: Page, complaints: list[str]
):
    page, other = browser_page, browser.new_page()
    page.goto(f"{patchbay.url}/accounts/login/")
    page.fill("[name=login]", ADMIN["email"])
    page.fill("[name=password]", ADMIN["password"])
    page.keyboard.press("Enter")
    page.get_by_role("link", name="People").click()
    page.get_by_role("link", name="Invite a person").click()
    page.get_by_label("E-mail address").fill("eve@example.com")
    page.get_by_role("button", name="Invite").click()
    link = page.locator("#invitation-link").text_content() or ""

    other.goto(link)
    other.get_by_label("Your name").fill("Eve")
    other.get_by_label("Password").fill("a long enough phrase")
    other.locator("main button[type=submit]").click()
    expect(other.get_by_role("heading", name="Sessions", exact=True)).to_be_visible()

    page.goto(f"{patchbay.url}/people/?q=eve")
    page.get_by_role("link", name="Eve", exact=True).click()
    expect(page.get_by_role("heading", name="Eve")).to_be_visible()
    page.get_by_role("link", name="Look at what would go…").click()
    page.get_by_label("To go on, type the e-mail address").fill("eve@example.com")
    page.get_by_role("button", name="Delete this person's data").click()
    # The page follows by itself.
    expect(page.get_by_text("This person's data is deleted")).to_be_visible()
    other.goto(f"{patchbay.url}/profile/")
    expect(other).to_have_url(re.compile("/accounts/login/"))
    assert complaints == []
