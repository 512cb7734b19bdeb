"""What turns used, by day: counted in the transaction in which a turn ends, so each once."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, QuerySet, Sum
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from connections import budgets
from connections.choices import AuthType
from connections.models import Connection
from connections.registry import Used
from sessions.models import ChatSession, Turn, UsageDay
from workspaces.models import User
from workspaces.statements import Select, update

TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
SUMS = ("turns", *TOKENS, "cost", "unpriced", "covered")
PERIODS = (7, 30, 90)  # days
GROUPS = {
    "connection": (_("Connection"), "connection_label"),
    "model": (_("Model"), "model"),
    "person": (_("Person"), "person_label"),
    "workspace": (_("Workspace"), "workspace_label"),
    "day": (_("Day"), "day"),
}


def count(chat: ChatSession, turn: Turn) -> None:
    """Adds an ended turn to its day, and to the budgets over it. One that never reached a provider
    used nothing. Three queries, four for the first of a day, one more for each budget."""
    if not turn.request_sent:
        return
    auth_type = _AUTH_TYPE.first(chat.connection_id) if chat.connection_id else None
    covered = auth_type is not None and auth_type[0] == AuthType.OAUTH
    tokens = {name: getattr(turn, name) for name in TOKENS}
    added = {
        "turns": 1,
        **tokens,
        "cost": turn.cost or 0,
        "unpriced": int(turn.cost is None and any(tokens.values()) and not covered),
        "covered": int(covered),
    }
    _count_day(chat, turn, added)
    tokens_used = turn.input_tokens + turn.output_tokens
    used = Used(Decimal(added["cost"]), tokens_used, added["unpriced"], added["covered"])
    budgets.add(used, workspace_id=chat.workspace_id, connection_id=chat.connection_id)


_AUTH_TYPE = Select(
    lambda connection_id: Connection.objects.filter(pk=connection_id).values_list("auth_type")
)
_DAY = Select(
    lambda day, workspace_id, connection_id, model, person_id: (
        UsageDay.objects.select_for_update().filter(
            day=day,
            workspace_id=workspace_id,
            connection_id=connection_id,
            model=model,
            person_id=person_id,
        )
    )
)


def _count_day(chat: ChatSession, turn: Turn, added: dict[str, Any]) -> None:
    key = {
        "day": timezone.now().astimezone(dt.UTC).date(),
        "workspace_id": chat.workspace_id,
        "connection_id": chat.connection_id,
        "model": turn.model,
        "person_id": turn.started_by_id,
    }
    if None not in key.values() and (row := _DAY.first(*key.values())) is not None:
        for name, value in added.items():
            setattr(row, name, getattr(row, name) + value)
        update(row, *added)
        return
    sums = {name: F(name) + value for name, value in added.items()}
    if UsageDay.objects.filter(**key).update(**sums):
        return
    person = User.objects.filter(pk=turn.started_by_id).first()
    labels = {
        "workspace_label": chat.workspace.name,
        "connection_label": chat.connection.name if chat.connection else "",
        "person_label": str(person) if person else "",
    }
    try:
        with transaction.atomic():
            UsageDay.objects.create(**key, **labels, **added)
    except IntegrityError:  # another turn's end was faster
        UsageDay.objects.filter(**key).update(**sums)


@dataclass(slots=True)
class Line:
    """Sums of a group, or of all."""

    label: str
    sums: dict[str, Any]
    share: float = 0.0  # of the largest, 0 to 100

    @property
    def tokens(self) -> int:
        """Read and written; what a cache gave is part of what was read."""
        return self.sums["input_tokens"] + self.sums["output_tokens"]


@dataclass(slots=True)
class Bar:
    """A day of the chart, in units of its drawing."""

    day: dt.date
    value: Decimal
    x: float
    y: float
    width: float
    height: float
    line: Line


@dataclass(slots=True)
class Report:
    since: dt.date
    until: dt.date
    by: str
    lines: list[Line]
    total: Line
    bars: list[Bar] = field(default_factory=list)
    in_money: bool = False  # what the bars show: US dollars, else tokens


SHOWN = 100  # lines of the page's table
WIDTH, HEIGHT, GAP = 720.0, 140.0, 0.2  # of the drawing; the gap is a share of a bar's room


def report(rows: QuerySet[UsageDay], days: int, by: str, *, most: int | None = None) -> Report:
    """The sums of the last `days` days, today included; with `most` only of the largest groups,
    and of the others in one line. Two queries, whatever the number of turns."""
    until = timezone.now().astimezone(dt.UTC).date()
    since = until - dt.timedelta(days=days - 1)
    rows = rows.filter(day__gte=since, day__lte=until).order_by()
    daily = {line.label: line for line in _lines(rows, "day")}
    lines = list(daily.values()) if by == "day" else _lines(rows, GROUPS[by][1], most)
    total = Line("", _sum(daily.values()))
    in_money = total.sums["cost"] > 0
    if by == "day":
        lines.sort(key=lambda line: line.label, reverse=True)
    else:
        lines.sort(key=lambda line: (line.sums["cost"], line.tokens), reverse=True)
    largest = max((_value(line, in_money) for line in lines), default=0)
    for line in lines:
        line.share = float(100 * _value(line, in_money) / largest) if largest else 0.0
    if most and len(lines) == most and by != "day":
        others = {name: total.sums[name] - sum(line.sums[name] for line in lines) for name in SUMS}
        if others["turns"]:
            lines.append(Line(_("All others, in the CSV"), others))
    found = Report(since, until, by, lines, total, in_money=in_money)
    found.bars = _bars(daily, since, days, in_money)
    return found


def _lines(rows: QuerySet[UsageDay], column: str, most: int | None = None) -> list[Line]:
    sums = rows.values(column).annotate(**{f"sum_{name}": Sum(name) for name in SUMS})
    if most:
        tokens = F("sum_input_tokens") + F("sum_output_tokens")
        sums = sums.order_by("-sum_cost", tokens.desc(), column)[:most]
    return [
        Line(str(row[column]), {name: row[f"sum_{name}"] or 0 for name in SUMS}) for row in sums
    ]


def _sum(lines: Iterable[Line]) -> dict[str, Any]:
    lines = list(lines)
    return {name: sum(line.sums[name] for line in lines) for name in SUMS}


def _value(line: Line, in_money: bool) -> Decimal:
    return Decimal(line.sums["cost"]) if in_money else Decimal(line.tokens)


def _bars(daily: dict[str, Line], since: dt.date, days: int, in_money: bool) -> list[Bar]:
    empty = Line("", dict.fromkeys(SUMS, 0))
    shown: Sequence[tuple[dt.date, Line]] = [
        (day, daily.get(day.isoformat(), empty))
        for day in (since + dt.timedelta(days=number) for number in range(days))
    ]
    most = max((_value(line, in_money) for _, line in shown), default=Decimal(0))
    room = WIDTH / days
    bars = []
    for number, (day, line) in enumerate(shown):
        value = _value(line, in_money)
        # What is there at all shows.
        height = max(float(value / most) * HEIGHT, 2.0) if value else 0.0
        bars.append(
            Bar(
                day,
                value,
                round(number * room + room * GAP / 2, 2),
                round(HEIGHT - height, 2),
                round(room * (1 - GAP), 2),
                round(height, 2),
                line,
            )
        )
    return bars
