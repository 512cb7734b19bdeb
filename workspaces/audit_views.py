"""The audit's pages: of a workspace for its admins, of everything for instance admins."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django import forms
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST, require_safe

from workspaces import audit
from workspaces.audit_words import WORDS, words_of
from workspaces.models import AuditEvent, Installation, Role, Workspace
from workspaces.permissions import need_instance_admin, workspace_for
from workspaces.place import remember
from workspaces.spreadsheet import inert

PAGE = 50
EXPORTED_AT_ONCE = 1000
MOST_EXPORTED = 50_000  # rows of one file


class Filter(forms.Form):
    """Which rows; every field may be empty."""

    q = forms.CharField(label=_("Person or target"), required=False, max_length=200)
    action = forms.ChoiceField(label=_("What"), required=False)
    since = forms.DateField(
        label=_("From"), required=False, widget=forms.DateInput({"type": "date"})
    )
    until = forms.DateField(label=_("To"), required=False, widget=forms.DateInput({"type": "date"}))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choices = list(WORDS.items())
        self.fields["action"].choices = [("", _("Everything")), *choices]

    def rows(self, events: QuerySet[AuditEvent]) -> QuerySet[AuditEvent]:
        """Of a valid form."""
        data = self.cleaned_data
        if text := data["q"].strip():
            events = events.filter(Q(actor_label__icontains=text) | Q(target_label__icontains=text))
        if data["action"]:
            events = events.filter(action=data["action"])
        if data["since"]:
            events = events.filter(at__gte=_midnight(data["since"]))
        if data["until"]:
            events = events.filter(at__lt=_midnight(data["until"]) + dt.timedelta(days=1))
        return events


def _midnight(day: dt.date) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), dt.UTC)


@dataclass(frozen=True, slots=True)
class Row:
    event: AuditEvent
    words: str
    details: list[tuple[str, str]]
    workspace: Workspace | None


@require_safe
def workspace_audit(request: HttpRequest, workspace: str) -> HttpResponse:
    access = workspace_for(request, workspace, Role.ADMIN)
    events = AuditEvent.objects.filter(workspace_id=access.workspace.pk)
    page = _page(request, events, access.workspace)
    return remember(request, page, access.workspace)


@require_safe
def instance_audit(request: HttpRequest) -> HttpResponse:
    need_instance_admin(request)
    return _page(request, AuditEvent.objects.all(), None)


@require_POST
def workspace_audit_export(request: HttpRequest, workspace: str) -> HttpResponse:
    access = workspace_for(request, workspace, Role.ADMIN)
    events = AuditEvent.objects.filter(workspace_id=access.workspace.pk)
    return _export(request, events, access.workspace)


@require_POST
def instance_audit_export(request: HttpRequest) -> HttpResponse:
    need_instance_admin(request)
    return _export(request, AuditEvent.objects.all(), None)


def _page(
    request: HttpRequest,
    events: QuerySet[AuditEvent],
    workspace: Workspace | None,
    form: Filter | None = None,
) -> HttpResponse:
    """A page of the newest rows, or of those before `before`; one query for the rows, whatever
    their number, and one for the names of their workspaces."""
    form = form or Filter(request.GET)
    rows: list[AuditEvent] = []
    following = ""
    if form.is_valid():
        wanted = _before(form.rows(events), request.GET.get("before", ""))
        rows = list(wanted.order_by("-at", "-id")[: PAGE + 1])
        if len(rows) > PAGE:
            rows.pop()
            following = _place(rows[-1])
    names = {} if workspace else Workspace.objects.in_bulk({r.workspace_id for r in rows} - {None})
    query = request.GET.copy()
    query.pop("before", None)
    kept = query.urlencode()
    name, args = ("audit:workspace", [workspace.slug]) if workspace else ("audit:instance", [])
    context = {
        "workspace": workspace,
        "form": form,
        "rows": [_row(event, names) for event in rows],
        "following": following,
        "query": f"{kept}&" if kept else "",
        "is_first": not request.GET.get("before"),
        "is_filtered": any(request.GET.get(field) for field in form.fields),
        "here": reverse(name, args=args),
        "export": reverse(f"{name}_export", args=args),
    }
    status = 200 if form.is_valid() else 422
    return render(request, "workspaces/audit.html", context, status=status)


def _row(event: AuditEvent, names: dict[uuid.UUID, Workspace]) -> Row:
    details = [(name, _shown(value)) for name, value in event.details.items()]
    return Row(event, words_of(event.action), details, names.get(event.workspace_id))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:297]}…"


def _place(event: AuditEvent) -> str:
    return f"{event.at.isoformat()}_{event.pk}"


def _before(events: QuerySet[AuditEvent], place: str) -> QuerySet[AuditEvent]:
    """What stands after a place in the list; all of it for what isn't one."""
    when, _sep, key = place.partition("_")
    try:
        at, pk = parse_datetime(when), uuid.UUID(key)
    except ValueError:
        return events
    if at is None or timezone.is_naive(at):
        return events
    return events.filter(Q(at__lt=at) | Q(at=at, pk__lt=pk))


# -- export ----------------------------------------------------------------------------------------

COLUMNS = (
    *("number", "time", "who", "action", "kind", "target", "target_id", "workspace_id"),
    *("details", "seal"),
)


def _export(
    request: HttpRequest, events: QuerySet[AuditEvent], workspace: Workspace | None
) -> HttpResponse:
    """The filtered rows as CSV or JSON Lines; the export is a row itself."""
    form = Filter(request.POST)
    if form.is_valid() and form.rows(events)[MOST_EXPORTED : MOST_EXPORTED + 1].exists():
        form.add_error(
            None,
            _("These are more than %(most)d rows. Narrow the dates, then export once more.")
            % {"most": MOST_EXPORTED},
        )
    if not form.is_valid():
        return _page(request, events, workspace, form)
    kind = "jsonl" if request.POST.get("format") == "jsonl" else "csv"
    wanted = form.rows(events)
    filters = {name: str(value) for name, value in form.cleaned_data.items() if value}
    with transaction.atomic():
        audit.record(
            request.user,
            "audit.export",
            workspace or Installation(id=1),
            workspace_id=workspace.pk if workspace else None,
            label=str(workspace or _("Everything")),
            format=kind,
            filters=filters,
        )
    name = f"audit-{workspace.slug if workspace else 'all'}-{timezone.now():%Y-%m-%d}.{kind}"
    return HttpResponse(
        b"".join(_lines(wanted, kind)),
        content_type="text/csv; charset=utf-8" if kind == "csv" else "application/x-ndjson",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _lines(events: QuerySet[AuditEvent], kind: str) -> Iterator[bytes]:
    """Newest first, a part at a time."""
    if kind == "csv":
        yield _csv([COLUMNS])
    place = ""
    while rows := list(_before(events, place).order_by("-at", "-id")[:EXPORTED_AT_ONCE]):
        if kind == "csv":
            yield _csv([_cells(row) for row in rows])
        else:
            yield "".join(json.dumps(_object(row)) + "\n" for row in rows).encode()
        place = _place(rows[-1])


def _object(event: AuditEvent) -> dict[str, Any]:
    values = (
        *(event.number, event.at.isoformat(), event.actor_label, event.action),
        *(event.target_type, event.target_label, event.target_id),
        *(str(event.workspace_id or ""), event.details, event.seal),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _cells(event: AuditEvent) -> list[str]:
    found = _object(event)
    found["details"] = json.dumps(found["details"], ensure_ascii=False)
    return [inert("" if value is None else str(value)) for value in found.values()]


def _csv(rows: list[Any]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "replace")
