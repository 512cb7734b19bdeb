"""A session as a file: Markdown to read and hand on, JSON for programs. Nothing of a connection's
secrets or addresses is in it, nor what only a provider can read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import gettext as _

from sessions.models import ChatSession, Message

# Of a part what a program may want; `sig`, say, is a provider's own.
_KEPT = ("t", "text", "id", "name", "args", "is_error", "file")


def as_json(chat: ChatSession) -> str:
    """{id, title, workspace, owner, created_at, connection, model, messages: [{id, role, author,
    at, turn, step, model, delivery, text, parts, images}]}, in the transcript's order."""
    connection = chat.connection
    whole = {
        "id": str(chat.pk),
        "title": chat.title,
        "workspace": chat.workspace.slug,
        "owner": chat.owner.email,
        "created_at": chat.created_at.isoformat(),
        "connection": {"slug": connection.slug, "name": connection.name} if connection else None,
        "model": chat.model,
        "messages": [_message(message) for message in _messages(chat)],
    }
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def as_markdown(chat: ChatSession) -> str:
    """A heading for each message, then its text as it was written."""
    connection = chat.connection.name if chat.connection else _("no connection")
    lines = [
        f"# {_one_line(chat.heading)}",
        "",
        _("%(workspace)s, %(connection)s, %(model)s; begun %(when)s")
        % {
            "workspace": chat.workspace.name,
            "connection": connection,
            "model": chat.model or "–",
            "when": date_format(localtime(chat.created_at), "DATETIME_FORMAT"),
        },
        "",
    ]
    for message in _messages(chat):
        when = date_format(localtime(message.created_at), "DATETIME_FORMAT")
        lines += [f"## {_one_line(_who(message))}, {when}", ""]
        lines += [*_attached(message), message.text.rstrip(), ""]
    return "\n".join(lines)


def _messages(chat: ChatSession) -> Iterator[Message]:
    """In the transcript's order; what was cancelled isn't in it, what waits comes last. Two
    queries."""
    messages = chat.messages.exclude(delivery=Message.Delivery.CANCELLED)
    found = list(messages.select_related("author", "turn").prefetch_related("attachments"))
    found.sort(
        key=lambda m: (
            (0, m.turn.number, m.step, m.role, m.place, m.seq)
            if m.turn
            else (1, 0, 0, "", m.place, m.seq)
        )
    )
    return iter(found)


def _message(message: Message) -> dict[str, Any]:
    return {
        "id": str(message.pk),
        "role": message.role,
        "author": message.author.email if message.author else None,
        "at": message.created_at.isoformat(),
        "turn": message.turn.number if message.turn else None,
        "step": message.step,
        "model": message.turn.model if message.turn and message.role == "assistant" else None,
        "delivery": message.delivery,
        "text": message.text,
        "parts": [{k: part[k] for k in _KEPT if k in part} for part in message.parts],
        "images": [attachment.name for attachment in message.attachments.all()],
    }


def _who(message: Message) -> str:
    if message.role == Message.Role.ASSISTANT:
        return message.turn.model if message.turn and message.turn.model else _("Assistant")
    return message.author.label if message.author else _("Somebody")


def _attached(message: Message) -> Iterator[str]:
    for attachment in message.attachments.all():
        yield _("[image: %(name)s]") % {"name": _one_line(attachment.name)}
    for file in message.files:
        yield _("[file: %(name)s]") % {"name": _one_line(file.name)}


def _one_line(text: str) -> str:
    return " ".join(text.split())
