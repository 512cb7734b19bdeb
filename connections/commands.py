"""What this app offers the command palette, to instance admins alone."""

from __future__ import annotations

from collections.abc import Iterator

from django.urls import reverse
from django.utils.translation import gettext as _

from connections.models import Connection
from workspaces.palette import Asked, Command, Group

MOST = 1_000  # connections that are looked through
_SLUG = "SLUG"  # no connection's: theirs are in lower case


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
    # A thousand addresses one by one would take the time of the page; a slug needs no escaping.
    there = reverse("connections:detail", args=[_SLUG])
    validate = reverse("connections:validate", args=[_SLUG])
    sentence = _("Validate %(name)s")
    words = [word.lower() for word in asked.words]
    for slug, name in Connection.objects.living().values_list("slug", "name")[:MOST]:
        action = sentence % {"name": name}
        text = f"{action} {name} {slug}".lower()
        if not all(word in text for word in words):
            continue
        url = there.replace(_SLUG, slug)
        yield Command(Group.CONNECTIONS, name, url, "plug", note=slug, words=slug)
        url = validate.replace(_SLUG, slug)
        yield Command(Group.ACTIONS, action, url, "refresh", words=slug, is_post=True)
