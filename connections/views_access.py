"""Which workspaces may use a connection, and which of its models."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from connections import grants
from connections.choices import AccessMode
from connections.views import SeeOther, answers_refusals, connection_crumbs, connection_for
from workspaces.models import Workspace


@require_http_methods(["GET", "HEAD", "POST"])
@answers_refusals
def connection_access(request: HttpRequest, slug: str) -> HttpResponse:
    """`access`: all or chosen; `workspaces`: ids, repeated. Four queries for any number."""
    connection = connection_for(request, slug, "workspace_rows")
    spaces = list(Workspace.objects.order_by("name", "slug"))
    if request.method == "POST":
        chosen = set(request.POST.getlist("workspaces"))
        cleared = grants.set_access(
            request.user,
            connection,
            access=request.POST.get("access", ""),
            workspaces=[space.pk for space in spaces if str(space.pk) in chosen],
        )
        said = [_("Who may use “%(name)s” is saved.") % {"name": connection.name}]
        if cleared:
            words = {"names": ", ".join(cleared)}
            said.append(_("Without a default now: %(names)s.") % words)
        messages.success(request, " ".join(said))
        return SeeOther(reverse("connections:access", args=[slug]))
    rows = {row.workspace_id: row for row in connection.workspace_rows.all()}
    context = {
        "connection": connection,
        "modes": AccessMode,
        "spaces": [(space, rows.get(space.pk)) for space in spaces],
        "crumbs": connection_crumbs(connection, _("Access")),
    }
    return render(request, "connections/access.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@answers_refusals
def connection_grant(request: HttpRequest, slug: str, workspace: str) -> HttpResponse:
    """Which models of the connection a workspace may use at all: `model`, repeated. All of them
    ticked means every one, also those that come later."""
    connection = connection_for(request, slug)
    space = get_object_or_404(Workspace, slug=workspace)
    if request.method == "POST":
        chosen = list(dict.fromkeys(request.POST.getlist("model")))
        models = None if set(chosen) >= set(connection.model_ids) else chosen
        grants.set_granted_models(request.user, space, connection, models)
        words = {"name": space.name}
        messages.success(request, _("The models granted to %(name)s are saved.") % words)
        return SeeOther(reverse("connections:access", args=[slug]))
    row = connection.workspace_rows.filter(workspace=space).first()
    granted = None if row is None else row.granted_models
    crumbs = connection_crumbs(connection)
    crumbs.append({"label": _("Access"), "url": reverse("connections:access", args=[slug])})
    crumbs.append({"label": space.name, "url": ""})
    context = {
        "workspace": space,
        "connection": connection,
        "is_grant": True,
        "back": reverse("connections:access", args=[slug]),
        "choices": [(m, granted is None or m in granted) for m in connection.model_ids],
        "crumbs": crumbs,
    }
    return render(request, "connections/workspace_models.html", context)
