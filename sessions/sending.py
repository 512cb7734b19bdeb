"""Taking a message: checked, stored once, and begun, steered or queued.

send ─► Message ─► no active turn? ─► Turn(pending)
             └──► active turn: the connection's behaviour, read at that moment
                    steering or queued (`queueing`)
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Count, Exists, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.translation import gettext as _

from connections.capabilities import capabilities
from connections.choices import MidStream
from sessions import choosing, doorbell, limits, locking, queueing, titles
from sessions.images import CheckedImage
from sessions.models import Attachment, ChatSession, Message, Turn, attachment_path
from sessions.refusals import Refused
from sessions.texts import check_length, clean_text, parts_of, storable_key
from workspaces.models import User
from workspaces.statements import Select, insert

MAX_WAITING = 200  # messages of one session that wait


@dataclass(frozen=True, slots=True)
class Sent:
    message: Message
    turn: Turn | None
    created: bool


def send(
    chat_id: uuid.UUID,
    author: User,
    text: str,
    *,
    client_key: str = "",
    images: Sequence[CheckedImage] = (),
    files: Sequence[Mapping[str, Any]] = (),
    ring: bool = True,
) -> Sent:
    """Accepts a message; the first one of a session locks its connection, in this transaction.
    `files` are parts as `sessions.textfiles` makes them.

    The same `client_key` again is the same message. Raises `Refused` with a sentence. With `ring`
    off the caller runs the turn itself. Locks the session.
    """
    attachments = [_attachment(position, image) for position, image in enumerate(images)]
    stray = [attachment_path(attachment, attachment.name) for attachment in attachments]
    try:
        # Written before the transaction, which on SQLite holds the only write lock there is.
        for attachment, image in zip(attachments, images, strict=True):
            attachment.file.save(image.name, ContentFile(image.data), save=False)
        with transaction.atomic():
            transaction.on_commit(stray.clear)  # whatever fails after the commit
            sent = _send(chat_id, author, text, client_key, attachments, files, ring)
    except BaseException:
        # No transaction covers the disk: a message that wasn't taken leaves no file there.
        _delete_files(stray)
        raise
    if not sent.created:
        _delete_files([attachment.file.name for attachment in attachments])
    return sent


def _send(
    chat_id: uuid.UUID,
    author: User,
    text: str,
    client_key: str,
    attachments: Sequence[Attachment],
    files: Sequence[Mapping[str, Any]],
    ring: bool,
) -> Sent:
    """In `send`'s transaction."""
    chat = locking.lock(chat_id)
    locking.check_there(chat)
    client_key = storable_key(client_key)
    found = _Standing(*_STANDING.all(chat_id, client_key)[0])
    if client_key and found.same is not None:
        same = Message.objects.select_related("turn").get(pk=found.same)
        return Sent(same, same.turn, created=False)
    text = clean_text(text)
    if not text.strip() and not attachments and not files:
        raise Refused("empty", _("Write a message first."))
    check_length(text, files)
    connection, locked = choosing.lock_connection(chat, author)
    limits.check_budget(chat)
    if attachments and not capabilities(connection, chat.model).supports_images:
        raise Refused(
            "images",
            _("The model %(model)s doesn't take images. Remove them, or choose another model.")
            % {"model": chat.model},
        )
    if found.waiting >= MAX_WAITING:
        raise Refused(
            "queue_full", _("So many messages wait already that no more can be taken for now.")
        )
    seq = found.top_seq + 1
    message = Message(
        chat=chat,
        seq=seq,
        place=seq,
        role=Message.Role.USER,
        author=author,
        client_key=client_key or None,
        text=text,
        parts=parts_of(text, files),
    )
    turn = locking.active_turn(chat) if found.is_active else None
    started = None
    if turn is not None:
        steers = connection.mid_stream == MidStream.STEER and not turn.stop_requested_at
        message.delivery = Message.Delivery.STEERING if steers else Message.Delivery.QUEUED
    elif found.is_queued:
        message.delivery = Message.Delivery.QUEUED
    else:
        limits.check_running(author)
        chat.queue_paused, chat.queue_not_before = "", None
        started = message.turn = queueing.begin_turn(chat, author.pk)
    insert(message)
    for attachment in attachments:
        attachment.message = message
        attachment.save(force_insert=True)
    if turn is None and started is None:
        started = queueing.advance(chat)
    chat.updated_at = timezone.now()
    chat.archived_at = None  # who writes on wants it in the list again
    if not chat.title:
        chat.title = titles.first_words(text) or (files[0]["file"] if files else _("Image"))
    fields = ("updated_at", "archived_at", "title", "queue_paused", "queue_not_before")
    locking.changed(chat, *fields, *locked)
    if ring and message.turn is not None:
        doorbell.ring(message.turn)
    return Sent(message, started or turn, created=True)


@dataclass(frozen=True, slots=True)
class _Standing:
    """What a send has to know of its session, read under the lock in one query."""

    top_seq: int
    same: uuid.UUID | None  # the message that came with the same key
    waiting: int
    is_queued: bool
    is_active: bool


def _standing(chat_id: Any, client_key: Any) -> QuerySet[Any]:
    messages = Message.objects.filter(chat_id=OuterRef("pk")).order_by()
    waiting = messages.filter(delivery__among=Message.WAITING)
    return (
        ChatSession.objects.filter(pk=chat_id)
        .annotate(
            top_seq=Coalesce(Subquery(messages.order_by("-seq").values("seq")[:1]), 0),
            same=Subquery(messages.filter(client_key=client_key).values("pk")[:1]),
            waiting=Coalesce(
                Subquery(waiting.values("chat_id").annotate(n=Count("pk")).values("n")), 0
            ),
            is_queued=Exists(waiting.filter(delivery=Message.Delivery.QUEUED)),
            is_active=Exists(Turn.objects.filter(chat_id=OuterRef("pk"), state__among=Turn.ACTIVE)),
        )
        .values_list("top_seq", "same", "waiting", "is_queued", "is_active")
    )


_STANDING = Select(_standing)


def _delete_files(names: Sequence[str]) -> None:
    for name in names:
        default_storage.delete(name)


def _attachment(position: int, image: CheckedImage) -> Attachment:
    return Attachment(
        position=position,
        media_type=image.media_type,
        name=image.name,
        width=image.width,
        height=image.height,
        size=len(image.data),
    )
