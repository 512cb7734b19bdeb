"""The real thing, started as `make run` starts it, for tests that look at it from outside."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import redis

ROOT = Path(__file__).resolve().parents[2]
ADMIN = {"email": "alice@example.com", "password": "correct horse battery", "workspace": "Support"}
# Slow machines are slow: a bound is there to end a test that would never end.
START_SECONDS = 60.0
STOP_SECONDS = 30.0

_KEPT = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
_COMMANDS = {
    "web": "config.web",
    "worker": "celery --quiet -A config worker",
    "beat": "config.beat",
    "valkey": "valkey-server",
}


def wait_for[T](condition: Callable[[], T], timeout: float = 40.0, what: str = "") -> T:
    """The first true value of `condition()`, asked again and again; AssertionError after `timeout`
    seconds."""
    until = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout:.0f} s: {what or condition}")
        time.sleep(0.05)
    return value


def free_port() -> int:
    """A port that nobody listens on. Below the range that outgoing connections are given: one of
    them could take it before the server does."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def collect_static() -> None:
    """`make`'s rule for static files, safe when several processes test at once."""
    manifest = ROOT / "staticfiles" / "staticfiles.json"
    with (Path(tempfile.gettempdir()) / f"patchbay-static-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = [ROOT / "static", ROOT / "docs" / "guide" / "pictures"]
        newest = max(path.stat().st_mtime for source in sources for path in source.rglob("*"))
        if not manifest.exists() or manifest.stat().st_mtime < newest:
            with tempfile.TemporaryDirectory() as data:
                subprocess.run(
                    [sys.executable, "manage.py", "collectstatic", "--noinput", "-v", "0"],
                    cwd=ROOT,
                    env={
                        **_environment(),
                        "PATCHBAY_DATA_DIR": data,
                        "DJANGO_SETTINGS_MODULE": "config.settings",  # the tests' own hash nothing
                    },
                    check=True,
                )
            manifest.touch()


@functools.cache
def migrated_database() -> bytes:
    """The SQLite file that `migrate` makes of nothing: made once for all the servers that a process
    starts."""
    with tempfile.TemporaryDirectory() as data:
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "-v", "0"],
            cwd=ROOT,
            env={
                **_environment(),
                "PATCHBAY_DATA_DIR": data,
                "DJANGO_SETTINGS_MODULE": "config.settings",
            },
            check=True,
        )
        file = Path(data) / "patchbay.sqlite3"
        assert not file.with_name(f"{file.name}-wal").exists(), (
            "a part of the database is beside it"
        )
        return file.read_bytes()


