"""What forms of every app share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from django import forms
from django.forms.utils import flatatt
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString


class Problems:
    """For a form whose page sums its errors up at the top (components/form_problems.html)."""

    @property
    def problems(self) -> Iterator[tuple[str, str, str]]:
        """Id of the field ("" for none), its label, the sentence."""
        for name, errors in self.errors.items():
            for error in errors:
                if name in self.fields:
                    yield self[name].id_for_label or f"id_{name}", str(self[name].label), error
                else:
                    yield "", "", error


class KeepsTyped:
    """For a form with fields that no page gets back: what was typed there stays in the browser when
    something else is refused (`keep_typed`, and htmx swaps the form)."""

    def keep_typed(self, *names: str) -> None:
        for name in names:
            self.fields[name].widget.attrs["hx-preserve"] = "true"

    def add_error(self, field: str | None, error: Any) -> None:
        super().add_error(field, error)
        if field in self.fields:
            # What the browser preserves couldn't show the error.
            self.fields[field].widget.attrs.pop("hx-preserve", None)


class LongSelect(forms.Select):
    """For choices that grow with the installation: Django's own select renders a template for each.
    Without groups."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        attributes = self.build_attrs(self.attrs, {**(attrs or {}), "name": name})
        inside = joined_options(self.choices, set(self.format_value(value)))
        return format_html("<select{}>{}</select>", flatatt(attributes), inside)


def joined_options(pairs: Iterable[tuple[Any, Any]], chosen: Collection[str]) -> SafeString:
    """Of a select, of pairs of value and label."""
    parts = [
        f'<option value="{conditional_escape(value)}"{" selected" if str(value) in chosen else ""}>'
        f"{conditional_escape(label)}</option>"
        for value, label in pairs
    ]
    return SafeString("".join(parts))
