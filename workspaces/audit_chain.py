"""The audit as a chain: a row that was changed or taken away shows.

Rows are written in their change's transaction without a number, so that no change waits for
another's. The sealer, one at a time, numbers what was committed since and seals each row over the
seal before: HMAC-SHA256 under a key derived from the instance key, whose id stands in the row. Who
can write to the database but doesn't have that key can't make a seal.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass

from django.db import transaction
from django.utils import timezone

from workspaces import audit, vault
from workspaces.models import AuditEvent, AuditHead

AT_ONCE = 500  # rows sealed in one transaction
LATE = dt.timedelta(minutes=1)  # a row that is unsealed for so long is a finding
_PURPOSE = "audit"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in the chain that shouldn't be; `row` is the event's id, "" for none."""

    kind: str  # "changed", "missing", "unsealed", "no_key"
    text: str
    number: int = 0
    row: str = ""


def seal_pending() -> int:
    """Numbers and seals rows that were committed since; how many. Nothing to do costs one query;
    without an instance key nothing is sealed."""
    if not AuditEvent.objects.filter(number=None).exists():
        return 0
    ring = vault.keyring()
    if not ring.ids:
        return 0
    with transaction.atomic():
        AuditHead.objects.get_or_create(id=1)
        head = AuditHead.objects.select_for_update().get(id=1)
        rows = list(AuditEvent.objects.filter(number=None).order_by("at", "id")[:AT_ONCE])
        for row in rows:
            row.number, row.key_id = head.number + 1, ring.primary
            row.seal = _seal(ring, row, head.seal)
            head.number, head.seal = row.number, row.seal
        AuditEvent.objects.bulk_update(rows, ["number", "key_id", "seal"], batch_size=100)
        head.save(update_fields=["number", "seal"])
    return len(rows)


def head() -> tuple[int, str]:
    """The last number and its seal: kept elsewhere, in a backup, it shows a chain cut short."""
    found = AuditHead.objects.filter(id=1).first()
    return (found.number, found.seal) if found else (0, "")


def verify() -> Iterator[Finding]:
    """Every finding, from the oldest row kept on. Reads every row once."""
    ring = vault.keyring()
    end = AuditHead.objects.filter(id=1).first() or AuditHead()
    expected, before = end.anchor_number + 1, end.anchor_seal
    unknown: dict[str, int] = {}
    for row in AuditEvent.objects.exclude(number=None).order_by("number").iterator(2000):
        if row.number != expected:
            yield _gap(expected, row.number - 1)
        if row.key_id not in ring:
            unknown[row.key_id] = unknown.get(row.key_id, 0) + 1
        elif row.number == expected and _seal(ring, row, before) != row.seal:
            yield Finding(
                "changed",
                f"Row {row.number} ({row.action}, {row.at:%Y-%m-%d %H:%M:%S}) isn't what was "
                "sealed, or the row before it isn't.",
                row.number,
                str(row.pk),
            )
        expected, before = row.number + 1, row.seal
    if expected <= end.number:
        yield _gap(expected, end.number)
    elif before != end.seal:
        yield Finding("changed", f"The chain ends at {expected - 1} with another seal than noted.")
    for key_id, rows in unknown.items():
        yield Finding("no_key", f"{rows} rows are sealed with key {key_id}, which isn't here.")
    late = AuditEvent.objects.filter(number=None, at__lt=timezone.now() - LATE)
    if count := late.count():
        yield Finding("unsealed", f"{count} rows are unsealed for more than a minute.")


def prune(before: dt.datetime) -> int:
    """Takes away sealed rows from the beginning of the chain up to the first that isn't older;
    how many. An anchor keeps the seal of the last, so that the rest still verifies. Audited."""
    with transaction.atomic():
        end = AuditHead.objects.select_for_update().filter(id=1).first()
        if end is None:
            return 0
        kept = (
            AuditEvent.objects.filter(at__gte=before, number__isnull=False)
            .order_by("number")
            .values_list("number", flat=True)
            .first()
        )
        last = (kept or end.number + 1) - 1
        row = AuditEvent.objects.filter(number=last).first()
        if row is None or last <= end.anchor_number:
            return 0
        end.anchor_number, end.anchor_seal, end.pruned_at = last, row.seal, timezone.now()
        end.save(update_fields=["anchor_number", "anchor_seal", "pruned_at"])
        gone, _models = AuditEvent.objects.filter(number__lte=last).delete()
        audit.record(
            "command", "audit.prune", end, rows=gone, up_to=last, before=before.isoformat()
        )
    return gone


def _gap(first: int, last: int) -> Finding:
    which = f"Row {first} is" if first == last else f"Rows {first} to {last} are"
    return Finding("missing", f"{which} missing.", first)


def _seal(ring: vault.Keyring, row: AuditEvent, before: str) -> str:
    # The actor's row may be deleted later; his label stays.
    said = [
        before,
        row.number,
        str(row.pk),
        row.at.astimezone(dt.UTC).isoformat(timespec="microseconds"),
        row.actor_label,
        row.action,
        row.target_type,
        row.target_id,
        row.target_label,
        str(row.workspace_id or ""),
        row.details,
    ]
    data = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return ring.mac(row.key_id, _PURPOSE, data.encode("utf-8", "surrogatepass")).hex()
