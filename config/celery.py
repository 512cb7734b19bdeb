"""The Celery app: a doorbell. Tasks carry ids only; what they do is in the database."""

import contextlib
import os
from typing import Any

from celery import Celery
from celery.signals import after_task_publish, beat_init, setup_logging, task_postrun, task_prerun

from workspaces import logs

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("patchbay")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


def _every(seconds: int, task: str, queue: str = "probes") -> dict[str, object]:
    """A task that is forgotten when nobody took it before it is due again."""
    return {
        "task": task,
        "schedule": float(seconds),
        "options": {"expires": seconds, "queue": queue},
    }


MINUTE, HOUR = 60, 3600

app.conf.beat_schedule = {
    "check-due-connections": _every(MINUTE, "connections.tasks.validate_due"),
    "refresh-models": _every(MINUTE, "connections.tasks.refresh_models_due"),
    "send-alerts": _every(MINUTE, "connections.tasks.send_alerts"),
    "prune-connections": _every(HOUR, "connections.tasks.prune"),
    "forget-ended-sign-ins": _every(HOUR, "workspaces.tasks.forget_ended_sign_ins"),
    "erase-people": _every(MINUTE, "workspaces.tasks.erase_due"),
    # Hourly, so that one machine that is on in the daytime alone keeps its word too.
    "expire-sessions": _every(HOUR, "sessions.tasks.expire"),
    "delete-doomed-sessions": _every(MINUTE, "sessions.tasks.delete_doomed"),
    "sweep-sessions": _every(10, "sessions.tasks.sweep", "turns"),
}


_named: dict[str, contextlib.ExitStack] = {}  # by the id of a task that runs


@task_prerun.connect
def name_the_lines(task_id: str, task: Any, **kwargs: object) -> None:
    _named[task_id] = stack = contextlib.ExitStack()
    stack.enter_context(logs.about(task=task.name))


@task_postrun.connect
def leave_the_lines(task_id: str, **kwargs: object) -> None:
    if stack := _named.pop(task_id, None):
        stack.close()


@setup_logging.connect
def keep_our_logging(**kwargs: object) -> None:
    """Django has configured the logs already; Celery's own set-up would undo it."""


@beat_init.connect
def tell_of_beat(**kwargs: object) -> None:
    """From now on this process, which is beat's, says at each ring that it is at work."""
    from sessions import alive

    def rung(**kwargs: object) -> None:
        alive.tell(alive.BEAT)

    after_task_publish.connect(rung, weak=False)
