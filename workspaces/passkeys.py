"""Passkeys (WebAuthn), by django-allauth: what the browser answers is read and checked here.

A passkey is kept in allauth's row (`mfa.Authenticator`) with its public key; the private one never
leaves the person's device, so nothing of it belongs in the vault. Each is bound to one host name
and always asks who holds it (PIN, finger, face): that is why one alone signs in, and is a second
factor after a password as well.
"""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from allauth.core import context
from allauth.mfa.base.internal.flows import check_rate_limit
from allauth.mfa.models import Authenticator
from allauth.mfa.webauthn.forms import (
    AuthenticateWebAuthnForm,
    LoginWebAuthnForm,
    ReauthenticateWebAuthnForm,
)
from allauth.mfa.webauthn.internal import auth
from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from fido2.cose import UnsupportedKey
from fido2.webauthn import AuthenticationResponse, CollectedClientData, RegistrationResponse

from workspaces import audit
from workspaces.models import User

MOST = 20  # of one person
NAME_LENGTH = 60
ANSWER_LENGTH = 20_000  # characters; one without an attestation has about a thousand
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

REFUSED = gettext_lazy(
    "This passkey wasn't accepted. Press the button once more, or use another way."
)
COPIED = gettext_lazy(
    "This passkey may have been copied, so it isn't accepted. Use another way, then remove it in "
    "your profile and add a new one."
)
KNOWN = gettext_lazy("This passkey is in the list already.")


# -- where they work -------------------------------------------------------------------------------


def domain() -> str:
    """The host name that passkeys are bound to; "" where browsers offer none: a number instead of
    a name, or plain http to another machine."""
    public = urlsplit(settings.PUBLIC_URL)
    host = public.hostname or ""
    if host in LOOPBACK:
        return "localhost"
    try:
        ip_address(host)
    except ValueError:
        return host if public.scheme == "https" else ""
    return ""


def problem(request: HttpRequest) -> str:
    """Why passkeys can't be used at the address of this request, in a sentence (HTML, as it may
    link to the same page where they can); "" if they can."""
    if not domain():
        return _(
            "Browsers allow passkeys only at an https address with a host name. Ask your operator "
            "for one (PATCHBAY_URL)."
        )
    if urlsplit(f"//{request.get_host()}").hostname != domain():
        there = home(request)
        text = _("Passkeys don't work at a number as the address.")
        link = _("Open this page at %(address)s") % {"address": there}
        address = f"{there}{request.get_full_path()}"
        return format_html('{} <a href="{}">{}</a>', text, address, link)
    return ""


def home(request: HttpRequest) -> str:
    """This installation at the name that passkeys are bound to."""
    port = urlsplit(f"//{request.get_host()}").port
    return f"{request.scheme}://{domain()}{f':{port}' if port else ''}"


def _check_place(said: CollectedClientData) -> None:
    """That the browser was at a page of ours, and in no frame: compared as Django compares a form's
    origin. The library itself would take a subdomain's too. Raises `ValueError`."""
    here = f"{context.request.scheme}://{context.request.get_host()}"
    if said.origin not in (here, settings.PUBLIC_URL) or said.cross_origin:
        raise ValueError("another origin")


# -- whose they are --------------------------------------------------------------------------------


def of(user: User) -> QuerySet[Authenticator]:
    rows = Authenticator.objects.filter(user=user, type=Authenticator.Type.WEBAUTHN)
    return rows.order_by("created_at", "pk")


@transaction.atomic
def rename(passkey: Authenticator, name: str) -> None:
    """The row is locked: a sign-in that counts at the same time loses nothing."""
    row = Authenticator.objects.select_for_update().get(pk=passkey.pk)
    row.data = {**row.data, "name": name}
    row.save(update_fields=["data"])
    audit.record(row.user, "user.passkey_rename", row.user, passkey=row.pk)


@transaction.atomic
def _counted(passkey: Authenticator, counter: int) -> bool:
    """Notes how often the passkey signed; false, with an audit row, if it went back: then there
    are two of it. Those that are synchronised between devices count nothing and say 0."""
    row = Authenticator.objects.select_for_update().get(pk=passkey.pk)
    last = row.data.get("sign_count", row.wrap().authenticator_data.counter)
    if counter <= last and (counter or last):
        audit.record(row.user, "user.passkey_refused", row.user, passkey=row.pk)
        return False
    row.data = {**row.data, "sign_count": counter}
    row.save(update_fields=["data"])
    return True


# -- what the browser answers ----------------------------------------------------------------------


