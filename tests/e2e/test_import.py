"""Connections brought in and taken out in a real browser, with and without its scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.fakes.server import FakeProviders
from tests.system.harness import Client, Patchbay

CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture(scope="module")
def admin(patchbay: Patchbay) -> Client:
    return patchbay.setup_admin()


def _take_over(patchbay: Patchbay, admin: Client, page: Page) -> None:
    page.context.add_cookies(
        [
            {"name": cookie.name, "value": cookie.value or "", "url": patchbay.url}
            for cookie in admin.cookies.jar
        ]
    )


@pytest.fixture
def page(patchbay: Patchbay, admin: Client, browser_page: Page) -> Page:
    """Signed in as the admin."""
    _take_over(patchbay, admin, browser_page)
    return browser_page


def config(tmp_path: Path, fakes: FakeProviders, prefix: str, **more: Any) -> Path:
    """A file with an endpoint that needs no key, one that needs its own, and one refused."""
    entries = [
        {
            "slug": f"{prefix}-open",
            "name": f"{prefix} <b>open</b>",
            "providerType": "openai_compat",
            "authType": "none",
            "baseUrl": fakes.openai_nokey,
            "models": ["echo"],
            "defaultModel": "echo",
            "future": {"kept": True},
            **more,
        },
        {
            "slug": f"{prefix}-keyed",
            "name": f"{prefix} keyed",
            "providerType": "anthropic",
            "authType": "api_key",
            "defaultModel": "claude-sonnet-4-6",
            "apiKey": CANARY,
        },
        {"slug": f"{prefix}-x", "name": "X", "providerType": "copilot", "authType": "oauth"},
    ]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"llmConnections": entries}))
    return path


def test_a_file_is_shown_then_applied_and_checks_itself(
    patchbay: Patchbay, page: Page, fakes: FakeProviders, tmp_path: Path, complaints: list[str]
):
    page.goto(f"{patchbay.url}/connections/")
    page.get_by_role("link", name="Import").click()
    page.get_by_label("Configuration file").set_input_files(config(tmp_path, fakes, "first"))
    page.get_by_role("button", name="Show what would change").click()
    expect(page.get_by_role("heading", name="What would change")).to_be_focused()
    expect(page.get_by_text("GitHub Copilot works only")).to_be_visible()
    expect(page.get_by_text("“apiKey” looks like a secret and was left out")).to_be_visible()
    expect(page.get_by_role("checkbox", name="Take first <b>open</b>")).to_be_checked()
    assert CANARY not in page.content()
    page.get_by_role("button", name="Apply what is ticked").click()
    page.wait_for_url("**/connections/import/*-*/")
    expect(page.get_by_role("heading", name="2 added, 0 changed")).to_be_visible()
    expect(page.get_by_text("One needs a secret")).to_be_visible()
    opened = page.locator("#connection-first-open")
    expect(opened).to_have_attribute("data-status", "valid")
    expect(page.locator("#connection-first-keyed")).to_have_attribute("data-status", "incomplete")
    page.get_by_role("link", name="Enter the secret of first keyed").click()
    expect(page.locator("#id_api_key")).to_be_visible()
    assert complaints == []


def test_a_broken_text_is_said_and_stays_to_be_mended(
    patchbay: Patchbay, page: Page, fakes: FakeProviders, tmp_path: Path
):
    text = config(tmp_path, fakes, "second").read_text()
    page.goto(f"{patchbay.url}/connections/import/")
    box = page.get_by_label("Or its text")
    box.fill(text[:-1])
    page.get_by_role("button", name="Show what would change").click()
    expect(page.get_by_role("alert")).to_contain_text("not valid JSON")
    expect(box).to_have_value(text[:-1])
    box.press_sequentially("")
    box.fill(text)
    page.get_by_role("button", name="Show what would change").click()
    page.get_by_role("checkbox", name="Take second keyed").uncheck()
    page.get_by_role("button", name="Apply what is ticked").click()
    expect(page.get_by_role("heading", name="1 added, 0 changed")).to_be_visible()


def test_without_scripts_and_with_somebody_quicker(
    patchbay: Patchbay, browser: Browser, admin: Client, fakes: FakeProviders, tmp_path: Path
):
    first = config(tmp_path, fakes, "third").read_text()
    changed = json.loads(config(tmp_path, fakes, "third", midStreamBehavior="queue").read_text())
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(15_000)
    _take_over(patchbay, admin, page)

    def show(text: str) -> None:
        page.goto(f"{patchbay.url}/connections/import/")
        page.get_by_label("Or its text").fill(text)
        page.get_by_role("button", name="Show what would change").click()

    show("{")
    expect(page.get_by_role("alert")).to_contain_text("Nothing was changed.")
    show(first)
    page.get_by_role("button", name="Apply what is ticked").click()
    page.wait_for_url("**/connections/import/*-*/")
    show(json.dumps(changed))
    expect(page.locator(".diff")).to_contain_text("midStreamBehavior")
    answer = admin.post("/connections/third-open/edit/", data={"name": "Renamed"})
    assert answer.status_code == 303
    page.get_by_role("button", name="Apply what is ticked").click()
    expect(page.get_by_text("This changed since you looked")).to_be_visible()
    expect(page.locator(".diff")).to_contain_text("Renamed")
    page.get_by_role("button", name="Apply what is ticked").click()
    expect(page.get_by_role("heading", name="0 added, 1 changed")).to_be_visible()
    context.close()


def test_an_export_says_what_it_leaves_out_before_it_is_taken(
    patchbay: Patchbay, page: Page, fakes: FakeProviders, admin: Client, tmp_path: Path
):
    path = config(tmp_path, fakes, "fourth")
    patchbay.manage("import_connections", str(path))
    lent = {"name": "Lent", "provider_type": "anthropic", "auth_type": "environment"}
    assert admin.post("/connections/new/", data=lent).status_code == 303
    page.goto(f"{patchbay.url}/connections/export/")
    expect(page.locator("#left-out")).to_be_empty()
    page.get_by_label("Craft Agents from 0.5.1 on").check()
    expect(page.locator("#left-out")).to_contain_text("lent")
    expect(page.get_by_label("Lent")).to_be_hidden()
    page.get_by_label("Chosen connections").check()
    page.get_by_label("fourth <b>open</b>").check()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the file").click()
    document = json.loads(Path(download.value.path()).read_text())
    [entry] = document["llmConnections"]
    assert (entry["slug"], entry["providerType"]) == ("fourth-open", "pi_compat")
    assert entry["future"] == {"kept": True}
    # The page stays, and can be used again.
    expect(page.get_by_role("button", name="Download the file")).to_be_enabled()
