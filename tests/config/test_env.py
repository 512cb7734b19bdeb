"""Values from the environment: by themselves or from a file, never both."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from config import env, serve
from tests.system.harness import ROOT

CANARY = "canary-" + "of-a-value"


def test_a_value_may_stand_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "value").write_text(f" {CANARY}\n")
    monkeypatch.setenv("PATCHBAY_SETUP_TOKEN_FILE", str(tmp_path / "value"))
    assert env.string("PATCHBAY_SETUP_TOKEN") == CANARY
    monkeypatch.setenv("PATCHBAY_SETUP_TOKEN_FILE", "")
    monkeypatch.setenv("PATCHBAY_SETUP_TOKEN", "typed")
    assert env.string("PATCHBAY_SETUP_TOKEN") == "typed"


@pytest.mark.parametrize("name", ["SECRET_KEY", "REDIS_URL", "PATCHBAY_URL"])
def test_set_both_ways_ends_the_start_with_one_line(tmp_path, name):
    (tmp_path / "value").write_text(CANARY)
    both = {name: CANARY, f"{name}_FILE": str(tmp_path / "value")}
    ordinary = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={**ordinary, "PATCHBAY_DATA_DIR": str(tmp_path / "data"), **both},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert f"{name} and {name}_FILE are both set" in line
    assert CANARY not in line


def test_a_process_gets_what_was_read_from_a_file_once(monkeypatch):
    source = {"PORT_FILE": "/x", "PATCHBAY_DATA_DIR_FILE": "/y", "SECRET_KEY_FILE": "/z"}
    found = serve.environment("web", source)
    assert {"PORT", "PATCHBAY_DATA_DIR", "SECRET_KEY_FILE"} <= set(found)
    assert not {"PORT_FILE", "PATCHBAY_DATA_DIR_FILE"} & set(found)
