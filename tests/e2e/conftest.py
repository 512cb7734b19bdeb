"""A real browser. One a module: playwright's own loop runs in this process as long, and nothing of
Django's database or of asyncio can be used beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.run import find_browser, in_ci

expect.set_options(timeout=20_000)  # a slow machine is slow


@pytest.fixture(scope="module")
def _browser() -> Iterator[Browser]:
    if not (found := find_browser()):
        (pytest.fail if in_ci() else pytest.skip)("no Chromium: set PATCHBAY_CHROMIUM to one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def browser(_browser: Browser) -> Iterator[Browser]:
    """Without a page; what a test opens, with cookies and storage, is closed after it."""
    yield _browser
    for context in list(_browser.contexts):
        context.close()


@pytest.fixture
def browser_page(browser: Browser) -> Page:
    page = browser.new_page()
    page.set_default_timeout(15_000)
    return page


@pytest.fixture
def complaints(browser_page: Page) -> list[str]:
    """What the browser refused or stumbled over."""
    found: list[str] = []
    page = browser_page
    page.on("console", lambda m: found.append(m.text) if m.type in ("error", "warning") else None)
    page.on("response", lambda r: found.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found
