"""Numbers from providers, which may be anything JSON allows."""

from __future__ import annotations

from typing import Any

LARGEST = 10**9  # more tokens than any count means


def count(value: Any) -> int:
    """A whole number of tokens from 0 to `LARGEST`; 0 for what isn't a number."""
    if type(value) not in (int, float) or not value > 0:
        return 0
    return int(min(value, LARGEST))


def positive(value: Any) -> int | None:
    """`count`, but None where there is none."""
    return count(value) or None
