"""Slugs: parts of addresses that are given once and never change."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

SLUG_LENGTH = 64
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]*[a-z0-9]|[a-z0-9]")


def is_slug(text: str) -> bool:
    """`$` would let a final newline pass: the whole text must match."""
    return len(text) <= SLUG_LENGTH and _SLUG.fullmatch(text) is not None


def validate_slug(text: str) -> None:
    if not is_slug(text):
        raise ValidationError(
            _("Use a-z, 0-9 and hyphens, starting and ending with a letter or digit, at most 64."),
            code="slug",
        )


def make_slug(name: str, *, taken: Callable[[str], bool], fallback: str) -> str:
    """A free slug out of a name: "Café № 1" → "cafe-no-1"; a name without ASCII letters or digits
    gets `fallback`; a taken one gets -2, -3, …"""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    base = re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")[:SLUG_LENGTH].strip("-") or fallback
    slug, number = base, 1
    while taken(slug):
        number += 1
        tail = f"-{number}"
        slug = base[: SLUG_LENGTH - len(tail)].rstrip("-") + tail
    return slug
