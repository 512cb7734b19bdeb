"""Usage and cost: of a workspace for its people, of everything for instance admins."""

from __future__ import annotations

import csv
import io
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from connections import budgets
from sessions import usage
from sessions.models import UsageDay
from workspaces.models import Role, Workspace
from workspaces.permissions import Access, need_instance_admin, workspace_for
from workspaces.place import remember
from workspaces.spreadsheet import inert


@require_safe
def workspace_usage(request: HttpRequest, workspace: str) -> HttpResponse:
    """Admins see people by name; others the totals, and of people themselves. The budget is
    for admins."""
    access = workspace_for(request, workspace)
    groups = ["connection", "model", "person", "day"]
    rows, by = _of_workspace(request, access, groups)
    shown: dict[str, Any] = {}
    if access.has(Role.ADMIN):
        standing = budgets.standing_of(access.workspace)
        shown = {"standing": standing, "sees_budget": standing or access.user.is_instance_admin}
    page = _page(request, rows, by, groups, access.workspace, **shown)
    return remember(request, page, access.workspace)


@require_safe
def workspace_usage_export(request: HttpRequest, workspace: str) -> HttpResponse:
    access = workspace_for(request, workspace)
    rows, by = _of_workspace(request, access, ["connection", "model", "person", "day"])
    return _export(request, rows, by, access.workspace.slug)


@require_safe
def instance_usage(request: HttpRequest) -> HttpResponse:
    need_instance_admin(request)
    groups = list(usage.GROUPS)
    return _page(request, UsageDay.objects.all(), _by(request, groups), groups, None)


@require_safe
def instance_usage_export(request: HttpRequest) -> HttpResponse:
    need_instance_admin(request)
    by = _by(request, list(usage.GROUPS))
    return _export(request, UsageDay.objects.all(), by, "all")


def _of_workspace(
    request: HttpRequest, access: Access, groups: list[str]
) -> tuple[QuerySet[UsageDay], str]:
    rows, by = UsageDay.objects.filter(workspace=access.workspace), _by(request, groups)
    if by == "person" and not access.has(Role.ADMIN):
        rows = rows.filter(person=access.user)
    return rows, by


def _by(request: HttpRequest, groups: list[str]) -> str:
    by = request.GET.get("by", "")
    return by if by in groups else groups[0]


def _days(request: HttpRequest) -> int:
    days = request.GET.get("days", "")
    return int(days) if days in map(str, usage.PERIODS) else 30


def _page(
    request: HttpRequest,
    rows: QuerySet[UsageDay],
    by: str,
    groups: list[str],
    workspace: Workspace | None,
    **more: Any,
) -> HttpResponse:
    days = _days(request)
    args = [workspace.slug] if workspace else []
    name = "usage:workspace" if workspace else "usage:instance"
    context: dict[str, Any] = {
        "workspace": workspace,
        "report": usage.report(rows, days, by, most=usage.SHOWN),
        "days": days,
        "by": by,
        "by_label": usage.GROUPS[by][0],
        "periods": usage.PERIODS,
        "groups": [(group, usage.GROUPS[group][0]) for group in groups],
        "width": usage.WIDTH,
        "height": usage.HEIGHT,
        "here": reverse(name, args=args),
        "export": f"{reverse(f'{name}_export', args=args)}?days={days}&by={by}",
    }
    return render(request, "sessions/usage.html", context | more)


def _export(request: HttpRequest, rows: QuerySet[UsageDay], by: str, name: str) -> HttpResponse:
    """The table of the page as CSV."""
    found = usage.report(rows, _days(request), by)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([by, *usage.SUMS])
    for line in found.lines:
        writer.writerow([inert(line.label), *(line.sums[column] for column in usage.SUMS)])
    filename = f"usage-{name}-{found.since}-{found.until}.csv"
    return HttpResponse(
        out.getvalue().encode("utf-8", "replace"),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{filename}"'},
    )
