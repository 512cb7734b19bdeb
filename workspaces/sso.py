"""Signing in at one OpenID Connect issuer, through django-allauth.

Who somebody is there is told by issuer and subject. The mail address that an issuer tells matches
nobody here; it only names a new person whom an invitation lets in, and only when it is verified.
Where the issuer stands is the operator's configuration, so its calls don't pass the guarded way
out; they know no proxy of the environment and follow no redirect.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import requests
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter, get_adapter
from allauth.socialaccount.models import SocialLogin, SocialToken
from allauth.socialaccount.providers.oauth2.client import OAuth2Error
from allauth.socialaccount.providers.oauth2.views import OAuth2CallbackView
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from workspaces import people

TIMEOUT = 10  # seconds
INVITATION = "sso_invitation"  # in the browser's session: the token of the link it came from


class Issuer(OpenIDConnectOAuth2Adapter):
    """The issuer's side of the protocol, with what allauth leaves open: the discovered issuer is
    the one that was configured, the signature counts, and both answers are of one subject."""

    @property
    def openid_config(self) -> dict[str, Any]:
        config = super().openid_config
        if str(config.get("issuer", "")).rstrip("/") != settings.OIDC["issuer"].rstrip("/"):
            raise OAuth2Error("the issuer calls itself by another name")
        return config

    def complete_login(
        self, request: HttpRequest, app: Any, token: SocialToken, **kwargs: Any
    ) -> SocialLogin:
        self.did_fetch_access_token = False  # so that the signature is verified
        claims = self._decode_id_token(app, kwargs["response"].get("id_token") or "")
        if self.openid_config.get("userinfo_endpoint"):
            told = self._fetch_user_info(token.token)
            if told.get("sub") != claims["sub"]:
                raise OAuth2Error("two answers of different subjects")
            claims = {**claims, **told}
        kept = {name: claims[name] for name in ("sub", "email", "name") if name in claims}
        kept["email_verified"] = claims.get("email_verified") is True
        return self.get_provider().sociallogin_from_response(request, {"userinfo": kept})

    def get_callback_url(self, request: HttpRequest, app: Any) -> str:
        return settings.PUBLIC_URL + reverse("account_sso_callback")


class Adapter(DefaultSocialAccountAdapter):
    def get_provider(self, request: HttpRequest, provider: str, client_id: Any = None) -> Any:
        found = super().get_provider(request, provider, client_id)
        found.oauth2_adapter_class = Issuer
        return found

    def list_apps(self, request: HttpRequest, provider: Any = None, client_id: Any = None) -> Any:
        """The one of the environment. What a database row says of an issuer counts for nothing."""
        found = super().list_apps(request, provider=provider, client_id=client_id)
        return [app for app in found if app.pk is None]

    def get_requests_session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.max_redirects = 0
        session.request = functools.partial(session.request, timeout=TIMEOUT)  # type: ignore[method-assign]
        return session

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Somebody unknown: let in by the invitation whose link was open in this browser, or not
        at all."""
        token = request.session.pop(INVITATION, "")
        if sociallogin.state.get("process") == "connect":
            return
        if sociallogin.is_existing:
            if token and sociallogin.user.is_active:
                with contextlib.suppress(people.InvitationRefused):
                    people.accept(token, user=sociallogin.user)
            return
        if request.user.is_authenticated:
            raise ImmediateHttpResponse(
                failed(request, _("You are signed in as somebody already."))
            )
        told = sociallogin.account.extra_data["userinfo"]
        if not token:
            text = _(
                "Nobody here is linked to this account at %(name)s. Ask an admin of your team for "
                "an invitation; if you have an account here, sign in with it and link the two in "
                "your profile."
            )
            raise ImmediateHttpResponse(failed(request, text % {"name": settings.OIDC["name"]}))
        if not told.get("email") or not told["email_verified"]:
            text = _("%(name)s doesn't vouch for your e-mail address, so it can't be used here.")
            raise ImmediateHttpResponse(failed(request, text % {"name": settings.OIDC["name"]}))
        try:
            with transaction.atomic():
                user = people.accept(
                    token, user=None, email=told["email"], name=told.get("name") or "", sso=True
                )
                sociallogin.connect(request, user)
        except people.InvitationRefused as refusal:
            raise ImmediateHttpResponse(failed(request, str(refusal))) from None

    def on_authentication_error(self, request: HttpRequest, provider: Any, **kwargs: Any) -> None:
        text = _("The sign-in at %(name)s didn't come to an end. Try again from the start.")
        raise ImmediateHttpResponse(failed(request, text % {"name": settings.OIDC["name"]}))

    def is_open_for_signup(self, request: HttpRequest, sociallogin: SocialLogin) -> bool:
        return False

    def send_notification_mail(self, *args: Any, **kwargs: Any) -> None:
        """None: the audit has it."""

    def get_connect_redirect_url(self, request: HttpRequest, socialaccount: Any) -> str:
        return reverse("profile:show")


def failed(request: HttpRequest, problem: str) -> HttpResponse:
    """The page that says why nobody was signed in."""
    return render(request, "account/sso_failed.html", {"problem": problem}, status=400)


@login_not_required
@require_POST
def sso(request: HttpRequest) -> HttpResponse:
    """To the issuer: by a page that goes on by itself, since `form-action 'self'` forbids a form to
    be redirected elsewhere. `process` = connect links the account there to the person who is signed
    in; `invitation`: the token of the link that was open; `next`: where to go afterwards."""
    if not settings.OIDC_IS_SET_UP:
        raise Http404
    connects = request.POST.get("process") == "connect"
    if connects and not request.user.is_authenticated:
        return failed(request, _("Sign in first, then link your account."))
    request.session.pop(INVITATION, None)
    if token := request.POST.get("invitation", "")[:200]:
        request.session[INVITATION] = token
    provider = get_adapter().get_provider(request, settings.OIDC_PROVIDER)
    try:
        there = provider.redirect(
            request,
            process="connect" if connects else "login",
            next_url=None if connects else _own_path(request.POST.get("next", "")),
        )
    except (OAuth2Error, requests.RequestException, KeyError, ValueError):
        return failed(
            request,
            _("%(name)s doesn't answer as an OpenID Connect issuer does. Tell your operator.")
            % {"name": settings.OIDC["name"]},
        )
    context = {"issuer": settings.OIDC["name"], "there": there.headers["Location"]}
    return render(request, "account/sso_go.html", context)


@login_not_required
@require_safe
def sso_callback(request: HttpRequest) -> HttpResponse:
    """Back from the issuer, with `code` and `state`."""
    if not settings.OIDC_IS_SET_UP:
        raise Http404
    view = OAuth2CallbackView.adapter_view(Issuer(request, settings.OIDC_PROVIDER))
    try:
        return view(request)
    except (OAuth2Error, requests.RequestException, KeyError, ValueError, TypeError):
        text = _("%(name)s answered with something that can't be trusted. Try again.")
        return failed(request, text % {"name": settings.OIDC["name"]})


def _own_path(text: str) -> str | None:
    return text if text.startswith("/") and not text.startswith(("//", "/\\")) else None
