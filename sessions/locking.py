"""A session's row under its lock, where every change of a session begins and ends.

`lock` inside `atomic()` first (on SQLite the IMMEDIATE transaction is the lock), then what belongs
to the session, then `changed`. No transaction spans a provider call.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.utils.translation import gettext as _

from sessions import bus
from sessions.models import ChatSession, Message, Turn
from sessions.refusals import Refused
from workspaces.statements import Select, update


def lock(chat_id: uuid.UUID) -> ChatSession:
    """The session's row, locked until the transaction's end. Call inside `atomic()`.

    Its connection isn't joined: who waited for the lock would get the row of before, since only
    what is locked is read again.
    """
    chat = _LOCKED.first(chat_id)
    if chat is None:
        raise ChatSession.DoesNotExist
    return chat


_LOCKED = Select(
    lambda chat_id: (
        ChatSession.objects.select_for_update(of=("self",))
        .select_related("workspace")
        .filter(pk=chat_id)
    )
)


def check_there(chat: ChatSession) -> None:
    """Raises `Refused` when the session is being deleted: who held its page may not know yet."""
    if chat.doomed_at is not None:
        raise Refused("gone", _("This session is being deleted."))


def changed(
    chat: ChatSession, *fields: str, event: str = "changed", said: Mapping[str, Any] | None = None
) -> None:
    """Counts the change, tells open pages after the commit, and has the search look. One UPDATE."""
    chat.version += 1
    chat.search_due = True
    update(chat, "version", "search_due", *fields)
    chat_id, data = chat.pk, {"v": chat.version, **(said or {})}
    transaction.on_commit(lambda: bus.publisher.publish(chat_id, event, data))


def active_turn(chat: ChatSession) -> Turn | None:
    return _ACTIVE.first(chat.pk)


_ACTIVE = Select(lambda chat_id: Turn.objects.filter(chat_id=chat_id, state__among=Turn.ACTIVE)[:1])


def next_seq(chat: ChatSession) -> int:
    return (_TOP_SEQ.first(chat.pk) or (0,))[0] + 1


_TOP_SEQ = Select(
    lambda chat_id: (
        Message.objects.filter(chat_id=chat_id).order_by("-seq").values_list("seq", "place")[:1]
    )
)
