"""A small company a quarter after it began with Patchbay: what the pictures of the guide show.

`fill` adds it to an installation that was just set up; `manage.py shell` runs it in the environment
of the server. Nothing in it calls a provider: what a validation or a reply would have left is
written as rows.
"""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal
from typing import Any

from allauth.mfa.models import Authenticator
from django.db import transaction
from django.utils import timezone

from connections.choices import Outcome, Rung
from connections.models import (
    Budget,
    Connection,
    ProbeResult,
    SecretCandidate,
    WorkspaceConnection,
)
from sessions.models import ChatSession, Flag, Message, Seen, ToolServer, Turn, UsageDay
from tests.builders import add_passkey, make_secret
from workspaces import audit, setup
from workspaces.models import Membership, Role, User, Workspace
from workspaces.vault import Plain

PEOPLE = (
    ("bob@example.com", "Bob Okafor", Role.ADMIN),
    ("carol@example.com", "Carol Lindqvist", Role.MEMBER),
    ("dan@example.com", "Dan Moreau", Role.MEMBER),
    ("emma@example.com", "Emma Sato", Role.MEMBER),
    ("vera@example.com", "Vera Kim", Role.VIEWER),
)
CLAUDE = ["claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-4-5"]
KEY = "sk-ant-api03-sample-of-the-guide-x7Q2"
IAM = {"access_key_id": "AKIASAMPLEOFTHEGUIDE", "secret_access_key": "sample-of-the-guide-8Lp4"}
# Slug → its fields, its secret, and how often of a hundred validations it failed.
CONNECTIONS: dict[str, tuple[dict[str, Any], dict[str, str] | None, int]] = {
    "anthropic": (
        {
            "name": "Anthropic",
            "provider_type": "anthropic",
            "auth_type": "api_key",
            "models": CLAUDE,
            "is_default": True,
            "note": "The company's account. Asked for by finance: keep it under $400 a month.",
        },
        {"api_key": KEY},
        1,
    ),
    "bedrock-frankfurt": (
        {
            "name": "Bedrock Frankfurt",
            "provider_type": "bedrock",
            "auth_type": "iam_credentials",
            "aws_region": "eu-central-1",
            "models": ["eu.anthropic.claude-sonnet-5-5", "amazon.nova-pro-v1:0"],
            "note": "For customers' data that has to stay in the EU.",
        },
        IAM,
        2,
    ),
    "openrouter": (
        {
            "name": "OpenRouter",
            "provider_type": "openai_compat",
            "auth_type": "api_key_with_endpoint",
            "base_url": "https://openrouter.ai/api/v1",
            "models": [
                {"id": "anthropic/claude-sonnet-5-5", "contextWindow": 200_000},
                "qwen/qwen3",
            ],
            "supports_images": True,
        },
        {"api_key": "sk-or-v1-sample-of-the-guide-91bd"},
        4,
    ),
    "openai": (
        {
            "name": "OpenAI",
            "provider_type": "openai_compat",
            "auth_type": "api_key_with_endpoint",
            "base_url": "https://api.openai.com/v1",
            "models": ["gpt-6.1-sol", "gpt-6-luna"],
            "supports_images": True,
        },
        {"api_key": "sk-proj-sample-of-the-guide-Kd03"},
        6,
    ),
    "workshop": (
        {
            "name": "Workshop machine",
            "provider_type": "openai_compat",
            "auth_type": "none",
            "base_url": "http://ollama.internal:11434/v1",
            "models": ["qwen3:32b", {"id": "llava:13b", "supportsImages": True}],
            "note": "The machine under the stairs. Off at weekends.",
        },
        None,
        12,
    ),
}

QUESTION = "Customers in Spain report that invoices show the old VAT rate. Where does it come from?"
TABLE = """The rate stands in **two places**, and only one was changed on 1 November:

| where | rate | changed |
|---|---:|---|
| `billing/rates.toml` | 21 % | yes |
| `invoice_template.es.html` | 18 % | no |

1. Take the rate from `rates.toml` in the template, so that there is one place.
2. Print the 37 invoices since then anew; their sums are right, only the line is wrong.

```python
def vat_line(country: str) -> str:
    return f"IVA {RATES[country]:.0%}"
```
"""
SESSIONS = (
    # owner, title, connection, shared, days ago
    ("ana", "Old VAT rate on Spanish invoices", "anthropic", True, 0.02),
    ("carol", "Answers for the returns of the winter sale", "anthropic", True, 0.1),
    ("ana", "What did the October survey say?", "bedrock-frankfurt", False, 0.3),
    ("bob", "Draft: status page for the outage of 12 November", "openrouter", True, 1.2),
    ("dan", "Which parcels are late, and why", "anthropic", True, 1.9),
    ("ana", "Holiday rota, fair for everybody", "workshop", False, 2.5),
    ("emma", "Rewrite the sizing guide in plain words", "openai", True, 4.1),
    ("carol", "Complaint of the Porto shop, with photographs", "anthropic", True, 6.3),
)


