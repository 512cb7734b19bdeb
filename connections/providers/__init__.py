"""The registry: the provider types that work in this build, each with its one instance."""

from __future__ import annotations

from connections.providers.anthropic import Anthropic
from connections.providers.base import Provider
from connections.providers.codex import Codex
from connections.providers.compat import AnthropicCompat, OpenAICompat

PROVIDERS: dict[str, Provider] = {
    "anthropic": Anthropic(),
    "anthropic_compat": AnthropicCompat(),
    "openai": Codex(),
    "openai_compat": OpenAICompat(),
}


def get(provider_type: str) -> Provider:
    """Raises KeyError for a type that is not in this build."""
    return PROVIDERS[provider_type]
