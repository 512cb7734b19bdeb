"""Puts every hostile text in every place that shows one: `manage.py shell` calls `tell` in the
environment of the server whose pages are then looked at. Rows are written past the forms: a form
that refuses one of them today may not tomorrow."""

from __future__ import annotations

import itertools
import json

from django.utils import timezone

from connections.models import Connection, ProbeResult
from sessions.models import ChatSession, Message, Turn
from tests.builders import make_connection, make_workspace
from tests.e2e.hostile_texts import texts
from workspaces.models import AuditEvent, Membership, User, Workspace

ROWS = 3  # connections that are looked at one by one


def make() -> dict[str, list[str]]:
    """The addresses on which everything is to be seen."""
    corpus = texts()
    alice = User.objects.get(is_superuser=True)
    support = Workspace.objects.get(slug="support")
    connections = _connections(corpus, alice)
    first = connections[0]
    pages = [f"/connections/?page={number}" for number in range(1, len(connections) // 100 + 2)]
    for connection in (*connections[:ROWS], Connection.objects.get(slug="everything")):
        for part in ("", "edit/", "delete/confirm/"):
            pages.append(f"/connections/{connection.slug}/{part}")
    for number, text in enumerate(corpus[:90]):
        make_workspace(f"space-{number}", name=text[:100] or "x", instructions=text)
    User.objects.filter(pk=alice.pk).update(name=corpus[0][:150])

    for number, text in enumerate(corpus):  # titles
        ChatSession.objects.create(
            workspace=support, owner=alice, title=text[:200], shared=bool(number % 2)
        )
    pages += [f"/w/support/?page={number}" for number in range(1, len(corpus) // 50 + 2)]
    pages += ["/w/support/settings/ai/", "/w/support/settings/ai/everything/models/", "/w/space-1/"]

    size = 30
    for batch in itertools.batched(corpus, size, strict=False):
        pages.append(_session(support, alice, first, batch).get_absolute_url())
    fresh = ChatSession.objects.create(workspace=support, owner=alice, title=corpus[1][:200])
    pages.append(fresh.get_absolute_url())  # the cards of all connections

    for text in corpus:
        AuditEvent.objects.create(
            actor_label=text[:254],
            action=text[:60],
            target_type=text[:40],
            target_id=text[:64],
            target_label=text[:254],
            details={text[:50]: text},
        )
    members = Membership.objects.filter(workspace=support)
    person = User.objects.create_user("eve@example.com", name=corpus[2][:150])
    Membership.objects.create(workspace=support, user=person)
    admin = [
        *("workspaces/user/", "workspaces/workspace/", "workspaces/membership/"),
        *("workspaces/auditevent/", "workspaces/auditevent/?p=1", "connections/connection/"),
        *("connections/proberesult/", "agent_sessions/chatsession/", "agent_sessions/message/"),
        *("agent_sessions/turn/", "agent_sessions/attachment/"),
        f"workspaces/workspace/{Workspace.objects.get(slug='space-1').pk}/change/",
        f"workspaces/membership/{members[0].pk}/change/",
        f"workspaces/user/{alice.pk}/change/",
        f"workspaces/auditevent/{AuditEvent.objects.first().pk}/change/",
        f"connections/connection/{first.pk}/change/",
        f"connections/proberesult/{ProbeResult.objects.first().pk}/change/",
        f"agent_sessions/message/{Message.objects.first().pk}/change/",
        f"agent_sessions/turn/{Turn.objects.first().pk}/change/",
    ]
    return {"pages": pages, "admin": [f"/admin/{page}" for page in admin]}


def _connections(corpus: list[str], alice: User) -> list[Connection]:
    found = []
    for number, text in enumerate(corpus):
        found.append(
            make_connection(
                f"hostile-{number}",
                key="k" if number < ROWS else None,
                name=text[:64] or "x",
                note=corpus[number - 1][:500],
                models=[corpus[number - 2][:200]],
                default_model=corpus[number - 2][:200],
                paused_message=corpus[number - 3][:200],
                health="failed",
                health_error=text[:24],
                enabled=bool(number % 3),
                created_by=alice,
            )
        )
    everything = make_connection("everything", models=[text[:200] for text in corpus])
    now = timezone.now()
    for connection in (*found[:ROWS], everything):
        for batch in itertools.batched(corpus, 60, strict=False):
            ProbeResult.objects.create(
                connection=connection,
                finished_at=now,
                passed=False,
                error_kind="auth",
                rungs=[
                    {"rung": "auth", "outcome": "failed", "ms": 3, "kind": "auth", "detail": text}
                    for text in batch
                ],
            )
    return found


def _session(support: Workspace, alice: User, connection: Connection, batch: tuple[str, ...]):
    """A turn for each text: what a person said, what the model thought, called and answered, and
    the provider's words of an error."""
    chat = ChatSession.objects.create(
        workspace=support,
        owner=alice,
        title=batch[0][:200],
        connection=connection,
        locked_at=timezone.now(),
        model=batch[0][:200],
    )
    seq = itertools.count(1)
    for number, text in enumerate(batch, 1):
        turn = Turn.objects.create(
            chat=chat,
            number=number,
            state="failed" if number % 2 else "done",
            error_kind="bad_request",
            error_detail=text[:600],
            model=text[:200],
            started_by=alice,
        )
        Message.objects.create(
            chat=chat, seq=next(seq), role="user", author=alice, text=text, turn=turn
        )
        parts = [
            {"t": "thinking", "text": text, "sig": ""},
            {"t": "text", "text": text},
            {"t": "tool_call", "id": "c", "name": text[:60], "args": {text[:60]: text}},
            {"t": "tool_result", "id": "c", "name": text[:60], "text": text},
        ]
        Message.objects.create(
            chat=chat,
            seq=next(seq),
            role="assistant",
            text=text,
            parts=parts,
            turn=turn,
            step=1,
            is_complete=True,
        )
    for text in batch:
        place = next(seq)
        Message.objects.create(
            chat=chat,
            seq=place,
            place=place,
            role="user",
            author=alice,
            text=text,
            delivery="queued",
        )
    ChatSession.objects.filter(pk=chat.pk).update(queue_paused="auth")
    return chat


def tell() -> None:
    print(json.dumps(make()))