@transaction.atomic
def fill() -> dict[str, str]:
    """Adds the team; returns the addresses that the pictures need, by name."""
    chance = random.Random(7)
    now = timezone.now()
    ana = User.objects.get()
    ana.name = "Ana Ruiz"
    ana.save(update_fields=["name"])
    add_passkey(ana, "Ana's phone")
    Authenticator.objects.update(
        created_at=now - dt.timedelta(days=41), last_used_at=now - dt.timedelta(hours=20)
    )
    support = Workspace.objects.get()
    research = setup.create_workspace(ana, "Research")
    people = {"ana": ana}
    for number, (email, name, role) in enumerate(PEOPLE):
        person = User.objects.create_user(email, None, name=name)
        people[email.partition("@")[0]] = person
        since = now - dt.timedelta(days=80 - 13 * number)
        Membership.objects.create(workspace=support, user=person, role=role, created_at=since)
    Membership.objects.filter(user=ana).update(created_at=now - dt.timedelta(days=91))
    connections = {
        slug: _connection(chance, now, slug, fields, secret, failures, place, ana)
        for place, (slug, (fields, secret, failures)) in enumerate(CONNECTIONS.items())
    }
    WorkspaceConnection.objects.create(
        workspace=support, connection=connections["anthropic"], is_default=True
    )
    WorkspaceConnection.objects.create(workspace=research, connection=connections["workshop"])
    Connection.objects.filter(slug="openai").update(health="failed", health_error="quota")
    chats = _sessions(now, people, support, connections)
    _usage(chance, now, people, support, connections)
    _candidate(now, connections["openrouter"], ana)
    _tools(now, support, ana)
    for who, action, target in (
        (ana, "connection.create", connections["anthropic"]),
        (people["bob"], "workspace.instructions", support),
        (ana, "connection.update", connections["openai"]),
    ):
        audit.record(who, action, target, workspace_id=support.pk)
    return {name: chat.get_absolute_url() for name, chat in chats.items()}


def _connection(
    chance: random.Random,
    now: dt.datetime,
    slug: str,
    fields: dict[str, Any],
    secret: dict[str, str] | None,
    failures: int,
    place: int,
    ana: User,
) -> Connection:
    first = fields["models"][0]
    connection = Connection.objects.create(
        slug=slug,
        position=place,
        default_model=first if isinstance(first, str) else first["id"],
        created_by=ana,
        created_at=now - dt.timedelta(days=90 - place),
        last_used_at=now - dt.timedelta(minutes=4 + 50 * place),
        health="valid",
        health_at=now - dt.timedelta(minutes=3 + 17 * place),
        next_check_at=now + dt.timedelta(hours=6),
        **fields,
    )
    if secret:
        kept = make_secret(connection, secret)
        kept.hints = {name: value[-4:] for name, value in secret.items()}
        kept.created_by, kept.created_at = ana, now - dt.timedelta(days=64)
        kept.save()
    probes = []
    for hours in range(6, 24 * 90, 6):
        at = now - dt.timedelta(hours=hours + chance.random())
        is_weekend = slug == "workshop" and at.weekday() >= 5
        failed = chance.randrange(100) < failures or (is_weekend and chance.random() < 0.6)
        kind = (
            "quota" if slug == "openai" else "unreachable" if slug == "workshop" else "overloaded"
        )
        probes.append(_probe(chance, connection, at, kind if failed else ""))
    last = "quota" if slug == "openai" else ""
    probes.append(_probe(chance, connection, connection.health_at, last))
    ProbeResult.objects.bulk_create(probes)
    return connection


def _probe(chance: random.Random, connection: Connection, at: Any, kind: str) -> ProbeResult:
    """One that stopped at the rung where such an error shows."""
    stops = {"unreachable": Rung.NETWORK, "quota": Rung.ANSWER, "overloaded": Rung.ANSWER}.get(kind)
    typical = {
        Rung.CONFIG: 1,
        Rung.NETWORK: 38,
        Rung.AUTH: 120,
        Rung.MODELS: 160,
        Rung.ANSWER: 840,
        Rung.STREAM: 1_150,
    }
    rungs, has_stopped = [], False
    for rung, ms in typical.items():
        outcome = Outcome.PASSED
        if has_stopped:
            outcome = Outcome.NOT_TESTED
        elif rung == stops:
            outcome, has_stopped = Outcome.FAILED, True
        took = None if outcome == Outcome.NOT_TESTED else int(ms * chance.uniform(0.7, 1.6))
        stopped = kind if outcome == Outcome.FAILED else ""
        rungs.append({"rung": rung, "outcome": outcome, "ms": took, "kind": stopped, "detail": ""})
    return ProbeResult(
        connection=connection,
        started_at=at,
        finished_at=at + dt.timedelta(seconds=2),
        trigger="schedule",
        passed=not kind,
        error_kind=kind,
        latency_ms=sum(rung["ms"] or 0 for rung in rungs),
        rungs=rungs,
    )


