"""What answers in a session: its connection, which the first message locks, the model among that
connection's, and how the model is asked."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from connections.capabilities import capabilities, usable_models
from connections.models import Connection, WorkspaceConnection
from connections.resolve import Candidates, Choice, Resolution, resolve
from sessions import locking
from sessions.models import ChatSession
from sessions.refusals import Locked, Refused
from workspaces import audit
from workspaces.models import User

LEAST_OUTPUT = 256  # tokens that a reply may be bound to


def resolved(
    chat: ChatSession, actor: User, choice: Choice, among: Candidates | None = None
) -> Resolution:
    """The resolution, or `Refused` with the reason in the words that the person may act on."""
    resolution = resolve(chat.workspace, choice, among=among)
    if resolution.refusal is not None:
        raise Refused(resolution.refusal, resolution.refusal_text(admin=actor.is_instance_admin))
    return resolution


def lock_connection(chat: ChatSession, actor: User) -> tuple[Connection, tuple[str, ...]]:
    """Resolves and locks the session's connection at its first message, or checks that the locked
    one can be used. Returns it, and the fields of the session that the caller is to write. Under
    the session's lock. Raises `Refused`."""
    among = Candidates.of(chat.workspace, only=chat.connection_id)
    resolution = resolved(chat, actor, Choice(chat.connection_id, chat.locked_at), among)
    connection = resolution.connection
    assert connection is not None
    if chat.locked_at is not None:
        return connection, ()
    chat.connection = connection
    if chat.model not in usable_models(connection, among.rows.get(connection.pk)):
        chat.model = resolution.model
    chat.locked_at = timezone.now()
    audit.record(
        actor,
        "session.lock",
        chat,
        workspace_id=chat.workspace_id,
        label=str(chat.pk),
        connection=connection.slug,
        rule=str(resolution.rule),
    )
    return connection, ("connection", "model", "locked_at")


@transaction.atomic
def choose_connection(chat_id: uuid.UUID, actor: User, connection: Connection | None) -> None:
    """The choice before the first message; None goes back to the defaults. Raises `Locked`
    afterwards, `Refused` when the connection can't be used here. Locks the session."""
    chat = locking.lock(chat_id)
    if chat.locked_at is not None:
        raise Locked(
            "locked",
            _("This session is locked to its connection since the first message."),
        )
    if connection is not None:
        resolved(chat, actor, Choice(connection.pk))
    chat.connection = connection
    chat.model = ""
    locking.changed(chat, "connection", "model")


@transaction.atomic
def choose_model(chat_id: uuid.UUID, actor: User, model: str) -> None:
    """Another model of the same connection, from the next turn on. Raises `Refused`."""
    chat = locking.lock(chat_id)
    connection = chat.connection or resolved(chat, actor, Choice()).connection
    assert connection is not None
    if model not in _models(chat, connection):
        raise Refused(
            "model", _("%(model)s isn't among this connection's models here.") % {"model": model}
        )
    chat.model = model
    locking.changed(chat, "model")


def _models(chat: ChatSession, connection: Connection) -> list[str]:
    row = WorkspaceConnection.objects.filter(
        workspace_id=chat.workspace_id, connection=connection
    ).first()
    return usable_models(connection, row)


@transaction.atomic
def choose_options(chat_id: uuid.UUID, actor: User, wanted: Mapping[str, str]) -> None:
    """How hard the model thinks (`thinking`, a level or "" for its own way) and how long a reply
    may be (`max_output`, tokens or "" for the default), from the next turn on; what isn't named
    stays. Raises `Refused`. Locks the session."""
    chat = locking.lock(chat_id)
    connection, model = chat.connection, chat.model
    if connection is None or not model:
        resolution = resolved(chat, actor, Choice(chat.connection_id, chat.locked_at))
        connection, model = resolution.connection, model or resolution.model
        assert connection is not None
    can = capabilities(connection, model)
    thinking, tokens = wanted.get("thinking"), wanted.get("max_output")
    if thinking and thinking not in can.thinking and thinking != chat.thinking:
        raise Refused("thinking", _("This model doesn't take that level of thinking."))
    if thinking is not None:
        chat.thinking = thinking
    if tokens is not None:
        chat.max_output = _output_tokens(tokens, can.longest_output) if tokens.strip() else None
    locking.changed(chat, "thinking", "max_output")


def _output_tokens(text: str, most: int) -> int:
    least = min(LEAST_OUTPUT, most)
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 9 and least <= int(text) <= most):
        raise Refused(
            "max_output",
            _("The longest output is a number of tokens from %(least)d to %(most)d.")
            % {"least": least, "most": most},
        )
    return int(text)
