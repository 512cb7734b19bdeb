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

from connections import alerts, candidates, device
from connections.actions import Actor, take_models
from connections.choices import Rung, Status
from connections.deleting import purge_tombstones
from connections.ladder import RungResult, Subject, Verdict, climb, subject_of, verdict
from connections.models import Alert, Connection, ProbeResult, SignIn
from connections.providers.base import ErrorKind, ListedModel, ProviderError
from connections.sentences import Reason
from connections.targets import TargetError, provider_of, target_of
from workspaces.audit import record
from workspaces.egress import client_for, provider_policy
from workspaces.models import User
from workspaces.runtime import get_runtime
from workspaces.statements import Select

logger = logging.getLogger(__name__)

SCHEDULE = "schedule"  # the trigger that costs no answer
ASKED_FOR = dt.timedelta(seconds=90)  # "Checking…" without a worker
RUNNING_FOR = dt.timedelta(seconds=120)  # longer than the longest climb
CHECK_EVERY = dt.timedelta(hours=6)
HISTORY = dt.timedelta(days=90)
REFRESH_EVERY = dt.timedelta(hours=24)
REFRESH_AGAIN = dt.timedelta(hours=3)  # after a failure
REFRESH_SECONDS = 60.0
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


def request_refresh(connection: Connection, actor: Actor) -> bool:
    """Asks for the provider's models; False when they are under way already, or when the list is
    made by hand. Opens its own transaction; a dead broker costs two seconds at most."""
    now = timezone.now()
    with transaction.atomic():
        free = Q(syncing_until=None) | Q(syncing_until__lte=now)
        rows = Connection.objects.filter(
            free, pk=connection.pk, deleted_at=None, models_synced=True
        )
        if not rows.update(syncing_until=now + ASKED_FOR, sync_due_at=now):
            return False
        record(actor, "connection.refresh_models", connection)
        transaction.on_commit(functools.partial(_ring, [connection.pk], task=refresh_models))
    connection.syncing_until, connection.sync_due_at = now + ASKED_FOR, now
    return True


