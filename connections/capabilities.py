"""What a model of a connection can do and costs. Nothing is guessed: what isn't said is a default.

Windows and prices of the providers' own models come from the table that genai-prices bundles
(offline; a lookup costs about 0.4 ms once, then nothing).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from genai_prices import Usage as PricedUsage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, TieredPrices
from genai_prices.types import Provider as PriceList

from connections.choices import AuthType, ProviderType
from connections.models import DEFAULT_CONTEXT_WINDOW, Connection, WorkspaceConnection
from connections.providers.base import Usage
from connections.providers.thinking import LEVELS, levels_of
from connections.providers.wire.converse import full_id, without_geography

DEFAULT_MAX_OUTPUT = 4_096
# What a reasoning model thinks counts as output.
REASONING_MAX_OUTPUT = 16_384

_PRICE_LISTS = {
    ProviderType.ANTHROPIC: "anthropic",
    ProviderType.OPENAI: "openai",
    ProviderType.BEDROCK: "aws",
    ProviderType.VERTEX: "google",
}
# A custom endpoint's prices are known only where the endpoint is a provider's own public one.
_PRICE_LISTS_BY_HOST = {
    "api.anthropic.com": "anthropic",
    "api.openai.com": "openai",
    "openrouter.ai": "openrouter",
}
_MICRO = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """`context_window` and `max_output` in tokens; prices in US dollars for a million tokens, None
    where unknown."""

    model: str
    name: str
    context_window: int
    window_is_assumed: bool
    supports_images: bool
    max_output: int
    price_input: Decimal | None
    price_output: Decimal | None
    takes_tools: bool = True  # the workspace's tools
    thinking: tuple[str, ...] = ()  # levels that can be chosen

    @property
    def longest_output(self) -> int:
        """What a session may ask for at the most: half of the window stays for the conversation."""
        return max(1, self.context_window // 2)

    def output_for(self, level: str, chosen: int | None) -> int:
        """Tokens that a reply may have: as chosen, else by default, thinking included."""
        if chosen:
            return min(chosen, self.longest_output)
        if level in self.thinking and level != "off":
            return max(self.max_output, min(REASONING_MAX_OUTPUT, self.context_window // 4))
        return self.max_output


def capabilities(connection: Connection, model: str) -> Capabilities:
    """What `model` can do on this connection. No query.

    The model's entry beats the endpoint's setting, which beats the default.
    """
    entry = connection.model_entry(model)
    is_compat = ProviderType(connection.provider_type).is_compat
    listed = _listed(connection, model)
    window, assumed = DEFAULT_CONTEXT_WINDOW, True
    if entry.get("contextWindow"):
        window, assumed = entry["contextWindow"], False
    elif not is_compat and listed is not None and listed[1].context_window:
        window, assumed = listed[1].context_window, False
    if entry.get("supportsImages") is not None:
        images = entry["supportsImages"]
    else:
        images = bool(connection.supports_images) if is_compat else True
    price_input = price_output = None
    if listed is not None:
        prices = listed[1].get_prices(datetime.now(UTC))
        price_input, price_output = _base(prices.input_mtok), _base(prices.output_mtok)
    if is_compat:
        levels = LEVELS[1:] if entry.get("supportsThinking") is True else ()
    else:
        levels = levels_of(connection.provider_type, model)
    on_codex = connection.provider_type == ProviderType.OPENAI
    most = REASONING_MAX_OUTPUT if on_codex else DEFAULT_MAX_OUTPUT
    return Capabilities(
        model=model,
        name=entry.get("name") or model,
        context_window=window,
        window_is_assumed=assumed,
        supports_images=images,
        # A reply may not fill the window of a very small model.
        max_output=max(1, min(most, window // 4)),
        price_input=price_input,
        price_output=price_output,
        takes_tools=not on_codex,
        thinking=levels,
    )


def cost_of(connection: Connection, model: str, usage: Usage) -> Decimal | None:
    """US dollars of one step's usage, to the millionth; None where no price is known, or where the
    plan of a signed-in account pays."""
    if connection.auth_type == AuthType.OAUTH:
        return None
    listed = _listed(connection, model)
    if listed is None:
        return None
    price_list, info = listed
    cached = usage.cache_read_tokens + usage.cache_write_tokens
    priced = PricedUsage(
        input_tokens=max(usage.input_tokens, cached),
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    try:
        price = info.calc_price(priced, price_list, genai_request_timestamp=datetime.now(UTC))
    except (LookupError, ValueError):
        return None
    return price.total_price.quantize(_MICRO)


def usable_models(connection: Connection, row: WorkspaceConnection | None) -> list[str]:
    """The ids of the models a workspace may use, in the connection's order; without a list, the
    default model alone. `row` is the workspace's access row."""
    ids = connection.model_ids or ([connection.default_model] if connection.default_model else [])
    return ids if row is None else [model for model in ids if row.allows(model)]


def first_model(connection: Connection, row: WorkspaceConnection | None) -> str:
    """The model of a new session: the default where it may be used, else the first that may; ""
    for none."""
    ids = usable_models(connection, row)
    if connection.default_model in ids:
        return connection.default_model
    return ids[0] if ids else ""


def _listed(connection: Connection, model: str) -> tuple[PriceList, ModelInfo] | None:
    if connection.provider_type == ProviderType.BEDROCK:
        return _find_on_aws(full_id(model, connection.aws_region)) if model else None
    if ProviderType(connection.provider_type).is_compat:
        host = urlsplit(connection.base_url).hostname or ""
        name = _PRICE_LISTS_BY_HOST.get(host)
    else:
        name = _PRICE_LISTS[ProviderType(connection.provider_type)]
    if connection.provider_type == ProviderType.VERTEX:
        model = model.rpartition("/")[2]  # without its publisher
    return _find(name, model) if name and model else None


def _find_on_aws(model: str) -> tuple[PriceList, ModelInfo] | None:
    """By the id in an ARN; a geography that the table doesn't have costs what `us` does."""
    model = model.rpartition("/")[2]
    aws = _PRICE_LISTS[ProviderType.BEDROCK]
    return _find(aws, model) or _find(aws, f"us.{without_geography(model)}")


@functools.lru_cache(maxsize=4_096)
def _find(price_list: str, model: str) -> tuple[PriceList, ModelInfo] | None:
    try:
        snapshot = get_snapshot()
        provider = snapshot.find_provider(None, price_list, None)
        info = provider.find_model(model, all_providers=snapshot.providers)
    except LookupError:
        return None
    return (provider, info) if info is not None else None


def _base(price: Any) -> Decimal | None:
    return price.base if isinstance(price, TieredPrices) else price
