"""`make lighthouse`: Lighthouse over the main pages of a demo.

    python -m tests.lighthouse [--phone] [PAGE …]

Measures as a desktop sees them; `--phone` as a slow phone in a slow mobile network does.

It needs Node's `npx` and Chromium; PATCHBAY_LIGHTHOUSE names another command than `npx --yes
lighthouse@12`. A page that misses a target is measured again, three times at most, and its best
scores count: other work on the machine can only take from them. Ends with 1 where one is missed,
and says why.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from playwright.sync_api import sync_playwright

from tests.run import find_browser
from tests.screenshots import demo, hold_session, sign_in
from tests.system.harness import collect_static, free_port

TARGETS = {"performance": 95, "accessibility": 100, "best-practices": 100}
TIMES = 3
PAGES = {
    "sign in": "/accounts/login/",
    "sessions": "/w/research/",
    "a session": "",  # known when it was held
    "connections": "/connections/",
    "a connection": "/connections/agent/",
    "AI settings": "/w/research/settings/ai/",
    "usage": "/w/research/usage/",
    "people": "/people/",
}
SIGNED_OUT = {"sign in"}

Report = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make lighthouse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"of: {', '.join(PAGES)}")
    parser.add_argument("--phone", action="store_true", help="as a slow phone, not as a desktop")
    arguments = parser.parse_args()
    chosen = arguments.pages or list(PAGES)
    if unknown := [name for name in chosen if name not in PAGES]:
        parser.error(f"no such page: {', '.join(unknown)}")
    command = shlex.split(os.environ.get("PATCHBAY_LIGHTHOUSE", "npx --yes lighthouse@12"))
    if shutil.which(command[0]) is None:
        print(f"Lighthouse needs {command[0]}: install Node.js (nothing else needs it).")
        return 2
    if not arguments.phone:  # Lighthouse itself takes a phone
        command.append("--preset=desktop")
    collect_static()
    port, chromium, all_reached = free_port(), find_browser(), True
    with demo() as at, sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = sign_in(browser, at, 1440, "light")
        addresses = {name: at.url + path for name, path in PAGES.items()}
        addresses["a session"] = hold_session(page, at.url)
        # As cookies of the browser: a header that Lighthouse adds doesn't reach an event stream.
        cookies = page.context.cookies()
        browser.close()
        measured = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=[f"--remote-debugging-port={port}"]
        )
        print(f"{'':<12}", *(f"{kind:>14}" for kind in TARGETS), f"{'LCP':>8} {'sent':>8}")
        for name in chosen:
            measured.clear_cookies()
            if name not in SIGNED_OUT:
                measured.add_cookies(cookies)
            scores, report = look_at(command, port, addresses[name])
            painted = report["audits"]["largest-contentful-paint"]["numericValue"] / 1000
            sent = report["audits"]["total-byte-weight"]["numericValue"] / 1024
            row = (f"{score:>14}" for score in scores.values())
            print(f"{name:<12}", *row, f"{painted:>6.1f} s {sent:>5.0f} KB", flush=True)
            if not reached(scores):
                all_reached = False
                explain(report, scores)
        measured.close()
    return 0 if all_reached else 1


def look_at(command: list[str], port: int, url: str) -> tuple[dict[str, int], Report]:
    """The best scores of a page, and its last report."""
    scores, report = dict.fromkeys(TARGETS, 0), None
    for _ in range(TIMES):
        done = subprocess.run(
            [
                *(*command, url, f"--port={port}", "--quiet"),
                *("--output=json", f"--only-categories={','.join(TARGETS)}"),
            ],
            capture_output=True,
            text=True,
            timeout=180,
        )
        if done.returncode:  # a crowded machine: no trace was recorded, and the like
            print(f"{url}: {done.stderr.strip()[-300:]}", file=sys.stderr)
            continue
        report = json.loads(done.stdout)
        if report["finalDisplayedUrl"] != url:
            sys.exit(f"{url} led to {report['finalDisplayedUrl']}")
        for kind in TARGETS:
            score = report["categories"][kind]["score"] or 0
            scores[kind] = max(scores[kind], round(100 * score))
        if reached(scores):
            break
    if report is None:
        sys.exit(f"Lighthouse could not measure {url}.")
    return scores, report


def reached(scores: dict[str, int]) -> bool:
    return all(scores[kind] >= target for kind, target in TARGETS.items())


def explain(report: Report, scores: dict[str, int]) -> None:
    for kind in (kind for kind, target in TARGETS.items() if scores[kind] < target):
        for reference in report["categories"][kind]["auditRefs"]:
            audit = report["audits"][reference["id"]]
            if reference["weight"] and audit["score"] is not None and audit["score"] < 0.95:
                print(f"  {kind}: {audit['title']} ({audit.get('displayValue', audit['score'])})")
                for item in audit.get("details", {}).get("items", [])[:5]:
                    print(f"    {json.dumps(item)[:400]}")


if __name__ == "__main__":
    sys.exit(main())