def _sessions(
    now: dt.datetime,
    people: dict[str, User],
    support: Workspace,
    connections: dict[str, Connection],
) -> dict[str, ChatSession]:
    chats = []
    for who, title, slug, shared, days in SESSIONS:
        connection = connections[slug]
        chat = _chat(now - dt.timedelta(days=days), people[who], support, connection, title)
        chat.shared = shared
        chat.save(update_fields=["shared"])
        _turn(chat, 1, people[who], QUESTION if days < 0.05 else title, [_text(TABLE)])
        chats.append(chat)
        # What Carol was answered is news for Ana, who followed it before.
        Seen.objects.create(user=people["ana"], chat=chat, number=0 if who == "carol" else 1)
    Flag.objects.create(chat=chats[0], user=people["ana"])
    Flag.objects.create(chat=chats[2], user=people["ana"])
    ana = people["ana"]
    running = _running(now, ana, support, connections["anthropic"])
    failed = _chat(now, ana, support, connections["openai"], "A note for the Lisbon opening")
    _turn(
        failed,
        1,
        ana,
        "Write a short note for the opening of the Lisbon shop on Friday.",
        [],
        state=Turn.State.FAILED,
        error="quota",
    )
    fresh = ChatSession.objects.create(workspace=support, owner=ana)
    return {"session": chats[0], "running": running, "failed": failed, "fresh": fresh}


def _chat(
    at: dt.datetime, owner: User, space: Workspace, connection: Connection, title: str
) -> ChatSession:
    return ChatSession.objects.create(
        workspace=space,
        owner=owner,
        connection=connection,
        locked_at=at,
        created_at=at,
        updated_at=at,
        model=connection.default_model,
        title=title,
        title_is_final=True,
    )


def _text(text: str) -> dict[str, Any]:
    return {"t": "text", "text": text}


def _tool(id_: str, tool: str, args: dict[str, Any], result: str) -> list[dict[str, Any]]:
    """A call of the server “Parcels”, and what it gave."""
    name = f"parcels__{tool}"
    call = {"t": "tool_call", "id": id_, "name": name, "args": args}
    return [
        call | {"server": "Parcels", "tool": tool},
        {"t": "tool_result", "id": id_, "name": name, "text": result, "ms": 412},
    ]


def _turn(
    chat: ChatSession,
    number: int,
    who: User,
    text: str,
    parts: list[dict[str, Any]],
    *,
    state: str = Turn.State.DONE,
    error: str = "",
) -> Turn:
    at = chat.updated_at
    is_over = state not in Turn.ACTIVE
    turn = Turn.objects.create(
        chat=chat,
        number=number,
        state=state,
        model=chat.model,
        started_by=who,
        created_at=at,
        started_at=at,
        ended_at=at + dt.timedelta(seconds=9) if is_over else None,
        request_sent=True,
        step=1,
        error_kind=error,
        input_tokens=3_180 if parts else 0,
        output_tokens=412 if parts else 0,
        context_tokens=3_592 if parts else 0,
        cost=Decimal("0.015720") if parts else None,
    )
    said = {"chat": chat, "turn": turn, "created_at": at}
    Message.objects.create(
        **said, seq=number * 10, role="user", author=who, text=text, delivery="sent"
    )
    if parts:
        written = "".join(part["text"] for part in parts if part["t"] == "text")
        Message.objects.create(
            **said,
            seq=number * 10 + 1,
            role="assistant",
            text=written,
            parts=parts,
            step=1,
            is_complete=is_over,
        )
    return turn


