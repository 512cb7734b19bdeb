"""A team's named provider configurations, their secrets, their health, and who may use them."""

from __future__ import annotations

import ipaddress
import uuid
from typing import Any, ClassVar
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models as orm
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from connections.choices import (
    AccessMode,
    AuthHeader,
    AuthType,
    MaxTokensField,
    MidStream,
    ProviderType,
    Status,
    Wire,
)
from workspaces.fields import SealedField
from workspaces.models import Workspace
from workspaces.slugs import SLUG_LENGTH, validate_slug
from workspaces.vault import VaultError

DEFAULT_CONTEXT_WINDOW = 128_000


class ConnectionQuerySet(orm.QuerySet["Connection"]):
    def living(self) -> ConnectionQuerySet:
        """Without tombstones, in the order of "the list"."""
        return self.filter(deleted_at=None).order_by("position", "created_at", "id")

    def visible_to(self, workspace: Workspace) -> ConnectionQuerySet:
        """What a workspace has access to: every connection open to all, and those chosen for it."""
        return self.living().filter(
            orm.Q(access=AccessMode.ALL)
            | orm.Exists(
                WorkspaceConnection.objects.filter(
                    connection=orm.OuterRef("pk"), workspace=workspace
                )
            )
        )

    def with_secrets(self) -> ConnectionQuerySet:
        """One query more; `Connection.status` then costs none."""
        return self.prefetch_related("secrets")


