"""The audit as a chain: a row that was changed or taken away shows.

Rows are written in their change's transaction without a number, so that no change waits for
another's. The sealer, one at a time, numbers what was committed since and seals each row over the
seal before: HMAC-SHA256 under a key derived from the instance key, whose id stands in the row. Who
can write to the database but doesn't have that key can't make a seal.

When a person's data is deleted, the name goes out of the rows (`redact`). Such a row keeps its
seal, over which the next one stands, and gets a second seal over what it says now.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Cast
from django.utils import timezone

from workspaces import audit, vault
from workspaces.models import AuditEvent, AuditHead, User

AT_ONCE = 500  # rows sealed in one transaction
LATE = dt.timedelta(minutes=1)  # a row that is unsealed for so long is a finding
_PURPOSE = "audit"
_REDACTION = "audit redaction"
REDACTED_AT_ONCE = 200  # rows of one transaction


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
        key_id = row.redaction.partition(":")[0] or row.key_id
        if key_id not in ring:
            unknown[key_id] = unknown.get(key_id, 0) + 1
        elif row.number == expected and not _is_as_sealed(ring, row, before):
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


def redact(person: User, addresses: Collection[str], label: str) -> int:
    """Puts `label` where the rows name a person, by a link or by one of the addresses; how many
    rows that changed. Reads every row once, writes in short transactions under the sealer's lock;
    may be killed and called again. Raises `vault.KeyMissing`."""
    texts = {variant for one in addresses for variant in (one, json.dumps(one)[1:-1])}
    wanted = Q(actor=person) | Q(target_id=str(person.pk))
    for text in texts:
        wanted |= Q(actor_label__iexact=text) | Q(target_label__icontains=text)
        wanted |= Q(said__icontains=text)
    rows = AuditEvent.objects.annotate(said=Cast("details", models.TextField())).filter(wanted)
    found = list(rows.order_by("number", "at", "pk").values_list("pk", flat=True))
    name = re.compile(
        "|".join(rf"(?<![\w.+-]){re.escape(one)}(?![\w-])" for one in addresses) or r"(?!)", re.I
    )
    changed = 0
    for start in range(0, len(found), REDACTED_AT_ONCE):
        changed += _redact(found[start : start + REDACTED_AT_ONCE], person, name, label)
    return changed


@transaction.atomic
def _redact(keys: Collection[Any], person: User, name: re.Pattern[str], label: str) -> int:
    AuditHead.objects.get_or_create(id=1)
    end = AuditHead.objects.select_for_update().get(id=1)  # no row is sealed meanwhile
    ring = vault.keyring()
    changed = []
    for row in AuditEvent.objects.filter(pk__in=keys):
        was = (row.actor_label, row.target_label, row.details)
        row.actor_label = label if row.actor_id == person.pk else name.sub(label, row.actor_label)
        is_about = row.target_type == "user" and row.target_id == str(person.pk)
        row.target_label = label if is_about else name.sub(label, row.target_label)[:254]
        row.details = _without(name, label, row.details)
        if was != (row.actor_label, row.target_label, row.details):
            changed.append(row)
    numbers = [row.number - 1 for row in changed if row.number is not None]
    rows = AuditEvent.objects.filter(number__in=numbers).values_list("number", "seal")
    seals = {end.anchor_number: end.anchor_seal, **dict(rows)}
    for row in changed:
        if row.number is not None:
            seal = _redaction(ring, ring.primary, row, seals.get(row.number - 1, ""))
            row.redaction = f"{ring.primary}:{seal}"
    fields = ["actor_label", "target_label", "details", "redaction"]
    AuditEvent.objects.bulk_update(changed, fields, batch_size=100)
    return len(changed)


def _without(name: re.Pattern[str], label: str, value: Any) -> Any:
    if isinstance(value, str):
        return name.sub(label, value)
    if isinstance(value, list):
        return [_without(name, label, one) for one in value]
    if isinstance(value, dict):
        return {name.sub(label, key): _without(name, label, one) for key, one in value.items()}
    return value


def _gap(first: int, last: int) -> Finding:
    which = f"Row {first} is" if first == last else f"Rows {first} to {last} are"
    return Finding("missing", f"{which} missing.", first)


def _is_as_sealed(ring: vault.Keyring, row: AuditEvent, before: str) -> bool:
    if not row.redaction:
        return _seal(ring, row, before) == row.seal
    key_id, _sep, seal = row.redaction.partition(":")
    return _redaction(ring, key_id, row, before) == seal


def _seal(ring: vault.Keyring, row: AuditEvent, before: str) -> str:
    # The actor's row may be deleted later; his label stays.
    data = _said(row, before)
    return ring.mac(row.key_id, _PURPOSE, data.encode("utf-8", "surrogatepass")).hex()


def _redaction(ring: vault.Keyring, key_id: str, row: AuditEvent, before: str) -> str:
    """Over what a row says now and over its first seal, which can't be checked by itself."""
    data = f"{row.seal} {row.key_id} {_said(row, before)}"
    return ring.mac(key_id, _REDACTION, data.encode("utf-8", "surrogatepass")).hex()


def _said(row: AuditEvent, before: str) -> str:
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
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
