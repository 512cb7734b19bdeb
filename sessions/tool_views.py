"""A workspace's tool servers: its people see names and tools, its admins manage them. Each view's
first line gets its object through a permission check."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from sessions import tool_servers
from sessions.models import ToolServer
from sessions.tool_forms import ToolServerForm
from sessions.tool_servers import sentence
from workspaces.models import Role
from workspaces.permissions import Access, workspace_for


class SeeOther(HttpResponseRedirect):
    """After a POST: the next page is fetched with GET."""

    status_code = 303


@require_safe
def server_list(request: HttpRequest, workspace: str) -> HttpResponse:
    """The servers and their tools; addresses and errors for the workspace's admins. One query."""
    access = workspace_for(request, workspace)
    servers = ToolServer.objects.filter(workspace=access.workspace).defer("headers")
    rows = [
        {
            "server": server,
            "tools": [t["title"] or t["name"] for t in server.offered],
            "error": sentence(server.last_error) if server.is_failing else "",
        }
        for server in servers
    ]
    context = {
        "access": access,
        "workspace": access.workspace,
        "rows": rows,
        "may_change": access.has(Role.ADMIN),
        "create_url": reverse("tools:create", args=[workspace]),
    }
    return render(request, "sessions/tools.html", context)


@sensitive_post_parameters("headers")
@require_http_methods(["GET", "HEAD", "POST"])
def server_create(request: HttpRequest, workspace: str) -> HttpResponse:
    """The form; a saved server is asked for its tools at once."""
    access = workspace_for(request, workspace, Role.ADMIN)
    return _form_page(request, access, None)


@sensitive_post_parameters("headers")
@require_http_methods(["GET", "HEAD", "POST"])
def server_edit(request: HttpRequest, workspace: str, server_id: uuid.UUID) -> HttpResponse:
    access, server = _server(request, workspace, server_id)
    return _form_page(request, access, server)


def _form_page(request: HttpRequest, access: Access, server: ToolServer | None) -> HttpResponse:
    form = ToolServerForm(request.POST if request.method == "POST" else None, server=server)
    status = 200
    if form.is_bound:
        before = server.revision if server else None
        if form.is_valid() and (saved := form.save(access.user, access.workspace)):
            if saved.revision != before:
                _test(request, access, saved)
            else:
                messages.success(request, _("“%(name)s” is saved.") % {"name": saved.name})
            if server is None:
                # Now that its tools are known, they can be chosen.
                return SeeOther(reverse("tools:edit", args=[access.workspace.slug, saved.pk]))
            return _back(access)
        status = 422
    context = {
        "access": access,
        "workspace": access.workspace,
        "server": server,
        "form": form,
        "error": sentence(server.last_error) if server and server.is_failing else "",
        "crumbs": _crumbs(access, server.name if server else _("Add")),
    }
    return render(request, "sessions/tool_form.html", context, status=status)


@require_POST
def server_test(request: HttpRequest, workspace: str, server_id: uuid.UUID) -> HttpResponse:
    """Connects and lists its tools anew. Takes ten seconds at most."""
    access, server = _server(request, workspace, server_id)
    _test(request, access, server)
    return _back(access)


@require_POST
def server_enable(request: HttpRequest, workspace: str, server_id: uuid.UUID) -> HttpResponse:
    """`enabled` true or false, the other one of now when left out."""
    access, server = _server(request, workspace, server_id)
    enabled = request.POST.get("enabled", "false" if server.enabled else "true") == "true"
    try:
        tool_servers.set_enabled(access.user, server, enabled)
    except ValidationError:
        return _back(access)  # somebody deleted it meanwhile, as the page then shows
    said = _("“%(name)s” is switched on.") if enabled else _("“%(name)s” is switched off.")
    messages.success(request, said % {"name": server.name})
    return _back(access)


@require_http_methods(["GET", "HEAD", "POST"])
def server_delete(request: HttpRequest, workspace: str, server_id: uuid.UUID) -> HttpResponse:
    """Asks first; a POST deletes."""
    access, server = _server(request, workspace, server_id)
    if request.method == "POST":
        try:
            tool_servers.delete(access.user, server)
        except ValidationError:
            return _back(access)
        messages.success(request, _("“%(name)s” was deleted.") % {"name": server.name})
        return _back(access)
    context = {
        "workspace": access.workspace,
        "server": server,
        "crumbs": _crumbs(access, server.name, _("Delete")),
    }
    return render(request, "sessions/tool_delete.html", context)


# -- the parts -------------------------------------------------------------------------------------


def _server(
    request: HttpRequest, workspace: str, server_id: uuid.UUID
) -> tuple[Access, ToolServer]:
    """The server by its id, for an admin of its workspace; 404 or 403. Three queries."""
    access = workspace_for(request, workspace, Role.ADMIN)
    found = ToolServer.objects.select_related("workspace")
    return access, get_object_or_404(found, pk=server_id, workspace=access.workspace)


def _test(request: HttpRequest, access: Access, server: ToolServer) -> None:
    kind = tool_servers.test(access.user, server)
    server.refresh_from_db()
    if kind:
        said = _("“%(name)s” gave no list of tools. %(why)s")
        messages.warning(request, said % {"name": server.name, "why": sentence(kind)})
        return
    count = len(server.tools)
    found = ngettext("“%(name)s” answers: %(n)d tool.", "“%(name)s” answers: %(n)d tools.", count)
    messages.success(request, found % {"name": server.name, "n": count})


def _back(access: Access) -> HttpResponse:
    return SeeOther(reverse("tools:list", args=[access.workspace.slug]))


def _crumbs(access: Access, *places: str) -> list[dict[str, Any]]:
    here = reverse("tools:list", args=[access.workspace.slug])
    return [{"label": _("Tools"), "url": here}, *({"label": place} for place in places)]
