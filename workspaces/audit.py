"""The one way to write an audit row."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import models, transaction

from workspaces.models import AuditEvent, User
from workspaces.statements import insert


def record(
    actor: User | str,
    action: str,
    target: models.Model,
    *,
    workspace_id: uuid.UUID | None = None,
    label: str = "",
    **details: Any,
) -> AuditEvent:
    """Writes who did what, inside the transaction of the change: when the row can't be written,
    the change doesn't happen.

    `actor` is a person, or a word for what acted without one ("command", "schedule"). `action` is
    noun.verb, like "connection.update". `details` is small JSON without secrets. Must be called
    inside `atomic()`. One INSERT.
    """
    if not transaction.get_connection().in_atomic_block:
        raise transaction.TransactionManagementError("audit.record needs the change's transaction")
    person = actor if isinstance(actor, User) else None
    event = AuditEvent(
        actor=person,
        actor_label=(person.email if person else str(actor))[:254],
        action=action,
        target_type=target._meta.model_name or "",
        target_id=str(target.pk),
        target_label=(label or str(target))[:254],
        workspace_id=workspace_id,
        details=details,
    )
    insert(event)
    return event
