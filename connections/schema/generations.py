"""The words of each generation of the reference, translated to ours and back.

`fields_of` reads an entry of any generation. `worded` writes one in the generation asked for, or
says that it has no place there.

    reference    the reference page, up to 0.5.0: six provider types
    pi           from 0.5.1 on: `anthropic`, `pi` (with `piAuthProvider`) and `pi_compat`
    own          each entry in the words it was brought in with, else the reference's
"""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from connections.choices import AuthHeader, AuthType, MidStream, ProviderType, Wire
from connections.models import Connection
from connections.schema.document import PLAIN_FIELDS, Refused
from connections.schema.redaction import shown


class Generation(models.TextChoices):
    OWN = "own", gettext_lazy("As brought in")
    REFERENCE = "reference", gettext_lazy("Craft Agents up to 0.5.0")
    PI = "pi", gettext_lazy("Craft Agents from 0.5.1 on")


_PI_ENDPOINTS = {
    "cerebras": "https://api.cerebras.ai/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "google": "https://generativelanguage.googleapis.com/v1beta/openai",
    "groq": "https://api.groq.com/openai/v1",
    "huggingface": "https://router.huggingface.co/v1",
    "mistral": "https://api.mistral.ai/v1",
    "openai": "https://api.openai.com/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "together": "https://api.together.xyz/v1",
    "vercel-ai-gateway": "https://ai-gateway.vercel.sh/v1",
    "xai": "https://api.x.ai/v1",
    "zai": "https://api.z.ai/api/paas/v4",
}
_PI_OWN_TYPES = {
    "amazon-bedrock": ProviderType.BEDROCK,
    "anthropic": ProviderType.ANTHROPIC,
    "google-vertex": ProviderType.VERTEX,
    "openai-codex": ProviderType.OPENAI,
}
_PI_PREFIX = "pi/"
_BEARER_TOKEN = "bearer_token"  # noqa: S105 (the name of an auth type)
_KEY_AUTHS = ("api_key", "api_key_with_endpoint", _BEARER_TOKEN)
# What each generation takes itself, besides what was brought in from it.
_PAIRS = {
    Generation.REFERENCE: {
        "anthropic": ("api_key", "oauth"),
        "anthropic_compat": ("api_key_with_endpoint",),
        "openai": ("api_key", "oauth"),
        "openai_compat": ("api_key_with_endpoint", "none"),
        "bedrock": (_BEARER_TOKEN, "iam_credentials", "environment"),
        "vertex": ("service_account_file", "environment"),
    },
    Generation.PI: {
        "anthropic": ("api_key", "oauth"),
        "pi": ("api_key", "oauth", "iam_credentials", "environment", "none"),
        "pi_compat": ("api_key_with_endpoint", "none"),
    },
}
# Our pair → what the newer generation calls it.
_PI_WORDS = {
    ("openai", "oauth"): "openai-codex",
    ("openai", "api_key"): "openai",
    ("bedrock", "iam_credentials"): "amazon-bedrock",
    ("bedrock", "environment"): "amazon-bedrock",
    ("vertex", "environment"): "google-vertex",
}


# -- reading ---------------------------------------------------------------------------------------


