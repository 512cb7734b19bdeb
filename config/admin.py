from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponseBase, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext_lazy as _

# Registered by libraries, and wrong here: rights come from roles, and a person's address is a field
# of the person.
_FOREIGN_APPS = frozenset({"account", "auth", "mfa", "socialaccount", "usersessions"})


def _refused(name: str, values: list[str]) -> bool:
    """Whether this part of an address would be a fault in the database instead of an answer."""
    parts = name.split("__")
    if parts[-1].endswith("regex"):  # a fault when it's broken, minutes when it's malicious
        return True
    if {"year", "iso_year"}.isdisjoint(parts):
        return False
    # The calendar's first and last year leave it with some time zone.
    return not all(v.isdecimal() and len(v) < 5 and 1 < int(v) < 9999 for v in values)


class PatchbayAdminSite(admin.AdminSite):
    """Instance admins only. There is one sign-in, with its throttling: the product's own."""

    site_header = _("Patchbay operator's workbench")
    site_title = _("Patchbay admin")
    index_title = _("Everything in this installation")
    site_url = "/"

    def register(self, model_or_iterable: Any, admin_class: Any = None, **options: Any) -> None:
        models = [model_or_iterable] if isinstance(model_or_iterable, type) else model_or_iterable
        ours = [model for model in models if model._meta.app_label not in _FOREIGN_APPS]
        super().register(ours, admin_class, **options)

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Callable[..., Any]:
        """403 for who is signed in and no instance admin; nobody else gets past the sign-in."""

        guarded = super().admin_view(view, cacheable)

        @functools.wraps(guarded)
        def instance_admins_only(
            request: HttpRequest, *args: Any, **kwargs: Any
        ) -> HttpResponseBase:
            if request.user.is_authenticated and not self.has_permission(request):
                raise PermissionDenied
            if any(_refused(name, values) for name, values in request.GET.lists()):
                raise DisallowedModelAdminLookup
            return guarded(request, *args, **kwargs)

        return instance_admins_only

    def get_urls(self) -> list[Any]:
        return [path("due/", self.admin_view(self.due), name="due"), *super().get_urls()]

    def due(self, request: HttpRequest) -> HttpResponseBase:
        """What happens next by itself, the soonest first: read only."""
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        from config.due import groups  # it knows models, which aren't loaded yet at import

        title = _("What is due next")
        context = {**self.each_context(request), "title": title, "groups": groups()}
        return TemplateResponse(request, "admin/due.html", context)

    @method_decorator(login_not_required)
    def login(self, request: HttpRequest, extra_context: object = None) -> HttpResponseBase:
        if request.user.is_authenticated:
            if not self.has_permission(request):
                raise PermissionDenied
            raise Http404
        return redirect_to_login(
            request.GET.get("next") or reverse("admin:index"), reverse("account_login")
        )
