"""How much a person may ask for: sends a minute, replies at once, and what budgets leave.

Sends are counted in the shared cache, for all web processes together. A dead Redis never blocks
one: the cache then answers as an empty one would, and nobody is counted. How many streams a person
may have at once stands in `stream`.
"""

from __future__ import annotations

import math
import time
import uuid

from django.conf import settings
from django.core.cache import cache
from django.utils.translation import ngettext

from connections import budgets
from connections.sentences import Reason
from sessions.models import ChatSession, Turn
from sessions.refusals import Refused, TooMany
from workspaces.models import User

MINUTE = 60  # seconds
RETRY_RUNNING = 5  # seconds after which it is worth trying whether one of many replies has ended


def count_send(person: User, *, now: float | None = None) -> None:
    """Counts a send of this minute; raises `TooMany` beyond what a minute may have. A message that
    is sent again by its key counts again, as it costs as much."""
    most = settings.SENDS_PER_MINUTE
    if not most:
        return
    now = time.time() if now is None else now
    minute, into = divmod(now, MINUTE)
    key = f"sends:{person.pk}:{int(minute)}"
    cache.add(key, 0, 2 * MINUTE)
    try:
        count = cache.incr(key)
    except ValueError:  # gone between the two calls
        return
    if count <= most:
        return
    wait = max(1, math.ceil(MINUTE - into))
    said = ngettext(
        "You have sent %(most)d messages within a minute, as many as one may. Send this again in "
        "%(wait)d second.",
        "You have sent %(most)d messages within a minute, as many as one may. Send this again in "
        "%(wait)d seconds.",
        wait,
    )
    raise TooMany(said % {"most": most, "wait": wait}, wait)


def check_budget(chat: ChatSession, connection_id: uuid.UUID | None = None) -> None:
    """Raises `Refused` when a budget over the session is used up; with `connection_id`, as if it
    were on that connection. One query."""
    if said := budgets.refusal(chat.workspace_id, connection_id or chat.connection_id):
        raise Refused(Reason.BUDGET, said)


def check_running(person: User) -> None:
    """Raises `TooMany` when so many replies to a person are under way that no other may begin. One
    query. Sends at the same instant in several sessions may pass it together."""
    most = settings.TURNS_PER_PERSON
    if most and Turn.objects.filter(started_by=person, state__among=Turn.ACTIVE).count() >= most:
        raise TooMany(
            ngettext(
                "%(n)d reply to you is under way, as many as there may be at once. Wait for it to "
                "end, then send this again.",
                "%(n)d replies to you are under way, as many as there may be at once. Wait for one "
                "to end, then send this again.",
                most,
            )
            % {"n": most},
            RETRY_RUNNING,
        )
