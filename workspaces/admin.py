"""The admin site's pages for people and workspaces, and what every admin page here is built on."""

from __future__ import annotations

from typing import Any

from allauth.account.models import EmailAddress
from django import forms
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.forms import BaseUserCreationForm, UserChangeForm
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import models, transaction
from django.http import HttpRequest, HttpResponseBase
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from workspaces import audit, second_factor
from workspaces.directory import LAST_ADMIN, is_last_admin
from workspaces.models import (
    AuditEvent,
    AuditHead,
    Erasure,
    Installation,
    Invitation,
    Membership,
    SignInKey,
    User,
    VaultKey,
    Workspace,
)
from workspaces.slugs import make_slug


class BoundedPaginator(Paginator):
    """Counts no further than anybody leafs: of a million rows the count alone would take the time
    of the page."""

    MOST = 10_000

    @cached_property
    def count(self) -> int:
        return self.object_list.order_by()[: self.MOST].count()


class FewChoices(admin.RelatedFieldListFilter):
    """By a related row, of which the first are offered; the search finds the others."""

    MOST = 50

    def field_choices(
        self, field: Any, request: HttpRequest, model_admin: admin.ModelAdmin
    ) -> list[tuple[Any, str]]:
        ordering = self.field_admin_ordering(field, request, model_admin)
        rows = field.related_model._default_manager.order_by(*ordering).only("pk", "name")
        return [(row.pk, str(row)) for row in rows[: self.MOST]]


SHOWN = 40  # rows of a page: one costs a millisecond


class ReadOnly:
    """To look at only: the rows are written by the product's own verbs."""

    list_per_page = SHOWN
    paginator = BoundedPaginator
    # Related rows, by a query of their own: where a table is large, SQLite would begin a join with
    # the smaller one and sort everything.
    list_select_related: tuple[str, ...] | bool = ()
    list_prefetch: tuple[str, ...] = ()

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).prefetch_related(*self.list_prefetch)

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Audited:
    """Every write leaves an audit row, in the transaction of the change: when the row can't be
    written, the change doesn't happen."""

    list_per_page = SHOWN

    def audit_context(self, obj: models.Model) -> dict[str, Any]:
        """What the row says of the object besides its type and id; never a secret."""
        return {}

    def audit(self, request: HttpRequest, obj: models.Model, verb: str, **details: Any) -> None:
        other = self.admin_site._registry.get(type(obj))
        context = (other if isinstance(other, Audited) else self).audit_context(obj)
        audit.record(
            request.user, f"{obj._meta.model_name}.{verb}", obj, **context, **details, via="admin"
        )

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if not change:
            self.audit(request, obj, "create")
        elif form.has_changed():
            self.audit(request, obj, "update", changed=form.changed_data)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        self.audit(request, obj, "delete")
        super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        with transaction.atomic():
            for obj in queryset:
                self.delete_model(request, obj)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        super().save_formset(request, form, formset, change)
        for obj in formset.new_objects:
            self.audit(request, obj, "create")
        for obj, fields in formset.changed_objects:
            self.audit(request, obj, "update", changed=fields)
        for obj in formset.deleted_objects:
            self.audit(request, obj, "delete")


# -- people ----------------------------------------------------------------------------------------


_ADMIN_LABELS = {"is_superuser": _("Instance admin")}
_ADMIN_HELP = {
    "is_superuser": _("Manages connections, people and every workspace of this installation.")
}


class PersonAddForm(BaseUserCreationForm):
    class Meta:
        model = User
        fields = ("email", "name", "is_superuser")
        labels = _ADMIN_LABELS
        help_texts = _ADMIN_HELP

    def clean_email(self) -> str:
        return User.objects.normalize_email(self.cleaned_data["email"])


class PersonForm(UserChangeForm):
    class Meta:
        model = User
        fields = ("email", "name", "password", "is_active", "is_superuser")
        labels = _ADMIN_LABELS
        help_texts = _ADMIN_HELP

    def clean_email(self) -> str:
        return User.objects.normalize_email(self.cleaned_data["email"])

    def clean(self) -> dict[str, Any] | None:
        data = super().clean()
        steps_down = not (
            self.cleaned_data.get("is_active", True) and self.cleaned_data.get("is_superuser", True)
        )
        if steps_down and is_last_admin(self.instance):
            raise ValidationError(LAST_ADMIN, code="last_admin")
        return data


class MembershipOfPerson(admin.TabularInline):
    model = Membership
    extra = 0
    fields = ("workspace", "role")
    ordering = ("workspace__name",)
    verbose_name = _("workspace")
    verbose_name_plural = _("workspaces")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).select_related("workspace", "user")


