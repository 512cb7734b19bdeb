"""What templates say beyond HTML: icons, form fields, components with a body, numbers, times.

A builtin of the template engine (`settings.TEMPLATES`), so pages need no `{% load %}`. A component
is a file of `templates/components/`; one without a body is included, one with a body is a block
tag here: `{% dialog "delete-x" _("Delete?") %} … {% enddialog %}`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.core.paginator import Page
from django.forms import BaseForm, BoundField, CheckboxInput, RadioSelect
from django.template.loader import render_to_string
from django.templatetags.static import static
from django.urls import reverse
from django.utils import formats, timezone
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from connections.budgets import money
from workspaces.forms import joined_options

register = template.Library()

TONES = frozenset({"neutral", "info", "accent", "success", "warning", "danger"})

# For values that carry no `tone` of their own: states of a turn, outcomes of a rung, deliveries,
# levels of Django's messages.
_TONE_OF = {
    "pending": "info",
    "running": "info",
    "done": "success",
    "failed": "danger",
    "stopped": "neutral",
    "interrupted": "warning",
    "passed": "success",
    "not_tested": "neutral",
    "steering": "accent",
    "queued": "info",
    "debug": "neutral",
    "info": "info",
    "success": "success",
    "warning": "warning",
    "error": "danger",
}
_ICON_OF = {
    "neutral": "info-circle",
    "info": "info-circle",
    "accent": "info-circle",
    "success": "circle-check",
    "warning": "alert-triangle",
    "danger": "alert-circle",
}


# -- components -----------------------------------------------------------------------------------


@register.simple_tag
def icon(name: str, label: str = "", *, size: str = "") -> SafeString:
    """An icon of `static/icons.svg` by its Tabler name; decoration unless it has a label."""
    return _drawn(name, str(label), size)


# A page has hundreds, of a few kinds; where the sprite lies doesn't change in a process.
@functools.lru_cache(maxsize=1_000)
def _drawn(name: str, label: str, size: str) -> SafeString:
    spoken = (
        format_html('role="img" aria-label="{}"', label)
        if label
        else SafeString('aria-hidden="true"')
    )
    sized = format_html(' data-size="{}"', size) if size else ""
    return format_html(
        '<svg class="icon" {}{}><use href="{}#{}"/></svg>',
        spoken,
        sized,
        static("icons.svg"),
        name,
    )


@register.simple_tag
def read_more(page: str, section: str = "") -> SafeString:
    """A quiet link to a page of the guide, for where people ask themselves how something works."""
    from config.guide import pages

    return format_html(
        '<a class="read-more" href="{}{}">{}{}'
        '<span class="visually-hidden" lang="en">: {}</span></a>',
        reverse("help_page", args=[page]),
        f"#{section}" if section else "",
        _drawn("help-circle", "", ""),
        _("Read more"),
        pages()[page].title,
    )


@register.inclusion_tag("components/field.html")
def field(bound: BoundField, *, width: str = "", **attrs: Any) -> dict[str, Any]:
    """A form's field with label, help and errors, joined by Django's own aria attributes.

    Further arguments become attributes of the widget, `_` read as `-`: `hx_get="/…"`. `width` is
    "short" (12rem), "medium" (24rem) or "" (the whole column).
    """
    widget = bound.field.widget
    kind = ""
    if isinstance(widget, CheckboxInput):
        kind = "checkbox"
    elif isinstance(widget, RadioSelect):
        kind = "radio"
    extra = {name.replace("_", "-"): value for name, value in attrs.items()}
    return {"field": bound, "widget": bound.as_widget(attrs=extra), "kind": kind, "width": width}


@register.simple_tag
def first_to_fill(form: BaseForm) -> str:
    """The name of the field where typing begins: the first that is wrong, else the first."""
    fields = form.visible_fields()
    return next((bound.name for bound in [*(b for b in fields if b.errors), *fields]), "")


@register.simple_tag
def options(pairs: Iterable[tuple[object, object]], chosen: object = None) -> SafeString:
    """The options of a select, of pairs of value and label: of a thousand a loop in a template
    would take the time of the page."""
    return joined_options(pairs, {str(chosen)})


@register.simple_tag
def checkboxes(name: str, rows: Iterable[tuple[str, str, str]], *, id: str) -> SafeString:
    """Boxes to tick, of (value, label, note): values are slugs, the ids begin with `id`."""
    parts = [
        f'<div class="field" data-kind="checkbox"><input type="checkbox" id="{id}-{value}" '
        f'name="{name}" value="{value}">'
        f'<label for="{id}-{value}">{conditional_escape(label)} '
        f'<span class="muted small">{conditional_escape(note)}</span></label></div>'
        for value, label, note in rows
    ]
    return SafeString("\n".join(parts))


def _component(name: str, content: str, **context: Any) -> SafeString:
    return render_to_string(f"components/{name}.html", {"content": content, **context})


@register.simple_block_tag
def callout(content: str, tone: str = "info", title: str = "", *, icon: str = "") -> SafeString:
    return _component("callout", content, tone=tone, title=title, icon=icon or _ICON_OF[tone])


@register.simple_block_tag
def dialog(content: str, id: str, title: str) -> SafeString:
    return _component("dialog", content, id=id, title=title)


@register.simple_block_tag
def disclosure(
    content: str, label: str, note: str = "", *, open: bool = False, boxed: bool = False
) -> SafeString:
    return _component("disclosure", content, label=label, note=note, open=open, boxed=boxed)


@register.simple_block_tag
def fieldset(content: str, legend: str, help: str = "") -> SafeString:
    return _component("fieldset", content, legend=legend, help=help)


@register.simple_block_tag
def menu(
    content: str,
    id: str,
    label: str,
    *,
    icon: str = "dots",
    text: str = "",
    align: str = "end",
    variant: str = "quiet",
    size: str = "sm",
) -> SafeString:
    return _component(
        "menu",
        content,
        id=id,
        label=label,
        icon=icon,
        text=text,
        align=align,
        variant=variant,
        size=size,
    )


@register.filter
def numbers(page: Page) -> Iterable[int | str]:
    """Of the pages that `components/pagination.html` links to: the first, the last, and those
    around this one, with an ellipsis (`page.paginator.ELLIPSIS`) between."""
    return page.paginator.get_elided_page_range(page.number, on_each_side=1, on_ends=1)


@register.simple_block_tag
def table(content: str, caption: str, *, stack: bool = False) -> SafeString:
    return _component("table", content, caption=caption, stack=stack)


# -- values ---------------------------------------------------------------------------------------


@register.filter
def tone(value: Any) -> str:
    """The tone of a choice (its own `tone`), a state, an outcome or a message level."""
    own = getattr(value, "tone", None)
    return own if own in TONES else _TONE_OF.get(str(value), "neutral")


@register.filter
def tone_icon(value: Any) -> str:
    """The icon that goes with `value|tone`."""
    return _ICON_OF[value if value in TONES else tone(value)]


@register.filter
def compact(value: float | None) -> str:
    """A count in few characters: 950, 1.2K, 128K, 1M. Tokens and windows."""
    if value is None:
        return "–"
    for size, suffix in ((1_000_000, "M"), (1_000, "K")):
        # 999,950 would round to "1000.0K"
        if value >= size * 0.99995:
            short = float(value) / size  # a database may have summed up decimals
            places = 0 if short >= 99.95 or round(short, 1).is_integer() else 1
            # `number_format` rounds nothing, it cuts.
            return formats.number_format(round(short, places), places, use_l10n=True) + suffix
    return str(int(value))


register.filter(money)


@register.filter
def ms(value: float | None) -> str:
    """Milliseconds for a person: "87 ms", "1.2 s", "3 min"."""
    if value is None:
        return "–"
    if value < 1000:
        return _("%(n)d ms") % {"n": value}
    if value < 60_000:
        return _("%(n)s s") % {"n": formats.number_format(round(value / 1000, 1), 1)}
    return _("%(n)d min") % {"n": value / 60_000}


@register.filter
def ago(value: datetime | None) -> str:
    """A `<time>` that reads "5 min ago" and tells the exact time on hover; "never" for None."""
    if value is None:
        return _("never")
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        value.isoformat(timespec="seconds"),
        formats.date_format(timezone.localtime(value), "DATETIME_FORMAT"),
        _age(value, timezone.now()),
    )


def _age(value: datetime, now: datetime) -> str:
    age = now - value
    if age < timedelta(minutes=1):
        return _("just now")
    if age < timedelta(hours=1):
        return _("%(n)d min ago") % {"n": age // timedelta(minutes=1)}
    if age < timedelta(days=1):
        return _("%(n)d h ago") % {"n": age // timedelta(hours=1)}
    if age < timedelta(days=30):
        n = age.days
        return ngettext("%(n)d day ago", "%(n)d days ago", n) % {"n": n}
    return formats.date_format(timezone.localtime(value), "DATE_FORMAT")
