"""Sign-ins in the audit: a sign-in whose row can't be written doesn't happen (the session is stored
only after the page succeeded)."""

from __future__ import annotations

from typing import Any

from allauth.account.signals import password_changed
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import transaction
from django.dispatch import receiver

from workspaces import audit
from workspaces.models import User


def _record(action: str, user: User | None) -> None:
    if user is not None:
        with transaction.atomic():
            audit.record(user, action, user)


@receiver(user_logged_in, dispatch_uid="audit.sign_in")
def signed_in(user: User, **kwargs: Any) -> None:
    _record("user.sign_in", user)


@receiver(user_logged_out, dispatch_uid="audit.sign_out")
def signed_out(user: User | None, **kwargs: Any) -> None:
    _record("user.sign_out", user)


@receiver(password_changed, dispatch_uid="audit.password")
def changed_password(user: User, **kwargs: Any) -> None:
    _record("user.password", user)
