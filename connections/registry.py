"""What this app asks of apps above it, which answer by registering in their `AppConfig.ready`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from connections.resolve import Choice
from workspaces.models import Workspace

UsageCounter = Callable[[Iterable[uuid.UUID]], dict[uuid.UUID, int]]
ChoiceFinder = Callable[[Workspace, uuid.UUID], Choice | None]

_counters: list[UsageCounter] = []
_finders: list[ChoiceFinder] = []


def count_usage_with(counter: UsageCounter) -> None:
    """Registers who counts the sessions that point at connections: ids → counts, zeros left out."""
    if counter not in _counters:
        _counters.append(counter)


def usage_of(connection_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, int]:
    """How many sessions point at each connection; one without any isn't in it."""
    ids = list(connection_ids)
    total: dict[uuid.UUID, int] = {}
    for counter in _counters:
        for connection_id, count in counter(ids).items():
            total[connection_id] = total.get(connection_id, 0) + count
    return total


def find_choices_with(finder: ChoiceFinder) -> None:
    """Registers who knows the choice of a session, by its workspace and id; None: not there."""
    if finder not in _finders:
        _finders.append(finder)


def choice_of(workspace: Workspace, session_id: uuid.UUID) -> Choice | None:
    for finder in _finders:
        if (choice := finder(workspace, session_id)) is not None:
            return choice
    return None
