"""Bedrock, seen from AWS's side: Converse, the lists of models, and STS beside it.

Written from the public API references (and botocore's service models); signatures are computed
here by the book (AWS, "Create a signed request"), not by botocore.

Addresses: `/bedrock` on loopback is a base URL for everything but STS. A request whose Host is one
of AWS's own (`bedrock-runtime.REGION.amazonaws.com`, `bedrock.…`, `sts.…`) is answered as by that
host, for tests whose client leads AWS's names here. `/bedrock-nolist` forbids the lists.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import orjson

from tests.fakes.http import Exchange
from tests.fakes.wires import Asked, Refusal, _require, _signature, claude_thinking

ACCESS_KEY = "AKIAFAKEGOOD00000001"
SECRET_KEY = "fake/Good+secret+access/key/0123456789abcd"
# Goes only with its token.
SESSION_ACCESS_KEY = "ASIAFAKEGOOD00000002"
SESSION_SECRET_KEY = "fake/Other+secret+access/key/0123456789ab"
SESSION_TOKEN = "FwoGZXIvYXdzEFAKE//token+with/signs==" + "x9Y" * 60
EXPIRED_ACCESS_KEY = "ASIAFAKEEXPIRED00003"

_KEYS = {
    ACCESS_KEY: (SECRET_KEY, ""),
    SESSION_ACCESS_KEY: (SESSION_SECRET_KEY, SESSION_TOKEN),
    EXPIRED_ACCESS_KEY: (SECRET_KEY, SESSION_TOKEN),
}
_AWS_HOST = re.compile(r"(bedrock-runtime|bedrock|sts)\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?")
_CHAT = re.compile(r"/model/([^/]+)/converse-stream")
_SCOPE = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/,]+)/(\d{8})/([^/,]+)/([^/,]+)/aws4_request, "
    r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)
# Before a fake's name, as in `us.anthropic.echo-v1:0` or an ARN that ends so.
_VENDOR = re.compile(
    r"\A(?:.*/)?(?:(?:us|eu|apac|global)\.)?(?:amazon|anthropic|meta|mistral|writer)\."
)
_VERSION = re.compile(r"-v\d:\d\Z")
_TOOL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
REDACTED = base64.b64encode(b"redacted-by-fake").decode()
MAX_SKEW = dt.timedelta(minutes=5)


@dataclass(frozen=True)
class Place:
    """Which service a request came to; `region` is "" on loopback, where any is served."""

    service: str
    region: str
    path: str
    lists: bool = True


def place_of(exchange: Exchange) -> Place | None:
    """None for a request that isn't for AWS."""
    if found := _AWS_HOST.fullmatch(exchange.headers.get("host", "")):
        return Place(found[1], found[2], exchange.path)
    base, _, rest = exchange.path.removeprefix("/").partition("/")
    if base in ("bedrock", "bedrock-nolist"):
        return Place("", "", f"/{rest}", lists=base == "bedrock")
    return None


def handle(app: Any, exchange: Exchange, place: Place, record: dict[str, Any]) -> None:
    """Answers, by `app`'s ways of doing so."""
    wire = Bedrock()
    try:
        record["key"] = _authenticate(exchange, place)
        call = (exchange.method, place.path)
        chat = _CHAT.fullmatch(place.path)
        if place.service == "sts":
            _require(call == ("GET", "/"), "sts: only GET")
            record["status"] = 200
            _answer_sts(exchange)
        elif exchange.method == "POST" and chat and place.service != "bedrock":
            wire.model = unquote(chat[1])
            app._chat(exchange, wire, record)
        elif place.service != "bedrock-runtime" and call in _LISTS:
            if not place.lists:
                raise Refusal("forbidden", "not authorized to perform: bedrock:List*")
            record["status"] = 200
            exchange.respond(200, _LISTS[call](exchange.query))
        else:
            raise Refusal("endpoint", "")
    except Refusal as refusal:
        app._refuse(exchange, wire, refusal, record)


def _answer_sts(exchange: Exchange) -> None:
    if exchange.headers.get("accept") != "application/json":
        xml = b"<GetCallerIdentityResponse/>"
        exchange.respond(200, xml, {"content-type": "text/xml"})
        return
    who = {"Account": "123456789012", "Arn": "arn:aws:iam::123456789012:user/fake", "UserId": "A"}
    exchange.respond(200, {"GetCallerIdentityResponse": {"GetCallerIdentityResult": who}})


