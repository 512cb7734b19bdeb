"""Two people and a visitor, each in their own language, on the running product."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.builders import PASSWORD
from tests.e2e.test_chat import admin, new_session, send
from tests.system.harness import ADMIN, Client, Patchbay

__all__ = ["admin"]  # a fixture

BOB = """
from tests.builders import make_member, make_user
from workspaces.models import Workspace
make_member(Workspace.objects.get(), make_user("bob@example.com"))
"""


@pytest.fixture
def people(patchbay: Patchbay, admin: Client, browser: Browser) -> tuple[Page, Page]:
    """Alice and bob, whose browsers ask for English."""
    patchbay.manage("shell", "-v0", "-c", BOB)
    alice, bob = (context_of(browser, "en-GB").new_page() for _ in range(2))
    sign_in(alice, patchbay, ADMIN["email"], ADMIN["password"])
    sign_in(bob, patchbay, "bob@example.com", PASSWORD)
    return alice, bob


def context_of(browser: Browser, locale: str) -> BrowserContext:
    context = browser.new_context(locale=locale, viewport={"width": 1280, "height": 800})
    context.set_default_timeout(30_000)
    return context


def sign_in(page: Page, patchbay: Patchbay, email: str, password: str) -> None:
    page.goto(f"{patchbay.url}/accounts/login/")
    page.fill("[name=login]", email)
    page.fill("[name=password]", password)
    page.click("main button[type=submit]")
    page.wait_for_url("**/w/**")


def test_each_reads_the_own_language_in_one_session_too(
    patchbay: Patchbay, admin: Client, people: tuple[Page, Page]
):
    alice, bob = people

    # Bob chooses German; what says so is German already.
    bob.goto(f"{patchbay.url}/profile/")
    bob.get_by_label("Language").select_option("Deutsch")
    bob.get_by_role("button", name="Save profile").click()
    expect(bob.locator("#toasts")).to_contain_text("Ihr Profil ist gespeichert.")
    expect(bob.locator("html")).to_have_attribute("lang", "de")
    for name in ("Sitzungen", "KI-Einstellungen", "Verbrauch", "Mitglieder"):
        bob.get_by_role("link", name=name).click()
        expect(bob.get_by_role("heading", level=1)).to_have_text(name)
    # A shared session: the same reply, as it grows, in two languages.
    path = new_session(admin, "tools-3-1s")
    assert admin.post(f"{path}share/", data={"shared": "true"}).status_code == 303
    for page in (alice, bob):
        page.goto(patchbay.url + path)
        page.evaluate("window.sameDocument = true")
    send(alice, "Look at the clock, three times.")
    expect(alice.locator(".tool").first).to_contain_text("Done")
    expect(bob.locator(".tool").first).to_contain_text("Fertig")
    expect(alice.locator(".tool")).to_have_count(3)
    expect(bob.locator(".tool")).to_have_count(3)
    for page, words in ((alice, "Reply finished."), (bob, "Antwort fertig.")):
        expect(page.locator("#announce")).to_have_text(words)
        assert page.evaluate("window.sameDocument")
    assert "Fertig" not in alice.locator("#transcript").inner_text()
    assert "Done" not in " ".join(bob.locator(".tool .badge").all_inner_texts())
    expect(alice.locator("html")).to_have_attribute("lang", "en")

    # Dates and amounts are written in it.
    bob.goto(f"{patchbay.url}/w/support/usage/")
    expect(bob.locator("main")).to_contain_text("0,00 $")
    months = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember"
    shown = bob.locator(".chart-axis span").all_inner_texts()
    assert any(month in text for month in months.split() for text in shown), shown


def test_a_visitor_reads_what_the_browser_asks_for(
    patchbay: Patchbay, admin: Client, browser: Browser
):
    for locale, heading, error in (
        ("de-CH", "Anmelden", "gehören nicht zusammen"),
        ("en-US", "Sign in", "don't go together"),
        ("fr-FR", "Sign in", "don't go together"),
    ):
        page = context_of(browser, locale).new_page()
        page.goto(f"{patchbay.url}/")
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
        page.fill("[name=login]", "nobody@example.com")
        page.fill("[name=password]", "not the password")
        page.click("main button[type=submit]")
        expect(page.locator("main")).to_contain_text(error)
        page.context.close()
