"""Texts that must not come out anywhere, and every way in which they could be written."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from urllib.parse import quote, quote_plus


def quoted(secret: str) -> set[str]:
    """The secret as a server may quote it: as it came, in an address, in JSON, on a page."""
    return {
        secret,
        json.dumps(secret)[1:-1],
        html.escape(secret),
        html.escape(secret, quote=False),
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        base64.b64encode(secret.encode()).decode().rstrip("="),
    }


def spellings(secret: str) -> set[bytes]:
    """Besides, as it would stand in our own pages, logs, rows, dumps and reprs."""
    in_json = json.dumps(secret)[1:-1]
    ours = {
        json.dumps(in_json)[1:-1],  # JSON within JSON
        repr(secret)[1:-1],
        html.escape(in_json),
        html.escape(secret).replace("&#x27;", "&#39;"),
        secret.replace("'", "''"),  # SQL
        secret.encode().hex(),
        secret.encode().hex().upper(),
        base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="),
    }
    return {text.encode() for text in quoted(secret) | ours}


def hits(secret: str, evidence: Mapping[str, bytes]) -> list[str]:
    """Where the secret stands: the names of the evidence, each with what is around it."""
    found = []
    for name, content in evidence.items():
        for spelled in spellings(secret):
            at = content.find(spelled)
            if at >= 0:
                found.append(f"{name}: …{content[max(0, at - 80) : at + len(spelled) + 20]!r}…")
    return found
