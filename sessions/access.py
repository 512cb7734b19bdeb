"""Who may read, and who may write, a session: private to its owner unless shared with the
workspace; then colleagues read and follow it, and members send."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import Http404, HttpRequest
from django.utils.crypto import constant_time_compare

from sessions.models import ChatSession, Turn
from workspaces.models import Role, User, Workspace
from workspaces.permissions import Access, role_in, workspace_for


def visible_chats(access: Access) -> QuerySet[ChatSession]:
    """The workspace's sessions that a person may read."""
    chats = ChatSession.objects.filter(workspace=access.workspace)
    return chats.filter(Q(owner=access.user) | Q(shared=True))


def readable_chat(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> ChatSession:
    """The session for the signed-in person, or 404; `chat.access` has the person's role. Three
    queries."""
    access = workspace_for(request, workspace)
    chat = (
        visible_chats(access)
        .select_related("workspace", "owner", "connection")
        .filter(pk=chat_id)
        .first()
    )
    if chat is None:
        raise Http404
    chat.access = access  # type: ignore[attr-defined]
    return chat


def writable_chat(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> ChatSession:
    """As `readable_chat`, for those who may send: 403 for viewers."""
    chat = readable_chat(request, workspace, chat_id)
    chat.access.need(Role.MEMBER)  # type: ignore[attr-defined]
    return chat


def owned_chat(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> ChatSession:
    """As `writable_chat`, for the owner alone: sharing is the owner's."""
    chat = writable_chat(request, workspace, chat_id)
    if chat.owner_id != request.user.pk:
        raise PermissionDenied
    return chat


class SignedOut(Exception):
    """The sign-in that opened a page has ended, by signing out or by a new password."""


@dataclass(frozen=True, slots=True)
class SignIn:
    """What a request proved about its person, to be looked at again while a page is open."""

    user_id: uuid.UUID
    session: SessionBase
    key: str
    password_hash: str

    @classmethod
    def of(cls, request: HttpRequest) -> SignIn:
        session = request.session
        return cls(request.user.pk, session, session.session_key or "", session[HASH_SESSION_KEY])

    def holds_for(self, user: User) -> bool:
        """One query."""
        is_same = constant_time_compare(self.password_hash, user.get_session_auth_hash())
        return is_same and self.session.exists(self.key)


@dataclass(frozen=True, slots=True)
class Watch:
    version: int
    is_active: bool


def watch(sign_in: SignIn, chat_id: uuid.UUID) -> Watch | None:
    """Whether a person may still follow a session, with its version; None ends an open stream.
    Raises `SignedOut`. Four queries at most."""
    user = User.objects.filter(pk=sign_in.user_id, is_active=True).first()
    if user is None:
        return None
    if not sign_in.holds_for(user):
        raise SignedOut
    row = (
        ChatSession.objects.filter(Q(owner=user) | Q(shared=True), pk=chat_id)
        .annotate(active=Exists(Turn.objects.filter(chat=OuterRef("pk"), state__in=Turn.ACTIVE)))
        .values_list("workspace_id", "version", "active")
        .first()
    )
    if row is None or role_in(user, Workspace(pk=row[0])) is None:
        return None
    return Watch(row[1], row[2])
