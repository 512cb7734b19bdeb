"""allauth's pages of signing in, where this installation's settings change what they offer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

from allauth.account import views
from allauth.mfa.base import views as mfa
from allauth.mfa.models import Authenticator
from allauth.mfa.totp import views as totp
from allauth.mfa.utils import is_mfa_enabled
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponseBase
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods

from workspaces import passkeys

View = Callable[..., HttpResponseBase]


class _SignIn(views.LoginView):
    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return {
            **super().get_context_data(**kwargs),
            "issuer": settings.OIDC["name"] if settings.OIDC_IS_SET_UP else "",
            "by_password": not settings.SSO_ONLY,
            "by_passkey": not settings.SSO_ONLY and not passkeys.problem(self.request),
            "can_reset": settings.MAIL_IS_SET_UP and not settings.SSO_ONLY,
            "next": self.request.GET.get("next") or self.request.POST.get("next") or "",
        }


class _ResetFromKey(views.PasswordResetFromKeyView):
    def render_to_response(
        self, context: dict[str, Any], **response_kwargs: Any
    ) -> HttpResponseBase:
        """400 for a link that can't be used (or can't any more)."""
        status = 400 if context.get("token_fail") else 200
        return super().render_to_response(context, status=status, **response_kwargs)


class _SecondStep(mfa.AuthenticateView):
    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        user = self.stage.login.user
        context = super().get_context_data(**kwargs)
        return {
            **context,
            "options": json.dumps(context["js_data"]["request_options"]),
            "has_app": is_mfa_enabled(user, [Authenticator.Type.TOTP]),
            "has_passkey": passkeys.of(user).exists(),
            "passkey_problem": passkeys.problem(self.request),
        }


class _AppOff(totp.DeactivateTOTPView):
    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        has_passkey = passkeys.of(self.request.user).exists()
        return {**super().get_context_data(**kwargs), "has_passkey": has_passkey}


def _by_mail(view: View) -> View:
    """404 without a mail server, and where passwords are switched off."""

    @require_http_methods(["GET", "HEAD", "POST"])
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not settings.MAIL_IS_SET_UP or settings.SSO_ONLY:
            raise Http404
        return view(request, *args, **kwargs)

    guarded.login_required = False  # type: ignore[attr-defined]
    return guarded


sign_in = _SignIn.as_view()
second_step = _SecondStep.as_view()
app_off = _AppOff.as_view()
reset = _by_mail(views.password_reset)
reset_done = _by_mail(views.password_reset_done)
reset_from_key = _by_mail(_ResetFromKey.as_view())
reset_from_key_done = _by_mail(views.password_reset_from_key_done)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def code_again(request: HttpRequest) -> HttpResponseBase:
    """Asks for a code once more; for who has no second factor there is nothing to ask."""
    if not is_mfa_enabled(request.user):
        return redirect("profile:show")
    return mfa.reauthenticate(request)
