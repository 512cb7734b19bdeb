"""How hard a model thinks: which take a level, and what each wire says of it."""

from __future__ import annotations

import pytest

from connections.capabilities import capabilities
from connections.providers.base import ModelRequest, Turnlet
from connections.providers.thinking import levels_of
from connections.providers.wire.anthropic_messages import AnthropicMessages
from connections.providers.wire.converse import Converse
from connections.providers.wire.gemini import Gemini
from connections.providers.wire.openai_completions import OpenAICompletions
from tests.builders import make_connection

ALL, GRADES = ("off", "low", "medium", "high"), ("low", "medium", "high")


def asking(model, level, max_tokens=16_384):
    said = [Turnlet("user", [{"t": "text", "text": "hello"}])]
    return ModelRequest(model=model, history=said, max_tokens=max_tokens, thinking=level)


@pytest.mark.parametrize(
    ("kind", "model", "levels"),
    [
        ("anthropic", "claude-sonnet-4-5-20250929", GRADES),
        ("anthropic", "claude-3-7-sonnet-latest", GRADES),
        ("anthropic", "claude-sonnet-4-6", ALL),
        ("anthropic", "claude-opus-5-5", GRADES),
        ("anthropic", "claude-3-5-haiku-latest", ()),
        ("anthropic", "something-new", ()),
        ("bedrock", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0", GRADES),
        ("bedrock", "amazon.nova-pro-v1:0", ()),
        ("vertex", "claude-opus-4-1@20250805", GRADES),
        ("vertex", "gemini-2.5-flash", ALL),
        ("vertex", "gemini-2.5-pro", GRADES),
        ("vertex", "publishers/google/models/gemini-3-pro-preview", ("low", "high")),
        ("vertex", "gemini-3.1-pro-preview", GRADES),
        ("vertex", "gemini-2.5-flash-image", ()),
        ("vertex", "gemini-2.0-flash", ()),
        ("openai", "gpt-5.2-codex", GRADES),
        ("openai", "o3", GRADES),
        ("openai", "gpt-4.1", ()),
    ],
)
def test_levels_are_known_by_the_name(kind, model, levels):
    assert levels_of(kind, model) == levels


@pytest.mark.django_db
@pytest.mark.parametrize(("entry", "levels"), [({"supportsThinking": True}, GRADES), ({}, ())])
def test_a_custom_endpoints_model_says_it_itself(entry, levels):
    one = make_connection("own", models=[{"id": "claude-sonnet-4-5", **entry}])
    assert capabilities(one, "claude-sonnet-4-5").thinking == levels


@pytest.mark.parametrize(
    ("model", "level", "max_tokens", "fields"),
    [
        (
            "claude-sonnet-4-5",
            "medium",
            16_384,
            {"thinking": {"type": "enabled", "budget_tokens": 8_192}},
        ),
        (
            "claude-sonnet-4-5",
            "low",
            2_048,
            {"thinking": {"type": "enabled", "budget_tokens": 1_024}},
        ),
        ("claude-sonnet-4-5", "high", 2_047, {}),
        ("claude-sonnet-4-5", "", 16_384, {}),
        (
            "claude-opus-4-6",
            "high",
            1_000,
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        ),
        ("claude-opus-4-6", "off", 1_000, {"thinking": {"type": "disabled"}}),
        ("claude-opus-4-6", "", 1_000, {}),
    ],
)
def test_claude_is_told_by_a_budget_or_an_effort(model, level, max_tokens, fields):
    names = {"thinking", "output_config"}
    body = AnthropicMessages().body(asking(model, level, max_tokens))
    assert {name: body[name] for name in names & body.keys()} == fields
    on_bedrock = Converse().body(asking(f"anthropic.{model}", level, max_tokens))
    assert on_bedrock.get("additionalModelRequestFields", {}) == fields


@pytest.mark.parametrize(
    ("model", "level", "config"),
    [
        ("gemini-2.5-flash", "", {"includeThoughts": True}),
        ("gemini-2.5-flash", "off", {"includeThoughts": False, "thinkingBudget": 0}),
        ("gemini-2.5-pro", "high", {"includeThoughts": True, "thinkingBudget": 24_576}),
        ("gemini-3-pro-preview", "low", {"includeThoughts": True, "thinkingLevel": "LOW"}),
        ("gemini-2.0-flash", "", None),
    ],
)
def test_gemini_is_told_by_a_budget_or_a_level(model, level, config):
    body = Gemini("publishers/google/models/x").body(asking(model, level))
    assert body["generationConfig"].get("thinkingConfig") == config


def test_openais_wire_is_told_by_an_effort():
    assert OpenAICompletions().body(asking("any", "low"))["reasoning_effort"] == "low"
    assert "reasoning_effort" not in OpenAICompletions().body(asking("any", ""))


@pytest.mark.django_db
def test_what_a_model_thinks_counts_as_output():
    can = capabilities(make_connection("own", models=[{"id": "m", "supportsThinking": True}]), "m")
    assert can.output_for("", None) == 4_096
    assert can.output_for("high", None) == 16_384
    assert can.output_for("high", 2_000) == 2_000
    assert can.output_for("", 1_000_000) == 64_000  # half of the window
