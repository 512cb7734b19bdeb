"""`make test`: the whole suite, with its own set-up.

    python -m tests.run [ARGUMENTS OF PYTEST]

First everything on SQLite, then what uses the database once more on a PostgreSQL cluster made for
the run. What is missing on this machine and can't be had is named at the end; with CI=true that is
a failure.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import postgres, validator
from tests.system.harness import ROOT, collect_static

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC_BROWSERS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
NO_TESTS = 5  # pytest's exit code


def main(arguments: list[str]) -> int:
    missing = []
    # Importing Celery's app names the product's settings in the environment.
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    if browser := find_browser() or get_browser():
        env["PATCHBAY_CHROMIUM"] = browser
    else:
        missing.append("Chromium, so no browser test ran (set PATCHBAY_CHROMIUM to a browser)")
    if not shutil.which("xgettext"):
        missing.append("gettext, so no test looked for texts that aren't in the catalogs")
    if lacking := validator.missing():
        missing.append(f"{lacking}, so no test looked whether the pages are valid HTML")
    collect_static()
    compile_product()
    runs = {"SQLite": _pytest(arguments, env)}
    try:
        with postgres.cluster() as url:
            runs["PostgreSQL"] = _pytest(
                ["--database-only", *arguments], {**env, "DATABASE_URL": url}
            )
    except postgres.NoPostgres as error:
        missing.append(f"PostgreSQL, so nothing ran on it ({error})")

    print()
    for name, (_, closing) in runs.items():
        print(f"{name}: {closing}")
    for what in missing:
        print(f"MISSING: {what}")
    codes = [code for code, _ in runs.values()]
    if arguments and any(code == 0 for code in codes):
        codes = [code for code in codes if code != NO_TESTS]  # a part that uses no database
    failed = next((code for code in codes if code), 0)
    return failed or (1 if missing and in_ci() else 0)


def _pytest(arguments: list[str], env: Mapping[str, str]) -> tuple[int, str]:
    """The exit code and the closing line of a run; its output is passed on as it comes."""
    parallel = [] if _has_workers(arguments) else ["-n", str(min(os.cpu_count() or 2, 4))]
    colour = ["--color=yes"] if sys.stdout.isatty() else []
    files = ["--dist=loadfile", "--no-loadscope-reorder"]  # in tests/conftest.py's order
    command = [sys.executable, "-m", "pytest", *files, *parallel, *colour, *arguments]
    closing = ""
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            closing = line.decode(errors="replace").strip() or closing
    return process.returncode, closing


def _has_workers(arguments: list[str]) -> bool:
    return any(argument.startswith(("-n", "--numprocesses")) for argument in arguments)


def compile_product() -> None:
    """The suite starts the product's processes some hundred times; where bytecode isn't written as
    they run, each would compile everything anew."""
    for package in ("config", "connections", "sessions", "workspaces"):
        compileall.compile_dir(ROOT / package, quiet=2)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def find_browser() -> str | None:
    """A Chromium of this machine: PATCHBAY_CHROMIUM, the usual names, playwright's own."""
    if named := os.environ.get("PATCHBAY_CHROMIUM"):
        return named if Path(named).exists() else None
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    for place in MAC_BROWSERS:
        if Path(place).exists():
            return place
    return _playwrights()


def get_browser() -> str | None:
    """Playwright's own Chromium, else the system's package where we may install one."""
    print("No Chromium found; getting one ...", flush=True)
    if _succeeds([sys.executable, "-m", "playwright", "install", "chromium"]):
        return _playwrights()
    if os.geteuid() == 0 and shutil.which("apt-get"):
        apt = ["apt-get", "-qq", "-y", "--no-install-recommends", "install", "chromium"]
        if _succeeds(["apt-get", "-qq", "update"]) and _succeeds(apt):
            return find_browser()
    return None


def _playwrights() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, timeout=300, stdout=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
