"""`make bench-pages`: what the list pages cost in a large installation, against one with ten of
everything, on SQLite and PostgreSQL.

Server time is that of Django's handler with all its middleware, in one process, without a network;
queries are counted in the same requests. Each page is asked for once before it is measured.

    python -m tests.bench.pages [--connections 1000] [--sessions 10000] [--messages 1000000]
        [--requests 40] [--only sqlite|postgresql] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    *("invoice", "refund", "parcel", "customer", "answer", "harbour", "weather", "ticket", "model"),
    *("budget", "release", "server", "note", "friday", "draft", "review", "letter", "contract"),
]
NEEDLE = "quetzalcoatl"  # in one message of every ten thousand
PAGES = {
    "connections": "/connections/",
    "connections, last page": "/connections/?page=9999",
    "connections' status": "/connections/status/",
    "a connection's health": "/connections/connection-0/health/",
    "sessions": "/w/bench/",
    "sessions, last page": "/w/bench/?page=9999",
    "sessions, flagged": "/w/bench/?show=flagged",
    "sessions, working": "/w/bench/?show=working",
    "search, a rare word": f"/w/bench/?q={NEEDLE}",
    "search, in every text": "/w/bench/?q=the",
    "search, two letters": "/w/bench/?q=in",
    "palette, recent": "/palette/?workspace=bench",
    "palette, one letter": "/palette/?workspace=bench&q=e",
    "palette, a word": "/palette/?workspace=bench&q=session",
    "AI settings": "/w/bench/settings/ai/",
    "members": "/w/bench/members/",
    "people": "/people/",
    "a person": "/people/{person}/",
    "a person's data": "/people/{person}/delete/",
    "usage": "/w/bench/usage/",
    "usage of all": "/usage/",
    "audit": "/w/bench/audit/",
    "audit of all": "/audit/",
    "a session": "/w/bench/sessions/{chat}/",
    "admin: sessions": "/admin/agent_sessions/chatsession/",
    "admin: messages": "/admin/agent_sessions/message/",
    "admin: turns": "/admin/agent_sessions/turn/",
    "admin: connections": "/admin/connections/connection/",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-pages", description=__doc__)
    parser.add_argument("--connections", type=int, default=1_000)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--only", choices=["sqlite", "postgresql"])
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        print(json.dumps(_inside(chosen)))
        return
    counts = f"{chosen.connections:,} connections, {chosen.sessions:,} sessions, "
    print(f"{counts}{chosen.messages:,} messages, {chosen.requests} requests a page\n")
    for name in ("sqlite", "postgresql"):
        if chosen.only in (None, name):
            _measure(name)


@contextlib.contextmanager
def _database(name: str) -> Iterator[dict[str, str]]:
    """The environment of a server with an empty one."""
    if name == "sqlite":
        yield {}
        return
    from tests import postgres

    with postgres.cluster() as url:
        yield {"DATABASE_URL": url}


def _measure(name: str) -> None:
    """Ten of everything, then all of it, each in a process and a database of its own."""
    found = {}
    for size in ("ten", "all"):
        with (
            tempfile.TemporaryDirectory(prefix="patchbay-pages-") as folder,
            _database(name) as env,
        ):
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.pages", *sys.argv[1:], "--inside", size],
                cwd=ROOT,
                env=os.environ
                | {
                    "PATCHBAY_DATA_DIR": folder,
                    "SECRET_KEY": secrets.token_urlsafe(50),
                    "PATCHBAY_SECRET_KEYS": secrets.token_urlsafe(32),
                }
                | env,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        found[size] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name:28}      ten: p50    p95  queries      all: p50    p95  queries")
    for page in PAGES:
        few, many = found["ten"][page], found["all"][page]
        row = "".join(f"{r['p50']:15.1f} {r['p95']:6.1f} {r['queries']:8d}" for r in (few, many))
        said = "" if few["queries"] == many["queries"] else "  other number of queries"
        print(f"{page:26}{row}{said}{'  over 50 ms' if many['p95'] > 50 else ''}")
    print(flush=True)


def _inside(chosen: argparse.Namespace) -> dict[str, Any]:
    """In a process with its own database: fills it, and gives {page: {p50, p95, queries}} with
    times in milliseconds."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection, transaction
    from django.db.backends.utils import CursorWrapper
    from django.test import Client

    # Requests have threads of their own, and those their own connections.
    count, execute = [0], CursorWrapper.execute

    def counting(self: Any, *args: Any) -> Any:
        count[0] += 1
        return execute(self, *args)

    CursorWrapper.execute = counting  # type: ignore[method-assign]

    call_command("migrate", verbosity=0)
    counts = (chosen.connections, chosen.sessions, chosen.messages)
    with transaction.atomic():  # one, as it is faster
        user, chat = _fill(*((10, 10, 100) if chosen.inside == "ten" else counts))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    person = type(user).objects.exclude(pk=user.pk).values_list("pk", flat=True).first()
    client = Client(headers={"host": "127.0.0.1"})
    client.force_login(user)
    found = {}
    for page, path in PAGES.items():
        address = path.format(chat=chat, person=person)
        response = client.get(address)
        assert response.status_code == 200, (address, response.status_code)
        count[0] = 0
        client.get(address)
        queries = count[0]
        times = []
        for _number in range(chosen.requests):
            began = time.perf_counter()
            client.get(address)
            times.append((time.perf_counter() - began) * 1000)
        times.sort()
        p95 = times[min(len(times) - 1, int(len(times) * 0.95))]
        found[page] = {"p50": times[len(times) // 2], "p95": p95, "queries": queries}
    return found


def _fill(connections: int, sessions: int, messages: int) -> tuple[Any, Any]:
    from django.db import connection as database
    from django.utils import timezone

    from connections.models import Connection, ProbeResult, Secret
    from sessions.models import ChatSession, Flag, Message, SearchText, Turn, UsageDay
    from tests.builders import make_user
    from workspaces.models import AuditEvent, Membership, Role, Workspace
    from workspaces.vault import Plain

    chance = random.Random(7)
    now = timezone.now()
    spaces = [Workspace.objects.create(slug="bench", name="Bench")]
    spaces += [Workspace.objects.create(slug=f"space-{n}", name=f"Space {n}") for n in range(9)]
    alice = make_user("alice@example.com", is_superuser=True)
    people = [alice, *(make_user(f"person{n}@example.com") for n in range(min(30, sessions)))]
    for person in people:
        Membership.objects.create(workspace=spaces[0], user=person, role=Role.MEMBER)

    made = [
        Connection(
            slug=f"connection-{n}",
            name=f"Connection {n}",
            provider_type="openai_compat",
            auth_type="api_key_with_endpoint",
            base_url="https://llm.example.com/v1",
            models=["small", "large"],
            default_model="small",
            position=n,
            health="valid",
            health_at=now,
        )
        for n in range(connections)
    ]
    Connection.objects.bulk_create(made)
    Secret.objects.bulk_create(
        Secret(connection=c, binding=c.binding, value=Plain('{"api_key": "k"}'), hints={})
        for c in made
    )
    ProbeResult.objects.bulk_create(
        ProbeResult(
            connection=c,
            started_at=now - dt.timedelta(hours=6 * n),
            finished_at=now,
            passed=n % 17 != 0,
            latency_ms=300,
        )
        for c in made
        for n in range(120)
    )
    chats = [
        ChatSession(
            workspace=spaces[0] if n % 2 == 0 else chance.choice(spaces),
            owner=alice if n % 4 == 0 else chance.choice(people),
            shared=n % 3 == 0,
            connection=chance.choice(made),
            locked_at=now,
            model="small",
            title=" ".join(chance.sample(WORDS, 4)),
            updated_at=now - dt.timedelta(minutes=n),
            search_due=False,
        )
        for n in range(sessions)
    ]
    ChatSession.objects.bulk_create(chats)
    Flag.objects.bulk_create(Flag(chat=c, user=alice) for c in chats[:: max(1, sessions // 50)])
    each = max(2, messages // sessions) // 2
    turns = [
        Turn(
            chat=chat,
            number=n + 1,
            state="done",
            model="small",
            created_at=chat.updated_at + dt.timedelta(seconds=n),
            ended_at=now,
        )
        for chat in chats
        for n in range(each)
    ]
    Turn.objects.bulk_create(turns, batch_size=5_000)

    def rows() -> Iterator[Message]:
        at = 0
        for turn in turns:
            for role in ("user", "assistant"):
                at += 1
                words = chance.choices(WORDS, k=8)
                text = f"the {' '.join(words)} {NEEDLE if at % 10_000 == 17 else at}"
                yield Message(
                    chat_id=turn.chat_id,
                    turn_id=turn.pk,
                    seq=turn.number * 2 + (role == "assistant"),
                    role=role,
                    step=int(role == "assistant"),
                    text=text,
                    parts=[{"t": "text", "text": text}],
                    created_at=turn.created_at,
                )

    batch: list[Message] = []
    for row in rows():
        batch.append(row)
        if len(batch) == 20_000:
            Message.objects.bulk_create(batch, batch_size=5_000)
            batch = []
    Message.objects.bulk_create(batch, batch_size=5_000)
    table, source = SearchText._meta.db_table, Message._meta.db_table
    with database.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (chat_id, message_id, text) "
            f"SELECT chat_id, id, text FROM {source}"
        )
    UsageDay.objects.bulk_create(
        UsageDay(
            day=(now - dt.timedelta(days=n % 30)).date(),
            workspace=spaces[0],
            workspace_label="Bench",
            connection=chance.choice(made),
            connection_label="Connection",
            person=chance.choice(people),
            person_label=f"person {n}",
            model=f"model {n}",
            turns=3,
            input_tokens=1000,
            output_tokens=500,
        )
        for n in range(min(sessions, 5_000))
    )
    AuditEvent.objects.bulk_create(
        AuditEvent(
            actor_label="alice@example.com",
            action="session.create",
            target_type="chatsession",
            target_id=str(uuid.uuid4()),
            target_label="session",
            workspace_id=spaces[0].pk,
            at=now - dt.timedelta(minutes=n),
        )
        for n in range(min(messages // 10, 100_000))
    )
    mine = next(c for c in chats if c.owner_id == alice.pk and c.workspace_id == spaces[0].pk)
    return alice, mine.pk


if __name__ == "__main__":
    main()
