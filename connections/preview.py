"""What the pages of import and export show, computed once. No query; no right is checked here."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from connections.choices import AuthType, ProviderType
from connections.schema import Change, DefaultRow, Plan, Result, Row

VALUE_CHARACTERS = 300
MODELS_NAMED = 12


@dataclass(frozen=True, slots=True)
class Difference:
    """One field, as a person compares it: `old` and `new` are short texts, "" for not set."""

    field: str
    old: str
    new: str
    kept_only: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One item of a file: what would become of it. `problem` is why it could not be applied."""

    key: str
    title: str
    result: Result
    detail: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    ticked: bool = False
    problem: str = ""
    slug: str = ""

    @property
    def can_be_taken(self) -> bool:
        return self.result in (Result.NEW, Result.CHANGED)


@dataclass(frozen=True, slots=True)
class Preview:
    """A whole file: connections and defaults that would change or are refused, and those that are
    the same."""

    connections: tuple[Line, ...]
    defaults: tuple[Line, ...]
    same: tuple[Line, ...]
    counts: tuple[tuple[Result, int], ...]

    @property
    def can_be_applied(self) -> bool:
        return any(line.can_be_taken for line in (*self.connections, *self.defaults))

    @property
    def has_problems(self) -> bool:
        return any(line.problem for line in (*self.connections, *self.defaults))


def preview(
    plan: Plan,
    *,
    ticked: Collection[str] | None = None,
    problems: Mapping[str, str] | None = None,
) -> Preview:
    """`ticked` are the keys of the items that were chosen; None: all but workspaces to be made."""
    lines = [_connection(row) for row in plan.rows]
    defaults = [_default(row) for row in plan.defaults]
    offered = {line.key for line in lines}
    offered |= {row.key for row in plan.defaults if row.result == Result.CHANGED}

    def shown(line: Line) -> Line:
        on = line.key in (offered if ticked is None else ticked)
        problem = (problems or {}).get(line.key, "")
        return replace(line, ticked=on and line.can_be_taken, problem=problem)

    lines, defaults = [shown(line) for line in lines], [shown(line) for line in defaults]
    return Preview(
        connections=tuple(line for line in lines if line.result != Result.SAME),
        defaults=tuple(line for line in defaults if line.result != Result.SAME),
        same=tuple(line for line in (*lines, *defaults) if line.result == Result.SAME),
        counts=tuple((result, n) for result in Result if (n := plan.count(result))),
    )


def _connection(row: Row) -> Line:
    detail = ""
    if row.values:
        models = len(row.values["models"])
        parts = [
            ProviderType(row.values["provider_type"]).label,
            AuthType(row.values["auth_type"]).label,
            row.values["base_url"],
            row.values["default_model"],
            ngettext("%(n)d model", "%(n)d models", models) % {"n": models} if models else "",
        ]
        detail = " · ".join(str(part) for part in parts if part)
    return Line(
        key=row.key,
        title=row.name or row.slug or _("Entry %(number)d") % {"number": row.number},
        slug=row.slug,
        result=row.result,
        detail=detail,
        reason=row.reason,
        notes=row.notes,
        differences=tuple(_differences(row.changes)),
    )


def _default(row: DefaultRow) -> Line:
    title = row.label
    if row.number:
        title = _("Default of “%(workspace)s”") % {"workspace": row.label}
    detail, notes = "", ()
    if row.result == Result.NEW:
        title = _("Make the workspace “%(workspace)s”") % {"workspace": row.label}
        detail = _(
            "There is no workspace of this name. Tick it to have it made, with you as admin."
        )
        notes = (row.reason,) if row.reason else ()
    differences: tuple[Difference, ...] = ()
    if row.can_differ:
        differences = (Difference("defaultLlmConnection", row.old, row.slug),)
    return Line(
        key=row.key,
        title=title,
        result=row.result,
        detail=detail,
        reason=row.reason if row.result == Result.REFUSED else "",
        notes=notes,
        differences=differences,
    )


# -- fields ----------------------------------------------------------------------------------------


def _differences(changes: Iterable[Change]) -> Iterator[Difference]:
    for change in changes:
        if change.field == "models" and not change.kept_only:
            old, new = _models(change.old or [], change.new or [])
        else:
            old, new = _text(change.old), _text(change.new)
        yield Difference(change.field, old, new, change.kept_only)


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_CHARACTERS else f"{text[: VALUE_CHARACTERS - 1]}…"


def _models(old: list[Any], new: list[Any]) -> tuple[str, str]:
    """Of two lists only what differs; the whole when only the order does."""
    gone = [model for model in old if model not in new]
    come = [model for model in new if model not in old]
    if not gone and not come:
        gone, come = old, new
    return _named(gone), _named(come)


def _named(models: list[Any]) -> str:
    texts = [_text(model) for model in models[:MODELS_NAMED]]
    more = len(models) - len(texts)
    if more:
        texts.append(_("and %(n)d more") % {"n": more})
    return ", ".join(texts)
