"""What connections ask of sessions: how many point at one, which one a session chose, and what was
used."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from typing import Any

from django.db.models import Count, QuerySet, Sum

from connections.registry import Dependents, Used
from connections.resolve import Choice
from sessions.models import ChatSession, Message, Turn, UsageDay
from workspaces.models import Workspace


def count_dependents(connection_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Dependents]:
    """Three queries. A session that chose a connection but isn't locked counts too."""
    ids = list(connection_ids)

    def counted(rows: QuerySet[Any], connection: str) -> dict[uuid.UUID, int]:
        found = rows.filter(**{f"{connection}__in": ids}).order_by()
        return dict(found.values_list(connection).annotate(Count("pk")))

    chats = counted(ChatSession.objects.all(), "connection")
    waiting = counted(Message.objects.filter(delivery__in=Message.WAITING), "chat__connection")
    running = counted(Turn.objects.filter(state__in=Turn.ACTIVE), "chat__connection")
    return {
        pk: Dependents(count, waiting.get(pk, 0), running.get(pk, 0)) for pk, count in chats.items()
    }


def find_choice(workspace: Workspace, session_id: uuid.UUID) -> Choice | None:
    """What a session of this workspace says; None when it has no such session. One query."""
    chat = ChatSession.objects.filter(workspace=workspace, pk=session_id).first()
    return Choice(chat.connection_id, chat.locked_at) if chat else None


def add_usage(column: str, key: uuid.UUID, first: dt.date) -> Used:
    """What turns used from a day on. One query over those days' rows."""
    rows = UsageDay.objects.filter(**{column: key}, day__gte=first).order_by()
    names = ("cost", "input_tokens", "output_tokens", "unpriced", "covered")
    sums = rows.aggregate(**{f"sum_{name}": Sum(name) for name in names})
    cost, read, written, unpriced, covered = (sums[f"sum_{name}"] or 0 for name in names)
    return Used(Used().cost + cost, read + written, unpriced, covered)
