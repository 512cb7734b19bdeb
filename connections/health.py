"""How a connection did: its probes by day, its uptime, how long each rung took, what went wrong.

Days are of UTC, as in the usage. The pages with many connections count in the database, one row a
connection and day; the page of one reads its probes, the newest `MOST_PROBES`.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import CharField, Count, Func, Q
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import get_language, ngettext
from django.utils.translation import gettext as _

from connections.choices import Outcome, Rung
from connections.ladder import detail_of
from connections.models import Connection, ProbeResult
from connections.sentences import Sentence, sentence

DAYS = 90  # of the page of one connection: as long as probes are kept
DAYS_IN_STATUS = 30
DAYS_IN_LIST = 14
MOST_PROBES = 5_000  # of one connection that its page reads
ERRORS_SHOWN = 10
PERIODS = (1, 7, 30, 90)  # days of the uptime
# How long a probe's outcome counts: two scheduled ones apart. After that nothing is known.
COUNTS_FOR = dt.timedelta(hours=13)


class UTCDay(Func):
    """The day of a moment as YYYY-MM-DD. SQLite keeps moments as texts of UTC that begin with it:
    its own function for this would call Python for every row."""

    template = "to_char(%(expressions)s AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
    output_field = CharField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="substr(%(expressions)s, 1, 10)")


@dataclass(slots=True)
class Day:
    """The probes of a day by their outcome. Untested ones proved nothing."""

    day: dt.date
    passed: int = 0
    failed: int = 0
    untested: int = 0

    @property
    def tone(self) -> str:
        if not self.failed:
            return "success" if self.passed else "neutral"
        return "warning" if self.passed else "danger"

    @property
    def words(self) -> str:
        """“26 Nov.: 4 passed, 1 failed”."""
        said = []
        if self.passed:
            said.append(ngettext("%(n)d passed", "%(n)d passed", self.passed) % {"n": self.passed})
        if self.failed:
            said.append(ngettext("%(n)d failed", "%(n)d failed", self.failed) % {"n": self.failed})
        if not said:
            said.append(_("proved nothing") if self.untested else _("not validated"))
        return f"{_written(self.day, get_language())}: {', '.join(said)}"


@functools.lru_cache(maxsize=1_000)
def _written(day: dt.date, language: str | None) -> str:
    """“November 26”. A page has a few days a thousand times."""
    return date_format(day, "MONTH_DAY_FORMAT")


@dataclass(frozen=True, slots=True)
class DayBar:
    """A day as it is drawn: what failed hangs from the top, what passed stands below it."""

    x: int
    day: Day
    y: int  # of what passed, or of the mark of a day without a proof
    height: int
    failed: int  # height

    @property
    def tone(self) -> str:
        return self.day.tone

    @property
    def words(self) -> str:
        return self.day.words


BAR, STEP, HEIGHT, LEAST = 6, 8, 28, 6  # units of the drawing


@dataclass(frozen=True, slots=True)
class Strip:
    """The last days of a connection, oldest first."""

    days: list[Day]

    @property
    def passed(self) -> int:
        return sum(day.passed for day in self.days)

    @property
    def failed(self) -> int:
        return sum(day.failed for day in self.days)

    @property
    def share(self) -> float | None:
        """Of the probes that passed, in percent; None without one that says anything."""
        decided = self.passed + self.failed
        return _percent(self.passed, decided)

    @property
    def label(self) -> str:
        """What the drawing shows, for who can't see it."""
        bad = [day for day in self.days if day.failed]
        good = sum(1 for day in self.days if day.passed and not day.failed)
        blank = len(self.days) - good - len(bad)
        said = _("%(days)d days: %(good)d without a failure, %(bad)d with, %(blank)d unproven.")
        text = said % {"days": len(self.days), "good": good, "bad": len(bad), "blank": blank}
        if bad:
            day = _written(bad[-1].day, get_language())
            text += " " + _("The last failure was on %(day)s.") % {"day": day}
        return text

    @property
    def width(self) -> int:
        return STEP * len(self.days) - (STEP - BAR)

    @property
    def height(self) -> int:
        return HEIGHT

    @property
    def bar(self) -> int:
        return BAR

    @property
    def bars(self) -> list[DayBar]:
        return [_bar(place, day) for place, day in enumerate(self.days)]

    @property
    def paths(self) -> list[tuple[str, str]]:
        """The bars as one path a tone: what a page with many strips can afford."""
        drawn: dict[str, list[str]] = {"success": [], "neutral": [], "danger": []}
        for bar in self.bars:
            if bar.failed:
                drawn["danger"].append(f"M{bar.x} 0h{BAR}v{bar.failed}h-{BAR}z")
            if bar.height:
                tone = "neutral" if bar.tone == "neutral" else "success"
                drawn[tone].append(f"M{bar.x} {bar.y}h{BAR}v{bar.height}h-{BAR}z")
        return [(tone, "".join(parts)) for tone, parts in drawn.items() if parts]


