"""What this app offers the command palette, to instance admins alone."""

from __future__ import annotations

from collections.abc import Iterator

from django.urls import reverse
from django.utils.translation import gettext as _

from connections.models import Connection
from workspaces.palette import Asked, Command, Group

MOST = 1_000  # connections that are looked through


def commands(asked: Asked) -> Iterator[Command]:
    """One query, none before something is typed."""
    if not asked.user.is_instance_admin:
        return
    yield Command(
        Group.ACTIONS,
        _("Add a connection"),
        reverse("connections:create"),
        "plus",
        words=_("new provider key"),
    )
    if not asked.query:
        return
    for label, view, icon in (
        (_("Status of the connections"), "connections:status", "activity"),
        (_("Alerts"), "connections:alerts", "alert-triangle"),
        (_("Import connections"), "connections:import", "upload"),
        (_("Export connections"), "connections:export", "download"),
        (_("Deleted connections"), "connections:deleted", "trash"),
    ):
        yield Command(Group.PAGES, label, reverse(view), icon)
    for slug, name in Connection.objects.living().values_list("slug", "name")[:MOST]:
        there = reverse("connections:detail", args=[slug])
        yield Command(Group.CONNECTIONS, name, there, "plug", note=slug, words=slug)
        validate = _("Validate %(name)s") % {"name": name}
        url = reverse("connections:validate", args=[slug])
        yield Command(Group.ACTIONS, validate, url, "refresh", words=slug, is_post=True)