class Client(httpx.Client):
    """A browser's manners: cookies, the CSRF token in a header, redirects on request only."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(
            base_url=url,
            timeout=20,
            trust_env=False,
            event_hooks={"request": [self._add_token]},
            **options,
        )

    def _add_token(self, request: httpx.Request) -> None:
        if request.method in {"GET", "HEAD", "OPTIONS"}:
            return
        request.headers.setdefault("Origin", str(self.base_url).rstrip("/"))
        for cookie in self.cookies.jar:
            if cookie.name.endswith("csrf"):
                request.headers.setdefault("X-CSRFToken", cookie.value or "")

    def sign_in(self, email: str, password: str) -> httpx.Response:
        self.get("/accounts/login/")
        return self.post("/accounts/login/", data={"login": email, "password": password})


class Patchbay:
    """A server with a fresh data directory and a free port. Use it as a context manager, or call
    `start` and `stop`.

    Its database has all tables and no row, which saves some seconds; `from_nothing` it makes them
    itself, as a real first start does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        data: Path | None = None,
        from_nothing: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data = data or folder / "data"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[Client] = []
        limits = ("SENDS_PER_MINUTE", "TURNS_PER_PERSON", "STREAMS_PER_PERSON")
        self.env = {
            **_environment(),
            **{f"PATCHBAY_{name}": "0" for name in limits},  # one person does all the work here
            "PATCHBAY_DATA_DIR": str(self.data),
            "PATCHBAY_LOCAL_SERVERS": "",  # a developer's own Ollama
            "PORT": str(self.port),
            **(env or {}),
        }
        self._gets_tables = not from_nothing and data is None and "DATABASE_URL" not in self.env

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def start(self, *, wait: bool = True) -> Self:
        """Starts it; with `wait`, returns when it answers and all its processes are there."""
        if wait and self._gets_tables and not self.data.exists():
            self.data.mkdir(mode=0o700)
            self.give_tables()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "serve"],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            try:
                wait_for(self._is_up, START_SECONDS, "Patchbay is up")
            except BaseException:
                self.stop()
                print(self.output())
                raise
        return self

    def give_tables(self) -> None:
        """Puts the database into an empty data directory, unless it is to be made there."""
        if self._gets_tables:
            file = self.data / "patchbay.sqlite3"
            file.touch(0o600)
            file.write_bytes(migrated_database())

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"serve ended with {self.process.returncode}:\n{self.output()}")
        return "Patchbay is at" in self.output() and "beat" in self.pids()

    @property
    def token(self) -> str:
        """The first-run token, as printed."""
        found = re.search(r"^First-run token: (\S+)$", self.output(), re.MULTILINE)
        assert found, f"no token was printed:\n{self.output()}"
        return found[1]

    def output(self) -> str:
        """Everything it printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """The exit code, once it ended by itself."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ends it as Ctrl-C does; the exit code."""
        assert self.process is not None
        for client in self._clients:
            client.close()
        if "redis" in vars(self):
            self.redis.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    # -- its processes -----------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """The process ids of web, worker, beat and valkey, as far as they live."""
        assert self.process is not None
        children = [(p, text) for p, parent, text in _processes() if parent == self.process.pid]
        return {
            name: pid for name, mark in _COMMANDS.items() for pid, text in children if mark in text
        }

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Sends a signal to web, worker, beat or valkey; its process id."""
        pid = self.pids()[name]
        os.kill(pid, number)
        return pid

    def leftovers(self) -> list[str]:
        """Command lines of living processes that belong to this data directory or to this server's
        sessions, itself excluded."""
        assert self.process is not None
        mine = os.fsencode(f"PATCHBAY_DATA_DIR={self.data}")
        found = []
        for pid, parent, text in _processes():
            if pid == self.process.pid and self.process.poll() is None:
                continue
            with contextlib.suppress(OSError):
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if (
                    parent == self.process.pid
                    or mine in environ
                    or str(self.data) in text
                    or os.getsid(pid) == self.process.pid
                ):
                    found.append(text)
        return found

    @functools.cached_property
    def redis(self) -> redis.Redis:
        """A client of its Valkey."""
        script = "from django.conf import settings; print(settings.REDIS_URL)"
        url = self.manage("shell", "--no-imports", "-c", script).stdout.strip()
        return redis.Redis.from_url(url, decode_responses=True)

    def worker_is_ready(self) -> bool:
        """Whether the worker waits for tasks."""
        return any(client["cmd"] == "brpop" for client in self.redis.client_list())

    # -- from outside ------------------------------------------------------------------------------

    def manage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`manage.py` in the server's environment."""
        result = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    def client(self) -> Client:
        """A client that is nobody yet; closed when the server is stopped."""
        self._clients.append(Client(self.url))
        return self._clients[-1]

    def setup_admin(self, **fields: str) -> Client:
        """Goes through the first-run page (fields default to `ADMIN`); a client signed in as the
        new admin."""
        client = self.client()
        client.get("/setup/")
        answer = client.post("/setup/", data={"token": self.token, **ADMIN, **fields})
        assert answer.status_code == 303, answer.text
        return client

    def sign_in(self, email: str, password: str = ADMIN["password"]) -> Client:
        """A client signed in with an account that exists."""
        client = self.client()
        answer = client.sign_in(email, password)
        assert answer.status_code == 302, answer.text
        return client


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


def _processes() -> list[tuple[int, int, str]]:
    """(process id, parent's id, command line) of every living process."""
    if not Path("/proc/self/stat").exists():
        lines = subprocess.run(
            ["ps", "-axo", "pid=,ppid=,stat=,command="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        fields = [line.split(None, 3) for line in lines]
        return [(int(f[0]), int(f[1]), f[3]) for f in fields if len(f) == 4 and "Z" not in f[2]]
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            text = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if state not in "ZX":
                found.append((int(folder.name), int(parent), text.strip()))
    return found
