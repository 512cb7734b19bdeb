"""The pages of connections in a real browser, against a running server and a fake provider."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.fakes.server import GOOD_KEY, FakeProviders
from tests.system.harness import ADMIN, Client, Patchbay, wait_for


@pytest.fixture(scope="module")
def admin(patchbay: Patchbay) -> Client:
    return patchbay.setup_admin()


@pytest.fixture
def page(patchbay: Patchbay, admin: Client, browser_page: Page) -> Page:
    """Signed in as the admin."""
    _take_over(patchbay, admin, browser_page)
    return browser_page


def _take_over(patchbay: Patchbay, admin: Client, page: Page) -> None:
    page.context.add_cookies(
        [
            {"name": cookie.name, "value": cookie.value or "", "url": patchbay.url}
            for cookie in admin.cookies.jar
        ]
    )


def add(admin: Client, fakes: FakeProviders, name: str, **fields: str) -> None:
    data = {
        "name": name,
        "provider_type": "openai_compat",
        "auth_type": "api_key_with_endpoint",
        "base_url": fakes.openai,
        "models": "echo",
        "default_model": "echo",
        "api_key": GOOD_KEY,
    }
    answer = admin.post("/connections/new/", data=data | fields)
    assert answer.status_code == 303, answer.text


def test_a_connection_is_added_and_checks_itself(
    patchbay: Patchbay, page: Page, fakes: FakeProviders, complaints: list[str]
):
    page.goto(f"{patchbay.url}/connections/new/")
    page.get_by_label("Name").fill("Ours")
    page.locator("#id_api_key").fill(GOOD_KEY)
    page.get_by_label("Provider", exact=True).select_option("openai_compat")
    # The fields changed, what was typed stayed, the key too: it never left the browser.
    expect(page.get_by_label("Wire format")).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("Ours")
    expect(page.locator("#id_api_key")).to_have_value(GOOD_KEY)
    page.get_by_label("Base URL").fill(fakes.openai)
    page.get_by_label("Models").fill("echo\nlarge")
    page.get_by_label("Default model").fill("echo")
    page.get_by_role("button", name="Save and validate").click()
    page.wait_for_url("**/connections/ours/")
    health = page.locator("#health")
    expect(health).to_have_attribute("data-status", "valid")
    expect(health.locator(".ladder > [data-outcome=passed]")).to_have_count(6)
    expect(health.locator(".history > li")).to_have_count(1)
    assert GOOD_KEY not in page.content()
    assert complaints == []


def test_a_wrong_form_says_so_where_the_eye_is_and_keeps_the_key(
    patchbay: Patchbay, page: Page, fakes: FakeProviders
):
    page.goto(f"{patchbay.url}/connections/new/?preset=openai-compatible")
    page.locator("#id_api_key").fill("typed-once")
    page.get_by_label("Default model").fill("echo")
    page.get_by_label("Base URL").fill("http://169.254.169.254/v1")
    page.get_by_role("button", name="Save and validate").click()
    summary = page.get_by_role("alert")
    expect(summary).to_be_focused()
    expect(page.get_by_label("Base URL")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#id_api_key")).to_have_value("typed-once")
    summary.get_by_role("link", name="Base URL").click()
    expect(page.get_by_label("Base URL")).to_be_in_viewport()
    expect(page).to_have_url(re.compile("preset=openai-compatible"))


def test_another_address_asks_for_the_key_again_at_its_field(
    patchbay: Patchbay, page: Page, admin: Client, fakes: FakeProviders
):
    add(admin, fakes, "Bound")
    with FakeProviders() as thief:
        page.goto(f"{patchbay.url}/connections/bound/edit/")
        page.get_by_label("Base URL").fill(thief.openai)
        page.get_by_role("button", name="Save and validate").click()
        key = page.locator("#id_api_key")
        expect(key).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#id_api_key_error")).to_contain_text("Enter this again")
        assert thief.requests() == []
        key.fill(GOOD_KEY)
        page.get_by_role("button", name="Save and validate").click()
        page.wait_for_url("**/connections/bound/")
        expect(page.locator("#health")).to_have_attribute("data-status", "valid")
        assert thief.requests() != []


def test_rows_are_checked_from_the_list_and_change_by_themselves(
    patchbay: Patchbay,
    page: Page,
    admin: Client,
    fakes: FakeProviders,
    complaints: list[str],
):
    add(admin, fakes, "Good")
    add(admin, fakes, "Bad", api_key="sk-not-the-right-one-0123")
    page.goto(f"{patchbay.url}/connections/")
    good, bad = page.locator("#connection-good"), page.locator("#connection-bad")
    expect(good).to_have_attribute("data-status", "valid")
    expect(bad).to_have_attribute("data-status", "failed")
    expect(bad).to_contain_text("Key rejected")

    page.get_by_role("button", name="Validate selected").click()
    expect(page.locator("#toasts")).to_contain_text("Select at least one connection")
    good.get_by_role("checkbox").check()
    bad.get_by_role("checkbox").check()
    before = len(fakes.requests())
    page.get_by_role("button", name="Validate selected").click()
    expect(page.locator("#toasts")).to_contain_text("2 validations have begun.")
    expect(good).to_have_attribute("data-status", "valid")
    expect(bad).to_have_attribute("data-status", "failed")
    assert len(fakes.requests()) > before

    good.get_by_role("button", name="Actions for Good").click()
    page.locator("#menu-good").get_by_role("button", name="Pause").click()
    expect(good).to_have_attribute("data-status", "disabled")
    good.get_by_role("button", name="Actions for Good").click()
    page.locator("#menu-good").get_by_role("button", name="Enable").click()
    expect(good).to_have_attribute("data-status", "valid")
    good.get_by_role("button", name="Actions for Good").click()
    page.locator("#menu-good").get_by_role("button", name="Queue until ready").click()
    expect(page.locator("#toasts")).to_contain_text("Queue until ready")
    bad.get_by_role("button", name="Actions for Bad").click()
    page.locator("#menu-bad").get_by_role("button", name="Set as default").click()
    expect(bad).to_contain_text("Default")
    expect(good).not_to_contain_text("Default")
    bad.get_by_role("button", name="Actions for Bad").click()
    page.locator("#menu-bad").get_by_role("button", name="Move up").click()
    expect(page.locator("#connection-bad + #connection-good")).to_have_count(1)

    bad.get_by_role("button", name="Actions for Bad").click()
    page.locator("#menu-bad").get_by_role("link", name="Delete…").click()
    dialog = page.get_by_role("dialog", name="Delete “Bad”?")
    expect(dialog).to_contain_text("It is the global default")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    bad.get_by_role("button", name="Actions for Bad").click()
    page.locator("#menu-bad").get_by_role("link", name="Delete…").click()
    page.get_by_role("button", name="Delete connection").click()
    expect(bad).to_have_count(0)
    assert complaints == []


def test_what_is_typed_while_the_fields_change_stays(patchbay: Patchbay, page: Page):
    page.goto(f"{patchbay.url}/connections/new/")
    typed = []

    def late(route: Route) -> None:
        answer = route.fetch()
        page.get_by_label("Name").fill("Typed meanwhile")
        typed.append(1)
        route.fulfill(response=answer)

    page.route("**/connections/new/", late)
    page.get_by_label("Provider", exact=True).select_option("bedrock")
    expect(page.get_by_label("AWS region")).to_be_visible()
    expect(page.get_by_label("Name")).to_have_value("Typed meanwhile")
    assert typed

    # Back from another page, the fields are those of the provider that is shown.
    page.unroute("**/connections/new/")
    page.get_by_role("link", name="Cancel").click()
    page.wait_for_url("**/connections/")
    page.go_back()
    page.wait_for_url("**/connections/new/")
    shown = page.get_by_label("Provider", exact=True).input_value()
    assert (page.get_by_label("AWS region").count() == 1) == (shown == "bedrock")


def test_the_focus_goes_on_where_a_swap_took_it_away(
    patchbay: Patchbay, page: Page, admin: Client, fakes: FakeProviders
):
    add(admin, fakes, "Keys")
    page.goto(f"{patchbay.url}/connections/")
    row = page.locator("#connection-keys")
    button = row.get_by_role("button", name="Actions for Keys")
    for entry, status in (("Pause", "disabled"), ("Enable", "valid")):
        button.focus()
        page.keyboard.press("Enter")
        page.locator("#menu-keys").get_by_role("button", name=entry).focus()
        page.keyboard.press("Enter")
        expect(row).to_have_attribute("data-status", status)
        expect(button).to_be_focused()
    page.keyboard.press("Enter")
    page.locator("#menu-keys").get_by_role("link", name="Delete…").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(button).to_be_focused()


@pytest.mark.parametrize("width", [1440, 390])
def test_names_without_a_place_to_break_widen_no_page(
    patchbay: Patchbay, page: Page, admin: Client, fakes: FakeProviders, width: int
):
    name = f"{'W' * 90}{width}"
    add(admin, fakes, name, slug=f"wide-{width}", models=f"echo\n{'x' * 150}")
    page.set_viewport_size({"width": width, "height": 800})
    here = f"/connections/wide-{width}/"
    for path in (
        *("/connections/", here, f"{here}edit/", f"{here}delete/confirm/"),
        *("/w/support/settings/ai/", f"/w/support/settings/ai/wide-{width}/models/"),
    ):
        page.goto(patchbay.url + path)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} wide"
        inner = page.evaluate(
            "Math.max(0, ...[...document.querySelectorAll('.table-wrap')]"
            ".map((box) => box.scrollWidth - box.clientWidth))"
        )
        assert inner == 0, f"a table of {path} scrolls by {inner}"


def test_a_double_click_on_validate_is_one_probe(
    patchbay: Patchbay, page: Page, admin: Client, fakes: FakeProviders
):
    add(admin, fakes, "Twice")
    page.goto(f"{patchbay.url}/connections/twice/")
    bars = page.locator("#health .history > li")
    expect(bars).to_have_count(1)
    page.get_by_role("button", name="Validate").dblclick()
    expect(page.locator("#health")).to_have_attribute("data-status", "valid")
    expect(bars).to_have_count(2)


def test_everything_works_without_javascript(
    patchbay: Patchbay, browser: Browser, admin: Client, fakes: FakeProviders
):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(15_000)
    _take_over(patchbay, admin, page)
    page.goto(f"{patchbay.url}/connections/new/")
    page.get_by_label("Name").fill("Plain")
    page.get_by_label("Provider", exact=True).select_option("openai_compat")
    page.get_by_role("button", name="Update fields").click()
    page.get_by_label("Base URL").fill(fakes.openai)
    page.get_by_label("Models").fill("echo")
    page.get_by_role("button", name="Save and validate").click()
    expect(page.get_by_role("alert")).to_contain_text("Default model")
    page.get_by_label("Default model").fill("echo")
    page.locator("#id_api_key").fill(GOOD_KEY)
    page.get_by_role("button", name="Save and validate").click()
    page.wait_for_url("**/connections/plain/")

    def settled() -> bool:
        return admin.get("/connections/plain/row/").status_code == 200

    wait_for(settled, what="the probe has ended")
    page.reload()
    expect(page.locator("#health")).to_have_attribute("data-status", "valid")

    page.get_by_role("link", name="Connections", exact=True).first.click()
    row = page.locator("#connection-plain")
    row.get_by_role("button", name="Actions for Plain").click()
    page.locator("#menu-plain").get_by_role("button", name="Pause").click()
    expect(row).to_have_attribute("data-status", "disabled")
    row.get_by_role("button", name="Actions for Plain").click()
    page.locator("#menu-plain").get_by_role("link", name="Delete…").click()
    page.get_by_role("button", name="Delete connection").click()
    page.wait_for_url("**/connections/")
    expect(row).to_have_count(0)
    context.close()


def test_a_member_sees_the_settings_of_the_workspace_only(
    patchbay: Patchbay, admin: Client, fakes: FakeProviders, browser_page: Page
):
    add(admin, fakes, "Shared")
    patchbay.manage(
        "shell",
        "-c",
        "from tests.builders import make_member, make_user\n"
        "from workspaces.models import Workspace\n"
        "make_member(Workspace.objects.get(), make_user('bob@example.com'))",
    )
    page = browser_page
    page.goto(f"{patchbay.url}/accounts/login/")
    page.fill("[name=login]", "bob@example.com")
    page.fill("[name=password]", ADMIN["password"])
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/accounts/login" not in url)
    page.goto(f"{patchbay.url}/w/support/settings/ai/")
    expect(page.locator("#connection-shared")).to_contain_text("echo")
    expect(page.get_by_text("Why this connection?")).to_be_visible()
    expect(page.locator("main form[method=post]")).to_have_count(0)
    assert page.goto(f"{patchbay.url}/connections/").status == 403


def test_a_new_secret_climbs_beside_the_old_one_and_takes_its_place(
    patchbay: Patchbay, page: Page, admin: Client, fakes: FakeProviders, complaints: list[str]
):
    add(admin, fakes, "Renewed", api_key="sk-old-0123456789-abcdef-0Ld1")
    page.goto(f"{patchbay.url}/connections/renewed/")
    page.get_by_role("link", name="Replace the secret").click()
    page.get_by_label("API key").fill("sk-wrong-0123456789-abcdef")
    page.get_by_role("button", name="Check the new secret").click()
    candidate = page.locator("#candidate")
    expect(candidate).to_have_attribute("data-state", "failed")
    expect(candidate).to_contain_text("The old secret stays in use.")
    page.get_by_role("link", name="Replace the secret").click()
    page.get_by_label("API key").fill(GOOD_KEY)
    page.get_by_role("button", name="Check the new secret").click()
    expect(page.locator("#health")).to_have_attribute("data-status", "valid")
    expect(candidate).to_have_count(0)
    assert GOOD_KEY not in page.content()
    assert complaints == []
