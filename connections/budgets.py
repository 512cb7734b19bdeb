"""Budgets: what a workspace, or a connection, may use in a calendar month (UTC).

Each budget holds the running total of its month, increased in the transaction in which a turn's
usage is counted, so that a send looks at two rows at most and never at the turns. A total of
another month than this one counts as nothing: the month needs no task to begin anew. What a turn
uses is known when it ends, so a hard limit is overshot by what ran when it was reached.

The passing of a limit is told once a month: in the audit, and by an alert. A limit that was moved
away from what is used counts anew.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _

from connections import alerts
from connections.models import Alert, Budget, Connection
from connections.registry import Used, used_since
from workspaces.audit import record
from workspaces.models import User, Workspace
from workspaces.statements import Select

LIMITS = ("soft_cost", "hard_cost", "soft_tokens", "hard_tokens")
_TOTALS = ("month", "cost", "tokens", "unpriced", "covered")
_TOLD = ("soft_told", "hard_told")


@dataclass(frozen=True, slots=True)
class Limits:
    """US dollars and tokens of a month; None for no limit."""

    soft_cost: Decimal | None = None
    hard_cost: Decimal | None = None
    soft_tokens: int | None = None
    hard_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Meter:
    """One measure of a budget, as a page draws it."""

    name: str
    used: str
    soft: str  # "" for none
    hard: str
    value: float  # of 100
    tone: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How a budget stands in a month."""

    budget: Budget
    month: dt.date
    used: Used

    @property
    def is_over_soft(self) -> bool:
        return bool(self.reached("soft"))

    @property
    def is_over_hard(self) -> bool:
        return bool(self.reached("hard"))

    def reached(self, kind: str) -> str:
        """The limit of this kind, "soft" or "hard", that is reached, for people; "" for none."""
        cost, tokens = (getattr(self.budget, f"{kind}_{unit}") for unit in ("cost", "tokens"))
        if cost is not None and self.used.cost >= cost:
            return money(cost)
        if tokens is not None and self.used.tokens >= tokens:
            return _tokens(tokens)
        return ""

    @property
    def resets(self) -> str:
        # Translators: "j F" is a day and a month, in the letters of Django's date formats.
        return _("It begins anew on %(day)s.") % {"day": date_format(_next(self.month), _("j F"))}

    @property
    def refusal(self) -> str:
        """Why nothing is sent, for anybody; "" while there is room."""
        budget, limit = self.budget, self.reached("hard")
        if not limit:
            return ""
        words = {"limit": limit, "month": date_format(self.month, "F")}
        if budget.workspace_id is not None:
            said = _("%(name)s has used its budget of %(limit)s for %(month)s.")
        else:
            said = _("The connection %(name)s has used its budget of %(limit)s for %(month)s.")
        return f"{said % (words | {'name': budget.target.name})} {self.resets}"

    @property
    def notice(self) -> str:
        """What admins are told, "" below every limit."""
        if self.is_over_hard:
            return self.refusal
        return _("The notice level of this month is passed.") if self.is_over_soft else ""

    @property
    def meters(self) -> list[Meter]:
        budget, used = self.budget, self.used
        rows = (
            (_("Cost"), used.cost, budget.soft_cost, budget.hard_cost, money),
            (_("Tokens"), used.tokens, budget.soft_tokens, budget.hard_tokens, _number),
        )
        return [
            _meter(name, value, soft, hard, shown)
            for name, value, soft, hard, shown in rows
            if soft is not None or hard is not None
        ]


def _meter(name: str, value: Any, soft: Any, hard: Any, shown: Any) -> Meter:
    tone = "accent"
    if soft is not None and value >= soft:
        tone = "warning"
    if hard is not None and value >= hard:
        tone = "danger"
    share = min(100.0, round(float(100 * value / (hard or soft)), 1))
    said = ["" if limit is None else shown(limit) for limit in (soft, hard)]
    return Meter(name, shown(value), *said, share, tone)


def money(cost: Decimal, places: int | None = 2) -> str:
    """US dollars as people write them; `None` places: as many as it has."""
    if places is not None:
        cost = round(cost, places)  # `number_format` cuts
    amount = number_format(cost, places, use_l10n=True, force_grouping=True)
    return _("$%(amount)s") % {"amount": amount}


def _number(count: int) -> str:
    return number_format(count, 0, use_l10n=True, force_grouping=True)


def _tokens(count: int) -> str:
    return _("%(n)s tokens") % {"n": _number(count)}


def month_of(now: dt.datetime | None) -> dt.date:
    return (now or timezone.now()).astimezone(dt.UTC).date().replace(day=1)


def _next(month: dt.date) -> dt.date:
    return (month + dt.timedelta(days=32)).replace(day=1)


def _standing(budget: Budget, now: dt.datetime | None) -> Standing:
    month = month_of(now)
    # Of two machines' clocks, one may be in the next month already.
    if budget.month < month:
        return Standing(budget, month, Used())
    used = Used(budget.cost, budget.tokens, budget.unpriced, budget.covered)
    return Standing(budget, budget.month, used)


def _over(workspace_id: uuid.UUID, connection_id: uuid.UUID | None) -> QuerySet[Budget]:
    """The budgets that a session is under, with what they are of."""
    under = Q(workspace_id=workspace_id)
    if connection_id is not None:
        under |= Q(connection_id=connection_id)
    return Budget.objects.filter(under).select_related("workspace", "connection")


_OVER = Select(_over)
_OVER_LOCKED = Select(
    lambda workspace_id, connection_id: (
        _over(workspace_id, connection_id).select_for_update(of=("self",)).order_by("pk")
    )
)


