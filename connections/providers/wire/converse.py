"""Bedrock's Converse: history into a request, the events of its stream into ours.

One dialect for the models of all vendors. Where a vendor's models refuse what the others take, the
model's id tells whose it is.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from connections.providers import thinking
from connections.providers.base import (
    ErrorKind,
    Event,
    ListedModel,
    ModelRequest,
    Part,
    ProviderError,
    TextDelta,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    Usage,
)
from connections.providers.errors import Scrubber, from_aws_exception
from connections.providers.wire import toolargs
from connections.providers.wire.aws_event_stream import EXCEPTION, EventStreamParser
from connections.providers.wire.held import Held
from connections.providers.wire.history import Entry, settle
from connections.providers.wire.lenient_json import clean, dumps, loads
from connections.providers.wire.numbers import count

MAX_BLOCKS = 1024  # in one reply

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "content_filtered": "refusal",
    "guardrail_intervened": "refusal",
}
# Their models refuse a message that holds anything else beside the results of tools.
_RESULTS_ALONE = frozenset({"meta", "mistral", "writer"})
_NO_STATUS = frozenset({"writer"})  # of a tool's result
_TOOL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,64}")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
_BARE_CLAUDE = re.compile(
    r"claude-[a-z0-9.-]+?(?P<dated>-20[0-9]{6})?(?P<version>-v[0-9]+(:[0-9]+)?)?"
)
# The inference profiles of a region begin with its geography; other regions have the global ones.
_GEOGRAPHIES = (("us-gov-", "us-gov"), ("us-", "us"), ("ca-", "us"), ("eu-", "eu"))
_PREFIX = re.compile(r"\A(us|us-gov|eu|apac|jp|au|ca|in|sa|me|af|global)\.")


class Converse:
    name: ClassVar[str] = "converse"
    auth_header: ClassVar[str] = "bearer"
    headers: ClassVar[Mapping[str, str]] = {}
    models_path: ClassVar[str] = "/foundation-models"

    def __init__(self, region: str = "", model: str = "") -> None:
        self._region = region
        self._maker = vendor(full_id(model, region))

    def chat_path(self, model: str) -> str:
        return f"/model/{quote(full_id(model, self._region), safe='')}/converse-stream"

    def body(self, request: ModelRequest, *, max_tokens_field: str = "") -> dict[str, Any]:
        entries = settle(request.history)
        if not request.tools:
            # Calls are refused where no tools are offered.
            entries = [_without_tools(entry) for entry in entries]
        maker = self._maker
        messages: list[dict[str, Any]] = []
        for entry in entries:
            if entry.role == "user":
                messages.extend(_user(entry, maker))
            else:
                messages.append({"role": "assistant", "content": _assistant(entry, maker)})
        body: dict[str, Any] = {
            "messages": messages,
            "inferenceConfig": {"maxTokens": request.max_tokens},
        }
        if request.system.strip():
            body["system"] = [{"text": clean(request.system)}]
        if request.tools:
            tools = [
                {
                    "toolSpec": {
                        "name": tool.name,
                        "description": tool.description,
                        "inputSchema": {"json": dict(tool.parameters)},
                    }
                }
                for tool in request.tools
            ]
            body["toolConfig"] = {"tools": tools}
        if thinks := thinking.for_claude(request.model, request.thinking, request.max_tokens):
            body["additionalModelRequestFields"] = thinks
        return body

    def parser(self) -> EventStreamParser:
        return EventStreamParser()

    def decoder(self, scrub: Scrubber) -> ConverseDecoder:
        return ConverseDecoder(scrub, self._maker)

    def models(self, entries: list[Any]) -> list[ListedModel]:
        """Of `modelSummaries`, those that can be called by their id."""
        return [
            ListedModel(
                id=clean(entry["modelId"]),
                name=_name(entry, "modelName"),
                supports_images="IMAGE" in _texts(entry, "inputModalities"),
            )
            for entry in entries
            if isinstance(entry, dict)
            and isinstance(entry.get("modelId"), str)
            and entry["modelId"]
            and talks(entry)
            and "ON_DEMAND" in (_texts(entry, "inferenceTypesSupported") or ["ON_DEMAND"])
        ]

    def profiles(self, entries: list[Any], models: list[Any]) -> list[ListedModel]:
        """Of `inferenceProfileSummaries`, those that lead to models that write text, as far as the
        `modelSummaries` know them."""
        known = {
            entry["modelId"]: entry
            for entry in models
            if isinstance(entry, dict) and isinstance(entry.get("modelId"), str)
        }
        listed = []
        for entry in entries:
            if not isinstance(entry, dict) or entry.get("status") not in (None, "ACTIVE"):
                continue
            # a profile of the account's own is called by its ARN
            own = entry.get("type") == "APPLICATION"
            profile = entry.get("inferenceProfileArn" if own else "inferenceProfileId")
            if not isinstance(profile, str) or not profile:
                continue
            leads_to = [known[model] for model in _models_of(entry) if model in known]
            if leads_to and not any(map(talks, leads_to)):
                continue
            images = ["IMAGE" in _texts(model, "inputModalities") for model in leads_to]
            listed.append(
                ListedModel(
                    id=clean(profile),
                    name=_name(entry, "inferenceProfileName"),
                    supports_images=any(images) if images else None,
                )
            )
        return listed


def full_id(model: str, region: str) -> str:
    """`model`, or for Claude's own name of a model (`claude-…`, which no id of Bedrock's is) the
    inference profile of the region's geography."""
    found = _BARE_CLAUDE.fullmatch(model)
    if not found:
        return model
    where = next((name for start, name in _GEOGRAPHIES if region.startswith(start)), "global")
    version = "-v1:0" if found["dated"] and not found["version"] else ""
    return f"{where}.anthropic.{model}{version}"


