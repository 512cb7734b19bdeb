"""What people do with their sessions besides talking: share, flag, archive, hand over, delete.

Each verb is one transaction, with its audit row where others are concerned. Many sessions are
deleted in two parts: `doom` hides them, and `delete_doomed` takes them away piece by piece, so that
nobody waits for the database's lock and nothing is lost when a worker is killed.
"""

from __future__ import annotations

import datetime as dt
import enum
import time
import uuid

from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet, Subquery
from django.utils import timezone
from django.utils.translation import gettext as _

from sessions import locking, queueing, turns
from sessions.models import Attachment, ChatSession, Flag, Message, Seen, Turn
from sessions.refusals import Refused
from workspaces import audit, people
from workspaces.models import User, Workspace

PART = 200  # messages, or turns, deleted in one transaction
DOOMED_AT_ONCE = 500  # sessions


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
    chat = locking.lock(chat_id)
    if Sharing.of(chat) is sharing:
        return
    chat.shared = sharing is not Sharing.PRIVATE
    chat.read_only = sharing is Sharing.READ
    locking.changed(chat, "shared", "read_only")
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


def see(chat: ChatSession, user: User, number: int) -> None:
    """Notes that the person has seen the end of turn `number`, and of all before it. Three
    queries."""
    ended = Turn.objects.filter(chat=chat, number__lte=number).exclude(state__among=Turn.ACTIVE)
    last = ended.order_by("-number").values_list("number", flat=True).first() or 0
    seen, created = Seen.objects.get_or_create(chat=chat, user=user, defaults={"number": last})
    if not created:
        Seen.objects.filter(pk=seen.pk, number__lt=last).update(number=last)


def unseen_by(user: User) -> Exists:
    """Of a session: whether a turn has ended since the person looked at it last. What they have
    never opened isn't news."""
    seen = Seen.objects.filter(chat=OuterRef(OuterRef("pk")), user=user).values("number")
    ended = Turn.objects.filter(chat=OuterRef("pk"), number__gt=Subquery(seen))
    return Exists(ended.exclude(state__among=Turn.ACTIVE))


@transaction.atomic
def archive(chat_id: uuid.UUID, on: bool) -> None:
    """Takes a session out of the list, or back; the next message brings it back too. Locks it."""
    chat = locking.lock(chat_id)
    if (chat.archived_at is not None) == on:
        return
    chat.archived_at = timezone.now() if on else None
    locking.changed(chat, "archived_at")


@transaction.atomic
def delete(chat_id: uuid.UUID, actor: User | str) -> None:
    """For good, with its images; what it cost stays in the usage. Raises `Refused` while a
    reply is under way: its worker would write into nothing. Locks the session."""
    chat = locking.lock(chat_id)
    if locking.active_turn(chat) is not None:
        raise Refused("active", _("A reply is under way. Stop it, then delete the session."))
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


@transaction.atomic
def transfer(chat_id: uuid.UUID, actor: User, receiver: User) -> None:
    """Gives one session to another member of its workspace; private stays private, to the new
    owner. Raises `Refused` while a reply is under way or messages wait, which go out in their
    author's name. Locks the session."""
    chat = locking.lock(chat_id)
    if not people.receivers(chat.workspace, chat.owner).filter(pk=receiver.pk).exists():
        raise Refused("receiver", _("Choose a member of this workspace who may hold sessions."))
    if locking.active_turn(chat) is not None or queueing.waiting(chat).exists():
        raise Refused(
            "active",
            _("A reply is under way, or messages wait. Stop it first, then hand the session over."),
        )
    giver, chat.owner = chat.owner, receiver
    locking.changed(chat, "owner")
    if not chat.shared:
        for model in (Flag, Seen):
            model.objects.filter(chat=chat).exclude(user=receiver).delete()
    audit.record(
        actor,
        "session.transfer",
        chat,
        workspace_id=chat.workspace_id,
        label=str(chat.pk),
        giver=str(giver),
        receiver=str(receiver),
    )


