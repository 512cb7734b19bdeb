"""Who may read, and who may write, a session: private to its owner unless shared with the
workspace; then colleagues read and follow it, and members send."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.sessions.models import Session
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import Http404, HttpRequest
from django.utils.crypto import constant_time_compare

from sessions.models import ChatSession, Turn
from workspaces import people
from workspaces.models import Membership, Role, User
from workspaces.permissions import Access, workspace_for
from workspaces.statements import Select


def visible_chats(access: Access) -> QuerySet[ChatSession]:
    """The workspace's sessions that a person may read."""
    return visible_to(access.workspace.pk, access.user.pk)


def visible_to(workspace_id: Any, user_id: Any) -> QuerySet[ChatSession]:
    """As `visible_chats`, by ids."""
    chats = ChatSession.objects.filter(workspace_id=workspace_id, doomed_at=None)
    return chats.filter(Q(owner_id=user_id) | Q(shared=True))


_READABLE = Select(
    lambda workspace_id, user_id, chat_id: (
        visible_to(workspace_id, user_id)
        .select_related("workspace", "owner", "connection")
        .filter(pk=chat_id)
        .order_by("pk")  # the list's own order would be a reason to read the list
    )
)


def readable_chat(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> ChatSession:
    """The session for the signed-in person, or 404; `chat.access` has the person's role. Three
    queries."""
    access = workspace_for(request, workspace)
    chat = _READABLE.first(access.workspace.pk, access.user.pk, chat_id)
    if chat is None:
        raise Http404
    chat.access = access  # type: ignore[attr-defined]
    return chat


def writable_chat(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> ChatSession:
    """As `readable_chat`, for those who may send: 403 for viewers, and for colleagues where they
    only read."""
    chat = readable_chat(request, workspace, chat_id)
    chat.access.need(Role.MEMBER)  # type: ignore[attr-defined]
    if chat.read_only and chat.owner_id != request.user.pk:
        raise PermissionDenied
    return chat


def owned_chat(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> ChatSession:
    """As `writable_chat`, for the owner alone: sharing is the owner's."""
    chat = writable_chat(request, workspace, chat_id)
    if chat.owner_id != request.user.pk:
        raise PermissionDenied
    return chat


def may_hand_over(chat: ChatSession) -> bool:
    """Whether `chat.access` lets a person give a session to somebody else: the owner, or an admin
    of the workspace where the owner is gone from it. At most one query."""
    access: Access = chat.access  # type: ignore[attr-defined]
    if chat.owner_id == access.user.pk:
        return access.has(Role.MEMBER)
    return access.has(Role.ADMIN) and people.is_gone(chat.workspace, chat.owner)


def transferable_chat(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> ChatSession:
    """The session, for whom `may_hand_over` lets."""
    chat = readable_chat(request, workspace, chat_id)
    if not may_hand_over(chat):
        raise PermissionDenied
    return chat


def memberships_that_send() -> QuerySet[Membership]:
    """Those of a turn's person in its workspace, for `Exists` over turns."""
    return Membership.objects.filter(
        user=OuterRef("started_by"),
        workspace=OuterRef("chat__workspace"),
        role__in=(Role.MEMBER, Role.ADMIN),
    )


class SignedOut(Exception):
    """The sign-in that opened a page has ended, by signing out or by a new password."""


@dataclass(frozen=True, slots=True)
class SignIn:
    """What a request proved about its person, to be looked at again while a page is open."""

    user_id: uuid.UUID
    key: str
    password_hash: str

    @classmethod
    def of(cls, request: HttpRequest) -> SignIn:
        session = request.session
        return cls(request.user.pk, session.session_key or "", session[HASH_SESSION_KEY])

    def proves(self, user: User) -> bool:
        """Whether it was made with the password of now."""
        return constant_time_compare(self.password_hash, user.get_session_auth_hash())


@dataclass(frozen=True, slots=True)
class Watch:
    version: int
    is_active: bool


def watch_all(looks: Sequence[tuple[SignIn, uuid.UUID]]) -> list[Watch | SignedOut | None]:
    """For each person and session: whether he may still follow it, with its version; None ends an
    open stream, and so does a sign-in that ended. Four queries, whatever the number."""
    users = User.objects.in_bulk({sign_in.user_id for sign_in, _ in looks})
    keys = {sign_in.key for sign_in, _ in looks}
    signed_in = set(
        Session.objects.filter(session_key__in=keys).values_list("session_key", flat=True)
    )
    chats = {
        chat.pk: chat
        for chat in ChatSession.objects.filter(pk__in={chat_id for _, chat_id in looks})
        .annotate(active=Exists(Turn.objects.filter(chat=OuterRef("pk"), state__among=Turn.ACTIVE)))
        .only("workspace_id", "owner_id", "shared", "version", "doomed_at")
    }
    members = set(
        Membership.objects.filter(
            user__in=users, workspace__in={chat.workspace_id for chat in chats.values()}
        ).values_list("user_id", "workspace_id")
    )

    def look(sign_in: SignIn, chat_id: uuid.UUID) -> Watch | SignedOut | None:
        user, chat = users.get(sign_in.user_id), chats.get(chat_id)
        if user is None or not user.is_active:
            return None
        if sign_in.key not in signed_in or not sign_in.proves(user):
            return SignedOut()
        if chat is None or chat.doomed_at or not (chat.owner_id == user.pk or chat.shared):
            return None
        if not user.is_superuser and (user.pk, chat.workspace_id) not in members:
            return None
        return Watch(chat.version, chat.active)  # type: ignore[attr-defined]

    return [look(*one) for one in looks]