@admin.register(User)
class PersonAdmin(Audited, UserAdmin):
    form = PersonForm
    add_form = PersonAddForm
    list_display = ("email", "name", "is_active", "instance_admin", "last_login", "date_joined")
    list_filter = ("is_active", "is_superuser", "workspaces")
    search_fields = ("email", "name")
    date_hierarchy = "date_joined"
    ordering = ("email",)
    filter_horizontal = ()
    readonly_fields = ("factors", "last_login", "date_joined")
    actions = ("take_second_factors_away",)
    inlines = (MembershipOfPerson,)
    fieldsets = (
        (None, {"fields": ("email", "name", "password")}),
        (_("Access"), {"fields": ("is_active", "is_superuser", "factors")}),
        (_("Dates"), {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = (
        (None, {"classes": ("wide",), "fields": ("email", "name", "password1", "password2")}),
        (_("Access"), {"classes": ("wide",), "fields": ("is_superuser",)}),
    )

    @admin.display(boolean=True, description=_("Instance admin"), ordering="is_superuser")
    def instance_admin(self, user: User) -> bool:
        return user.is_superuser

    @admin.display(description=_("Second factor"))
    def factors(self, user: User) -> str:
        return second_factor.words_of(user) or _("None")

    @admin.action(
        description=_("Take the second factor away, passkeys too"), permissions=["change"]
    )
    def take_second_factors_away(self, request: HttpRequest, people: models.QuerySet) -> None:
        n = sum(second_factor.take_away(request.user, person) for person in people)
        said = ngettext("One person had one.", "%(n)s people had one.", n) % {"n": n}
        self.message_user(request, said)

    def audit_context(self, user: User) -> dict[str, Any]:
        return {"is_active": user.is_active, "instance_admin": user.is_superuser}

    def get_inlines(self, request: HttpRequest, obj: User | None) -> tuple[type, ...]:
        return self.inlines if obj else ()

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if change and "email" in form.changed_data:
            # The sign-in finds people by these, too: a former address must not open the account.
            EmailAddress.objects.filter(user=obj).exclude(email=obj.email).delete()

    def user_change_password(
        self, request: HttpRequest, id: str, form_url: str = ""
    ) -> HttpResponseBase:
        with transaction.atomic():
            before = self._password_of(request, id)
            response = super().user_change_password(request, id, form_url)
            if self._password_of(request, id) != before:
                self.audit(request, self.get_object(request, id), "password")
        return response

    def _password_of(self, request: HttpRequest, id: str) -> str | None:
        user = self.get_object(request, id)
        return user.password if user else None

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        if is_last_admin(obj):
            raise PermissionDenied
        super().delete_model(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        if obj is not None and obj.pk == request.user.pk:
            return False
        return super().has_delete_permission(request, obj)


# -- workspaces ------------------------------------------------------------------------------------


class WorkspaceForm(forms.ModelForm):
    class Meta:
        model = Workspace
        fields = ("name", "slug", "instructions")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "slug" in self.fields:
            self.fields["slug"].required = False
            self.fields["slug"].help_text = _(
                "Part of the address; never changes. Leave empty to have it made from the name."
            )

    def clean(self) -> dict[str, Any] | None:
        data = super().clean()
        if self.instance._state.adding and not self.errors and not self.cleaned_data["slug"]:
            self.cleaned_data["slug"] = make_slug(
                self.cleaned_data["name"],
                taken=lambda text: Workspace.objects.filter(slug=text).exists(),
                fallback="workspace",
            )
        return data


class MembershipInline(admin.TabularInline):
    model = Membership
    extra = 0
    fields = ("user", "role")
    autocomplete_fields = ("user",)
    ordering = ("user__email",)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).select_related("workspace", "user")


@admin.register(Workspace)
class WorkspaceAdmin(Audited, admin.ModelAdmin):
    form = WorkspaceForm
    list_display = ("name", "slug", "member_count", "created_at")
    search_fields = ("name", "slug")
    date_hierarchy = "created_at"
    inlines = (MembershipInline,)
    fields = ("name", "slug", "instructions", "created_at")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("slug", "created_at") if obj else ("created_at",)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).annotate(number=models.Count("memberships"))

    @admin.display(description=_("Members"), ordering="number")
    def member_count(self, workspace: Workspace) -> int:
        return workspace.number

    def audit_context(self, workspace: Workspace) -> dict[str, Any]:
        return {"workspace_id": workspace.pk}


@admin.register(Membership)
class MembershipAdmin(Audited, admin.ModelAdmin):
    list_display = ("user", "workspace", "role", "created_at")
    list_display_links = ("user",)
    list_filter = ("role", ("workspace", FewChoices))
    list_select_related = ("user", "workspace")
    search_fields = ("user__email", "user__name", "workspace__name")
    date_hierarchy = "created_at"
    autocomplete_fields = ("user", "workspace")
    fields = ("workspace", "user", "role", "created_at")
    ordering = ("workspace__name", "user__email")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("workspace", "user", "created_at") if obj else ("created_at",)

    def audit_context(self, membership: Membership) -> dict[str, Any]:
        return {
            "label": f"{membership.user} · {membership.workspace}",
            "workspace_id": membership.workspace_id,
            "role": membership.role,
        }


# -- the installation ------------------------------------------------------------------------------


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("at", "actor_label", "action", "target_type", "target_label", "workspace_id")
    list_filter = ("action", "at")
    search_fields = ("actor_label", "action", "target_label", "target_id")
    fields = (
        *("at", "actor_label", "action", "target_type", "target_label", "target_id"),
        *("workspace_id", "details", "number", "key_id", "redaction"),
    )
    show_full_result_count = False


@admin.register(VaultKey)
class VaultKeyAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("key_id", "created_at")
    fields = ("key_id", "created_at")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).defer("proof")


@admin.register(Installation)
class InstallationAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("set_up_at",)
    fields = ("set_up_at",)


@admin.register(AuditHead)
class AuditHeadAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("number", "anchor_number", "pruned_at")
    fields = ("number", "seal", "anchor_number", "anchor_seal", "pruned_at")


@admin.register(Erasure)
class ErasureAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("user", "asked_by", "started_at", "total", "left", "finished_at")
    list_select_related = ("user", "asked_by")
    fields = ("user", "asked_by", "started_at", "total", "left", "finished_at")


@admin.register(SignInKey)
class SignInKeyAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("id", "created_at")
    fields = ("id", "created_at")


@admin.register(Invitation)
class InvitationAdmin(ReadOnly, admin.ModelAdmin):
    list_display = ("workspace", "email", "role", "created_at", "expires_at", "used_at")
    list_select_related = ("workspace",)
    fields = (
        *("workspace", "email", "role", "created_by", "created_at", "expires_at"),
        *("used_at", "revoked_at"),
    )
