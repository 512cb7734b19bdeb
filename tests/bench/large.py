"""A large installation, made in a minute: the three tables that grow with every message come in by
COPY or one prepared INSERT, the others by `bulk_create`."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import random
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from django.db import connection as database
from django.db.models import Model
from django.utils import timezone

from connections.models import (
    Alert,
    Budget,
    Connection,
    ProbeResult,
    Secret,
    WorkspaceConnection,
)
from sessions.models import (
    Attachment,
    ChatSession,
    Flag,
    Message,
    SearchText,
    ToolServer,
    Turn,
    UsageDay,
)
from tests.builders import make_user
from workspaces.models import AuditEvent, Invitation, Membership, Role, User, Workspace
from workspaces.vault import Plain

WORDS = [
    *("invoice", "refund", "parcel", "customer", "answer", "harbour", "weather", "ticket", "model"),
    *("budget", "release", "server", "note", "friday", "draft", "review", "letter", "contract"),
]
NEEDLE = "quetzalcoatl"  # in one message of every ten thousand
LONG = 5_000  # messages of the longest session


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is of everything. `ten` has at least one of each kind too: a page that finds
    none of a thing asks fewer questions."""

    connections: int
    sessions: int
    messages: int
    workspaces: int = 10
    people: int = 10
    probes: int = 10  # a connection
    usage: int = 10
    events: int = 10
    long: int = 100

    @classmethod
    def ten(cls) -> Size:
        return cls(10, 10, 100)

    @classmethod
    def large(cls, connections: int, sessions: int, messages: int) -> Size:
        return cls(
            *(connections, sessions, messages),
            workspaces=50,
            people=500,
            probes=120,
            usage=min(messages // 20, 50_000),
            events=min(messages // 10, 100_000),
            long=min(LONG, messages // 2),
        )


def fill(size: Size) -> None:
    """Of an empty database."""
    chance = random.Random(7)
    now = timezone.now().replace(microsecond=0)
    spaces = _workspaces(size)
    people = _people(size, spaces, chance)
    made = _connections(size, spaces, chance, now)
    chats = _sessions(size, spaces, people, made, chance, now)
    _turns(size, chats, now, chance)
    _usage(size, spaces, people, made, chance, now)
    _events(size, spaces, people, made, chance, now)
    with database.cursor() as cursor:
        cursor.execute("ANALYZE")


def _workspaces(size: Size) -> list[Workspace]:
    spaces = [Workspace(slug="bench", name="Bench", retention_days=365)]
    spaces += [Workspace(slug=f"space-{n}", name=f"Space {n}") for n in range(size.workspaces - 1)]
    Workspace.objects.bulk_create(spaces)
    for n in range(3):
        ToolServer.objects.create(
            workspace=spaces[0],
            name=f"Tools {n}",
            prefix=f"tools{n}",
            url="https://tools.example.com/mcp",
            tools=[{"name": "search", "title": "Search", "description": "Finds articles."}],
        )
    return spaces


def _people(size: Size, spaces: list[Workspace], chance: random.Random) -> list[User]:
    alice = make_user("alice@example.com", is_superuser=True)
    others = [
        User(email=f"person{n}@example.com", name=f"Person {n}", password="!")
        for n in range(size.people)
    ]
    User.objects.bulk_create(others)
    places = [Membership(workspace=spaces[0], user=one) for one in (alice, *others)]
    places[0].role = Role.ADMIN
    places += [
        Membership(workspace=space, user=one)
        for one in others
        for space in chance.sample(spaces[1:], 2)
    ]
    Membership.objects.bulk_create(places)
    ends = timezone.now() + dt.timedelta(days=7)
    Invitation.objects.bulk_create(
        Invitation(
            workspace=spaces[n % len(spaces)],
            token_hash=f"{n:064}",
            expires_at=ends,
            created_by=alice,
        )
        for n in range(max(10, size.people // 10))
    )
    return [others[0], alice, *others[1:]]


def _connections(
    size: Size, spaces: list[Workspace], chance: random.Random, now: dt.datetime
) -> list[Connection]:
    made = [
        Connection(
            slug=f"connection-{n}",
            name=f"Connection {n}",
            provider_type="openai_compat",
            auth_type="api_key_with_endpoint",
            base_url="https://llm.example.com/v1",
            models=["small", "large", *(f"model-{m}" for m in range(n % 8))],
            default_model="small",
            position=n,
            health="failed" if n % 17 == 3 else "valid",
            health_error="auth" if n % 17 == 3 else "",
            health_at=now,
            next_check_at=now + dt.timedelta(minutes=n),
            last_used_at=now - dt.timedelta(minutes=n),
            is_default=n == 0,
            access="chosen" if n % 5 == 4 else "all",
        )
        for n in range(size.connections)
    ]
    Connection.objects.bulk_create(made)
    Secret.objects.bulk_create(
        Secret(connection=c, binding=c.binding, value=Plain('{"api_key": "k"}'), hints={})
        for c in made
    )
    WorkspaceConnection.objects.bulk_create(
        WorkspaceConnection(workspace=space, connection=c)
        for c in made[4::5]
        for space in spaces[:3]
    )
    probes = (
        (
            *(_key(chance), c.pk.hex, _time(now - dt.timedelta(hours=6 * n)), _time(now)),
            *(n % 17 != 0, 300),
        )
        for c in made
        for n in range(size.probes)
    )
    _load(ProbeResult, "id connection_id started_at finished_at passed latency_ms", probes)
    Alert.objects.bulk_create(
        Alert(connection=c, state="failing", at=now - dt.timedelta(minutes=n), error_kind="auth")
        for n, c in enumerate(made[3::17] or made[:1])
    )
    month = now.date().replace(day=1)
    budgets = [Budget(connection=c, month=month, soft_cost=5, cost=3) for c in made[:10]]
    Budget.objects.bulk_create([*budgets, Budget(workspace=spaces[0], month=month, soft_cost=5)])
    return made


def _sessions(
    size: Size,
    spaces: list[Workspace],
    people: list[User],
    made: list[Connection],
    chance: random.Random,
    now: dt.datetime,
) -> list[ChatSession]:
    """The newest is the long one. Of the others every second is in one workspace; three of ten are
    on one connection, and half of those that aren't the asker's are one person's."""
    heavy, alice = people[:2]
    theirs = set(spaces[:4])

    def owner(n: int, space: Workspace) -> User:
        if n % 4 == 0:
            return alice
        return heavy if n % 10 < 5 and space in theirs else chance.choice(people[2:])

    places = [spaces[0] if n % 2 == 0 else chance.choice(spaces[1:]) for n in range(size.sessions)]
    chats = [
        ChatSession(
            workspace=space,
            owner=owner(n, space),
            shared=n % 3 == 0,
            connection=made[0] if n % 10 in (3, 4, 5) else chance.choice(made),
            locked_at=now,
            model="small",
            title=" ".join(chance.sample(WORDS, 4)),
            updated_at=now - dt.timedelta(minutes=n * 80),
            archived_at=now if n % 20 == 8 else None,
            search_due=False,
        )
        for n, space in enumerate(places)
    ]
    ChatSession.objects.bulk_create(chats, batch_size=5_000)
    Flag.objects.bulk_create(
        Flag(chat=c, user=alice) for c in chats[:: max(1, size.sessions // 50)]
    )
    return chats


def _turns(size: Size, chats: list[ChatSession], now: dt.datetime, chance: random.Random) -> None:
    """Each turn a question and its answer; the last of one session in a hundred is under way, and
    a message waits behind it."""
    short = max(1, (size.messages - size.long) // 2 // max(1, size.sessions - 1))
    spoken = [size.long // 2, *[short] * (len(chats) - 1)]
    turns: list[tuple[Any, ...]] = []
    for at, (chat, count) in enumerate(zip(chats, spoken, strict=True)):
        for n in range(1, count + 1):
            active = n == count and at % max(2, len(chats) // 100) == 1
            began = chat.updated_at - dt.timedelta(seconds=count - n)
            turns.append(
                (
                    *(_key(chance), chat.pk.hex, n, "running" if active else "done", "small"),
                    *(_time(began), _time(began), None if active else _time(began)),
                    *(chat.owner_id.hex, 800, 300),
                )
            )
    _load(
        Turn,
        "id chat_id number state model created_at started_at ended_at started_by_id input_tokens"
        " output_tokens",
        turns,
    )
    names = "id chat_id turn_id seq place role author_id step text parts delivery created_at"
    _load(Message, names, _messages(turns, chance))
    texts, messages = SearchText._meta.db_table, Message._meta.db_table
    with database.cursor() as cursor, _trigrams_later(cursor, texts):
        cursor.execute(
            f"INSERT INTO {texts} (chat_id, message_id, text) "
            f"SELECT chat_id, id, text FROM {messages} ORDER BY created_at"
        )
        cursor.execute(
            f"INSERT INTO {texts} (chat_id, message_id, text) "
            f"SELECT id, NULL, title FROM {ChatSession._meta.db_table}"
        )
    said = Message.objects.filter(role="user").values_list("pk", flat=True)
    Attachment.objects.bulk_create(
        Attachment(message_id=pk, media_type="image/png", width=9, height=9, size=900, name="a.png")
        for pk in said[: size.sessions // 5]
    )


@contextlib.contextmanager
def _trigrams_later(cursor: Any, table: str) -> Iterator[None]:
    """PostgreSQL's index of the search is made at once in a fraction of the time of row by row."""
    found = []
    if database.vendor == "postgresql":
        cursor.execute("SET LOCAL maintenance_work_mem = '1GB'")
        cursor.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s AND indexdef LIKE %s",
            [table, "%gin_trgm_ops%"],
        )
        found = cursor.fetchall()
    for name, _definition in found:
        cursor.execute(f'DROP INDEX "{name}"')
    yield
    if found:  # no index is made while checks of keys are due
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for _name, definition in found:
        cursor.execute(definition)


def _messages(turns: Iterable[tuple[Any, ...]], chance: random.Random) -> Iterator[tuple[Any, ...]]:
    at = 0
    lines = [" ".join(chance.choices(WORDS, k=8)) for _n in range(997)]
    for turn, chat, number, state, _model, began, _began, _ended, owner, *_tokens in turns:
        for step, role in enumerate(("user", "assistant")):
            at += 1
            text = f"the {lines[at % 997]} {NEEDLE if at % 10_000 == 17 else at}"
            if role == "assistant" and number % 5 == 0:
                text += (
                    f"\n\n- **{lines[number % 997]}**\n- `code`\n\n```python\nprint({at})\n```\n"
                )
            parts = json.dumps([{"t": "text", "text": text}])
            author = None if step else owner
            place = number * 3 + step
            yield (
                *(_key(chance), chat, turn, place, place, role, author, step, text, parts),
                *("sent", began),
            )
        if state == "running":
            place = number * 3 + 2
            waits = ("user", owner, 0, "and then?", "[]", "queued", began)
            yield (_key(chance), chat, None, place, place, *waits)


def _usage(
    size: Size,
    spaces: list[Workspace],
    people: list[User],
    made: list[Connection],
    chance: random.Random,
    now: dt.datetime,
) -> None:
    rows = {}
    for n in range(size.usage):
        day = (now - dt.timedelta(days=n % 90)).date()
        space = spaces[0] if n % 2 else chance.choice(spaces)
        connection = made[0] if n % 10 < 3 else chance.choice(made)
        person, model = chance.choice(people), f"model-{chance.randrange(20)}"
        rows[day, space.pk, connection.pk, person.pk, model] = UsageDay(
            day=day,
            workspace=space,
            workspace_label=space.name,
            connection=connection,
            connection_label=connection.name,
            person=person,
            person_label=person.email,
            model=model,
            turns=3,
            input_tokens=1000,
            output_tokens=500,
            cost="0.01",
        )
    UsageDay.objects.bulk_create(rows.values(), batch_size=5_000)


def _events(
    size: Size,
    spaces: list[Workspace],
    people: list[User],
    made: list[Connection],
    chance: random.Random,
    now: dt.datetime,
) -> None:
    """Half about one workspace's sessions, half about connections; the newest aren't sealed yet."""

    def event(n: int) -> AuditEvent:
        about, actor = made[n % len(made)], people[1] if n % 3 else chance.choice(people)
        here = n % 2 == 0
        return AuditEvent(
            actor=actor,
            actor_label=actor.email,
            action="session.create" if here else "connection.update",
            target_type="chatsession" if here else "connection",
            target_id=str(uuid.UUID(int=n)) if here else str(about.pk),
            target_label="session" if here else about.name,
            workspace_id=spaces[0].pk if here else None,
            at=now - dt.timedelta(minutes=n),
            number=size.events - n if n > 5 else None,
            seal="x" if n > 5 else "",
            details={} if here else {"changed": {"name": ["a", "b"]}},
        )

    AuditEvent.objects.bulk_create((event(n) for n in range(size.events)), batch_size=5_000)


def _key(chance: random.Random) -> str:
    """Of a row, as both databases take it."""
    return f"{chance.getrandbits(128):032x}"


def _time(when: dt.datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S.%f")


def _load(model: type[Model], names: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """`names` of columns, in the order of the rows; the others get their fields' defaults."""
    columns = names.split()
    rest = [f for f in model._meta.concrete_fields if f.column not in columns]
    same = tuple(f.get_db_prep_save(f.get_default(), database) for f in rest)
    into = ", ".join(f'"{name}"' for name in (*columns, *(f.column for f in rest)))
    whole = (row + same for row in rows)
    with database.cursor() as cursor:
        if database.vendor == "postgresql":
            with cursor.copy(f"COPY {model._meta.db_table} ({into}) FROM STDIN") as copy:
                for row in whole:
                    copy.write_row(row)
            return
        marks = ", ".join("?" * (len(columns) + len(rest)))
        statement = f"INSERT INTO {model._meta.db_table} ({into}) VALUES ({marks})"
        while batch := list(islice(whole, 20_000)):
            database.connection.executemany(statement, batch)
