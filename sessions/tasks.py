"""The doorbell: tasks with ids only. What a task finds taken or gone it leaves alone."""

from __future__ import annotations

import logging
import time
import uuid

from celery import shared_task
from kombu.exceptions import OperationalError

from sessions.worker import get_crew

logger = logging.getLogger(__name__)

_quiet_until = 0.0  # a dead broker isn't tried for every message


@shared_task(name="sessions.tasks.run_turn")
def run_turn(turn_id: str) -> None:
    """Takes the turn, if it is to be had, and hands it to the loop."""
    get_crew().take(uuid.UUID(turn_id))


@shared_task(name="sessions.tasks.sweep")
def sweep() -> None:
    """Beat's reminder: makes sure that this worker's own sweep runs."""
    get_crew().start()


def ring(turn_id: uuid.UUID) -> None:
    """Tells the workers of a pending turn. Never raises and never waits longer than two seconds:
    when nobody hears, a worker's sweep finds the row."""
    global _quiet_until
    if time.monotonic() < _quiet_until:
        return
    try:
        run_turn.apply_async((str(turn_id),), retry=False)
    except (OperationalError, OSError) as error:
        _quiet_until = time.monotonic() + 3
        logger.warning("the doorbell doesn't ring (%s)", type(error).__name__)
