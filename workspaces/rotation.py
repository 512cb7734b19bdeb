"""Which instance keys the database is sealed with: the check at every start, and the rotation.

To rotate: put a new key first, run `rotate`, remove the old key once nothing uses it. The sealed
rows are the truth about what is in use; `VaultKey` rows add the keys that sealed nothing yet, so
that a server started with the wrong key is noticed before the first secret is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from django.conf import settings
from django.db import models
from django.db.models.functions import Substr

from workspaces import vault
from workspaces.fields import SealedField, Stored, sealed_fields
from workspaces.vault_models import VaultKey

logger = logging.getLogger(__name__)

_PROOF = b"Patchbay vault key"
_BATCH = 200  # rows looked at a query


@dataclass(frozen=True, slots=True)
class KeyReport:
    """Instance keys by id. `in_use` counts the sealed rows of each key the database names (0: it
    is registered but seals nothing); what no key of ours sealed counts under ""."""

    primary: str
    at_hand: tuple[str, ...]
    in_use: dict[str, int] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """Keys in use that are not at hand: their rows are sealed."""
        return tuple(key for key in self.in_use if key and key not in self.at_hand)

    @property
    def removable(self) -> tuple[str, ...]:
        """Keys at hand that neither seal anything nor are the first."""
        return tuple(
            key for key in self.at_hand if key != self.primary and not self.in_use.get(key)
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of `rotate`: this row was re-wrapped, or couldn't be, with the reason."""

    table: str
    row: str
    error: str = ""


def rows_by_key() -> Counter[str]:
    """How many sealed values each key id has; "" for bytes that name no key. One query a field."""
    found: Counter[str] = Counter()
    for model, column in sealed_fields():
        heads = _heads(model, column).values("head").annotate(rows=models.Count("pk"))
        for head, rows in heads.order_by().values_list("head", "rows"):
            found[_key_of_head(bytes(head))] += rows
    return found


def key_report() -> KeyReport:
    """What `doctor` and the rotation show. Raises `vault.BadKeys`."""
    ring = vault.keyring()
    in_use = dict.fromkeys(VaultKey.objects.values_list("key_id", flat=True), 0) | rows_by_key()
    return KeyReport(next(iter(ring.ids), ""), ring.ids, in_use)


def start_check() -> KeyReport:
    """Look before serving, in any process, any number of times. Never changes a sealed value.

    Makes the key file when there is no key and nothing sealed; registers a new first key. Raises
    `vault.BadKeys` with one line when the keys can't be used, or when the database is sealed and
    none of its keys is at hand (unless PATCHBAY_START_SEALED). Some missing: a warning.
    """
    report = key_report()
    if not report.at_hand and not report.in_use:
        vault.make_key_file()
        report = key_report()
    keys = {key for key in report.in_use if key}
    if keys and not _proven(keys & set(report.at_hand)):
        line = (
            f"The database is sealed with {_list(keys)}, and this server has "
            f"{_list(report.at_hand)}: put the key back into PATCHBAY_SECRET_KEYS or "
            f"{vault.key_file()}, or set PATCHBAY_START_SEALED=1 to start without the secrets"
        )
        if not settings.START_SEALED:
            raise vault.BadKeys(line)
        logger.warning("%s.", line)
        return report
    if report.missing:
        logger.warning(
            "Missing %s: the secrets sealed with it stay sealed until it is back in "
            "PATCHBAY_SECRET_KEYS, or until they are entered again.",
            _list(report.missing),
        )
    register(report.primary)
    return report


def register(key_id: str) -> None:
    """Name the first key in the database."""
    proof = vault.keyring().seal(_PROOF, vault.context("vault key", key_id))
    VaultKey.objects.get_or_create(key_id=key_id, defaults={"proof": proof})


def rotate() -> Iterator[Progress]:
    """Wrap every sealed value's data key with the first instance key.

    Row by row, each by compare-and-set on the bytes that were read: it can be killed at any time
    and run again, and a secret that somebody replaces meanwhile stays theirs. Afterwards keys that
    seal nothing any more are struck from the register. Raises `vault.VaultError` when there is no
    key to seal with.
    """
    ring = vault.keyring()
    register(ring.primary)
    for model, column in sealed_fields():
        yield from _rotate_field(ring, model, column)
    in_use = rows_by_key()
    VaultKey.objects.exclude(key_id__in=[ring.primary, *in_use]).delete()


def rotate_rows(rows: models.QuerySet) -> Iterator[Progress]:
    """As `rotate`, of these rows alone; the register of keys stays as it is."""
    ring = vault.keyring()
    register(ring.primary)
    for model, column in sealed_fields():
        if model is rows.model:
            yield from _rotate_field(ring, model, column, models.Q(pk__in=rows.values("pk")))


def _rotate_field(
    ring: vault.Keyring,
    model: type[models.Model],
    column: SealedField,
    only: models.Q = models.Q(),  # noqa: B008
) -> Iterator[Progress]:
    others = _heads(model, column).exclude(head=vault.head_of(ring.primary))
    others = others.filter(only).order_by("pk")
    last = None
    while True:
        page = others if last is None else others.filter(pk__gt=last)
        rows = list(page.values_list("pk", column.attname)[:_BATCH])
        for pk, stored in rows:
            yield from _rotate_row(ring, model, column, pk, stored)
        if len(rows) < _BATCH:
            return
        last = rows[-1][0]


def _rotate_row(
    ring: vault.Keyring, model: type[models.Model], column: SealedField, pk: object, old: Stored
) -> Iterator[Progress]:
    where = model._base_manager.filter(pk=pk)
    while old is not None and vault.key_id_of(old) != ring.primary:
        try:
            new = Stored(ring.rewrap(old))
        except vault.VaultError as error:
            yield Progress(model._meta.db_table, str(pk), str(error))
            return
        if where.filter(**{column.attname: old}).update(**{column.attname: new}):
            yield Progress(model._meta.db_table, str(pk))
            return
        old = where.values_list(column.attname, flat=True).first()


def _heads(model: type[models.Model], column: SealedField) -> models.QuerySet:
    head = Substr(column.attname, 1, vault.HEAD, output_field=models.BinaryField())
    return model._base_manager.exclude(**{column.attname: None}).annotate(head=head)


def _key_of_head(head: bytes) -> str:
    known = len(head) == vault.HEAD and head.startswith(vault.VERSION)
    return head[len(vault.VERSION) :].hex() if known else ""


def _proven(key_ids: set[str]) -> bool:
    """Whether one of these keys at hand is the very key that the database was sealed with."""
    ring = vault.keyring()
    proofs = dict(VaultKey.objects.filter(key_id__in=key_ids).values_list("key_id", "proof"))
    for key_id in key_ids:
        if key_id not in proofs:  # seals rows but was never registered: its id has to do
            return True
        try:
            if ring.open(bytes(proofs[key_id]), vault.context("vault key", key_id)) == _PROOF:
                return True
        except vault.VaultError:
            continue
    return False


def _list(key_ids: object) -> str:
    return ", ".join(f"key {key_id}" for key_id in sorted(key_ids)) or "no key"
