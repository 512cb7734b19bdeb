"""What a decoder keeps back until it is whole: arguments of tool calls, signatures."""

from __future__ import annotations

from connections.providers.base import ErrorKind, ProviderError

MAX_HELD = 2_000_000  # characters, of one reply: as much as its text may have


class Held:
    """Counts it, piece by piece: nobody sees it before its end, so nobody else can end it."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_HELD

    def __call__(self, text: str) -> str:
        """The text. Raises ProviderError(too_large)."""
        self._left -= len(text)
        if self._left < 0:
            raise ProviderError(ErrorKind.TOO_LARGE, "The reply's tool calls are too long.")
        return text
