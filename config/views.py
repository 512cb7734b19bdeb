"""Pages of the installation itself: errors, health, the pattern library."""

from __future__ import annotations

import errno
import logging
import sys

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, InterfaceError, OperationalError, connection
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.crypto import constant_time_compare
from django.views.decorators.http import require_safe
from redis import Redis
from redis.exceptions import RedisError

from config import patterns as patterns_data
from sessions import alive
from workspaces import logs
from workspaces.permissions import need_instance_admin

logger = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@require_safe
def patterns(request: HttpRequest) -> HttpResponse:
    """Every component in every tone, for those who work on the pages."""
    need_instance_admin(request)
    sides = [patterns_data.samples("light"), patterns_data.samples("dark")]
    return render(request, "patterns.html", {"sides": sides})


@login_not_required
@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    """The process answers."""
    return HttpResponse("ok\n", content_type="text/plain")


@login_not_required
@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """Whether the parts are there, each by itself; 503 when a page couldn't be served. Nothing but
    the words "ok", "down" and "unknown": anybody may ask."""
    parts = {"database": database_state(), "redis": redis_state(), **alive.states()}
    return JsonResponse(parts, status=200 if parts["database"] == "ok" else 503)


def database_state() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return "down"
    return "ok"


def redis_state() -> str:
    try:
        with Redis.from_url(
            settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1
        ) as client:
            client.ping()
    except (RedisError, OSError):
        return "down"
    return "ok"


@login_not_required
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """For Prometheus, with the token of PATCHBAY_METRICS_TOKEN; without one it isn't there."""
    from config import metrics as figures

    if not settings.METRICS_TOKEN:
        raise Http404
    scheme, _sep, token = request.headers.get("authorization", "").partition(" ")
    given = token.strip().encode("utf-8", "replace")
    if scheme.lower() != "bearer" or not constant_time_compare(
        given, settings.METRICS_TOKEN.encode()
    ):
        return HttpResponse(
            "Send the token: Authorization: Bearer …\n",
            status=401,
            content_type="text/plain; charset=utf-8",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return HttpResponse(figures.text(), content_type="text/plain; version=0.0.4; charset=utf-8")


def _error(request: HttpRequest, template: str, status: int) -> HttpResponse:
    """A fixed text, with the id under which the log has the rest."""
    return render(request, template, {"request_id": logs.request_id()}, status=status)


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return _error(request, "400.html", 400)


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return _error(request, "403.html", 403)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return _error(request, "403_csrf.html", 403)


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return _error(request, "404.html", 404)


def server_error(request: HttpRequest) -> HttpResponse:
    """Called while the exception is handled. A database that doesn't answer, or has no room, is
    not a fault of the page: whoever asks again in a moment gets it."""
    fault = sys.exception()
    if isinstance(fault, (OperationalError, InterfaceError)) or (
        isinstance(fault, OSError) and fault.errno in NO_ROOM
    ):
        response = _error(request, "503.html", 503)
        response.headers["Retry-After"] = "5"
        return response
    return _error(request, "500.html", 500)
