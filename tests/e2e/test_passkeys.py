"""Passkeys in a browser, which has a device of its own for them: added, used alone and after a
password, removed; what the browser refuses; and the pages without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest
from playwright.sync_api import Browser, BrowserContext, CDPSession, Page, expect

from tests.e2e.test_every_page import AXE, RUN, TAGS
from tests.system.harness import ADMIN, Patchbay
from tests.system.tls import TlsProxy


@pytest.fixture(scope="module")
def patchbay(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Patchbay]:
    with Patchbay(tmp_path_factory.mktemp("passkeys")) as running:
        running.setup_admin()
        yield running


@pytest.fixture
def here(patchbay: Patchbay) -> Iterator[str]:
    yield f"http://localhost:{patchbay.port}"
    patchbay.manage("signin_link", ADMIN["email"], "--without-second-factor")


NO_OFFER = "PublicKeyCredential.isConditionalMediationAvailable = async () => false"


class Device:
    """What keeps the passkeys of a page, and answers at once whatever asks: where the field of the
    address `offers` them, without a press."""

    def __init__(self, page: Page, *, offers: bool = False, **options: Any) -> None:
        if not offers:
            page.add_init_script(NO_OFFER)
        self.cdp: CDPSession = page.context.new_cdp_session(page)
        self.cdp.send("WebAuthn.enable", {"enableUI": False})
        told = {
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": True,
            "hasUserVerification": True,
            "isUserVerified": True,
            "automaticPresenceSimulation": True,
            **options,
        }
        made = self.cdp.send("WebAuthn.addVirtualAuthenticator", {"options": told})
        self.id = {"authenticatorId": made["authenticatorId"]}

    @property
    def passkeys(self) -> list[dict[str, Any]]:
        return self.cdp.send("WebAuthn.getCredentials", self.id)["credentials"]

    def put(self, passkey: dict[str, Any]) -> None:
        self.cdp.send("WebAuthn.addCredential", {**self.id, "credential": passkey})


def by_password(page: Page, here: str) -> None:
    page.goto(f"{here}/accounts/login/")
    page.fill("[name=login]", ADMIN["email"])
    page.fill("[name=password]", ADMIN["password"])
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url(lambda url: "/accounts/login" not in url)


def add(page: Page, here: str, name: str) -> None:
    page.goto(f"{here}/profile/")
    page.get_by_role("link", name="Add a passkey").click()
    if "/reauthenticate/" in page.url:
        page.fill("[name=password]", ADMIN["password"])
        page.get_by_role("button", name="Confirm").click()
    page.fill("[name=name]", name)
    page.get_by_role("button", name="Add the passkey").click()


def sign_out(page: Page, here: str) -> None:
    page.context.clear_cookies()
    page.goto(f"{here}/accounts/login/")


def is_signed_in(page: Page, here: str) -> bool:
    page.goto(f"{here}/profile/")
    return page.url == f"{here}/profile/"


def test_one_is_added_signs_in_and_is_removed(
    patchbay: Patchbay, here: str, browser_page: Page, complaints: list[str]
):
    page = browser_page
    by_password(page, here)
    device = Device(page)
    add(page, here, "Work laptop")
    expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
    codes = page.locator(".codes").inner_text().split()
    assert len(device.passkeys) == 1
    page.goto(f"{here}/profile/")
    expect(page.get_by_role("row", name="Work laptop")).to_be_visible()

    # The same device a second time: the browser itself refuses.
    add(page, here, "Twice")
    expect(page.get_by_text("This device has a passkey of yours already.")).to_be_visible()
    assert page.input_value("[name=name]") == "Twice"

    # Alone, by the button.
    sign_out(page, here)
    page.get_by_role("button", name="Sign in with a passkey").click()
    page.wait_for_url(lambda url: "/accounts/" not in url)
    assert is_signed_in(page, here)
    expect(page.get_by_role("row", name="Work laptop")).not_to_contain_text("never")

    # After a password.
    sign_out(page, here)
    by_password(page, here)
    expect(page.get_by_role("heading", name="Second factor")).to_be_visible()
    assert not is_signed_in(page, here)
    expect(page.get_by_role("heading", name="Second factor")).to_be_visible()
    page.get_by_role("button", name="Use a passkey").click()
    page.wait_for_url(lambda url: "/accounts/" not in url)
    assert is_signed_in(page, here)

    # Renamed; then removed, after the passkey proved who it is.
    page.get_by_role("link", name="Rename Work laptop").click()
    page.get_by_role("link", name="Use a passkey instead").click()
    page.get_by_role("button", name="Use a passkey").click()
    page.fill("[name=name]", "Old laptop")
    page.get_by_role("button", name="Save name").click()
    page.get_by_role("link", name="Remove Old laptop").click()
    expect(page.get_by_text("the recovery codes end with it")).to_be_visible()
    page.get_by_role("button", name="Remove it").click()
    expect(page.get_by_text("The passkey is removed.")).to_be_visible()
    assert codes[0] not in page.content()

    # The device offers it still, and nobody gets in with it.
    sign_out(page, here)
    page.get_by_role("button", name="Sign in with a passkey").click()
    expect(page.get_by_text("This passkey wasn't accepted.")).to_be_visible()
    sign_out(page, here)
    by_password(page, here)
    assert is_signed_in(page, here)
    assert complaints == []


def test_the_field_of_the_address_offers_it(patchbay: Patchbay, here: str, browser_page: Page):
    page = browser_page
    by_password(page, here)
    Device(page, offers=True)
    add(page, here, "Phone")
    expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
    page.context.clear_cookies()
    # The device answers without a press, as if its entry in the field's list were chosen.
    page.goto(f"{here}/accounts/login/?next=/profile/")
    page.wait_for_url(f"{here}/profile/")


def test_foreign_and_copied_passkeys_are_refused(
    patchbay: Patchbay, here: str, browser_page: Page, browser: Browser
):
    page = browser_page
    by_password(page, here)
    device = Device(page)
    add(page, here, "Phone")
    expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
    (real,) = device.passkeys

    def attempt(passkey: dict[str, Any]) -> Page:
        other = browser.new_context().new_page()
        Device(other).put(passkey)
        other.goto(f"{here}/accounts/login/")
        other.get_by_role("button", name="Sign in with a passkey").click()
        return other

    copied = attempt({**real, "signCount": 0})
    expect(copied.get_by_text("This passkey may have been copied")).to_be_visible()
    assert not is_signed_in(copied, here)

    stranger = browser.new_context().new_page()
    by_password_device = Device(stranger)
    stranger.goto(f"{here}/healthz")
    stranger.evaluate(
        """async () => {
          const random = (n) => crypto.getRandomValues(new Uint8Array(n));
          await navigator.credentials.create({publicKey: {
            rp: {name: "x", id: "localhost"}, user: {id: random(16), name: "x", displayName: "x"},
            challenge: random(32), pubKeyCredParams: [{type: "public-key", alg: -7}],
            authenticatorSelection: {residentKey: "required", userVerification: "required"},
          }});
        }"""
    )
    (foreign,) = by_password_device.passkeys
    for wrong in (
        {**real, "privateKey": foreign["privateKey"], "signCount": 99},
        {**real, "credentialId": foreign["credentialId"], "signCount": 99},
        {**foreign, "signCount": 99},
    ):
        refused = attempt(wrong)
        expect(refused.get_by_text("This passkey wasn't accepted.")).to_be_visible()
        assert not is_signed_in(refused, here)
    right = attempt({**real, "signCount": 100})
    right.wait_for_url(lambda url: "/accounts/" not in url)
    assert is_signed_in(right, here)


def test_an_answer_sent_twice_signs_in_once(patchbay: Patchbay, here: str, browser_page: Page):
    page = browser_page
    by_password(page, here)
    Device(page)
    add(page, here, "Phone")
    expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
    sign_out(page, here)
    sent: list[str] = []
    page.on("request", lambda r: sent.append(r.post_data or "") if "sign-in" in r.url else None)
    button = page.get_by_role("button", name="Sign in with a passkey")
    button.dblclick()
    page.wait_for_url(lambda url: "/accounts/" not in url)
    assert len(sent) == 1
    # The same answer in a browser that didn't ask for it, past the page's script.
    sign_out(page, here)
    page.evaluate(
        """(answer) => {
          const form = document.querySelector("[data-passkey]");
          form.elements.credential.value = answer;
          form.submit();
        }""",
        parse_qs(sent[0])["credential"][0],
    )
    expect(page.get_by_text("This passkey wasn't accepted.")).to_be_visible()
    assert len(sent) == 2
    assert not is_signed_in(page, here)


def test_cancelled_it_says_so_and_the_password_works(
    patchbay: Patchbay, here: str, browser_page: Page
):
    page = browser_page
    Device(page, isUserVerified=False)
    page.goto(f"{here}/accounts/login/")
    page.get_by_role("button", name="Sign in with a passkey").click()
    expect(page.get_by_text("Nothing was done:")).to_be_visible()
    by_password(page, here)
    assert is_signed_in(page, here)


def without_passkeys(context: BrowserContext) -> Page:
    context.add_init_script("delete window.PublicKeyCredential")
    return context.new_page()


def test_a_browser_that_has_none_is_told(patchbay: Patchbay, here: str, browser: Browser):
    page = without_passkeys(browser.new_context())
    page.goto(f"{here}/accounts/login/")
    expect(page.get_by_text("This browser offers no passkeys here.")).to_be_visible()
    expect(page.get_by_role("button", name="Sign in with a passkey")).to_be_hidden()
    by_password(page, here)
    assert is_signed_in(page, here)


def test_without_scripts_the_pages_say_that_they_are_needed(
    patchbay: Patchbay, here: str, browser: Browser
):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(f"{here}/accounts/login/")
    # Playwright's way to switch scripts off leaves noscript hidden.
    assert "Passkeys need JavaScript" in page.content()
    expect(page.get_by_role("button", name="Sign in with a passkey")).to_be_hidden()
    by_password(page, here)
    page.goto(f"{here}/accounts/passkeys/new/")
    page.fill("[name=password]", ADMIN["password"])
    page.get_by_role("button", name="Confirm").click()
    assert "Passkeys need JavaScript" in page.content()
    expect(page.get_by_role("button", name="Add the passkey")).to_be_hidden()


def test_at_a_number_the_profile_says_where_to_go(patchbay: Patchbay, browser_page: Page):
    page = browser_page
    by_password(page, patchbay.url)
    page.goto(f"{patchbay.url}/profile/")
    expect(
        page.get_by_role("link", name=f"Open this page at http://localhost:{patchbay.port}")
    ).to_be_visible()


def test_behind_a_proxy_that_ends_tls(
    tmp_path_factory: pytest.TempPathFactory, static_files: None, browser: Browser
):
    with TlsProxy(tmp_path_factory.mktemp("passkey-tls")) as proxy:
        env = {"PATCHBAY_URL": proxy.url, "PATCHBAY_TRUSTED_PROXIES": "127.0.0.1"}
        with Patchbay(tmp_path_factory.mktemp("passkey-https"), env=env) as running:
            proxy.upstream = running.url
            here = f"https://localhost:{proxy.port}"
            page = browser.new_context(ignore_https_errors=True).new_page()
            page.goto(f"{here}/setup/")
            page.fill("[name=token]", running.token)
            for name, value in ADMIN.items():
                page.fill(f"[name={name}]", value)
            page.locator("main button[type=submit]").click()
            page.wait_for_url(lambda url: "/setup" not in url)
            Device(page)
            add(page, here, "Phone")
            expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
            sign_out(page, here)
            page.get_by_role("button", name="Sign in with a passkey").click()
            page.wait_for_url(lambda url: "/accounts/" not in url)
            assert is_signed_in(page, here)


def test_its_pages_have_no_barriers(patchbay: Patchbay, here: str, browser_page: Page):
    page, found = browser_page, {}

    def look(name: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.evaluate(AXE)
            if complaints := page.evaluate(RUN, ["tag", TAGS]):
                found[f"{name}, {scheme}"] = complaints
        page.set_viewport_size({"width": 360, "height": 740})
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found[f"{name}, on a phone"] = ["wider than the screen"]
        page.set_viewport_size({"width": 1280, "height": 720})

    Device(page)
    page.goto(f"{here}/accounts/login/")
    look("sign-in")
    by_password(page, here)
    add(page, here, "A passkey with a name that is as long as names may be, yes")
    expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
    add(page, here, "Twice")
    expect(page.get_by_text("This device has a passkey of yours already.")).to_be_visible()
    look("add")
    page.goto(f"{here}/profile/")
    look("profile")
    page.get_by_role("link", name="Rename A passkey").click()
    look("rename")
    page.goto(f"{here}/profile/")
    page.get_by_role("link", name="Remove A passkey").click()
    look("remove")
    page.goto(f"{here}/accounts/passkeys/again/")
    look("again")
    sign_out(page, here)
    by_password(page, here)
    look("second step")
    assert found == {}
