"""Deleting a connection, and taking that back: a tombstone keeps what was cleared for a week.

Only the secret is gone at once. Each verb is one transaction with its audit row, under the locks of
the list.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from connections.actions import (
    Actor,
    destroy_secret,
    discard_candidate,
    end_of_list,
    lock_list,
    mark_unchecked,
    move_default,
)
from connections.choices import AccessMode
from connections.models import Connection, WorkspaceConnection
from connections.registry import Dependents, dependents_of
from workspaces.audit import record
from workspaces.models import Workspace

UNDO_FOR = dt.timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Deleted:
    """What deleting did besides: where the global default went, which workspaces lost theirs, and
    what depends on the tombstone."""

    new_default: Connection | None
    cleared_workspaces: list[str]
    dependents: Dependents


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back, and the workspaces whose default is another one by now and stays so."""

    workspaces: list[str]
    kept_defaults: list[str]
    is_default: bool


def delete(actor: Actor, connection: Connection, *, successor: Connection | None = None) -> Deleted:
    """Leaves a tombstone: the secrets are destroyed; default, place and workspaces' rows cleared
    and noted for undo; the slug stays taken.

    With a `successor`, workspaces whose default it was take that one where they have access, and
    its sessions are offered to go on there first. Without one they stay readable. Takes the locks
    of the list.
    """
    with transaction.atomic():
        rows = lock_list()
        row = rows.pop(connection.pk, None)
        if row is None:
            raise ValidationError(_("This connection was deleted already."))
        heir = _heir(rows, successor)
        links = list(row.workspace_rows.select_related("workspace"))
        dependents = dependents_of([row.pk]).get(row.pk, Dependents())
        new_default = None
        if row.is_default:
            new_default = heir or min(rows.values(), key=_place, default=None)
        row.cleared = _cleared(row, links, new_default)
        was_default = row.is_default
        row.deleted_at = timezone.now()
        row.successor = heir
        row.is_default = False
        row.position = 0
        row.next_check_at = None
        mark_unchecked(row)
        row.save()
        for secret in row.secrets.all():
            destroy_secret(actor, row, secret)
        discard_candidate(actor, row, "deleted")
        row.sign_ins.all().delete()
        row.workspace_rows.all().delete()
        moved, cleared = _hand_over(links, heir)
        record(
            actor,
            "connection.delete",
            row,
            slug=row.slug,
            host=row.origin,
            sessions=dependents.sessions,
            was_default=was_default,
            successor=heir.slug if heir else "",
            moved_workspaces=moved,
            cleared_workspaces=cleared,
        )
        if new_default is not None:
            move_default(actor, new_default)
    connection.refresh_from_db()
    return Deleted(new_default, cleared, dependents)


def undo(actor: Actor, connection: Connection) -> Restored:
    """Brings a deleted connection back, without its secret: to its place in the list, and to the
    workspaces that chose it. A default comes back only where nobody chose another one since. Raises
    `ValidationError` after a week. Takes the locks of the list."""
    with transaction.atomic():
        rows = lock_list()
        row = (
            Connection.objects.select_for_update(of=("self",))
            .filter(pk=connection.pk, deleted_at__gt=timezone.now() - UNDO_FOR)
            .first()
        )
        if row is None:
            raise ValidationError(
                _("It can't be brought back any more: that works for 7 days after deleting.")
            )
        cleared = row.cleared
        others = sorted(rows.values(), key=_place)
        now_default = next((other for other in others if other.is_default), None)
        takes_default = bool(cleared.get("is_default")) and (
            now_default is None or str(now_default.pk) == cleared.get("default_went_to")
        )
        row.deleted_at = None
        row.position = end_of_list()
        workspaces, kept = _give_back(row, cleared.get("workspaces", ()))
        row.successor = None
        row.cleared = {}
        row.save()
        others.insert(min(int(cleared.get("position", len(others))), len(others)), row)
        for position, other in enumerate(others):
            if other.position != position:
                other.position = position
                other.save(update_fields=["position"])
        record(actor, "connection.restore", row, slug=row.slug, kept_defaults=kept)
        if takes_default:
            move_default(actor, row)
    connection.refresh_from_db()
    return Restored(workspaces, kept, takes_default)


