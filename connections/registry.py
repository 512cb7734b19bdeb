"""What this app asks of apps above it, which answer by registering in their `AppConfig.ready`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from connections.resolve import Choice
from workspaces.models import Workspace


@dataclass(frozen=True, slots=True)
class Dependents:
    """What of the apps above rests on a connection: sessions locked to it, messages that wait in
    them, and replies under way."""

    sessions: int = 0
    waiting: int = 0
    running: int = 0

    def __add__(self, other: Dependents) -> Dependents:
        return Dependents(
            self.sessions + other.sessions,
            self.waiting + other.waiting,
            self.running + other.running,
        )


DependentsCounter = Callable[[Iterable[uuid.UUID]], dict[uuid.UUID, Dependents]]
ChoiceFinder = Callable[[Workspace, uuid.UUID], Choice | None]

_counters: list[DependentsCounter] = []
_finders: list[ChoiceFinder] = []


def count_dependents_with(counter: DependentsCounter) -> None:
    """Registers who counts what rests on connections; one on which nothing rests is left out."""
    if counter not in _counters:
        _counters.append(counter)


def dependents_of(connection_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Dependents]:
    """What rests on each; one on which nothing rests isn't in it."""
    ids = list(connection_ids)
    total: dict[uuid.UUID, Dependents] = {}
    for counter in _counters:
        for connection_id, found in counter(ids).items():
            total[connection_id] = total.get(connection_id, Dependents()) + found
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
