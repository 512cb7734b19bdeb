"""What a model can do and costs: said, not guessed."""

from decimal import Decimal

import pytest

from connections.capabilities import capabilities, cost_of, first_model, usable_models
from connections.models import Connection, WorkspaceConnection
from connections.providers.base import Usage


def compat(**fields):
    return Connection(
        **{
            "provider_type": "openai_compat",
            "auth_type": "none",
            "base_url": "http://localhost:11434/v1",
            "default_model": "m",
            "models": ["m"],
        }
        | fields
    )


def own(model="claude-sonnet-4-6", **fields):
    return Connection(
        **{
            "provider_type": "anthropic",
            "auth_type": "api_key",
            "default_model": model,
            "models": [model],
        }
        | fields
    )


def test_a_plain_entry_of_a_custom_endpoint_says_nothing():
    found = capabilities(compat(), "m")
    assert (found.context_window, found.window_is_assumed) == (128_000, True)
    assert found.supports_images is False
    assert found.price_input is None
    assert found.max_output == 4_096


def test_a_known_name_on_a_custom_endpoint_is_not_guessed_from():
    found = capabilities(compat(models=["gpt-5"]), "gpt-5")
    assert found.context_window == 128_000
    assert found.price_input is None


@pytest.mark.parametrize(
    ("endpoint", "entry", "expected"),
    [
        (None, None, False),
        (True, None, True),
        (False, None, False),
        (None, True, True),
        (False, True, True),
        (True, False, False),
    ],
)
def test_the_entry_beats_the_endpoint_and_the_endpoint_the_default(endpoint, entry, expected):
    model = {"id": "m"} if entry is None else {"id": "m", "supportsImages": entry}
    connection = compat(models=[model], supports_images=endpoint)
    assert capabilities(connection, "m").supports_images is expected


def test_the_entrys_window_counts_and_is_not_assumed():
    found = capabilities(compat(models=[{"id": "m", "contextWindow": 8_192, "name": "M"}]), "m")
    assert (found.context_window, found.window_is_assumed) == (8_192, False)
    assert found.max_output == 2_048
    assert found.name == "M"


def test_the_providers_own_models_come_from_the_table():
    found = capabilities(own(), "claude-sonnet-4-6")
    assert (found.context_window, found.window_is_assumed) == (1_000_000, False)
    assert (found.price_input, found.price_output) == (Decimal(3), Decimal(15))
    assert found.supports_images is True


def test_an_unknown_model_of_a_provider_is_assumed():
    found = capabilities(own("claude-unheard-of"), "claude-unheard-of")
    assert (found.context_window, found.window_is_assumed) == (128_000, True)
    assert found.supports_images is True
    assert found.price_input is None


def test_an_endpoints_wish_about_images_has_no_effect_on_the_providers_own_type():
    assert capabilities(own(supports_images=False), "claude-sonnet-4-6").supports_images is True


def test_prices_of_a_public_endpoint_are_known_by_its_host():
    connection = compat(base_url="https://openrouter.ai/api/v1", models=["openai/gpt-4o"])
    found = capabilities(connection, "openai/gpt-4o")
    assert found.price_input
    assert found.context_window == 128_000
    for other in ("https://openrouter.ai.evil.example/v1", "https://example.com/openrouter.ai"):
        connection.base_url = other
        assert capabilities(connection, "openai/gpt-4o").price_input is None


def test_a_step_costs_what_the_table_says():
    usage = Usage(input_tokens=1_000, output_tokens=100, cache_read_tokens=100)
    assert cost_of(own(), "claude-sonnet-4-6", usage) == Decimal("0.004230")
    assert cost_of(own(), "claude-sonnet-4-6", Usage()) == 0
    assert cost_of(compat(), "m", usage) is None


