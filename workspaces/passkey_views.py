"""Passkeys: signing in with one, proving oneself by one, and the pages that add, rename and remove
one's own. The browser's part is static/js/passkeys.js."""

from __future__ import annotations

import json
from typing import Any

from allauth.account.internal.decorators import login_not_required
from allauth.account.models import Login
from allauth.account.utils import get_next_redirect_url
from allauth.core.internal import ratelimit
from allauth.mfa.webauthn import views
from allauth.mfa.webauthn.internal import auth, flows
from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.forms import Form
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.urls import reverse, reverse_lazy
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from workspaces import audit, passkeys
from workspaces.devices import name_of
from workspaces.models import User


def _is_throttled(request: HttpRequest) -> bool:
    return not ratelimit.consume(request, app="allauth.mfa", action="webauthn_login")


def _need_passwordless(request: HttpRequest) -> None:
    """404 where the issuer alone lets in, and at an address where browsers have no passkeys."""
    if settings.SSO_ONLY or passkeys.problem(request):
        raise Http404


@login_not_required
@require_POST
def begin(request: HttpRequest) -> HttpResponse:
    """A new challenge for this browser, as JSON: what `navigator.credentials.get` takes."""
    _need_passwordless(request)
    if _is_throttled(request):
        return JsonResponse({}, status=429)
    return JsonResponse(auth.begin_authentication(None))


@login_not_required
@require_POST
def sign_in(request: HttpRequest) -> HttpResponse:
    """With a passkey alone: no password and no second factor, since it asked for its holder."""
    _need_passwordless(request)
    if request.user.is_authenticated:
        return redirect("workspaces:home")
    there = get_next_redirect_url(request)
    if _is_throttled(request):
        problem = _("Too many attempts to sign in failed. Wait a few minutes, then try again.")
    else:
        form = passkeys.SignInForm(request.POST)
        if form.is_valid():
            passkey = form.cleaned_data["credential"]
            login = Login(user=passkey.user, redirect_url=there)
            return flows.perform_passwordless_login(request, passkey, login)
        problem = " ".join(form.errors["credential"])
    messages.error(request, problem)
    query = f"?{urlencode({'next': there})}" if there else ""
    answer = redirect(reverse("account_login") + query)
    answer.status_code = 303
    return answer


class _Again(views.ReauthenticateWebAuthnView):
    template_name = "mfa/webauthn/reauthenticate.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = {**super().get_context_data(), **kwargs}
        return {
            **context,
            "options": json.dumps(context["js_data"]["request_options"]),
            "next": get_next_redirect_url(self.request) or "",
            "passkey_problem": passkeys.problem(self.request),
        }

    def form_invalid(self, form: Form) -> HttpResponse:
        return self.render_to_response(self.get_context_data(form=form))


class _Add(views.AddWebAuthnView):
    """Of the kind that signs in alone: kept by the device, with a look at who holds it."""

    def get_initial(self) -> dict[str, Any]:
        return {"name": name_of(self.request.META.get("HTTP_USER_AGENT", ""))}

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        user = self.request.user
        problem = passkeys.problem(self.request)
        return {
            "form": self.get_form(),
            **kwargs,
            "passkey_problem": problem,
            "is_full": passkeys.of(user).count() >= passkeys.MOST,
            "is_first": not passkeys.of(user).exists(),
            "options": json.dumps({} if problem else auth.begin_registration(user, True)),
            "sso_only": settings.SSO_ONLY,
        }

    @transaction.atomic
    def form_valid(self, form: Form) -> HttpResponse:
        # Two at once make one set of recovery codes.
        User.objects.select_for_update().get(pk=self.request.user.pk)
        return super().form_valid(form)

    def get_success_url(self) -> str:
        if self.did_generate_recovery_codes:
            return reverse("mfa_view_recovery_codes")
        return reverse("profile:show")


class _Remove(views.RemoveWebAuthnView):
    success_url = reverse_lazy("profile:show")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        others = self.request.user.authenticator_set.exclude(pk=self.object.pk)
        is_last = not others.exclude(type="recovery_codes").exists()
        return {**super().get_context_data(**kwargs), "is_last": is_last}

    @transaction.atomic
    def form_valid(self, form: Form) -> HttpResponse:
        audit.record(
            self.request.user, "user.passkey_remove", self.request.user, passkey=self.object.pk
        )
        return super().form_valid(form)


class _Rename(views.EditWebAuthnView):
    success_url = reverse_lazy("profile:show")


_pages = require_http_methods(["GET", "HEAD", "POST"])
again = _pages(_Again.as_view())
add = _pages(_Add.as_view())
remove = _pages(_Remove.as_view())
rename = _pages(_Rename.as_view())
