"""Anybody's endpoint that speaks one of the two wires. The two types differ only in the wire that
is meant when the connection doesn't say."""

from __future__ import annotations

import httpx

from connections.providers.base import ErrorKind, ProviderError, Target
from connections.providers.http import HTTPProvider

_OPENROUTER = "openrouter.ai"


class _Compatible(HTTPProvider):
    auth_types = frozenset({"api_key_with_endpoint", "none"})

    async def check_auth(self, client: httpx.AsyncClient, target: Target, model: str) -> bool:
        """Only OpenRouter has a free call that proves the key. Elsewhere the list of models may be
        open to everybody, or not exist: it can refuse the key but not prove it."""
        openai = self.wire(target).name == "openai-completions"
        if httpx.URL(self.origin(target)).host == _OPENROUTER:
            await self.lookup(client, target, "/key" if openai else "/v1/key")
            return True
        if openai:
            try:
                await self.lookup(client, target, "/models")
            except ProviderError as error:
                if error.kind not in (ErrorKind.ENDPOINT_NOT_FOUND, ErrorKind.PROTOCOL):
                    raise
        return False


class AnthropicCompat(_Compatible):
    provider_type = "anthropic_compat"
    default_wire = "anthropic-messages"


class OpenAICompat(_Compatible):
    provider_type = "openai_compat"
    default_wire = "openai-completions"
