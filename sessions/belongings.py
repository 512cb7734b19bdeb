"""What people and workspaces ask of sessions: how many there are of a person, to hand them over, to
delete them, and which are old (`workspaces.registry`)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from django.db.models import Count, F, Min, Q, Sum

from sessions import keeping
from sessions.models import Attachment, ChatSession, Flag, Message, Seen, UsageDay
from workspaces import people
from workspaces.models import User, Workspace
from workspaces.registry import COUNTED, Expiring, Holdings, Keeper

FORGOTTEN_AT_ONCE = 500  # flags


class Sessions(Keeper):
    def holdings(self, person: User) -> Holdings:
        """Four queries."""
        chats = ChatSession.objects.filter(owner=person, doomed_at=None).order_by()
        counted = chats.aggregate(n=Count("pk"), shared=Count("pk", filter=Q(shared=True)))
        others = ChatSession.objects.exclude(owner=person).order_by()
        messages = Message.objects.order_by().values("chat")  # what the indexes have
        elsewhere = messages.filter(author=person, chat__in=others.values("pk"))
        images = Attachment.objects.filter(message__chat__in=chats).order_by()
        sizes = images.aggregate(n=Count("pk"), size=Sum("size"))
        return Holdings(
            sessions=counted["n"],
            shared=counted["shared"],
            messages=messages.filter(chat__in=chats)[: COUNTED + 1].count(),
            attachments=sizes["n"],
            attachment_bytes=sizes["size"] or 0,
            elsewhere=elsewhere[: COUNTED + 1].count(),
        )

    def sessions_by_workspace(self, person: User) -> dict[uuid.UUID, int]:
        chats = ChatSession.objects.filter(owner=person, doomed_at=None).order_by()
        return dict(chats.values_list("workspace").annotate(Count("pk")))

    def left_behind(self, workspace: Workspace) -> Sequence[tuple[User, int]]:
        """Two queries."""
        chats = ChatSession.objects.filter(workspace=workspace, doomed_at=None).order_by()
        left = chats.filter(people.gone("owner", "workspace"), owner__erasure=None)
        counts = dict(left.values_list("owner").annotate(Count("pk")))
        found = User.objects.filter(pk__in=list(counts)).order_by("email")
        return [(person, counts[person.pk]) for person in found]

    def hand_over(self, workspace: Workspace, giver: User, receiver: User) -> int:
        """Three statements, whatever the number. Open pages hear of it at their next look."""
        chats = ChatSession.objects.filter(workspace=workspace, owner=giver, doomed_at=None)
        private = chats.filter(shared=False)
        for model in (Flag, Seen):
            model.objects.filter(chat__in=private).exclude(user=receiver).delete()
        return chats.update(owner=receiver, version=F("version") + 1)

    def erase_some(self, person: User, *, seconds: float) -> int:
        mine = ChatSession.objects.filter(owner=person)
        while keeping.doom(mine):
            pass
        return keeping.delete_doomed(owner=person, seconds=seconds)

    def forget(self, person: User) -> None:
        for model in (Flag, Seen):
            marks = model.objects.filter(user=person)
            while some := list(marks.values_list("pk", flat=True)[:FORGOTTEN_AT_ONCE]):
                model.objects.filter(pk__in=some).delete()
        UsageDay.objects.filter(person=person).update(person_label="Deleted person")

    def expiring(self, workspace: Workspace, days: int) -> Expiring:
        """Two queries."""
        before, old = keeping.expiring(workspace, days)
        going = keeping.unflagged(old).order_by()
        found = going.aggregate(n=Count("pk"), oldest=Min("updated_at"))
        return Expiring(before, found["n"], found["oldest"], old.count() - found["n"])


def expire_old() -> None:
    """Dooms what the workspaces no longer keep; what is doomed goes soon."""
    for workspace_id in Workspace.objects.exclude(retention_days=None).values_list("pk", flat=True):
        keeping.expire(workspace_id)
