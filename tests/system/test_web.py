"""The web process by itself: whom it believes, and what it answers before Django is asked."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from config.serve import die_with_parent
from tests.system.harness import ROOT, Patchbay, wait_for

PUBLIC = "https://patchbay.example"


@contextlib.contextmanager
def web(folder: Path, **env: str) -> Iterator[httpx.Client]:
    """A client of a web process that has no database and no Valkey: none of this needs them."""
    alone = Patchbay(folder, env={"DJANGO_SETTINGS_MODULE": "config.settings", **env})
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "config.web"],
        cwd=ROOT,
        env=alone.env,
        stdout=log,
        stderr=log,
        preexec_fn=die_with_parent(),
    )
    with log, httpx.Client(base_url=alone.url, trust_env=False, timeout=20) as client:
        client.headers["Host"] = "patchbay.example"
        try:
            wait_for(lambda: answers(client), what="web answers")
            yield client
        finally:
            process.terminate()
            process.wait(20)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def alone(tmp_path_factory, static_files):
    with web(tmp_path_factory.mktemp("web"), PATCHBAY_URL=PUBLIC) as client:
        yield client


def test_a_forwarded_scheme_counts_from_a_trusted_proxy_only(alone, tmp_path, static_files):
    forged = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    answer = alone.get("/nowhere/", headers=forged)
    assert (answer.status_code, answer.headers["location"]) == (301, f"{PUBLIC}/nowhere/")

    proxied = {"PATCHBAY_URL": PUBLIC, "PATCHBAY_TRUSTED_PROXIES": "10.0.0.0/8,127.0.0.1"}
    with web(tmp_path, **proxied) as client:
        assert client.get("/nowhere/").status_code == 301
        answer = client.get("/nowhere/", headers=forged)
        assert answer.status_code == 404
        assert "max-age=" in answer.headers["strict-transport-security"]


def test_another_host_is_refused(alone):
    assert alone.get("/nowhere/", headers={"Host": "evil.example"}).status_code == 400


def test_a_wrong_host_is_one_line_in_the_log(tmp_path, static_files):
    with web(tmp_path, PATCHBAY_URL=PUBLIC) as client:
        assert client.get("/nowhere/", headers={"Host": "evil.example"}).status_code == 400
    log = (tmp_path / "log").read_text()
    assert "Invalid HTTP_HOST header: 'evil.example'" in log
    assert "Traceback" not in log


def test_a_body_over_the_limit_is_refused_before_django_reads_it(alone):
    answer = alone.post("/setup/", content=b"x" * (25 * 1024 * 1024))
    assert answer.status_code == 413
    assert alone.get("/healthz").status_code == 200


def test_static_files_come_with_a_policy_and_for_ever(alone):
    manifest = ROOT / "staticfiles" / "staticfiles.json"
    assert manifest.exists()
    name = next((ROOT / "staticfiles" / "css").glob("base.????????????.css")).name
    answer = alone.get(f"/static/css/{name}")
    assert answer.status_code == 200
    assert answer.headers["cache-control"].endswith("immutable")
    assert answer.headers["content-encoding"] == "gzip"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_server_does_not_say_what_it_is(alone):
    assert "server" not in alone.get("/healthz").headers
