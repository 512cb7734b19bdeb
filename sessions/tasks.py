"""Tasks with ids only. What a task finds taken or gone it leaves alone."""

from __future__ import annotations

import logging
import uuid

from celery import shared_task
from celery.signals import worker_init, worker_shutdown, worker_shutting_down

from sessions import belongings, keeping
from sessions.worker import get_crew
from workspaces.runtime import get_runtime, settle_in

logger = logging.getLogger(__name__)


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