def _running(now: dt.datetime, ana: User, space: Workspace, connection: Connection) -> ChatSession:
    """A reply under way that no worker holds: its lease outlasts the picture."""
    chat = _chat(now, ana, space, connection, "Late parcels of this week")
    parts = [
        {"t": "thinking", "text": "The parcels of the week first, then their carriers.", "sig": ""},
        *_tool("a", "late", {"since": "Monday"}, "41 parcels, 33 of them with one carrier"),
        *_tool(
            "b",
            "carrier",
            {"name": "Norte Express"},
            "depot Zaragoza: closed since Tuesday",
        ),
        _text(
            "41 parcels are late, and **33 of them are with Norte Express**. Its depot in Zaragoza"
        ),
    ]
    turn = _turn(
        chat,
        1,
        ana,
        "Which parcels of this week are late, and is there one reason?",
        parts,
        state=Turn.State.RUNNING,
    )
    Turn.objects.filter(pk=turn.pk).update(lease_until=now + dt.timedelta(hours=1))
    for seq, (text, delivery) in enumerate(
        (
            ("Leave out what was sent before Monday, please.", "steering"),
            ("Then write a short mail to the customers concerned.", "queued"),
            ("And one to the carrier, less friendly.", "queued"),
        ),
        start=20,
    ):
        Message.objects.create(
            chat=chat, seq=seq, place=seq, role="user", author=ana, text=text, delivery=delivery
        )
    return chat


def _usage(
    chance: random.Random,
    now: dt.datetime,
    people: dict[str, User],
    space: Workspace,
    connections: dict[str, Connection],
) -> None:
    rows = []
    share = {"anthropic": 5, "bedrock-frankfurt": 2, "openrouter": 2, "workshop": 1}
    for days in range(45):
        day = (now - dt.timedelta(days=days)).date()
        if day.weekday() >= 5:
            continue
        for who in ("ana", "bob", "carol", "dan", "emma"):
            for slug, weight in share.items():
                turns = chance.randrange(0, 3 * weight)
                if not turns:
                    continue
                read, wrote = (
                    turns * chance.randrange(3_000, 9_000),
                    turns * chance.randrange(200, 900),
                )
                priced = slug != "workshop"
                cost = Decimal(read * 3 + wrote * 15) / 1_000_000 if priced else Decimal(0)
                rows.append(
                    UsageDay(
                        day=day,
                        workspace=space,
                        workspace_label=space.name,
                        connection=connections[slug],
                        connection_label=connections[slug].name,
                        person=people[who],
                        person_label=people[who].label,
                        model=connections[slug].default_model,
                        turns=turns,
                        input_tokens=read,
                        output_tokens=wrote,
                        cache_read_tokens=read // 3,
                        cost=cost,
                        unpriced=0 if priced else turns,
                    )
                )
    UsageDay.objects.bulk_create(rows)
    month = now.date().replace(day=1)
    used = [row for row in rows if row.day >= month]
    Budget.objects.create(
        workspace=space,
        month=month,
        soft_cost=30,
        hard_cost=40,
        cost=sum((row.cost for row in used), Decimal(0)),
        tokens=sum(row.input_tokens + row.output_tokens for row in used),
    )


def _candidate(now: dt.datetime, connection: Connection, ana: User) -> None:
    rungs = [
        {"rung": Rung.CONFIG, "outcome": Outcome.PASSED, "ms": 1, "kind": "", "detail": ""},
        {"rung": Rung.NETWORK, "outcome": Outcome.PASSED, "ms": 41, "kind": "", "detail": ""},
        {"rung": Rung.AUTH, "outcome": Outcome.FAILED, "ms": 118, "kind": "auth", "detail": ""},
        *(
            {"rung": rung, "outcome": Outcome.NOT_TESTED, "ms": None, "kind": "", "detail": ""}
            for rung in (Rung.MODELS, Rung.ANSWER, Rung.STREAM)
        ),
    ]
    SecretCandidate.objects.create(
        connection=connection,
        binding=connection.binding,
        value=Plain('{"api_key": "sk-or-v1-sample-of-the-guide-0f2e"}'),
        created_by=ana,
        asked_by=ana,
        created_at=now - dt.timedelta(minutes=2),
        expires_at=now + dt.timedelta(days=7),
        checked_at=now - dt.timedelta(minutes=2),
        state=SecretCandidate.State.FAILED,
        error_kind="auth",
        rungs=rungs,
    )


def _tools(now: dt.datetime, space: Workspace, ana: User) -> None:
    for name, prefix, tools in (
        ("Parcels", "parcels", {"late": "Late parcels", "carrier": "State of a carrier"}),
        ("Shop", "shop", {"order": "An order by its number", "stock": "What is in stock"}),
    ):
        server = ToolServer(
            workspace=space,
            name=name,
            prefix=prefix,
            url=f"https://{prefix}.example.com/mcp",
            listed_at=now - dt.timedelta(hours=2),
            created_by=ana,
            header_names=["Authorization"],
            tools=[
                {"name": key, "title": title, "description": f"{title}."}
                for key, title in tools.items()
            ],
        )
        server.binding = server.origin
        server.headers = Plain('{"Authorization": "Bearer sample-of-the-guide"}')
        server.save()