# -- who asks --------------------------------------------------------------------------------------


def _authenticate(exchange: Exchange, place: Place) -> str:
    """The hash under which the key is recorded."""
    given = exchange.headers.get("authorization", "")
    if not given:
        raise _aws(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    if given.startswith("Bearer ") and place.service != "sts":
        if not given.removeprefix("Bearer ").startswith("sk-fake-good"):
            said = "Authentication failed: Please make sure your API Key is valid."
            raise _aws(403, "AccessDeniedException", said, capital=True)
        return _hash(given.removeprefix("Bearer "))
    scope = _SCOPE.fullmatch(given)
    if not scope:
        raise _aws(403, "IncompleteSignatureException", "The Authorization header is malformed.")
    key, date, region, service, names, signature = scope.groups()
    if (
        key not in _KEYS
        or (token := exchange.headers.get("x-amz-security-token", "")) != (_KEYS[key][1])
    ):
        said = "The security token included in the request is invalid."
        name = "InvalidClientTokenId" if place.service == "sts" else "UnrecognizedClientException"
        raise _aws(403, name, said, sts=place.service == "sts")
    if key == EXPIRED_ACCESS_KEY:
        said = "The security token included in the request is expired"
        raise _aws(403, "ExpiredTokenException", said)
    wanted = "sts" if place.service == "sts" else "bedrock"
    if service != wanted or (place.region and region != place.region):
        said = f"Credential should be scoped to correct service: '{wanted}'."
        raise _aws(403, "InvalidSignatureException", said)
    stamp = exchange.headers.get("x-amz-date", "")
    sent = dt.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    if not stamp.startswith(date) or abs(dt.datetime.now(dt.UTC) - sent) > MAX_SKEW:
        raise _aws(403, "InvalidSignatureException", f"Signature expired: {stamp} is now earlier")
    signed = names.split(";")
    must = {"host", *(name for name in exchange.headers if name.startswith("x-amz-"))}
    if not must <= set(signed) or signed != sorted(set(signed)):
        raise _aws(403, "InvalidSignatureException", f"Must be signed: {sorted(must)}")
    canonical = "\n".join(
        [
            exchange.method,
            # the path as it came, encoded once more: only S3 leaves it
            quote(exchange.path, safe="/-_.~"),
            "&".join(sorted(exchange.query.split("&"))),
            *(f"{name}:{' '.join(exchange.headers[name].split())}" for name in signed),
            "",
            names,
            hashlib.sha256(exchange.body).hexdigest(),
        ]
    )
    scoped = f"{date}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    derived = f"AWS4{_KEYS[key][0]}".encode()
    for part in (date, region, service, "aws4_request"):
        derived = hmac.digest(derived, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scoped}\n{digest}"
    if not hmac.compare_digest(hmac.new(derived, text.encode(), "sha256").hexdigest(), signature):
        said = (
            "The request signature we calculated does not match the signature you provided. "
            f"The Canonical String for this request should have been '{canonical}' {token}"
        )
        raise _aws(403, "InvalidSignatureException", said)
    return _hash(key)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _aws(
    status: int, name: str, message: str, *, capital: bool = False, sts: bool = False
) -> Refusal:
    return Refusal("aws", message, status=status, name=name, capital=capital, sts=sts)


# -- the lists -------------------------------------------------------------------------------------


def _model(name: str, **about: Any) -> dict[str, Any]:
    return {
        "modelArn": f"arn:aws:bedrock:us-east-1::foundation-model/{name}",
        "modelId": name,
        "modelName": name.capitalize(),
        "providerName": "Fake",
        "inputModalities": ["TEXT", "IMAGE"],
        "outputModalities": ["TEXT"],
        "responseStreamingSupported": True,
        "inferenceTypesSupported": ["ON_DEMAND"],
        "modelLifecycle": {"status": "ACTIVE"},
        **about,
    }


def _foundation_models(query: str) -> dict[str, Any]:
    from tests.fakes.models import MODELS

    listed = [_model(model.name) for model in MODELS]
    listed += [
        _model("anthropic.echo-v1:0", inferenceTypesSupported=["INFERENCE_PROFILE"]),
        _model("amazon.embed-v1:0", outputModalities=["EMBEDDING"]),
        _model("amazon.slowpoke-v1:0", responseStreamingSupported=False),
        _model("amazon.words-v1:0", inputModalities=["TEXT"]),
    ]
    return {"modelSummaries": listed}


def _profile(number: int, model: str, **about: Any) -> dict[str, Any]:
    return {
        "inferenceProfileName": f"US {model}",
        "inferenceProfileArn": f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{number}",
        "inferenceProfileId": f"us.{model}",
        "models": [{"modelArn": f"arn:aws:bedrock:us-east-1::foundation-model/{model}"}],
        "status": "ACTIVE",
        "type": "SYSTEM_DEFINED",
        **about,
    }


def _inference_profiles(query: str) -> dict[str, Any]:
    """Two pages."""
    own = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/team1"
    if "nextToken=page%3D2" in query.split("&"):
        more = [
            _profile(2, "amazon.embed-v1:0"),
            _profile(3, "x.y", inferenceProfileArn=own, type="APPLICATION"),
        ]
        return {"inferenceProfileSummaries": more}
    first = [_profile(1, "anthropic.echo-v1:0")]
    return {"inferenceProfileSummaries": first, "nextToken": "page=2"}


_LISTS = {
    ("GET", "/foundation-models"): _foundation_models,
    ("GET", "/inference-profiles"): _inference_profiles,
}


# -- Converse --------------------------------------------------------------------------------------


class Bedrock:
    """One request: the model stands in its path."""

    content_type = "application/vnd.amazon.eventstream"
    _FIELDS = frozenset(
        {"messages", "system", "inferenceConfig", "toolConfig", "additionalModelRequestFields"}
    )

    def __init__(self) -> None:
        self.model = ""
        self._gap = self._alone = False

    def read(self, body: Any, headers: Mapping[str, str]) -> Asked:
        _require(isinstance(body, dict), "The request body is not valid JSON")
        for name in body:
            _require(name in self._FIELDS, f"extraneous key [{name}] is not permitted")
        config = body.get("inferenceConfig", {})
        _require(set(config) <= {"maxTokens", "temperature", "topP", "stopSequences"}, "config")
        limit = config.get("maxTokens")
        _require(limit is None or (type(limit) is int and limit > 0), "maxTokens: at least 1")
        name = _VERSION.sub("", _VENDOR.sub("", self.model))
        maker = _VENDOR.match(self.model)
        self._alone = bool(maker) and maker[0].split(".")[-2] in ("meta", "mistral", "writer")
        asked = Asked(name, limit, fields=frozenset(body))
        asked.thinking = claude_thinking(body.get("additionalModelRequestFields", {}), limit or 0)
        if "system" in body:
            _require(body["system"], "system: must not be empty")
            asked.system = "\n".join(self._text(block, "system") for block in body["system"])
        if "toolConfig" in body:
            for tool in body["toolConfig"]["tools"]:
                spec = tool["toolSpec"]
                _require(set(spec) == {"name", "description", "inputSchema"}, "toolSpec")
                _require(_TOOL_NAME.fullmatch(spec["name"]), "toolSpec.name")
                _require(spec["inputSchema"]["json"].get("type") == "object", "inputSchema.json")
                asked.tools.append(spec["name"])
            _require(asked.tools, "toolConfig.tools: at least one")
        messages = body.get("messages")
        _require(isinstance(messages, list) and messages, "messages: at least one is required")
        calls: list[str] = []
        for number, message in enumerate(messages):
            where = f"messages.{number}"
            _require(set(message) == {"role", "content"}, f"{where}: extraneous key")
            role = "assistant" if number % 2 else "user"
            _require(message["role"] == role, f"{where}: roles must alternate, from user on")
            blocks = message["content"]
            _require(isinstance(blocks, list) and blocks, f"{where}: content is empty")
            _require(all(len(block) == 1 for block in blocks), f"{where}: not a union")
            if any("toolUse" in block or "toolResult" in block for block in blocks):
                said = "The toolConfig field must be defined when using toolUse and toolResult"
                _require("toolConfig" in body, said)
            read = self._user if role == "user" else self._assistant
            calls = read(blocks, where, asked, calls)
        _require(not calls, f"toolUse without toolResult: {calls}")
        _require(messages[-1]["role"] == "user", "The conversation must end with a user message.")
        return asked

    def _user(self, blocks: list[Any], where: str, asked: Asked, calls: list[str]) -> list[str]:
        waiting = list(calls)
        results, texts, images = [], [], 0
        for block in blocks:
            kind, value = next(iter(block.items()))
            if kind == "toolResult":
                _require(not texts and not images, f"{where}: toolResult blocks must come first")
                _require(set(value) <= {"toolUseId", "content", "status"}, f"{where}: toolResult")
                _require(value.get("status") in (None, "success", "error"), f"{where}: status")
                said = "The number of toolResult blocks exceeds the number of toolUse blocks"
                _require(value["toolUseId"] in waiting, f"{where}: {said}")
                waiting.remove(value["toolUseId"])
                results.append("".join(self._text(text, where) for text in value["content"]))
            elif kind == "text":
                texts.append(self._text(block, where))
            elif kind == "image":
                _require(value["format"] in ("png", "jpeg", "gif", "webp"), f"{where}: format")
                try:
                    data = base64.b64decode(value["source"]["bytes"], validate=True)
                except binascii.Error:
                    data = b""
                _require(data, f"{where}: the image is not valid base64")
                asked.images.append(f"image/{value['format']}")
                images += 1
            else:
                raise Refusal("bad_request", f"{where}: {kind} is not permitted in a user message")
        _require(not waiting, f"{where}: Expected toolResult blocks for {waiting}")
        mixed = results and (texts or images)
        _require(not (self._alone and mixed), "toolResult must be alone in its message")
        if results or self._gap:
            asked.results += results
            asked.steered += texts
        else:
            asked.rounds, asked.results, asked.steered = 0, [], []
        self._gap = False
        asked.texts += [("user", text) for text in texts]
        return []

    def _assistant(self, blocks: list[Any], where: str, asked: Asked, _: list[str]) -> list[str]:
        if blocks == [{"text": "."}]:  # between results and what may not stand beside them
            self._gap = True
            return []
        calls = []
        for block in blocks:
            kind, value = next(iter(block.items()))
            if kind == "text":
                asked.texts.append(("assistant", self._text(block, where)))
            elif kind == "toolUse":
                _require(set(value) == {"toolUseId", "name", "input"}, f"{where}: toolUse")
                _require(_TOOL_ID.fullmatch(value["toolUseId"]), f"{where}: toolUseId")
                _require(_TOOL_NAME.fullmatch(value["name"]), f"{where}: toolUse.name")
                _require(isinstance(value["input"], dict), f"{where}: toolUse.input")
                calls.append(value["toolUseId"])
            elif kind == "reasoningContent":
                if "redactedContent" in value:
                    _require(value["redactedContent"] == REDACTED, f"{where}: redactedContent")
                else:
                    said = value["reasoningText"]
                    _require(said["signature"] == _signature(said["text"]), f"{where}: signature")
            else:
                raise Refusal("bad_request", f"{where}: {kind} is not permitted")
        asked.rounds += bool(calls)
        if calls and asked.model.startswith("thinking"):
            _require("reasoningContent" in blocks[0], f"{where}: Expected reasoningContent first")
        return calls

    def _text(self, block: Mapping[str, Any], where: str) -> str:
        text = block.get("text")
        said = f"The text field in the ContentBlock object at {where} is blank."
        _require(isinstance(text, str) and text.strip() and len(block) == 1, said)
        return text

    def error(self, refusal: Refusal) -> tuple[int, dict[str, Any]]:
        message, extra = refusal.message, refusal.extra
        if refusal.kind == "aws":
            status, name = extra["status"], extra["name"]
        else:
            status, name = {
                "auth": (403, "UnrecognizedClientException"),
                "forbidden": (403, "AccessDeniedException"),
                "endpoint": (404, "UnknownOperationException"),
                "model": (400, "ValidationException"),
                "rate": (429, "ThrottlingException"),
                "quota": (400, "ServiceQuotaExceededException"),
                "context": (400, "ValidationException"),
                "large": (413, "RequestEntityTooLargeException"),
                "server": (500, "InternalServerException"),
                "overloaded": (503, "ServiceUnavailableException"),
                "unavailable": (503, "ServiceUnavailableException"),
                "bad_request": (400, "ValidationException"),
            }[refusal.kind]
        if refusal.kind == "context":  # it has no name: people know it by these words
            message = "The model returned the following errors: Input is too long for requested "
            message += "model."
        if refusal.kind == "model":
            message = "The provided model identifier is invalid."
        if extra.get("sts"):
            return status, {"Error": {"Code": name, "Message": message, "Type": "Sender"}}
        headers = extra.setdefault("headers", {})
        headers["x-amzn-errortype"] = f"{name}:http://internal.amazon.com/coral/com.amazon.bedrock/"
        return status, {"Message" if extra.get("capital") else "message": message}

    def reply(self, asked: Asked, number: int) -> BedrockReply:
        return BedrockReply(asked, number)


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A message of the event stream."""
    head = b""
    for name, text in headers.items():
        value = text.encode()
        head += struct.pack(">B", len(name)) + name.encode()
        head += struct.pack(">BH", 7, len(value)) + value
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))


def event(kind: str, data: dict[str, Any]) -> bytes:
    headers = {
        ":event-type": kind,
        ":content-type": "application/json",
        ":message-type": "event",
    }
    return frame(headers, orjson.dumps({**data, "p": "abcdefghijk"}))


def exception(kind: str, data: dict[str, Any]) -> bytes:
    headers = {
        ":exception-type": kind,
        ":content-type": "application/json",
        ":message-type": "exception",
    }
    return frame(headers, orjson.dumps(data))


class BedrockReply:
    def __init__(self, asked: Asked, number: int) -> None:
        self._asked = asked
        self._number = number
        self._open = ""  # the kind of the open block
        self._index = -1
        self._thinking = ""

    def _delta(self, delta: dict[str, Any]) -> bytes:
        data = {"contentBlockIndex": self._index, "delta": delta}
        return event("contentBlockDelta", data)

    def _block(self, kind: str) -> bytes:
        """Opens a block of this kind unless it is open, and closes the one before. Only a tool's
        use has an event for its beginning."""
        if kind == self._open and kind != "toolUse":
            return b""
        closing = b""
        if self._open == "thinking":
            signature = {"signature": _signature(self._thinking)}
            closing = self._delta({"reasoningContent": signature})
            self._thinking = ""
        if self._open:
            closing += event("contentBlockStop", {"contentBlockIndex": self._index})
        self._open = kind
        self._index += bool(kind)
        return closing

    def begin(self) -> bytes:
        return event("messageStart", {"role": "assistant"})

    def say(self, text: str) -> bytes:
        return self._block("text") + self._delta({"text": text})

    def think(self, text: str) -> bytes:
        opening = self._block("thinking")
        self._thinking += text
        return opening + self._delta({"reasoningContent": {"text": text}})

    def redacted(self) -> bytes:
        opening = self._block("redacted")
        return opening + self._delta({"reasoningContent": {"redactedContent": REDACTED}})

    def call(self, name: str, arguments: str) -> bytes:
        sent = self._block("toolUse")
        use = {"toolUseId": f"tooluse_fake-{self._number}-{self._index}", "name": name}
        start = {"contentBlockIndex": self._index, "start": {"toolUse": use}}
        sent += event("contentBlockStart", start)
        half = len(arguments) // 2
        for piece in ("", arguments[:half], arguments[half:]):
            sent += self._delta({"toolUse": {"input": piece}})
        return sent

    def end(self, reason: str, tokens: int, cached: tuple[int, int]) -> bytes:
        own = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
        own["refusal"] = "content_filtered"
        read, written = cached
        fresh = self._asked.input_tokens
        usage = {
            "inputTokens": fresh,
            "outputTokens": tokens,
            "totalTokens": fresh + tokens + read + written,
            "cacheReadInputTokens": read,
            "cacheWriteInputTokens": written,
        }
        stop = event("messageStop", {"stopReason": own[reason]})
        final = event("metadata", {"usage": usage, "metrics": {"latencyMs": 12}})
        return self._block("") + stop + final

    def fail(self, refusal: Refusal) -> bytes:
        name = {
            "rate": "throttlingException",
            "server": "internalServerException",
            "bad_request": "validationException",
        }.get(refusal.kind, "serviceUnavailableException")
        return exception(name, {"message": refusal.message})
