"""What the pattern library shows: one sample of everything, twice, for light and dark."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.core.paginator import Paginator
from django.utils import timezone

from connections.health import Day, Strip


class SampleForm(forms.Form):
    """One field of each kind; bound and wrong, so that errors show."""

    name = forms.CharField(help_text="As people will see it.")
    provider = forms.ChoiceField(
        choices=[("anthropic", "Anthropic"), ("openai_compat", "OpenAI-compatible endpoint")]
    )
    base_url = forms.URLField(
        label="Base URL", help_text="The address without /chat/completions.", assume_scheme="https"
    )
    api_key = forms.CharField(
        label="API key",
        required=False,
        widget=forms.PasswordInput,
        help_text="Stored, ends in …x7Q2. Leave blank to keep.",
    )
    models = forms.CharField(required=False, widget=forms.Textarea(attrs={"data-mono": True}))
    mid_stream = forms.ChoiceField(
        label="Messages sent mid-stream",
        widget=forms.RadioSelect,
        choices=[("", "Provider default"), ("steer", "Steer immediately"), ("queue", "Queue")],
        required=False,
    )
    supports_images = forms.BooleanField(
        label="Takes images", required=False, help_text="Every model of this endpoint does."
    )


def samples(side: str) -> dict[str, Any]:
    """The context of one side; `side` ("light" or "dark") is its theme and keeps ids apart."""
    now = timezone.now()
    return {
        "side": side,
        "now": now,
        "tones": ["neutral", "info", "accent", "success", "warning", "danger"],
        "form": SampleForm(
            {f"{side}-name": "OpenRouter", f"{side}-base_url": "x", f"{side}-models": "gpt-5"},
            prefix=side,
            auto_id=f"{side}-%s",
        ),
        "crumbs": [{"label": "Connections", "url": "#"}, {"label": "OpenRouter"}],
        "rungs": [
            {"label": "Configuration", "outcome": "passed", "ms": 2},
            {"label": "Network", "outcome": "passed", "ms": 48},
            {
                "label": "Authentication",
                "outcome": "failed",
                "ms": 212,
                "sentence": "The provider rejected this key. Paste a new key and validate again.",
                "detail": "401 invalid_api_key",
            },
            {"label": "Models", "outcome": "running"},
            {"label": "Answer", "outcome": "not_tested", "sentence": "Not tested"},
        ],
        "differences": [
            {"field": "name", "old": "Gateway", "new": "Team gateway"},
            {
                "field": "baseUrl",
                "old": "https://old-gateway.example.com/v1",
                "new": "https://gateway.example.org/v1",
            },
            {"field": "midStreamBehavior", "old": "", "new": "queue"},
            {"field": "note", "old": "Ask Dora for the key.", "new": ""},
            {"field": "authType", "old": "api_key", "new": "bearer_token", "kept_only": True},
        ],
        "bars": [
            {
                "tone": "danger" if n in (9, 10) else "warning" if n == 21 else "success",
                "level": 1 + (n * 7) % 5,
                "label": f"Probe {n}",
            }
            for n in range(30)
        ],
        "strip": Strip(
            [
                Day(
                    now.date() - timedelta(days=29 - n),
                    passed=4 * bool(n % 9),
                    failed=int(n % 7 == 6),
                )
                for n in range(30)
            ]
        ),
        "cards": [
            {
                "name": "Anthropic",
                "slug": "anthropic",
                "tone": "success",
                "status": "Valid",
                "checked_at": now - timedelta(minutes=12),
                "model": "claude-sonnet-4-5",
                "context_window": 200_000,
                "images": True,
                "mid_stream": "Queue until ready",
                "price": "$3 in, $15 out per million tokens",
            },
            {
                "name": "Office vLLM",
                "slug": "office-vllm",
                "tone": "danger",
                "status": "Failed",
                "checked_at": now - timedelta(hours=5),
                "model": "qwen3-32b",
                "context_window": 128_000,
                "window_assumed": True,
                "images": False,
                "mid_stream": "Steer immediately",
            },
            {
                "name": "Bedrock EU",
                "slug": "bedrock-eu",
                "tone": "neutral",
                "status": "Paused",
                "model": "claude-haiku-4-5",
                "context_window": 200_000,
                "images": True,
                "mid_stream": "Steer immediately",
                "problem": "Paused by an admin: the contract is being renewed.",
            },
        ],
        "page": Paginator(range(120), 25).page(2),
        "moments": [now, now - timedelta(minutes=7), now - timedelta(days=2), None],
        "numbers": [950, 1_250, 128_000, 1_000_000],
        "durations": [87, 1_240, 240_000],
    }
