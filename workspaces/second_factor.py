"""The second factor of a sign-in, by django-allauth: codes of an authenticator app, passkeys
(workspaces.passkeys), and recovery codes. Its secrets are kept in the vault (`SignInKey`), so that
rotating the instance key and a backup treat them as they treat every other secret."""

from __future__ import annotations

import uuid
from typing import Any

from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.forms import ActivateTOTPForm
from django.db import transaction
from django.db.models import Exists, OuterRef
from django.utils.text import capfirst, get_text_list
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from workspaces import audit, passkeys
from workspaces.models import SignInKey, User
from workspaces.vault import Plain

FACTORS = (Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN)  # recovery codes follow them


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

    def get_public_key_credential_rp_entity(self) -> dict[str, str]:
        return {"id": passkeys.domain(), "name": "Patchbay"}

    def get_public_key_credential_user_entity(self, user: User) -> dict[str, Any]:
        return {"id": user.pk.bytes, "name": user.email, "display_name": user.label}

    def send_notification_mail(self, *args: Any, **kwargs: Any) -> None:
        """None: the audit has it."""


def keys_of(authenticator: Authenticator) -> list[uuid.UUID]:
    """The rows of the vault that one of allauth's names."""
    names = [authenticator.data.get(name) for name in ("secret", "seed")]
    names += authenticator.data.get("migrated_codes") or []
    return [uuid.UUID(name) for name in names if name]


def exists_for(outer: str) -> Exists:
    """Whether the person to whom that field of the query points has one."""
    return Exists(Authenticator.objects.filter(user=OuterRef(outer), type__in=FACTORS))


def words_of(user: User) -> str:
    """What a person has of it: "Authenticator app and 2 passkeys"; "" for nothing."""
    kinds = list(Authenticator.objects.filter(user=user).values_list("type", flat=True))
    words = []
    if Authenticator.Type.TOTP in kinds:
        words.append(gettext("authenticator app"))
    if n := kinds.count(Authenticator.Type.WEBAUTHN):
        words.append(ngettext("one passkey", "%(n)s passkeys", n) % {"n": n})
    return capfirst(get_text_list(words, gettext("and")))


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


class _Code:
    """Of the two forms that take a code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        apps = Authenticator.objects.filter(user=self.user, type=Authenticator.Type.TOTP)
        self.fields["code"].label = (
            _("Code of your app, or a recovery code") if apps.exists() else _("A recovery code")
        )


class CodeForm(_Code, AuthenticateForm):
    pass


class CodeAgainForm(_Code, ReauthenticateForm):
    pass


class ActivateForm(ActivateTOTPForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["code"].label = _("Code that the app shows")
