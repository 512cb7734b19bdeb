"""What this app offers the command palette: sessions by their titles, and a new one."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import Q
from django.urls import reverse
from django.utils.translation import gettext as _

from sessions import search
from sessions.models import ChatSession
from workspaces.models import Role
from workspaces.palette import Asked, Command, Group
from workspaces.permissions import workspaces_of

MOST_RECENT = 5
MOST_FOUND = 10


def commands(asked: Asked) -> Iterator[Command]:
    """Two queries; one before something is typed."""
    if asked.access and asked.access.has(Role.MEMBER):
        create = reverse("sessions:create", args=[asked.access.workspace.slug])
        yield Command(
            Group.ACTIONS, _("New session"), create, "plus", words=_("chat start"), is_post=True
        )
    if asked.user.is_instance_admin and asked.query:
        yield Command(Group.PAGES, _("Usage of everything"), reverse("usage:instance"), "chart-bar")
    chats = ChatSession.objects.filter(
        Q(owner=asked.user) | Q(shared=True),
        workspace__in=workspaces_of(asked.user).order_by().values("pk"),
    ).order_by("-updated_at", "id")
    if asked.query:
        found = search.find_titles(chats, asked.words, MOST_FOUND)
    else:
        found = chats.filter(archived_at=None).exclude(title="")[:MOST_RECENT]
    here = asked.access.workspace.pk if asked.access else None
    for chat in found.select_related("workspace").only(
        "title", "nth_version", "workspace__name", "workspace__slug"
    ):
        note = "" if chat.workspace_id == here else chat.workspace.name
        yield Command(Group.SESSIONS, chat.heading, chat.get_absolute_url(), "message", note=note)
