"""What connections ask of sessions: how many point at one, which one a session chose, who uses one
now, and what was used."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.db.models import Count, F, OuterRef, QuerySet, Subquery, Sum
from django.urls import reverse

from connections.registry import Dependents, Live, LiveTurn, Used
from connections.resolve import Choice
from sessions import turns
from sessions.models import ChatSession, Message, Turn, UsageDay
from workspaces.audit import record
from workspaces.models import User, Workspace


def count_dependents(connection_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Dependents]:
    """Three queries. A session that chose a connection but isn't locked counts too."""
    ids = list(connection_ids)

    def counted(rows: QuerySet[Any], connection: str) -> dict[uuid.UUID, int]:
        found = rows.filter(**{f"{connection}__in": ids}).order_by()
        return dict(found.values_list(connection).annotate(Count("pk")))

    chats = counted(ChatSession.objects.all(), "connection")
    waiting = counted(Message.objects.filter(delivery__among=Message.WAITING), "chat__connection")
    running = counted(Turn.objects.filter(state__among=Turn.ACTIVE), "chat__connection")
    return {
        pk: Dependents(count, waiting.get(pk, 0), running.get(pk, 0)) for pk, count in chats.items()
    }


def find_choice(workspace: Workspace, session_id: uuid.UUID) -> Choice | None:
    """What a session of this workspace says; None when it has no such session. One query."""
    chat = ChatSession.objects.filter(workspace=workspace, pk=session_id).first()
    return Choice(chat.connection_id, chat.locked_at) if chat else None


# -- who uses a connection now ---------------------------------------------------------------------


def find_live(connection_id: uuid.UUID, viewer: User, most: int) -> Live:
    """The replies under way on a connection, the longest first. Whoever asks may see workspace and
    person; a title only of what is theirs to read. Three queries, over what is active or waits."""
    active = Turn.objects.filter(state__among=Turn.ACTIVE, chat__connection=connection_id)
    found = active.order_by("created_at", "pk").annotate(
        used=F("input_tokens") + F("output_tokens")
    )
    rows = found.select_related("chat__workspace", "chat__owner", "started_by")[:most]
    # Not a join: the database would begin with every session of the connection instead of with
    # the few messages that wait.
    chat = ChatSession.objects.filter(pk=OuterRef("chat")).order_by().values("connection")
    waiting = Message.objects.filter(delivery__among=Message.WAITING).alias(on=Subquery(chat))
    return Live(
        [_live_turn(turn, viewer) for turn in rows],
        active.count(),
        waiting.filter(on=connection_id).count(),
    )


def _live_turn(turn: Turn, viewer: User) -> LiveTurn:
    chat = turn.chat
    may_read = chat.owner_id == viewer.pk or chat.shared
    return LiveTurn(
        id=turn.pk,
        workspace=chat.workspace.name,
        person=str(turn.started_by or chat.owner),
        since=turn.started_at or turn.created_at,
        is_running=turn.state == Turn.State.RUNNING,
        is_stopping=turn.stop_requested_at is not None,
        tokens=turn.used,  # type: ignore[attr-defined]
        title=chat.heading if may_read else "",
        url=reverse("sessions:detail", args=[chat.workspace.slug, chat.pk]) if may_read else "",
        is_private=not may_read,
    )


def stop_live(connection_id: uuid.UUID, turn_id: uuid.UUID | None, actor: User) -> int:
    """Asks for the end of one reply on this connection, or of each that is under way now; how many
    were. What waits behind one goes on. One transaction a reply, with its audit row."""
    active = Turn.objects.filter(state__among=Turn.ACTIVE, chat__connection=connection_id)
    active = active.filter(stop_requested_at=None)
    if turn_id is not None:
        active = active.filter(pk=turn_id)
    stopped = 0
    for turn in active.select_related("chat__connection", "started_by"):
        with transaction.atomic():
            turns.stop(turn.chat_id, actor, queued="continue", turn_id=turn.pk)
            if not Turn.objects.filter(pk=turn.pk, stop_requested_at__isnull=False).exists():
                continue  # it had ended by itself
            # On the connection: a session's title may be nobody else's to read.
            record(
                actor,
                "session.stop",
                turn.chat.connection,
                workspace_id=turn.chat.workspace_id,
                session=str(turn.chat_id),
                person=turn.started_by.email if turn.started_by else "",
            )
        stopped += 1
    return stopped


def add_usage(column: str, key: uuid.UUID, first: dt.date) -> Used:
    """What turns used from a day on. One query over those days' rows."""
    rows = UsageDay.objects.filter(**{column: key}, day__gte=first).order_by()
    names = ("cost", "input_tokens", "output_tokens", "unpriced", "covered")
    sums = rows.aggregate(**{f"sum_{name}": Sum(name) for name in names})
    cost, read, written, unpriced, covered = (sums[f"sum_{name}"] or 0 for name in names)
    return Used(Used().cost + cost, read + written, unpriced, covered)
