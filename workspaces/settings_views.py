"""A workspace's own settings: name, instructions, how long its sessions are kept."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods

from workspaces import audit, registry
from workspaces.models import Role, Workspace
from workspaces.permissions import workspace_for
from workspaces.place import remember

MOST_DAYS = 3_650


class SettingsForm(forms.Form):
    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=100,
        help_text=gettext_lazy("The address of the workspace stays as it is."),
        error_messages={"required": gettext_lazy("Give the workspace a name.")},
    )
    instructions = forms.CharField(
        label=gettext_lazy("Instructions"),
        required=False,
        max_length=20_000,
        help_text=gettext_lazy("The model is told this at the beginning of every session."),
        widget=forms.Textarea(attrs={"rows": 6}),
    )
    retention_days = forms.IntegerField(
        label=gettext_lazy("Delete sessions after so many days"),
        required=False,
        min_value=1,
        max_value=MOST_DAYS,
        help_text=gettext_lazy(
            "Counted from the last message. Sessions that somebody has flagged stay, and so do "
            "those with a reply under way. Empty: sessions are kept for ever."
        ),
        widget=forms.NumberInput(attrs={"inputmode": "numeric"}),
        error_messages={
            "invalid": gettext_lazy("Enter a whole number of days, or nothing."),
            "min_value": gettext_lazy("At least one day."),
            "max_value": gettext_lazy("At most %(limit_value)d days."),
        },
    )
    # The number of days whose preview was seen.
    confirmed = forms.CharField(required=False, max_length=10, widget=forms.HiddenInput)

    def clean_instructions(self) -> str:
        return self.cleaned_data["instructions"].replace("\r\n", "\n")

    @property
    def is_confirmed(self) -> bool:
        return self.cleaned_data["confirmed"] == str(self.cleaned_data["retention_days"])


@require_http_methods(["GET", "HEAD", "POST"])
def workspace_settings(request: HttpRequest, workspace: str) -> HttpResponse:
    """Saves; a retention that deletes sooner is saved only after its preview was seen."""
    access = workspace_for(request, workspace, Role.ADMIN)
    space = access.workspace
    values = ("name", "instructions", "retention_days")
    form = SettingsForm(
        request.POST if request.method == "POST" else None,
        initial={name: getattr(space, name) for name in values},
    )
    preview = None
    if request.method == "POST" and form.is_valid():
        days = form.cleaned_data["retention_days"]
        sooner = days is not None and (space.retention_days is None or days < space.retention_days)
        if sooner and not form.is_confirmed:
            preview = registry.expiring(space, days)
        if preview is None:
            save(request.user, space, {name: form.cleaned_data[name] for name in values})
            messages.success(request, _("The settings are saved."))
            answer = redirect("settings:workspace", space.slug)
            answer.status_code = 303
            return answer
    context = {
        "workspace": space,
        "access": access,
        "form": form,
        "preview": preview,
        "days": form.cleaned_data["retention_days"] if preview else None,
    }
    status = 422 if form.is_bound and not form.is_valid() else 200
    page = render(request, "workspaces/settings.html", context, status=status)
    return remember(request, page, space)


@transaction.atomic
def save(actor: Any, workspace: Workspace, values: dict[str, Any]) -> None:
    """Writes what differs, with an audit row of the names, and of the days before and now."""
    now = Workspace.objects.select_for_update().get(pk=workspace.pk)
    changed = [name for name, value in values.items() if getattr(now, name) != value]
    if not changed:
        return
    details: dict[str, Any] = {"changed": changed}
    if "retention_days" in changed:
        details |= {"days": values["retention_days"], "days_before": now.retention_days}
    if "name" in changed:
        details["name_before"] = now.name
    for name in changed:
        setattr(now, name, values[name])
    now.save(update_fields=changed)
    audit.record(actor, "workspace.update", now, workspace_id=now.pk, **details)
