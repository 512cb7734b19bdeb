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
    pages: str | tuple[str, ...]  # the beginnings of the view names that light it up
    in_workspace: bool = True
    least: Role = Role.VIEWER  # in the workspace
    key: str = ""  # goes there after g


NAV = (
    NavItem(_("Sessions"), "sessions:list", "messages", "sessions:", key="s"),
    NavItem(_("AI settings"), "ai:settings", "settings", "ai:", key="a"),
    NavItem(_("Tools"), "tools:list", "server", "tools:", key="t"),
    NavItem(_("Usage"), "usage:workspace", "chart-bar", "usage:", key="u"),
    NavItem(_("Members"), "members:list", "users", "members:", key="m"),
    NavItem(
        _("Settings"), "settings:workspace", "adjustments", "settings:", least=Role.ADMIN, key="w"
    ),
    NavItem(_("Audit"), "audit:workspace", "history", "audit:", least=Role.ADMIN, key="l"),
    NavItem(
        _("Connections"),
        "connections:list",
        "plug",
        ("connections:", "start:"),
        in_workspace=False,
        key="c",
    ),
    NavItem(_("People"), "people:list", "user", "people:", in_workspace=False, key="e"),
    NavItem(_("Admin site"), "admin:index", "tool", "admin:", in_workspace=False),
)


def shell(request: HttpRequest) -> dict[str, Any]:
    """`shell.workspaces`, `shell.workspace`, `shell.role` (there), `shell.may_create` (sessions
    there), `shell.nav`: evaluated only by pages that draw the rail, one query."""
    return {"shell": SimpleLazyObject(lambda: shell_of(request))}


def shell_of(request: HttpRequest, slug: str = "") -> dict[str, Any]:
    """The shell in the workspace of the address, else of `slug`, else where one left off."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {"workspaces": [], "workspace": None, "role": None, "may_create": False, "nav": []}
    found = workspaces_of(user)
    if not user.is_instance_admin:
        found = found.annotate(role_here=F("memberships__role"))
    spaces: list[Workspace] = list(found[:100])
    match = request.resolver_match
    known = {space.slug: space for space in spaces}
    place = (match.kwargs.get("workspace") if match else None) or slug or last_workspace(request)
    space = known.get(place) or (spaces[0] if spaces else None)
    here = match.view_name if match else ""
    role = Role(getattr(space, "role_here", Role.ADMIN))

    def may(least: Role) -> bool:
        return space is not None and (least == Role.VIEWER or role == least or role == Role.ADMIN)

    nav = [
        {
            "label": item.label,
            "url": reverse(item.view, args=[space.slug] if item.in_workspace and space else []),
            "icon": item.icon,
            "key": item.key,
            "current": here.startswith(item.pages),
        }
        for item in NAV
        if (may(item.least) if item.in_workspace else user.is_instance_admin)
    ]
    return {
        "workspaces": spaces,
        "workspace": space,
        "role": role if space else None,
        "may_create": may(Role.MEMBER),
        "nav": nav,
    }
