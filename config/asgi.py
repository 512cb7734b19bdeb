"""The ASGI application: limits and static files before Django."""

from __future__ import annotations

import asyncio
import contextlib
import os

from asgiref.sync import ThreadSensitiveContext
from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
_django = get_asgi_application()

from django.conf import settings  # noqa: E402

from config.limits import BodyLimits  # noqa: E402
from config.static import StaticFiles  # noqa: E402
from config.threads import RequestThreads, settle_in  # noqa: E402

_http = StaticFiles(
    BodyLimits(_django, limit=settings.REQUEST_BODY_LIMIT),
    root=settings.STATIC_ROOT,
    url=settings.STATIC_URL,
)

_threads = RequestThreads()

_BUSY: ASGISendEvent = {
    "type": "http.response.start",
    "status": 503,
    "headers": [(b"retry-after", b"5"), (b"content-length", b"0"), (b"connection", b"close")],
    "trailers": False,
}


async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    started = False

    async def noted(message: ASGISendEvent) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        async with ThreadSensitiveContext(executor=_threads):
            await _http(scope, receive, noted)
    except asyncio.CancelledError:
        # The server ends and cancels what is still open: an event stream ends as one does, so that
        # its page asks again; a request that was never answered is told to come back.
        with contextlib.suppress(RuntimeError):
            if not started:
                await send(_BUSY)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _lifespan(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Django knows no lifespan; the server's questions are answered here."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            settle_in()
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
