"""Gemini's `generateContent`: history into a request, the event stream into events.

A thought signature is opaque and goes back in the very part that it came in. A streamed text is one
part of ours and many of Gemini's, so a text keeps where its signed pieces are::

    {"t": "text", "text": …, "sig": {"thoughtSignatures": [[start, length, signature], …]}}
    {"t": "thinking", "text": …, "sig": {"thought": true, "thoughtSignature"?: …}}
    {"t": "tool_call", …, "sig"?: {"thoughtSignature"?: …, "id"?: the provider's own id}}
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

from connections.providers import thinking
from connections.providers.base import (
    ErrorKind,
    Event,
    ListedModel,
    ModelRequest,
    Part,
    ProviderError,
    TextDelta,
    TextEnd,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    ToolSpec,
    Usage,
)
from connections.providers.errors import Scrubber, from_payload, unwrapped
from connections.providers.wire import gemini_schema, toolargs
from connections.providers.wire.held import Held
from connections.providers.wire.history import Entry, settle
from connections.providers.wire.lenient_json import clean, loads
from connections.providers.wire.numbers import count
from connections.providers.wire.sse import SSEParser

MAX_CALLS = 128  # in one reply

_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "refusal",
    "RECITATION": "refusal",
    "LANGUAGE": "refusal",
    "BLOCKLIST": "refusal",
    "PROHIBITED_CONTENT": "refusal",
    "SPII": "refusal",
    "MODEL_ARMOR": "refusal",
    "IMAGE_SAFETY": "refusal",
    "IMAGE_PROHIBITED_CONTENT": "refusal",
    "IMAGE_RECITATION": "refusal",
}
# The model wrote a call that nobody can make, and the reply is over without one.
_BROKEN_CALL = frozenset({"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"})
# Google's own word for "this call has no signature": the first call of a reply is refused without
# one, and replies of another model have none.
_NO_SIGNATURE = base64.b64encode(b"skip_thought_signature_validator").decode()


class Gemini:
    name: ClassVar[str] = "gemini"
    auth_header: ClassVar[str] = "bearer"
    headers: ClassVar[Mapping[str, str]] = {}
    models_path: ClassVar[str] = ""

    def __init__(self, place: str) -> None:
        """`place` is the model's path, `…/publishers/google/models/M`."""
        self._place = place

    def chat_path(self, model: str) -> str:
        return f"{self._place}:streamGenerateContent?alt=sse"

    def body(self, request: ModelRequest, *, max_tokens_field: str = "") -> dict[str, Any]:
        config: dict[str, Any] = {"maxOutputTokens": request.max_tokens}
        if thinks := thinking.for_gemini(request.model, request.thinking):
            config["thinkingConfig"] = thinks
        body: dict[str, Any] = {"contents": contents(request), "generationConfig": config}
        if request.system.strip():
            parts = [{"text": clean(request.system)}]
            body["systemInstruction"] = {"role": "user", "parts": parts}
        if request.tools:
            body["tools"] = [{"functionDeclarations": [_tool(tool) for tool in request.tools]}]
        return body

    def parser(self) -> SSEParser:
        return SSEParser()

    def decoder(self, scrub: Scrubber) -> GeminiDecoder:
        return GeminiDecoder(scrub)

    def models(self, entries: list[Any]) -> list[ListedModel]:
        return []  # the list is its host's affair


def contents(request: ModelRequest) -> list[dict[str, Any]]:
    """The history alone, as `countTokens` takes it too."""
    made: list[dict[str, Any]] = []
    own_ids: dict[str, str] = {}  # of the calls of the reply before
    for entry in settle(request.history, keep_signed=True):
        if entry.role == "user":
            made += _user(entry, own_ids)
        elif parts := _model(entry):
            made.append({"role": "model", "parts": parts})
            own_ids = {call["id"]: own for call in entry.calls if (own := _kept(call, "id"))}
    return made


def _user(entry: Entry, own_ids: Mapping[str, str]) -> list[dict[str, Any]]:
    """Results stand alone: Gemini takes all that stands beside them for the model's own words."""
    parts = [_result(result, own_ids) for result in entry.results]
    others = [_content(part) for part in entry.parts]
    return [{"role": "user", "parts": group} for group in (parts, others) if group]


def _result(result: Part, own_ids: Mapping[str, str]) -> dict[str, Any]:
    response = {"error" if result.get("is_error") else "output": result["text"]}
    answer: dict[str, Any] = {"name": result["name"], "response": response}
    if own := own_ids.get(result["id"]):
        answer["id"] = own
    return {"functionResponse": answer}


def _content(part: Part) -> dict[str, Any]:
    if part["t"] == "image":
        return {"inlineData": {"mimeType": part["media_type"], "data": part["data"]}}
    return {"text": part["text"]}


def _model(entry: Entry) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    called = False
    for part in entry.parts:
        if part["t"] == "text":
            parts += _pieces(part)
        elif part["t"] == "thinking":
            if _kept(part, "thought"):  # without it, it was cut off or is another wire's
                parts.append(_signed({"text": part["text"], "thought": True}, part))
        elif part["t"] == "tool_call":
            call: dict[str, Any] = {"name": part["name"], "args": part["args"]}
            if own := _kept(part, "id"):
                call["id"] = own
            made = _signed({"functionCall": call}, part)
            if not called:
                made.setdefault("thoughtSignature", _NO_SIGNATURE)
            called = True
            parts.append(made)
    return parts


