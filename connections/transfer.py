"""Bringing the reference's config in and taking it out: `connections.schema` on the database."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _

from connections import actions, grants, schema
from connections.choices import AccessMode
from connections.models import Connection, Secret, WorkspaceConnection
from connections.schema import DefaultRow, Document, Exported, Generation, Plan, Result, Row
from workspaces import egress
from workspaces.audit import record
from workspaces.models import AuditEvent, Installation, Workspace
from workspaces.setup import create_workspace

_LOOKUPS = 16  # names looked up at a time
_LOOKUP_SECONDS = 10.0  # for all of a file; what isn't known then is checked when it is called


class NotAsShown(Exception):
    """What was taken isn't what would happen: `problems` has a sentence by the key of each item.
    Nothing was changed."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = dict(problems)


@dataclasses.dataclass(frozen=True, slots=True)
class Imported:
    """What was done, or would be, and the row of the audit that says so: rolled back after a dry
    run, None when nothing was done."""

    plan: Plan
    event: AuditEvent | None

    @property
    def is_refused(self) -> bool:
        """Nothing was taken, and something wasn't because it is refused."""
        items = (*self.plan.rows, *self.plan.defaults)
        return self.event is None and any(item.result == Result.REFUSED for item in items)


# -- in --------------------------------------------------------------------------------------------


def preview_document(document: Document) -> Plan:
    """What an import of everything would do, workspaces made too. Five queries, no lock: a person
    looks at it for a while, and what is taken of it is held against what is there then."""
    return _planned(_addresses_checked(document), Connection.objects.all())


def import_document(
    actor: actions.Actor,
    document: Document,
    *,
    dry_run: bool = False,
    make_workspaces: bool = False,
    taken: Mapping[str, str] | None = None,
) -> Imported:
    """Makes and changes the connections of a document and sets its defaults, all in one
    transaction; what is refused is left out. The plan it returns is what was done.

    With `dry_run` the very same is done and rolled back: it tells what really would happen. Names
    of hosts are looked up before the transaction. Takes the row locks of every connection.
    `make_workspaces` makes those of the file that aren't here.

    `taken` are the items that a person chose of what he was shown, key → stamp. Only these are
    carried out, and all of them or nothing: raises `NotAsShown` when one would turn out otherwise.
    """
    document = _addresses_checked(document)
    with transaction.atomic():
        plan = _planned(document, Connection.objects.select_for_update().order_by("pk"))
        if taken is not None:
            plan = _only(plan, taken)
        elif not make_workspaces:
            plan = dataclasses.replace(
                plan, workspaces=tuple(_not_made(row) for row in plan.workspaces)
            )
        rows = tuple(_carry_out(actor, row) for row in plan.rows)
        there = {c.slug: c for c in Connection.objects.living()}
        default = plan.default and _set_default(actor, plan.default, there)
        spaces = tuple(_set_default(actor, row, there) for row in plan.workspaces)
        done = Plan(rows, default, spaces)
        if taken is not None:
            refused = [r for r in (*done.rows, *done.defaults) if r.result == Result.REFUSED]
            if refused:
                raise NotAsShown({row.key: row.reason for row in refused})
        event = _recorded(actor, done) if _does_something(done) else None
        if dry_run:
            transaction.set_rollback(True)
    return Imported(done, event)


def _does_something(done: Plan) -> bool:
    items = (*done.rows, *done.defaults)
    return any(item.result in (Result.NEW, Result.CHANGED) for item in items)


def _recorded(actor: actions.Actor, done: Plan) -> AuditEvent:
    return record(
        actor,
        "connection.import",
        Installation(),
        label=_("Connections"),
        **{result.value: done.count(result) for result in Result},
        **_details(done),
    )


def _planned(document: Document, connections: Iterable[Connection]) -> Plan:
    chosen = WorkspaceConnection.objects.filter(connection__access=AccessMode.CHOSEN)
    return schema.plan(
        document,
        connections=connections,
        workspaces=_workspaces(),
        stored=_stored(),
        granted=set(chosen.values_list("workspace_id", "connection_id")),
    )


def _details(done: Plan) -> dict[str, Any]:
    """For the audit and the page of the result: which connections, defaults and workspaces."""
    changed = (Result.NEW, Result.CHANGED)
    details: dict[str, Any] = {
        "connections": {r.slug: r.result.value for r in done.rows if r.result in changed}
    }
    if done.default and done.default.result == Result.CHANGED:
        details["default"] = done.default.slug
    spaces = [row for row in done.workspaces if row.workspace and row.result in changed]
    details["workspaces"] = {row.workspace.slug: row.slug for row in spaces if row.workspace}
    details["made"] = [
        row.workspace.slug for row in spaces if row.workspace and row.result == Result.NEW
    ]
    return details


def _only(plan: Plan, taken: Mapping[str, str]) -> Plan:
    """The plan's items that were taken. Raises `NotAsShown` when one of them is another now, or
    needs an item that wasn't taken."""
    items: dict[str, Row | DefaultRow] = {i.key: i for i in (*plan.rows, *plan.defaults)}
    problems = {}
    for key, stamp in taken.items():
        if key not in items or items[key].stamp != stamp:
            problems[key] = _("This changed since you looked. Look again, then apply.")
    new = {r.slug for r in plan.rows if r.result == Result.NEW and r.key not in taken}
    for row in plan.defaults:
        if row.key in taken and row.slug in new:
            words = {"slug": row.slug}
            problems.setdefault(row.key, _("It needs the connection “%(slug)s”: tick it.") % words)
    if problems:
        raise NotAsShown(problems)
    return Plan(
        tuple(row for row in plan.rows if row.key in taken),
        plan.default if plan.default and plan.default.key in taken else None,
        tuple(row for row in plan.workspaces if row.key in taken),
    )


