"""`manage.py doctor` beside a running server."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.system.harness import ROOT, Patchbay


def test_a_running_installation_is_healthy(patchbay: Patchbay):
    done = subprocess.run(
        [sys.executable, "manage.py", "doctor", "--json"],
        cwd=ROOT,
        env=patchbay.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    findings = json.loads(done.stdout)
    assert [f for f in findings if f["level"] != "ok"] == []
    assert done.returncode == 0
    assert "valkey" in next(f["text"] for f in findings if f["subject"] == "redis")
