"""The command palette and the sheet of shortcuts, as pages; with JavaScript both are dialogs of
every page, and the palette asks here for its results."""

from __future__ import annotations

from collections.abc import Iterator

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from config import guide
from config.context import NAV, shell_of
from workspaces.palette import MOST_TYPED, Asked, Command, Group, find, typed
from workspaces.permissions import Access


@require_safe
def palette(request: HttpRequest) -> HttpResponse:
    """`q`: what was typed; `workspace`: the slug of the page's. Queries: constant."""
    shell = shell_of(request, request.GET.get("workspace", ""))
    space = shell["workspace"]
    access = Access(space, request.user, shell["role"]) if space else None
    asked = Asked(request.user, typed(request.GET.get("q", "")), access)
    groups = find(asked)
    context = {
        "shell": shell,
        "query": asked.query,
        "groups": groups,
        "count": sum(len(hits) for _group, hits in groups),
        "most_typed": MOST_TYPED,
    }
    template = "palette.html#results" if request.htmx else "palette.html"
    return render(request, template, context)


@require_safe
def shortcuts(request: HttpRequest) -> HttpResponse:
    return render(request, "shortcuts.html")


def commands(asked: Asked) -> Iterator[Command]:
    """The lines of the rail, the sheet of shortcuts and the guide, whose pages are found when they
    are asked for. No query."""
    for item in NAV:
        args = []
        if item.in_workspace:
            if asked.access is None or not asked.access.has(item.least):
                continue
            args = [asked.access.workspace.slug]
        elif not asked.user.is_instance_admin:
            continue
        note = asked.access.workspace.name if item.in_workspace and asked.access else ""
        yield Command(
            Group.PAGES,
            str(item.label),
            reverse(item.view, args=args),
            item.icon,
            note=note,
        )
    yield Command(
        Group.PAGES,
        _("Keyboard shortcuts"),
        reverse("shortcuts"),
        "keyboard",
        words=_("help keys"),
    )
    yield Command(Group.PAGES, _("Help"), reverse("help"), "help-circle", words=_("guide manual"))
    if asked.query:
        for page in list(guide.pages().values())[1:]:
            yield Command(Group.PAGES, page.title, page.url, "help-circle", note=_("Help"))