class Connection(orm.Model):
    """A named provider configuration: provider type, auth type, endpoint, models, behaviour.

    A deleted one stays as a tombstone (`deleted_at`), so that its sessions stay readable and its
    slug isn't given away under them. `secrets` are rows of their own, one a purpose.
    """

    id = orm.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = orm.CharField(_("slug"), max_length=SLUG_LENGTH, unique=True, validators=[validate_slug])
    name = orm.CharField(_("name"), max_length=100)
    provider_type = orm.CharField(_("provider"), max_length=20, choices=ProviderType)
    auth_type = orm.CharField(_("authentication"), max_length=24, choices=AuthType)
    base_url = orm.CharField(_("base URL"), max_length=2000, blank=True)
    models = orm.JSONField(_("models"), default=list, blank=True)
    default_model = orm.CharField(_("default model"), max_length=200, blank=True)
    custom_endpoint_api = orm.CharField(
        _("wire format"), max_length=24, choices=Wire, blank=True, default=""
    )
    supports_images = orm.BooleanField(_("takes images"), null=True, blank=True)
    mid_stream_behavior = orm.CharField(
        _("messages sent mid-stream"), max_length=8, choices=MidStream, blank=True, default=""
    )
    codex_path = orm.CharField(_("Codex binary"), max_length=1000, blank=True)
    aws_region = orm.CharField(_("AWS region"), max_length=40, blank=True)
    gcp_project_id = orm.CharField(_("Google project"), max_length=60, blank=True)
    gcp_region = orm.CharField(_("Google region"), max_length=40, blank=True)
    auth_header = orm.CharField(
        _("key is sent as"), max_length=12, choices=AuthHeader, blank=True, default=""
    )
    max_tokens_field = orm.CharField(
        _("output limit is sent as"), max_length=24, choices=MaxTokensField, blank=True, default=""
    )

    position = orm.PositiveIntegerField(_("position"), default=0, db_index=True)
    enabled = orm.BooleanField(_("enabled"), default=True)
    paused_message = orm.CharField(_("message while paused"), max_length=300, blank=True)
    is_default = orm.BooleanField(_("global default"), default=False)
    access = orm.CharField(_("access"), max_length=8, choices=AccessMode, default=AccessMode.ALL)
    note = orm.TextField(_("note"), max_length=2000, blank=True)

    # Kept for export: fields of an imported file that mean nothing here, and the texts that were
    # normalised on import (`baseUrl`, `providerType`, `authType`, …), until the field is edited.
    unknown_fields = orm.JSONField(default=dict, blank=True, editable=False)
    imported_as = orm.JSONField(default=dict, blank=True, editable=False)

    created_by = orm.ForeignKey(
        settings.AUTH_USER_MODEL,
        orm.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("created by"),
    )
    created_at = orm.DateTimeField(_("created"), default=timezone.now)
    last_used_at = orm.DateTimeField(_("last used"), null=True, blank=True)
    deleted_at = orm.DateTimeField(_("deleted"), null=True, blank=True, editable=False)
    # On which one a deleted one's sessions are to go on.
    successor = orm.ForeignKey(
        "self", orm.SET_NULL, null=True, blank=True, related_name="+", editable=False
    )
    # What deleting cleared (default, position, workspace rows; never the secret), for undo.
    cleared = orm.JSONField(default=dict, blank=True, editable=False)

    # Health. `revision` counts the edits that matter: the result of a probe that began before one
    # isn't taken. A running probe holds `checking_until`, so that "Checking…" always ends.
    revision = orm.PositiveIntegerField(default=0, editable=False)
    health = orm.CharField(
        max_length=10,
        choices=[(s.value, s.label) for s in (Status.UNCHECKED, Status.VALID, Status.FAILED)],
        default=Status.UNCHECKED,
        editable=False,
    )
    health_at = orm.DateTimeField(null=True, blank=True, editable=False)
    health_error = orm.CharField(max_length=24, blank=True, default="", editable=False)
    checking_until = orm.DateTimeField(null=True, blank=True, editable=False)
    next_check_at = orm.DateTimeField(null=True, blank=True, editable=False, db_index=True)

    # The list of models: made by hand, or kept in step with the provider's (`connections.sync`).
    # `sync_due_at` is the lease of a running refresh too; `syncing_until` ends "Refreshing…".
    models_synced = orm.BooleanField(_("models kept in step with the provider"), default=False)
    sync_due_at = orm.DateTimeField(null=True, blank=True, editable=False, db_index=True)
    syncing_until = orm.DateTimeField(null=True, blank=True, editable=False)
    synced_at = orm.DateTimeField(_("models refreshed"), null=True, blank=True, editable=False)
    sync_error = orm.CharField(max_length=24, blank=True, default="", editable=False)
    # The default model of then, which the provider didn't list: kept, and said so.
    unlisted_default = orm.CharField(max_length=200, blank=True, default="", editable=False)

    objects: ClassVar[ConnectionQuerySet] = ConnectionQuerySet.as_manager()

    class Meta:
        verbose_name = _("connection")
        verbose_name_plural = _("connections")
        ordering = ["position", "created_at", "id"]
        constraints = [
            orm.UniqueConstraint(
                fields=["is_default"],
                condition=orm.Q(is_default=True),
                name="one_global_default",
            ),
            orm.CheckConstraint(
                condition=orm.Q(deleted_at=None) | orm.Q(is_default=False),
                name="no_deleted_default",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("connections:detail", args=[self.slug])

    # -- what it is ------------------------------------------------------------------------------

    @property
    def wire(self) -> str:
        """The wire format of a custom endpoint; "" for a provider's own type."""
        if self.provider_type == ProviderType.ANTHROPIC_COMPAT:
            return self.custom_endpoint_api or Wire.ANTHROPIC_MESSAGES
        if self.provider_type == ProviderType.OPENAI_COMPAT:
            return self.custom_endpoint_api or Wire.OPENAI_COMPLETIONS
        return ""

    @property
    def mid_stream(self) -> MidStream:
        """What happens to a message sent mid-stream: the setting, else the provider's default."""
        if self.mid_stream_behavior:
            return MidStream(self.mid_stream_behavior)
        if self.provider_type == ProviderType.ANTHROPIC:
            return MidStream.QUEUE
        return MidStream.STEER

    @property
    def origin(self) -> str:
        """scheme://host:port of the base URL, "" without one."""
        if not self.base_url:
            return ""
        parts = urlsplit(self.base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"{parts.scheme}://{parts.hostname}:{port}"

    @property
    def binding(self) -> str:
        """What a secret entered now is bound to. Without a base URL it is the provider's own
        domains: a region may change there, a host can't."""
        return f"{self.provider_type} {self.auth_type} {self.origin or 'own'}"

    @property
    def is_loopback(self) -> bool:
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def needs_secret(self) -> bool:
        """Whether a call can't go out without a stored secret."""
        if self.auth_type in (AuthType.NONE, AuthType.ENVIRONMENT):
            return False
        return not (self.auth_type == AuthType.API_KEY_WITH_ENDPOINT and self.is_loopback)

    def secret_for(self, purpose: str) -> Secret | None:
        """The stored secret of a purpose; no query when `secrets` is prefetched."""
        return next((s for s in self.secrets.all() if s.purpose == purpose), None)

    @property
    def status(self) -> Status:
        """What people see. No query when `secrets` is prefetched; opens each secret (about 20 µs),
        since a flipped bit or a swapped row shows in no other way."""
        if not self.enabled:
            return Status.DISABLED
        stored = list(self.secrets.all())
        if any(not secret.readable for secret in stored):
            return Status.SEALED
        if any(secret.binding != self.binding for secret in stored):
            return Status.INCOMPLETE
        auth = self.secret_for(Secret.Purpose.AUTH)
        if self.needs_secret and (auth is None or auth.ended_at):
            return Status.INCOMPLETE
        if self.checking_until and self.checking_until > timezone.now():
            return Status.CHECKING
        return Status(self.health)

    # -- models ----------------------------------------------------------------------------------

    @property
    def is_syncing(self) -> bool:
        return self.syncing_until is not None and self.syncing_until > timezone.now()

    @property
    def model_ids(self) -> list[str]:
        return [entry if isinstance(entry, str) else entry["id"] for entry in self.models]

    def model_entry(self, model: str) -> dict[str, Any]:
        """The list's entry for a model as a dictionary, {} when it says nothing."""
        for entry in self.models:
            if isinstance(entry, dict) and entry.get("id") == model:
                return entry
        return {}


class Secret(orm.Model):
    """What authenticates a connection: sealed, write-only, bound to what it was entered for.

    The sealed value is UTF-8 JSON, an object of texts: the fields of `choices.SECRET_FIELDS` for
    the purpose `auth`, header names and values for `headers`. `hints` has the last four characters
    of each long enough value.

    The tokens of a sign-in (`access_token`, `refresh_token`, `issuer`) have no hints, but a label
    and two times beside them. Whoever renews them holds `renewing_until` with a token of its own:
    a compare-and-set, as no transaction may span the call (`connections.renewal`).
    """

    class Purpose(orm.TextChoices):
        AUTH = "auth", _("Authentication")
        HEADERS = "headers", _("Extra headers")

    class AccountKind(orm.TextChoices):
        PERSONAL = "personal", _("Personal login")
        ORGANISATION = "organisation", _("Organisation's login")

    id = orm.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    connection = orm.ForeignKey(Connection, orm.CASCADE, related_name="secrets")
    purpose = orm.CharField(max_length=10, choices=Purpose, default=Purpose.AUTH)
    binding = orm.CharField(_("entered for"), max_length=2100)
    value = SealedField(bound_to="place")
    hints = orm.JSONField(default=dict, blank=True)
    created_at = orm.DateTimeField(default=timezone.now)
    created_by = orm.ForeignKey(
        settings.AUTH_USER_MODEL, orm.SET_NULL, null=True, blank=True, related_name="+"
    )

    # Of a sign-in only.
    account = orm.CharField(_("account"), max_length=254, blank=True, default="")
    account_kind = orm.CharField(
        _("kind of account"), max_length=12, choices=AccountKind, blank=True, default=""
    )
    expires_at = orm.DateTimeField(null=True, blank=True, editable=False)
    renew_at = orm.DateTimeField(null=True, blank=True, editable=False)
    # The issuer refused to renew: the tokens are destroyed, a person has to sign in again.
    ended_at = orm.DateTimeField(null=True, blank=True, editable=False)
    renewing_until = orm.DateTimeField(null=True, blank=True, editable=False)
    renewing_token = orm.UUIDField(null=True, blank=True, editable=False)
    # Renewals that came to an end, and the `ErrorKind` of the last one: who waited for it takes
    # its outcome instead of asking the issuer once more.
    renewals = orm.PositiveIntegerField(default=0, editable=False)
    renewal_error = orm.CharField(max_length=24, blank=True, default="", editable=False)

    # When people were told that it grows old: once a secret.
    reminded_at = orm.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("secret")
        verbose_name_plural = _("secrets")
        constraints = [
            orm.UniqueConstraint(fields=["connection", "purpose"], name="one_secret_a_purpose"),
        ]

    def __str__(self) -> str:
        return f"{self.get_purpose_display()}"

    @property
    def place(self) -> str:
        """What the sealed value is bound to: this connection, at this destination."""
        return f"{self.connection_id} {self.binding}"

    @property
    def readable(self) -> bool:
        """Whether it really opens: a flipped bit or a swapped row shows in no other way."""
        try:
            self.value.open()
        except VaultError:
            return False
        return True


class SecretCandidate(orm.Model):
    """A new secret that climbs the ladder beside the one in use, until it is promoted or discarded.

    The sealed value is as that of a `Secret` of the purpose `auth`, with new extra headers, if any,
    under `extra_headers`. A check that is asked for has a
    time from which it is due (`due_at`); who takes it moves that on, which is the lease, and
    `checking_until` ends "Checking…". `revision` is the connection's at the time of the check.
    """

    class State(orm.TextChoices):
        CHECKING = "checking", _("Being checked")
        FAILED = "failed", _("Failed")
        UNPROVEN = "unproven", _("Not proven")

    id = orm.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    connection = orm.OneToOneField(Connection, orm.CASCADE, related_name="candidate")
    binding = orm.CharField(_("entered for"), max_length=2100)
    value = SealedField(bound_to="place")
    hints = orm.JSONField(default=dict, blank=True)
    created_at = orm.DateTimeField(_("entered"), default=timezone.now)
    created_by = orm.ForeignKey(
        settings.AUTH_USER_MODEL, orm.SET_NULL, null=True, blank=True, related_name="+"
    )
    expires_at = orm.DateTimeField(_("expires"), db_index=True)
    # Who asked for the last check: the promotion is theirs.
    asked_by = orm.ForeignKey(
        settings.AUTH_USER_MODEL, orm.SET_NULL, null=True, blank=True, related_name="+"
    )

    state = orm.CharField(_("state"), max_length=10, choices=State, default=State.CHECKING)
    revision = orm.PositiveIntegerField(default=0, editable=False)
    due_at = orm.DateTimeField(null=True, blank=True, editable=False, db_index=True)
    checking_until = orm.DateTimeField(null=True, blank=True, editable=False)
    checked_at = orm.DateTimeField(_("checked"), null=True, blank=True, editable=False)
    error_kind = orm.CharField(max_length=24, blank=True, default="", editable=False)
    rungs = orm.JSONField(default=list, editable=False)

    class Meta:
        verbose_name = _("candidate for a secret")
        verbose_name_plural = _("candidates for secrets")

    def __str__(self) -> str:
        return f"{self.connection_id} {self.created_at:%Y-%m-%d %H:%M}"

    @property
    def place(self) -> str:
        """What the sealed value is bound to: this connection, at this destination."""
        return f"{self.connection_id} {self.binding}"

    @property
    def is_checking(self) -> bool:
        """Whether a worker is at it, or may still come."""
        until = self.checking_until
        return self.state == self.State.CHECKING and until is not None and until > timezone.now()

    @property
    def is_expired(self) -> bool:
        return self.expires_at <= timezone.now()


class SignIn(orm.Model):
    """One attempt to sign a connection in, from the button to the tokens.

    The sealed value is UTF-8 JSON: `state` and `verifier` of a flow in which a person pastes a
    code; `url` and `code` of one in which they type it at the provider (`by_device`), {} until a
    worker has them. An attempt ends by itself (`expires_at`), and whoever finishes it holds
    `busy_until`. `error` is the `ErrorKind` of a failure, `detail` the provider's words, for
    admins.
    """

    class State(orm.TextChoices):
        OPEN = "open", _("Open")
        DONE = "done", _("Signed in")
        FAILED = "failed", _("Failed")
        CANCELLED = "cancelled", _("Cancelled")

    id = orm.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    connection = orm.ForeignKey(Connection, orm.CASCADE, related_name="sign_ins")
    started_by = orm.ForeignKey(settings.AUTH_USER_MODEL, orm.CASCADE, related_name="+")
    started_at = orm.DateTimeField(default=timezone.now)
    expires_at = orm.DateTimeField()
    state = orm.CharField(max_length=10, choices=State, default=State.OPEN)
    binding = orm.CharField(max_length=2100)
    value = SealedField(bound_to="place")
    by_device = orm.BooleanField(default=False)
    tries = orm.PositiveSmallIntegerField(default=0)
    error = orm.CharField(max_length=24, blank=True, default="")
    detail = orm.CharField(max_length=500, blank=True, default="")
    busy_until = orm.DateTimeField(null=True, blank=True)
    busy_token = orm.UUIDField(null=True, blank=True)

    class Meta:
        verbose_name = _("sign-in")
        verbose_name_plural = _("sign-ins")
        ordering = ["-started_at"]

    def __str__(self) -> str:
        return f"{self.connection_id} {self.started_at:%Y-%m-%d %H:%M}"

    @property
    def place(self) -> str:
        """What the sealed value is bound to: this connection, at this destination."""
        return f"{self.connection_id} {self.binding}"

    @property
    def is_open(self) -> bool:
        return self.state == self.State.OPEN and self.expires_at > timezone.now()


class WorkspaceConnection(orm.Model):
    """A workspace's access to a connection: chosen for it, its default, or fewer models of it.

    Of the models, instance admins grant some (`granted_models`), and the workspace's admins use
    some of those (`allowed_models`); None is every one, also those that come later.
    """

    id = orm.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    workspace = orm.ForeignKey(Workspace, orm.CASCADE, related_name="connection_rows")
    connection = orm.ForeignKey(Connection, orm.CASCADE, related_name="workspace_rows")
    granted_models = orm.JSONField(_("granted models"), null=True, blank=True, default=None)
    allowed_models = orm.JSONField(_("allowed models"), null=True, blank=True, default=None)
    is_default = orm.BooleanField(_("default of the workspace"), default=False)

    class Meta:
        verbose_name = _("workspace's access")
        verbose_name_plural = _("workspaces' access")
        constraints = [
            orm.UniqueConstraint(
                fields=["workspace", "connection"], name="one_row_a_workspace_and_connection"
            ),
            orm.UniqueConstraint(
                fields=["workspace"],
                condition=orm.Q(is_default=True),
                name="one_default_a_workspace",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.workspace_id} {self.connection_id}"

    def allows(self, model: str) -> bool:
        """Whether the model is granted to the workspace, and used by it."""
        lists = (self.granted_models, self.allowed_models)
        return all(models is None or model in models for models in lists)

    def among_granted(self, models: list[str]) -> list[str]:
        """Those of `models` that the workspace's admins can choose from."""
        return [m for m in models if self.granted_models is None or m in self.granted_models]

    @property
    def says_nothing(self) -> bool:
        """Whether it could go where the connection is open to all."""
        return not self.is_default and self.granted_models is None and self.allowed_models is None


class ProbeResult(orm.Model):
    """One validation of a connection: the rungs it climbed, and what stopped it.

    `rungs` is a list of {rung, outcome, ms, kind, detail}: `kind` an `ErrorKind` or one of
    `connections.sentences`, `detail` the provider's own scrubbed words, for admins.
    """

    id = orm.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    connection = orm.ForeignKey(Connection, orm.CASCADE, related_name="probes")
    started_at = orm.DateTimeField(default=timezone.now)
    finished_at = orm.DateTimeField(null=True, blank=True)
    trigger = orm.CharField(max_length=10, default="button")
    requested_by = orm.ForeignKey(
        settings.AUTH_USER_MODEL, orm.SET_NULL, null=True, blank=True, related_name="+"
    )
    revision = orm.PositiveIntegerField(default=0)
    passed = orm.BooleanField(null=True, blank=True)
    error_kind = orm.CharField(max_length=24, blank=True, default="")
    latency_ms = orm.PositiveIntegerField(null=True, blank=True)
    rungs = orm.JSONField(default=list)

    class Meta:
        verbose_name = _("probe")
        verbose_name_plural = _("probes")
        ordering = ["-started_at"]
        indexes = [
            orm.Index(fields=["connection", "-started_at"], name="probe_by_connection"),
            orm.Index(fields=["-started_at"], name="probe_newest_first"),
        ]

    def __str__(self) -> str:
        return f"{self.connection_id} {self.started_at:%Y-%m-%d %H:%M}"


class AlertSettings(orm.Model):
    """When people are told that a connection fails or a budget is used, and how: the singleton row,
    made by the first change of it or the first message.

    The webhook's address is a secret, as is what its messages are signed with: both sealed, bound
    to the origin they were entered for. `…_after` is the time before which a channel sends nothing
    more: whoever moves it on has claimed the next message (`connections.alerts`).
    """

    id = orm.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    failures = orm.PositiveSmallIntegerField(_("failures in a row"), default=3)
    of_budgets = orm.BooleanField(_("tell of budgets"), default=True)
    by_mail = orm.BooleanField(_("mail the instance admins"), default=True)
    webhook_origin = orm.CharField(_("webhook at"), max_length=2100, blank=True, default="")
    webhook_url = SealedField(bound_to="webhook_origin", null=True, blank=True)
    webhook_secret = SealedField(bound_to="webhook_origin", null=True, blank=True)

    mail_after = orm.DateTimeField(null=True, blank=True, editable=False)
    mail_sent_at = orm.DateTimeField(_("last mailed"), null=True, blank=True, editable=False)
    mail_error = orm.CharField(max_length=24, blank=True, default="", editable=False)
    webhook_after = orm.DateTimeField(null=True, blank=True, editable=False)
    webhook_sent_at = orm.DateTimeField(_("last posted"), null=True, blank=True, editable=False)
    webhook_error = orm.CharField(max_length=24, blank=True, default="", editable=False)

    class Meta:
        verbose_name = _("settings of the alerts")
        verbose_name_plural = _("settings of the alerts")
        constraints = [
            orm.CheckConstraint(condition=orm.Q(id=1), name="one_alert_settings"),
        ]

    def __str__(self) -> str:
        return "alerts"

    @property
    def has_webhook(self) -> bool:
        return bool(self.webhook_origin)


class AlertOptOut(orm.Model):
    """An instance admin who wants no mail about connections."""

    id = orm.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = orm.OneToOneField(settings.AUTH_USER_MODEL, orm.CASCADE, related_name="+")

    class Meta:
        verbose_name = _("opt-out of alerts")
        verbose_name_plural = _("opt-outs of alerts")

    def __str__(self) -> str:
        return str(self.user_id)


class Alert(orm.Model):
    """A connection began to fail, or works again: the newest of these two says which is so. Or its
    secret has grown old, which is said once. Or the budget of a connection or a workspace reached a
    limit, in the month that `since` begins. The channels say how far telling people has come."""

    class State(orm.TextChoices):
        FAILING = "failing", _("Fails")
        RECOVERED = "recovered", _("Works again")
        OLD_SECRET = "old_secret", _("Secret is old")
        SOFT_LIMIT = "soft_limit", _("Budget at its notice")
        HARD_LIMIT = "hard_limit", _("Budget used up")

    class Delivery(orm.TextChoices):
        OFF = "off", _("Off")
        DUE = "due", _("Waiting")
        SENDING = "sending", _("Being sent")
        SENT = "sent", _("Sent")
        UNSURE = "unsure", _("May not have arrived")
        GIVEN_UP = "given_up", _("Given up")

    id = orm.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    connection = orm.ForeignKey(
        Connection, orm.CASCADE, null=True, blank=True, related_name="alerts"
    )
    workspace = orm.ForeignKey(Workspace, orm.CASCADE, null=True, blank=True, related_name="alerts")
    state = orm.CharField(_("state"), max_length=10, choices=State)
    at = orm.DateTimeField(_("time"), default=timezone.now)
    since = orm.DateTimeField(_("since"), default=timezone.now)
    error_kind = orm.CharField(max_length=24, blank=True, default="")
    limit = orm.CharField(_("limit"), max_length=60, blank=True, default="")  # as people write it
    mail = orm.CharField(_("mail"), max_length=8, choices=Delivery, default=Delivery.OFF)
    webhook = orm.CharField(_("webhook"), max_length=8, choices=Delivery, default=Delivery.OFF)

    class Meta:
        verbose_name = _("alert")
        verbose_name_plural = _("alerts")
        ordering = ["-at", "id"]
        constraints = [
            orm.CheckConstraint(
                condition=orm.Q(workspace__isnull=False, connection__isnull=True)
                | orm.Q(workspace__isnull=True, connection__isnull=False),
                name="alert_of_one_thing",
            ),
        ]
        indexes = [
            orm.Index(fields=["connection", "-at"], name="alert_by_connection"),
            orm.Index(fields=["-at"], name="alert_newest_first"),
            orm.Index(
                fields=["at"],
                condition=orm.Q(mail="due") | orm.Q(webhook="due"),
                name="alert_to_send",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.connection_id or self.workspace_id} {self.state} {self.at:%Y-%m-%d %H:%M}"

    @property
    def target(self) -> Workspace | Connection:
        found = self.workspace or self.connection
        assert found is not None
        return found

    @property
    def tone(self) -> str:
        return {"recovered": "success", "old_secret": "info", "soft_limit": "warning"}.get(
            self.state, "danger"
        )


class Budget(orm.Model):
    """What a workspace, or a connection, may use in a calendar month (UTC), and what it used in
    `month`, the one that was counted last. Written by `connections.budgets` alone.

    Costs are US dollars. At a soft limit admins are told, at a hard one nothing more is sent.
    `unpriced` turns have tokens but no known price, `covered` ones ran on a signed-in account.
    `soft_told` and `hard_told` are the months whose passing of a limit was told.
    """

    id = orm.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    workspace = orm.OneToOneField(
        Workspace, orm.CASCADE, null=True, blank=True, related_name="budget"
    )
    connection = orm.OneToOneField(
        Connection, orm.CASCADE, null=True, blank=True, related_name="budget"
    )
    soft_cost = orm.DecimalField(_("notice at"), max_digits=12, decimal_places=2, null=True)
    hard_cost = orm.DecimalField(_("stop at"), max_digits=12, decimal_places=2, null=True)
    soft_tokens = orm.PositiveBigIntegerField(_("notice at"), null=True)
    hard_tokens = orm.PositiveBigIntegerField(_("stop at"), null=True)

    month = orm.DateField(_("month"))
    cost = orm.DecimalField(_("cost"), max_digits=14, decimal_places=6, default=0)
    tokens = orm.PositiveBigIntegerField(_("tokens"), default=0)
    unpriced = orm.PositiveIntegerField(default=0)
    covered = orm.PositiveIntegerField(default=0)
    soft_told = orm.DateField(null=True, blank=True, editable=False)
    hard_told = orm.DateField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("budget")
        verbose_name_plural = _("budgets")
        ordering = ["id"]
        constraints = [
            orm.CheckConstraint(
                condition=orm.Q(workspace__isnull=False, connection__isnull=True)
                | orm.Q(workspace__isnull=True, connection__isnull=False),
                name="budget_of_one_thing",
            ),
        ]

    def __str__(self) -> str:
        return str(self.target)

    @property
    def target(self) -> Workspace | Connection:
        found = self.workspace or self.connection
        assert found is not None
        return found


__all__ = [
    "DEFAULT_CONTEXT_WINDOW",
    "Alert",
    "AlertOptOut",
    "AlertSettings",
    "Budget",
    "Connection",
    "ProbeResult",
    "Secret",
    "SecretCandidate",
    "SignIn",
    "WorkspaceConnection",
]
