"""A document against what there is: what an import would do, item by item. No query."""

from __future__ import annotations

import collections
import dataclasses
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from connections.choices import AccessMode, AuthType
from connections.models import Connection, Secret
from connections.schema.document import (
    PLAIN_FIELDS,
    Change,
    DefaultRow,
    Document,
    FileWorkspace,
    Item,
    Plan,
    Result,
    Row,
    reference_name,
)
from connections.schema.redaction import shown
from connections.schema.writing import export_connection
from connections.validation import RESERVED_SLUGS
from workspaces.models import Workspace
from workspaces.slugs import is_slug, make_slug

# Absent in a file they stay as they are: the reference's newer version loses the first four when it
# saves, and never knew the others.
_KEPT_WHEN_ABSENT = (
    "awsRegion",
    "gcpProjectId",
    "gcpRegion",
    "codexPath",
    "authHeader",
    "maxTokensField",
    "enabled",
    "note",
)
_NO_ACCESS = gettext_lazy("This workspace has no access to the connection.")
# The secrets that are stored, by connection: purpose and what each was entered for.
Stored = Mapping[uuid.UUID, Mapping[str, str]]


def plan(
    document: Document,
    *,
    connections: Iterable[Connection],
    workspaces: Iterable[tuple[Workspace, str]] = (),
    stored: Stored | None = None,
    granted: Collection[tuple[uuid.UUID, uuid.UUID]] = (),
) -> Plan:
    """What an import would do. `connections` is every one there is, tombstones too; `workspaces`
    each with the slug of its default ("" for none); `granted` the workspaces that a connection is
    open to, (workspace, connection), where it isn't open to all."""
    everything = {c.slug: c for c in connections}
    named = collections.Counter(i.slug for i in document.items if i.slug and not i.refused)
    taken: set[str] = set()
    rows = []
    for item in document.items:
        if named[item.slug] > 1:
            item = dataclasses.replace(item, refused=_twice())  # which of them is meant?
        row = _row(item, everything, taken, stored or {}, named.keys())
        if row.result != Result.REFUSED:
            taken.add(row.slug)
        rows.append(row)
    reasons = {row.slug for row in rows if row.slug and row.result == Result.REFUSED}

    def fault(slug: str, space: Workspace | None = None) -> str:
        """Why a connection can't be a default, of a workspace or of all; "" when it can."""
        there = everything.get(slug)
        if there is not None and there.deleted_at is None:
            return "" if space is None or open_to(space, there) else str(_NO_ACCESS)
        if slug in taken:
            return ""
        if slug in reasons:
            return _("The connection “%(slug)s” was refused.") % {"slug": shown(slug)}
        return _("There is no connection “%(slug)s”.") % {"slug": shown(slug)}

    def open_to(space: Workspace, there: Connection) -> bool:
        return there.access == AccessMode.ALL or (space.pk, there.pk) in granted

    default = None
    if document.default:
        reason = fault(document.default)
        now = next((c.slug for c in everything.values() if c.is_default), "")
        default = DefaultRow(
            label=_("Global default"),
            slug=shown(document.default),
            result=_default_result(reason, now == document.default),
            reason=reason,
            old=now,
        )
    spaces = tuple(_spaces(document, list(workspaces), fault))
    return Plan(tuple(rows), default, spaces)


# -- connections -----------------------------------------------------------------------------------


def _twice() -> str:
    return _("More than one connection of this file has this slug. Keep one of them.")


def _row(
    item: Item,
    everything: Mapping[str, Connection],
    taken: set[str],
    stored: Stored,
    named: Collection[str],
) -> Row:
    """`taken`: the slugs of the file's connections before it; `named`: all that the file names."""

    def refused(reason: str) -> Row:
        return Row(item.number, item.slug, item.name, Result.REFUSED, reason, item.notes)

    if item.refused:
        return refused(item.refused)
    slug = item.slug or _slug_for(item.name, everything, {*taken, *named})
    existing = everything.get(slug)
    if existing is not None and existing.deleted_at is not None:
        return refused(
            _(
                "A connection with this slug was deleted and its sessions still name it. Use "
                "another slug."
            )
        )
    values = {**item.values, "slug": slug}
    values.pop("paused_message", None)
    changes: tuple[Change, ...] = ()
    result = Result.NEW
    if existing is not None:
        for theirs in _KEPT_WHEN_ABSENT:
            # A Codex binary that isn't allowed here is no reason to lose the one in use.
            here = theirs in item.given and not (theirs == "codexPath" and not values["codex_path"])
            if not here and not (theirs == "authHeader" and values["auth_header"]):
                values[PLAIN_FIELDS[theirs]] = getattr(existing, PLAIN_FIELDS[theirs])
        changes = _changes(existing, values, item)
        result = Result.CHANGED if changes else Result.SAME
    after = Connection(**{n: values[n] for n in ("provider_type", "auth_type", "base_url")})
    secrets = stored.get(existing.pk, {}) if existing is not None else {}
    row = Row(
        number=item.number,
        slug=slug,
        name=item.name,
        result=result,
        notes=item.notes,
        changes=changes,
        values=values,
        unknown_fields=item.unknown_fields,
        imported_as=item.imported_as,
        created_at=item.created_at or (timezone.now() if existing is None else None),
        last_used_at=item.last_used_at,
        existing=existing,
        needs_secret=after.needs_secret and secrets.get(Secret.Purpose.AUTH) != after.binding,
        loses_secret=any(binding != after.binding for binding in secrets.values()),
    )
    return dataclasses.replace(row, notes=row.notes + tuple(_notes(row, after)))


