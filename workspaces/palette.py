"""What the command palette finds. Each app offers its commands by registering in its
`AppConfig.ready`; here they are matched against what was typed, marked and put in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from django.db import models
from django.utils.translation import gettext_lazy as _

from workspaces.models import User
from workspaces.permissions import Access

MOST_TYPED = 100  # characters
MOST_WORDS = 8
MOST_SHOWN = 6  # commands of a group, once something is typed


class Group(models.TextChoices):
    """In the order of a palette into which nothing was typed yet."""

    SESSIONS = "sessions", _("Sessions")
    ACTIONS = "actions", _("Actions")
    PAGES = "pages", _("Go to")
    CONNECTIONS = "connections", _("Connections")
    WORKSPACES = "workspaces", _("Workspaces")


@dataclass(frozen=True, slots=True)
class Command:
    """A place to go to, or with `is_post` a form without fields to send."""

    group: Group
    label: str
    url: str
    icon: str
    note: str = ""  # shown beside it
    words: str = ""  # found by these as well
    is_post: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """By whom, and from where: `access` is the person's in the workspace of the page, if any."""

    user: User
    query: str
    access: Access | None

    @property
    def words(self) -> list[str]:
        return self.query.split()[:MOST_WORDS]


@dataclass(frozen=True, slots=True)
class Hit:
    command: Command
    parts: list[tuple[str, bool]]  # the label in pieces, and which of them were typed
    number: int


Source = Callable[[Asked], Iterable[Command]]

_sources: dict[Source, int] = {}


def offer(source: Source, *, place: int) -> None:
    """Registers who knows commands; within a group those of a smaller `place` stand first. A source
    is to be quick: a bounded number of queries and rows, and nothing that the person may not see.
    Asked with a query it may leave out what doesn't match."""
    _sources[source] = place


def typed(text: str) -> str:
    """A query as it is matched: one line, not too long."""
    return " ".join(text.replace("\0", "")[:MOST_TYPED].split())


def find(asked: Asked) -> list[tuple[Group, list[Hit]]]:
    """By group, the group with the best match first. Queries: the sources'."""
    patterns = [re.compile(re.escape(word), re.IGNORECASE) for word in asked.words]
    ranked: dict[Group, list[tuple[int, Command]]] = {group: [] for group in Group}
    for source in sorted(_sources, key=lambda one: _sources[one]):
        for command in source(asked):
            if (rank := _rank(command, patterns)) is not None:
                ranked[command.group].append((rank, command))
    for found in ranked.values():
        found.sort(key=lambda one: one[0])
    filled = [(group, found) for group, found in ranked.items() if found]
    filled.sort(key=lambda one: one[1][0][0])
    groups: list[tuple[Group, list[Hit]]] = []
    number = 0
    for group, found in filled:
        hits = []
        for _rank_of, command in found[: MOST_SHOWN if patterns else None]:
            number += 1
            hits.append(Hit(command, _parts(command.label, patterns), number))
        groups.append((group, hits))
    return groups


def _rank(command: Command, patterns: list[re.Pattern[str]]) -> int | None:
    """0: the label begins so; 1: its words do; 2: it has them; 3: found by other words. None: it
    doesn't match."""
    label = command.label
    places = [pattern.search(label) for pattern in patterns]
    if not all(places):
        text = f"{label} {command.words}"
        return 3 if all(pattern.search(text) for pattern in patterns) else None
    if places and places[0] and places[0].start() == 0:
        return 0
    begins = (re.search(rf"\b{pattern.pattern}", label, re.IGNORECASE) for pattern in patterns)
    return 1 if all(begins) else 2


def _parts(label: str, patterns: list[re.Pattern[str]]) -> list[tuple[str, bool]]:
    typed_at = [False] * len(label)
    for pattern in patterns:
        for match in pattern.finditer(label):
            typed_at[match.start() : match.end()] = [True] * (match.end() - match.start())
    parts: list[tuple[str, bool]] = []
    start = 0
    for end in range(1, len(label) + 1):
        if end == len(label) or typed_at[end] != typed_at[start]:
            parts.append((label[start:end], typed_at[start]))
            start = end
    return parts
