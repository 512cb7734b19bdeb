"""Going on with a session on another connection: a new session with the same transcript.

A session stays with its connection for good; what happens instead is seen by everybody: the new one
shows a seam with a link back, the old one a link on.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from django.core.files.storage import default_storage
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from connections.models import Connection
from connections.resolve import Candidates, Choice, Usable, resolve
from sessions import doorbell, limits, locking, queueing, turns
from sessions.models import Attachment, ChatSession, Message, Turn, attachment_path
from sessions.refusals import Refused
from workspaces import audit
from workspaces.models import User


def successors(chat: ChatSession, among: Candidates) -> list[Usable]:
    """The connections on which a locked session could go on; first the one that was named when its
    own was deleted."""
    found = [one for one in among.usable() if one.connection.pk != chat.connection_id]
    heir = chat.connection.successor_id if chat.connection else None
    return sorted(found, key=lambda one: one.connection.pk != heir)


def continue_on(chat_id: uuid.UUID, actor: User, connection: Connection | None) -> ChatSession:
    """The session's continuation on `connection`, or on the one that its workspace would use now.

    The last turn is asked again there unless it was done, and what waited goes along. Pressed
    twice, it is one continuation: one in which nobody has written yet is given back. Raises
    `Refused`. Locks the session.
    """
    with copying() as files:
        return _continue(chat_id, actor, connection, files)


@contextlib.contextmanager
def copying() -> Iterator[list[str]]:
    """A transaction that copies images, and the names of the files it has made."""
    files: list[str] = []
    try:
        with transaction.atomic():
            transaction.on_commit(files.clear)
            yield files
    finally:
        # No transaction covers the disk: a new session that failed leaves no file there.
        for name in files:
            default_storage.delete(name)


def _continue(
    chat_id: uuid.UUID, actor: User, connection: Connection | None, files: list[str]
) -> ChatSession:
    chat = locking.lock(chat_id)
    locking.check_there(chat)
    if not chat.is_locked:
        raise Refused(
            "not_locked", _("This session isn't locked yet: choose another connection in it.")
        )
    if locking.active_turn(chat) is not None:
        raise Refused("active", _("Wait for the reply to end, or stop it, then go on."))
    target, model = _target(chat, connection)
    last = Turn.objects.filter(chat=chat).order_by("-number").first()
    number = last.number if last else 0
    is_whole = last is None or last.state == Turn.State.DONE
    kept = number if is_whole else number - 1  # the turns that aren't asked again
    before = ChatSession.objects.filter(
        continued_from=chat, connection=target, owner=actor, continued_turns=kept, doomed_at=None
    ).order_by("-created_at")
    for one in before[:1]:
        if not Turn.objects.filter(chat=one, number__gt=number).exists():
            return one
    if not is_whole or queueing.waiting(chat).exists():  # then a reply begins at once
        limits.check_budget(chat, target.pk)
        limits.check_running(actor)
    new = begin_from(chat, actor, target, model, kept)
    copy(chat, new, target, files, until=number)
    again = None if is_whole else ask_again(new, actor)
    _take_along(chat, new)
    locking.changed(chat)
    audit.record(
        actor,
        "session.continue",
        new,
        workspace_id=chat.workspace_id,
        label=str(new.pk),
        came_from=str(chat.pk),
        connection=target.slug,
    )
    if again is not None:
        doorbell.ring(again)
    else:
        queueing.advance(new)
    return new


def begin_from(
    chat: ChatSession,
    actor: User,
    connection: Connection,
    model: str,
    kept: int,
    *,
    nth_version: int = 0,
) -> ChatSession:
    """A session of the actor's that goes on after the first `kept` turns of another, none of which
    is in it yet."""
    return ChatSession.objects.create(
        workspace=chat.workspace,
        owner=actor,
        shared=chat.shared and chat.owner_id == actor.pk,
        read_only=chat.read_only,
        connection=connection,
        locked_at=timezone.now(),
        model=model,
        title=chat.title,
        title_is_final=True,
        thinking=chat.thinking,
        max_output=chat.max_output,
        continued_from=chat,
        continued_turns=kept,
        nth_version=nth_version,
    )


def _target(chat: ChatSession, connection: Connection | None) -> tuple[Connection, str]:
    if connection is not None:
        if connection.pk == chat.connection_id:
            raise Refused("connection", _("Choose another connection than this session's."))
        resolution = resolve(chat.workspace, Choice(connection.pk))
        if resolution.connection is None:
            raise Refused("connection", resolution.refusal_text(admin=False))
        return resolution.connection, resolution.model
    among = Candidates.of(chat.workspace)
    found = successors(chat, among)
    chosen = resolve(chat.workspace, among=among).connection
    heir = chat.connection.successor_id if chat.connection else None
    first = heir or (chosen.pk if chosen else None)
    for one in sorted(found, key=lambda one: one.connection.pk != first):
        return one.connection, one.first_model
    raise Refused("connection", _("No other connection can be used in this workspace now."))


def copy(
    chat: ChatSession, new: ChatSession, target: Connection, files: list[str], *, until: int
) -> None:
    """Turns up to `until` and their messages under new ids, without what only the provider of
    before can read, and without their cost, which was counted once."""
    same = _speaks(chat.connection) == _speaks(target)
    numbers: dict[uuid.UUID, Turn] = {}
    for turn in Turn.objects.filter(chat=chat, number__lte=until).order_by("number"):
        numbers[turn.pk] = Turn(
            chat=new,
            number=turn.number,
            state=turn.state,
            model=turn.model,
            started_by_id=turn.started_by_id,
            created_at=turn.created_at,
            started_at=turn.started_at,
            ended_at=turn.ended_at,
            step=turn.step,
            error_kind=turn.error_kind,
        )
    Turn.objects.bulk_create(numbers.values(), batch_size=200)
    said = (
        Message.objects.filter(chat=chat, turn__number__lte=until)
        .exclude(delivery__among=Message.WAITING)
        .prefetch_related("attachments")
        .order_by("seq")
    )
    messages, attachments = [], []
    for message in said:
        copy = Message(
            chat=new,
            seq=message.seq,
            role=message.role,
            author_id=message.author_id,
            text=message.text,
            parts=message.parts if same else [_without_seals(part) for part in message.parts],
            delivery=message.delivery,
            place=message.place,
            turn=numbers[message.turn_id],  # type: ignore[index]
            step=message.step,
            created_at=message.created_at,
        )
        messages.append(copy)
        for attachment in message.attachments.all():
            attachments.append(_copied(attachment, copy, files))
    Message.objects.bulk_create(messages, batch_size=200)
    Attachment.objects.bulk_create([one for one in attachments if one], batch_size=200)


def _speaks(connection: Connection | None) -> tuple[str, str]:
    return (connection.provider_type, connection.wire) if connection else ("", "")


def _without_seals(part: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in part.items() if name != "sig"}


def _copied(attachment: Attachment, message: Message, files: list[str]) -> Attachment | None:
    """The same image under a name of its own: either session may be deleted alone."""
    copy = Attachment(
        message=message,
        position=attachment.position,
        media_type=attachment.media_type,
        name=attachment.name,
        width=attachment.width,
        height=attachment.height,
        size=attachment.size,
    )
    name = attachment_path(copy, attachment.name)
    there = Path(default_storage.path(name))
    there.parent.mkdir(parents=True, exist_ok=True)
    try:
        there.hardlink_to(default_storage.path(attachment.file.name))
    except FileNotFoundError:
        return None  # gone before; the text stays
    except OSError:  # another disk, or one that knows no links
        with attachment.file.open("rb") as file:
            default_storage.save(name, file)
    files.append(name)
    copy.file.name = name
    return copy


def ask_again(new: ChatSession, actor: User) -> Turn:
    """The last turn, which had no whole reply, once more."""
    turn = Turn.objects.filter(chat=new).order_by("-number").first()
    assert turn is not None
    return turns.begin_again(new, turn, actor)


def _take_along(chat: ChatSession, new: ChatSession) -> None:
    """What waited in the old session waits in the new one, once, in its order."""
    top = locking.next_seq(new)
    for number, message in enumerate(queueing.waiting(chat)):
        message.chat, message.seq, message.place = new, top + number, top + number
        message.delivery, message.turn, message.client_key = Message.Delivery.QUEUED, None, None
        message.save(
            update_fields=["chat", "seq", "place", "delivery", "turn", "client_key"],
        )
