"""The doorbell: tells the workers, by Celery, that a turn is pending. The database is the queue of
record; when nobody hears, a worker's sweep finds the row."""

from __future__ import annotations

import logging
import time
import uuid

from celery import current_app
from django.db import transaction
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from sessions import bus
from sessions.models import Turn

logger = logging.getLogger(__name__)

_quiet_until = 0.0  # a dead broker isn't tried for every message


def ring(turn: Turn) -> None:
    """Tells the workers after the commit."""
    turn_id = turn.pk
    transaction.on_commit(lambda: _ring(turn_id))


def _ring(turn_id: uuid.UUID) -> None:
    """Never raises and never waits longer than two seconds."""
    global _quiet_until
    if time.monotonic() < _quiet_until or bus.publisher.is_resting:
        return
    try:
        # By its name: the task's module knows the worker, and with it all that rings.
        current_app.send_task("sessions.tasks.run_turn", (str(turn_id),), retry=False)
    except (OperationalError, RedisError, OSError) as error:
        _quiet_until = time.monotonic() + 3
        logger.warning("the doorbell doesn't ring (%s)", type(error).__name__)
