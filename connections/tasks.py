"""Validation as Celery runs it: thin tasks, and the life of a probe between asked and written down.

The database is the queue. Asking for a probe sets `checking_until` (the row shows "Checking…", and
a second click changes nothing) and `next_check_at` (it is due), and writes a `ProbeResult` without
an end; the message to a worker is only the doorbell. Taking it moves `next_check_at` on by
compare-and-set: the new value is the lease. Of two takers one climbs, one that lost its lease
writes no health, and a probe whose worker died is due again when the lease has ended.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import logging
import random
import uuid
import weakref
from collections.abc import Iterable
from typing import Any

from celery import shared_task
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q
from django.utils import timezone
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from connections import device
from connections.actions import Actor, purge_tombstones
from connections.choices import Rung, Status
from connections.ladder import RungResult, Verdict, climb, subject_of, verdict
from connections.models import Connection, ProbeResult, SignIn
from connections.providers.base import ErrorKind
from connections.sentences import Reason
from workspaces.audit import record
from workspaces.models import User
from workspaces.runtime import get_runtime

logger = logging.getLogger(__name__)

SCHEDULE = "schedule"  # the trigger that costs no answer
ASKED_FOR = dt.timedelta(seconds=90)  # "Checking…" without a worker
RUNNING_FOR = dt.timedelta(seconds=120)  # longer than the longest climb
CHECK_EVERY = dt.timedelta(hours=6)
HISTORY = dt.timedelta(days=90)
SIGN_INS_KEPT = dt.timedelta(days=1)  # after they ended: a late paste is told why
MOST_DUE = 500  # connections taken by one sweep
USED_EVERY = dt.timedelta(minutes=1)  # how often a busy connection's row is written

# What another look at the network may have cured without proving the key.
_PASSING = frozenset(
    {
        ErrorKind.CONNECT,
        ErrorKind.TIMEOUT,
        ErrorKind.TLS,
        ErrorKind.SERVER,
        ErrorKind.OVERLOADED,
        ErrorKind.RATE_LIMITED,
        ErrorKind.EGRESS,
        Reason.DNS,
        Reason.INTERNAL,
        Reason.INCOMPLETE,
        Reason.NOT_SIGNED_IN,
        Reason.OAUTH_OFF,
        Reason.SEALED,
        Reason.NOT_AVAILABLE,
        Reason.ENVIRONMENT_OFF,
        Reason.ENVIRONMENT_EMPTY,
        Reason.CODEX_MISSING,
        ErrorKind.PROCESS,
        Reason.NO_MODEL,
    }
)


# -- asking ----------------------------------------------------------------------------------------


def request_validation(
    connections: Iterable[Connection], actor: Actor, trigger: str = "button"
) -> list[Connection]:
    """Asks for a full climb of each; returns those that were not being checked already. Opens its
    own transaction; a broker that is down costs two seconds at most, and the sweep makes it good.

    `trigger`: "button", "save", "import".
    """
    now = timezone.now()
    asked = []
    with transaction.atomic():
        # In the order in which every other verb takes these rows, so that none waits for ever.
        for connection in sorted(connections, key=lambda one: one.pk):
            free = Q(checking_until=None) | Q(checking_until__lte=now)
            rows = Connection.objects.filter(free, pk=connection.pk, deleted_at=None)
            if not rows.update(checking_until=now + ASKED_FOR, next_check_at=now):
                continue
            ProbeResult.objects.create(
                connection=connection,
                trigger=trigger,
                requested_by=actor if isinstance(actor, User) else None,
                revision=connection.revision,
            )
            record(actor, "connection.validate", connection, trigger=trigger)
            connection.checking_until, connection.next_check_at = now + ASKED_FOR, now
            asked.append(connection)
        if asked:
            ids = [connection.pk for connection in asked]
            transaction.on_commit(functools.partial(_ring, ids))
    return asked


def _ring(ids: list[uuid.UUID]) -> None:
    """One message a connection. The first that doesn't get through ends it: the others wouldn't
    either, and each try may take two seconds."""
    try:
        for connection_id in ids:
            validate_connection.apply_async(
                args=[str(connection_id)], retry=False, expires=ASKED_FOR.total_seconds()
            )
    except (OperationalError, RedisError, OSError) as error:
        logger.warning("the broker takes no probes now (%s)", type(error).__name__)


def ring_for_sign_in(attempt_id: uuid.UUID) -> None:
    """Tells the workers of an attempt; when nobody hears, the sweep finds it."""
    try:
        sign_in_by_device.apply_async(
            args=[str(attempt_id)], retry=False, expires=ASKED_FOR.total_seconds()
        )
    except (OperationalError, RedisError, OSError) as error:
        logger.warning("the broker takes no sign-ins now (%s)", type(error).__name__)


# -- the tasks -------------------------------------------------------------------------------------


@shared_task
def validate_connection(connection_id: str) -> None:
    """Hands one probe to the process's loop. Safe to run twice; quiet when nothing is due."""
    get_runtime().submit(probe(uuid.UUID(connection_id)), name="probe")


@shared_task
def sign_in_by_device(attempt_id: str) -> None:
    """Hands one attempt to the process's loop. Safe to run twice."""
    get_runtime().submit(device.run(uuid.UUID(attempt_id)), name="sign-in")


@shared_task
def validate_due() -> None:
    """Hands over every probe that is due: those of the schedule, those whose message got lost, and
    those whose worker died; and the attempts to sign in whose message got lost."""
    for attempt_id in device.waiting():
        get_runtime().submit(device.run(attempt_id), name="sign-in")
    for connection_id in due():
        get_runtime().submit(probe(connection_id), name="probe")