def _not_made(row: DefaultRow) -> DefaultRow:
    if row.result != Result.NEW:
        return row
    reason = _("There is no workspace of this name. Make it first, or have it made.")
    return dataclasses.replace(row, result=Result.REFUSED, reason=reason)


def _workspaces() -> list[tuple[Workspace, str]]:
    defaults = dict(
        WorkspaceConnection.objects.filter(is_default=True).values_list(
            "workspace_id", "connection__slug"
        )
    )
    return [(space, defaults.get(space.pk, "")) for space in Workspace.objects.all()]


def _stored() -> dict[uuid.UUID, dict[str, str]]:
    """What each connection's secrets were entered for, by purpose; their values aren't read."""
    found: dict[uuid.UUID, dict[str, str]] = {}
    rows = Secret.objects.values_list("connection_id", "purpose", "binding")
    for connection_id, purpose, binding in rows:
        found.setdefault(connection_id, {})[purpose] = binding
    return found


def _addresses_checked(document: Document) -> Document:
    """The document with the connections refused whose address the server may not reach. Takes
    `_LOOKUP_SECONDS` at most: an address that isn't known by then is checked when it is called."""
    known = set(Connection.objects.living().values_list("slug", "base_url"))
    urls = {
        url
        for item in document.items
        if (url := item.values.get("base_url")) and (item.slug, url) not in known
    }
    if not urls:
        return document
    pool = concurrent.futures.ThreadPoolExecutor(_LOOKUPS, "patchbay-import")
    asked = {pool.submit(_address_fault, url): url for url in urls}
    done, _late = concurrent.futures.wait(asked, _LOOKUP_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    faults = {asked[future]: future.result() for future in done}
    return dataclasses.replace(
        document,
        items=tuple(
            dataclasses.replace(item, values={}, refused=f"baseUrl: {fault}")
            if (fault := faults.get(item.values.get("base_url", "")))
            else item
            for item in document.items
        ),
    )


def _address_fault(url: str) -> str:
    try:
        egress.check_url(url, egress.provider_policy())
    except egress.URLRefused as error:
        return str(error)
    return ""


def _carry_out(actor: actions.Actor, row: Row) -> Row:
    try:
        if row.result == Result.NEW:
            actions.create(
                actor,
                row.values,
                unknown_fields=row.unknown_fields,
                imported_as=row.imported_as,
                created_at=row.created_at,
                last_used_at=row.last_used_at,
                resolve=False,
            )
        elif row.result == Result.CHANGED:
            actions.update(
                actor,
                row.existing,
                row.values,
                forget_secrets=True,
                unknown_fields=row.unknown_fields,
                imported_as=row.imported_as,
                resolve=False,
            )
    except ValidationError as error:
        return dataclasses.replace(row, result=Result.REFUSED, reason=" ".join(error.messages))
    return row


def _set_default(actor: actions.Actor, row: DefaultRow, there: dict[str, Connection]) -> DefaultRow:
    if row.result not in (Result.NEW, Result.CHANGED):
        return row
    space = row.workspace
    try:
        if row.slug and row.slug not in there:
            raise ValidationError(_("The connection “%(slug)s” was refused.") % {"slug": row.slug})
        if not row.number:
            actions.set_global_default(actor, there[row.slug])
            return row
        space = space or create_workspace(actor, row.label, slug=row.space_slug)
        if row.slug:
            grants.set_workspace_default(actor, space, there[row.slug])
    except ValidationError as error:
        return dataclasses.replace(row, result=Result.REFUSED, reason=" ".join(error.messages))
    return dataclasses.replace(row, workspace=space)


# -- out -------------------------------------------------------------------------------------------


def export_document(
    actor: actions.Actor,
    *,
    generation: Generation = Generation.OWN,
    slugs: Collection[str] | None = None,
    workspaces: bool = True,
) -> Exported:
    """The living connections, or those of `slugs`, with the workspaces' defaults; no secret. Three
    queries and the audit row."""
    with transaction.atomic():
        found = _exported(generation, slugs=slugs, workspaces=workspaces)
        record(
            actor,
            "connection.export",
            Installation(),
            label=_("Connections"),
            connections=len(found.document["llmConnections"]),
            generation=generation.value,
        )
    return found


def left_out_of(generation: Generation) -> tuple[schema.LeftOut, ...]:
    """What a file of this generation would have no place for. Three queries; nothing is taken, so
    nothing is recorded."""
    return _exported(generation, slugs=None, workspaces=True).left_out


def _exported(
    generation: Generation, *, slugs: Collection[str] | None, workspaces: bool
) -> Exported:
    chosen: Iterable[Connection] = Connection.objects.living().defer("cleared")
    if slugs is not None:
        chosen = [connection for connection in chosen if connection.slug in slugs]
    spaces = _workspaces() if workspaces else []
    return schema.export(chosen, spaces, generation=generation)
