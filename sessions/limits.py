"""How often a person may send: counted in the shared cache, for all web processes together.

A dead Redis never blocks a send: the cache then answers as an empty one would, and nobody is
counted. How many replies and streams a person may have at once stands in `turns` and `stream`.
"""

from __future__ import annotations

import math
import time

from django.conf import settings
from django.core.cache import cache
from django.utils.translation import ngettext

from sessions.turns import TooMany
from workspaces.models import User

MINUTE = 60  # seconds


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
