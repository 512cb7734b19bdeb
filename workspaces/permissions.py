"""Who may do what: one function a question, called in a view's first line.

A stranger gets 404, so that nothing tells him the thing exists; a member with too low a role 403.
An instance admin has every right in every workspace.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest

from workspaces.models import Membership, Role, User, Workspace
from workspaces.statements import Select

_RANK = {Role.VIEWER: 0, Role.MEMBER: 1, Role.ADMIN: 2}


@dataclass(frozen=True, slots=True)
class Access:
    """A person in a workspace, with the role that counts there."""

    workspace: Workspace
    user: User
    role: Role

    def has(self, role: Role) -> bool:
        return _RANK[self.role] >= _RANK[role]

    def need(self, role: Role) -> None:
        if not self.has(role):
            raise PermissionDenied


def workspaces_of(user: User) -> QuerySet[Workspace]:
    """The workspaces a person may enter."""
    if user.is_instance_admin:
        return Workspace.objects.all()
    return Workspace.objects.filter(memberships__user=user)


_MEMBERSHIP = Select(
    lambda user_id, workspace_id: Membership.objects.filter(
        user_id=user_id, workspace_id=workspace_id
    )
)
_BY_SLUG = Select(lambda slug: Workspace.objects.filter(slug=slug))


def role_in(user: User, workspace: Workspace) -> Role | None:
    """The role that counts, or None for a stranger. At most one query."""
    if not user.is_active:
        return None
    if user.is_superuser:
        return Role.ADMIN
    membership = _MEMBERSHIP.first(user.pk, workspace.pk)
    return Role(membership.role) if membership else None


def workspace_for(request: HttpRequest, slug: str, least: Role = Role.VIEWER) -> Access:
    """The workspace by its slug, for the signed-in person, or 404 / 403. Two queries."""
    workspace = _BY_SLUG.first(slug)
    role = role_in(request.user, workspace) if workspace else None
    if workspace is None or role is None:
        raise Http404
    access = Access(workspace, request.user, role)
    access.need(least)
    return access


def need_instance_admin(request: HttpRequest) -> User:
    """The signed-in instance admin, or 403: that the pages exist is no secret among colleagues."""
    if not request.user.is_instance_admin:
        raise PermissionDenied
    return request.user
