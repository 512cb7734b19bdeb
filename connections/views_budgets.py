"""The budget of a connection or a workspace: one form, for instance admins."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from connections import budgets
from connections.budget_forms import BudgetForm
from connections.models import Connection
from connections.views import SeeOther, connection_crumbs, connection_for
from workspaces.models import Workspace
from workspaces.permissions import need_instance_admin, workspace_for


@require_http_methods(["GET", "HEAD", "POST"])
def connection_budget(request: HttpRequest, slug: str) -> HttpResponse:
    """Every limit may be left empty; all of them empty: no budget."""
    connection = connection_for(request, slug)
    crumbs = connection_crumbs(connection, _("Budget"))
    return _page(request, connection, resolve_url(connection), crumbs)


@require_http_methods(["GET", "HEAD", "POST"])
def workspace_budget(request: HttpRequest, workspace: str) -> HttpResponse:
    """As `connection_budget`; a workspace's own admins see theirs on its usage page."""
    space = workspace_for(request, workspace).workspace
    need_instance_admin(request)
    back = reverse("usage:workspace", args=[space.slug])
    crumbs = [{"label": _("Usage"), "url": back}, {"label": _("Budget"), "url": ""}]
    return _page(request, space, back, crumbs)


def _page(
    request: HttpRequest, target: Workspace | Connection, back: str, crumbs: list[dict[str, str]]
) -> HttpResponse:
    standing = budgets.standing_of(target)
    data = request.POST if request.method == "POST" else None
    form = BudgetForm(data, target=target, budget=standing.budget if standing else None)
    if form.is_bound and form.is_valid() and form.save(need_instance_admin(request)):
        said = _("The budget of %(name)s is saved.") % {"name": target.name}
        messages.success(request, said)
        return SeeOther(back)
    context: dict[str, Any] = {
        "form": form,
        "target": target,
        "workspace": target if isinstance(target, Workspace) else None,
        "standing": standing,
        "back": back,
        "crumbs": crumbs,
    }
    status = 422 if form.is_bound else 200
    return render(request, "connections/budget.html", context, status=status)
