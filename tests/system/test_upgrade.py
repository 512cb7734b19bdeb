"""An upgrade that is killed in the middle of its migrations, and run again."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from config.serve import die_with_parent
from tests.system.harness import ROOT, Patchbay, wait_for


def applied(patchbay: Patchbay) -> int:
    file = f"file:{patchbay.data / 'patchbay.sqlite3'}?mode=ro"
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(file, uri=True, timeout=5)) as database,
    ):
        return database.execute("SELECT count(*) FROM django_migrations").fetchone()[0]
    return 0


@pytest.mark.parametrize("steps", [1, 7])
def test_killed_in_its_migrations_and_run_again_it_ends_right(tmp_path: Path, steps: int):
    """Killed after every so many migrations, until one run reaches the end."""
    patchbay = Patchbay(tmp_path, env={"DJANGO_SETTINGS_MODULE": "config.settings"})
    patchbay.data.mkdir(mode=0o700)
    killed = 0
    while killed < 4:
        before = applied(patchbay)
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "manage.py", "prepare"],
                cwd=ROOT,
                env=patchbay.env,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
            )
        wait_for(
            lambda p=process, n=before: p.poll() is not None or applied(patchbay) >= n + steps,
            60,
            "some migrations are applied",
        )
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        killed += 1
    assert killed >= 2
    patchbay.manage("prepare")
    said = patchbay.manage("migrate", "--check")
    assert said.returncode == 0
    with contextlib.closing(sqlite3.connect(patchbay.data / "patchbay.sqlite3")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    assert patchbay.manage("makemigrations", "--check", "--dry-run").returncode == 0
