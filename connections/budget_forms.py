"""The form of a budget: what may stand in it is said in `connections.budgets`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from connections import budgets
from connections.models import Budget, Connection
from workspaces.forms import Problems
from workspaces.models import User, Workspace

_MOST_TOKENS = 10**15


def _dollars(label: Any, help_text: Any) -> forms.DecimalField:
    return forms.DecimalField(
        label=label, required=False, max_digits=12, decimal_places=2, help_text=help_text
    )


def _tokens(label: Any, help_text: Any) -> forms.IntegerField:
    return forms.IntegerField(
        label=label, required=False, max_value=_MOST_TOKENS, help_text=help_text
    )


_SOFT, _HARD = _("Admins are told from here on."), _("Nothing more is sent from here on.")


class BudgetForm(Problems, forms.Form):
    use_required_attribute = False

    soft_cost = _dollars(_("Notice at, in US dollars"), _SOFT)
    hard_cost = _dollars(_("Stop at, in US dollars"), _HARD)
    soft_tokens = _tokens(_("Notice at, in tokens"), _SOFT)
    hard_tokens = _tokens(_("Stop at, in tokens"), _HARD)

    def __init__(
        self,
        data: Mapping[str, Any] | None,
        *,
        target: Workspace | Connection,
        budget: Budget | None,
    ) -> None:
        initial = {name: getattr(budget, name) for name in budgets.LIMITS} if budget else None
        super().__init__(data, initial=initial)
        self.target = target

    def save(self, actor: User) -> bool:
        """False when the verb refuses: its sentences then stand at the fields."""
        limits = budgets.Limits(**self.cleaned_data)
        try:
            budgets.set_limits(actor, self.target, limits)
        except ValidationError as error:
            for name, errors in error.error_dict.items():
                self.add_error(name, errors)
            return False
        return True
