"""What this app asks of apps above it, which answer by registering in their `AppConfig.ready`."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal

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


@dataclass(frozen=True, slots=True)
class Used:
    """What turns used: US dollars as far as prices are known, tokens read and written, and how
    many of the turns had no known price, or were paid for by a plan."""

    cost: Decimal = Decimal(0)
    tokens: int = 0
    unpriced: int = 0
    covered: int = 0

    def __add__(self, other: Used) -> Used:
        return Used(
            self.cost + other.cost,
            self.tokens + other.tokens,
            self.unpriced + other.unpriced,
            self.covered + other.covered,
        )


DependentsCounter = Callable[[Iterable[uuid.UUID]], dict[uuid.UUID, Dependents]]
ChoiceFinder = Callable[[Workspace, uuid.UUID], Choice | None]
# The column (`workspace_id` or `connection_id`), its value, the first day.
UsageAdder = Callable[[str, uuid.UUID, dt.date], Used]

_counters: list[DependentsCounter] = []
_finders: list[ChoiceFinder] = []
_adders: list[UsageAdder] = []


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


def add_usage_with(adder: UsageAdder) -> None:
    """Registers who knows what a workspace or a connection used from a day on."""
    if adder not in _adders:
        _adders.append(adder)


def used_since(column: str, key: uuid.UUID, first: dt.date) -> Used:
    return sum((adder(column, key, first) for adder in _adders), Used())
