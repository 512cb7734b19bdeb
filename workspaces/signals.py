"""Sign-ins in the audit: a sign-in whose row can't be written doesn't happen (the session is stored
only after the page succeeded)."""

from __future__ import annotations

from typing import Any

from allauth.account.signals import password_changed, password_reset
from allauth.socialaccount.models import SocialLogin
from allauth.socialaccount.signals import social_account_added
from allauth.usersessions.models import UserSession
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import transaction
from django.dispatch import receiver
from django.http import HttpRequest

from workspaces import audit
from workspaces.models import User


def _record(action: str, user: User | None) -> None:
    if user is not None:
        with transaction.atomic():
            audit.record(user, action, user)


@receiver(user_logged_in, dispatch_uid="audit.sign_in")
def signed_in(user: User, **kwargs: Any) -> None:
    _record("user.sign_in", user)


@receiver(user_logged_in, dispatch_uid="devices.sign_in")
def note_device(request: HttpRequest | None, user: User, **kwargs: Any) -> None:
    """For "my devices"; allauth itself notes only what came through its own pages."""
    if request is not None and request.META.get("REMOTE_ADDR"):
        UserSession.objects.create_from_request(request)


@receiver(social_account_added, dispatch_uid="audit.link")
def linked(sociallogin: SocialLogin, **kwargs: Any) -> None:
    _record("user.link", sociallogin.user)


@receiver(user_logged_out, dispatch_uid="audit.sign_out")
def signed_out(user: User | None, **kwargs: Any) -> None:
    _record("user.sign_out", user)


@receiver([password_changed, password_reset], dispatch_uid="audit.password")
def changed_password(user: User, **kwargs: Any) -> None:
    _record("user.password", user)
