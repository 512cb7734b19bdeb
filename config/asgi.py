"""The ASGI application: limits and static files before Django."""

from __future__ import annotations

import os

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
_django = get_asgi_application()

from django.conf import settings  # noqa: E402

from config.limits import BodyLimits  # noqa: E402
from config.static import StaticFiles  # noqa: E402

_http = StaticFiles(
    BodyLimits(_django, limit=settings.REQUEST_BODY_LIMIT),
    root=settings.STATIC_ROOT,
    url=settings.STATIC_URL,
)


async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    else:
        await _http(scope, receive, send)


async def _lifespan(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Django knows no lifespan; the server's questions are answered here."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