def _ring(ids: list[uuid.UUID], *, task: Any = None) -> None:
    """One message a connection. The first that doesn't get through ends it: the others wouldn't
    either, and each try may take two seconds."""
    try:
        for connection_id in ids:
            (task or validate_connection).apply_async(
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


def ring_for_candidate(connection_id: uuid.UUID) -> None:
    """Tells the workers of a new secret to try; when nobody hears, the sweep finds it."""
    _ring([connection_id], task=check_candidate)


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
def check_candidate(connection_id: str) -> None:
    """Hands the check of a new secret to the process's loop. Safe to run twice."""
    get_runtime().submit(check(uuid.UUID(connection_id)), name="candidate")


@shared_task
def validate_due() -> None:
    """Hands over every probe that is due: those of the schedule, those whose message got lost, and
    those whose worker died; likewise the checks of new secrets and the attempts to sign in."""
    for connection_id in candidates.due():
        get_runtime().submit(check(connection_id), name="candidate")
    for attempt_id in device.waiting():
        get_runtime().submit(device.run(attempt_id), name="sign-in")
    for connection_id in due():
        get_runtime().submit(probe(connection_id), name="probe")


@shared_task
def refresh_models(connection_id: str) -> None:
    """Hands one refresh of a list of models to the process's loop. Safe to run twice."""
    get_runtime().submit(refresh(uuid.UUID(connection_id)), name="models")


@shared_task
def refresh_models_due() -> None:
    """Hands over every list that is due, or was asked for while nobody listened."""
    for connection_id in refreshes_due():
        get_runtime().submit(refresh(connection_id), name="models")


@shared_task
def send_alerts() -> None:
    """Hands over the messages of the alerts, when some are due."""
    if alerts.anything_due():
        get_runtime().submit(alerts.send_due(), name="alerts")


@shared_task
def prune() -> None:
    """Drops old probes, alerts but the newest of a connection's health, attempts to sign in long
    over, new secrets that nobody promoted, and tombstones that nothing needs. Tells of old secrets.
    """
    now = timezone.now()
    ProbeResult.objects.filter(started_at__lt=now - HISTORY).delete()
    newer = Alert.objects.filter(
        connection=OuterRef("connection"), at__gt=OuterRef("at"), state__in=alerts.HEALTH
    )
    old = Alert.objects.filter(at__lt=now - HISTORY)
    old.filter(Exists(newer) | ~Q(state__in=alerts.HEALTH)).delete()
    SignIn.objects.filter(expires_at__lt=now - SIGN_INS_KEPT).delete()
    candidates.discard_expired()
    alerts.remind_of_age()
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


def slot() -> asyncio.Semaphore:
    loop = asyncio.get_running_loop()
    if loop not in _slots:
        _slots[loop] = asyncio.Semaphore(settings.PROBES_PER_WORKER)
    return _slots[loop]


async def probe(connection_id: uuid.UUID, *, force: bool = False) -> ProbeResult | None:
    """Takes the connection's probe, climbs, and writes it down; None when there is none to take.

    Runs on the runtime's loop, at most PROBES_PER_WORKER at once. `force`: without being asked or
    due, for commands.
    """
    async with slot():
        db = get_runtime().db
        taken = await db(_take, connection_id, force=force)
        if taken is None:
            return None
        connection, result = taken
        upto = Rung.MODELS if result.trigger == SCHEDULE else Rung.STREAM
        # What somebody waits for is shown rung by rung; the schedule's writes once.
        watched = result.trigger != SCHEDULE
        tell = functools.partial(db, _tell, result) if watched else None
        results = await climb(subject_of(connection), upto=upto, tell=tell)
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
        result.rungs = []  # of a worker that died on the way
        result.save()
    return connection, result


def _tell(result: ProbeResult, results: list[RungResult]) -> None:
    """Shows how far a probe has climbed."""
    rungs = [rung.as_json() for rung in results]
    ProbeResult.objects.filter(pk=result.pk, finished_at=None).update(rungs=rungs)


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
        is_taken = Connection.objects.filter(
            pk=connection.pk,
            revision=result.revision,
            next_check_at=connection.next_check_at,
            deleted_at=None,
        ).update(
            checking_until=None,
            next_check_at=now + CHECK_EVERY * random.uniform(0.8, 1.2),  # noqa: S311
            **_health(connection, found, now),
        )
        if is_taken and (sooner := alerts.note(connection, result)):
            Connection.objects.filter(pk=connection.pk).update(
                next_check_at=now + sooner * random.uniform(0.8, 1.2)  # noqa: S311
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


# -- a new secret beside the one in use ------------------------------------------------------------


async def check(connection_id: uuid.UUID) -> None:
    """Takes the check of a connection's new secret, climbs with it, and promotes it when it passes.
    Runs on the runtime's loop, beside the probes and within their bound."""
    async with slot():
        db = get_runtime().db
        taken = await db(candidates.take, connection_id, lease=RUNNING_FOR)
        if taken is None:
            return
        if taken.values is None:
            subject = Subject(fault=Reason.SEALED)
        else:
            subject = subject_of(taken.connection, secret=taken.secret, headers=taken.headers)
        tell = functools.partial(db, candidates.note, taken)
        results = await climb(subject, tell=tell)
        later = CHECK_EVERY * random.uniform(0.8, 1.2)  # noqa: S311
        if await db(candidates.settle, taken, results, next_check_at=timezone.now() + later):
            await db(ring_for_candidate, connection_id)


# -- lists of models -------------------------------------------------------------------------------


def refreshes_due(now: dt.datetime | None = None) -> list[uuid.UUID]:
    """The connections whose list of models is to be fetched now. One query."""
    now = now or timezone.now()
    return list(
        Connection.objects.filter(
            Q(sync_due_at=None) | Q(sync_due_at__lte=now),
            models_synced=True,
            enabled=True,
            deleted_at=None,
        )
        .order_by(F("sync_due_at").asc(nulls_first=True))
        .values_list("pk", flat=True)[:MOST_DUE]
    )


async def refresh(connection_id: uuid.UUID) -> None:
    """Fetches the list of a connection that is due, and takes it; what goes wrong is kept as its
    kind. Runs on the runtime's loop, beside the probes and within their bound."""
    async with slot():
        db = get_runtime().db
        connection = await db(_take_refresh, connection_id)
        if connection is None:
            return
        listed: list[ListedModel] = []
        try:
            target = target_of(connection)
            async with asyncio.timeout(REFRESH_SECONDS):
                client = client_for(provider_policy())
                listed = await provider_of(connection).list_models(client, target)
            error = "" if listed else ErrorKind.PROTOCOL.value
        except TargetError as refusal:
            error = refusal.reason.value
        except ProviderError as failure:
            error = failure.kind.value
        except TimeoutError:
            error = ErrorKind.TIMEOUT.value
        except Exception as fault:
            logger.error("a list of models failed: %s", type(fault).__name__, exc_info=True)
            error = Reason.INTERNAL.value
        await db(_end_refresh, connection, listed, error)


def _take_refresh(connection_id: uuid.UUID) -> Connection | None:
    """The connection with its secrets and, in `sync_due_at`, the lease."""
    now = timezone.now()
    taken = Connection.objects.filter(
        Q(sync_due_at=None) | Q(sync_due_at__lte=now),
        pk=connection_id,
        models_synced=True,
        deleted_at=None,
    ).update(sync_due_at=now + RUNNING_FOR)
    return Connection.objects.with_secrets().get(pk=connection_id) if taken else None


def _end_refresh(connection: Connection, listed: list[ListedModel], error: str) -> None:
    """Takes the list, and sets when the next is due; nothing when the lease is somebody else's."""
    now = timezone.now()
    every = REFRESH_EVERY if not error else REFRESH_AGAIN
    with transaction.atomic():
        ended = Connection.objects.filter(
            pk=connection.pk, sync_due_at=connection.sync_due_at, deleted_at=None
        ).update(
            sync_due_at=now + every * random.uniform(0.8, 1.2),  # noqa: S311
            syncing_until=None,
            sync_error=error,
            **({} if error else {"synced_at": now}),
        )
        if ended and not error:
            take_models("sync", connection, listed)


# -- what turns tell -------------------------------------------------------------------------------


_STANDING = Select(
    lambda connection_id: Connection.objects.filter(pk=connection_id).values_list(
        "health", "last_used_at"
    )
)


def record_turn_outcome(
    connection_id: uuid.UUID, error_kind: str | None, *, revision: int | None = None
) -> None:
    """A turn ended: a success proves the connection, a rejected key marks it failed; any other
    failure says nothing lasting. At most one write, and one a minute while all is well.

    `revision`: what the connection's was when the turn began; a turn on settings that were edited
    meanwhile tells nothing of the new ones.
    """
    now = timezone.now()
    known = _STANDING.first(connection_id)
    if error_kind is None and known is not None and known[0] == Status.VALID:
        used_at = known[1]
        if used_at is not None and used_at >= now - USED_EVERY:
            return
    rows = Connection.objects.filter(pk=connection_id, deleted_at=None)
    if revision is not None:
        rows = rows.filter(revision=revision)
    if error_kind is None:
        stale = Q(last_used_at=None) | Q(last_used_at__lt=now - USED_EVERY)
        rows.filter(stale | ~Q(health=Status.VALID)).update(
            last_used_at=now, health=Status.VALID, health_at=now, health_error=""
        )
    elif error_kind in (ErrorKind.AUTH, ErrorKind.SIGN_IN_AGAIN):
        rows.exclude(health=Status.FAILED, health_error=error_kind).update(
            health=Status.FAILED, health_at=now, health_error=error_kind
        )
