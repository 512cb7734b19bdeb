"""What this app asks of apps above it about people and workspaces; they answer by registering a
`Keeper` in their `AppConfig.ready`."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.formats import number_format
from django.utils.translation import gettext as _

from workspaces.models import User, Workspace

COUNTED = 10_000  # messages; more than so many are "more than so many"


@dataclass(frozen=True, slots=True)
class Holdings:
    """What there is of a person: own sessions with what belongs to them, and what was written in
    other people's. Messages are counted up to `COUNTED` + 1."""

    sessions: int = 0
    shared: int = 0  # of the sessions, those that colleagues read
    messages: int = 0
    attachments: int = 0
    attachment_bytes: int = 0
    elsewhere: int = 0  # messages in sessions of others

    @property
    def messages_said(self) -> str:
        return _said(self.messages)

    @property
    def elsewhere_said(self) -> str:
        return _said(self.elsewhere)


def _said(count: int) -> str:
    if count <= COUNTED:
        return str(count)
    return _("more than %(n)s") % {"n": number_format(COUNTED, force_grouping=True)}


@dataclass(frozen=True, slots=True)
class Expiring:
    """Which sessions of a workspace a retention would delete now: how many, of when the oldest is,
    and how many as old stay since somebody flagged them."""

    before: dt.datetime
    count: int = 0
    oldest: dt.datetime | None = None
    flagged: int = 0


class Keeper:
    """An app that keeps something of people. Each method has an answer for one that doesn't."""

    def holdings(self, person: User) -> Holdings:
        return Holdings()

    def sessions_by_workspace(self, person: User) -> dict[uuid.UUID, int]:
        """Workspace → how many sessions there are the person's."""
        return {}

    def left_behind(self, workspace: Workspace) -> Sequence[tuple[User, int]]:
        """Who is no longer in the workspace, or switched off, and how many sessions he left."""
        return ()

    def hand_over(self, workspace: Workspace, giver: User, receiver: User) -> int:
        """Gives a person's sessions in a workspace to somebody else; how many. Call it inside
        `atomic()`; the caller writes the audit row."""
        return 0

    def erase_some(self, person: User, *, seconds: float) -> int:
        """Deletes a person's sessions for so long, in short transactions; how many are left.
        Called until none is."""
        return 0

    def forget(self, person: User) -> None:
        """Takes the person's name and marks from what stays. May be called twice."""

    def expiring(self, workspace: Workspace, days: int) -> Expiring | None:
        """What would go if sessions were kept for so many days."""
        return None


_keepers: list[Keeper] = []


def keep_with(keeper: Keeper) -> None:
    if not any(type(one) is type(keeper) for one in _keepers):
        _keepers.append(keeper)


def holdings(person: User) -> Holdings:
    total = [0] * 6
    for keeper in _keepers:
        one = keeper.holdings(person)
        mine = (
            *(one.sessions, one.shared, one.messages),
            *(one.attachments, one.attachment_bytes, one.elsewhere),
        )
        total = [a + b for a, b in zip(total, mine, strict=True)]
    return Holdings(*total)


def sessions_by_workspace(person: User) -> dict[uuid.UUID, int]:
    found: dict[uuid.UUID, int] = {}
    for keeper in _keepers:
        for workspace_id, count in keeper.sessions_by_workspace(person).items():
            found[workspace_id] = found.get(workspace_id, 0) + count
    return found


def left_behind(workspace: Workspace) -> list[tuple[User, int]]:
    return [one for keeper in _keepers for one in keeper.left_behind(workspace)]


def hand_over(workspace: Workspace, giver: User, receiver: User) -> int:
    return sum(keeper.hand_over(workspace, giver, receiver) for keeper in _keepers)


def erase_some(person: User, *, seconds: float) -> int:
    return sum(keeper.erase_some(person, seconds=seconds) for keeper in _keepers)


def forget(person: User) -> None:
    for keeper in _keepers:
        keeper.forget(person)


def expiring(workspace: Workspace, days: int) -> Expiring | None:
    found = (keeper.expiring(workspace, days) for keeper in _keepers)
    return next((one for one in found if one is not None), None)
