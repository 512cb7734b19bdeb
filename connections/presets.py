"""Ready-made beginnings of a connection: what the form is filled with by `?preset=`, and what the
short path (`views_start`) asks for.

The model ids of the providers' own types and of OpenRouter are in the bundled price table; those of
somebody's own server can't be known.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from connections.choices import (
    SECRET_FIELDS,
    AuthHeader,
    AuthType,
    MaxTokensField,
    ProviderType,
    Wire,
)


class Group(enum.Enum):
    """The headings that the cards stand under, in this order; the last is folded."""

    KEY = _("With an API key")
    OWN = _("Your own models")
    CLOUD = _("Your cloud account")
    OTHER = _("Other ways")


@dataclass(frozen=True, slots=True)
class Preset:
    """`values` are the form's fields by name; `note` says in a line what it is for. Where its key
    is to be had: `key_url`, the provider's page for it, and `key_from`, that page in words."""

    key: str
    name: str | Promise
    note: str | Promise
    icon: str
    values: Mapping[str, Any] = field(default_factory=dict)
    group: Group = Group.OTHER
    key_from: str | Promise = ""
    key_url: str = ""

    @property
    def initial(self) -> dict[str, Any]:
        return {"name": str(self.name), **self.values}

    @property
    def asks(self) -> tuple[str, ...]:
        """The form's fields that a person has to fill in: what the values can't know."""
        named = self.values
        asked: list[str] = []
        if ProviderType(named["provider_type"]).is_compat and not named.get("base_url"):
            asked = ["name", "base_url"]
        if named["auth_type"] == AuthType.NONE:
            asked = ["base_url"]
        asked += [name for name in ("aws_region", "gcp_region") if name in named]
        if named["provider_type"] == ProviderType.VERTEX:
            asked.insert(0, "gcp_project_id")
        asked += SECRET_FIELDS[AuthType(named["auth_type"])]
        if not named.get("models"):
            asked.append("default_model")
        return tuple(asked)


def _anthropic(auth: AuthType) -> dict[str, Any]:
    return {
        "provider_type": ProviderType.ANTHROPIC,
        "auth_type": auth,
        "models": "claude-sonnet-5-5\nclaude-opus-5-5\nclaude-haiku-5-5",
        "default_model": "claude-sonnet-5-5",
    }


def _bedrock(auth: AuthType) -> dict[str, Any]:
    return {
        "provider_type": ProviderType.BEDROCK,
        "auth_type": auth,
        "aws_region": "us-east-1",
        "models": "global.anthropic.claude-sonnet-5-5\nglobal.anthropic.claude-haiku-5-5",
        "default_model": "global.anthropic.claude-sonnet-5-5",
    }


def _vertex(auth: AuthType) -> dict[str, Any]:
    return {
        "provider_type": ProviderType.VERTEX,
        "auth_type": auth,
        "gcp_region": "global",
        "models": "gemini-3.8-flash\ngemini-3.5-flash-lite\nclaude-sonnet-5-5\nclaude-haiku-5-5",
        "default_model": "gemini-3.8-flash",
    }


def _openai_compat(base_url: str, *, auth: AuthType = AuthType.API_KEY_WITH_ENDPOINT) -> dict:
    return {
        "provider_type": ProviderType.OPENAI_COMPAT,
        "auth_type": auth,
        "base_url": base_url,
        "custom_endpoint_api": Wire.OPENAI_COMPLETIONS,
    }


_CLAUDE_ELSEWHERE = {
    "models": "anthropic/claude-sonnet-5.5\nanthropic/claude-haiku-5.5",
    "default_model": "anthropic/claude-sonnet-5.5",
}

