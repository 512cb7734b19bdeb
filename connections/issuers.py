"""Who issues the tokens of signed-in connections, from the operator's settings."""

from __future__ import annotations

from django.conf import settings

from connections.providers.wire.oauth import Issuer

OPENAI = "https://auth.openai.com"  # the Codex binary's own


def issuer_for(provider_type: str) -> Issuer | None:
    """None while the operator hasn't set the provider's client id: signing in is off."""
    found = settings.OAUTH.get(provider_type)
    return Issuer(**found) if found and found["client_id"] else None


def client_id_setting(provider_type: str) -> str:
    """The variable that sentences name."""
    return f"PATCHBAY_OAUTH_{provider_type.upper()}_CLIENT_ID"
