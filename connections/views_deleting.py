"""Deleting a connection, with what depends on it, and bringing one back."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render, resolve_url
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from connections import deleting, display
from connections.models import Connection
from connections.registry import Dependents, dependents_of
from connections.views import SeeOther, answers_refusals, connection_crumbs, connection_for
from workspaces.permissions import need_instance_admin


@require_safe
def connection_confirm_delete(request: HttpRequest, slug: str) -> HttpResponse:
    """What depends on it, the one choice, and the button; for htmx as a dialog."""
    connection = connection_for(request, slug, "workspace_rows__workspace")
    others = Connection.objects.living().exclude(pk=connection.pk)
    dependents = dependents_of([connection.pk]).get(connection.pk, Dependents())
    defaults = [row.workspace.name for row in connection.workspace_rows.all() if row.is_default]
    context = {
        "connection": connection,
        "effects": display.effects_of_deleting(connection, dependents, defaults),
        "others": list(others.values_list("slug", "name")),
        "asks": bool(dependents.sessions or defaults or connection.is_default),
        "crumbs": connection_crumbs(connection, _("Delete")),
    }
    part = "#dialog" if request.htmx else ""
    return render(request, f"connections/confirm_delete.html{part}", context)


@require_POST
@answers_refusals
def connection_delete(request: HttpRequest, slug: str) -> HttpResponse:
    """`successor`: the slug of the connection to go on with, or empty."""
    connection = connection_for(request, slug)
    named = request.POST.get("successor", "").replace("\0", "\ufffd")  # PostgreSQL takes no NUL
    successor = get_object_or_404(Connection.objects.living(), slug=named) if named else None
    deleted = deleting.delete(request.user, connection, successor=successor)
    said = [_("“%(name)s” was deleted.") % {"name": connection.name}]
    if deleted.new_default:
        words = {"name": deleted.new_default.name}
        said.append(_("“%(name)s” is the global default now.") % words)
    if deleted.cleared_workspaces:
        words = {"names": ", ".join(deleted.cleared_workspaces)}
        said.append(_("Without a default now: %(names)s.") % words)
    messages.success(request, " ".join(said))
    return SeeOther(reverse("connections:list"))


@require_safe
def connection_deleted(request: HttpRequest) -> HttpResponse:
    """What was deleted in the last days and can be brought back. Two queries."""
    need_instance_admin(request)
    context = {
        "connections": [
            (connection, connection.deleted_at + deleting.UNDO_FOR)
            for connection in deleting.recently_deleted().select_related("successor")[:200]
        ],
        "days": deleting.UNDO_FOR.days,
        "crumbs": connection_crumbs(_("Recently deleted")),
    }
    return render(request, "connections/deleted.html", context)


@require_POST
@answers_refusals
def connection_restore(request: HttpRequest, slug: str) -> HttpResponse:
    need_instance_admin(request)
    connection = get_object_or_404(Connection.objects.exclude(deleted_at=None), slug=slug)
    restored = deleting.undo(request.user, connection)
    said = [_("“%(name)s” is back, without its secret.") % {"name": connection.name}]
    if restored.kept_defaults:
        words = {"names": ", ".join(restored.kept_defaults)}
        said.append(_("These workspaces keep their newer default: %(names)s.") % words)
    messages.success(request, " ".join(said))
    return SeeOther(resolve_url(connection))
