"""The hostile texts as they can be stored."""

from __future__ import annotations

from sessions.texts import clean_text
from tests.sessions.hostile import BEACON, load_hostile

__all__ = ["BEACON", "texts"]


def texts() -> list[str]:
    return [text for text in map(clean_text, load_hostile()) if text.strip() and len(text) < 2_500]
