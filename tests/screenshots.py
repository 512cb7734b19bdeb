"""`make screenshots`: the pictures of the documentation, taken from the demo.

    python -m tests.screenshots [--all] [--into docs/screenshots]

Takes the few that the documentation shows; `--all` takes every page at three widths, light and
dark, to be looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from tests.run import find_browser
from tests.system.harness import ROOT, collect_static, free_port, wait_for

WIDTHS = (1440, 1024, 390)
SHOWN = {"connections-1440-light", "session-1440-light", "session-1440-dark", "new-1440-light"}


@dataclass(frozen=True)
class Demo:
    url: str
    email: str
    password: str


@contextlib.contextmanager
def demo() -> Iterator[Demo]:
    """A demo of its own, in a data directory that goes with it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="patchbay-demo-") as data:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "demo"],
            cwd=ROOT,
            env={**os.environ, "PORT": str(port), "PATCHBAY_DATA_DIR": data},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            said = re.search(r"^Sign in as (\S+) .*: (.*)$", process.stdout.readline())
            assert said, "the demo doesn't say how to sign in"
            wait_for(lambda: answers(url), 60, "the demo is up")
            yield Demo(url, said[1], said[2])
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def sign_in(browser: Browser, at: Demo, width: int, scheme: str) -> Page:
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900 if width > 400 else 844}
    )
    page = context.new_page()
    page.goto(f"{at.url}/accounts/login/")
    page.fill("[name=login]", at.email)
    page.fill("[name=password]", at.password)
    page.click("main button[type=submit]")
    page.wait_for_url("**/w/**")
    return page


def hold_session(page: Page, url: str) -> str:
    """A session with a tool, a steered message and a rich reply; its address."""
    page.goto(f"{url}/w/research/")
    page.get_by_role("button", name="New session").first.click()
    page.wait_for_url("**/sessions/**")
    address = page.url
    box = page.locator("textarea[name=text]")
    box.fill("What is the time, and is it late?")
    box.press("Enter")
    page.wait_for_selector("[data-turn-state=running]")
    box.fill("Answer in one line, please.")
    box.press("Enter")
    page.wait_for_selector("[data-delivery=delivered]", timeout=30_000)
    page.wait_for_selector("[data-turn-state=done]", timeout=30_000)
    page.select_option("select[name=model]", "markdown")
    page.wait_for_timeout(500)
    box.fill("And what should I pack for a week on the coast?")
    box.press("Enter")
    page.wait_for_selector("[data-turn='2']", timeout=30_000)
    page.wait_for_selector("[data-turn-state=done]", timeout=30_000)
    return address


def main() -> None:
    parser = argparse.ArgumentParser(prog="make screenshots", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every page, width and scheme")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "screenshots")
    chosen = parser.parse_args()
    chosen.into.mkdir(parents=True, exist_ok=True)
    collect_static()
    with demo() as running, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        url = running.url
        first = sign_in(browser, running, 1440, "light")
        address = hold_session(first, url)
        pages = {
            "session": address,
            "sessions": f"{url}/w/research/",
            "ai-settings": f"{url}/w/research/settings/ai/",
            "connections": f"{url}/connections/",
            "connection": f"{url}/connections/agent/",
            "status": f"{url}/connections/status/",
            "health": f"{url}/connections/chat/health/",
            "alerts": f"{url}/connections/alerts/",
            "new": f"{url}/connections/new/?preset=openrouter",
            "edit": f"{url}/connections/chat/edit/",
            "admin": f"{url}/admin/",
            "patterns": f"{url}/patterns/",
            "not-found": f"{url}/nothing/",
        }
        first.context.close()
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                wanted = [
                    name for name in pages if chosen.all or f"{name}-{width}-{scheme}" in SHOWN
                ]
                if not wanted:
                    continue
                page = sign_in(browser, running, width, scheme)
                for name in wanted:
                    page.goto(pages[name], wait_until="load")
                    page.wait_for_timeout(400)
                    page.screenshot(
                        path=chosen.into / f"{name}-{width}-{scheme}.png",
                        full_page=chosen.all and not re.match("session", name),
                    )
                page.context.close()
        browser.close()


if __name__ == "__main__":
    main()