def vendor(model: str) -> str:
    """Whose a model is: `meta` for `us.meta.llama4-…`, also in the ARN of a model or profile. ""
    where the id doesn't tell."""
    maker, dot, _ = without_geography(model.rpartition("/")[2]).partition(".")
    return maker if dot else ""


def without_geography(model: str) -> str:
    """`anthropic.claude-…` of the inference profile `us.anthropic.claude-…`."""
    return _PREFIX.sub("", model, count=1)


def talks(entry: Mapping[str, Any]) -> bool:
    """Whether a model streams text."""
    outputs = _texts(entry, "outputModalities")
    return entry.get("responseStreamingSupported") is not False and (
        not outputs or "TEXT" in outputs
    )


def _models_of(profile: Mapping[str, Any]) -> list[str]:
    models = profile.get("models")
    arns = [m.get("modelArn") for m in models if isinstance(m, dict)] if models else []
    return [arn.rpartition("/")[2] for arn in arns if isinstance(arn, str)]


def _texts(entry: Mapping[str, Any], key: str) -> list[str]:
    found = entry.get(key)
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _name(entry: Mapping[str, Any], key: str) -> str:
    name = entry.get(key)
    return clean(name) if isinstance(name, str) else ""


# -- the request -----------------------------------------------------------------------------------


def _user(entry: Entry, maker: str) -> list[dict[str, Any]]:
    results = [_result(result, maker) for result in entry.results]
    content = [_content(part) for part in entry.parts]
    if not (results and content and maker in _RESULTS_ALONE):
        return [{"role": "user", "content": results + content}]
    return [
        {"role": "user", "content": results},
        # two of one role in a row would be taken as one
        {"role": "assistant", "content": [{"text": "."}]},
        {"role": "user", "content": content},
    ]


def _result(result: Part, maker: str) -> dict[str, Any]:
    text = result["text"] if result["text"].strip() else "(no output)"  # a blank one is refused
    failed = bool(result.get("is_error"))
    if failed and maker in _NO_STATUS:
        text = dumps({"error": text}).decode()
    block: dict[str, Any] = {"toolUseId": _tool_id(result["id"]), "content": [{"text": text}]}
    if failed and maker not in _NO_STATUS:
        block["status"] = "error"
    return {"toolResult": block}


def _content(part: Part) -> dict[str, Any]:
    if part["t"] == "image":
        format = part["media_type"].rpartition("/")[2]
        return {"image": {"format": format, "source": {"bytes": part["data"]}}}
    return {"text": part["text"]}


