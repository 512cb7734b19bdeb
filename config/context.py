"""What the shell of every page shows: where one is, and where one may go."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy as _

from workspaces.models import Workspace
from workspaces.permissions import workspaces_of
from workspaces.place import last_workspace


def shell(request: HttpRequest) -> dict[str, Any]:
    """`shell.workspaces`, `shell.workspace`, `nav`: evaluated only by pages that draw the rail, one
    query."""
    return {"shell": SimpleLazyObject(lambda: _shell(request))}


def _shell(request: HttpRequest) -> dict[str, Any]:
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {"workspaces": [], "workspace": None, "nav": []}
    spaces: list[Workspace] = list(workspaces_of(user)[:100])
    match = request.resolver_match
    slug = match.kwargs.get("workspace") if match else None
    slug = slug or last_workspace(request)
    space = next((s for s in spaces if s.slug == slug), spaces[0] if spaces else None)
    here = match.view_name if match else ""
    nav: list[dict[str, Any]] = []
    if space is not None:
        nav.append(
            {
                "label": _("Sessions"),
                "url": reverse("sessions:list", args=[space.slug]),
                "icon": "messages",
                "current": here.startswith("sessions:"),
            }
        )
        nav.append(
            {
                "label": _("AI settings"),
                "url": reverse("ai:settings", args=[space.slug]),
                "icon": "settings",
                "current": here.startswith("ai:"),
            }
        )
        nav.append(
            {
                "label": _("Tools"),
                "url": reverse("tools:list", args=[space.slug]),
                "icon": "server",
                "current": here.startswith("tools:"),
            }
        )
    if user.is_instance_admin:
        nav.append(
            {
                "label": _("Connections"),
                "url": reverse("connections:list"),
                "icon": "plug",
                "current": here.startswith("connections:"),
            }
        )
        nav.append(
            {
                "label": _("Admin site"),
                "url": reverse("admin:index"),
                "icon": "tool",
                "current": False,
            }
        )
    return {"workspaces": spaces, "workspace": space, "nav": nav}