@shared_task
def prune() -> None:
    """Drops old probes, attempts to sign in long over, and tombstones that nothing needs."""
    now = timezone.now()
    ProbeResult.objects.filter(started_at__lt=now - HISTORY).delete()
    SignIn.objects.filter(expires_at__lt=now - SIGN_INS_KEPT).delete()
    purge_tombstones()


def due(now: dt.datetime | None = None) -> list[uuid.UUID]:
    """The connections to check now, the longest due first. One query."""
    now = now or timezone.now()
    asked = ProbeResult.objects.filter(connection=OuterRef("pk"), finished_at=None)
    return list(
        Connection.objects.filter(Q(next_check_at=None) | Q(next_check_at__lte=now))
        .filter(Q(enabled=True) | Exists(asked), deleted_at=None)
        .order_by(F("next_check_at").asc(nulls_first=True))
        .values_list("pk", flat=True)[:MOST_DUE]
    )


# -- one probe -------------------------------------------------------------------------------------

_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


def _slot() -> asyncio.Semaphore:
    loop = asyncio.get_running_loop()
    if loop not in _slots:
        _slots[loop] = asyncio.Semaphore(settings.PROBES_PER_WORKER)
    return _slots[loop]


async def probe(connection_id: uuid.UUID, *, force: bool = False) -> ProbeResult | None:
    """Takes the connection's probe, climbs, and writes it down; None when there is none to take.

    Runs on the runtime's loop, at most PROBES_PER_WORKER at once. `force`: without being asked or
    due, for commands.
    """
    async with _slot():
        db = get_runtime().db
        taken = await db(_take, connection_id, force=force)
        if taken is None:
            return None
        connection, result = taken
        upto = Rung.MODELS if result.trigger == SCHEDULE else Rung.STREAM
        results = await climb(subject_of(connection), upto=upto)
        return await db(_write_down, connection, result, results)


def _take(
    connection_id: uuid.UUID, *, force: bool = False
) -> tuple[Connection, ProbeResult] | None:
    """The connection with its secrets and the lease, and the row of the probe."""
    now = timezone.now()
    is_due = Q() if force else Q(next_check_at=None) | Q(next_check_at__lte=now)
    with transaction.atomic():
        taken = Connection.objects.filter(is_due, pk=connection_id, deleted_at=None).update(
            next_check_at=now + RUNNING_FOR
        )
        if not taken:
            return None
        connection = Connection.objects.with_secrets().get(pk=connection_id)
        if connection.checking_until is not None:
            Connection.objects.filter(pk=connection_id).update(checking_until=now + RUNNING_FOR)
        asked = list(connection.probes.filter(finished_at=None).order_by("-started_at"))
        if asked:
            result, *older = asked
            ProbeResult.objects.filter(pk__in=[probe.pk for probe in older]).delete()
        else:
            trigger = "command" if force else SCHEDULE
            result = ProbeResult(connection=connection, trigger=trigger)
        result.started_at = now
        result.revision = connection.revision
        result.save()
    return connection, result


def _write_down(
    connection: Connection, result: ProbeResult, results: list[RungResult]
) -> ProbeResult:
    """The probe's row always; the connection's health only while the connection is what was
    probed and no other probe was asked for."""
    now = timezone.now()
    found = verdict(results)
    result.finished_at = now
    result.passed = found.passed
    result.error_kind = found.kind
    result.latency_ms = found.latency_ms
    result.rungs = [rung.as_json() for rung in results]
    with transaction.atomic():
        ProbeResult.objects.bulk_update(
            [result], ["finished_at", "passed", "error_kind", "latency_ms", "rungs"]
        )
        Connection.objects.filter(
            pk=connection.pk,
            revision=result.revision,
            next_check_at=connection.next_check_at,
            deleted_at=None,
        ).update(
            checking_until=None,
            next_check_at=now + CHECK_EVERY * random.uniform(0.8, 1.2),  # noqa: S311
            **_health(connection, found, now),
        )
    return result


def _health(connection: Connection, found: Verdict, now: dt.datetime) -> dict[str, Any]:
    if found.passed is not None:
        status = Status.VALID if found.passed else Status.FAILED
        return {"health": status, "health_at": now, "health_error": found.kind}
    # Nothing failed and nothing was proven: what was proven before stays, with its age.
    if connection.health == Status.FAILED and connection.health_error in _PASSING:
        return {"health": Status.UNCHECKED, "health_at": now, "health_error": ""}
    return {}


# -- what turns tell -------------------------------------------------------------------------------


def record_turn_outcome(
    connection_id: uuid.UUID, error_kind: str | None, *, revision: int | None = None
) -> None:
    """A turn ended: a success proves the connection, a rejected key marks it failed; any other
    failure says nothing lasting. At most one write, and one a minute while all is well.

    `revision`: what the connection's was when the turn began; a turn on settings that were edited
    meanwhile tells nothing of the new ones.
    """
    rows = Connection.objects.filter(pk=connection_id, deleted_at=None)
    if revision is not None:
        rows = rows.filter(revision=revision)
    now = timezone.now()
    if error_kind is None:
        stale = Q(last_used_at=None) | Q(last_used_at__lt=now - USED_EVERY)
        rows.filter(stale | ~Q(health=Status.VALID)).update(
            last_used_at=now, health=Status.VALID, health_at=now, health_error=""
        )
    elif error_kind in (ErrorKind.AUTH, ErrorKind.SIGN_IN_AGAIN):
        rows.exclude(health=Status.FAILED, health_error=error_kind).update(
            health=Status.FAILED, health_at=now, health_error=error_kind
        )
