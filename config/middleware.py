"""Small layers around every page, all of them synchronous: a request runs on one thread at once
(`config.asgi.OneGo`)."""

from __future__ import annotations

import contextlib
import gzip
import io
import secrets
from collections.abc import Callable

from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.middleware.gzip import GZipMiddleware, re_accepts_gzip
from django.middleware.locale import LocaleMiddleware
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.utils.translation import gettext as _

from workspaces.languages import language_of
from workspaces.logs import route_of


class _Layer:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if (early := self.before(request)) is not None:
            return early
        return self.after(request, self.get_response(request))

    def before(self, request: HttpRequest) -> HttpResponseBase | None:
        return None

    def after(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        return response


FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


def _has_strange_body(request: HttpRequest) -> bool:
    if request.method != "POST" or request.content_type in FORM_TYPES:
        return False
    length = request.META.get("CONTENT_LENGTH", "")
    return length not in ("", "0") or "HTTP_TRANSFER_ENCODING" in request.META


class RequestLimits(_Layer):
    """Refuses what no page here means: NUL in an address, a body that isn't a form. Django would
    take JSON for a form without fields, and some forms mean something without any."""

    def before(self, request: HttpRequest) -> HttpResponseBase | None:
        if _has_strange_body(request):
            return HttpResponse(_("Send this as a form."), status=415)
        if "\x00" in request.path_info or "\x00" in request.META.get("QUERY_STRING", ""):
            return HttpResponse(_("This address can't be read."), status=400)
        if "%00" in request.META.get("QUERY_STRING", ""):
            return HttpResponse(_("This address can't be read."), status=400)
        return None


class NamedForLogs(_Layer):
    """Leaves at the connection what the request's line names: its route and its session."""

    def after(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if (scope := getattr(request, "scope", None)) is not None and request.resolver_match:
            known = {"route": route_of(request)}
            if (chat := request.resolver_match.kwargs.get("chat_id")) is not None:
                known["session_id"] = str(chat)
            scope["patchbay"] = known
        return response


class PrivatePages(_Layer):
    """Pages of signed-in people aren't kept by the browser or by anything between."""

    def after(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if "Cache-Control" not in response.headers:
            response.headers["Cache-Control"] = "no-store"
        return response


class Compressed(_Layer):
    """Pages go out as gzip, a tenth of their size. Pages alone: a stream would wait for its packer,
    and images are packed. Each answer has some random bytes more, as Django's own layer adds them,
    so that no length tells of what is secret on a page; that layer packs three times as slowly."""

    def after(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        kind = response.headers.get("Content-Type", "")
        if response.streaming or not kind.startswith("text/html") or len(response.content) < 200:
            return response
        patch_vary_headers(response, ["Accept-Encoding"])
        if re_accepts_gzip.search(request.META.get("HTTP_ACCEPT_ENCODING", "")):
            packed, name = io.BytesIO(), "x" * secrets.randbelow(GZipMiddleware.max_random_bytes)
            with gzip.GzipFile(name, "wb", 1, packed, mtime=0) as file:
                file.write(response.content)
            response.content = packed.getvalue()
            response.headers["Content-Encoding"] = "gzip"
            response.headers["Content-Length"] = str(len(response.content))
        return response


class PersonsLanguage(LocaleMiddleware):
    """The language that the signed-in person chose, else the one of the browser's that is nearest.
    Behind the sign-in, whose one query the page's own check of rights uses again."""

    def process_request(self, request: HttpRequest) -> None:
        chosen = ""
        # Pages that need no database go on without it.
        with contextlib.suppress(DatabaseError, InterfaceError):
            chosen = language_of(request.user)
        if chosen:
            translation.activate(chosen)
            request.LANGUAGE_CODE = chosen
        else:
            super().process_request(request)
