"""Whether workers and beat are at work: each says so in Redis, for as long as it does.

A worker speaks from the loop that runs its turns, beat when it rings: a process that hangs falls
silent. Without Redis nobody can tell, which says nothing against either.
"""

from __future__ import annotations

import contextlib

import redis
from django.conf import settings

WORKER, BEAT = "worker", "beat"
# Seconds for which a word counts: a worker speaks every 3 s, beat every 10 s.
LASTS = {WORKER: 15, BEAT: 35}


def key_of(name: str) -> str:
    return f"patchbay:alive:{name}"


def tell(name: str) -> None:
    """Says that this process is at work. Never raises; waits for a second at most."""
    with contextlib.suppress(redis.RedisError, OSError), _client() as client:
        client.set(key_of(name), 1, ex=LASTS[name])


def states() -> dict[str, str]:
    """Name → "ok", "down", or "unknown" while Redis gives no answer."""
    try:
        with _client() as client:
            found = client.mget([key_of(name) for name in LASTS])
    except (redis.RedisError, OSError):
        return dict.fromkeys(LASTS, "unknown")
    return {name: "ok" if one else "down" for name, one in zip(LASTS, found, strict=True)}


def _client() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1)