def _assistant(entry: Entry, maker: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for part in entry.parts:
        if part["t"] == "text":
            content.append({"text": part["text"]})
        elif part["t"] == "tool_call":
            use = {
                "toolUseId": _tool_id(part["id"]),
                "name": _NOT_IN_NAMES.sub("_", part["name"])[:64] or "_",
                "input": part["args"],
            }
            content.append({"toolUse": use})
        elif part["t"] == "thinking" and isinstance(sig := part.get("sig"), dict):
            # Refused without its signature (it was cut off, or is another wire's), and by the
            # models of others (sessions may change their model).
            if sig.get("maker") != maker:
                continue
            if "signature" in sig:
                said = {"text": part["text"], "signature": sig["signature"]}
                content.append({"reasoningContent": {"reasoningText": said}})
            elif "redacted_content" in sig:
                hidden = {"redactedContent": sig["redacted_content"]}
                content.append({"reasoningContent": hidden})
    return content


def _without_tools(entry: Entry) -> Entry:
    """Calls and results as words."""
    if not entry.calls and not entry.results:
        return entry
    parts: list[Part] = [
        {"t": "text", "text": f"[Result of {result['name']}: {result['text']}]"}
        for result in entry.results
    ]
    for part in entry.parts:
        if part["t"] == "tool_call":
            called = f"[Called {part['name']} with {dumps(part['args']).decode()}]"
            parts.append({"t": "text", "text": called})
        elif part["t"] != "thinking":
            parts.append(part)
    return Entry(entry.role, parts=parts)


def _tool_id(given: str) -> str:
    """The id of a call, as Bedrock gave it; one of another provider in a form that is accepted."""
    if _TOOL_ID.fullmatch(given):
        return given
    return f"call_{hashlib.sha256(given.encode('utf-8', 'replace')).hexdigest()[:32]}"


# -- the reply -------------------------------------------------------------------------------------


class _Block:
    __slots__ = ("arguments", "id", "name", "redacted", "signature", "thinks")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.thinks = False
        self.signature: list[str] = []
        self.redacted: list[str] = []


class ConverseDecoder:
    def __init__(self, scrub: Scrubber, maker: str = "") -> None:
        self.reason = ""
        self.over = False
        self._scrub = scrub
        self._maker = maker
        self._blocks: dict[int, _Block] = {}
        self._held = Held()
        self._started = 0

    def feed(self, name: bytes, data: bytes, out: list[Event]) -> None:
        if name == b"contentBlockDelta":
            event = _payload(data)
            self._read_delta(event.get("contentBlockIndex"), _object(event, "delta"), out)
        elif name == b"contentBlockStart":
            event = _payload(data)
            use = _object(_object(event, "start"), "toolUse")
            if use and (block := self._block(event.get("contentBlockIndex"))):
                block.id, block.name = _text(use, "toolUseId"), _text(use, "name")
        elif name == b"contentBlockStop":
            self._end_block(_payload(data).get("contentBlockIndex"), out)
        elif name == b"messageStop":
            reason = _payload(data).get("stopReason")
            if type(reason) is str and reason:
                self.reason = _REASONS.get(reason, "other")
        elif name == b"metadata":
            if usage := _object(_payload(data), "usage"):
                out.append(_usage(usage))
            self.over = bool(self.reason)
        elif name.startswith(EXCEPTION):
            kind = name.removeprefix(EXCEPTION).decode("ascii", "replace")
            raise from_aws_exception(kind, data, self._scrub)

    def finish(self, out: list[Event]) -> None:
        for index in list(self._blocks):
            self._end_block(index, out)

    def _read_delta(self, index: Any, delta: dict[str, Any], out: list[Event]) -> None:
        text = delta.get("text")
        if type(text) is str:
            if text:
                out.append(TextDelta(text))
            return
        if thought := _object(delta, "reasoningContent"):
            block = self._block(index)
            if text := _text(thought, "text"):
                out.append(ThinkingDelta(text))
            if block:
                block.thinks = True
                block.signature.append(self._held(_text(thought, "signature")))
                if redacted := _text(thought, "redactedContent"):
                    block.redacted.append(self._held(redacted))
        elif (use := _object(delta, "toolUse")) and (block := self._block(index)):
            block.arguments.append(self._held(_text(use, "input")))

    def _block(self, index: Any) -> _Block | None:
        """The open block of this index, opened if it isn't."""
        if type(index) is not int:
            return None
        if index not in self._blocks:
            self._started += 1
            if self._started > MAX_BLOCKS:
                raise ProviderError(ErrorKind.PROTOCOL, "Too many blocks in one reply.")
            self._blocks[index] = _Block()
        return self._blocks[index]

    def _end_block(self, index: Any, out: list[Event]) -> None:
        block = self._blocks.pop(index, None) if type(index) is int else None
        if block is None:
            return
        if block.thinks:
            sig = {}
            if block.redacted:
                sig = {"redacted_content": _joined(block.redacted)}
            elif signature := "".join(block.signature):
                sig = {"signature": signature}
            out.append(ThinkingEnd({"maker": self._maker, **sig} if sig else None))
        elif block.id or block.name:
            args, raw = toolargs.parse("".join(block.arguments))
            out.append(ToolCall(block.id, block.name, args, raw))


def _joined(pieces: Sequence[str]) -> str:
    """Bytes that came in pieces, each in base64."""
    if len(pieces) == 1:
        return pieces[0]
    try:
        return b64encode(b"".join(map(b64decode, pieces))).decode()
    except ValueError:
        return "".join(pieces)


def _usage(usage: dict[str, Any]) -> Usage:
    read, written = (count(usage.get(f"cache{kind}InputTokens")) for kind in ("Read", "Write"))
    return Usage(
        # the input leaves out what the cache was read or written with
        input_tokens=count(usage.get("inputTokens")) + read + written,
        output_tokens=count(usage.get("outputTokens")),
        cache_read_tokens=read,
        cache_write_tokens=written,
    )


def _payload(data: bytes) -> dict[str, Any]:
    try:
        event = loads(data)
    except ValueError:
        event = None
    if type(event) is not dict:
        raise ProviderError(ErrorKind.PROTOCOL, "A part of the stream is not a JSON object.")
    return event


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if type(found) is dict else {}


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    return found if type(found) is str else ""
