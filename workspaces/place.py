"""Where a person left off: a cookie of the browser, as looking at a page changes no row."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from workspaces.models import Workspace


def last_workspace(request: HttpRequest) -> str:
    """The slug of the workspace that was looked at last, or ""; anybody can write it."""
    return request.COOKIES.get(settings.WORKSPACE_COOKIE_NAME, "").replace("\x00", "")


def remember(request: HttpRequest, response: HttpResponse, workspace: Workspace) -> HttpResponse:
    if last_workspace(request) != workspace.slug:
        response.set_cookie(
            settings.WORKSPACE_COOKIE_NAME,
            workspace.slug,
            max_age=settings.SESSION_COOKIE_AGE,
            secure=settings.SESSION_COOKIE_SECURE,
            httponly=True,
            samesite="Lax",
        )
    return response
