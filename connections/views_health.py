"""How connections did: the overview of all, and the page of one."""

from __future__ import annotations

from django.core.paginator import Paginator
from django.db.models import BooleanField, Case, Count, Q, Value, When
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from connections import display, health
from connections.choices import Status
from connections.models import Connection
from connections.views import connection_crumbs, connection_for
from workspaces.permissions import need_instance_admin

PER_PAGE = 30

# What was told last, by what is stored: a secret is opened for the rows of a page alone.
_SHOWN = {
    "failed": Q(enabled=True, health=Status.FAILED),
    "valid": Q(enabled=True, health=Status.VALID),
    "unchecked": Q(enabled=True, health=Status.UNCHECKED),
    "disabled": Q(enabled=False),
}


@require_safe
def connection_status(request: HttpRequest) -> HttpResponse:
    """Every connection with its last days, the failing ones first; `?show=` those of a status.
    Five queries, for any number of connections and probes."""
    need_instance_admin(request)
    show = request.GET.get("show", "")
    everything = Connection.objects.living()
    counts = everything.order_by().aggregate(
        all=Count("pk"), **{name: Count("pk", filter=kind) for name, kind in _SHOWN.items()}
    )
    failing = Case(
        When(_SHOWN["failed"], then=Value(True)), default=Value(False), output_field=BooleanField()
    )
    listed = everything.filter(_SHOWN.get(show, Q())).with_secrets()
    listed = listed.defer("unknown_fields", "imported_as", "models", "cleared")
    listed = listed.order_by(failing.desc(), "position", "created_at", "id")
    page = Paginator(listed, PER_PAGE).get_page(request.GET.get("page"))
    found = list(page.object_list)
    strips = health.strips([connection.pk for connection in found], health.DAYS_IN_STATUS)
    page.object_list = [
        display.Row.of(connection, place, strip=strips[connection.pk])
        for place, connection in enumerate(found, page.start_index())
    ]
    context = {
        "page": page,
        "days": health.DAYS_IN_STATUS,
        "show": show if show in _SHOWN else "",
        "figures": [(name, Status(name).label, Status(name).tone, counts[name]) for name in _SHOWN],
        "total": counts["all"],
        "crumbs": connection_crumbs(_("Status")),
    }
    return render(request, "connections/status.html", context)


@require_safe
def connection_health(request: HttpRequest, slug: str) -> HttpResponse:
    """The last 90 days. Four queries, whatever the number of probes."""
    connection = connection_for(request, slug)
    context = {
        "connection": connection,
        "status": connection.status,
        "is_aged": display.is_aged(connection),
        "report": health.report(connection),
        "crumbs": connection_crumbs(connection, _("Health")),
    }
    return render(request, "connections/health.html", context)
