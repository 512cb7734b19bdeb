"""The lease of a running turn: its worker's, for some seconds, and renewed by the heartbeat.

Every write of a worker carries its lease's token, so that one that lost it writes nothing more.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any

from django.db.models import Exists, Q
from django.utils import timezone

from sessions.access import memberships_that_send
from sessions.models import Turn
from workspaces.statements import Select

LEASE = dt.timedelta(seconds=15)


class LeaseLost(Exception):
    """Another worker, a sweep or a person has ended this turn: nothing more may be written."""


def held_turn(turn_id: uuid.UUID, token: uuid.UUID) -> Any:
    """The turn's row while this worker holds it. Every write of a worker goes through it."""
    return Turn.objects.filter(pk=turn_id, lease_token=token, state=Turn.State.RUNNING)


def locked_turn(turn_id: uuid.UUID, token: uuid.UUID) -> Turn:
    """As `held_turn`, locked until the transaction's end. Raises `LeaseLost`."""
    turn = _HELD.first(turn_id, token)
    if turn is None:
        raise LeaseLost
    return turn


_HELD = Select(
    lambda turn_id, token: held_turn(turn_id, token).select_for_update(of=("self",)).order_by()
)


def renew(tokens: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """The heartbeat of a worker: lengthens its leases, returns those it still holds."""
    Turn.objects.filter(lease_token__in=tokens, state=Turn.State.RUNNING).update(
        lease_until=timezone.now() + LEASE
    )
    return held(tokens)


def held(tokens: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Which of these leases still hold."""
    return set(
        Turn.objects.filter(lease_token__in=tokens, state=Turn.State.RUNNING).values_list(
            "lease_token", flat=True
        )
    )


def stops_requested(tokens: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    return set(
        Turn.objects.filter(
            lease_token__in=tokens, state=Turn.State.RUNNING, stop_requested_at__isnull=False
        ).values_list("lease_token", flat=True)
    )


def without_access(tokens: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """The leases of running turns whose person was switched off, removed or made a viewer since
    they asked for it. One query."""
    running = Turn.objects.filter(lease_token__in=tokens, state=Turn.State.RUNNING)
    lost = running.exclude(
        Q(started_by__is_superuser=True) | Exists(memberships_that_send()),
        started_by__is_active=True,
    )
    return set(lost.values_list("lease_token", flat=True))