def fields_of(entry: dict[str, Any], notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry's fields under the model's names, not yet cleaned, and the originals of those that
    were read in another way. Raises `Refused`."""
    fields: dict[str, Any] = {ours: entry.get(theirs) for theirs, ours in PLAIN_FIELDS.items()}
    fields["name"] = fields["name"] or fields["slug"]
    originals: dict[str, Any] = {}
    _translate_pair(entry, fields, originals)
    if str(originals.get("providerType", "")).startswith("pi"):
        fields["models"] = _unprefixed_list(fields["models"])
        fields["default_model"] = _unprefixed(fields["default_model"])
        for theirs, ours in (("models", "models"), ("defaultModel", "default_model")):
            if fields[ours] != entry.get(theirs):
                originals[theirs] = entry[theirs]
    if not fields["default_model"] and isinstance(fields["models"], list) and fields["models"]:
        first = fields["models"][0]
        fields["default_model"] = first.get("id") if isinstance(first, dict) else first
        originals.setdefault("defaultModel", entry.get("defaultModel"))
    if fields["mid_stream_behavior"] not in (None, "", *MidStream.values):
        originals["midStreamBehavior"] = fields["mid_stream_behavior"]
        fields["mid_stream_behavior"] = ""
        notes.append(_("Its mid-stream behaviour is unknown here: the provider's default counts."))
    _read_endpoint(entry.get("customEndpoint"), fields, originals)
    path = fields["codex_path"]
    if path not in (None, "", *settings.CODEX_PATHS):
        originals["codexPath"], fields["codex_path"] = path, ""
        notes.append(
            _(
                "Its Codex binary isn't one that the operator allows (PATCHBAY_CODEX_PATHS), so it "
                "isn't used here."
            )
        )
    return fields, originals


def _read_endpoint(given: Any, fields: dict[str, Any], originals: dict[str, Any]) -> None:
    if given is None:
        return
    if not isinstance(given, dict):
        raise Refused(_("customEndpoint: this must be an object."))
    fields["custom_endpoint_api"] = given.get("api")
    fields["supports_images"] = given.get("supportsImages")
    if set(given) - {"api", "supportsImages"}:
        originals["customEndpoint"] = given


def _translate_pair(
    entry: dict[str, Any], fields: dict[str, Any], originals: dict[str, Any]
) -> None:
    """Provider type and auth type of any generation, as the pair that counts here."""
    provider, auth = entry.get("providerType"), entry.get("authType")
    for value in (provider, auth, entry.get("piAuthProvider"), entry.get("type")):
        if value is not None and not isinstance(value, str):
            raise Refused(_("Its provider type and auth type must be texts."))
    if provider is None and entry.get("type") is not None:
        pair = _oldest_pair(entry["type"], auth)
        originals |= {"type": entry["type"], "providerType": None, "authType": auth}
    elif provider in ("pi", "pi_compat"):
        pair = _newer_pair(entry, fields)
        originals |= {"providerType": provider, "authType": auth}
        if "piAuthProvider" in entry:
            originals["piAuthProvider"] = entry["piAuthProvider"]
        if fields["base_url"] != entry.get("baseUrl"):
            originals["baseUrl"] = entry.get("baseUrl")
    elif provider in ("copilot", "github-copilot"):
        raise Refused(_copilot())
    else:
        pair = (provider, auth)
    provider, auth = _settle(*pair, fields)
    if (provider, auth) != (entry.get("providerType"), entry.get("authType")):
        originals.setdefault("providerType", entry.get("providerType"))
        originals.setdefault("authType", entry.get("authType"))
    fields["provider_type"], fields["auth_type"] = provider, auth


def _copilot() -> str:
    return _("GitHub Copilot works only inside its own editors. Use another provider.")


def _oldest_pair(kind: str, auth: str | None) -> tuple[str, str | None]:
    if kind == "openai-compat":
        return "openai_compat", "none" if auth in (None, "none") else "api_key_with_endpoint"
    if kind in ("anthropic", "openai"):
        return kind, auth
    raise Refused(_("Its type “%(type)s” is unknown here.") % {"type": shown(kind)})


def _newer_pair(entry: dict[str, Any], fields: dict[str, Any]) -> tuple[str, str | None]:
    auth, through = entry.get("authType"), entry.get("piAuthProvider")
    if entry["providerType"] == "pi_compat":
        endpoint = entry.get("customEndpoint")
        api = endpoint.get("api") if isinstance(endpoint, dict) else None
        kind = "anthropic_compat" if api == Wire.ANTHROPIC_MESSAGES else "openai_compat"
        return kind, "api_key_with_endpoint" if auth in _KEY_AUTHS else auth
    if through == "github-copilot":
        raise Refused(_copilot())
    if through in _PI_OWN_TYPES:
        return _PI_OWN_TYPES[through].value, auth
    if through not in _PI_ENDPOINTS or auth not in _KEY_AUTHS:
        raise Refused(
            _(
                "Its provider “%(provider)s” with the auth type “%(auth)s” isn't known here. Add "
                "it as an OpenAI-compatible endpoint with its address."
            )
            % {"provider": shown(through), "auth": shown(auth)}
        )
    fields["base_url"] = fields["base_url"] or _PI_ENDPOINTS[through]
    return "openai_compat", "api_key_with_endpoint"


def _settle(
    provider: str | None, auth: str | None, fields: dict[str, Any]
) -> tuple[str | None, str | None]:
    """The rules that hold for every generation: foreign hosts, bearer tokens."""
    base_url = fields["base_url"]
    if provider == ProviderType.ANTHROPIC:
        foreign = isinstance(base_url, str) and base_url and not _is_anthropic(base_url)
        if (foreign and auth in _KEY_AUTHS) or (auth == _BEARER_TOKEN and base_url):
            if auth == _BEARER_TOKEN:
                fields["auth_header"] = fields["auth_header"] or AuthHeader.BEARER.value
            return "anthropic_compat", "api_key_with_endpoint"
        if foreign and auth == AuthType.NONE:
            return "anthropic_compat", "none"
        if foreign:
            raise Refused(
                _("baseUrl: this sign-in goes only to Anthropic itself. Remove the address.")
            )
        if auth in _KEY_AUTHS:
            return provider, "api_key"
    if auth == _BEARER_TOKEN:
        if provider == ProviderType.ANTHROPIC_COMPAT:
            fields["auth_header"] = fields["auth_header"] or AuthHeader.BEARER.value
        if provider in (ProviderType.ANTHROPIC_COMPAT, ProviderType.OPENAI_COMPAT):
            return provider, "api_key_with_endpoint"
        if provider == ProviderType.OPENAI and base_url:
            return provider, "api_key_with_endpoint"
        return provider, "api_key"
    return provider, auth


def _is_anthropic(base_url: str) -> bool:
    try:
        host = (urlsplit(base_url.strip()).hostname or "").rstrip(".")
    except ValueError:
        return False
    return host == "anthropic.com" or host.endswith(".anthropic.com")


def _unprefixed(model: Any) -> Any:
    return model.removeprefix(_PI_PREFIX) if isinstance(model, str) else model


def _unprefixed_list(given: Any) -> Any:
    if not isinstance(given, list):
        return given
    return [
        {**entry, "id": _unprefixed(entry["id"])}
        if isinstance(entry, dict) and "id" in entry
        else _unprefixed(entry)
        for entry in given
    ]


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def moment(value: Any) -> dt.datetime | None:
    """Milliseconds since 1970, or None for what can't be that."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    try:
        return _EPOCH + dt.timedelta(milliseconds=value)
    except OverflowError:
        return None


def milliseconds(date: dt.datetime) -> int:
    return (date - _EPOCH) // dt.timedelta(milliseconds=1)


# -- writing ---------------------------------------------------------------------------------------

# The originals of an import that are words of its generation; the others hold in any.
WORDS = frozenset(
    {"providerType", "authType", "piAuthProvider", "type", "models", "defaultModel", "baseUrl"}
)


def speaks(entry: dict[str, Any], generation: Generation, *, brought_in: bool) -> bool:
    """Whether an entry stands in the words of a generation. `brought_in`: its pair is what a file
    said, and is given back as it was, also where that version has a narrower list."""
    provider, auth = entry.get("providerType"), entry.get("authType")
    pairs = _PAIRS[generation]
    if brought_in:
        return provider in pairs or (provider is None and generation == Generation.REFERENCE)
    return auth in pairs.get(provider or "", ())


def worded(entry: dict[str, Any], connection: Connection, generation: Generation) -> dict[str, Any]:
    """An entry in our words in those of a generation. Raises `Refused` with the reason when that
    one has no place for its pair."""
    pair = (connection.provider_type, connection.auth_type)
    if generation == Generation.REFERENCE:
        auth = _BEARER_TOKEN if pair == ("bedrock", "api_key") else connection.auth_type
        entry = {**entry, "authType": auth}
    elif ProviderType(connection.provider_type).is_compat:
        endpoint = {**entry.get("customEndpoint", {}), "api": connection.wire}
        entry = {**entry, "providerType": "pi_compat", "customEndpoint": endpoint}
    elif pair in _PI_WORDS:
        entry = prefixed({**entry, "providerType": "pi", "piAuthProvider": _PI_WORDS[pair]})
    if not speaks(entry, generation, brought_in=False):
        raise Refused(
            _("%(generation)s has no place for “%(provider)s” with “%(auth)s”.")
            % {
                "generation": generation.label,
                "provider": connection.get_provider_type_display(),
                "auth": connection.get_auth_type_display(),
            }
        )
    return entry


def prefixed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the type `pi` with its models' ids under the prefix."""
    found = dict(entry)
    if "models" in found:
        found["models"] = [
            {**model, "id": _PI_PREFIX + model["id"]}
            if isinstance(model, dict)
            else _PI_PREFIX + model
            for model in found["models"]
        ]
    if "defaultModel" in found:
        found["defaultModel"] = _PI_PREFIX + found["defaultModel"]
    return found
