"""The ASGI application: limits and static files before Django, Django in one go, an id for each
request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import time

import django
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup(set_prefix=False)

from django.conf import settings  # noqa: E402

from config.fair import FairShare  # noqa: E402
from config.limits import BodyLimits  # noqa: E402
from config.static import StaticFiles  # noqa: E402
from config.threads import RequestThreads  # noqa: E402
from workspaces import logs  # noqa: E402
from workspaces.runtime import settle_in  # noqa: E402

DRAWING = 4  # pages that ask for their turns again, at once


class OneGo(ASGIHandler):
    """Django's handler, with the whole of a request on one thread at once. Its own goes to a thread
    and back for each part of each middleware: twenty times a request, and each time it waits."""

    def __init__(self) -> None:
        super().__init__()
        self._drawing = asyncio.Semaphore(DRAWING)
        self._fair = FairShare()

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        respond = sync_to_async(self.get_response)
        # However many pages ask what has changed, a message that comes in competes with few of them
        # for the processor.
        is_drawing = request.path.endswith("/turns/")
        async with (
            self._fair.turn(request.COOKIES.get(settings.SESSION_COOKIE_NAME, "")),
            self._drawing if is_drawing else contextlib.nullcontext(),
        ):
            return await respond(request)


_http = StaticFiles(
    BodyLimits(OneGo(), limit=settings.REQUEST_BODY_LIMIT),
    root=settings.STATIC_ROOT,
    url=settings.STATIC_URL,
)

_threads = RequestThreads()
_access = logging.getLogger("patchbay.access")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

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
    status, began, request_id = 0, time.perf_counter(), _id_of(scope)

    async def noted(message: ASGISendEvent) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = [*message["headers"], (b"x-request-id", request_id.encode())]
            message = {**message, "headers": headers}
        await send(message)

    with logs.about(request_id=request_id):
        try:
            await _answer(scope, receive, noted)
        finally:
            if _access.isEnabledFor(logging.INFO):
                _note(scope, status, time.perf_counter() - began)


def _id_of(scope: Scope) -> str:
    """What the proxy or the caller calls the request, where that is a plain word, else our own."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _ID.fullmatch(given) else secrets.token_hex(8)


def _note(scope: Scope, status: int, seconds: float) -> None:
    """The line of a request. The route stands for the path, which may hold a token."""
    known = scope.get("patchbay", {})
    if not known and scope["path"].startswith(settings.STATIC_URL):
        known = {"route": settings.STATIC_URL}
    fields = {
        "method": scope["method"],
        "route": "",
        "status": status,
        "ms": round(1000 * seconds, 1),
        **known,
    }
    _access.info("request", extra={"fields": fields})


async def _answer(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
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
