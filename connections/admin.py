"""The admin site's pages for connections. What decides where a secret goes is changed on the
connection's own page; the rest here goes through the same verbs."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from connections import actions, tasks
from connections.models import (
    Alert,
    AlertOptOut,
    AlertSettings,
    Budget,
    Connection,
    ProbeResult,
    Secret,
    SecretCandidate,
    SignIn,
    WorkspaceConnection,
)
from connections.providers.base import ErrorKind
from connections.sentences import Reason, sentence
from connections.validation import FIELDS, clean_connection
from workspaces import rotation
from workspaces.admin import SHOWN, Audited, FewChoices, ReadOnly
from workspaces.audit import record
from workspaces.vault import VaultError


class ConnectionAdminForm(forms.ModelForm):
    """The fields that don't touch where a secret goes, under the rules of every other door."""

    class Meta:
        model = Connection
        fields = (
            "name",
            "note",
            "enabled",
            "paused_message",
            "mid_stream_behavior",
            "default_model",
            "max_tokens_field",
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("mid_stream_behavior", "max_tokens_field"):
            if name in self.fields:  # a deleted connection is only shown
                named = [choice for choice in self.fields[name].choices if choice[0]]
                self.fields[name].choices = [("", _("Provider default")), *named]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        result = clean_connection({n: getattr(self.instance, n) for n in FIELDS} | data)
        for name, sentences in result.errors.items():
            self.add_error(name if name in self.fields else None, ValidationError(sentences))
        return data | {n: result.values[n] for n in data if n in result.values}


class WorkspaceAccessInline(ReadOnly, admin.TabularInline):
    model = WorkspaceConnection
    fields = ("workspace", "is_default", "granted_models", "allowed_models")
    extra = 0

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).select_related("workspace")


class DeletedFilter(admin.SimpleListFilter):
    title = _("deleted")
    parameter_name = "deleted"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("yes", _("Yes")), ("no", _("No"))]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet) -> models.QuerySet:
        if self.value() in ("yes", "no"):
            return queryset.filter(deleted_at__isnull=self.value() == "no")
        return queryset


class ErrorFilter(admin.SimpleListFilter):
    """The kinds of error from their list: Django's own filter would read the whole table."""

    title = _("error")
    parameter_name = "error"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        kinds = [*ErrorKind, *Reason]
        return [("any", _("Any")), *((kind.value, sentence(kind).title) for kind in kinds)]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet) -> models.QuerySet:
        if self.value() == "any":
            return queryset.exclude(error_kind="")
        return queryset.filter(error_kind=self.value()) if self.value() else queryset


