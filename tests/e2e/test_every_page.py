"""Every page of the product in a browser, by the table of addresses: what axe finds, light and
dark; whether it fits a phone; what is left of it without scripts; and the keys of every page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.builders import PASSWORD
from tests.e2e.every_page import every_page
from tests.system.harness import Patchbay

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# All that the scheme decides.
COLOURS = ["color-contrast", "link-in-text-block"]
# Changes of colour have come to their end.
RUN = """async ([kind, values]) => {
  for (const one of document.getAnimations()) if (one instanceof CSSTransition) one.finish();
  const options = {runOnly: {type: kind, values}, resultTypes: ["violations"], preload: false};
  const {violations} = await axe.run(document, options);
  return violations.flatMap((rule) => rule.nodes.map((node) => {
    const checks = node.any.concat(node.all, node.none).map((check) => check.message).join(" ");
    return `${rule.id}: ${node.html.slice(0, 200)} ${checks.slice(0, 200)}`;
  }));
}"""

# Pieces of pages, and what is Django's own.
NOT_WITHOUT_SCRIPTS = {"patterns", "the admin site", "a list of the admin site"}


@pytest.fixture(scope="module")
def patchbay(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Patchbay]:
    """With mail, which has pages of its own."""
    env = {"EMAIL_URL": "smtp://127.0.0.1:9"}
    with Patchbay(tmp_path_factory.mktemp("every-page"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def pages(patchbay: Patchbay) -> dict[str, dict[str, str]]:
    return every_page(patchbay)


@pytest.fixture
def contexts(browser: Browser) -> Iterator[Any]:
    """`contexts(scripts=True)`: a context whose page waits long and moves nothing."""
    made: list[BrowserContext] = []

    def make(*, scripts: bool) -> BrowserContext:
        context = browser.new_context(
            java_script_enabled=scripts,
            reduced_motion="reduce",
            viewport={"width": 1280, "height": 900},
        )
        context.set_default_timeout(30_000)
        made.append(context)
        return context

    yield make
    for context in made:
        context.close()


def sign_in(page: Page, patchbay: Patchbay) -> None:
    page.goto(f"{patchbay.url}/accounts/login/")
    page.fill("[name=login]", "alice@example.com")
    page.fill("[name=password]", PASSWORD)
    page.click("main button[type=submit]")
    page.wait_for_url(lambda url: "/accounts/login" not in url)


def axe(page: Page) -> list[str]:
    page.emulate_media(color_scheme="light")
    page.evaluate(AXE)
    found = page.evaluate(RUN, ["tag", TAGS])
    page.emulate_media(color_scheme="dark")
    return found + [f"dark: {one}" for one in page.evaluate(RUN, ["rule", COLOURS])]


def widest(page: Page, width: int = 390) -> list[str]:
    page.set_viewport_size({"width": width, "height": 844})
    wide = page.evaluate("document.documentElement.scrollWidth")
    page.set_viewport_size({"width": 1280, "height": 900})
    return [] if wide <= width else [f"{wide} wide on a phone"]


def test_axe_finds_nothing_and_every_page_fits_a_phone(
    patchbay: Patchbay, pages: dict[str, dict[str, str]], contexts: Any
):
    context, wrong = contexts(scripts=True), {}
    page = context.new_page()

    def look(name: str, address: str) -> None:
        response = page.goto(patchbay.url + address, wait_until="load")
        assert response is not None
        found = [f"answers {response.status}"] if response.status != 200 else []
        if found := found + axe(page) + widest(page):
            wrong[f"{name} {address}"] = found

    for name, address in pages["anybody"].items():
        look(name, address)
    sign_in(page, patchbay)
    for name, address in pages["admin"].items():
        look(name, address)
    # What opens: the dialogs, and the drawer of a phone.
    for keys in ("Control+k", "?"):
        page.goto(patchbay.url + "/connections/")
        page.locator("body").press(keys)
        expect(page.locator("dialog[open] :is([role=option], kbd)").first).to_be_visible()
        if found := axe(page):
            wrong[keys] = found
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(patchbay.url + "/connections/")
    page.get_by_role("button", name="Menu").click()
    expect(page.get_by_role("link", name="Members")).to_be_visible()
    if found := axe(page):
        wrong["the drawer"] = found
    assert wrong == {}, json.dumps(wrong, indent=1)
    assert len(pages["admin"]) > 30


# Without scripts: what is to be pressed and does nothing, or can't be sent.
DEAD = """() => {
  const seen = (element) => element.checkVisibility({visibilityProperty: true});
  const wrong = [];
  for (const button of document.querySelectorAll("button"))
    if (seen(button) && (button.type !== "submit" || !button.form)
        && !button.hasAttribute("popovertarget") && !button.hasAttribute("commandfor"))
      wrong.push(button.outerHTML.slice(0, 200));
  for (const link of document.querySelectorAll("a:not([href])"))
    if (seen(link)) wrong.push(link.outerHTML.slice(0, 200));
  for (const form of document.forms) {
    const parts = [...form.elements];
    const fields = parts.filter((one) => !one.matches("button, [type=hidden]") && seen(one));
    const submits = parts.filter((one) => one.type === "submit");
    const sends = submits.filter((one) => seen(one) || one.closest("[popover]"));
    const filled = fields.filter((one) => !one.matches("fieldset"));
    if (filled.length && !sends.length) wrong.push(`not sent: ${form.outerHTML.slice(0, 200)}`);
  }
  return wrong;
}"""


def test_every_page_can_be_used_without_scripts(
    patchbay: Patchbay, pages: dict[str, dict[str, str]], contexts: Any
):
    page, wrong = contexts(scripts=False).new_page(), {}

    def look(name: str, address: str) -> None:
        response = page.goto(patchbay.url + address, wait_until="load")
        assert response is not None
        found = [f"answers {response.status}"] if response.status != 200 else []
        if page.locator("main h1:visible").count() != 1:
            found.append("no heading")
        if found := found + page.evaluate(DEAD):
            wrong[f"{name} {address}"] = found

    for name, address in pages["anybody"].items():
        look(name, address)
    sign_in(page, patchbay)
    for name, address in pages["admin"].items():
        if name not in NOT_WITHOUT_SCRIPTS:
            look(name, address)
    assert wrong == {}, json.dumps(wrong, indent=1)

    # The palette's button leads to its page, where what is found can be gone to and done.
    page.goto(f"{patchbay.url}/w/support/members/")
    page.get_by_role("button", name="Search and commands").first.click()
    page.get_by_role("searchbox", name="Search").fill("validate local")
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator("main").get_by_role("button", name="Validate local").click()
    page.wait_for_url(re.compile("/connections/(local/)?$"))
    page.get_by_role("button", name="Search and commands").first.click()
    page.get_by_role("button", name="New session").click()
    page.wait_for_url("**/w/support/sessions/**")


def test_the_keys_do_what_the_sheet_says(
    patchbay: Patchbay, pages: dict[str, dict[str, str]], contexts: Any
):
    page = contexts(scripts=True).new_page()
    sign_in(page, patchbay)
    press = page.keyboard.press
    field, chosen = (
        page.locator("#palette-query"),
        page.locator("[role=option][aria-selected=true]"),
    )

    # From a field: Esc gives the focus back, with what was typed.
    page.goto(patchbay.url + "/w/support/")
    search = page.get_by_role("searchbox", name="Search", exact=True)
    press("/")
    expect(search).to_be_focused()
    page.keyboard.type("n?g")
    press("Control+k")
    expect(field).to_be_focused()
    expect(chosen).to_have_count(1)
    press("End")
    last = chosen.get_attribute("id")
    press("ArrowDown")
    expect(page.locator("[role=option]").first).to_have_attribute("aria-selected", "true")
    press("ArrowUp")
    assert chosen.get_attribute("id") == field.get_attribute("aria-activedescendant") == last
    press("Escape")
    expect(search).to_be_focused()
    expect(search).to_have_value("n?g")

    # Enter doesn't wait for the eye: it goes to what the typed text finds.
    press("Control+k")
    page.keyboard.type("members", delay=5)
    press("Enter")
    page.wait_for_url("**/w/support/members/")
    press("Control+k")
    page.keyboard.type("validate local")
    expect(chosen.locator("mark")).to_have_text(["Validate", "Local"])
    press("Enter")
    page.wait_for_url(re.compile("/connections/(local/)?$"))

    # Single keys, until they are switched off.
    press("g")
    press("m")
    page.wait_for_url("**/w/support/members/")
    opener = page.get_by_role("button", name="alice@example.com")
    opener.click()
    page.get_by_role("button", name="Keyboard shortcuts").click()
    switch = page.get_by_role("switch", name="Shortcuts of single keys")
    switch.uncheck()
    press("Escape")
    expect(opener).to_be_focused()
    page.reload()
    for key in ("n", "g", "m", "?"):
        page.locator("body").press(key)
    press("Control+k")  # no single key
    expect(field).to_be_focused()
    assert page.url.endswith("/members/")
    expect(switch).to_be_hidden()
    press("Control+k")
    expect(field).to_be_hidden()
    page.evaluate("document.getElementById('shortcuts').showModal()")
    expect(switch).not_to_be_checked()
    switch.check()
    press("Escape")
    page.locator("body").press("n")
    page.wait_for_url("**/w/support/sessions/**")

    # In a session: up from the empty field edits the last message that waits.
    page.goto(patchbay.url + pages["admin"]["a session of all"])
    draft, editor = page.locator("#draft"), page.locator("#waiting textarea")
    draft.fill("x")
    draft.press("ArrowUp")
    expect(editor).to_be_hidden()
    draft.fill("")
    draft.press("ArrowUp")
    expect(editor).to_be_focused()
    press("Escape")
    expect(editor).to_be_hidden()


# What stands where nobody can get at it: beyond an edge, and nothing around it scrolls or cuts.
OUTSIDE = """() => {
  const inside = (element) => {
    for (let outer = element.parentElement; outer; outer = outer.parentElement)
      if (getComputedStyle(outer).overflowX !== "visible") return true;
    return false;
  };
  const wrong = [];
  const parts = "body :is(a, button, input, h1, h2, p, td, th)";
  for (const element of document.querySelectorAll(parts)) {
    const {left, right, width} = element.getBoundingClientRect();
    if (width < 2 || (left > -2 && right < innerWidth + 2)) continue;
    if (element.checkVisibility({visibilityProperty: true}) && !inside(element))
      wrong.push(`${Math.round(left)}–${Math.round(right)}: ${element.outerHTML.slice(0, 120)}`);
  }
  const wide = document.documentElement.scrollWidth;
  return wide > innerWidth ? [`${wide} wide`, ...wrong] : wrong;
}"""


def speak(page: Page, patchbay: Patchbay, language: str) -> None:
    page.goto(f"{patchbay.url}/profile/")
    page.select_option("[name=language]", language)
    page.locator("form:has([name=language]) button[type=submit]").click()
    expect(page.locator("html")).to_have_attribute("lang", language or "en")


def test_every_page_fits_in_german_and_from_right_to_left(
    patchbay: Patchbay, pages: dict[str, dict[str, str]], contexts: Any
):
    context, wrong = contexts(scripts=True), {}
    page = context.new_page()

    def look(name: str, address: str) -> None:
        page.goto(patchbay.url + address, wait_until="load")
        for direction in ("ltr", "rtl"):
            page.evaluate("(dir) => document.documentElement.dir = dir", direction)
            for width in (1440, 390):
                page.set_viewport_size({"width": width, "height": 900})
                if found := page.evaluate(OUTSIDE):
                    wrong[f"{name} {address} {direction} {width}"] = found[:3]

    sign_in(page, patchbay)
    speak(page, patchbay, "de")
    try:
        for name, address in pages["admin"].items():
            look(name, address)
    finally:
        speak(page, patchbay, "")
    assert wrong == {}, json.dumps(wrong, indent=1, ensure_ascii=False)
