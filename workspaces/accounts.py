"""How signing in with django-allauth is done and worded here."""

from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.forms import (
    ChangePasswordForm,
    LoginForm,
    ReauthenticateForm,
    ResetPasswordForm,
    ResetPasswordKeyForm,
)
from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _


class ClosedSignup(DefaultAccountAdapter):
    """People are let in by an admin; nobody signs up."""

    error_messages = {
        **DefaultAccountAdapter.error_messages,
        "email_password_mismatch": _(
            "This e-mail address and password don't go together. Check both, then try again."
        ),
        "enter_current_password": _("This isn't your current password. Type it again."),
        "too_many_login_attempts": _(
            "Too many attempts to sign in failed. Wait a few minutes, then try again."
        ),
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def is_safe_url(self, url: str | None) -> bool:
        try:
            return super().is_safe_url(url)
        except ValueError:  # "http://[::1" is no address at all
            return False

    def authenticate(self, request: HttpRequest, **credentials: Any) -> Any:
        """By password; nobody where the operator lets people in through the issuer alone."""
        return None if settings.SSO_ONLY else super().authenticate(request, **credentials)


class SignIn(LoginForm):
    def clean(self) -> dict[str, Any]:
        if settings.SSO_ONLY:
            raise ValidationError(
                _("Passwords are switched off here. Sign in with %(name)s.")
                % {"name": settings.OIDC["name"]}
            )
        return super().clean()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["login"].label = _("E-mail address")
        # The browser offers passkeys there, beside addresses (static/js/passkeys.js).
        self.fields["login"].widget.attrs["autocomplete"] = "username webauthn"
        self.fields["password"].help_text = ""  # the page itself says what can be done without one


class PasswordChange(ChangePasswordForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["oldpassword"].label = _("Current password")
        self.fields["password1"].label = _("New password")
        self.fields["password1"].help_text = _(
            "At least 10 characters, and none that many people use."
        )
        self.fields["password2"].label = _("New password, again")


class ResetRequest(ResetPasswordForm):
    """Asks for a link by mail. Who is known and who isn't gets the same answer, as fast: a worker
    looks the address up and writes the mail."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["email"].label = _("E-mail address")

    def clean_email(self) -> str:
        return self.cleaned_data["email"]

    def save(self, request: HttpRequest, **kwargs: Any) -> str:
        from workspaces.tasks import ask_for_reset

        email: str = self.cleaned_data["email"]
        ask_for_reset(email)
        return email


class ResetPassword(ResetPasswordKeyForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["password1"].label = _("New password")
        self.fields["password1"].help_text = _(
            "At least 10 characters, and none that many people use."
        )
        self.fields["password2"].label = _("New password, again")


class PasswordAgain(ReauthenticateForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["password"].label = _("Your password")
        self.fields["password"].help_text = ""
