"""The list of connections as its page shows it: which ones, page by page, each with its menu and
its last days; and how far the validations have come that somebody asked for together."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.conf import settings
from django.core.paginator import Page, Paginator
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy as _

from connections import alerts, display, health
from connections.choices import AuthType, ProviderType, Status
from connections.deleting import recently_deleted
from connections.models import Connection, ProbeResult, Secret
from workspaces.models import User

PER_PAGE = 30
FILTER_FROM = 2  # connections: one alone needs no search

_NO_SECRET = ~Exists(
    Secret.objects.filter(
        connection=OuterRef("pk"), purpose=Secret.Purpose.AUTH, ended_at__isnull=True
    )
)
# By what is stored: a secret is opened for the rows of a page alone.
_STATUSES = {
    Status.FAILED: Q(enabled=True, health=Status.FAILED),
    Status.VALID: Q(enabled=True, health=Status.VALID),
    Status.UNCHECKED: Q(enabled=True, health=Status.UNCHECKED),
    Status.INCOMPLETE: Q(_NO_SECRET, enabled=True)
    & ~Q(auth_type__in=(AuthType.NONE, AuthType.ENVIRONMENT))
    & ~Q(
        auth_type=AuthType.API_KEY_WITH_ENDPOINT,
        base_url__regex=r"^https?://(127\.|localhost|\[::1\])",
    ),
    Status.DISABLED: Q(enabled=False),
}


class Filter(forms.Form):
    """Which connections; every field may be empty."""

    q = forms.CharField(
        label=_("Search"),
        required=False,
        max_length=200,
        widget=forms.TextInput(
            attrs={
                "type": "search",
                "autocomplete": "off",
                "placeholder": _("Name, model, address"),
            }
        ),
    )
    show = forms.ChoiceField(
        label=_("Status"),
        choices=[("", _("Any")), *((status.value, status.label) for status in _STATUSES)],
        required=False,
    )
    provider = forms.ChoiceField(
        label=_("Provider"), choices=[("", _("Any")), *ProviderType.choices], required=False
    )
    # A link sets it: those whose secret is to be replaced.
    secrets = forms.ChoiceField(
        choices=[("", ""), ("old", "old")], required=False, widget=forms.HiddenInput
    )

    @property
    def is_set(self) -> bool:
        return bool(self.asked)

    @property
    def asked(self) -> dict[str, str]:
        """What the address says, as far as it says something."""
        return {name: self.data[name] for name in self.fields if self.data.get(name)}

    def connections(self) -> QuerySet[Connection]:
        """In the order of the list; none when the form isn't valid."""
        found = Connection.objects.living()
        if not self.is_valid():
            return found.none()
        data = self.cleaned_data
        for word in data["q"].split():
            found = found.filter(
                Q(name__icontains=word)
                | Q(slug__icontains=word)
                | Q(default_model__icontains=word)
                | Q(base_url__icontains=word)
                | Q(note__icontains=word)
            )
        if data["show"]:
            found = found.filter(_STATUSES[Status(data["show"])])
        if data["provider"]:
            found = found.filter(provider_type=data["provider"])
        if data["secrets"]:
            found = found.filter(pk__in=old_secrets().values("connection"))
        return found