def _notes(row: Row, after: Connection) -> Iterator[str]:
    """What is to be done after the import."""
    if row.result not in (Result.NEW, Result.CHANGED):
        return
    if row.loses_secret:
        yield _(
            "Its stored secret was entered for another address or sign-in and is destroyed: enter "
            "it again."
        )
    elif row.needs_secret and after.auth_type == AuthType.OAUTH:
        yield _("It needs a sign-in: sign in on its page afterwards.")
    elif row.needs_secret:
        yield _("It needs its secret: enter it on its page afterwards.")
    if (
        after.auth_type == AuthType.ENVIRONMENT
        and after.provider_type not in settings.ENVIRONMENT_AUTH
    ):
        yield _(
            "The operator hasn't lent it the server's own credentials (PATCHBAY_ENVIRONMENT_AUTH)."
        )


def _slug_for(name: str, everything: Mapping[str, Connection], taken: set[str]) -> str:
    """A slug for a name; the one of the connection that got its slug from the same name, so that
    the same file imported twice makes nothing twice."""
    first = make_slug(name, taken=lambda text: False, fallback="connection")
    there = everything.get(first)
    if there is not None and there.deleted_at is None and there.name == name and first not in taken:
        return first
    return make_slug(
        name,
        taken=lambda text: text in everything or text in taken or text in RESERVED_SLUGS,
        fallback="connection",
    )


def _changes(existing: Connection, values: Mapping[str, Any], item: Item) -> tuple[Change, ...]:
    if _undated(item.entry) == _undated(export_connection(existing)):
        # Our own export, unedited: also where the rules of import would read it in another way.
        return ()
    changes = [
        Change(reference_name(name), _set(getattr(existing, name)), _set(value))
        for name, value in values.items()
        if getattr(existing, name) != value
    ]
    changes += _differing(existing.unknown_fields, item.unknown_fields)
    named = {change.field.partition(".")[0] for change in changes}
    changes += [
        dataclasses.replace(change, kept_only=True)
        for change in _differing(existing.imported_as, item.imported_as)
        if change.field not in named
    ]
    return tuple(changes)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name in {**old, **new}:
        if name not in old or name not in new or old[name] != new[name]:
            yield Change(shown(name), old.get(name), new.get(name))


def _set(value: Any) -> Any:
    return None if value in ("", []) else value


def _undated(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in ("createdAt", "lastUsedAt")}


# -- defaults --------------------------------------------------------------------------------------


def _default_result(reason: str, same: bool) -> Result:
    return Result.REFUSED if reason else Result.SAME if same else Result.CHANGED


def _spaces(
    document: Document, workspaces: list[tuple[Workspace, str]], fault: Callable[..., str]
) -> Iterator[DefaultRow]:
    """The workspaces of the file that name a default, and those that aren't here. Each of ours is
    taken once: of two entries for one, the first counts."""
    seen: set[str] = set()
    for number, entry in enumerate(document.workspaces, 1):
        label, default = entry.name or entry.slug or "?", shown(entry.default)
        matches = _matching(entry, workspaces)
        key = str(matches[0][0].pk) if matches else label.casefold()
        if len(matches) > 1:
            reason = _("Several workspaces have this name.")
        elif key in seen:
            reason = _("Another workspace of this file has the same name; that one counts.")
        elif not matches and label in ("?", "…"):
            reason = _("It has no name that can be used.")
        else:
            reason = ""
        if reason:
            if default:
                yield DefaultRow(label, default, None, Result.REFUSED, reason, number=number)
            continue
        seen.add(key)
        space, now = matches[0] if matches else (Workspace(name=label), "")
        reason = fault(entry.default, space) if entry.default else ""
        if not matches:
            slug = entry.slug if is_slug(entry.slug) else ""
            default = "" if reason else default
            row = DefaultRow(label, default, None, Result.NEW, reason)
            yield dataclasses.replace(row, number=number, space_slug=slug)
        elif entry.default:
            result = _default_result(reason, now == entry.default)
            yield DefaultRow(space.name, default, space, result, reason, now, number)


def _matching(
    entry: FileWorkspace, workspaces: list[tuple[Workspace, str]]
) -> list[tuple[Workspace, str]]:
    by_slug = [pair for pair in workspaces if entry.slug and pair[0].slug == entry.slug]
    name = entry.name.casefold()
    return by_slug or [pair for pair in workspaces if name and pair[0].name.casefold() == name]
