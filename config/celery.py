"""The Celery app: a doorbell. Tasks carry ids only; what they do is in the database."""

import os

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("patchbay")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

app.conf.beat_schedule = {
    "check-due-connections": {
        "task": "connections.tasks.validate_due",
        "schedule": 60.0,
        "options": {"expires": 60, "queue": "probes"},
    },
    "refresh-models": {
        "task": "connections.tasks.refresh_models_due",
        "schedule": 60.0,
        "options": {"expires": 60, "queue": "probes"},
    },
    "send-alerts": {
        "task": "connections.tasks.send_alerts",
        "schedule": 60.0,
        "options": {"expires": 60, "queue": "probes"},
    },
    "prune-connections": {
        "task": "connections.tasks.prune",
        "schedule": 3600.0,
        "options": {"expires": 3600, "queue": "probes"},
    },
    "forget-ended-sign-ins": {
        "task": "workspaces.tasks.forget_ended_sign_ins",
        "schedule": 3600.0,
        "options": {"expires": 3600, "queue": "probes"},
    },
    "erase-people": {
        "task": "workspaces.tasks.erase_due",
        "schedule": 60.0,
        "options": {"expires": 60, "queue": "probes"},
    },
    # Hourly, so that one machine that is on in the daytime alone keeps its word too.
    "expire-sessions": {
        "task": "sessions.tasks.expire",
        "schedule": 3600.0,
        "options": {"expires": 3600, "queue": "probes"},
    },
    "delete-doomed-sessions": {
        "task": "sessions.tasks.delete_doomed",
        "schedule": 60.0,
        "options": {"expires": 60, "queue": "probes"},
    },
    "sweep-sessions": {
        "task": "sessions.tasks.sweep",
        "schedule": 10.0,
        "options": {"expires": 10, "queue": "turns"},
    },
}


@setup_logging.connect
def keep_our_logging(**kwargs: object) -> None:
    """Django has configured the logs already; Celery's own set-up would undo it."""