def _pieces(part: Part) -> list[dict[str, Any]]:
    """A text cut where Gemini cut it, as far as a signature depends on it."""
    text, at = part["text"], 0
    pieces: list[dict[str, Any]] = []
    for start, length, signature in _kept(part, "thoughtSignatures") or ():
        if start > at:
            pieces.append({"text": text[at:start]})
        at = start + length
        pieces.append({"text": text[start:at], "thoughtSignature": signature})
    if at < len(text):
        pieces.append({"text": text[at:]})
    return pieces


def _signed(made: dict[str, Any], part: Part) -> dict[str, Any]:
    signature = _kept(part, "thoughtSignature")
    return {**made, "thoughtSignature": signature} if signature else made


def _kept(part: Part, name: str) -> Any:
    sig = part.get("sig")
    return sig.get(name) if isinstance(sig, dict) else None


def _tool(tool: ToolSpec) -> dict[str, Any]:
    made: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if parameters := gemini_schema.parameters(tool.parameters):
        made["parameters"] = parameters
    return made


class GeminiDecoder:
    def __init__(self, scrub: Scrubber) -> None:
        self.reason = ""
        self.over = False
        self._scrub = scrub
        self._thinking = False
        self._at = 0  # characters of the open text
        self._signed: list[list[Any]] = []  # its signed pieces
        self._calls = 0
        self._held = Held()
        self._usage: dict[str, int] = {}

    def feed(self, name: bytes, data: bytes, out: list[Event]) -> None:
        try:
            chunk = unwrapped(loads(data))
        except ValueError:
            chunk = None
        if type(chunk) is not dict:
            raise ProviderError(ErrorKind.PROTOCOL, "A part of the stream is not a JSON object.")
        if chunk.get("error") or name == b"error":
            raise from_payload(chunk, self._scrub)
        candidates = chunk.get("candidates")
        if type(candidates) is list and candidates and type(candidates[0]) is dict:
            self._read_candidate(candidates[0], out)
        feedback = chunk.get("promptFeedback")
        if type(feedback) is dict and feedback.get("blockReason"):
            self.reason = self.reason or "refusal"
        usage = chunk.get("usageMetadata")
        if type(usage) is dict:
            self._read_usage(usage, out)

    def finish(self, out: list[Event]) -> None:
        self._end_thinking(out)
        self._end_text(out)
        if self._calls and self.reason == "stop":
            self.reason = "tool_calls"

    def _read_candidate(self, candidate: dict[str, Any], out: list[Event]) -> None:
        content = candidate.get("content")
        parts = content.get("parts") if type(content) is dict else None
        for part in parts if type(parts) is list else ():
            if type(part) is dict:
                self._read_part(part, out)
        reason = candidate.get("finishReason")
        if type(reason) is not str or not reason:
            return
        if reason in _BROKEN_CALL:
            words = candidate.get("finishMessage")
            message = words if type(words) is str and words else "The model's tool call is broken."
            raise ProviderError(ErrorKind.SERVER, self._scrub(message), code=reason)
        self.reason = _REASONS.get(reason, "other")

    def _read_part(self, part: dict[str, Any], out: list[Event]) -> None:
        given = part.get("thoughtSignature")
        signature = self._held(given) if type(given) is str else ""
        found = part.get("text")
        text = found if type(found) is str else ""
        if type(part.get("functionCall")) is dict:
            self._end_thinking(out)
            self._end_text(out)
            out.append(self._call(part["functionCall"], signature))
        elif part.get("thought") is True:
            self._end_text(out)
            if signature:
                self._end_thinking(out)
            if text:
                out.append(ThinkingDelta(text))
            self._thinking = self._thinking or bool(text or signature)
            if signature:
                self._end_thinking(out, signature)
        elif text or signature:
            self._end_thinking(out)
            if text:
                out.append(TextDelta(text))
            if signature:
                self._signed.append([self._at, len(text), signature])
            self._at += len(text)

    def _call(self, call: dict[str, Any], signature: str) -> ToolCall:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise ProviderError(ErrorKind.PROTOCOL, "Too many tool calls in one reply.")
        name, own, given = call.get("name"), call.get("id"), call.get("args")
        # written and read: as it can be stored and sent back
        args, raw = toolargs.parse("" if given is None else self._held(toolargs.written(given)))
        sig: dict[str, str] = {}
        if signature:
            sig["thoughtSignature"] = signature
        if type(own) is str and own:
            sig["id"] = own
        # Its own id may be any text, and come twice in a conversation: ours is what results name.
        made = f"call_{secrets.token_hex(8)}"
        return ToolCall(made, name if type(name) is str else "", args, raw, sig or None)

    def _end_thinking(self, out: list[Event], signature: str = "") -> None:
        if self._thinking:
            signed = {"thoughtSignature": signature} if signature else {}
            out.append(ThinkingEnd({"thought": True, **signed}))
            self._thinking = False

    def _end_text(self, out: list[Event]) -> None:
        if self._signed:
            out.append(TextEnd({"thoughtSignatures": self._signed}))
            self._signed = []
        self._at = 0

    def _read_usage(self, usage: dict[str, Any], out: list[Event]) -> None:
        for key in (
            "promptTokenCount",
            "toolUsePromptTokenCount",
            "candidatesTokenCount",
            "thoughtsTokenCount",
            "cachedContentTokenCount",
        ):
            if usage.get(key) is not None:  # each is a running total
                self._usage[key] = count(usage[key])
        seen = self._usage
        if not seen:
            return  # the first chunks may have no more than the kind of traffic
        out.append(
            Usage(
                input_tokens=seen.get("promptTokenCount", 0)
                + seen.get("toolUsePromptTokenCount", 0),
                output_tokens=seen.get("candidatesTokenCount", 0)
                + seen.get("thoughtsTokenCount", 0),
                cache_read_tokens=seen.get("cachedContentTokenCount", 0),
            )
        )
        self.over = bool(self.reason)
