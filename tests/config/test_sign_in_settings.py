"""What the environment says of the issuer, and what it may not leave out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.harness import ROOT

ISSUER = {
    "PATCHBAY_OIDC_ISSUER": "https://login.example.com",
    "PATCHBAY_OIDC_CLIENT_ID": "patchbay",
    "PATCHBAY_OIDC_CLIENT_SECRET": "secret",
}
SHOW = "from config import settings; print(settings.OIDC_PROVIDER, settings.OIDC['name'])"


def read(folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PATCHBAY")}
    return subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        env={**kept, "PATCHBAY_DATA_DIR": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_another_issuer_is_another_provider(tmp_path: Path):
    one = read(tmp_path, ISSUER).stdout.split()
    slash = read(tmp_path, {**ISSUER, "PATCHBAY_OIDC_ISSUER": "https://login.example.com/"}).stdout
    other = {**ISSUER, "PATCHBAY_OIDC_ISSUER": "https://login.example.org"}
    assert one[1] == "login.example.com"
    assert slash.split() == one
    assert read(tmp_path, other).stdout.split()[0] != one[0]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"PATCHBAY_OIDC_ISSUER": "https://login.example.com"}, "go together"),
        ({"PATCHBAY_OIDC_NAME": "Team login"}, "go together"),
        ({**ISSUER, "PATCHBAY_OIDC_ISSUER": "login.example.com"}, "use the issuer's address"),
        ({"PATCHBAY_SSO_ONLY": "on"}, "PATCHBAY_SSO_ONLY"),
    ],
)
def test_half_an_issuer_is_refused_with_the_variables_name(
    tmp_path: Path, env: dict[str, str], said: str
):
    done = read(tmp_path, env)
    assert done.returncode != 0
    assert said in done.stderr
