"""Model servers on this machine, offered for a connection when they answer: Ollama, LM Studio.

Asked by the server process alone, for instance admins, through the guarded client: where
PATCHBAY_EGRESS_ALLOW doesn't let base URLs reach them they aren't asked. Which, and where:
PATCHBAY_LOCAL_SERVERS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import httpx
from django.conf import settings

from connections import providers
from connections.choices import AuthType, ProviderType, Wire
from connections.presets import PRESETS, Preset
from connections.providers.base import ProviderError, Target
from workspaces import egress

SECONDS = 0.4  # for all of them, at once
MAX_BYTES = 1024 * 1024  # of a list of models
MODELS_OFFERED = 200


@dataclass(frozen=True, slots=True)
class LocalServer:
    """One that answered. The models that can chat come first: the first is the one to propose."""

    preset: Preset
    base_url: str
    models: list[str]


def look(keys: Iterable[str] | None = None) -> list[LocalServer]:
    """Those that answer now, in the order of the setting; `keys`: only these presets. Blocks for
    `SECONDS` at most."""
    wanted = settings.LOCAL_SERVERS
    if keys is not None:
        wanted = {key: wanted[key] for key in keys if key in wanted}
    reachable = {key: url for key, url in wanted.items() if _may_reach(url)}
    return asyncio.run(_look(reachable)) if reachable else []


def _may_reach(url: str) -> bool:
    try:
        egress.check_url(url, egress.provider_policy(), resolve=False)
    except egress.URLRefused:
        return False
    return True


async def _look(urls: dict[str, str]) -> list[LocalServer]:
    policy = egress.provider_policy()
    async with egress.guarded_client(policy, max_bytes=MAX_BYTES, max_seconds=SECONDS) as client:
        asked = [_ask(client, key, url) for key, url in urls.items()]
        return [found for found in await asyncio.gather(*asked) if found is not None]


async def _ask(client: httpx.AsyncClient, key: str, url: str) -> LocalServer | None:
    wire = Wire.OPENAI_COMPLETIONS
    target = Target(ProviderType.OPENAI_COMPAT, AuthType.NONE, base_url=url, wire=wire)
    provider = providers.PROVIDERS[ProviderType.OPENAI_COMPAT]
    try:
        async with asyncio.timeout(SECONDS):
            listed = await provider.list_models(client, target)
    except (ProviderError, TimeoutError):
        return None
    models = [model.id for model in listed[:MODELS_OFFERED]]
    # Both list what only makes embeddings among the rest; nothing but the name tells.
    models.sort(key=lambda name: "embed" in name.lower())
    return LocalServer(PRESETS[key], url, models)
