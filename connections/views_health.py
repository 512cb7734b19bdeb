"""How connections did: the page of one, and the overview of all."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from connections import display, health
from connections.views import connection_crumbs, connection_for


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