def recently_deleted() -> models.QuerySet[Connection]:
    """What can be brought back still, the last deleted first."""
    since = timezone.now() - UNDO_FOR
    return Connection.objects.filter(deleted_at__gt=since).order_by("-deleted_at")


def purge_tombstones(now: dt.datetime | None = None) -> int:
    """Frees the slugs of connections deleted a week ago that no session points at any more."""
    due = Connection.objects.filter(deleted_at__lt=(now or timezone.now()) - UNDO_FOR)
    purged, ids = 0, list(due.values_list("pk", flat=True)[:500])
    needed = dependents_of(ids)
    for pk in ids:
        if pk in needed:
            continue
        try:
            with transaction.atomic():
                row = Connection.objects.select_for_update(of=("self",)).get(pk=pk)
                record("schedule", "connection.purge", row, slug=row.slug)
                row.delete()
        except (models.ProtectedError, Connection.DoesNotExist):
            continue
        purged += 1
    return purged


# -- the parts -------------------------------------------------------------------------------------


def _heir(rows: dict[uuid.UUID, Connection], successor: Connection | None) -> Connection | None:
    if successor is None:
        return None
    if successor.pk not in rows:
        raise ValidationError({"successor": [_("Choose another connection as the successor.")]})
    return rows[successor.pk]


def _place(row: Connection) -> tuple[int, dt.datetime, str]:
    return (row.position, row.created_at, str(row.pk))


def _cleared(
    row: Connection, links: Iterable[WorkspaceConnection], new_default: Connection | None
) -> dict[str, Any]:
    return {
        "is_default": row.is_default,
        "default_went_to": str(new_default.pk) if new_default else None,
        "position": row.position,
        "workspaces": [
            {
                "workspace": str(link.workspace_id),
                "is_default": link.is_default,
                "granted_models": link.granted_models,
                "allowed_models": link.allowed_models,
            }
            for link in links
        ],
    }


def _hand_over(
    links: Iterable[WorkspaceConnection], heir: Connection | None
) -> tuple[list[str], list[str]]:
    """Names of the workspaces whose default is the successor now, and of those without one."""
    moved, cleared = [], []
    for link in links:
        if not link.is_default:
            continue
        there = None
        if heir is not None:
            there = heir.workspace_rows.filter(workspace=link.workspace).first()
            if there is None and heir.access == AccessMode.ALL:
                there = WorkspaceConnection(workspace=link.workspace, connection=heir)
        if there is None:
            cleared.append(link.workspace.name)
            continue
        there.is_default = True
        there.save()
        moved.append(link.workspace.name)
    return moved, cleared


def _give_back(row: Connection, noted: Iterable[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The names of the workspaces whose rows are back, and of those that keep another default."""
    noted = list(noted)
    spaces = Workspace.objects.in_bulk([entry["workspace"] for entry in noted])
    by_id = {str(pk): space for pk, space in spaces.items()}
    back, kept = [], []
    for entry in noted:
        space = by_id.get(entry["workspace"])
        if space is None:
            continue
        current = WorkspaceConnection.objects.filter(workspace=space, is_default=True).first()
        is_default = entry["is_default"]
        if is_default and current is not None:
            if row.successor_id and current.connection_id == row.successor_id:
                current.is_default = False
                current.save(update_fields=["is_default"])
            else:
                is_default = False
                kept.append(space.name)
        WorkspaceConnection.objects.create(
            workspace=space,
            connection=row,
            is_default=is_default,
            granted_models=entry.get("granted_models"),
            allowed_models=entry.get("allowed_models"),
        )
        back.append(space.name)
    return back, kept