PRESETS: dict[str, Preset] = {
    preset.key: preset
    for preset in (
        Preset(
            "anthropic",
            "Anthropic",
            _("Claude, with an API key from the Anthropic console."),
            "key",
            _anthropic(AuthType.API_KEY),
            group=Group.KEY,
            key_from="console.anthropic.com",
            key_url="https://console.anthropic.com/settings/keys",
        ),
        Preset(
            "claude-oauth",
            "Claude",
            _("Claude, by signing in with an account instead of a key."),
            "user",
            _anthropic(AuthType.OAUTH),
        ),
        Preset(
            "openai",
            "OpenAI",
            _("GPT models, with an API key from the OpenAI platform."),
            "key",
            {
                **_openai_compat("https://api.openai.com/v1"),
                "max_tokens_field": MaxTokensField.MAX_COMPLETION_TOKENS,
                "models": "gpt-6.1-sol\ngpt-6-luna",
                "default_model": "gpt-6.1-sol",
            },
            group=Group.KEY,
            key_from="platform.openai.com",
            key_url="https://platform.openai.com/api-keys",
        ),
        Preset(
            "openrouter",
            "OpenRouter",
            _("Many models behind one key, in the OpenAI wire format."),
            "route",
            {**_openai_compat("https://openrouter.ai/api/v1"), **_CLAUDE_ELSEWHERE},
            group=Group.KEY,
            key_from="openrouter.ai",
            key_url="https://openrouter.ai/settings/keys",
        ),
        Preset(
            "openrouter-anthropic",
            "OpenRouter (Anthropic)",
            _("OpenRouter's Claude models, in the Anthropic wire format."),
            "route",
            {
                "provider_type": ProviderType.ANTHROPIC_COMPAT,
                "auth_type": AuthType.API_KEY_WITH_ENDPOINT,
                "base_url": "https://openrouter.ai/api",
                "custom_endpoint_api": Wire.ANTHROPIC_MESSAGES,
                "auth_header": AuthHeader.BEARER,
                **_CLAUDE_ELSEWHERE,
            },
            key_from="openrouter.ai",
            key_url="https://openrouter.ai/settings/keys",
        ),
        Preset(
            "bedrock",
            "AWS Bedrock",
            _("Claude and others in your AWS account, with IAM credentials."),
            "cloud",
            _bedrock(AuthType.IAM_CREDENTIALS),
            group=Group.CLOUD,
            key_from=_("AWS console (IAM)"),
            key_url="https://console.aws.amazon.com/iam/home#/users",
        ),
        Preset(
            "bedrock-environment",
            _("AWS Bedrock (environment)"),
            _("The same, with the role or profile that this server runs under."),
            "cloud",
            _bedrock(AuthType.ENVIRONMENT),
        ),
        Preset(
            "vertex",
            "Google Vertex AI",
            _("Gemini and Claude in your Google Cloud project, with a service account's key."),
            "cloud",
            _vertex(AuthType.SERVICE_ACCOUNT_FILE),
            group=Group.CLOUD,
            key_from=_("Google Cloud console"),
            key_url="https://console.cloud.google.com/iam-admin/serviceaccounts",
        ),
        Preset(
            "vertex-environment",
            _("Google Vertex AI (environment)"),
            _("The same, with the default credentials that this server runs under."),
            "cloud",
            _vertex(AuthType.ENVIRONMENT),
        ),
        Preset(
            "codex",
            "OpenAI (Codex)",
            _("OpenAI's models through the Codex agent on this server."),
            "terminal-2",
            {
                "provider_type": ProviderType.OPENAI,
                "auth_type": AuthType.API_KEY,
                "models": "gpt-6.1-sol\ngpt-6-luna",
                "default_model": "gpt-6.1-sol",
            },
            key_from="platform.openai.com",
            key_url="https://platform.openai.com/api-keys",
        ),
        Preset(
            "vercel",
            "Vercel AI Gateway",
            _("Many providers behind Vercel's gateway and one key."),
            "bolt",
            {**_openai_compat("https://ai-gateway.vercel.sh/v1"), **_CLAUDE_ELSEWHERE},
            group=Group.KEY,
            key_from="vercel.com",
            key_url="https://vercel.com/docs/ai-gateway/authentication",
        ),
        Preset(
            "ollama",
            "Ollama",
            _("Open models, on this machine or in your network."),
            "device-desktop",
            _openai_compat("http://127.0.0.1:11434/v1", auth=AuthType.NONE),
            group=Group.OWN,
        ),
        Preset(
            "lm-studio",
            "LM Studio",
            _("Models that LM Studio serves on this machine."),
            "device-desktop",
            _openai_compat("http://127.0.0.1:1234/v1", auth=AuthType.NONE),
            group=Group.OWN,
        ),
        Preset(
            "vllm",
            "vLLM",
            _("Your own inference server. Enter its address."),
            "server",
            _openai_compat("", auth=AuthType.API_KEY_WITH_ENDPOINT),
            group=Group.OWN,
            key_from=_("the one it was started with"),
        ),
        Preset(
            "openai-compatible",
            _("OpenAI-compatible"),
            _("Any endpoint that speaks OpenAI Chat Completions."),
            "plug-connected",
            _openai_compat(""),
            group=Group.OWN,
            key_from=_("from whoever runs it"),
        ),
        Preset(
            "anthropic-compatible",
            _("Anthropic-compatible"),
            _("Any endpoint that speaks Anthropic Messages."),
            "plug-connected",
            {
                "provider_type": ProviderType.ANTHROPIC_COMPAT,
                "auth_type": AuthType.API_KEY_WITH_ENDPOINT,
                "custom_endpoint_api": Wire.ANTHROPIC_MESSAGES,
            },
            key_from=_("from whoever runs it"),
        ),
    )
}


def by_group() -> list[tuple[Group, list[Preset]]]:
    return [(group, [one for one in PRESETS.values() if one.group is group]) for group in Group]