def _bar(place: int, day: Day) -> DayBar:
    decided = day.passed + day.failed
    if not decided:
        return DayBar(place * STEP, day, HEIGHT - 4, 4, 0)
    failed = round(HEIGHT * day.failed / decided)
    if day.failed and day.passed:  # a single one among many shows too
        failed = min(max(failed, LEAST), HEIGHT - LEAST)
    return DayBar(place * STEP, day, failed, HEIGHT - failed, failed)


def _percent(part: float, whole: float) -> float | None:
    """Rounded down, so that 100 means all of it."""
    return math.floor(1_000 * part / whole) / 10 if whole else None


def strips(
    connections: Iterable[uuid.UUID], days: int, *, now: dt.datetime | None = None
) -> dict[uuid.UUID, Strip]:
    """The last `days` of each, today included. One query, which gives a row a connection and day
    however many probes there were."""
    wanted = list(connections)
    today = (now or timezone.now()).astimezone(dt.UTC).date()
    first = today - dt.timedelta(days=days - 1)
    since = dt.datetime.combine(first, dt.time(), dt.UTC)
    counted = (
        ProbeResult.objects.filter(
            connection__in=wanted, started_at__gte=since, finished_at__isnull=False
        )
        .order_by()
        .annotate(day=UTCDay("started_at"))
        .values("connection", "day")
        .annotate(
            good=Count("pk", filter=Q(passed=True)),
            bad=Count("pk", filter=Q(passed=False)),
            every=Count("pk"),
        )
    )
    found = {
        (row["connection"], row["day"]): (row["good"], row["bad"], row["every"])
        for row in (counted if wanted else ())
    }
    dates = [first + dt.timedelta(days=n) for n in range(days)]
    names = [date.isoformat() for date in dates]
    shown = {}
    for key in wanted:
        row = []
        for date, name in zip(dates, names, strict=True):
            good, bad, every = found.get((key, name), (0, 0, 0))
            row.append(Day(date, good, bad, every - good - bad))
        shown[key] = Strip(row)
    return shown


# -- one connection --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Uptime:
    """The share of the time that probes tell of in which the last one had passed."""

    days: int
    share: float | None  # percent


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a rung took, or all of them, where it passed. In ms; None without a sample."""

    label: str
    samples: int
    p50: int | None
    p95: int | None


@dataclass(slots=True)
class Trouble:
    """Failures of one kind in a row. `ended` is when a probe passed again, or failed otherwise."""

    sentence: Sentence
    rung: str
    words: str  # the provider's own, of the last one
    first: dt.datetime
    last: dt.datetime
    times: int = 1
    ended: dt.datetime | None = None
    recovered: bool = False


@dataclass(slots=True)
class Report:
    """All that the page of a connection's health says."""

    strip: Strip
    uptime: list[Uptime]
    latency: list[Latency]
    troubles: list[Trouble]
    probes: int
    is_cut: bool = False
    table: list[Day] = field(default_factory=list)  # days with probes, newest first

    @property
    def is_empty(self) -> bool:
        return not self.probes


_READ = ("started_at", "finished_at", "passed", "error_kind", "latency_ms", "rungs")


