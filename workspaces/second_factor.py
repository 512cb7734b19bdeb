"""The second factor of a sign-in, by django-allauth: codes of an authenticator app, and recovery
codes. Its secrets are kept in the vault (`SignInKey`), so that rotating the instance key and a
backup treat them as they treat every other secret."""

from __future__ import annotations

import uuid
from typing import Any

from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.forms import ActivateTOTPForm
from django.db import transaction
from django.utils.translation import gettext_lazy as _

from workspaces import audit
from workspaces.models import SignInKey, User
from workspaces.vault import Plain


class Adapter(DefaultMFAAdapter):
    error_messages = {
        **DefaultMFAAdapter.error_messages,
        "incorrect_code": _(
            "This code isn't right. Codes change every half minute: type the newest."
        ),
    }

    def encrypt(self, text: str) -> str:
        key = SignInKey.objects.create(value=Plain(text))
        return str(key.pk)

    def decrypt(self, encrypted_text: str) -> str:
        return SignInKey.objects.get(pk=encrypted_text).value.open().decode()

    def send_notification_mail(self, *args: Any, **kwargs: Any) -> None:
        """None: the audit has it."""


def keys_of(authenticator: Authenticator) -> list[uuid.UUID]:
    """The rows of the vault that one of allauth's names."""
    names = [authenticator.data.get(name) for name in ("secret", "seed")]
    names += authenticator.data.get("migrated_codes") or []
    return [uuid.UUID(name) for name in names if name]


@transaction.atomic
def take_away(actor: User | str, user: User) -> bool:
    """Removes a person's second factor, for who lost the device; whether there was one."""
    rows = Authenticator.objects.filter(user=user)
    found = rows.exists()
    for row in rows:
        row.delete()
    if found:
        audit.record(actor, "user.second_factor_off", user)
    return found


class CodeForm(AuthenticateForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["code"].label = _("Code of your app, or a recovery code")


class CodeAgainForm(ReauthenticateForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["code"].label = _("Code of your app, or a recovery code")


class ActivateForm(ActivateTOTPForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["code"].label = _("Code that the app shows")
