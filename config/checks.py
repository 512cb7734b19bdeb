"""Start-up checks of our own; `manage.py check --deploy` runs them with Django's."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import Error, Tags, register

from workspaces import egress


@register(Tags.security)
def production_is_safe(**kwargs: Any) -> list[Error]:
    """An https address means production: no debug pages, no key that the world knows."""
    errors = []
    if settings.PRODUCTION and settings.DEBUG:
        errors.append(
            Error(
                "PATCHBAY_DEBUG is on while PATCHBAY_URL is https.",
                hint="Debug pages show settings and source to anybody. Unset PATCHBAY_DEBUG.",
                id="patchbay.E001",
            )
        )
    if len(settings.SECRET_KEY) < 32 or settings.SECRET_KEY.startswith("django-insecure"):
        errors.append(
            Error(
                "SECRET_KEY is shorter than 32 characters or a known default.",
                hint="Unset it to have one made, or set 50 random characters.",
                id="patchbay.E002",
            )
        )
    return errors


@register(Tags.security)
def egress_lists_can_be_read(**kwargs: Any) -> list[Error]:
    """A mistyped allow list is refused at start, not at the first call."""
    errors = []
    for policy in (egress.provider_policy, egress.tool_policy):
        try:
            policy()
        except ValueError as error:
            errors.append(Error(str(error), id="patchbay.E003"))
    return errors
