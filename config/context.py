"""What the shell of every page shows: where one is, and where one may go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import F
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy as _

from workspaces.models import Role, Workspace
from workspaces.permissions import workspaces_of
from workspaces.place import last_workspace


@dataclass(frozen=True, slots=True)
class NavItem:
    """A line of the rail: of a workspace for everybody in it, or for instance admins alone."""

    label: Any
    view: str
    icon: str
    pages: str  # the beginning of the view names that light it up
    in_workspace: bool = True
    least: Role = Role.VIEWER  # in the workspace


NAV = (
    NavItem(_("Sessions"), "sessions:list", "messages", "sessions:"),
    NavItem(_("AI settings"), "ai:settings", "settings", "ai:"),
    NavItem(_("Tools"), "tools:list", "server", "tools:"),
    NavItem(_("Usage"), "usage:workspace", "chart-bar", "usage:"),
    NavItem(_("Members"), "members:list", "users", "members:"),
    NavItem(_("Settings"), "settings:workspace", "adjustments", "settings:", least=Role.ADMIN),
    NavItem(_("Audit"), "audit:workspace", "history", "audit:", least=Role.ADMIN),
    NavItem(_("Connections"), "connections:list", "plug", "connections:", in_workspace=False),
    NavItem(_("People"), "people:list", "user", "people:", in_workspace=False),
    NavItem(_("Admin site"), "admin:index", "tool", "admin:", in_workspace=False),
)


def shell(request: HttpRequest) -> dict[str, Any]:
    """`shell.workspaces`, `shell.workspace`, `nav`: evaluated only by pages that draw the rail, one
    query."""
    return {"shell": SimpleLazyObject(lambda: _shell(request))}


def _shell(request: HttpRequest) -> dict[str, Any]:
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {"workspaces": [], "workspace": None, "nav": []}
    found = workspaces_of(user)
    if not user.is_instance_admin:
        found = found.annotate(role_here=F("memberships__role"))
    spaces: list[Workspace] = list(found[:100])
    match = request.resolver_match
    slug = match.kwargs.get("workspace") if match else None
    slug = slug or last_workspace(request)
    space = next((s for s in spaces if s.slug == slug), spaces[0] if spaces else None)
    here = match.view_name if match else ""
    role = Role(getattr(space, "role_here", Role.ADMIN))

    def may(least: Role) -> bool:
        return space is not None and (least == Role.VIEWER or role == least or role == Role.ADMIN)

    nav = [
        {
            "label": item.label,
            "url": reverse(item.view, args=[space.slug] if item.in_workspace and space else []),
            "icon": item.icon,
            "current": here.startswith(item.pages),
        }
        for item in NAV
        if (may(item.least) if item.in_workspace else user.is_instance_admin)
    ]
    return {"workspaces": spaces, "workspace": space, "nav": nav}
