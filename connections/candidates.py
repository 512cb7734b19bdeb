"""A new secret beside the one in use: entered, checked on the ladder, promoted in one step. New
extra headers are secrets of the same kind, entered with the new key or alone; what isn't entered
stays, and the check is made with it.

The old secret goes on being used until the new one has passed; then one transaction seals the new
one in its place, destroys the candidate and writes the audit row. What fails stays a candidate, for
a person to try again, use anyway or discard, and is destroyed after a week.

A check is asked for by `due_at`. Taking it moves that on by compare-and-set: the new value is the
lease. Who lost it writes nothing, and a check whose worker died is due again when it has ended.
Locks are taken in one order: the connection's row, then the candidate's.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from connections import alerts
from connections.actions import (
    HEALTH_FIELDS,
    Actor,
    cleaned_secrets,
    discard_candidate,
    hints_of,
    host_of,
    lock_connection,
    mark_unchecked,
    store_secret,
)
from connections.choices import SECRET_FIELDS, AuthType, Status
from connections.ladder import RungResult, verdict
from connections.models import Connection, ProbeResult, Secret, SecretCandidate
from workspaces.audit import record
from workspaces.models import User
from workspaces.vault import Plain, VaultError

KEPT = dt.timedelta(days=7)
ASKED_FOR = dt.timedelta(seconds=90)  # "Checking…" without a worker
TRIGGER = "candidate"  # of the probe that a promotion leaves behind
MOST_DUE = 500

State = SecretCandidate.State


HEADERS = "extra_headers"  # their place in the sealed value, beside the fields of the auth type


def takes_secret(connection: Connection) -> bool:
    """Whether people type a secret of it: a sign-in and the server's own environment are no such,
    stored extra headers are. No query when `secrets` is prefetched."""
    return bool(fields_of(connection))


def fields_of(connection: Connection) -> list[str]:
    """The names of what can be entered anew."""
    has_headers = connection.secret_for(Secret.Purpose.HEADERS) is not None
    return [*SECRET_FIELDS[AuthType(connection.auth_type)], *([HEADERS] if has_headers else [])]


# -- the verbs -------------------------------------------------------------------------------------


def enter(
    actor: Actor,
    connection: Connection,
    typed: Mapping[str, Any],
    *,
    replaces: str = "",
    entered_for: str = "",
) -> SecretCandidate | None:
    """Stores a new secret beside the one in use and asks for its check; None when it is the one in
    use. The same once more (a double click) is the one that is there.

    `replaces`: the id of the candidate that the person saw; another one's isn't overwritten unseen.
    `entered_for`: the binding that the form named. A refusal is a `ValidationError` by field name.
    Takes the row lock.
    """
    with transaction.atomic():
        row = lock_connection(connection)
        if not takes_secret(row):
            raise ValidationError(_("This connection takes no secret that is typed."))
        values = _cleaned(row, typed)
        first = next(name for name in fields_of(row) if name in values)
        if entered_for and entered_for != row.binding:
            text = _(
                "The connection's settings were changed meanwhile: its secret goes to %(host)s "
                "now. Enter it again if it is meant for that."
            )
            raise ValidationError({first: [text % {"host": host_of(row.binding)}]})
        if all(_is_in_use(row, part, purpose) for part, purpose in _parts(values)):
            return None
        there = SecretCandidate.objects.filter(connection=row).first()
        if there is not None and not there.is_expired:
            if there.binding == row.binding and opened(there) == values:
                _ask(actor, row, there)
                return there
            if replaces != str(there.pk):
                text = _(
                    "%(who)s entered another new secret meanwhile. Look at it on the connection's "
                    "page first; enter this one again to take its place."
                )
                raise ValidationError({first: [text % {"who": there.created_by or _("Somebody")}]})
        discard_candidate(actor, row, "replaced")
        now = timezone.now()
        person = actor if isinstance(actor, User) else None
        candidate = SecretCandidate(
            connection=row,
            binding=row.binding,
            value=Plain(json.dumps(values)),
            hints=hints_of({name: text for name, text in values.items() if name != HEADERS}),
            created_at=now,
            created_by=person,
            expires_at=now + KEPT,
            asked_by=person,
            due_at=now,
            checking_until=now + ASKED_FOR,
        )
        try:
            candidate.save()
        except VaultError as error:
            raise ValidationError({first: [str(error)]}) from None
        record(actor, "secret.try", row, host=host_of(row.binding))
    return candidate


def try_again(actor: Actor, connection: Connection, candidate_id: str) -> bool:
    """Asks for another check; False while one runs. Takes the row lock."""
    with transaction.atomic():
        row = lock_connection(connection)
        return _ask(actor, row, _found(row, candidate_id))


def use_anyway(actor: Actor, connection: Connection, candidate_id: str) -> None:
    """Promotes it unproven, for a person who knows better; the connection is then unchecked. Takes
    the row lock."""
    with transaction.atomic():
        row = lock_connection(connection)
        candidate = _found(row, candidate_id)
        if candidate.is_checking:
            raise ValidationError(_("The new secret is being checked now. Wait for what it says."))
        if candidate.binding != row.binding:
            raise ValidationError(_("It was entered for other settings, and is sent nowhere else."))
        values = opened(candidate)
        if values is None:
            raise ValidationError(_("The new secret is unreadable. Discard it and enter it again."))
        _promote(actor, row, candidate, values, proven=False)
        row.save(update_fields=[*HEALTH_FIELDS])
    connection.refresh_from_db()


def discard(actor: Actor, connection: Connection, candidate_id: str) -> None:
    """Destroys it; the secret in use stays. Takes the row lock."""
    with transaction.atomic():
        row = lock_connection(connection)
        _found(row, candidate_id)
        discard_candidate(actor, row, "asked")


def discard_expired(now: dt.datetime | None = None) -> int:
    """Destroys those that nobody promoted within a week; how many. One query when there is none."""
    now = now or timezone.now()
    old = SecretCandidate.objects.filter(expires_at__lte=now).values_list("connection", flat=True)
    gone = 0
    for connection_id in old[:MOST_DUE]:
        with transaction.atomic():
            row = Connection.objects.select_for_update().filter(pk=connection_id).first()
            there = SecretCandidate.objects.filter(connection=connection_id, expires_at__lte=now)
            if row is not None and there.exists():
                gone += discard_candidate("schedule", row, "expired")
    return gone


# -- the check -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Taken:
    """A check that is this caller's: `lease` is what `due_at` holds meanwhile; `values` are the
    opened fields, None when they can't be read."""

    connection: Connection
    candidate_id: uuid.UUID
    started_at: dt.datetime
    lease: dt.datetime
    values: dict[str, Any] | None = field(repr=False)

    @property
    def secret(self) -> dict[str, str] | None:
        """The fields of the auth type, None for those in use."""
        values = self.values or {}
        return {name: text for name, text in values.items() if name != HEADERS} or None

    @property
    def headers(self) -> dict[str, str] | None:
        """None for those in use."""
        return (self.values or {}).get(HEADERS)


