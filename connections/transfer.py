"""Bringing the reference's config in and taking it out: `connections.schema` on the database."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _

from connections import actions, schema
from connections.models import Connection, WorkspaceConnection
from connections.schema import DefaultRow, Document, Plan, Result, Row
from workspaces import egress
from workspaces.audit import record
from workspaces.models import Installation, Workspace

_LOOKUPS = 16  # names looked up at a time


def import_document(actor: actions.Actor, document: Document, *, dry_run: bool = False) -> Plan:
    """Makes and changes the connections of a document and sets its defaults, all in one
    transaction; what is refused is left out. Returns what was done.

    With `dry_run` the very same is done and rolled back: it tells what really would happen. Names
    of hosts are looked up before the transaction. Takes the row locks of every connection.
    """
    document = _addresses_checked(document)
    with transaction.atomic():
        plan = schema.plan(
            document,
            connections=Connection.objects.select_for_update().order_by("pk"),
            workspaces=_workspaces(),
        )
        rows = tuple(_carry_out(actor, row) for row in plan.rows)
        there = {c.slug: c for c in Connection.objects.living()}
        default = plan.default and _set_default(actor, plan.default, there)
        spaces = tuple(_set_default(actor, row, there) for row in plan.workspaces)
        done = Plan(rows, default, spaces)
        record(
            actor,
            "connection.import",
            Installation(),
            label=_("Connections"),
            **{result.value: done.count(result) for result in Result},
        )
        if dry_run:
            transaction.set_rollback(True)
    return done


def export_document(actor: actions.Actor) -> dict[str, Any]:
    """The reference's JSON of every living connection and the workspaces' defaults; no secret.
    Three queries and the audit row."""
    with transaction.atomic():
        found = schema.export(Connection.objects.living(), _workspaces())
        record(
            actor,
            "connection.export",
            Installation(),
            label=_("Connections"),
            connections=len(found["llmConnections"]),
        )
    return found


def _workspaces() -> list[tuple[Workspace, str]]:
    defaults = dict(
        WorkspaceConnection.objects.filter(is_default=True).values_list(
            "workspace_id", "connection__slug"
        )
    )
    return [(space, defaults.get(space.pk, "")) for space in Workspace.objects.all()]


def _addresses_checked(document: Document) -> Document:
    """The document with the connections refused whose address the server may not reach."""
    known = set(Connection.objects.living().values_list("slug", "base_url"))
    urls = {
        url
        for item in document.items
        if (url := item.values.get("base_url")) and (item.slug, url) not in known
    }
    if not urls:
        return document
    with ThreadPoolExecutor(_LOOKUPS, "patchbay-import") as pool:
        faults = dict(zip(urls, pool.map(_address_fault, urls), strict=True))
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
    if row.result != Result.CHANGED:
        return row
    try:
        if row.slug not in there:
            raise ValidationError(_("The connection “%(slug)s” was refused.") % {"slug": row.slug})
        if row.workspace is None:
            actions.set_global_default(actor, there[row.slug])
        else:
            actions.set_workspace_default(actor, row.workspace, there[row.slug])
    except ValidationError as error:
        return dataclasses.replace(row, result=Result.REFUSED, reason=" ".join(error.messages))
    return row
