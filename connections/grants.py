"""Which workspaces may use a connection, which of its models, and which is a workspace's default.

Each verb is one transaction with its audit row, and takes the locks it names. A refusal is a
`ValidationError` by field name.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _

from connections.actions import Actor, lock_connection
from connections.choices import AccessMode
from connections.models import Connection, WorkspaceConnection
from workspaces.audit import record
from workspaces.models import Workspace


def set_workspace_default(
    actor: Actor, workspace: Workspace, connection: Connection | None
) -> None:
    """The workspace's default, None for none. It must have access already. Takes the locks of the
    workspace's rows."""
    with transaction.atomic():
        _lock_workspace(workspace)
        rows = {
            row.connection_id: row
            for row in WorkspaceConnection.objects.filter(workspace=workspace).select_related(
                "connection"
            )
        }
        if connection is not None:
            connection = lock_connection(connection)
            if connection.access == AccessMode.CHOSEN and connection.pk not in rows:
                raise ValidationError(
                    {"connection": [_("This workspace has no access to the connection.")]}
                )
        for row in rows.values():
            if not row.is_default or (connection and row.connection_id == connection.pk):
                continue
            row.is_default = False
            if row.connection.access == AccessMode.ALL and row.says_nothing:
                row.delete()
            else:
                row.save(update_fields=["is_default"])
        if connection is not None:
            WorkspaceConnection.objects.update_or_create(
                workspace=workspace, connection=connection, defaults={"is_default": True}
            )
        record(
            actor,
            "workspace.default",
            workspace,
            workspace_id=workspace.pk,
            connection=connection.slug if connection else "",
        )


def set_allowed_models(
    actor: Actor, workspace: Workspace, connection: Connection, models: Sequence[str] | None
) -> None:
    """The models of a connection that a workspace uses, None for every one. It must have access
    already. Takes the lock of the workspace's rows."""
    with transaction.atomic():
        _lock_workspace(workspace)
        row = lock_connection(connection)
        link = _link(workspace, row)
        _check_models(row, models)
        if models is not None and len(link.among_granted(list(models))) < len(models):
            raise ValidationError({"models": [_("Choose among the models that are granted.")]})
        link.allowed_models = None if models is None else list(models)
        _save_or_drop(link)
        record(
            actor,
            "workspace.models",
            workspace,
            workspace_id=workspace.pk,
            connection=row.slug,
            models="all" if models is None else len(models),
        )


def set_access(
    actor: Actor, connection: Connection, *, access: str, workspaces: Iterable[uuid.UUID]
) -> list[str]:
    """Who may use it: `all` workspaces or the `chosen` ones named. What a workspace was granted or
    uses of its models stays as long as it has access. Returns the names of the workspaces that
    lost their default by it. Takes the row lock."""
    if access not in AccessMode.values:
        raise ValidationError({"access": [_("Use all or chosen.")]})
    with transaction.atomic():
        row = lock_connection(connection)
        links = {link.workspace_id: link for link in row.workspace_rows.select_related("workspace")}
        cleared, chosen = [], set(workspaces) if access == AccessMode.CHOSEN else set()
        for workspace_id, link in links.items():
            if access == AccessMode.CHOSEN and workspace_id not in chosen:
                if link.is_default:
                    cleared.append(link.workspace.name)
                link.delete()
            elif access == AccessMode.ALL and link.says_nothing:
                link.delete()
        WorkspaceConnection.objects.bulk_create(
            WorkspaceConnection(workspace_id=workspace_id, connection=row)
            for workspace_id in sorted(chosen - links.keys())
        )
        row.access = access
        row.save(update_fields=["access"])
        record(
            actor,
            "connection.access",
            row,
            access=access,
            workspaces=[str(pk) for pk in sorted(chosen)],
            cleared_workspaces=cleared,
        )
    connection.access = access
    return cleared


def set_granted_models(
    actor: Actor, workspace: Workspace, connection: Connection, models: Sequence[str] | None
) -> None:
    """The models of a connection that a workspace may use at all, None for every one. It must have
    access already. Takes the lock of the workspace's rows."""
    with transaction.atomic():
        _lock_workspace(workspace)
        row = lock_connection(connection)
        link = _link(workspace, row)
        _check_models(row, models)
        link.granted_models = None if models is None else list(models)
        _save_or_drop(link)
        record(
            actor,
            "workspace.grant",
            workspace,
            workspace_id=workspace.pk,
            connection=row.slug,
            models="all" if models is None else len(models),
        )


# -- the parts -------------------------------------------------------------------------------------


def _link(workspace: Workspace, row: Connection) -> WorkspaceConnection:
    """The workspace's row, or a new one where the connection is open to all."""
    link = WorkspaceConnection.objects.filter(workspace=workspace, connection=row).first()
    if link is None and row.access == AccessMode.CHOSEN:
        raise ValidationError(
            {"connection": [_("This workspace has no access to the connection.")]}
        )
    return link or WorkspaceConnection(workspace=workspace, connection=row)


def _check_models(row: Connection, models: Sequence[str] | None) -> None:
    if unknown := [model for model in models or () if model not in row.model_ids]:
        raise ValidationError(
            {"models": [_("The connection has no model “%(id)s”.") % {"id": unknown[0]}]}
        )


def _save_or_drop(link: WorkspaceConnection) -> None:
    if not (link.connection.access == AccessMode.ALL and link.says_nothing):
        link.save()
    elif not link._state.adding:
        link.delete()


def _lock_workspace(workspace: Workspace) -> None:
    """Without its key: a row that refers to the workspace, written under a connection's lock, isn't
    held up, else the two could wait for each other."""
    Workspace.objects.select_for_update(no_key=True).get(pk=workspace.pk)
