"""What people write, as it is stored: cleaned, keyed, measured, and as the parts of a message."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _

from sessions.refusals import Refused

MAX_TEXT = 200_000  # characters of one message
MAX_KEY = 64  # characters of a client key as it is stored


def clean_text(text: str) -> str:
    """NUL and lone surrogates can't be stored; CRLF of a form becomes a newline."""
    text = text.replace("\r\n", "\n").replace("\x00", "\ufffd")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def storable_key(client_key: str) -> str:
    """A long key by its hash: cut off, two keys could become one, and a message be lost."""
    key = clean_text(client_key)
    return key if len(key) <= MAX_KEY else hashlib.sha256(key.encode()).hexdigest()


def check_length(text: str, files: Sequence[Mapping[str, Any]] = ()) -> None:
    """Raises `Refused` for more than a message may have."""
    count = len(text) + sum(len(part["text"]) for part in files)
    if count > MAX_TEXT:
        said = (
            _("This message and its files have %(count)s characters; %(most)s is the most.")
            if files
            else _("This message has %(count)s characters; %(most)s is the most one can have.")
        )
        raise Refused("too_large", said % {"count": count, "most": MAX_TEXT})


def parts_of(text: str, files: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A person's words, then the files."""
    return [*([{"t": "text", "text": text}] if text.strip() else []), *files]
