"""Google's side of Vertex AI, written from the public API references: the token endpoint, Gemini's
and Claude's streams, counting tokens, and the lists of publishers' models.

    POST /google/token                                                    mints tokens
    POST /vertex/v1/projects/P/locations/R/publishers/google/models/M:…   streamGenerateContent,
                                                                          countTokens
    POST /vertex/v1/projects/P/locations/R/publishers/anthropic/models/M:…
                                                             streamRawPredict, rawPredict (counting)
    GET  /vertex/v1beta1/publishers/{google,anthropic}/models             lists them

M is a behaviour of tests.fakes.models; `claude-` or `gemini-` before it and `@20250101` after it
are left out. Tokens are given for an assertion signed with the key in `service_account()`; what
else happens is chosen by the account's name (`ACCOUNTS`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.fakes import models
from tests.fakes.http import Exchange
from tests.fakes.wires import MEDIA_TYPES, Anthropic, Asked, Refusal, _data, _require

TOKEN_URI = "https://oauth2.googleapis.com/token"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
PROJECT = "fake-project"
ACCOUNTS = {
    "good": "gets tokens for an hour",
    "short": "gets tokens for two seconds",
    "slow": "gets a token after half a second",
    "deleted": "is gone: invalid_grant",
    "busy": "503, as Google's own when it has a bad day",
    "unlisted": "may chat, but not list models",
    "denied": "gets tokens that permit nothing",
}


@functools.cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def service_account(name: str = "good", **changes: Any) -> str:
    """The JSON of an account's key, as Google's console gives it."""
    pem = _key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    email = f"{name}@{PROJECT}.iam.gserviceaccount.com"
    file = {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": hashlib.sha1(name.encode()).hexdigest(),
        "private_key": pem.decode(),
        "client_email": email,
        "client_id": "100000000000000000001",
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": TOKEN_URI,
        "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
        "client_x509_cert_url": f"https://www.googleapis.com/robot/v1/metadata/x509/{email}",
        "universe_domain": "googleapis.com",
    }
    return json.dumps({**file, **changes}, indent=2)


# -- tokens ----------------------------------------------------------------------------------------


class BadGrant(Exception):
    """(code, description), as RFC 6749 has them."""


class Tokens:
    """Mints access tokens and knows them again."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[str, float]] = {}  # token → account, end

    def mint(self, exchange: Exchange) -> None:
        try:
            name, seconds = self._check(exchange)
        except BadGrant as refusal:
            code, words = refusal.args
            exchange.respond(400, {"error": code, "error_description": words})
            return
        if name == "busy":
            exchange.respond(503, {"error": "internal_failure"}, {"retry-after": "7"})
            return
        token = f"ya29.fake-{secrets.token_urlsafe(40)}"
        self._live[token] = (name, time.time() + seconds)
        answer = orjson.dumps(
            {"access_token": token, "expires_in": seconds, "token_type": "Bearer"}
        )
        if name == "slow":
            exchange.play(iter([0.5, answer]), {"content-type": "application/json"})
        else:
            exchange.respond(200, answer)

    def _check(self, exchange: Exchange) -> tuple[str, int]:
        kind = exchange.headers.get("content-type", "").partition(";")[0]
        if exchange.method != "POST" or kind != "application/x-www-form-urlencoded":
            raise BadGrant("invalid_request", "Bad Request")
        form = parse_qs(exchange.body.decode(), strict_parsing=True)
        if form.get("grant_type") != [GRANT] or len(form.get("assertion", [])) != 1:
            raise BadGrant("unsupported_grant_type", "Invalid grant_type")
        signed, _, signature = form["assertion"][0].rpartition(".")
        try:
            header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
            public = _key().public_key()
            public.verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            raise BadGrant("invalid_grant", "Invalid JWT Signature.") from None
        except ValueError:
            raise BadGrant("invalid_request", "Invalid JWT.") from None
        name = claims.get("iss", "").partition("@")[0]
        if header.get("alg") != "RS256" or header.get("typ") != "JWT":
            raise BadGrant("invalid_grant", "Invalid JWT: wrong algorithm.")
        if claims.get("aud") != TOKEN_URI:
            raise BadGrant("invalid_grant", "Invalid JWT: Failed audience check.")
        if claims.get("scope") != SCOPE:
            raise BadGrant("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        issued, ends = claims.get("iat"), claims.get("exp")
        if (
            type(issued) is not int
            or type(ends) is not int
            or not (issued - 60 <= time.time() <= ends and 0 < ends - issued <= 3600)
        ):
            raise BadGrant(
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable "
                "timeframe. Check your iat and exp values in the JWT claim.",
            )
        if name == "deleted" or name not in ACCOUNTS:
            raise BadGrant("invalid_grant", "Invalid grant: account not found")
        return name, 2 if name == "short" else 3599

    def account_of(self, token: str) -> str:
        name, ends = self._live.get(token, ("", 0.0))
        return name if time.time() < ends else ""

    def revoke_all(self) -> None:
        self._live.clear()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# -- requests --------------------------------------------------------------------------------------

_ACTION = re.compile(
    r"/vertex/v1/projects/(?P<project>[a-z0-9-]+)/locations/(?P<region>[a-z0-9-]+)"
    r"/publishers/(?P<publisher>google|anthropic)/models/(?P<model>[^/:]+):(?P<verb>[A-Za-z]+)"
)
_LIST = re.compile(r"/vertex/v1beta1/publishers/(google|anthropic)/models")


def behaviour_of(model: str) -> str:
    """The name of the behaviour that a model's id stands for."""
    return re.sub(r"^(claude|gemini)-|@[0-9]+$", "", model)


class Vertex:
    """What stands under /vertex/ and /google/; `App` keeps the records and plays the replies."""

    def __init__(self) -> None:
        self.tokens = Tokens()

    def handle(self, app: Any, exchange: Exchange, record: dict[str, Any]) -> None:
        if exchange.path == "/google/token":
            record["status"] = 200
            self.tokens.mint(exchange)
            return
        wire: Gemini | ClaudeOnVertex = Gemini("")
        try:
            account = self._check_token(exchange)
            listed, action = _LIST.fullmatch(exchange.path), _ACTION.fullmatch(exchange.path)
            if listed and exchange.method == "GET":
                if account == "unlisted":
                    message = "Permission 'aiplatform.publisherModels.list' denied."
                    raise Refusal("forbidden", message)
                record["status"] = 200
                exchange.respond(200, _page(listed[1], parse_qs(exchange.query)))
                return
            if not action or exchange.method != "POST":
                raise Refusal("endpoint")
            if action["project"] != PROJECT:
                raise Refusal("forbidden", f"Permission denied on resource {action['project']}.")
            name = behaviour_of(unquote(action["model"]))
            wire = (Gemini if action["publisher"] == "google" else ClaudeOnVertex)(name)
            match action["publisher"], action["verb"]:
                case "google", "streamGenerateContent" if exchange.query == "alt=sse":
                    app._chat(exchange, wire, record)
                case "anthropic", "streamRawPredict" if not exchange.query:
                    app._chat(exchange, wire, record)
                case ("google", "countTokens") | ("anthropic", "rawPredict"):
                    record["status"] = 200
                    exchange.respond(200, wire.count(orjson.loads(exchange.body)))
                case _:
                    raise Refusal("endpoint")
        except Refusal as refusal:
            app._refuse(exchange, wire, refusal, record)

    def _check_token(self, exchange: Exchange) -> str:
        scheme, _, token = exchange.headers.get("authorization", "").partition(" ")
        account = self.tokens.account_of(token) if scheme == "Bearer" else ""
        if not account:
            raise Refusal(
                "auth",
                "Request had invalid authentication credentials. Expected OAuth 2 access token, "
                "login cookie or other valid authentication credential.",
            )
        if account == "denied":
            raise Refusal("disabled", f"Vertex AI API has not been used in project {PROJECT}.")
        return account


def _page(publisher: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
    prefix = "claude" if publisher == "anthropic" else "gemini"
    names = [f"{prefix}-{model.name}" for model in models.MODELS]
    if publisher == "google":
        names += ["text-embedding-005", "imagen-4.0-generate-001", "gemini-embedding-001"]
    size = min(int(query.get("pageSize", ["10"])[0]), 20)
    start = int(query.get("pageToken", ["0"])[0])
    entries = [
        {
            "name": f"publishers/{publisher}/models/{name}",
            "versionId": "20250101" if publisher == "anthropic" else "001",
            "launchStage": "GA",
        }
        for name in names[start : start + size]
    ]
    more = {"nextPageToken": str(start + size)} if start + size < len(names) else {}
    return {"publisherModels": entries, **more}


def google_error(refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """`google.rpc.Status` as JSON."""
    status, word, detail = {
        "auth": (401, "UNAUTHENTICATED", ("ErrorInfo", {"reason": "ACCESS_TOKEN_EXPIRED"})),
        "forbidden": (
            403,
            "PERMISSION_DENIED",
            ("ErrorInfo", {"reason": "IAM_PERMISSION_DENIED", "domain": "aiplatform"}),
        ),
        "disabled": (
            403,
            "PERMISSION_DENIED",
            ("ErrorInfo", {"reason": "SERVICE_DISABLED", "domain": "googleapis.com"}),
        ),
        "endpoint": (404, "NOT_FOUND", None),
        "model": (404, "NOT_FOUND", None),
        "rate": (429, "RESOURCE_EXHAUSTED", None),
        "quota": (
            429,
            "RESOURCE_EXHAUSTED",
            (
                "QuotaFailure",
                {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]},
            ),
        ),
        "context": (400, "INVALID_ARGUMENT", None),
        "large": (413, "INVALID_ARGUMENT", None),
        "server": (500, "INTERNAL", None),
        "overloaded": (503, "UNAVAILABLE", None),
        "unavailable": (503, "UNAVAILABLE", None),
        "bad_request": (400, "INVALID_ARGUMENT", None),
    }[refusal.kind]
    message = refusal.message
    if refusal.kind == "context":
        message = (
            "The input token count (2100000) exceeds the maximum number of tokens allowed "
            "(1048576)."
        )
    elif refusal.kind == "model":
        message = (
            f"Publisher Model `projects/{PROJECT}/locations/r/publishers/google/models/"
            f"{refusal.extra['model']}` was not found or your project does not have access to it."
        )
    error: dict[str, Any] = {"code": status, "message": message, "status": word}
    if detail:
        kind, fields = detail
        error["details"] = [{"@type": f"type.googleapis.com/google.rpc.{kind}", **fields}]
    return status, {"error": error}


# -- Claude ----------------------------------------------------------------------------------------


class ClaudeOnVertex(Anthropic):
    def __init__(self, model: str) -> None:
        self.model = model

    def read(self, body: Any, headers: Mapping[str, str]) -> Asked:
        _require(isinstance(body, dict), "The request body is not valid JSON")
        _require("anthropic-version" not in headers, "anthropic-version: Extra inputs")
        _require("model" not in body, "model: Extra inputs are not permitted")
        version = body.get("anthropic_version")
        _require(version == "vertex-2023-10-16", "anthropic_version: Field required")
        rest = {key: value for key, value in body.items() if key != "anthropic_version"}
        return super().read({**rest, "model": self.model}, {"anthropic-version": "2023-06-01"})

    def count(self, body: Any) -> dict[str, Any]:
        _require(self.model == "count-tokens", "This fake only counts without streaming.")
        _require(set(body) == {"anthropic_version", "model", "messages"}, "Extra inputs")
        models.find(behaviour_of(body["model"]))
        return {"input_tokens": 8}

    def error(self, refusal: Refusal) -> tuple[int, dict[str, Any]]:
        # Google answers for what it checks itself, Anthropic's model for the rest.
        if refusal.kind in ("auth", "forbidden", "disabled", "endpoint", "model", "rate", "quota"):
            return google_error(refusal)
        return super().error(refusal)


# -- Gemini ----------------------------------------------------------------------------------------

_TYPES = ("STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT")
_SCHEMA = frozenset(
    {
        "anyOf",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "nullable",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
    }
)
SKIP = base64.b64encode(b"skip_thought_signature_validator").decode()


def signature_of(*what: Any) -> str:
    """What the fake signs a part with: it goes by what stands in it."""
    return base64.b64encode(hashlib.sha256(orjson.dumps(what)).digest()).decode()


def check_schema(schema: Any, where: str) -> None:
    """Refuses, with Google's words, a schema that it has no words for."""
    _require(isinstance(schema, dict), f"Invalid value at '{where}'")
    for name in schema:
        _require(
            name in _SCHEMA,
            f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}': "
            "Cannot find field.",
        )
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            check_schema(one, f"{where}.any_of")
        return
    kind = schema.get("type")
    _require(kind in _TYPES, f"{where}.type: must be specified")
    _require(kind != "ARRAY" or "items" in schema, f"{where}.items: missing field.")
    _require(
        kind == "STRING" or "enum" not in schema, f"{where}.enum: only allowed for STRING type"
    )
    _require(
        all(isinstance(one, str) for one in schema.get("enum", [])),
        f"Invalid value at '{where}.enum' (TYPE_STRING)",
    )
    if "items" in schema:
        check_schema(schema["items"], f"{where}.items")
    for name, one in schema.get("properties", {}).items():
        check_schema(one, f"{where}.properties[{name}]")
    for name in schema.get("required", []):
        _require(name in schema.get("properties", {}), f"{where}.required: property not defined")


class Gemini:
    _FIELDS = frozenset(
        {
            "contents",
            "generationConfig",
            "labels",
            "safetySettings",
            "systemInstruction",
            "toolConfig",
            "tools",
        }
    )

    def __init__(self, model: str) -> None:
        self.model = model

    def read(self, body: Any, headers: Mapping[str, str]) -> Asked:
        _require(isinstance(body, dict), "Invalid JSON payload received.")
        for name in body:
            _require(name in self._FIELDS, f'Unknown name "{name}": Cannot find field.')
        config = body.get("generationConfig", {})
        known = {"maxOutputTokens", "temperature", "thinkingConfig", "topK", "topP"}
        _require(set(config) <= known, "Unknown name at 'generation_config'")
        limit = config.get("maxOutputTokens")
        _require(limit is None or (type(limit) is int and limit > 0), "max_output_tokens")
        asked = Asked(self.model, limit, fields=frozenset(body))
        thinking = config.get("thinkingConfig", {})
        known = {"includeThoughts", "thinkingBudget", "thinkingLevel"}
        _require(set(thinking) <= known, "thinking_config: unknown name")
        both = {"thinkingBudget", "thinkingLevel"} <= set(thinking)
        _require(not both, "Only one of thinking budget and thinking level may be set.")
        said = thinking.get("thinkingLevel", thinking.get("thinkingBudget", ""))
        asked.thinking = str(said)
        if "systemInstruction" in body:
            asked.system = "\n".join(part["text"] for part in body["systemInstruction"]["parts"])
            _require(asked.system, "system_instruction: empty")
        for tool in body.get("tools", []):
            _require(set(tool) == {"functionDeclarations"}, "tools: unknown name")
            for function in tool["functionDeclarations"]:
                known = {"name", "description", "parameters"}
                _require(set(function) <= known, "function_declarations: unknown name")
                valid = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.:-]{0,63}", function["name"])
                _require(valid, "function_declarations.name: Invalid function name")
                if "parameters" in function:
                    parameters = function["parameters"]
                    check_schema(parameters, f"{function['name']}.parameters")
                    _require(parameters.get("type") == "OBJECT", "parameters: must be OBJECT")
                    full = parameters.get("properties")
                    _require(full, "parameters.properties: should be non-empty for OBJECT type")
                asked.tools.append(function["name"])
        self._contents(body.get("contents"), asked)
        return asked

    def _contents(self, contents: Any, asked: Asked) -> None:
        _require(isinstance(contents, list) and contents, "contents are required")
        _require(contents[0].get("role") == "user", "contents: the first must be the user's")
        _require(contents[-1].get("role") == "user", "contents: the last must be the user's")
        calls: list[dict[str, Any]] = []
        for number, content in enumerate(contents):
            where = f"contents[{number}]"
            _require(set(content) == {"role", "parts"}, f"{where}: unknown name")
            parts = content["parts"]
            _require(isinstance(parts, list) and parts, f"{where}.parts: must not be empty")
            if content["role"] == "user":
                after = contents[number - 1]["parts"] if number else []
                steers = any("functionResponse" in part for part in after)
                calls = self._user(parts, where, asked, calls, steers=steers)
            elif content["role"] == "model":
                before = contents[number - 1].get("role")
                _require(
                    not calls and before == "user", f"{where}: a function call turn comes late"
                )
                calls = self._model(parts, where, asked)
            else:
                raise Refusal("bad_request", "Please use a valid role: user, model.")
        _require(not calls, "function response parts are missing")

    def _user(
        self,
        parts: list[Any],
        where: str,
        asked: Asked,
        calls: list[dict[str, Any]],
        *,
        steers: bool,
    ) -> list[dict[str, Any]]:
        answers = [part["functionResponse"] for part in parts if "functionResponse" in part]
        _require(
            len(answers) == len(calls),
            "Please ensure that the number of function response parts is equal to the number of "
            "function call parts of the function call turn.",
        )
        _require(not answers or len(answers) == len(parts), f"{where}: results stand alone")
        for call, answer in zip(calls, answers, strict=True):
            _require(set(answer) <= {"name", "response", "id"}, f"{where}: unknown name")
            _require(answer.get("name") == call["name"], f"{where}: names differ")
            _require(answer.get("id") == call.get("id"), f"{where}: ids differ")
            _require(isinstance(answer.get("response"), dict), f"{where}.response: Struct")
            asked.results.append(str(next(iter(answer["response"].values()))))
        if answers:
            return []
        texts = []
        for part in parts:
            if set(part) == {"text"}:
                _require(part["text"].strip(), f"{where}: text must not be empty")
                texts.append(part["text"])
            elif set(part) == {"inlineData"}:
                blob = part["inlineData"]
                _require(set(blob) == {"mimeType", "data"}, f"{where}.inline_data: unknown name")
                _require(blob["mimeType"] in MEDIA_TYPES, f"{where}: Unsupported MIME type")
                _data(blob["data"], where)
                asked.images.append(blob["mimeType"])
            else:
                raise Refusal("bad_request", f"{where}: unknown part {sorted(part)}")
        if steers:
            asked.steered += texts
        else:
            asked.rounds, asked.results, asked.steered = 0, [], []
        asked.texts += [("user", text) for text in texts]
        return []

    def _model(self, parts: list[Any], where: str, asked: Asked) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        for part in parts:
            signature = part.get("thoughtSignature")
            if "functionCall" in part:
                call = part["functionCall"]
                _require(set(part) <= {"functionCall", "thoughtSignature"}, f"{where}: unknown")
                _require(set(call) <= {"name", "args", "id"}, f"{where}: unknown name")
                _require(isinstance(call.get("args"), dict), f"{where}.args: Struct")
                expected = signature_of(call["name"], call["args"])
                if not calls:
                    _require(
                        signature,
                        "Function call is missing a thought_signature in functionCall parts.",
                    )
                calls.append(call)
            else:
                _require(set(part) <= {"text", "thought", "thoughtSignature"}, f"{where}: unknown")
                expected = signature_of(part["text"])
                if part["text"] and not part.get("thought"):
                    asked.texts.append(("assistant", part["text"]))
            valid = signature in (None, expected) or ("functionCall" in part and signature == SKIP)
            _require(valid, f"{where}: Invalid thought signature")
        asked.rounds += bool(calls)
        if calls and self.model.startswith("thinking"):
            own = parts[-len(calls)].get("thoughtSignature") != SKIP
            thought = any(part.get("thought") for part in parts)
            _require(own and thought, f"{where}: the model's own thoughts must come back")
        return calls

    def count(self, body: Any) -> dict[str, Any]:
        models.find(self.model)
        self._contents(body["contents"], Asked(self.model, None))
        return {"totalTokens": 1, "totalBillableCharacters": 2}

    def error(self, refusal: Refusal) -> tuple[int, dict[str, Any]]:
        return google_error(refusal)

    def reply(self, asked: Asked, number: int) -> GeminiReply:
        return GeminiReply(asked, number)


