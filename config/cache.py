"""The shared cache, for throttling sign-in. A dead Redis never blocks a page: every call then
answers as an empty cache would, and for some seconds Redis isn't even asked, because a sign-in asks
many times and each waits."""

from __future__ import annotations

import logging
import time
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.redis import RedisCache
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

SKIP_AFTER_FAILURE = 3.0  # seconds
_not_before = 0.0  # of this process: Django makes a cache object for every thread


class ForgivingRedisCache(RedisCache):
    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        return self._try(default, super().get, key, default, version)

    def set(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        self._try(None, super().set, key, value, timeout, version)

    def add(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        return self._try(True, super().add, key, value, timeout, version)

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return self._try(False, super().touch, key, timeout, version)

    def delete(self, key: str, version: int | None = None) -> bool:
        return self._try(False, super().delete, key, version)

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        return self._try(delta, super().incr, key, delta, version)

    def has_key(self, key: str, version: int | None = None) -> bool:
        return self._try(False, super().has_key, key, version)

    def get_many(self, keys: Any, version: int | None = None) -> dict[str, Any]:
        return self._try({}, super().get_many, keys, version)

    def _try(self, otherwise: Any, call: Any, *arguments: Any) -> Any:
        global _not_before
        if time.monotonic() < _not_before:
            return otherwise
        try:
            return call(*arguments)
        except (RedisError, OSError) as error:
            _not_before = time.monotonic() + SKIP_AFTER_FAILURE
            logger.warning("cache: Redis doesn't answer (%s)", type(error).__name__)
            return otherwise