def due(now: dt.datetime | None = None) -> list[uuid.UUID]:
    """The connections whose new secret is to be checked now. One query."""
    now = now or timezone.now()
    rows = SecretCandidate.objects.filter(due_at__lte=now, expires_at__gt=now, state=State.CHECKING)
    return list(rows.order_by("due_at").values_list("connection", flat=True)[:MOST_DUE])


def take(connection_id: uuid.UUID, *, lease: dt.timedelta) -> Taken | None:
    """The check of a connection's candidate, when one is due and nobody else has it."""
    now = timezone.now()
    until = now + lease
    with transaction.atomic():
        mine = SecretCandidate.objects.filter(
            connection=connection_id, state=State.CHECKING, due_at__lte=now, expires_at__gt=now
        )
        if not mine.update(due_at=until, checking_until=until, rungs=[]):
            return None
        candidate = SecretCandidate.objects.get(connection=connection_id)
        connection = Connection.objects.with_secrets().get(pk=connection_id)
        # Whoever edits the connection meanwhile moves its revision on.
        SecretCandidate.objects.filter(pk=candidate.pk).update(revision=connection.revision)
        values = opened(candidate) if candidate.binding == connection.binding else None
    return Taken(connection, candidate.pk, now, until, values)


def note(taken: Taken, results: Sequence[RungResult]) -> None:
    """Shows how far the check has climbed."""
    _held(taken).update(rungs=[rung.as_json() for rung in results])