class AnswerField(forms.CharField):
    """A `PublicKeyCredential` as JSON, binary values in base64url; cleaned, a dictionary."""

    widget = forms.HiddenInput
    default_error_messages = {
        "required": gettext_lazy(
            "Your browser sent no passkey. Passkeys need JavaScript: switch it on, or use another "
            "way."
        )
    }

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=ANSWER_LENGTH, **kwargs)
        self.error_messages["max_length"] = REFUSED

    def clean(self, value: Any) -> dict[str, Any]:
        try:
            answer = json.loads(super().clean(value))
        except (ValueError, RecursionError):
            raise ValidationError(REFUSED) from None
        if not isinstance(answer, dict):
            raise ValidationError(REFUSED)
        return answer

    def bound_data(self, data: Any, initial: Any) -> str:
        """Never sent back: an answer counts once."""
        return ""


@contextmanager
def _refusing() -> Iterator[None]:
    """The library reads bytes of a stranger's making, and stumbles in many ways."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        AssertionError,
        NotImplementedError,
        OverflowError,
        RecursionError,
        struct.error,
    ):
        raise ValidationError(REFUSED) from None


def _proved(user: User | None, answer: dict[str, Any]) -> Authenticator:
    """The passkey that answered this browser's challenge, of that person or, without one, of whom
    the answer names. Raises `ValidationError`."""
    state = auth.get_state()
    auth.clear_state()  # a challenge is answered once, rightly or wrongly
    with _refusing():
        response = AuthenticationResponse.from_dict(answer)
        signed = response.response
        if user is None:
            handle = uuid.UUID(bytes=signed.user_handle)
            user = User.objects.filter(pk=handle, is_active=True).first()
        rows = {
            row.wrap().authenticator_data.credential_data.credential_id: row for row in of(user)
        }
        passkey = rows[response.raw_id]
        _check_place(signed.client_data)
        keys = [passkey.wrap().authenticator_data.credential_data]
        auth.get_server().authenticate_complete(state, keys, response)
    if not _counted(passkey, signed.authenticator_data.counter):
        raise ValidationError(COPIED)
    passkey.refresh_from_db()
    return passkey


class _Answered:
    """Of the three forms that take an answer, whose reading it replaces. Failures of a known
    person count with the wrong codes; nobody is locked out by a stranger's."""

    def clean_credential(self) -> Authenticator:
        forget = check_rate_limit(self.user) if self.user else None
        passkey = _proved(self.user, self.cleaned_data["credential"])
        if forget:
            forget()
        return passkey


class SignInForm(_Answered, LoginWebAuthnForm):
    credential = AnswerField()


class SecondForm(_Answered, AuthenticateWebAuthnForm):
    credential = AnswerField()


class AgainForm(_Answered, ReauthenticateWebAuthnForm):
    credential = AnswerField()


class NameField(forms.CharField):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            label=gettext_lazy("Name"),
            max_length=NAME_LENGTH,
            widget=forms.TextInput(attrs={"autocomplete": "off"}),
            error_messages={"required": gettext_lazy("Give it a name by which you know it.")},
            **kwargs,
        )


class NameForm(forms.Form):
    name = NameField(help_text=gettext_lazy("Only you see it."))

    def __init__(self, *args: Any, instance: Authenticator, **kwargs: Any) -> None:
        self.instance = instance
        kwargs.setdefault("initial", {}).setdefault("name", instance.wrap().name)
        super().__init__(*args, **kwargs)

    def save(self) -> Authenticator:
        rename(self.instance, self.cleaned_data["name"])
        return self.instance


class AddForm(forms.Form):
    """A passkey that the browser has just made. Its `credential` is cleaned to what is kept of it:
    a stranger's JSON goes into no column."""

    name = NameField(
        help_text=gettext_lazy("By which you know it again: the device, or where it is kept.")
    )
    credential = AnswerField()

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        self.user = user
        super().__init__(*args, **kwargs)

    def clean_credential(self) -> dict[str, Any]:
        state = auth.get_state()
        auth.clear_state()
        with _refusing():
            made = RegistrationResponse.from_dict(self.cleaned_data["credential"])
            data = auth.get_server().register_complete(state, made)
            _check_place(made.response.client_data)
            if isinstance(data.credential_data.public_key, UnsupportedKey):
                raise ValueError("a key of an unknown kind")
            if data.credential_data.credential_id != made.raw_id:
                raise ValueError("two ids")
        same = Authenticator.objects.filter(data__credential__id=made.id)
        if same.exists():
            raise ValidationError(KNOWN)
        return {
            "id": made.id,
            "rawId": made.id,
            "type": "public-key",
            "response": dict(made.response),
            "clientExtensionResults": {},
        }

    def clean(self) -> dict[str, Any]:
        if of(self.user).count() >= MOST:
            raise ValidationError(
                _("You have %(most)s passkeys, which is all that fit. Remove one first.")
                % {"most": MOST}
            )
        return super().clean()