@pytest.mark.parametrize(
    "model",
    [
        "gemini-3.5-flash",
        "google/gemini-3.5-flash",
        "publishers/google/models/gemini-3.5-flash",
        "claude-sonnet-4-5@20250929",
        "anthropic/claude-sonnet-4-5",
    ],
)
def test_models_on_vertex_are_known_however_they_are_spelled(model):
    connection = Connection(provider_type="vertex", auth_type="environment", models=[model])
    found = capabilities(connection, model)
    assert not found.window_is_assumed
    assert found.supports_images
    assert cost_of(connection, model, Usage(input_tokens=1_000, output_tokens=100)) > 0


def test_odd_usage_of_a_provider_still_has_a_cost():
    usage = Usage(input_tokens=1, output_tokens=1, cache_read_tokens=50, cache_write_tokens=5)
    assert cost_of(own(), "claude-sonnet-4-6", usage) > 0


@pytest.mark.parametrize("provider_type", ["openai", "bedrock", "vertex", "anthropic_compat"])
def test_every_provider_type_has_capabilities(provider_type):
    connection = Connection(provider_type=provider_type, models=[], default_model="x")
    assert capabilities(connection, "x").context_window == 128_000
    assert capabilities(connection, "").context_window == 128_000


def test_a_workspace_uses_the_models_it_is_allowed():
    connection = compat(models=["a", {"id": "b"}, "c"], default_model="a")
    assert usable_models(connection, None) == ["a", "b", "c"]
    assert usable_models(connection, WorkspaceConnection()) == ["a", "b", "c"]
    narrow = WorkspaceConnection(allowed_models=["c", "b", "gone"])
    assert usable_models(connection, narrow) == ["b", "c"]
    assert first_model(connection, None) == "a"
    assert first_model(connection, narrow) == "b"
    assert first_model(connection, WorkspaceConnection(allowed_models=[])) == ""


def test_without_a_list_the_default_is_the_one_model():
    assert usable_models(own(models=[]), None) == ["claude-sonnet-4-6"]
    assert usable_models(own(models=[], default_model=""), None) == []


def bedrock(model, region="us-east-1"):
    return own(model, provider_type="bedrock", auth_type="iam_credentials", aws_region=region)


@pytest.mark.parametrize(
    ("model", "window"),
    [
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", 200_000),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", 200_000),
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", 200_000),
        ("apac.anthropic.claude-sonnet-4-20250514-v1:0", 200_000),
        ("global.anthropic.claude-haiku-4-5-20251001-v1:0", 200_000),
        ("claude-sonnet-4-5-20250929", 200_000),
        ("us.amazon.nova-pro-v1:0", 300_000),
        ("amazon.nova-2-lite-v1:0", 1_000_000),
        ("apac.amazon.nova-2-lite-v1:0", 1_000_000),
        ("us.meta.llama4-scout-17b-instruct-v1:0", 10_000_000),
        ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0", 300_000),
        (
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-pro-v1:0",
            300_000,
        ),
    ],
)
def test_ids_and_profiles_of_bedrock_find_window_and_price(model, window):
    found = capabilities(bedrock(model), model)
    assert (found.context_window, found.window_is_assumed) == (window, False)
    assert found.price_input and found.price_output
    assert found.supports_images is True
    assert cost_of(bedrock(model), model, Usage(1_000_000, 0)) > 0


@pytest.mark.parametrize(
    "model",
    [
        "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/team1",
        "nobody.nothing-v1:0",
    ],
)
def test_an_id_of_bedrock_that_says_nothing_is_not_guessed_from(model):
    found = capabilities(bedrock(model), model)
    assert (found.context_window, found.window_is_assumed) == (128_000, True)
    assert found.price_input is None
    assert cost_of(bedrock(model), model, Usage(10, 10)) is None


def test_a_regional_profile_costs_more_than_the_global_one():
    us, world = ("us.anthropic.claude-sonnet-5-5", "global.anthropic.claude-sonnet-5-5")
    prices = [capabilities(bedrock(model), model).price_input for model in (us, world)]
    assert prices[0] > prices[1]
    bare = "claude-sonnet-5-5"
    for region, price in (("us-east-1", prices[0]), ("ap-south-1", prices[1])):
        assert capabilities(bedrock(bare, region), bare).price_input == price