def report(connection: Connection, *, now: dt.datetime | None = None) -> Report:
    """Two queries."""
    now = now or timezone.now()
    strip = strips([connection.pk], DAYS, now=now)[connection.pk]
    since = now - dt.timedelta(days=DAYS)
    ended = connection.probes.filter(started_at__gte=since, finished_at__isnull=False)
    probes = list(ended.order_by("-started_at").only(*_READ)[: MOST_PROBES + 1])
    is_cut = len(probes) > MOST_PROBES
    probes = probes[:MOST_PROBES][::-1]
    return Report(
        strip=strip,
        uptime=[Uptime(days, uptime(probes, days, now=now)) for days in PERIODS],
        latency=latencies(probes),
        troubles=troubles(probes, connection.auth_type)[-ERRORS_SHOWN:][::-1],
        probes=len(probes),
        is_cut=is_cut,
        table=[day for day in reversed(strip.days) if day.passed or day.failed or day.untested],
    )


def uptime(probes: Sequence[ProbeResult], days: int, *, now: dt.datetime) -> float | None:
    """In percent; None when nothing is known. `probes`: ended ones, oldest first. Each outcome
    counts until the next, at most `COUNTS_FOR`: ten presses of the button while something is mended
    are no ten outages, and a pause isn't one."""
    since = now - dt.timedelta(days=days)
    decided = [probe for probe in probes if probe.passed is not None]
    known = up = 0.0
    ends = [probe.started_at for probe in decided[1:]] + [now]
    for probe, end in zip(decided, ends, strict=False):
        until = min(end, probe.started_at + COUNTS_FOR)
        seconds = (until - max(probe.started_at, since)).total_seconds()
        if seconds > 0:
            known += seconds
            up += seconds if probe.passed else 0
    return _percent(up, known)


def latencies(probes: Iterable[ProbeResult]) -> list[Latency]:
    """Of the whole first, then of each rung that was ever timed."""
    whole: list[int] = []
    of_rung: dict[str, list[int]] = defaultdict(list)
    for probe in probes:
        if probe.passed and probe.latency_ms is not None:
            whole.append(probe.latency_ms)
        for rung in probe.rungs:
            if rung.get("outcome") == Outcome.PASSED and rung.get("ms") is not None:
                of_rung[rung["rung"]].append(rung["ms"])
    shown = [_latency(_("All of it"), whole)]
    shown += [
        _latency(str(rung.label), of_rung[rung.value]) for rung in Rung if of_rung[rung.value]
    ]
    return shown


def _latency(label: str, samples: list[int]) -> Latency:
    ordered = sorted(samples)
    return Latency(label, len(ordered), percentile(ordered, 50), percentile(ordered, 95))


def percentile(ordered: Sequence[int], percent: int) -> int | None:
    """By nearest rank: a value that was really measured."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def troubles(probes: Iterable[ProbeResult], auth_type: str = "") -> list[Trouble]:
    """The failures, those of one kind in a row as one. `probes`: ended ones, oldest first."""
    found: list[Trouble] = []
    kind = None  # of the failure that goes on
    for probe in probes:
        if probe.passed is None:
            continue
        if kind is not None and (probe.passed or probe.error_kind != kind):
            found[-1].ended, found[-1].recovered = probe.started_at, bool(probe.passed)
        if probe.passed:
            kind = None
            continue
        rung, words = _where(probe)
        if probe.error_kind == kind:
            trouble = found[-1]
            trouble.last, trouble.times, trouble.words = probe.started_at, trouble.times + 1, words
            continue
        kind = probe.error_kind
        at = probe.started_at
        found.append(Trouble(sentence(kind, auth_type), rung, words, first=at, last=at))
    return found


def _where(probe: ProbeResult) -> tuple[str, str]:
    """The rung that failed and the provider's words there."""
    for rung in probe.rungs:
        if rung.get("outcome") == Outcome.FAILED and rung.get("rung") in Rung.values:
            return str(Rung(rung["rung"]).label), detail_of(rung)
    return "", ""