class GeminiReply:
    def __init__(self, asked: Asked, number: int) -> None:
        self._asked = asked
        self._tail = {
            "modelVersion": asked.model,
            "createTime": "2026-01-01T00:00:00.000000Z",
            "responseId": f"fake-{number}",
        }
        self._signs = asked.model.startswith("thinking")
        self._calls = self._thoughts = 0
        self._broken = False

    def _chunk(self, *parts: dict[str, Any], **more: Any) -> bytes:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}}
        if "finishReason" in more:
            candidate["finishReason"] = more.pop("finishReason")
        if "finishMessage" in more:
            candidate["finishMessage"] = more.pop("finishMessage")
        usage = more.pop("usageMetadata", {"trafficType": "ON_DEMAND"})
        chunk = {"candidates": [candidate], "usageMetadata": usage, **self._tail}
        return b"data: " + orjson.dumps(chunk) + b"\r\n\r\n"

    def begin(self) -> bytes:
        return b""

    def say(self, text: str) -> bytes:
        part = {"text": text}
        if self._signs:
            part["thoughtSignature"] = signature_of(text)
        return self._chunk(part)

    def think(self, text: str) -> bytes:
        self._thoughts += 1
        return self._chunk({"text": text, "thought": True})

    def redacted(self) -> bytes:
        return b""

    def call(self, name: str, arguments: str) -> bytes:
        try:
            args = json.loads(arguments)
        except ValueError:
            self._broken = True
            return self._chunk(
                finishReason="MALFORMED_FUNCTION_CALL",
                finishMessage=f"Malformed function call: {name}({arguments}",
            )
        part: dict[str, Any] = {"functionCall": {"name": name, "args": args}}
        if self._signs and not self._calls:
            part["thoughtSignature"] = signature_of(name, args)
        self._calls += 1
        return self._chunk(part)

    def end(self, reason: str, tokens: int, cached: tuple[int, int]) -> bytes:
        read, written = cached
        prompt = self._asked.input_tokens + read + written
        usage = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": tokens - self._thoughts,
            "totalTokenCount": prompt + tokens,
            "trafficType": "ON_DEMAND",
        }
        if self._thoughts:
            usage["thoughtsTokenCount"] = self._thoughts
        if read:
            usage["cachedContentTokenCount"] = read
        word = {"length": "MAX_TOKENS", "refusal": "SAFETY"}.get(reason, "STOP")
        last = {"text": ""}
        if self._signs:
            last["thoughtSignature"] = signature_of("")
        return self._chunk(last, finishReason=word, usageMetadata=usage)

    def fail(self, refusal: Refusal) -> bytes:
        return b"data: " + orjson.dumps(google_error(refusal)[1]) + b"\r\n\r\n"