def settle(taken: Taken, results: Sequence[RungResult], *, next_check_at: dt.datetime) -> bool:
    """Promotes what passed, writes down what failed; nothing when the lease is somebody else's, or
    the candidate is gone. True: the connection was edited meanwhile, and it is to be checked anew.
    """
    now = timezone.now()
    rungs = [rung.as_json() for rung in results]
    found = verdict(results)
    with transaction.atomic():
        rows = Connection.objects.select_for_update().filter(deleted_at=None)
        row = rows.filter(pk=taken.connection.pk).first()
        candidate = _held(taken).first()
        if row is None or candidate is None or candidate.is_expired:
            return False
        if row.revision != taken.connection.revision:
            _held(taken).update(due_at=now, checking_until=now + ASKED_FOR, rungs=[])
            return True
        if found.passed and taken.values is not None:
            actor = candidate.asked_by or "schedule"
            _promote(actor, row, candidate, taken.values, proven=True)
            row.health, row.health_at, row.next_check_at = Status.VALID, now, next_check_at
            row.save(update_fields=[*HEALTH_FIELDS, "next_check_at"])
            row.probes.filter(finished_at=None).delete()  # they were of the old one
            probe = ProbeResult.objects.create(
                connection=row,
                started_at=taken.started_at,
                finished_at=now,
                trigger=TRIGGER,
                requested_by=candidate.asked_by,
                revision=row.revision,
                passed=True,
                latency_ms=found.latency_ms,
                rungs=rungs,
            )
            alerts.note(row, probe)
            return False
        state = State.FAILED if found.passed is False else State.UNPROVEN
        _held(taken).update(
            state=state,
            error_kind=found.kind,
            rungs=rungs,
            checked_at=now,
            checking_until=None,
            due_at=None,
        )
    return False


# -- the parts -------------------------------------------------------------------------------------


def opened(secret: Secret | SecretCandidate) -> dict[str, Any] | None:
    """Its fields, of a candidate with the headers among them; None when it can't be read."""
    try:
        return json.loads(secret.value.open())
    except (VaultError, ValueError):
        return None


def _parts(values: Mapping[str, Any]) -> list[tuple[dict[str, str], Secret.Purpose]]:
    """What was entered, by the stored secret whose place it takes."""
    fields = {name: text for name, text in values.items() if name != HEADERS}
    found = ((fields, Secret.Purpose.AUTH), (values.get(HEADERS), Secret.Purpose.HEADERS))
    return [(dict(part), purpose) for part, purpose in found if part]


def _is_in_use(row: Connection, part: Mapping[str, str], purpose: Secret.Purpose) -> bool:
    stored = row.secrets.filter(purpose=purpose).first()
    return bool(stored and stored.binding == row.binding and opened(stored) == part)


def _cleaned(connection: Connection, typed: Mapping[str, Any]) -> dict[str, Any]:
    fields = fields_of(connection)
    given = typed.get(HEADERS) if HEADERS in fields else None
    values, headers = cleaned_secrets(connection.auth_type, typed, given or None)
    if headers is not None and not headers:
        raise ValidationError({HEADERS: [_("Headers are removed on the edit page.")]})
    if not values and not headers:
        raise ValidationError({fields[0]: [_("Enter the new secret.")]})
    return {**values, **({HEADERS: headers} if headers else {})}


def _found(row: Connection, candidate_id: str) -> SecretCandidate:
    """The candidate that the person saw. Raises `ValidationError` when it is another one by now."""
    there = SecretCandidate.objects.filter(connection=row).first()
    if there is None or str(there.pk) != candidate_id or there.is_expired:
        raise ValidationError(_("This new secret isn't there any more: look at the page again."))
    return there


def _held(taken: Taken) -> Any:
    return SecretCandidate.objects.filter(
        pk=taken.candidate_id, due_at=taken.lease, state=State.CHECKING
    )


def _ask(actor: Actor, row: Connection, candidate: SecretCandidate) -> bool:
    if candidate.is_checking:
        return False
    now = timezone.now()
    candidate.state, candidate.due_at, candidate.checking_until = (
        State.CHECKING,
        now,
        now + ASKED_FOR,
    )
    candidate.error_kind, candidate.rungs, candidate.checked_at = "", [], None
    candidate.asked_by = actor if isinstance(actor, User) else None
    asked = ("state", "due_at", "checking_until", "error_kind", "rungs", "checked_at", "asked_by")
    candidate.save(update_fields=asked)
    record(actor, "secret.check", row, host=host_of(candidate.binding))
    return True


def _promote(
    actor: Actor,
    row: Connection,
    candidate: SecretCandidate,
    values: Mapping[str, Any],
    *,
    proven: bool,
) -> None:
    """Within a transaction that holds the connection's row lock; the caller saves the row."""
    for part, purpose in _parts(values):
        secret = store_secret(actor, row, purpose, part, action="secret.promote", proven=proven)
        # Its age counts from when a person had it in hand.
        secret.created_at, secret.created_by = candidate.created_at, candidate.created_by
        secret.save(update_fields=["created_at", "created_by"])
    candidate.delete()
    mark_unchecked(row)
