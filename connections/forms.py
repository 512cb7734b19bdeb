"""The form of a connection: which fields show for a provider and an auth type, and nothing of what
they may hold — that is `connections.validation`, shared with import and admin."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.forms import BoundField
from django.urls import reverse
from django.utils.functional import Promise, cached_property
from django.utils.html import format_html
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _

from connections import actions, candidates, grants, providers, validation
from connections.choices import (
    ALLOWED_AUTH,
    SECRET_FIELDS,
    AccessMode,
    AuthHeader,
    AuthType,
    MaxTokensField,
    MidStream,
    ProviderType,
    Status,
    Wire,
)
from connections.issuers import issuer_for
from connections.models import Connection, Secret, SecretCandidate
from connections.sign_in import off_text
from workspaces.forms import KeepsTyped, Problems
from workspaces.models import User, Workspace

# Never rendered, never sent when the form only changes its fields.
SECRET_NAMES = tuple({name: None for fields in SECRET_FIELDS.values() for name in fields})
WRITE_ONLY = (*SECRET_NAMES, "extra_headers")

_BASE_URLS = {
    ProviderType.ANTHROPIC: "https://api.anthropic.com",
    ProviderType.ANTHROPIC_COMPAT: "https://llm.example.com",
    ProviderType.OPENAI: "https://api.openai.com/v1",
    ProviderType.OPENAI_COMPAT: "https://llm.example.com/v1",
    ProviderType.BEDROCK: "https://bedrock-runtime.us-east-1.amazonaws.com",
    ProviderType.VERTEX: "https://us-central1-aiplatform.googleapis.com",
}
_SECRET_HELP = {
    AuthType.ENVIRONMENT: _(
        "Nothing is stored: the worker uses the credentials of the server's own environment."
    ),
    AuthType.NONE: _("Requests are sent without a key."),
}


def _sign_in_help(provider: ProviderType) -> str:
    text = _t("Save first; then sign in from the connection's page. Nothing is typed here.")
    available = providers.PROVIDERS.get(provider)
    if available is None or AuthType.OAUTH not in available.auth_types:
        return text
    return text if issuer_for(provider) else f"{off_text(provider)} {text}"


class _Plain:
    """`required` only marks the label: what a value may be is said in one place."""

    def clean(self, value: Any) -> Any:
        return value


class _Text(_Plain, forms.CharField):
    pass


class _Choice(_Plain, forms.ChoiceField):
    pass


class _Secret(_Plain, forms.CharField):
    def __init__(self, **options: Any) -> None:
        attrs = {"autocomplete": "off", "spellcheck": "false", "data-1p-ignore": True}
        super().__init__(widget=forms.PasswordInput(attrs=attrs), **options)


class _WriteOnlyText(forms.Textarea):
    """A textarea that never shows what it was given."""

    def format_value(self, value: Any) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of fields under a heading; those of a `folded` one open on request."""

    legend: str | Promise
    rows: list[list[BoundField]]
    help: str | Promise = ""
    folded: str | Promise = ""