@admin.register(Connection)
class ConnectionAdmin(admin.ModelAdmin):
    form = ConnectionAdminForm
    list_per_page = SHOWN
    list_display = (
        *("name", "slug", "provider_type", "auth_type", "status_label", "enabled", "is_default"),
        *("access", "position", "last_used_at"),
    )
    list_filter = (
        *("provider_type", "auth_type", "health", "enabled", "is_default", "access"),
        DeletedFilter,
    )
    search_fields = ("name", "slug", "base_url", "note", "default_model")
    date_hierarchy = "created_at"
    inlines = (WorkspaceAccessInline,)
    actions = ("validate_selected", "enable_selected", "pause_selected", "rotate_selected")
    readonly_fields = (
        *("slug", "provider_type", "auth_type", "base_url", "own_page", "custom_endpoint_api"),
        *("supports_images", "models", "codex_path", "aws_region", "gcp_project_id", "gcp_region"),
        *("auth_header", "access", "is_default", "position", "status_label", "health_at"),
        *("health_error", "unknown_fields", "imported_as", "created_by", "created_at"),
        *("last_used_at", "deleted_at"),
    )
    fieldsets = (
        (None, {"fields": ("name", "slug", "note", "own_page")}),
        (
            _("Where it goes"),
            {
                "description": _("Changed on the connection's own page: a secret goes with it."),
                "fields": (
                    *("provider_type", "auth_type", "base_url", "custom_endpoint_api"),
                    *("auth_header", "codex_path", "aws_region", "gcp_project_id", "gcp_region"),
                ),
            },
        ),
        (
            _("Models"),
            {"fields": ("models", "default_model", "supports_images", "max_tokens_field")},
        ),
        (_("Behaviour"), {"fields": ("mid_stream_behavior", "enabled", "paused_message")}),
        (_("Use"), {"fields": ("access", "is_default", "position", "last_used_at")}),
        (_("Health"), {"fields": ("status_label", "health_at", "health_error")}),
        (
            _("Origin"),
            {"fields": ("created_by", "created_at", "deleted_at", "unknown_fields", "imported_as")},
        ),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).select_related("created_by").with_secrets()

    @admin.display(description=_("Status"))
    def status_label(self, connection: Connection) -> str:
        return _("Deleted") if connection.deleted_at else connection.status.label

    @admin.display(description=_("Connection page"))
    def own_page(self, connection: Connection) -> str:
        if connection.deleted_at:
            return "–"
        return format_html(
            '<a href="{}">{}</a>',
            reverse("connections:edit", args=[connection.slug]),
            _("Edit on the connection page"),
        )

    # A new one needs a secret, and deleting leaves a tombstone: both have their own pages.
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Connection | None = None) -> bool:
        if obj is not None and obj.deleted_at:
            return False
        return super().has_change_permission(request, obj)

    def view_on_site(self, connection: Connection) -> str | None:
        return None if connection.deleted_at else connection.get_absolute_url()

    def save_model(self, request: HttpRequest, obj: Connection, form: Any, change: bool) -> None:
        stored = Connection.objects.get(pk=obj.pk)
        changes = {name: form.cleaned_data[name] for name in form.changed_data}
        actions.update(request.user, stored, changes, resolve=False)

    @admin.action(description=_("Validate selected"), permissions=["change"])
    def validate_selected(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        asked = tasks.request_validation(queryset.filter(deleted_at=None), request.user)
        self.message_user(
            request,
            ngettext(
                "%(n)d connection is being checked.",
                "%(n)d connections are being checked.",
                len(asked),
            )
            % {"n": len(asked)},
        )

    @admin.action(description=_("Enable selected"), permissions=["change"])
    def enable_selected(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        self._switch(request, queryset, True)

    @admin.action(description=_("Pause selected"), permissions=["change"])
    def pause_selected(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        self._switch(request, queryset, False)

    def _switch(self, request: HttpRequest, queryset: models.QuerySet, enabled: bool) -> None:
        with transaction.atomic():
            found = list(queryset.filter(deleted_at=None).exclude(enabled=enabled))
            for connection in found:
                actions.set_enabled(request.user, connection, enabled)
        self.message_user(
            request,
            ngettext("%(n)d connection changed.", "%(n)d connections changed.", len(found))
            % {"n": len(found)},
        )

    @admin.action(
        description=_("Rotate selected: seal with the first instance key"), permissions=["change"]
    )
    def rotate_selected(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        """Needs no secret opened: only what wraps it changes, as `rotate_secrets` does for all."""
        done = failed = 0
        try:
            for connection in queryset.filter(deleted_at=None):
                of_it = (
                    model.objects.filter(connection=connection)
                    for model in (Secret, SecretCandidate, SignIn)
                )
                with transaction.atomic():
                    steps = [step for rows in of_it for step in rotation.rotate_rows(rows)]
                    bad = sum(bool(step.error) for step in steps)
                    if steps:
                        counts = {"rotated": len(steps) - bad, "unreadable": bad}
                        record(request.user, "secret.rotate", connection, **counts)
                done, failed = done + len(steps) - bad, failed + bad
        except VaultError as error:
            self.message_user(request, str(error), messages.ERROR)
            return
        text = ngettext(
            "%(n)d secret is sealed with the first key now.",
            "%(n)d secrets are sealed with the first key now.",
            done,
        )
        self.message_user(request, text % {"n": done})
        if failed:
            text = ngettext(
                "%(n)d could not be read: its key isn't at hand.",
                "%(n)d could not be read: their keys aren't at hand.",
                failed,
            )
            self.message_user(request, text % {"n": failed}, messages.WARNING)


@admin.register(Secret)
class SecretAdmin(ReadOnly, admin.ModelAdmin):
    """That there is one, and for what: nothing of its value is loaded."""

    list_display = ("connection", "purpose", "binding", "account", "created_at", "created_by")
    list_filter = ("purpose",)
    list_select_related = ("connection", "created_by")
    search_fields = ("connection__name", "connection__slug", "binding")
    date_hierarchy = "created_at"
    fields = (
        *("connection", "purpose", "binding", "created_at", "created_by"),
        *("account", "account_kind", "expires_at", "ended_at", "renewals", "renewal_error"),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).defer("value", "hints")


@admin.register(SecretCandidate)
class SecretCandidateAdmin(SecretAdmin):
    """That one is tried, and how far it came: nothing of its value is loaded."""

    list_display = ("connection", "state", "binding", "created_at", "created_by", "expires_at")
    list_filter = ("state",)
    fields = (
        *("connection", "state", "binding", "created_at", "created_by", "expires_at"),
        *("checked_at", "error_kind"),
    )


@admin.register(SignIn)
class SignInAdmin(ReadOnly, admin.ModelAdmin):
    """Who tried to sign a connection in, and how it ended: what proves it isn't loaded."""

    list_display = ("started_at", "connection", "started_by", "state", "expires_at")
    list_filter = ("state", ("connection", FewChoices))
    list_select_related = ("connection", "started_by")
    search_fields = ("connection__name", "connection__slug", "started_by__email")
    date_hierarchy = "started_at"
    fields = ("connection", "started_at", "started_by", "state", "expires_at", "tries")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).defer("value")


@admin.register(WorkspaceConnection)
class WorkspaceConnectionAdmin(Audited, ReadOnly, admin.ModelAdmin):
    """Given on the connection's page and the workspace's settings; can be taken away here."""

    list_display = ("workspace", "connection", "is_default", "granted_models", "allowed_models")
    list_filter = ("is_default", ("workspace", FewChoices), ("connection", FewChoices))
    list_select_related = ("workspace", "connection")
    search_fields = ("workspace__name", "connection__name", "connection__slug")
    fields = ("workspace", "connection", "is_default", "granted_models", "allowed_models")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_delete_permission(self, request, obj)

    def audit_context(self, row: WorkspaceConnection) -> dict[str, Any]:
        return {
            "label": f"{row.workspace} · {row.connection}",
            "workspace_id": row.workspace_id,
            "was_default": row.is_default,
        }


@admin.register(ProbeResult)
class ProbeResultAdmin(ReadOnly, admin.ModelAdmin):
    list_display = (
        *("started_at", "connection", "trigger", "passed", "error_kind", "latency_ms"),
        "requested_by",
    )
    list_filter = ("passed", ErrorFilter, "started_at", ("connection", FewChoices))
    list_prefetch = ("connection", "requested_by")
    search_fields = ("connection__name", "connection__slug")
    show_full_result_count = False
    fields = (
        *("connection", "started_at", "finished_at", "trigger", "requested_by", "revision"),
        *("passed", "error_kind", "latency_ms", "rungs"),
    )


@admin.register(AlertSettings)
class AlertSettingsAdmin(ReadOnly, admin.ModelAdmin):
    """Changed on their own page, as a secret goes with them: nothing of it is loaded."""

    list_display = ("failures", "by_mail", "webhook_origin", "mail_sent_at", "webhook_sent_at")
    fields = (
        *("failures", "of_budgets", "by_mail", "webhook_origin", "mail_sent_at", "mail_error"),
        *("webhook_sent_at", "webhook_error"),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).defer("webhook_url", "webhook_secret")


@admin.register(AlertOptOut)
class AlertOptOutAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("user",)
    list_select_related = ("user",)
    search_fields = ("user__email",)
    fields = ("user",)


@admin.register(Alert)
class AlertAdmin(ReadOnly, admin.ModelAdmin):
    list_display = (
        *("at", "connection", "workspace", "state", "error_kind", "limit", "since", "mail"),
        "webhook",
    )
    list_filter = ("state", ErrorFilter, "mail", "webhook", ("connection", FewChoices))
    list_select_related = ("connection", "workspace")
    search_fields = ("connection__name", "connection__slug", "workspace__name")
    date_hierarchy = "at"
    show_full_result_count = False
    fields = (
        *("connection", "workspace", "at", "state", "since", "error_kind", "limit", "mail"),
        "webhook",
    )


@admin.register(Budget)
class BudgetAdmin(ReadOnly, admin.ModelAdmin):
    """To look at: limits are changed on the budget's own page."""

    list_display = (
        *("__str__", "workspace", "connection", "month", "cost", "hard_cost", "tokens"),
        "hard_tokens",
    )
    list_select_related = ("workspace", "connection")
    search_fields = ("workspace__name", "connection__name")
    show_full_result_count = False
    fields = (
        *("workspace", "connection", "soft_cost", "hard_cost", "soft_tokens", "hard_tokens"),
        *("month", "cost", "tokens", "unpriced", "covered", "soft_told", "hard_told"),
    )
