"""Anthropic's own API with a key or a sign-in (platform.claude.com: "Messages", "List Models")."""

from __future__ import annotations

import httpx

from connections.providers.base import Target
from connections.providers.http import WIRES, HTTPProvider
from connections.providers.wire import Wire

OAUTH_BETA = "oauth-2025-04-20"  # access tokens are taken only with it


class Anthropic(HTTPProvider):
    provider_type = "anthropic"
    auth_types = frozenset({"api_key", "oauth", "environment"})
    default_base_url = "https://api.anthropic.com"
    default_wire = "anthropic-messages"

    async def check_auth(self, client: httpx.AsyncClient, target: Target, model: str) -> bool:
        await self.lookup(client, target, "/v1/models?limit=1")
        return True

    def wire(self, target: Target, model: str = "") -> Wire:
        return WIRES[self.default_wire]  # a choice of wires belongs to the `*_compat` types

    async def authorize(
        self, client: httpx.AsyncClient, target: Target, request: httpx.Request
    ) -> None:
        await super().authorize(client, target, request)
        if "access_token" in target.secret:
            betas = request.headers.get("anthropic-beta", "")
            request.headers["anthropic-beta"] = f"{betas},{OAUTH_BETA}".lstrip(",")
