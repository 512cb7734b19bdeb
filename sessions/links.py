"""What connections ask of sessions: how many point at one, and which one a session chose."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from django.db.models import Count

from connections.resolve import Choice
from sessions.models import ChatSession
from workspaces.models import Workspace


def count_sessions(connection_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, int]:
    """Sessions by connection; a connection without any isn't in it. One query."""
    chats = ChatSession.objects.filter(connection_id__in=list(connection_ids)).order_by()
    return dict(chats.values_list("connection_id").annotate(Count("pk")))


def find_choice(workspace: Workspace, session_id: uuid.UUID) -> Choice | None:
    """What a session of this workspace says; None when it has no such session. One query."""
    chat = ChatSession.objects.filter(workspace=workspace, pk=session_id).first()
    return Choice(chat.connection_id, chat.locked_at) if chat else None
