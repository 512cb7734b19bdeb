"""Lighthouse over the main pages of a demo: `make lighthouse`. It needs Node's `npx`, and Chromium
(`PATCHBAY_CHROMIUM` or one that Lighthouse finds); nothing of it is part of the tests.

PATCHBAY_LIGHTHOUSE names another command than `npx --yes lighthouse`. Ends with 1 when a page has
less than 100 for accessibility or best practices, or less than 95 for performance.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.run import find_browser
from tests.screenshots import demo, hold_session, sign_in

LEAST = {"performance": 95, "accessibility": 100, "best-practices": 100}
# An address on this machine has no TLS.
SKIPPED = ("is-on-https", "redirects-http")
CHROMIUM = find_browser()


def main() -> int:
    command = shlex.split(os.environ.get("PATCHBAY_LIGHTHOUSE", "npx --yes lighthouse"))
    if shutil.which(command[0]) is None:
        print(f"Lighthouse needs {command[0]}: install Node.js (it isn't needed otherwise).")
        return 2
    worst = 0
    with demo() as at, tempfile.TemporaryDirectory() as folder:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM)
            page = sign_in(browser, at, 1280, "light")
            session = hold_session(page, at.url)
            cookies = "; ".join(f"{one['name']}={one['value']}" for one in page.context.cookies())
            browser.close()
        headers = Path(folder) / "headers.json"
        headers.write_text(json.dumps({"Cookie": cookies}))
        pages = {
            "sign in": (f"{at.url}/accounts/login/", False),
            "sessions": (f"{at.url}/w/research/", True),
            "a session": (session, True),
            "connections": (f"{at.url}/connections/", True),
            "a connection": (f"{at.url}/connections/agent/", True),
            "AI settings": (f"{at.url}/w/research/settings/ai/", True),
            "usage": (f"{at.url}/w/research/usage/", True),
            "people": (f"{at.url}/people/", True),
        }
        print(f"{'page':<14}" + "".join(f"{name:>16}" for name in LEAST))
        for name, (url, signed_in) in pages.items():
            found = looked_at(command, url, headers if signed_in else None)
            scores = {kind: round(100 * found["categories"][kind]["score"]) for kind in LEAST}
            print(f"{name:<14}" + "".join(f"{score:>16}" for score in scores.values()), flush=True)
            for kind, score in scores.items():
                if score < LEAST[kind]:
                    worst = 1
                    tell_why(found, kind)
    return worst


def looked_at(command: list[str], url: str, headers: Path | None) -> dict[str, Any]:
    """Lighthouse's report of a page, as a phone with a slow network sees it."""
    done = subprocess.run(
        [
            *(*command, url, "--quiet", "--output=json", "--output-path=stdout"),
            *("--only-categories=" + ",".join(LEAST), "--skip-audits=" + ",".join(SKIPPED)),
            "--chrome-flags=--headless=new --no-sandbox",
            *([f"--extra-headers={headers}"] if headers else []),
        ],
        env={**os.environ, **({"CHROME_PATH": CHROMIUM} if CHROMIUM else {})},
        capture_output=True,
        text=True,
        timeout=180,
    )
    if done.returncode:
        sys.exit(f"Lighthouse ended with {done.returncode}: {done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["finalDisplayedUrl"].split("?")[0] == url, report["finalDisplayedUrl"]
    return report


def tell_why(report: dict[str, Any], kind: str) -> None:
    for reference in report["categories"][kind]["auditRefs"]:
        audit = report["audits"][reference["id"]]
        if audit["score"] is not None and audit["score"] < 0.95 and reference["weight"]:
            print(f"  {kind}: {audit['title']} ({audit.get('displayValue', audit['score'])})")
            for item in audit.get("details", {}).get("items", [])[:5]:
                print(f"    {json.dumps(item)[:400]}")


if __name__ == "__main__":
    sys.exit(main())
