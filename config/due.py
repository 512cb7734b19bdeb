"""What the installation does next by itself, for the admin site: the soonest of each kind."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from django.db.models import QuerySet
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from connections.deleting import UNDO_FOR, recently_deleted
from connections.models import Connection, Secret, SecretCandidate
from sessions.models import ChatSession

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Line:
    """`at` in the past: it is due, and a worker takes it as soon as one is free."""

    at: dt.datetime
    label: str
    url: str = ""

    @property
    def is_late(self) -> bool:
        return self.at <= timezone.now()


@dataclass(frozen=True, slots=True)
class Group:
    title: Any
    total: int = 0
    lines: list[Line] = field(default_factory=list)

    @property
    def more(self) -> int:
        return self.total - len(self.lines)


def groups() -> list[Group]:
    """Two queries each, whatever there is."""
    now = timezone.now()
    probes = Connection.objects.filter(deleted_at=None, enabled=True, next_check_at__isnull=False)
    lists = Connection.objects.filter(
        deleted_at=None, enabled=True, models_synced=True, sync_due_at__isnull=False
    )
    tokens = Secret.objects.filter(renew_at__isnull=False, ended_at=None)
    candidates = SecretCandidate.objects.defer("value").select_related("connection")
    retries = ChatSession.objects.filter(queue_not_before__gt=now, queue_paused="")
    retries = retries.select_related("connection", "workspace")
    return [
        _of_connections(_("Validations"), probes, "next_check_at"),
        _of_connections(_("Lists of models"), lists, "sync_due_at"),
        _group(
            _("Renewals of sign-ins"),
            tokens.defer("value").select_related("connection"),
            "renew_at",
            lambda row: Line(row.renew_at, row.connection.name, row.connection.get_absolute_url()),
        ),
        _group(
            _("New secrets that expire"),
            candidates,
            "expires_at",
            lambda row: Line(
                row.expires_at, row.connection.name, row.connection.get_absolute_url()
            ),
        ),
        _group(
            _("Last moments to bring deleted connections back"),
            recently_deleted(),
            "deleted_at",
            lambda row: Line(row.deleted_at + UNDO_FOR, row.name, reverse("connections:deleted")),
        ),
        _group(
            _("Queues that go on after a failure"),
            retries,
            "queue_not_before",
            # No title: the session may be private.
            lambda row: Line(
                row.queue_not_before,
                f"{row.workspace} · {row.connection or '–'}",
            ),
        ),
    ]


def _of_connections(title: Any, rows: QuerySet, by: str) -> Group:
    return _group(
        title, rows, by, lambda row: Line(getattr(row, by), row.name, row.get_absolute_url())
    )


def _group(title: Any, rows: QuerySet, by: str, line: Any) -> Group:
    return Group(title, rows.count(), [line(row) for row in rows.order_by(by, "pk")[:SHOWN]])
