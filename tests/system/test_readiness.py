"""/readyz tells the parts apart, to anybody, and tells nothing else; what isn't safe for production
doesn't start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.harness import Patchbay, wait_for
from tests.system.parts import Parts

WELL = {"database": "ok", "redis": "ok", "worker": "ok", "beat": "ok"}


def readiness(parts: Parts) -> dict[str, str]:
    answer = parts.client().get("/readyz")
    assert (
        answer.status_code == 200
    )  # pages can be served; without the database: test_database_lost
    found = answer.json()
    assert found.keys() == WELL.keys()
    assert set(found.values()) <= {"ok", "down", "unknown"}
    assert answer.headers["content-type"] == "application/json"
    return found


def test_each_part_that_is_away_shows_and_no_other(parts: Parts):
    wait_for(lambda: readiness(parts) == WELL, 40, "all are well")
    parts.end("worker")
    wait_for(lambda: readiness(parts) == {**WELL, "worker": "down"}, 20, "the worker is missed")
    parts.run("worker")
    parts.freeze("beat")  # there, and not at work
    wait_for(lambda: readiness(parts) == {**WELL, "beat": "down"}, 45, "beat is missed")
    parts.thaw("beat")
    wait_for(lambda: readiness(parts) == WELL, 40, "all are well again")
    parts.end("valkey")
    unknown = {"redis": "down", "worker": "unknown", "beat": "unknown"}
    assert readiness(parts) == {**WELL, **unknown}
    parts.start_valkey()
    wait_for(lambda: readiness(parts) == WELL, 40, "all are well at last")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PATCHBAY_DEBUG": "1"}, "PATCHBAY_DEBUG is on while PATCHBAY_URL is https."),
        (
            {"SECRET_KEY": "django-insecure-" + "k" * 50},
            "SECRET_KEY is shorter than 32 characters or a known default.",
        ),
    ],
)
@pytest.mark.parametrize("command", ["serve", "prepare"])
def test_what_is_unsafe_in_production_does_not_start(tmp_path: Path, command, variables, said):
    env = {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PATCHBAY_URL": "https://patchbay.example",
        **variables,
    }
    found = Patchbay(tmp_path, env=env).manage(command, check=False)
    assert found.returncode == 1
    assert said in found.stdout + found.stderr
    assert "Traceback" not in found.stdout + found.stderr
    assert json.dumps(variables)[-20:-2] not in found.stdout + found.stderr
