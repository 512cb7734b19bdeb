"""What this app asks of apps above it, which answer by registering in their `AppConfig.ready`."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from connections.resolve import Choice
from workspaces.models import User, Workspace


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
class LiveTurn:
    """A reply under way, as one person may see it: of a session that isn't theirs to read, `title`
    and `url` are ""."""

    id: uuid.UUID
    workspace: str
    person: str
    since: dt.datetime
    is_running: bool  # else it waits for a worker
    is_stopping: bool
    tokens: int  # of its steps so far, in and out
    title: str = ""
    url: str = ""
    is_private: bool = False


@dataclass(frozen=True, slots=True)
class Live:
    """Who uses a connection now: the first replies under way, how many there are, and how many
    messages wait for one."""

    turns: list[LiveTurn] = field(default_factory=list)
    total: int = 0
    waiting: int = 0

    @property
    def more(self) -> int:
        return self.total - len(self.turns)


LiveFinder = Callable[[uuid.UUID, User, int], Live]
# Stops one reply on the connection, or all (None); how many it asked to stop.
LiveStopper = Callable[[uuid.UUID, "uuid.UUID | None", User], int]


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
_live: list[tuple[LiveFinder, LiveStopper]] = []
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


def show_live_with(finder: LiveFinder, stopper: LiveStopper) -> None:
    """Registers who knows the replies under way on a connection, and can stop them."""
    if (finder, stopper) not in _live:
        _live.append((finder, stopper))


def live_on(connection_id: uuid.UUID, viewer: User, *, most: int = 20) -> Live:
    """What is under way on a connection, as far as this person may see it."""
    turns: list[LiveTurn] = []
    total = waiting = 0
    for finder, _stopper in _live:
        found = finder(connection_id, viewer, most)
        turns += found.turns
        total, waiting = total + found.total, waiting + found.waiting
    return Live(turns[:most], total, waiting)


def stop_live(connection_id: uuid.UUID, turn_id: uuid.UUID | None, actor: User) -> int:
    """Asks for the end of one reply on this connection, or of all with None; how many were under
    way. Each in a transaction with its audit row; whether the person may is the caller's to ask."""
    return sum(stopper(connection_id, turn_id, actor) for _finder, stopper in _live)


def add_usage_with(adder: UsageAdder) -> None:
    """Registers who knows what a workspace or a connection used from a day on."""
    if adder not in _adders:
        _adders.append(adder)


def used_since(column: str, key: uuid.UUID, first: dt.date) -> Used:
    return sum((adder(column, key, first) for adder in _adders), Used())
