"""An upgrade from the first version of the schema, with data, killed again and again on its way.

No version has been released yet; the first set of migrations stands for the oldest one. Each kill
comes out of the blue, before one of the statements of `manage.py migrate`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import postgres
from tests.run import in_ci
from tests.system.harness import ROOT

SECRET = "sk-of-the-first-version-7Kq2"
FIRST = [
    ("workspaces", "0001_initial"),
    ("connections", "0001_initial"),
    ("agent_sessions", "0001_initial"),
]
BEFORE = f"""
import datetime as dt, json
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.contrib.auth.hashers import make_password
from connections.models import Connection as Now
from workspaces.vault import Plain

first = {FIRST!r}
executor = MigrationExecutor(connection)
executor.migrate(first)
model = executor.loader.project_state(first).apps.get_model
at = dt.datetime(2026, 3, 5, 12, tzinfo=dt.UTC)
alice = model("workspaces", "User").objects.create(
    email="alice@example.com", password=make_password("a password of before"), is_superuser=True
)
model("workspaces", "Installation").objects.create(id=1)
space = model("workspaces", "Workspace").objects.create(name="Support", slug="support")
model("workspaces", "Membership").objects.create(workspace=space, user=alice, role="admin")
fields = dict(
    slug="local", name="Local", provider_type="openai_compat", auth_type="api_key_with_endpoint",
    base_url="https://llm.example.com/v1", models=["small"], default_model="small",
)
one = model("connections", "Connection").objects.create(is_default=True, **fields)
value = Plain(json.dumps({{"api_key": {SECRET!r}}}))
binding = Now(**fields).binding
secret = model("connections", "Secret")(connection=one, binding=binding, value=value)
secret.place = f"{{one.pk}} {{binding}}"
secret.save()
chats = model("agent_sessions", "ChatSession")
for n in range(40):
    chat = chats.objects.create(
        workspace=space, owner=alice, connection=one, locked_at=at, title=f"Talk {{n}}"
    )
    turn = model("agent_sessions", "Turn").objects.create(
        chat=chat, number=1, state="done", model="small", request_sent=True, started_by=alice,
        ended_at=at, input_tokens=10, output_tokens=1, cost="0.01",
    )
    for seq, (role, text) in enumerate((("user", "a question"), ("assistant", "marmalade"))):
        model("agent_sessions", "Message").objects.create(
            chat=chat, turn=turn, seq=seq + 1, role=role, text=f"{{text}} {{n}}", author=alice,
            place=1, step=seq,
        )
"""
# Ends the process before the statement of this number.
KILLED = """
import os, signal, sys
from django.db.backends.utils import CursorWrapper

left, execute = int(sys.argv[1]), CursorWrapper.execute

def counted(self, *arguments, **named):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return execute(self, *arguments, **named)

CursorWrapper.execute = counted
import django
from django.core.management import call_command
django.setup()
call_command("migrate", interactive=False, verbosity=0)
"""
AFTER = """
import json
from django.contrib.auth import authenticate
from django.db.models import Sum
from connections.models import Connection
from connections.targets import target_of
from sessions import search
from sessions.models import ChatSession, Message, Turn, UsageDay
from workspaces.models import User

while ChatSession.objects.filter(search_due=True).exists():
    search.take_in()
local = Connection.objects.with_secrets().get()
print(json.dumps({
    "password": User.objects.get().check_password("a password of before"),
    "key": target_of(local).secret["api_key"],
    "default": local.is_default,
    "chats": ChatSession.objects.filter(connection=local, locked_at__isnull=False).count(),
    "texts": len(set(Message.objects.values_list("text", flat=True))),
    "bound": Message.objects.filter(turn__state="done").count(),
    "usage": UsageDay.objects.aggregate(n=Sum("turns"), tokens=Sum("input_tokens")),
    "found": len(search.find(ChatSession.objects.all(), "marmalade 3")),
}))
"""
SCHEMA = """
import json
from django.db import connection
found = {}
with connection.cursor() as cursor:
    look = connection.introspection
    for table in look.table_names(cursor):
        columns = look.get_table_description(cursor, table)
        constraints = look.get_constraints(cursor, table).values()
        found[table] = [
            sorted([c.name, str(c.type_code), c.null_ok] for c in columns),
            sorted(json.dumps([c["columns"], c["unique"], c["index"], c["foreign_key"]])
                   for c in constraints),
        ]
print(json.dumps(found, sort_keys=True))
"""


class Installation:
    """A database and its keys, with the commands that work on it."""

    def __init__(self, folder: Path, **env: str) -> None:
        ordinary = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        settings = {"DJANGO_SETTINGS_MODULE": "config.settings", "PATCHBAY_DATA_DIR": str(folder)}
        key = base64.urlsafe_b64encode(os.urandom(32)).decode()
        self.env = ordinary | settings | {"PATCHBAY_SECRET_KEYS": key} | env

    def python(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._started(["-c", script, *arguments])

    def _started(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def applied(self) -> int:
        """How many migrations are done."""
        count = "SELECT count(*) FROM django_migrations"
        if url := self.env.get("DATABASE_URL"):
            with psycopg.connect(url) as connection:
                return connection.execute(count).fetchone()[0]
        path = Path(self.env["PATCHBAY_DATA_DIR"]) / "patchbay.sqlite3"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return connection.execute(count).fetchone()[0]

    def run(self, script: str) -> Any:
        done = self.python(f"import django\ndjango.setup()\n{script}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self._started(["manage.py", *arguments])
        assert done.returncode == 0, done.stderr
        return done


@pytest.fixture(params=["sqlite", "postgresql"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Installation, ...]]:
    """Two installations with empty databases."""
    if request.param == "sqlite":
        yield Installation(tmp_path / "old"), Installation(tmp_path / "new")
        return
    try:
        with postgres.cluster() as url:
            other = re.sub(r"/patchbay$", "/other", url)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE other")
            old = Installation(tmp_path / "old", DATABASE_URL=url)
            yield old, Installation(tmp_path / "new", DATABASE_URL=other)
    except postgres.NoPostgres as error:
        (pytest.fail if in_ci() else pytest.skip)(f"no PostgreSQL: {error}")


def test_an_upgrade_that_is_killed_again_and_again_ends_right(made):
    old, new = made
    old.run(BEFORE)
    applied, killed, statements = [old.applied()], 0, 25
    while True:
        done = old.python(KILLED, str(statements))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1
        statements *= 2
        applied.append(old.applied())
    # Nothing that was done was undone, and there were kills in its midst.
    assert killed >= 3
    assert applied == sorted(applied)
    assert any(applied[0] < one < old.applied() for one in applied)
    old.manage("migrate", "--check")
    new.manage("migrate", "--verbosity=0")
    assert old.run(SCHEMA) == new.run(SCHEMA)
    assert old.run(AFTER) == {
        "password": True,
        "key": SECRET,
        "default": True,
        "chats": 40,
        "texts": 80,
        "bound": 80,
        "usage": {"n": 40, "tokens": 400},
        "found": 11,  # 3 and 30 to 39
    }


def test_the_way_back_through_the_migrations_keeps_the_data(made):
    """As docs/operations.md has it for who has no backup; and forward again."""
    old, _new = made
    old.run(BEFORE)
    old.manage("migrate", "--verbosity=0")
    for app, name in reversed(FIRST):
        old.manage("migrate", app, name, "--verbosity=0")
    old.manage("migrate", "--verbosity=0")
    found = old.run(AFTER)
    assert (found["key"], found["chats"], found["texts"]) == (SECRET, 40, 80)