# -- many at once ----------------------------------------------------------------------------------


def expiring(workspace: Workspace, days: int) -> tuple[dt.datetime, QuerySet[ChatSession]]:
    """The time before which a session's last message counts as old, and the workspace's sessions
    that are. Those flagged by anybody stay, and those that work."""
    before = timezone.now() - dt.timedelta(days=days)
    old = ChatSession.objects.filter(
        workspace=workspace, updated_at__lt=before, doomed_at=None
    ).filter(~Exists(Turn.objects.filter(chat=OuterRef("pk"), state__among=Turn.ACTIVE)))
    return before, old


def unflagged(chats: QuerySet[ChatSession]) -> QuerySet[ChatSession]:
    return chats.filter(~Exists(Flag.objects.filter(chat=OuterRef("pk"))))


def expire(workspace_id: uuid.UUID) -> int:
    """Dooms the sessions of a workspace that are older than it keeps them; how many. Each some
    hundreds in a transaction, with one audit row that counts them."""
    total = 0
    while True:
        with transaction.atomic():
            # The lock: an admin who just lengthened the time is obeyed.
            workspace = Workspace.objects.select_for_update().filter(pk=workspace_id).first()
            if workspace is None or not workspace.retention_days:
                return total
            before, old = expiring(workspace, workspace.retention_days)
            count = doom(unflagged(old))
            if count:
                audit.record(
                    "schedule",
                    "session.expire",
                    workspace,
                    workspace_id=workspace.pk,
                    sessions=count,
                    days=workspace.retention_days,
                    before=before.isoformat(timespec="seconds"),
                )
        total += count
        if count < DOOMED_AT_ONCE:
            return total


def doom(chats: QuerySet[ChatSession]) -> int:
    """Hides some hundreds of sessions, for `delete_doomed` to take away; how many. Open pages of
    them close within seconds. One UPDATE."""
    some = chats.filter(doomed_at=None).order_by("pk").values("pk")[:DOOMED_AT_ONCE]
    keys = list(some.values_list("pk", flat=True))
    return ChatSession.objects.filter(pk__in=keys).update(doomed_at=timezone.now())


def delete_doomed(*, owner: User | None = None, seconds: float = 20.0) -> int:
    """Deletes doomed sessions, of everybody or of one person, for so long; how many are left. Each
    transaction is small; a session whose reply still runs is told to stop and left for later."""
    doomed = ChatSession.objects.filter(doomed_at__isnull=False).order_by("pk")
    if owner is not None:
        doomed = doomed.filter(owner=owner)
    until = time.monotonic() + seconds
    busy: list[uuid.UUID] = []
    while time.monotonic() < until:
        chat_id = doomed.exclude(pk__in=busy).values_list("pk", flat=True).first()
        if chat_id is None:
            break
        if not _delete_part(chat_id):
            busy.append(chat_id)
    return doomed.count()


def _delete_part(chat_id: uuid.UUID) -> bool:
    """Some messages of a doomed session, or the last of it; False while a reply runs."""
    with transaction.atomic():
        chat = (
            ChatSession.objects.select_for_update(of=("self",))
            .filter(pk=chat_id, doomed_at__isnull=False)
            .first()
        )
        if chat is None:
            return True
        if turns.halt(chat):
            return False
    messages = Message.objects.filter(chat=chat_id).order_by("seq")
    keys = list(messages.values_list("pk", flat=True)[:PART])
    # Before the rows: a worker that is killed in between leaves no image without a row.
    files = Attachment.objects.filter(message__in=keys)
    _delete_files(list(files.values_list("file", flat=True)))
    with transaction.atomic():
        Message.objects.filter(pk__in=keys).delete()
        if len(keys) < PART:
            old = Turn.objects.filter(chat=chat_id).order_by("number")
            spent = list(old.values_list("pk", flat=True)[:PART])
            Turn.objects.filter(pk__in=spent).delete()
            if len(spent) < PART:
                ChatSession.objects.filter(pk=chat_id).delete()
    return True
