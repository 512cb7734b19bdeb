"""What connections ask of sessions: how many point at one, and which one a session chose."""

from __future__ import annotations

import uuid

from connections.registry import Dependents
from connections.resolve import Choice
from sessions.models import ChatSession, Message, Turn
from workspaces.models import Workspace


def count_dependents(connection_id: uuid.UUID) -> Dependents:
    """Three queries. A session that chose a connection but isn't locked counts too."""
    chats = ChatSession.objects.filter(connection_id=connection_id)
    waiting = Message.objects.filter(
        chat__connection_id=connection_id, delivery__in=Message.WAITING
    )
    running = Turn.objects.filter(chat__connection_id=connection_id, state__in=Turn.ACTIVE)
    return Dependents(chats.count(), waiting.count(), running.count())


def find_choice(workspace: Workspace, session_id: uuid.UUID) -> Choice | None:
    """What a session of this workspace says; None when it has no such session. One query."""
    chat = ChatSession.objects.filter(workspace=workspace, pk=session_id).first()
    return Choice(chat.connection_id, chat.locked_at) if chat else None
