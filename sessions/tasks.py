"""The doorbell: tasks with ids only. What a task finds taken or gone it leaves alone."""

from __future__ import annotations

import logging
import time
import uuid

from celery import shared_task
from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from sessions import belongings, bus, keeping
from sessions.worker import get_crew
from workspaces.runtime import get_runtime, settle_in

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


@shared_task(name="sessions.tasks.expire")
def expire() -> None:
    """Deletes old sessions of workspaces that keep them for a time only."""
    belongings.expire_old()


@shared_task(name="sessions.tasks.delete_doomed")
def delete_doomed() -> None:
    """Goes on with what is being deleted. One query when there is nothing."""
    keeping.delete_doomed(seconds=40)


def ring(turn_id: uuid.UUID) -> None:
    """Tells the workers of a pending turn. Never raises and never waits longer than two seconds:
    when nobody hears, a worker's sweep finds the row."""
    global _quiet_until
    if time.monotonic() < _quiet_until or bus.publisher.is_resting:
        return
    try:
        run_turn.apply_async((str(turn_id),), retry=False)
    except (OperationalError, RedisError, OSError) as error:
        _quiet_until = time.monotonic() + 3
        logger.warning("the doorbell doesn't ring (%s)", type(error).__name__)


# -- the worker's life -----------------------------------------------------------------------------

GRACE = 10.0  # seconds that running replies have to end when the worker is asked to stop


@worker_init.connect
def begin(**kwargs: object) -> None:
    """The sweep and the heartbeat start with the process, with or without a broker."""
    settle_in()
    get_crew().start()


@worker_shutting_down.connect
def stop_taking(**kwargs: object) -> None:
    get_crew().drain()


@worker_shutdown.connect
def finish(**kwargs: object) -> None:
    """Lets the running replies end; what doesn't in time ends as interrupted, its text kept."""
    get_crew().close(GRACE)
    get_runtime().stop(1)
