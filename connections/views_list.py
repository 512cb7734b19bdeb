"""Settings → AI: the list of connections, its order, and what is done with many of them at once."""

from __future__ import annotations

from collections.abc import Sequence

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST, require_safe

from connections import actions, deleting, listing
from connections.models import Connection
from connections.presets import by_group
from connections.registry import Dependents, dependents_of
from connections.views import (
    after,
    answers_refusals,
    ask_for_validation,
    connection_crumbs,
    connection_for,
    say,
    with_toasts,
)
from workspaces.permissions import need_instance_admin

MOST_SELECTED = 1_000


@require_safe
def connection_list(request: HttpRequest) -> HttpResponse:
    """As its filter asks (`listing.Filter`); without any connection, what to begin with."""
    need_instance_admin(request)
    listed = listing.Listed.of(request)
    groups = None if listed.total else by_group()
    return render(request, "connections/list.html", {"listed": listed, "groups": groups})


@require_safe
def connection_row(request: HttpRequest, slug: str) -> HttpResponse:
    """One row of the list, which asks for itself while it is checked. 204 leaves the row alone (a
    menu may be open); a deleted connection's row goes."""
    need_instance_admin(request)
    connection = Connection.objects.living().with_secrets().filter(slug=slug).first()
    if connection is None:
        return HttpResponse()
    row = listing.row_of(connection)
    if row.is_checking:
        return HttpResponse(status=204)
    return render(request, "connections/list.html#row", {"row": row})


@require_safe
def connections_progress(request: HttpRequest) -> HttpResponse:
    """How far the validations are that this person asked for together; asks for itself until all
    have ended."""
    need_instance_admin(request)
    progress = listing.Progress.of(request)
    context = {"progress": progress, "asked": True}
    return render(request, "connections/list.html#progress", context)


# -- the order -------------------------------------------------------------------------------------


@require_POST
def connection_order(request: HttpRequest, slug: str) -> HttpResponse:
    """`before` or `after` the slug of another one, or `direction` up or down, or `position`,
    counted from 0. Where the other one has gone meanwhile nothing moves: htmx gets the list as it
    is now, with the reason; else it is a 400."""
    connection = connection_for(request, slug)
    try:
        moved = _move(request, connection)
    except ValidationError as error:
        text = " ".join(error.messages)
        if request.htmx:
            messages.error(request, text)
            return after(request, connection)
        return HttpResponse(text, status=400, content_type="text/plain; charset=utf-8")
    words = {"name": connection.name, "place": moved.place, "total": moved.total}
    said = _("“%(name)s” is number %(place)d of %(total)d now.") % words
    if moved.stood_after is None:
        say(request, said, undo=request.path, position="0")
    else:
        say(request, said, undo=request.path, after=moved.stood_after.slug)
    return after(request, connection)


def _move(request: HttpRequest, connection: Connection) -> actions.Moved:
    sent = request.POST
    before, behind = sent.get("before", ""), sent.get("after", "")
    if before or behind:
        return actions.move(request.user, connection, before=before, after=behind)
    direction, position = sent.get("direction"), sent.get("position", "")
    if direction in ("up", "down"):
        return actions.move(request.user, connection, by=-1 if direction == "up" else 1)
    if position.isascii() and position.isdigit() and len(position) < 10:
        return actions.move(request.user, connection, int(position))
    text = _(
        "Use before= or after= another connection's slug, direction=up or direction=down, or a "
        "position from 0."
    )
    raise ValidationError(text)


# -- many at once ----------------------------------------------------------------------------------


@require_POST
def connection_validate_many(request: HttpRequest) -> HttpResponse:
    """Those named by `slug`, or all when none is (the button "Validate selected" means none)."""
    need_instance_admin(request)
    only = request.POST.get("only", "")
    if only == "selected" or (request.POST.getlist("slug") and only != "all"):
        connections = _selected(request)
    else:
        connections = list(Connection.objects.living().with_secrets())
    if connections:
        ask_for_validation(request, connections)
    return after(request)


@require_POST
@answers_refusals
def connections_selected(request: HttpRequest) -> HttpResponse:
    """`action` (enable, pause, delete) with those named by `slug`. Deleting asks first: it is done
    with `confirmed`."""
    need_instance_admin(request)
    action = request.POST.get("action", "")
    if action not in ("enable", "pause", "delete"):
        raise ValidationError(_("Use action=enable, action=pause or action=delete."))
    connections = _selected(request)
    asks = action == "delete" and not request.POST.get("confirmed")
    if not connections:
        # The place for the question stays empty.
        return with_toasts(request, "", {}) if asks and request.htmx else after(request)
    if action == "delete":
        if asks:
            return _ask_to_delete(request, connections)
        _delete(request, connections)
        return after(request)
    enabled = action == "enable"
    changed = [one for one in connections if one.enabled != enabled]
    with transaction.atomic():
        # In the order in which every other verb takes these rows, so that none waits for ever.
        for connection in sorted(changed, key=lambda one: one.pk):
            actions.set_enabled(request.user, connection, enabled)
    n = len(changed)
    if enabled:
        said = ngettext("%(n)d connection is enabled.", "%(n)d connections are enabled.", n)
    else:
        said = ngettext("%(n)d connection is paused.", "%(n)d connections are paused.", n)
    messages.success(request, said % {"n": n})
    return after(request)


def _selected(request: HttpRequest) -> list[Connection]:
    """Those named by `slug`, in the order of the list; says so when there are none."""
    slugs = [slug for slug in request.POST.getlist("slug")[:MOST_SELECTED] if "\0" not in slug]
    found = list(Connection.objects.living().with_secrets().filter(slug__in=slugs))
    if not found:
        messages.warning(request, _("Select at least one connection first."))
    return found


def _ask_to_delete(request: HttpRequest, connections: Sequence[Connection]) -> HttpResponse:
    depends = dependents_of([connection.pk for connection in connections])
    rows = [(connection, depends.get(connection.pk, Dependents())) for connection in connections]
    context = {
        "rows": rows,
        "kept": request.POST.get("kept", ""),
        "days": deleting.UNDO_FOR.days,
        "crumbs": connection_crumbs(_("Delete")),
    }
    if request.htmx:
        return with_toasts(request, "connections/confirm_delete_many.html#dialog", context)
    return render(request, "connections/confirm_delete_many.html", context)


def _delete(request: HttpRequest, connections: Sequence[Connection]) -> None:
    heir = None
    for connection in connections:
        heir = deleting.delete(request.user, connection).new_default or heir
    n = len(connections)
    said = ngettext("%(n)d connection was deleted.", "%(n)d connections were deleted.", n)
    text = said % {"n": n}
    if heir is not None and heir.slug not in {connection.slug for connection in connections}:
        text += " " + _("“%(name)s” is the global default now.") % {"name": heir.name}
    messages.success(request, text)
