"""What this app offers the command palette: other workspaces, one's account, the whole audit."""

from __future__ import annotations

from collections.abc import Iterator

from django.urls import reverse
from django.utils.translation import gettext as _

from workspaces.palette import Asked, Command, Group
from workspaces.permissions import workspaces_of

MOST = 1_000  # workspaces that are looked through
MOST_UNASKED = 5


def commands(asked: Asked) -> Iterator[Command]:
    """One query."""
    here = asked.access.workspace.slug if asked.access else ""
    others = workspaces_of(asked.user).exclude(slug=here).order_by("name", "slug")
    most = MOST if asked.query else MOST_UNASKED
    for name, slug in others.values_list("name", "slug")[:most]:
        url = reverse("sessions:list", args=[slug])
        yield Command(Group.WORKSPACES, name, url, "stack-2", words=slug)
    profile = reverse("profile:show")
    words = _("account devices password second factor theme")
    yield Command(Group.PAGES, _("Profile and devices"), profile, "user", words=words)
    if asked.user.is_instance_admin and asked.query:
        audit = reverse("audit:instance")
        yield Command(Group.PAGES, _("Audit of everything"), audit, "history")
    sign_out = reverse("account_logout")
    yield Command(
        Group.ACTIONS, _("Sign out"), sign_out, "logout", words=_("log out"), is_post=True
    )