class ConnectionForm(KeepsTyped, Problems, forms.Form):
    """Makes a connection, or edits one when `connection` is given.

    `data` may leave fields out: they keep what they are (a field that the chosen provider doesn't
    show, a script that sends three of them). Write-only fields left blank keep what is stored.
    With `bind=False` the same data only fills the fields: nothing is judged.
    """

    use_required_attribute = False

    name = _Text(label=_("Name"), max_length=100)
    slug = _Text(
        label=_("Slug"),
        required=False,
        help_text=_("Its name in addresses and scripts. It never changes."),
    )
    provider_type = _Choice(label=_("Provider"), choices=ProviderType.choices)
    auth_type = _Choice(label=_("Authentication"), choices=AuthType.choices)
    base_url = _Text(label=_("Base URL"), required=False, widget=forms.TextInput)
    custom_endpoint_api = _Choice(label=_("Wire format"))
    aws_region = _Text(
        label=_("AWS region"), help_text=_("The region where you have model access.")
    )
    gcp_project_id = _Text(label=_("Google Cloud project"), help_text=_("The project's id."))
    gcp_region = _Text(
        label=_("Google Cloud region"), help_text=_("The region where you have model access.")
    )
    codex_path = _Choice(
        label=_("Codex binary"),
        help_text=_("One of the paths that the operator lists in PATCHBAY_CODEX_PATHS."),
    )

    api_key = _Secret(label=_("API key"))
    access_key_id = _Secret(label=_("Access key id"))
    secret_access_key = _Secret(label=_("Secret access key"))
    session_token = _Secret(label=_("Session token"), required=False)
    service_account_json = _Text(
        label=_("Service-account key"),
        widget=_WriteOnlyText(attrs={"data-mono": True, "spellcheck": "false"}),
        help_text=_("Paste the whole JSON file."),
    )

    models_synced = _Choice(
        label=_("Models"),
        widget=forms.RadioSelect,
        choices=[
            ("false", _("My own list")),
            ("true", _("Kept in step with the provider")),
        ],
    )
    models = _Text(
        label=_("List of models"),
        required=False,
        widget=forms.Textarea(attrs={"data-mono": True, "spellcheck": "false"}),
        help_text=_("One model id a line, or JSON with contextWindow and supportsImages."),
    )
    default_model = _Text(
        label=_("Default model"),
        required=False,
        widget=forms.TextInput(attrs={"list": "model-ids", "spellcheck": "false"}),
        help_text=_("New sessions start with it; validation asks it for a short answer."),
    )
    supports_images = _Choice(
        label=_("Images"),
        choices=[
            ("", _("Text only, unless a model says otherwise")),
            ("true", _("Takes images")),
            ("false", _("Text only")),
        ],
    )
    mid_stream_behavior = _Choice(label=_("Messages sent mid-stream"))

    access = _Choice(label=_("Workspaces"), choices=AccessMode.choices, widget=forms.RadioSelect)
    workspaces = forms.ModelMultipleChoiceField(
        label=_("Chosen workspaces"),
        queryset=Workspace.objects.all(),
        to_field_name="slug",
        required=False,
        widget=forms.CheckboxSelectMultiple,
    )
    enabled = _Choice(
        label=_("State"),
        choices=[("true", _("Enabled")), ("false", _("Paused"))],
    )
    paused_message = _Text(
        label=_("Message while paused"),
        required=False,
        help_text=_("Shown to people whose sessions use this connection."),
    )
    note = _Text(
        label=_("Note"),
        required=False,
        widget=forms.Textarea,
        help_text=_("For admins: whose account this is, what it may cost."),
    )

    auth_header = _Choice(
        label=_("The key is sent as"),
        choices=[("", _("The wire format's own")), *AuthHeader.choices],
    )
    max_tokens_field = _Choice(
        label=_("The output limit is sent as"),
        choices=[("", _("The wire format's own")), *MaxTokensField.choices],
    )
    extra_headers = _Text(
        label=_("Extra headers"),
        required=False,
        widget=_WriteOnlyText(attrs={"data-mono": True, "spellcheck": "false"}),
        help_text=_("One “Name: value” a line. Kept like a key: never shown again."),
    )

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        connection: Connection | None = None,
        initial: Mapping[str, Any] | None = None,
        bind: bool = True,
        url: str = "",
    ) -> None:
        self.connection = connection
        start: dict[str, Any] = {
            "provider_type": ProviderType.ANTHROPIC,
            "access": AccessMode.ALL,
            "enabled": "true",
            "models_synced": "false",
            **(initial or {}),
        }
        if connection is not None:
            start |= stored_values(connection)
        if data is not None and not bind:
            start |= _typed(data)
        super().__init__(data if bind else None, initial=start)
        self._settle_pair()
        self._dress(url)

    # -- saving --------------------------------------------------------------------------------

    def save(self, actor: User) -> Connection | None:
        """Hands what was typed to the verbs. None when they refuse: their sentences then stand at
        the fields. Looks the address up, so not within a transaction."""
        typed = {name: self.cleaned_data[name] for name in self.fields if name in self.data}
        values = {name: typed[name] for name in validation.FIELDS if name in typed}
        secret = {name: typed[name] for name in SECRET_NAMES if name in typed}
        headers = typed.get("extra_headers") or None
        synced = {"true": True, "false": False}.get(typed.get("models_synced", ""))
        if self.connection is not None:
            values.pop("access", None)
        try:
            if self.connection is None:
                connection = actions.create(
                    actor, values, secret=secret, headers=headers, models_synced=synced
                )
            else:
                connection = self.connection
                actions.update(
                    actor,
                    connection,
                    values,
                    secret=secret,
                    headers=headers,
                    models_synced=synced,
                )
            self._save_access(actor, connection, typed)
        except ValidationError as error:
            self._take(error)
            return None
        return connection

    def _save_access(self, actor: User, connection: Connection, typed: Mapping[str, Any]) -> None:
        if "access" not in typed and "workspaces" not in typed:
            return
        access = typed.get("access") or connection.access
        chosen = {space.pk for space in self.cleaned_data["workspaces"]}
        before = {row.workspace_id for row in connection.workspace_rows.all()}
        same = access == AccessMode.ALL or chosen == before
        if access != connection.access or not same:
            grants.set_access(actor, connection, access=access, workspaces=chosen)

    def _take(self, error: ValidationError) -> None:
        by_field = error.error_dict if hasattr(error, "error_dict") else {None: [error]}
        for name, errors in by_field.items():
            self.add_error(name if name in self.fields else None, errors)

    # -- which fields, and how they look -------------------------------------------------------

    def _settle_pair(self) -> None:
        """Provider and auth type as they count for what is shown; an auth type that doesn't go
        with the provider gives way to the provider's first."""
        provider = self._now("provider_type")
        known = provider in ProviderType.values
        self.provider = ProviderType(provider) if known else ProviderType.ANTHROPIC
        allowed = ALLOWED_AUTH[self.provider]
        auth = self._now("auth_type")
        self.auth = AuthType(auth) if auth in {a.value for a in allowed} else allowed[0]
        if not self.is_bound:
            self.initial["auth_type"] = self.auth

    def _now(self, name: str) -> str:
        """What a field holds: typed, else as it was. Without its bound field, which would remember
        an initial value that `_settle_pair` may change."""
        return str((self.data.get(name) if name in self.data else self.initial.get(name)) or "")

    def _dress(self, url: str) -> None:
        fields = self.fields
        fields["auth_type"].choices = [(a.value, a.label) for a in ALLOWED_AUTH[self.provider]]
        for name in ("provider_type", "auth_type"):
            # htmx sends the whole form, without what must not travel for nothing.
            fields[name].widget.attrs |= {
                "hx-post": url,
                "hx-vals": '{"_refresh": "1"}',
                "hx-params": "not " + ",".join(WRITE_ONLY),
                "hx-target": "#connection-form",
                "hx-swap": "outerHTML",
                "hx-sync": "closest form:replace",
            }
        plain = Connection(provider_type=self.provider)
        fields["mid_stream_behavior"].choices = [
            ("", _t("Provider's default (%(own)s)") % {"own": plain.mid_stream.label}),
            *MidStream.choices,
        ]
        if self.provider.is_compat:
            fields["custom_endpoint_api"].choices = [
                ("", _t("Default (%(own)s)") % {"own": Wire(plain.wire).label}),
                *Wire.choices,
            ]
        fields["codex_path"].choices = [("", _("The server's default"))] + [
            (path, path) for path in settings.CODEX_PATHS
        ]
        base_url = fields["base_url"]
        base_url.required = self._needs_base_url()
        base_url.widget.attrs |= {
            "placeholder": _BASE_URLS[self.provider],
            "inputmode": "url",
            "spellcheck": "false",
        }
        if self._own_cloud():
            base_url.help_text = _(
                "Only for a private endpoint or a proxy: all calls then go there. Leave empty for "
                "the provider's own addresses."
            )
        elif not base_url.required:
            base_url.help_text = _("Leave empty for the provider's own address.")
        fields["default_model"].required = self.provider.is_compat
        fields["aws_region"].widget.attrs["placeholder"] = "us-east-1"
        fields["gcp_region"].widget.attrs["placeholder"] = "us-central1"
        if self.connection is not None:
            del fields["slug"]
        for name in WRITE_ONLY:
            self._dress_secret(name)

    def _dress_secret(self, name: str) -> None:
        field = self.fields[name]
        self.keep_typed(name)
        stored = self._stored_hint(name)
        if stored:
            field.help_text = stored
        elif name == "api_key" and self._key_is_optional():
            field.required = False

    def _stored_hint(self, name: str) -> str:
        if self.connection is None:
            return ""
        headers = name == "extra_headers"
        purpose = Secret.Purpose.HEADERS if headers else Secret.Purpose.AUTH
        secret = self.connection.secret_for(purpose)
        if secret is None:
            return ""
        if headers:
            return _t("Headers are stored. Leave blank to keep them; write {} to remove them.")
        if secret.binding.split(" ")[:2] != [self.provider, self.auth]:
            return ""
        if last := secret.hints.get(name):
            return _t("Stored, ends in …%(last)s. Leave blank to keep.") % {"last": last}
        if SECRET_FIELDS[self.auth].get(name):
            return _t("Stored. Leave blank to keep.")
        return ""

    def _key_is_optional(self) -> bool:
        probe = Connection(auth_type=self.auth, base_url=self._now("base_url"))
        try:
            return not probe.needs_secret
        except ValueError:
            return False

    def _works_in_use(self) -> bool:
        """Whether a wrong secret typed here would be noticed by people before anybody else."""
        one = self.connection
        if one is None or one.last_used_at is None or self.auth != one.auth_type:
            return False
        return candidates.takes_secret(one) and one.status == Status.VALID

    def _own_cloud(self) -> bool:
        return self.provider in (ProviderType.BEDROCK, ProviderType.VERTEX)

    def _needs_base_url(self) -> bool:
        return self.provider.is_compat or self.auth == AuthType.API_KEY_WITH_ENDPOINT

    @cached_property
    def groups(self) -> list[Group]:
        """The fields that the chosen provider and auth type have, under their headings."""
        provider, compat = self.provider, self.provider.is_compat
        # For the clouds an address is a rare need, but one that is set must be seen.
        folds_base_url = self._own_cloud() and not self._now("base_url")
        where = ["provider_type auth_type"]
        if not folds_base_url:
            where.append("base_url")
        if compat:
            where.append("custom_endpoint_api")
        if provider == ProviderType.BEDROCK:
            where.append("aws_region")
        if provider == ProviderType.VERTEX:
            where.append("gcp_project_id gcp_region")
        if provider == ProviderType.OPENAI:
            where.append("codex_path")
        folded = ["extra_headers"]
        if compat:
            folded = ["auth_header max_tokens_field", *folded]
        if folds_base_url:
            folded = ["base_url", *folded]
        credentials = (
            _sign_in_help(provider)
            if self.auth == AuthType.OAUTH
            else _SECRET_HELP.get(
                self.auth,
                _("Encrypted, sent to this provider and address only, never shown again."),
            )
        )
        safer = ""
        if self._works_in_use():
            safer = format_html(
                '{} <a href="{}">{}</a>',
                _t("It works and is in use: what you enter here counts at once. Safer:"),
                reverse("connections:secret", args=[self.connection.slug]),
                _t("replace the secret once the new one has passed its check."),
            )
            if SECRET_FIELDS[self.auth]:
                credentials = format_html("{} {}", credentials, safer)
        window = _(
            "A custom endpoint counts as 128,000 tokens of text unless a model says otherwise."
        )
        return [
            self._group(_("General"), ["name" if self.connection else "name slug", "note"]),
            self._group(_("Provider"), where),
            self._group(_("Credentials"), list(SECRET_FIELDS[self.auth]), help=credentials),
            self._group(
                _("Models"),
                [
                    "models_synced",
                    "models",
                    "default_model supports_images" if compat else "default_model",
                ],
                help=window if compat else "",
            ),
            self._group(_("Behaviour"), ["mid_stream_behavior enabled", "paused_message"]),
            self._group(_("Access"), ["access", "workspaces"]),
            self._group(
                _("Advanced"),
                folded,
                help=safer if self._stored_hint("extra_headers") else "",
                folded=_("Headers and wire details"),
            ),
        ]

    def _group(self, legend: Any, rows: list[str], *, help: Any = "", folded: Any = "") -> Group:
        fields = [[self[name] for name in row.split()] for row in rows]
        wrong = any(bound.errors for row in fields for bound in row)
        return Group(legend, fields, help, "" if wrong else folded)

    @cached_property
    def model_ids(self) -> list[str]:
        """What the default model can be chosen from, as far as the list can be read."""
        try:
            models = validation.parse_models(self["models"].value())
        except ValidationError:
            return []
        return Connection(models=models).model_ids


