"""The reference's JSON in and out: Craft Agents' `config.json`, both generations of it.

Three steps, none of which touches the database: `read` turns bytes into a `Document` or raises
`BadFile`; `plan` compares a document with what there is and says, connection by connection, what
would happen; `export` writes the older generation, with the reference's own field names.
`connections.transfer` carries a plan out.

Nothing is lost on the way: fields that mean nothing here go to `Connection.unknown_fields`, and
texts that had to be normalised to `Connection.imported_as`, under the reference's names (null: the
field wasn't there). Except secrets: what looks like one is left out, and the plan says so.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from connections.choices import AuthHeader, AuthType, MidStream, ProviderType, Wire
from connections.models import Connection
from connections.validation import (
    RESERVED_SLUGS,
    clean_connection,
    is_plain_json,
)
from workspaces.models import Workspace
from workspaces.slugs import make_slug

MAX_BYTES = 2 * 1024 * 1024
MAX_CONNECTIONS = 500
MAX_WORKSPACES = 1_000
MAX_ENTRY_CHARACTERS = 500_000
_MAX_DIGITS = 19

# The reference's names of what a connection holds as a plain value.
_PLAIN_FIELDS = {
    "name": "name",
    "slug": "slug",
    "providerType": "provider_type",
    "authType": "auth_type",
    "baseUrl": "base_url",
    "models": "models",
    "defaultModel": "default_model",
    "midStreamBehavior": "mid_stream_behavior",
    "codexPath": "codex_path",
    "awsRegion": "aws_region",
    "gcpProjectId": "gcp_project_id",
    "gcpRegion": "gcp_region",
    # Patchbay's own; the reference keeps them as unknown fields.
    "authHeader": "auth_header",
    "maxTokensField": "max_tokens_field",
    "enabled": "enabled",
    "note": "note",
}
# Absent in a file they stay as they are: the reference's newer version loses the first four when it
# saves, and never knew the others.
_KEPT_WHEN_ABSENT = (
    "awsRegion",
    "gcpProjectId",
    "gcpRegion",
    "codexPath",
    "authHeader",
    "maxTokensField",
    "enabled",
    "note",
)
_KNOWN = {*_PLAIN_FIELDS, "customEndpoint", "createdAt", "lastUsedAt"}
# Which fields an original text stands for: when one of them was edited, it isn't put back.
_STANDS_FOR = {
    "providerType": ("provider_type", "auth_type", "auth_header"),
    "authType": ("provider_type", "auth_type", "auth_header"),
    "piAuthProvider": ("provider_type", "auth_type", "auth_header"),
    "type": ("provider_type", "auth_type", "auth_header"),
    "baseUrl": ("base_url",),
    "models": ("models",),
    "defaultModel": ("default_model",),
    "customEndpoint": ("custom_endpoint_api", "supports_images"),
    "midStreamBehavior": ("mid_stream_behavior",),
    "codexPath": ("codex_path",),
}
# They name programs to run, or files and accounts of the server: never taken from a file.
_REACHING_FIELDS = frozenset(
    {"awsprofile", "command", "credentialprocess", "credentialsource", "executable"}
)
# Endpoints of the newer generation's providers that speak OpenAI's wire format.
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


class BadFile(Exception):
    """The file can't be used at all. The text is a sentence for the person who chose it; nothing
    was changed."""


class Result(models.TextChoices):
    NEW = "new", gettext_lazy("New")
    CHANGED = "changed", gettext_lazy("Changed")
    SAME = "same", gettext_lazy("Same as here")
    REFUSED = "refused", gettext_lazy("Refused")


@dataclass(frozen=True, slots=True)
class Item:
    """One connection of a file. `values` is what `clean_connection` gave (slug "" when the file has
    none), {} when `refused` has a reason. `given` names the reference's fields that were there.
    `notes` are sentences about what was left out or read in another way. `entry` is the file's own
    JSON, without what looked like a secret."""

    number: int
    slug: str
    name: str
    values: dict[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    unknown_fields: dict[str, Any] = field(default_factory=dict)
    imported_as: dict[str, Any] = field(default_factory=dict)
    created_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None
    notes: tuple[str, ...] = ()
    refused: str = ""
    entry: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class FileWorkspace:
    """A workspace of a file, as far as it names a default connection ("" when it doesn't)."""

    name: str
    slug: str
    default: str


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says. `default` is the slug of the global default, "" for none."""

    items: tuple[Item, ...] = ()
    default: str = ""
    workspaces: tuple[FileWorkspace, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """What becomes of one connection of the file. `values` are the whole new field values (for
    `changed` those of `changes` only differ); `changes` lists the fields that differ."""

    number: int
    slug: str
    name: str
    result: Result
    reason: str = ""
    notes: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    unknown_fields: dict[str, Any] = field(default_factory=dict)
    imported_as: dict[str, Any] = field(default_factory=dict)
    created_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None
    existing: Connection | None = None


@dataclass(frozen=True, slots=True)
class DefaultRow:
    """What becomes of a default: the global one (`workspace` None) or a workspace's. `reason` is
    "" when `slug` becomes the default."""

    label: str
    slug: str
    workspace: Workspace | None = None
    result: Result = Result.CHANGED
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    rows: tuple[Row, ...] = ()
    default: DefaultRow | None = None
    workspaces: tuple[DefaultRow, ...] = ()

    def count(self, result: Result) -> int:
        return sum(row.result == result for row in self.rows)


# -- reading ---------------------------------------------------------------------------------------


def read(data: bytes) -> Document:
    """What a file says. Raises `BadFile`; a connection that can't be taken is an `Item` with the
    reason, and doesn't keep the others out."""
    root = _parse(data)
    if not isinstance(root, dict):
        raise BadFile(_("This is not a Craft config: the file must hold one JSON object."))
    entries = root.get("llmConnections")
    own_workspace = entries is None and isinstance(root.get("defaults"), dict)
    if entries is None and not own_workspace:
        raise BadFile(
            _("This is not a Craft config: it has no “llmConnections”. Choose a config.json.")
        )
    if entries is not None and not isinstance(entries, list):
        raise BadFile(_("“llmConnections” must be a list of connections."))
    if len(entries or ()) > MAX_CONNECTIONS:
        raise BadFile(
            _("The file has more than %(most)s connections.") % {"most": f"{MAX_CONNECTIONS:,}"}
        )
    spaces = [root] if own_workspace else root.get("workspaces")
    if spaces is not None and not isinstance(spaces, list):
        raise BadFile(_("“workspaces” must be a list of workspaces."))
    if len(spaces or ()) > MAX_WORKSPACES:
        raise BadFile(
            _("The file has more than %(most)s workspaces.") % {"most": f"{MAX_WORKSPACES:,}"}
        )
    default = root.get("defaultLlmConnection")
    if default is not None and not isinstance(default, str):
        raise BadFile(_("“defaultLlmConnection” must be the slug of a connection."))
    return Document(
        items=tuple(_item(number, entry) for number, entry in enumerate(entries or (), 1)),
        default="" if own_workspace else (default or "").strip(),
        workspaces=tuple(_workspace(entry) for entry in spaces or ()),
    )


def _parse(data: bytes) -> Any:
    if len(data) > MAX_BYTES:
        raise BadFile(
            _("The file is larger than %(most)d MB. A config with connections is much smaller.")
            % {"most": MAX_BYTES // 1024 // 1024}
        )
    if not data.strip():
        raise BadFile(_("The file is empty."))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadFile(_("The file is not text in UTF-8. Choose a config.json.")) from None
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_number,
        )
    except json.JSONDecodeError as error:
        raise BadFile(
            _("The file is not valid JSON: look at line %(line)d, column %(column)d.")
            % {"line": error.lineno, "column": error.colno}
        ) from None
    except RecursionError:
        raise BadFile(_("The file is nested too deeply.")) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Two readers may each take another one of the two.
        raise BadFile(_("An object of the file has the same field twice. Remove one of them."))
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise BadFile(_("The file has a number with too many digits."))
    return int(text)


def _number(text: str) -> float:
    number = float(text.replace("Infinity", "inf"))
    if not math.isfinite(number):
        raise BadFile(_("The file has a number that is too large."))
    return number


def _workspace(entry: Any) -> FileWorkspace:
    if not isinstance(entry, dict):
        raise BadFile(_("Each entry of “workspaces” must be an object."))
    defaults = entry.get("defaults")
    places = (defaults if isinstance(defaults, dict) else {}, entry)
    default = next(
        (slug for p in places if isinstance(slug := p.get("defaultLlmConnection"), str)), ""
    )
    return FileWorkspace(_shown(entry.get("name")), _shown(entry.get("slug")), default.strip())


def _shown(value: Any) -> str:
    """A text of the file as it may be shown: short, and without control characters."""
    if not isinstance(value, str):
        return ""
    text = "".join(c for c in value[:200] if c.isprintable()).strip()
    return text if len(text) <= 100 else f"{text[:99]}…"


# -- one connection --------------------------------------------------------------------------------


class _Refused(Exception):
    """Why a connection of the file isn't taken."""


def _item(number: int, entry: Any) -> Item:
    if not isinstance(entry, dict):
        return Item(number, "", "", refused=_("This entry is not an object."))
    slug, name = _shown(entry.get("slug")), _shown(entry.get("name"))
    if has_secret_form(slug) or has_secret_form(name):
        reason = _("Its slug or name looks like a secret. Replace that secret: it was in clear.")
        return Item(number, "", "", refused=reason)
    try:
        return _accepted(number, slug, name, entry)
    except _Refused as refusal:
        return Item(number, slug, name, refused=str(refusal))


def _accepted(number: int, slug: str, name: str, entry: dict[str, Any]) -> Item:
    if not is_plain_json(entry):
        raise _Refused(_("It holds a character that can't be stored, or is nested too deeply."))
    if len(json.dumps(entry)) > MAX_ENTRY_CHARACTERS:
        raise _Refused(_("It is too long to be kept."))
    for key in entry:
        if re.sub(r"[^a-z]", "", key.lower()) in _REACHING_FIELDS:
            raise _Refused(
                _(
                    "It has the field “%(name)s”, which names a program or an account of the "
                    "machine. Remove the field."
                )
                % {"name": _shown(key)}
            )
    if not slug and not name:
        raise _Refused(_("It has neither a slug nor a name. Give it one of them."))
    left_out: list[str] = []
    entry = _without_secrets(entry, left_out)
    notes = [
        _("“%(name)s” looks like a secret and was left out. Enter it on the connection's page.")
        % {"name": path}
        for path in left_out
    ]
    fields, originals = _fields(entry, notes)
    result = clean_connection(fields)
    if not result.ok:
        raise _Refused(
            " ".join(f"{_camel(n)}: {s}" for n, found in result.errors.items() for s in found)
        )
    unknown = {k: v for k, v in entry.items() if k not in _KNOWN and k not in originals}
    base_url = entry.get("baseUrl")
    if isinstance(base_url, str) and base_url != result.values["base_url"]:
        originals["baseUrl"] = base_url
    return Item(
        number=number,
        slug=result.values["slug"],
        name=result.values["name"],
        values=result.values,
        given=frozenset(k for k, v in entry.items() if v is not None),
        unknown_fields=unknown,
        imported_as=originals,
        created_at=_moment(entry.get("createdAt")),
        last_used_at=_moment(entry.get("lastUsedAt")),
        notes=tuple(notes),
        entry=entry,
    )


def _fields(entry: dict[str, Any], notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry's fields under the model's names, not yet cleaned, and the originals of those that
    were read in another way. Raises `_Refused`."""
    fields: dict[str, Any] = {ours: entry.get(theirs) for theirs, ours in _PLAIN_FIELDS.items()}
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
        raise _Refused(_("customEndpoint: this must be an object."))
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
            raise _Refused(_("Its provider type and auth type must be texts."))
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
        raise _Refused(_copilot())
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
    raise _Refused(_("Its type “%(type)s” is unknown here.") % {"type": _shown(kind)})


def _newer_pair(entry: dict[str, Any], fields: dict[str, Any]) -> tuple[str, str | None]:
    auth, through = entry.get("authType"), entry.get("piAuthProvider")
    if entry["providerType"] == "pi_compat":
        endpoint = entry.get("customEndpoint")
        api = endpoint.get("api") if isinstance(endpoint, dict) else None
        kind = "anthropic_compat" if api == Wire.ANTHROPIC_MESSAGES else "openai_compat"
        return kind, "api_key_with_endpoint" if auth in _KEY_AUTHS else auth
    if through == "github-copilot":
        raise _Refused(_copilot())
    if through in _PI_OWN_TYPES:
        return _PI_OWN_TYPES[through].value, auth
    if through not in _PI_ENDPOINTS or auth not in _KEY_AUTHS:
        raise _Refused(
            _(
                "Its provider “%(provider)s” with the auth type “%(auth)s” isn't known here. Add "
                "it as an OpenAI-compatible endpoint with its address."
            )
            % {"provider": _shown(through), "auth": _shown(auth)}
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
            raise _Refused(
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


def _prefixed_list(given: list[Any]) -> list[Any]:
    return [
        {**entry, "id": _PI_PREFIX + entry["id"]} if isinstance(entry, dict) else _PI_PREFIX + entry
        for entry in given
    ]


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _moment(value: Any) -> dt.datetime | None:
    """Milliseconds since 1970, or None for what can't be that."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    try:
        return _EPOCH + dt.timedelta(milliseconds=value)
    except OverflowError:
        return None


def _milliseconds(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // dt.timedelta(milliseconds=1)


def _camel(name: str) -> str:
    return next((theirs for theirs, ours in _PLAIN_FIELDS.items() if ours == name), None) or {
        "custom_endpoint_api": "customEndpoint.api",
        "supports_images": "customEndpoint.supportsImages",
    }.get(name, name)


# -- what looks like a secret ----------------------------------------------------------------------

# Every repetition before something that must follow is bounded: a hostile text costs linear time.
_SECRET_VALUE = re.compile(
    r"""(?ix)
    \b(sk|rk)-[a-z0-9_-]{12,}
    | \b(sk|rk)_(live|test)_[a-z0-9]{8,}
    | \b(gsk|r8|hf|gh[opsu]|fw|vck|tgp_v1)_[a-z0-9_-]{16,}
    | \b(xai|pplx|csk|nvapi|glpat)-[a-z0-9_-]{20,}
    | \bxox[abprs]-[a-z0-9-]{10,}
    | \bgithub_pat_[a-z0-9_]{12,}
    | \bya29\.[a-z0-9_-]{12,}
    | \b(?-i:AKIA|ASIA|ABSK)[a-z0-9+/=]{12,}
    | \b(?-i:AIza)[a-z0-9_-]{20,}
    | \b(?-i:eyJ)[a-z0-9_-]{8,120}\.[a-z0-9_-]{4,}
    | -----BEGIN\s
    | \b(bearer|basic)\s{1,20}(?=[a-z._~+/=-]{0,200}[0-9])[a-z0-9._~+/=-]{8,}
    | ://[^/\s@]{1,500}@
    """
)
_RANDOM = re.compile(r"[A-Za-z0-9+=]{24,}")
_SECRET_WORDS = frozenset(
    {
        "apikey",
        "authorization",
        "bearer",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "headers",
        "jwt",
        "passphrase",
        "passwd",
        "password",
        "pwd",
        "secret",
        "secrets",
        "token",
    }
)
_KEY_WORDS = frozenset(
    {"access", "account", "api", "auth", "encryption", "master", "private", "secret", "signing"}
)


def has_secret_form(text: str) -> bool:
    """Whether a text has a provider's key, a token or a password in an address in it."""
    return _SECRET_VALUE.search(text) is not None


def looks_secret(text: str) -> bool:
    """`has_secret_form`, or a long run of mixed letters and digits; not for addresses and names,
    which may have one by nature."""
    return has_secret_form(text) or any(
        re.search("[0-9]", run) and re.search("[A-Za-z]", run) and len(set(run)) >= 10
        for run in _RANDOM.findall(text)
    )


def _names_secret(name: str) -> bool:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", spaced) if word]
    if _SECRET_WORDS.intersection(words) or words in (["key"], ["keys"]):
        return True
    return any(
        word in ("key", "keys") and before in _KEY_WORDS
        for before, word in itertools.pairwise(words)
    )


def _says_something(value: Any) -> bool:
    return value not in (None, "", [], {}) and not isinstance(value, bool)


def _without_secrets(value: Any, left_out: list[str], *, path: str = "") -> Any:
    """A copy of a connection's JSON without what looks like a secret, by name or by form.
    `left_out` gets the paths.

    The connection's own texts at the top aren't left out but refused: without its address or its
    model it would be another connection. Raises `_Refused`.
    """
    if isinstance(value, list):
        kept = []
        for number, inner in enumerate(value):
            where = f"{path}[{number}]"
            if isinstance(inner, str) and _check_of(where)(inner):
                left_out.append(_shown(where))
            else:
                kept.append(_without_secrets(inner, left_out, path=where))
        return kept
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, inner in value.items():
        where = f"{path}.{name}" if path else name
        own = where in _OWN_TEXTS
        if looks_secret(name):
            left_out.append(f"{path}.…" if path else "…")
        elif own and isinstance(inner, str) and _check_of(where)(inner):
            raise _Refused(
                _("%(name)s: this looks like a secret. Remove it, and replace that secret.")
                % {"name": name}
            )
        elif (isinstance(inner, str) and _check_of(where)(inner)) or (
            not own and _names_secret(name) and _says_something(inner)
        ):
            left_out.append(_shown(where))
        else:
            found[name] = _without_secrets(inner, left_out, path=where)
    return found


def _check_of(path: str) -> Callable[[str], bool]:
    long_by_nature = path in _LONG_BY_NATURE or _MODEL_TEXT.fullmatch(path)
    return has_secret_form if long_by_nature else looks_secret


_OWN_TEXTS = _KNOWN | {"piAuthProvider", "type"}
_LONG_BY_NATURE = {"baseUrl", "codexPath", "defaultModel", "name", "note", "slug"}
_MODEL_TEXT = re.compile(r"models\[[0-9]+\](\.(id|name|shortName))?")


# -- comparing -------------------------------------------------------------------------------------


def plan(
    document: Document,
    *,
    connections: Iterable[Connection],
    workspaces: Iterable[tuple[Workspace, str]] = (),
) -> Plan:
    """What an import would do. `connections` is every one there is, tombstones too; `workspaces`
    each with the slug of its default ("" for none). No query."""
    everything = {c.slug: c for c in connections}
    taken: set[str] = set()
    rows = []
    for item in document.items:
        row = _row(item, everything, taken)
        if row.result != Result.REFUSED:
            taken.add(row.slug)
        rows.append(row)
    reasons = {row.slug: row for row in rows if row.slug and row.result == Result.REFUSED}

    def found(slug: str) -> str:
        """Why a connection can't be a default; "" when it can."""
        if slug in taken or (slug in everything and everything[slug].deleted_at is None):
            return ""
        if slug in reasons:
            return _("The connection “%(slug)s” was refused.") % {"slug": _shown(slug)}
        return _("There is no connection “%(slug)s”.") % {"slug": _shown(slug)}

    default = None
    if document.default:
        reason = found(document.default)
        now = next((c.slug for c in everything.values() if c.is_default), "")
        default = DefaultRow(
            label=_("Global default"),
            slug=_shown(document.default),
            result=_default_result(reason, now == document.default),
            reason=reason,
        )
    return Plan(tuple(rows), default, tuple(_spaces(document, list(workspaces), found)))


def _default_result(reason: str, same: bool) -> Result:
    return Result.REFUSED if reason else Result.SAME if same else Result.CHANGED


def _spaces(
    document: Document, workspaces: list[tuple[Workspace, str]], found: Callable[[str], str]
) -> Iterable[DefaultRow]:
    for entry in document.workspaces:
        if not entry.default:
            continue
        label = entry.name or entry.slug or "?"
        matches = [w for w in workspaces if entry.slug and w[0].slug == entry.slug] or [
            w for w in workspaces if entry.name and w[0].name.casefold() == entry.name.casefold()
        ]
        if len(matches) != 1:
            reason = (
                _("Several workspaces have this name.")
                if matches
                else _("There is no workspace of this name. Make it first, then import again.")
            )
            yield DefaultRow(label, _shown(entry.default), None, Result.REFUSED, reason)
            continue
        space, now = matches[0]
        reason = found(entry.default)
        result = _default_result(reason, now == entry.default)
        yield DefaultRow(space.name, _shown(entry.default), space, result, reason)


def _row(item: Item, everything: Mapping[str, Connection], taken: set[str]) -> Row:
    def refused(reason: str) -> Row:
        return Row(item.number, item.slug, item.name, Result.REFUSED, reason, item.notes)

    if item.refused:
        return refused(item.refused)
    slug = item.slug or _slug_for(item.name, everything, taken)
    if slug in taken:
        return refused(_("Another connection of this file has the same slug; that one is taken."))
    existing = everything.get(slug)
    if existing is not None and existing.deleted_at is not None:
        return refused(
            _(
                "A connection with this slug was deleted and its sessions still name it. Use "
                "another slug."
            )
        )
    values = {**item.values, "slug": slug}
    values.pop("access", None)
    values.pop("paused_message", None)
    if existing is not None:
        for theirs in _KEPT_WHEN_ABSENT:
            if theirs not in item.given and not (theirs == "authHeader" and values["auth_header"]):
                values[_PLAIN_FIELDS[theirs]] = getattr(existing, _PLAIN_FIELDS[theirs])
    changes: tuple[str, ...] = ()
    notes, result = item.notes, Result.NEW
    if existing is not None:
        changes = _changes(existing, values, item)
        result = Result.CHANGED if changes else Result.SAME
        after = Connection(**{n: values[n] for n in ("provider_type", "auth_type", "base_url")})
        if after.needs_secret and after.binding != existing.binding:
            notes += (_("Its secret was entered for another address or sign-in: enter it again."),)
    return Row(
        number=item.number,
        slug=slug,
        name=item.name,
        result=result,
        notes=notes,
        changes=changes,
        values=values,
        unknown_fields=item.unknown_fields,
        imported_as=item.imported_as,
        created_at=item.created_at or (timezone.now() if existing is None else None),
        last_used_at=item.last_used_at,
        existing=existing,
    )


def _slug_for(name: str, everything: Mapping[str, Connection], taken: set[str]) -> str:
    """A slug for a name; the one of the connection that got its slug from the same name, so that
    the same file imported twice makes nothing twice."""
    first = make_slug(name, taken=lambda text: False, fallback="connection")
    there = everything.get(first)
    if there is not None and there.deleted_at is None and there.name == name and first not in taken:
        return first
    return make_slug(
        name,
        taken=lambda text: text in everything or text in taken or text in RESERVED_SLUGS,
        fallback="connection",
    )


def _changes(existing: Connection, values: Mapping[str, Any], item: Item) -> tuple[str, ...]:
    if _undated(item.entry) == _undated(export_connection(existing)):
        # Our own export, unedited: also where the rules of import would read it in another way.
        return ()
    changed = [name for name, value in values.items() if getattr(existing, name) != value]
    if existing.unknown_fields != item.unknown_fields:
        changed.append("unknown_fields")
    if existing.imported_as != item.imported_as:
        changed.append("imported_as")
    return tuple(changed)


def _undated(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in entry.items() if k not in ("createdAt", "lastUsedAt")}


# -- writing ---------------------------------------------------------------------------------------


def export(
    connections: Iterable[Connection], workspaces: Iterable[tuple[Workspace, str]] = ()
) -> dict[str, Any]:
    """The reference's JSON of these connections. `workspaces`: each with the slug of its default.

    Never with a secret: the sealed ones aren't read, and `read` left out those of unknown fields.
    No query.
    """
    connections = list(connections)
    document: dict[str, Any] = {
        "workspaces": [
            {
                "id": str(space.id),
                "name": space.name,
                "slug": space.slug,
                "createdAt": _milliseconds(space.created_at),
                "defaults": {"defaultLlmConnection": slug} if slug else {},
            }
            for space, slug in workspaces
        ]
    }
    if default := next((c.slug for c in connections if c.is_default), ""):
        document["defaultLlmConnection"] = default
    document["llmConnections"] = [export_connection(c) for c in connections]
    return document


def export_connection(connection: Connection) -> dict[str, Any]:
    """One connection. The original texts of an import stand again for the fields that weren't
    edited since."""
    plain: dict[str, Any] = {
        theirs: value
        for theirs, ours in _PLAIN_FIELDS.items()
        if (value := getattr(connection, ours)) not in ("", [], None)
    }
    if connection.enabled:
        plain.pop("enabled")
    endpoint: dict[str, Any] = {}
    if connection.custom_endpoint_api:
        endpoint["api"] = connection.custom_endpoint_api
    if connection.supports_images is not None:
        endpoint["supportsImages"] = connection.supports_images
    if endpoint:
        plain["customEndpoint"] = endpoint
    plain = _with_originals(plain, connection)
    plain["createdAt"] = _milliseconds(connection.created_at)
    if connection.last_used_at:
        plain["lastUsedAt"] = _milliseconds(connection.last_used_at)
    return {**connection.unknown_fields, **plain}


def _with_originals(plain: dict[str, Any], connection: Connection) -> dict[str, Any]:
    """An original is put back where reading it again gives what the connection is now."""
    originals = dict(connection.imported_as)
    while originals:
        candidate = {k: v for k, v in {**plain, **originals}.items() if v is not None}
        if str(candidate.get("providerType", "")).startswith("pi"):
            if "models" in candidate and "models" not in originals:
                candidate["models"] = _prefixed_list(candidate["models"])
            if "defaultModel" in candidate and "defaultModel" not in originals:
                candidate["defaultModel"] = _PI_PREFIX + candidate["defaultModel"]
        try:
            values = clean_connection(_fields(candidate, [])[0]).values
        except _Refused:
            return plain
        edited = {
            n for n, value in values.items() if n in _RESTORED and value != getattr(connection, n)
        }
        if not edited:
            return candidate
        remaining = {k: v for k, v in originals.items() if not edited.intersection(_STANDS_FOR[k])}
        if len(remaining) == len(originals):
            return plain
        originals = remaining
    return plain


_RESTORED = frozenset(name for names in _STANDS_FOR.values() for name in names)