def old_secrets() -> QuerySet[Secret]:
    if not settings.SECRET_MAX_AGE_DAYS:
        return Secret.objects.none()
    return Secret.objects.filter(alerts.old_secrets())


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of the list, and what it was asked for."""

    form: Filter
    page: Page  # of display.Row
    total: int  # connections there are at all
    kept: str  # the filter and the page, as a query string
    query: str  # the filter alone, ending in "&"
    deleted: int  # that can be brought back
    old_secrets: int
    progress: Progress | None

    @classmethod
    def of(cls, request: HttpRequest, asked: Mapping[str, Any] | None = None) -> Listed:
        """As the address asks, or `asked` (the `kept` of a page that is open). Some eight queries,
        whatever the number of connections."""
        asked = request.GET if asked is None else asked
        form = Filter(asked)
        found = form.connections().with_secrets().defer("unknown_fields", "imported_as")
        page = Paginator(found, PER_PAGE).get_page(asked.get("page"))
        _fill(page, places=_places() if form.is_set else None)
        filtered = urlencode(form.asked)
        number = {"page": page.number} if page.number > 1 else {}
        return cls(
            form=form,
            page=page,
            total=Connection.objects.living().count() if form.is_set else page.paginator.count,
            kept=urlencode(form.asked | number),
            query=f"{filtered}&" if filtered else "",
            deleted=recently_deleted().count(),
            old_secrets=old_secrets().count(),
            progress=Progress.of(request),
        )

    @property
    def is_filtered(self) -> bool:
        return self.form.is_set

    @property
    def has_filter(self) -> bool:
        return self.is_filtered or self.total >= FILTER_FROM


def row_of(connection: Connection) -> display.Row:
    """One row by itself. Three queries, and one without prefetched `secrets`."""
    before = Connection.objects.living().filter(position__lt=connection.position).count()
    strip = health.strips([connection.pk], health.DAYS_IN_LIST)[connection.pk]
    return display.Row.of(connection, before + 1, menu=_Menus().of(connection), strip=strip)


def _places() -> dict[Any, int]:
    """Where each connection stands in the whole list, counted from 1."""
    ids = Connection.objects.living().values_list("pk", flat=True)
    return {pk: place for place, pk in enumerate(ids, 1)}


def _fill(page: Page, *, places: Mapping[Any, int] | None) -> None:
    """Turns the connections of a page into rows."""
    menus, found = _Menus(), list(page.object_list)
    strips = health.strips([connection.pk for connection in found], health.DAYS_IN_LIST)
    rows = [
        display.Row.of(
            connection,
            places.get(connection.pk, place) if places else place,
            menu=menus.of(connection),
            strip=strips[connection.pk],
        )
        for place, connection in enumerate(found, page.start_index())
    ]
    # A hundred rows that are checked at once may not ask a hundred times a second.
    poll = 1 + sum(row.is_checking for row in rows) // 10
    page.object_list = [replace(row, poll=poll) for row in rows]


class _Menus(dict[tuple[bool, bool, str, str], str]):
    """The rows' menus, which differ in the slug alone once four switches are set: each kind is
    rendered once, as it is most of what a row costs. A slug has no letter that HTML or a URL would
    write in another way (`slugs.validate_slug`)."""

    SLUG = "SLUG"  # no connection's: theirs are in lower case

    def __missing__(self, kind: tuple[bool, bool, str, str]) -> str:
        is_default, enabled, behaviour, provider = kind
        connection = Connection(
            slug=self.SLUG,
            is_default=is_default,
            enabled=enabled,
            mid_stream_behavior=behaviour,
            provider_type=provider,
        )
        choices = display.MID_STREAM_CHOICES
        context = {"connection": connection, "mid_stream_choices": choices, "live": True}
        self[kind] = render_to_string("connections/menu.html", context)
        return self[kind]

    def of(self, connection: Connection) -> SafeString:
        kind = (
            connection.is_default,
            connection.enabled,
            connection.mid_stream_behavior,
            connection.provider_type,
        )
        return mark_safe(self[kind].replace(self.SLUG, connection.slug))  # noqa: S308


# -- many validations at once ----------------------------------------------------------------------

_SINCE = "validating_since"  # in the session of who asked
_FOLLOWED_FOR = dt.timedelta(hours=1)
MANY = 2


def follow(request: HttpRequest, since: dt.datetime) -> None:
    """Remembers that this person asked for many validations: their pages show how far they are."""
    request.session[_SINCE] = since.isoformat()


@dataclass(frozen=True, slots=True)
class Progress:
    """Of the validations that a person asked for together."""

    total: int
    ended: int
    failed: int
    lost: int  # no worker came

    @property
    def done(self) -> int:
        return self.ended + self.lost

    @property
    def passed(self) -> int:
        return self.ended - self.failed

    @property
    def is_over(self) -> bool:
        return self.done >= self.total

    @classmethod
    def of(cls, request: HttpRequest) -> Progress | None:
        """None when this person asked for none lately. One query, and none without having asked."""
        since = parse_datetime(str(request.session.get(_SINCE, "")))
        now = timezone.now()
        if since is None or since < now - _FOLLOWED_FOR or not isinstance(request.user, User):
            return None
        asked = ProbeResult.objects.filter(requested_by=request.user, started_at__gte=since)
        waits = Q(connection__checking_until__gt=now, connection__deleted_at=None)
        found = asked.aggregate(
            total=Count("pk"),
            ended=Count("pk", filter=Q(finished_at__isnull=False)),
            failed=Count("pk", filter=Q(passed=False)),
            lost=Count("pk", filter=Q(finished_at=None) & ~waits),
        )
        return cls(**found) if found["total"] >= MANY else None
