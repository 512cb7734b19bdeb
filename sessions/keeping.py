"""What people do with their sessions besides talking: share, flag, archive, delete.

Each verb is one transaction, with its audit row where others are concerned.
"""

from __future__ import annotations

import enum
import uuid

from django.core.files.storage import default_storage
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from sessions import turns
from sessions.models import Attachment, ChatSession, Flag
from workspaces import audit
from workspaces.models import User


class Sharing(enum.StrEnum):
    """Who of the workspace is in a session: nobody else, colleagues as readers, or as writers."""

    PRIVATE = "false"
    READ = "read"
    WRITE = "true"

    @classmethod
    def of(cls, chat: ChatSession) -> Sharing:
        if not chat.shared:
            return cls.PRIVATE
        return cls.READ if chat.read_only else cls.WRITE


@transaction.atomic
def share(chat_id: uuid.UUID, actor: User, sharing: Sharing) -> None:
    """Opens a session to its workspace, or closes it again. Locks the session."""
    chat = turns._lock(chat_id)
    if Sharing.of(chat) is sharing:
        return
    chat.shared = sharing is not Sharing.PRIVATE
    chat.read_only = sharing is Sharing.READ
    turns._changed(chat, "shared", "read_only")
    audit.record(
        actor,
        "session.share" if chat.shared else "session.unshare",
        chat,
        workspace_id=chat.workspace_id,
        label=str(chat.pk),
        read_only=chat.read_only,
    )


def flag(chat: ChatSession, user: User, on: bool) -> None:
    """A mark that only this person sees. Pressed twice it is one."""
    if on:
        Flag.objects.get_or_create(chat=chat, user=user)
    else:
        Flag.objects.filter(chat=chat, user=user).delete()


@transaction.atomic
def archive(chat_id: uuid.UUID, on: bool) -> None:
    """Takes a session out of the list, or back; the next message brings it back too. Locks it."""
    chat = turns._lock(chat_id)
    if (chat.archived_at is not None) == on:
        return
    chat.archived_at = timezone.now() if on else None
    turns._changed(chat, "archived_at")


@transaction.atomic
def delete(chat_id: uuid.UUID, actor: User | str) -> None:
    """For good, with its images; what it cost stays in the usage. Raises `turns.Refused` while a
    reply is under way: its worker would write into nothing. Locks the session."""
    chat = turns._lock(chat_id)
    if turns._active_turn(chat) is not None:
        raise turns.Refused("active", _("A reply is under way. Stop it, then delete the session."))
    attachments = Attachment.objects.filter(message__chat=chat)
    files = list(attachments.values_list("file", flat=True))
    audit.record(
        actor,
        "session.delete",
        chat,
        workspace_id=chat.workspace_id,
        label=str(chat.pk),
        owner=chat.owner.email,
    )
    chat.delete()
    transaction.on_commit(lambda: _delete_files(files))


def _delete_files(files: list[str]) -> None:
    for name in files:
        default_storage.delete(name)
