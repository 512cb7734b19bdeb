"""The first run: one token, one first admin, one first workspace."""

from __future__ import annotations

import hmac
from pathlib import Path

from django import forms
from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils.translation import gettext_lazy as _

from config import env
from workspaces import audit
from workspaces.models import Installation, Membership, Role, User, UserManager, Workspace
from workspaces.slugs import make_slug


class AlreadySetUp(Exception):
    """Somebody was first."""


def is_set_up() -> bool:
    return Installation.objects.exists() or User.objects.exists()


def _kept_token() -> Path:
    return settings.KEYS_DIR / "setup.token"


def first_run_token() -> str | None:
    """What the console prints, made on the first call; None once the installation is set up."""
    if is_set_up():
        return None
    return settings.SETUP_TOKEN or env.made_secret("PATCHBAY_SETUP_TOKEN", _kept_token())


def _is_token(text: str) -> bool:
    """Makes nothing: an attempt that comes too late must not bring the file back."""
    try:
        token = settings.SETUP_TOKEN or _kept_token().read_text().strip()
    except FileNotFoundError:
        return False
    return bool(token) and hmac.compare_digest(text.encode(), token.encode())


class SetupForm(forms.Form):
    token = forms.CharField(
        label=_("First-run token"),
        max_length=200,
        help_text=_("Printed in the console where Patchbay was started."),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        error_messages={"required": _("Copy the line “First-run token” from the console.")},
    )
    email = forms.EmailField(
        label=_("Your e-mail address"),
        widget=forms.EmailInput(attrs={"autocomplete": "username"}),
        error_messages={
            "required": _("Enter the address that you will sign in with."),
            "invalid": _("This isn't an e-mail address. Enter one like name@example.com."),
        },
    )
    password = forms.CharField(
        label=_("Password"),
        max_length=200,
        strip=False,
        help_text=_("At least 10 characters."),
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        error_messages={"required": _("Choose a password.")},
    )
    workspace = forms.CharField(
        label=_("Name of the first workspace"),
        max_length=100,
        help_text=_("A team or a project, for example “Support”. You can add more later."),
        error_messages={"required": _("Give the workspace a name.")},
    )

    def clean_token(self) -> str:
        token = self.cleaned_data["token"].strip()
        if not _is_token(token):
            raise ValidationError(
                _("This isn't the token. Copy the line “First-run token” from the console.")
            )
        return token

    def clean_email(self) -> str:
        return UserManager.normalize_email(self.cleaned_data["email"])

    def clean(self) -> dict[str, object]:
        data = super().clean() or {}
        if password := data.get("password"):
            try:
                validate_password(password, User(email=data.get("email", "")))
            except ValidationError as error:
                self.add_error("password", error)
        return data


@transaction.atomic
def set_up(*, email: str, password: str, workspace: str) -> tuple[User, Workspace]:
    """Makes the first admin and the first workspace, or raises `AlreadySetUp`.

    The singleton row is written first, in the same transaction: its primary key lets exactly one
    of many attempts win.
    """
    try:
        with transaction.atomic():
            Installation.objects.create(id=1)
    except IntegrityError:
        raise AlreadySetUp from None
    if User.objects.exists():
        raise AlreadySetUp
    user = User.objects.create_superuser(email, password)
    space = create_workspace(user, workspace)
    transaction.on_commit(lambda: _kept_token().unlink(missing_ok=True))
    return user, space


def create_workspace(actor: User | str, name: str, *, slug: str = "") -> Workspace:
    """A workspace with its maker, if that is a person, as admin. `slug` is the one wanted; without
    it, or when it is taken, one is made of the name. Call inside `atomic()`."""

    def taken(text: str) -> bool:
        return Workspace.objects.filter(slug=text).exists()

    if not slug or taken(slug):
        slug = make_slug(name, taken=taken, fallback="workspace")
    space = Workspace.objects.create(name=name.strip(), slug=slug)
    if isinstance(actor, User):
        Membership.objects.create(workspace=space, user=actor, role=Role.ADMIN)
    audit.record(actor, "workspace.create", space, workspace_id=space.id)
    return space
