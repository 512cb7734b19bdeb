"""How hard a model thinks before it answers: which models take a level, and how it is said.

A level is "off", "low", "medium" or "high"; "" leaves the model its own way. Models are known by
their names, from what Anthropic ("Extended thinking", "Effort"), Google ("Gemini thinking") and
OpenAI ("Reasoning") document; a name that isn't known takes none. A custom endpoint's models are
known by their entries alone (`supportsThinking`), so nothing is guessed.
"""

from __future__ import annotations

import re
from typing import Any

LEVELS = ("off", "low", "medium", "high")
_GRADES = LEVELS[1:]

# Of what a reply may have in tokens, thinking included; Anthropic wants 1,024 at the least.
_SHARES = {"low": 0.25, "medium": 0.5, "high": 0.75}
_LEAST_BUDGET = 1_024
_GEMINI_BUDGETS = {"off": 0, "low": 1_024, "medium": 8_192, "high": 24_576}

# These choose their budget themselves and take an effort; the first can do without thinking.
_ADAPTIVE_OR_OFF = ("claude-sonnet-4-6", "claude-opus-4-6", "claude-opus-4-7", "claude-opus-4-8")
_ADAPTIVE = (
    *_ADAPTIVE_OR_OFF,
    *("claude-sonnet-5", "claude-opus-5", "claude-haiku-5-5", "claude-fable-5", "claude-mythos-5"),
)
_BY_BUDGET = ("claude-3-7-sonnet", "claude-sonnet-4", "claude-opus-4", "claude-haiku-4")
_GEMINI = re.compile(
    r"gemini-(?P<version>2\.5|[3-9](\.[0-9]+)?)-(?P<size>pro|flash-lite|flash)(?!.*(image|tts|live))"
)
_OPENAI = re.compile(r"(gpt-5|o[1-9])(?![0-9])(?!.*(chat|audio|realtime|image))")


def levels_of(provider_type: str, model: str) -> tuple[str, ...]:
    """The levels that a model of a provider's own type takes."""
    if provider_type == "openai":
        return _GRADES if _OPENAI.match(model) else ()
    if found := _GEMINI.match(model.rpartition("/")[2]):
        if found["version"] == "3" and found["size"] == "pro":
            return ("low", "high")
        return LEVELS if found["version"] == "2.5" and found["size"] != "pro" else _GRADES
    claude = _claude(model)
    if claude.startswith(_ADAPTIVE_OR_OFF):
        return LEVELS
    return _GRADES if claude.startswith(_ADAPTIVE + _BY_BUDGET) else ()


def for_claude(model: str, level: str, max_tokens: int) -> dict[str, Any]:
    """The fields of an Anthropic Messages request, {} for none. The budget counts as output, so a
    reply too short for one is written without thinking."""
    if not level:
        return {}
    if _claude(model).startswith(_ADAPTIVE):
        if level == "off":
            return {"thinking": {"type": "disabled"}}
        return {"thinking": {"type": "adaptive"}, "output_config": {"effort": level}}
    if level == "off" or max_tokens < 2 * _LEAST_BUDGET:
        return {}
    budget = max(_LEAST_BUDGET, int(max_tokens * _SHARES[level]))
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def for_gemini(model: str, level: str) -> dict[str, Any]:
    """Gemini's `thinkingConfig`, {} for a model that can't think: asking such a one is refused."""
    found = _GEMINI.match(model.rpartition("/")[2])
    if not found:
        return {}
    if not level:
        return {"includeThoughts": True}
    if found["version"] != "2.5":
        return {"includeThoughts": True, "thinkingLevel": level.upper()}
    return {"includeThoughts": level != "off", "thinkingBudget": _GEMINI_BUDGETS[level]}


def _claude(model: str) -> str:
    """The name without what Bedrock and Vertex put around it; "" for another model."""
    start = model.find("claude-")
    return model[start:] if start >= 0 else ""