class SecretForm(KeepsTyped, forms.Form):
    """The fields of a new secret alone, and the extra headers where there are any, write-only as in
    the large form."""

    use_required_attribute = False

    def __init__(
        self, connection: Connection, data: Mapping[str, Any] | None = None, *, replaces: str = ""
    ) -> None:
        super().__init__(data)
        self.connection = connection
        for name in candidates.fields_of(connection):
            self.fields[name] = copy.deepcopy(ConnectionForm.base_fields[name])
        self.keep_typed(*self.fields)
        if headers := self.fields.get(candidates.HEADERS):
            headers.help_text = _t(
                "One “Name: value” a line, all of them: they take the place of those in use."
            )
        # What the person saw: another admin may change either before this is sent.
        seen = {"replaces": replaces, "entered_for": connection.binding} if data is None else data
        self.replaces, self.entered_for = seen.get("replaces", ""), seen.get("entered_for", "")

    def save(self, actor: User) -> SecretCandidate | Literal[False] | None:
        """The candidate, None when it is the secret in use, False when it is refused: the sentences
        then stand at the fields."""
        typed = {name: self.cleaned_data.get(name, "") for name in self.fields}
        try:
            return candidates.enter(
                actor,
                self.connection,
                typed,
                replaces=self.replaces,
                entered_for=self.entered_for,
            )
        except ValidationError as error:
            by_field = error.error_dict if hasattr(error, "error_dict") else {None: [error]}
            for name, errors in by_field.items():
                self.add_error(name if name in self.fields else None, errors)
            return False

    @property
    def rows(self) -> list[list[BoundField]]:
        return [[bound] for bound in self]

    @property
    def has_parts(self) -> bool:
        """Whether a part of it may be left blank: the key or the headers."""
        return candidates.HEADERS in self.fields and len(self.fields) > 1


def stored_values(connection: Connection) -> dict[str, Any]:
    """A connection's fields as the form shows them; no secret among them."""
    images = {True: "true", False: "false", None: ""}
    return {
        **{name: getattr(connection, name) for name in validation.FIELDS},
        "workspaces": [row.workspace.slug for row in connection.workspace_rows.all()],
        "models": validation.models_text(connection.models),
        "supports_images": images[connection.supports_images],
        "enabled": "true" if connection.enabled else "false",
        "models_synced": "true" if connection.models_synced else "false",
    }


def _typed(data: Mapping[str, Any]) -> dict[str, Any]:
    typed = {name: data[name] for name in ConnectionForm.base_fields if name in data}
    if "workspaces" in data and hasattr(data, "getlist"):
        typed["workspaces"] = data.getlist("workspaces")
    return {name: value for name, value in typed.items() if name not in WRITE_ONLY}
