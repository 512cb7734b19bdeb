"""The form of the alerts: what may stand in it is said in `connections.alerts`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _

from connections import alerts
from connections.models import AlertSettings
from workspaces.forms import KeepsTyped, Problems
from workspaces.models import User


class _WriteOnly(forms.TextInput):
    """An input that never shows what it was given."""

    def format_value(self, value: Any) -> str:
        return ""


_SECRET = {"autocomplete": "off", "spellcheck": "false", "data-mono": True}


class AlertsForm(KeepsTyped, Problems, forms.Form):
    use_required_attribute = False

    failures = forms.IntegerField(
        label=_("Failures in a row"),
        min_value=1,
        max_value=alerts.MOST_FAILURES,
        help_text=_("So many validations have to fail before anybody is told."),
        error_messages={
            "min_value": _("Enter %(limit_value)s or more."),
            "max_value": _("Enter %(limit_value)s or less."),
        },
    )
    of_budgets = forms.BooleanField(
        label=_("Tell of budgets"),
        required=False,
        help_text=_("Once a month when one reaches its notice, and once when it is used up."),
    )
    by_mail = forms.BooleanField(label=_("Mail the instance admins"), required=False)
    webhook_url = forms.CharField(
        label=_("Webhook address"), required=False, widget=_WriteOnly(attrs=_SECRET)
    )
    webhook_secret = forms.CharField(
        label=_("Signing secret"),
        required=False,
        widget=_WriteOnly(attrs=_SECRET),
        help_text=_(
            "16 characters or more. Each message carries X-Patchbay-Signature: sha256= and the "
            "HMAC-SHA256 of its body in hex."
        ),
    )
    remove_webhook = forms.BooleanField(label=_("Remove the webhook"), required=False)

    def __init__(self, data: Mapping[str, Any] | None, *, now: AlertSettings) -> None:
        names = ("failures", "of_budgets", "by_mail")
        super().__init__(data, initial={name: getattr(now, name) for name in names})
        help_text = _t("Encrypted and never shown again, as such an address often holds a key.")
        if now.has_webhook:
            help_text = _t("Stored, for %(host)s. Leave blank to keep it.")
            help_text %= {"host": now.webhook_origin}
        else:
            del self.fields["remove_webhook"]
        self.fields["webhook_url"].help_text = help_text
        self.keep_typed("webhook_url", "webhook_secret")

    def save(self, actor: User) -> bool:
        """False when the verb refuses: its sentences then stand at the fields. Looks the address
        up, so not within a transaction."""
        try:
            alerts.update(actor, **{"remove_webhook": False, **self.cleaned_data})
        except ValidationError as error:
            for name, errors in error.error_dict.items():
                self.add_error(name, errors)
            return False
        return True