def refusal(
    workspace_id: uuid.UUID, connection_id: uuid.UUID | None, *, now: dt.datetime | None = None
) -> str:
    """Why nothing may be sent on this connection in this workspace, "" when it may. One query."""
    if connection_id is None:
        over: Sequence[Budget] = list(_over(workspace_id, None))
    else:
        over = _OVER.all(workspace_id, connection_id)
    found = (_standing(budget, now).refusal for budget in over)
    return next((text for text in found if text), "")


def standing_of(
    target: Workspace | Connection, *, now: dt.datetime | None = None
) -> Standing | None:
    """How the budget of one thing stands; None without a budget. One query."""
    budget = Budget.objects.filter(**_key(target)).select_related("workspace", "connection").first()
    return _standing(budget, now) if budget else None


def _key(target: Workspace | Connection) -> dict[str, uuid.UUID]:
    return {_column(target): target.pk}


def _column(target: Workspace | Connection) -> str:
    return "workspace_id" if isinstance(target, Workspace) else "connection_id"


def add(
    used: Used,
    *,
    workspace_id: uuid.UUID,
    connection_id: uuid.UUID | None,
    now: dt.datetime | None = None,
) -> None:
    """Adds an ended turn's usage to the budgets over it, in the transaction that counts it, and
    tells of the first passing of a limit in a month. Locks the budgets, always in the same order.
    One query, one more for each budget."""
    month = month_of(now)
    if connection_id is None:
        rows = _over(workspace_id, None).select_for_update(of=("self",)).order_by("pk")
    else:
        rows = _OVER_LOCKED.all(workspace_id, connection_id)
    for budget in rows:
        before = _standing(budget, now).used
        total = before + used
        budget.month = max(budget.month, month)
        budget.cost, budget.tokens = total.cost, total.tokens
        budget.unpriced, budget.covered = total.unpriced, total.covered
        _tell("turn", Standing(budget, budget.month, total))
        budget.save(update_fields=[*_TOTALS, *_TOLD])


def _tell(actor: User | str, standing: Standing) -> None:
    """Tells of each limit that is reached, unless that was done this month; the caller holds the
    budget's row and saves it."""
    budget, month = standing.budget, standing.month
    for kind, state in (("soft", Alert.State.SOFT_LIMIT), ("hard", Alert.State.HARD_LIMIT)):
        limit = standing.reached(kind)
        if limit and getattr(budget, f"{kind}_told") != month:
            setattr(budget, f"{kind}_told", month)
            _record(actor, f"budget.{kind}", budget, month=f"{month:%Y-%m}")
            alerts.of_limit(budget.target, state, limit=limit, month=month)


def _record(actor: User | str, action: str, budget: Budget, **details: Any) -> None:
    """The audit's row names what the budget is of, as that is what people look for."""
    target = budget.target
    limits = {name: getattr(budget, name) for name in LIMITS}
    shown = {name: str(value) for name, value in limits.items() if value is not None}
    record(
        actor,
        action,
        target,
        workspace_id=budget.workspace_id,
        label=target.name,
        limits=shown,
        **details,
    )


def set_limits(
    actor: User,
    target: Workspace | Connection,
    limits: Limits,
    *,
    now: dt.datetime | None = None,
) -> bool:
    """Gives the target these limits for every month; none of them takes its budget away. False
    when that was so already. What was used this month counts from its first day; a turn that ends
    in the very moment in which the first limit is set may be left out. A refusal is a
    `ValidationError` by field name."""
    _check(limits)
    wanted = {name: getattr(limits, name) for name in LIMITS}
    is_none = not any(value is not None for value in wanted.values())
    with transaction.atomic():
        budget = _locked(target)
        if budget is None and is_none:
            return False
        if budget is not None and all(getattr(budget, n) == value for n, value in wanted.items()):
            return False
        if is_none:
            assert budget is not None
            _record(actor, "budget.remove", budget)
            budget.delete()
            return True
        if budget is None:
            try:
                with transaction.atomic():
                    budget = _make(target, wanted, month_of(now))
            except IntegrityError:  # another admin was faster
                budget = _locked(target)
                assert budget is not None
        for name, value in wanted.items():
            setattr(budget, name, value)
        _record(actor, "budget.update", budget)
        standing = _standing(budget, now)
        for kind in ("soft", "hard"):
            if not standing.reached(kind):
                setattr(budget, f"{kind}_told", None)
        _tell(actor, standing)
        budget.save(update_fields=[*LIMITS, *_TOLD])
    return True


def _locked(target: Workspace | Connection) -> Budget | None:
    rows = Budget.objects.select_for_update(of=("self",))
    return rows.select_related("workspace", "connection").filter(**_key(target)).first()


def _make(target: Workspace | Connection, wanted: dict[str, Any], month: dt.date) -> Budget:
    used = used_since(_column(target), target.pk, month)
    return Budget.objects.create(
        **_key(target),
        **wanted,
        month=month,
        cost=used.cost,
        tokens=used.tokens,
        unpriced=used.unpriced,
        covered=used.covered,
    )


def _check(limits: Limits) -> None:
    wrong: dict[str, list[str]] = {}
    for unit in ("cost", "tokens"):
        soft, hard = getattr(limits, f"soft_{unit}"), getattr(limits, f"hard_{unit}")
        for name, value in ((f"soft_{unit}", soft), (f"hard_{unit}", hard)):
            if value is not None and value <= 0:
                wrong[name] = [_("Enter a number above 0, or leave it empty.")]
        if soft is not None and hard is not None and soft > hard > 0:
            wrong[f"soft_{unit}"] = [_("The notice comes before the stop: enter less than that.")]
    if wrong:
        raise ValidationError(wrong)
