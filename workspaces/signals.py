"""Sign-ins in the audit: a sign-in whose row can't be written doesn't happen (the session is stored
only after the page succeeded)."""

from __future__ import annotations

from typing import Any

from allauth.account.signals import password_changed, password_reset
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import authenticator_added, authenticator_removed, authenticator_used
from allauth.socialaccount.models import SocialLogin
from allauth.socialaccount.signals import social_account_added
from allauth.usersessions.models import UserSession
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import transaction
from django.db.models.signals import post_delete
from django.dispatch import receiver
from django.http import HttpRequest

from workspaces import audit, second_factor
from workspaces.models import SignInKey, User


def _record(action: str, user: User | None, **details: Any) -> None:
    if user is not None:
        with transaction.atomic():
            audit.record(user, action, user, **details)


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


@receiver(authenticator_added, dispatch_uid="audit.second_factor_on")
def second_factor_on(user: User, authenticator: Authenticator, **kwargs: Any) -> None:
    if authenticator.type == Authenticator.Type.WEBAUTHN:
        _record("user.passkey_add", user, passkey=authenticator.pk)
    else:
        _record("user.second_factor_on", user)


@receiver(authenticator_removed, dispatch_uid="audit.second_factor_off")
def second_factor_off(user: User, authenticator: Authenticator, **kwargs: Any) -> None:
    """A passkey's has its row from the page: here it has no number any more."""
    if authenticator.type != Authenticator.Type.WEBAUTHN:
        _record("user.second_factor_off", user)


@receiver(authenticator_used, dispatch_uid="audit.passkey_use")
def passkey_used(
    user: User, authenticator: Authenticator, passwordless: bool, **kwargs: Any
) -> None:
    if authenticator.type == Authenticator.Type.WEBAUTHN:
        _record("user.passkey_use", user, passkey=authenticator.pk, alone=passwordless)


@receiver(post_delete, sender=Authenticator, dispatch_uid="second_factor.keys")
def drop_keys(instance: Authenticator, **kwargs: Any) -> None:
    """What allauth deletes leaves no secret behind."""
    SignInKey.objects.filter(pk__in=second_factor.keys_of(instance)).delete()
