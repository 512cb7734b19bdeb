"""Another version of a conversation, from one of its turns on.

What was said stays as it was said: an edited message, or an answer that is asked for again, makes a
new session with the turns before it. It shows a seam with a link back; the first one shows a link
at the turn that was asked again.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _

from connections.models import Connection
from connections.resolve import Choice
from sessions import choosing, continuing, doorbell, limits, locking, sending
from sessions.images import CheckedImage
from sessions.models import ChatSession, Message, Turn
from sessions.refusals import Refused
from sessions.texts import clean_text, storable_key
from workspaces import audit
from workspaces.models import User


def first_message(chat: ChatSession, message_id: uuid.UUID) -> Message | None:
    """The message, where it began a turn of this session: what can be edited and sent again. One
    that was steered into a turn, or is on its way there, isn't."""
    messages = Message.objects.filter(chat=chat, role=Message.Role.USER, turn__isnull=False, step=0)
    messages = messages.filter(delivery=Message.Delivery.SENT).select_related("turn")
    return messages.filter(pk=message_id).first()


def send_edited(
    message: Message,
    actor: User,
    text: str,
    *,
    client_key: str = "",
    images: Sequence[CheckedImage] = (),
    files: Sequence[Mapping[str, Any]] = (),
    model: str = "",
) -> ChatSession:
    """A new session with the turns before `message`'s, in which `text` is sent in its place; with
    `model`, one of the connection's, answered by that one.

    The same again, with the same `client_key`, gives the same session: another text or model, from
    a page that one went back to, gives another. Raises `Refused`, and then nothing was made.
    Locks the session.
    """
    turn = message.turn
    assert turn is not None
    with continuing.copying() as made:
        chat = locking.lock(message.chat_id)
        sent = {"model": model or chat.model, "messages__text": clean_text(text)}
        if same := _made_before(chat, actor, client_key, **sent):
            return same
        connection = _usable(chat, actor)
        new = _begin(chat, actor, connection, turn.number, until=turn.number - 1, files=made)
        if model and model != new.model:
            choosing.choose_model(new.pk, actor, model)
        sending.send(new.pk, actor, text, client_key=client_key, images=images, files=files)
        return new


def regenerate(
    chat_id: uuid.UUID, actor: User, number: int, *, client_key: str = ""
) -> ChatSession:
    """A new session in which the last turn, `number`, is asked again: all that people said in it
    stays, what the model said is left in the first session.

    The same `client_key` again gives the same session. Raises `Refused`. Locks the session.
    """
    with continuing.copying() as made:
        chat = locking.lock(chat_id)
        if same := _made_before(chat, actor, client_key):
            return same
        last = Turn.objects.filter(chat=chat).order_by("-number").first()
        if last is None or last.number != number or last.state != Turn.State.DONE:
            raise Refused(
                "not_last", _("Only the last answer can be asked for again, when it is done.")
            )
        connection = _usable(chat, actor)
        limits.check_budget(chat)
        limits.check_running(actor)
        new = _begin(chat, actor, connection, number, until=number, files=made)
        again = continuing.ask_again(new, actor)
        said = Message.objects.filter(turn=again).order_by("seq").first()
        if said is not None and client_key:
            said.client_key = storable_key(client_key)
            said.save(update_fields=["client_key"])
        doorbell.ring(again)
        return new


def _made_before(
    chat: ChatSession, actor: User, client_key: str, **sent: str
) -> ChatSession | None:
    if not client_key:
        return None
    made = ChatSession.objects.filter(continued_from=chat, owner=actor, doomed_at=None)
    return made.filter(messages__client_key=storable_key(client_key), **sent).first()


def _usable(chat: ChatSession, actor: User) -> Connection:
    locking.check_there(chat)
    connection = choosing.resolved(
        chat, actor, Choice(chat.connection_id, chat.locked_at)
    ).connection
    assert connection is not None
    return connection


def _next_number(chat: ChatSession) -> int:
    """One more than the versions of this conversation that there are, whoever made them. A query
    for each generation of them: up to the first session, and down again."""
    first = chat
    while first.nth_version and first.continued_from is not None:
        first = first.continued_from
    highest, parents = max(1, first.nth_version), [first.pk]
    while parents:
        made = ChatSession.objects.filter(continued_from__in=parents, nth_version__gt=0)
        numbers = dict(made.order_by().values_list("pk", "nth_version"))
        highest, parents = max(highest, *numbers.values(), 0), list(numbers)
    return highest + 1


def _begin(
    chat: ChatSession,
    actor: User,
    connection: Connection,
    number: int,
    *,
    until: int,
    files: list[str],
) -> ChatSession:
    """The new session, on the same connection, with the turns up to `until`."""
    new = continuing.begin_from(
        chat, actor, connection, chat.model, number - 1, nth_version=_next_number(chat)
    )
    continuing.copy(chat, new, connection, files, until=until)
    locking.changed(chat)
    audit.record(
        actor,
        "session.version",
        new,
        workspace_id=chat.workspace_id,
        label=str(new.pk),
        came_from=str(chat.pk),
        turn=number,
    )
    return new
