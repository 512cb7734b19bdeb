"""Which language somebody is spoken to in: the one chosen in the profile, else the browser's; where
no browser asks (mail, messages to other programs), the installation's."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.utils import translation

from workspaces.models import User


def language_of(person: User | AnonymousUser | None) -> str:
    """What a person chose, "" for who chose none, or one that isn't offered any more."""
    chosen = getattr(person, "language", "")
    return chosen if chosen in dict(settings.LANGUAGES) else ""


def speaking_to(person: User | None = None, otherwise: str = "") -> AbstractContextManager[Any]:
    """Texts within are in the person's language, else in `otherwise`, else in our own."""
    return translation.override(language_of(person) or otherwise or settings.LANGUAGE_CODE)
