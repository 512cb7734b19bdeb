"""What a connection's fields may hold: one set of rules for the form, the import and the admin.

Pure functions: no query, no network. The small ones return the clean value or raise Django's
`ValidationError` with a sentence for a person; `clean_connection` and `clean_secret` collect the
sentences by field. Field names are those of the model and the form.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import idna
from django.conf import settings
from django.core.exceptions import ValidationError
from django.utils.formats import number_format
from django.utils.translation import gettext as _

from connections.choices import (
    ALLOWED_AUTH,
    SECRET_FIELDS,
    AuthHeader,
    AuthType,
    MaxTokensField,
    MidStream,
    ProviderType,
    Wire,
)
from connections.providers.google_token import ACCOUNT_FIELDS, TOKEN_URI
from workspaces.slugs import validate_slug

# Every field a person, a file or a script may set; `clean_connection` returns exactly these.
FIELDS = (
    "name",
    "slug",
    "provider_type",
    "auth_type",
    "base_url",
    "models",
    "default_model",
    "custom_endpoint_api",
    "supports_images",
    "mid_stream_behavior",
    "codex_path",
    "aws_region",
    "gcp_project_id",
    "gcp_region",
    "auth_header",
    "max_tokens_field",
    "enabled",
    "paused_message",
    "note",
)
# Part of the pages' addresses under /connections/: never a connection's slug.
RESERVED_SLUGS = frozenset(
    {
        *("new", "import", "export", "validate", "deleted", "status", "alerts"),
        *("selected", "progress"),
    }
)

MAX_MODELS = 2_000
MAX_MODELS_CHARACTERS = 400_000
MAX_MODEL_ID = 200
MAX_CONTEXT_WINDOW = 100_000_000
MAX_SECRET = 16_384
MAX_HEADERS = 20
MAX_HEADER_VALUE = 4_096

# Where the server's own environment variables may be sent; they never go to a custom address.
_OWN_BASE_URLS = {
    ProviderType.ANTHROPIC: "https://api.anthropic.com",
    ProviderType.OPENAI: "https://api.openai.com/v1",
}
_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
    r"(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*\.?"
)
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_AWS_REGION = re.compile(r"([a-z]{2}|eusc)(-[a-z]{2,12}){1,3}-[0-9]{1,2}")
_GCP_REGION = re.compile(r"global|us|eu|[a-z]{2,20}-[a-z]{3,20}[0-9]{1,2}")
_GCP_PROJECT = re.compile(r"[a-z][a-z0-9-]{4,28}[a-z0-9]")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VISIBLE = re.compile(r"[\x20-\x7e]*")
# Framing, routing and content negotiation belong to the client: a value of somebody's own there
# splits requests, changes the destination or breaks the reading of the answer.
_REFUSED_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    }
)
_KEY_HEADERS = frozenset({"authorization", "x-api-key"})


@dataclass(frozen=True, slots=True)
class CleanResult:
    """`values`: the fields that could be cleaned. `errors`: field → sentences; empty means good."""

    values: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.errors

    def raise_errors(self) -> None:
        if self.errors:
            raise ValidationError(dict(self.errors))


@dataclass(frozen=True, slots=True)
class CleanSecret:
    """The opened fields of a secret by form name; {} when nothing was typed. Never in `repr`."""

    values: dict[str, str] = field(default_factory=dict, repr=False)
    errors: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.errors


def clean_connection(data: Mapping[str, Any]) -> CleanResult:
    """A whole connection: keys as in `FIELDS`, missing ones count as empty (`enabled`: True).

    Whether a slug is free, an address may be reached, or a secret is needed isn't asked here.
    """
    values: dict[str, Any] = {}
    errors: dict[str, list[str]] = {}

    def take(name: str, clean: Callable[[Any], Any]) -> Any:
        try:
            values[name] = clean(data.get(name))
        except ValidationError as error:
            errors.setdefault(name, []).extend(str(m) for m in error.messages)
            return None
        return values[name]

    take("name", lambda v: _text(v, 100, required=_("Give the connection a name.")))
    take("slug", clean_slug)
    provider_type = take("provider_type", _one_of(ProviderType, _("Choose a provider.")))
    auth_type = take("auth_type", _one_of(AuthType, _("Choose how to authenticate.")))
    wire = take("custom_endpoint_api", _one_of(Wire))
    take("mid_stream_behavior", _one_of(MidStream))
    take("auth_header", _one_of(AuthHeader))
    take("max_tokens_field", _one_of(MaxTokensField))
    take("supports_images", tristate)
    take("enabled", lambda v: True if v is None else bool(tristate(v)))
    take("paused_message", lambda v: _text(v, 300))
    take("note", lambda v: _text(v, 2_000, lines=True))
    models = take("models", parse_models)
    take("default_model", lambda v: _text(v, MAX_MODEL_ID))
    take("codex_path", clean_codex_path)
    take("aws_region", clean_aws_region)
    take("gcp_project_id", clean_gcp_project)
    take("gcp_region", clean_gcp_region)
    take("base_url", lambda v: normalise_base_url(v, provider_type or "", wire or ""))

    def complain(name: str, sentence: str) -> None:
        if name not in errors:
            errors[name] = [sentence]

    if provider_type and auth_type:
        allowed = ALLOWED_AUTH[ProviderType(provider_type)]
        if auth_type not in allowed:
            complain("auth_type", _pair_sentence(provider_type, allowed))
        elif not values.get("base_url"):
            if ProviderType(provider_type).is_compat or auth_type == AuthType.API_KEY_WITH_ENDPOINT:
                complain("base_url", _("Enter the address of the endpoint, with https://."))
        elif auth_type == AuthType.ENVIRONMENT and values["base_url"] != _OWN_BASE_URLS.get(
            ProviderType(provider_type)
        ):
            complain(
                "base_url",
                _(
                    "Credentials of the server's environment only go to the provider's own "
                    "address. Leave the base URL empty."
                ),
            )
    default_model = values.get("default_model")
    if models is not None and default_model is not None:
        ids = [entry if isinstance(entry, str) else entry["id"] for entry in models]
        if default_model and ids and default_model not in ids:
            complain("default_model", _("The default model must be one of the models of the list."))
        elif not default_model and provider_type and ProviderType(provider_type).is_compat:
            complain("default_model", _("Enter the model that new sessions use."))
    if provider_type == ProviderType.BEDROCK and not values.get("aws_region"):
        complain("aws_region", _("Enter the region where you have model access, like us-east-1."))
    if provider_type == ProviderType.VERTEX:
        if not values.get("gcp_project_id"):
            complain("gcp_project_id", _("Enter the id of the Google Cloud project."))
        if not values.get("gcp_region"):
            complain(
                "gcp_region", _("Enter the region where you have model access, like us-central1.")
            )
    return CleanResult(values, errors)


def _pair_sentence(provider_type: str, allowed: tuple[AuthType, ...]) -> str:
    return _("%(provider)s works with: %(allowed)s. Choose one of these.") % {
        "provider": ProviderType(provider_type).label,
        "allowed": ", ".join(str(a.label) for a in allowed),
    }


# -- addresses -----------------------------------------------------------------------------------


def normalise_base_url(text: Any, provider_type: str, wire: str = "") -> str:
    """The base of an endpoint: lower-case scheme and host, no default port, no final slash, and
    without what the wire format appends itself. "" stays "".

    `wire` is the setting of a custom endpoint ("" means the provider type's own).
    """
    text = _text(text, 2_000)
    if not text:
        return ""
    if re.match(r"(?i)https?://", text) is None:
        raise ValidationError(_("Start the address with https:// (or http://)."), code="url")
    if any(c.isspace() or c == "\\" for c in text):
        raise ValidationError(_("The address has a space or backslash in it."), code="url")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValidationError(
            _("This is not an address. Check the host and the port."), code="url"
        ) from None
    if "@" in parts.netloc:
        raise ValidationError(
            _("Leave the user name and password out of the address; the key has its own field."),
            code="url",
        )
    if "?" in text or "#" in text:
        raise ValidationError(_("Leave out everything from “?” or “#” on."), code="url")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValidationError(_("Use a port from 1 to 65535."), code="url")
    host = _host(parts.hostname or "")
    if port is not None and port != {"http": 80, "https": 443}[parts.scheme]:
        host = f"{host}:{port}"
    return f"{parts.scheme}://{host}{_base_path(parts.path, _wire_of(provider_type, wire))}"


def _host(host: str) -> str:
    try:
        if ":" in host:
            address = ipaddress.IPv6Address(host)
            if address.scope_id is None:
                return f"[{address}]"
        elif host.isascii():
            if _HOST.fullmatch(host):
                return host
        else:
            return idna.encode(host, uts46=True).decode("ascii")
    except (ValueError, idna.IDNAError):
        pass
    raise ValidationError(_("This is not an address. Check the host and the port."), code="url")


def _wire_of(provider_type: str, wire: str) -> str:
    if provider_type in (ProviderType.ANTHROPIC_COMPAT, ProviderType.OPENAI_COMPAT) and wire:
        return wire
    return {
        ProviderType.ANTHROPIC: Wire.ANTHROPIC_MESSAGES,
        ProviderType.ANTHROPIC_COMPAT: Wire.ANTHROPIC_MESSAGES,
        ProviderType.OPENAI: Wire.OPENAI_COMPLETIONS,
        ProviderType.OPENAI_COMPAT: Wire.OPENAI_COMPLETIONS,
    }.get(provider_type, "")


def _base_path(path: str, wire: str) -> str:
    segments = [s for s in path.split("/") if s]
    if _PATH.fullmatch(path) is None or any(s in (".", "..") for s in segments):
        raise ValidationError(
            _("The path of the address has characters it can't have."), code="url"
        )
    # More than one may stand there: a base with the whole endpoint pasted after it.
    if wire == Wire.OPENAI_COMPLETIONS and segments[-2:] == ["chat", "completions"]:
        del segments[-2:]
    elif wire == Wire.OPENAI_COMPLETIONS and segments[-1:] == ["responses"]:
        del segments[-1:]
    elif wire == Wire.ANTHROPIC_MESSAGES:
        if segments[-2:] == ["v1", "messages"]:
            del segments[-2:]
        elif segments[-1:] == ["v1"]:
            del segments[-1:]
    return "".join(f"/{s}" for s in segments)


# -- models --------------------------------------------------------------------------------------


def parse_models(given: Any) -> list[str | dict[str, Any]]:
    """The list of models from a textarea (one id a line, or JSON) or from parsed JSON.

    An entry is an id or `{id, name?, shortName?, contextWindow?, supportsImages?}` with its
    unknown keys kept. An entry given twice in the same words counts once.
    """
    if given is None:
        return []
    if isinstance(given, str):
        given = _models_of_text(given)
    if not isinstance(given, list):
        raise ValidationError(_("The models must be a list."), code="models")
    if len(given) > MAX_MODELS:
        raise ValidationError(
            _("These are more than %(most)s models. Keep those that are used.")
            % {"most": number_format(MAX_MODELS, force_grouping=True)},
            code="models",
        )
    models: list[str | dict[str, Any]] = []
    seen: dict[str, Any] = {}
    for number, entry in enumerate(given, 1):
        try:
            clean = _model_entry(entry)
        except ValidationError as error:
            raise ValidationError(
                _("Model %(number)d: %(problem)s") % {"number": number, "problem": error.message},
                code="models",
            ) from None
        model_id = clean if isinstance(clean, str) else clean["id"]
        if model_id not in seen:
            seen[model_id] = clean
            models.append(clean)
        elif seen[model_id] != clean:
            raise ValidationError(
                _("The model “%(model)s” is in the list twice, with different details.")
                % {"model": model_id},
                code="models",
            )
    if len(json.dumps(models)) > MAX_MODELS_CHARACTERS:
        raise ValidationError(_("The list of models is too long."), code="models")
    return models


def models_text(models: list[Any]) -> str:
    """The list as the textarea shows it: one id a line when that says everything, else JSON."""
    if all(isinstance(entry, str) for entry in models):
        return "\n".join(models)
    return json.dumps(models, ensure_ascii=False, indent=2)


def _models_of_text(text: str) -> Any:
    if len(text) > MAX_MODELS_CHARACTERS:
        raise ValidationError(_("The list of models is too long."), code="models")
    text = text.strip()
    if not text.startswith(("[", "{")):
        return [line for raw in text.splitlines() if (line := raw.strip())]
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValidationError(
            _("The models are not valid JSON: look at line %(line)d, column %(column)d.")
            % {"line": error.lineno, "column": error.colno},
            code="models",
        ) from None
    except (ValueError, RecursionError):  # digits without end, brackets without end
        raise ValidationError(_("The models are not valid JSON."), code="models") from None


def _model_entry(entry: Any) -> str | dict[str, Any]:
    if isinstance(entry, str):
        return _text(entry, MAX_MODEL_ID, required=_("the id is empty."))
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise ValidationError(_("write an id, or an object with an id."))
    clean = {**entry, "id": _text(entry["id"], MAX_MODEL_ID, required=_("the id is empty."))}
    for key in ("name", "shortName"):
        if clean.get(key) is not None:
            clean[key] = _text(clean[key], MAX_MODEL_ID)
    if (images := clean.get("supportsImages")) is not None and not isinstance(images, bool):
        raise ValidationError(_("supportsImages must be true or false."))
    if (window := clean.get("contextWindow")) is not None:
        if isinstance(window, float) and window.is_integer():
            window = clean["contextWindow"] = int(window)
        if (
            isinstance(window, bool)
            or not isinstance(window, int)
            or not 1 <= window <= MAX_CONTEXT_WINDOW
        ):
            raise ValidationError(_("contextWindow must be a whole number of tokens above 0."))
    if not is_plain_json(clean):
        raise ValidationError(_("it holds a number or character that can't be stored."))
    return clean


def is_plain_json(value: Any, depth: int = 0) -> bool:
    """Whether both databases store it as it is: finite numbers, no NUL, no half of a surrogate
    pair, not nested beyond 20."""
    if depth > 20:
        return False
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(
            isinstance(k, str) and _storable(k) and is_plain_json(v, depth + 1)
            for k, v in value.items()
        )
    if isinstance(value, list):
        return all(is_plain_json(v, depth + 1) for v in value)
    return value is None or isinstance(value, bool | int)


# -- the small ones ------------------------------------------------------------------------------


def clean_slug(value: Any) -> str:
    """The shape of a typed slug; "" means: make one."""
    slug = _text(value, 200)
    if slug:
        validate_slug(slug)
        if slug in RESERVED_SLUGS:
            raise ValidationError(
                _("“%(slug)s” is part of an address of Patchbay itself. Choose another slug.")
                % {"slug": slug},
                code="reserved",
            )
    return slug


def clean_aws_region(value: Any) -> str:
    return _matching(value, _AWS_REGION, _("Use a region of AWS, like us-east-1."))


def clean_gcp_region(value: Any) -> str:
    return _matching(value, _GCP_REGION, _("Use a region of Google Cloud, like us-central1."))


def clean_gcp_project(value: Any) -> str:
    return _matching(
        value,
        _GCP_PROJECT,
        _("Use the project's id: 6 to 30 lower-case letters, digits and hyphens."),
    )


def clean_codex_path(value: Any) -> str:
    """Only what the operator listed: a path from the web would be a program of anybody's choice."""
    path = _text(value, 1_000)
    if path and path not in settings.CODEX_PATHS:
        raise ValidationError(
            _("This path isn't one that the operator allows (PATCHBAY_CODEX_PATHS)."), code="path"
        )
    return path


def _matching(value: Any, pattern: re.Pattern[str], sentence: str) -> str:
    text = _text(value, 100)
    if text and pattern.fullmatch(text) is None:
        raise ValidationError(sentence, code="pattern")
    return text


def _one_of(choices: Any, required: str = "") -> Callable[[Any], str]:
    def clean(value: Any) -> str:
        if value in (None, ""):
            if required:
                raise ValidationError(required, code="required")
            return ""
        if value not in choices.values:
            raise ValidationError(
                _("Use one of: %(values)s.") % {"values": ", ".join(choices.values)}, code="choice"
            )
        return choices(value).value

    return clean


def tristate(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in {"", "unknown"}:
        return None
    if word in {"true", "1", "on", "yes"}:
        return True
    if word in {"false", "0", "off", "no"}:
        return False
    raise ValidationError(_("Answer yes, no, or leave it open."), code="boolean")


def _text(value: Any, most: int, *, required: str = "", lines: bool = False) -> str:
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise ValidationError(_("This must be a text."), code="text")
    text = value.replace("\r\n", "\n").strip() if lines else value.strip()
    if not text and required:
        raise ValidationError(required, code="required")
    if len(text) > most:
        raise ValidationError(
            _("This is too long: use at most %(most)d characters.") % {"most": most}, code="length"
        )
    controls = [c for c in text if ord(c) < 32 or ord(c) == 127]
    if (controls and not (lines and set(controls) <= {"\n", "\t"})) or not _storable(text):
        raise ValidationError(_("This has a control character in it."), code="characters")
    return text


def _storable(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


# -- secrets -------------------------------------------------------------------------------------


def clean_secret(auth_type: str, data: Mapping[str, Any]) -> CleanSecret:
    """The typed secret of an auth type, from its form fields.

    Nothing typed at all is no error here (an edit keeps what is stored); a part of it is.
    """
    if auth_type not in AuthType.values:
        return CleanSecret()
    fields = SECRET_FIELDS[AuthType(auth_type)]
    values: dict[str, str] = {}
    errors: dict[str, list[str]] = {}
    for name in fields:
        try:
            if name == "service_account_json":
                value = clean_service_account(data.get(name))
            else:
                value = _secret_text(data.get(name))
        except ValidationError as error:
            errors[name] = [str(m) for m in error.messages]
            continue
        if value:
            values[name] = value
    if values and not errors:
        for name, required in fields.items():
            if required and name not in values:
                errors[name] = [_("Enter this too: the parts of a secret change together.")]
    return CleanSecret(values if not errors else {}, errors)


def clean_service_account(value: Any) -> str:
    """A Google service-account JSON, as compact JSON; "" stays "".

    Other credential types are refused: they name files to read, addresses to ask, or programs to
    run. So is a `token_uri` that isn't Google's: it would be sent a signed assertion.
    """
    if isinstance(value, Mapping):
        value = json.dumps(dict(value))
    if value is not None and not isinstance(value, str):
        raise ValidationError(_("This must be a text."), code="text")
    text = (value or "").strip()
    if not text:
        return ""
    if len(text) > MAX_SECRET:
        raise ValidationError(_("This is too long for a service-account file."), code="length")
    try:
        info = json.loads(text)
    except (ValueError, RecursionError):
        raise ValidationError(
            _("This is not JSON. Paste the whole service-account file."), code="json"
        ) from None
    if not isinstance(info, dict) or info.get("type") != "service_account":
        raise ValidationError(
            _("Only a service-account key can be used (“type”: “service_account”)."), code="type"
        )
    if extra := sorted(set(info) - ACCOUNT_FIELDS):
        raise ValidationError(
            _("A service-account file has no field “%(name)s”.") % {"name": extra[0][:60]},
            code="field",
        )
    if not all(isinstance(v, str) and _storable(v) for v in info.values()):
        raise ValidationError(_("Every field of the file must be a text."), code="text")
    if info.get("token_uri") != TOKEN_URI or (
        info.get("universe_domain", "googleapis.com") != "googleapis.com"
    ):
        raise ValidationError(
            _("The file's token address must be Google's own (%(uri)s).") % {"uri": TOKEN_URI},
            code="token_uri",
        )
    for name in ("client_email", "private_key"):
        if not info.get(name):
            raise ValidationError(
                _("The file lacks the field “%(name)s”.") % {"name": name}, code="field"
            )
    return json.dumps(info, separators=(",", ":"))


def _secret_text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValidationError(_("This must be a text."), code="text")
    text = value.strip()
    if len(text) > MAX_SECRET:
        raise ValidationError(_("This is too long for a key."), code="length")
    if _VISIBLE.fullmatch(text) is None:
        raise ValidationError(
            _("A key has only letters, digits and signs of ASCII. Copy it once more."),
            code="characters",
        )
    return text


def parse_headers(given: Any, *, auth_type: str = "") -> dict[str, str]:
    """Extra request headers from a JSON object or `Name: value` lines; {} when nothing was typed.

    With an auth type that sends a key, the key's own headers are refused.
    """
    if given is None:
        return {}
    pairs: list[tuple[Any, Any]]
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, str):
        if len(given) > MAX_HEADERS * (MAX_HEADER_VALUE + 200):
            raise ValidationError(_("These are too many headers."), code="length")
        pairs = _header_pairs(given.strip())
    else:
        raise ValidationError(_("Write one header a line, as “Name: value”."), code="headers")
    if len(pairs) > MAX_HEADERS:
        raise ValidationError(
            _("Use at most %(most)d headers.") % {"most": MAX_HEADERS}, code="headers"
        )
    headers: dict[str, str] = {}
    seen: set[str] = set()
    for name, value in pairs:
        # A value is a secret: the sentences name the header only.
        if not isinstance(name, str) or _TOKEN.fullmatch(name) is None:
            raise ValidationError(
                _("A header's name has only letters, digits and hyphens."), code="headers"
            )
        low = name.lower()
        if low in _REFUSED_HEADERS or low.startswith("proxy-"):
            raise ValidationError(
                _("The header “%(name)s” is set by Patchbay itself. Leave it out.")
                % {"name": name},
                code="headers",
            )
        if low in _KEY_HEADERS and auth_type not in ("", AuthType.NONE):
            raise ValidationError(
                _("The header “%(name)s” carries the key. Use the key's own field.")
                % {"name": name},
                code="headers",
            )
        if low in seen:
            raise ValidationError(
                _("The header “%(name)s” is there twice.") % {"name": name}, code="headers"
            )
        if (
            not isinstance(value, str)
            or not value.strip()
            or len(value) > MAX_HEADER_VALUE
            or _VISIBLE.fullmatch(value.strip()) is None
        ):
            raise ValidationError(
                _("The value of “%(name)s” must be one line of ASCII text.") % {"name": name},
                code="headers",
            )
        seen.add(low)
        headers[name] = value.strip()
    return headers


def _header_pairs(text: str) -> list[tuple[Any, Any]]:
    if not text.startswith("{"):
        pairs = []
        for line in re.split(r"\r\n|\n", text):
            if not line.strip():
                continue
            name, colon, value = line.partition(":")
            if not colon:
                raise ValidationError(
                    _("Write one header a line, as “Name: value”."), code="headers"
                )
            pairs.append((name.strip(" \t"), value.strip(" \t")))
        return pairs
    try:
        return json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise ValidationError(_("The headers are not valid JSON."), code="headers") from None
