"""Anthropic's Messages API: history into a request, the event stream into events."""

from __future__ import annotations

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
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    Usage,
)
from connections.providers.errors import Scrubber, from_payload
from connections.providers.wire import toolargs
from connections.providers.wire.held import Held
from connections.providers.wire.history import Entry, settle
from connections.providers.wire.lenient_json import clean, loads
from connections.providers.wire.numbers import count
from connections.providers.wire.sse import SSEParser

VERSION = "2023-06-01"
MAX_BLOCKS = 1024  # in one reply

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}


class AnthropicMessages:
    name: ClassVar[str] = "anthropic-messages"
    auth_header: ClassVar[str] = "x-api-key"
    headers: ClassVar[Mapping[str, str]] = {"anthropic-version": VERSION}
    models_path: ClassVar[str] = "/v1/models?limit=1000"

    def chat_path(self, model: str) -> str:
        return "/v1/messages"

    def body(self, request: ModelRequest, *, max_tokens_field: str = "") -> dict[str, Any]:
        messages = []
        for entry in settle(request.history):
            content = _user(entry) if entry.role == "user" else _assistant(entry)
            messages.append({"role": entry.role, "content": content})
        body: dict[str, Any] = {
            "model": request.model,
            "max_tokens": request.max_tokens,
            "messages": messages,
            "stream": True,
        }
        if request.system.strip():
            body["system"] = clean(request.system)
        if request.tools:
            body["tools"] = [
                {
                    "name": tool.name,
                    "description": tool.description,
                    "input_schema": dict(tool.parameters),
                }
                for tool in request.tools
            ]
        return body | thinking.for_claude(request.model, request.thinking, request.max_tokens)

    def parser(self) -> SSEParser:
        return SSEParser()

    def decoder(self, scrub: Scrubber) -> AnthropicMessagesDecoder:
        return AnthropicMessagesDecoder(scrub)

    def models(self, entries: list[Any]) -> list[ListedModel]:
        return [
            ListedModel(
                id=clean(entry["id"]),
                name=clean(name) if isinstance(name := entry.get("display_name"), str) else "",
            )
            for entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
        ]


def _user(entry: Entry) -> list[dict[str, Any]]:
    return [_result(result) for result in entry.results] + [_content(part) for part in entry.parts]


def _result(result: Part) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": result["id"], "content": result["text"]}
    return {**block, "is_error": True} if result.get("is_error") else block


def _content(part: Part) -> dict[str, Any]:
    if part["t"] == "image":
        source = {"type": "base64", "media_type": part["media_type"], "data": part["data"]}
        return {"type": "image", "source": source}
    return {"type": "text", "text": part["text"]}


def _assistant(entry: Entry) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for part in entry.parts:
        if part["t"] == "text":
            content.append({"type": "text", "text": part["text"]})
        elif part["t"] == "tool_call":
            content.append(
                {
                    "type": "tool_use",
                    "id": part["id"],
                    "name": part["name"],
                    "input": part["args"],
                }
            )
        elif part["t"] == "thinking":
            sig = part.get("sig")
            # without its signature a block is refused: it was cut off, or is another wire's
            if isinstance(sig, str):
                content.append({"type": "thinking", "thinking": part["text"], "signature": sig})
            elif isinstance(sig, dict) and "redacted" in sig:
                content.append({"type": "redacted_thinking", "data": sig["redacted"]})
    return content


class _Block:
    __slots__ = ("arguments", "id", "kind", "name", "sig")

    def __init__(self, kind: Any, start: dict[str, Any]) -> None:
        self.kind = kind
        self.id = _text(start, "id")
        self.name = _text(start, "name")
        self.sig = [_text(start, "signature")]
        self.arguments: list[str] = []
        given = start.get("input")
        if kind == "tool_use" and type(given) is dict and given:
            self.arguments.append(toolargs.written(given))


class AnthropicMessagesDecoder:
    def __init__(self, scrub: Scrubber) -> None:
        self.reason = ""
        self.over = False
        self._scrub = scrub
        self._blocks: dict[Any, _Block] = {}
        self._held = Held()
        self._started = 0
        self._usage: dict[str, int] = {}

    def feed(self, name: bytes, data: bytes, out: list[Event]) -> None:
        try:
            event = loads(data)
        except ValueError:
            event = None
        if type(event) is not dict:
            raise ProviderError(ErrorKind.PROTOCOL, "A part of the stream is not a JSON object.")
        kind = event.get("type")
        if kind == "content_block_delta":
            delta = event.get("delta")
            if type(delta) is dict:
                self._read_delta(event.get("index"), delta, out)
        elif kind == "content_block_start":
            self._start_block(event.get("index"), _object(event, "content_block"), out)
        elif kind == "content_block_stop":
            self._end_block(event.get("index"), out)
        elif kind == "message_start":
            self._read_usage(_object(_object(event, "message"), "usage"), out)
        elif kind == "message_delta":
            reason = _object(event, "delta").get("stop_reason")
            if type(reason) is str and reason:
                self.reason = _REASONS.get(reason, "other")
            self._read_usage(_object(event, "usage"), out)
        elif kind == "message_stop":
            self.over = True
        elif kind == "error" or event.get("error") or name == b"error":
            raise from_payload(event, self._scrub)

    def finish(self, out: list[Event]) -> None:
        for index in list(self._blocks):
            self._end_block(index, out)

    def _read_delta(self, index: Any, delta: dict[str, Any], out: list[Event]) -> None:
        kind = delta.get("type")
        if kind == "text_delta":
            text = delta.get("text")
            if type(text) is str and text:
                out.append(TextDelta(text))
        elif kind == "thinking_delta":
            text = delta.get("thinking")
            if type(text) is str and text:
                out.append(ThinkingDelta(text))
        elif block := self._block(index):
            if kind == "input_json_delta":
                block.arguments.append(self._held(_text(delta, "partial_json")))
            elif kind == "signature_delta":
                block.sig.append(self._held(_text(delta, "signature")))

    def _start_block(self, index: Any, start: dict[str, Any], out: list[Event]) -> None:
        self._started += 1
        if self._started > MAX_BLOCKS:
            raise ProviderError(ErrorKind.PROTOCOL, "Too many blocks in one reply.")
        kind = start.get("type")
        if type(index) is int:
            block = self._blocks[index] = _Block(kind, start)
            for text in (*block.sig, *block.arguments):
                self._held(text)
        if kind == "text" and (text := _text(start, "text")):
            out.append(TextDelta(text))
        elif kind == "thinking" and (text := _text(start, "thinking")):
            out.append(ThinkingDelta(text))
        elif kind == "redacted_thinking":
            out.append(ThinkingEnd({"redacted": self._held(_text(start, "data"))}))

    def _end_block(self, index: Any, out: list[Event]) -> None:
        block = self._block(index)
        if block is None:
            return
        del self._blocks[index]
        if block.kind == "thinking":
            out.append(ThinkingEnd("".join(block.sig)))
        elif block.kind == "tool_use":
            args, raw = toolargs.parse("".join(block.arguments))
            out.append(ToolCall(block.id, block.name, args, raw))

    def _block(self, index: Any) -> _Block | None:
        return self._blocks.get(index) if type(index) is int else None

    def _read_usage(self, usage: dict[str, Any], out: list[Event]) -> None:
        for key in (
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        ):
            if usage.get(key) is not None:  # each is a running total; the start has most of them
                self._usage[key] = count(usage[key])
        if not usage:
            return
        seen = self._usage
        read, written = (seen.get(f"cache_{kind}_input_tokens", 0) for kind in ("read", "creation"))
        out.append(
            Usage(
                # Anthropic's input leaves out what the cache was read or written with
                input_tokens=seen.get("input_tokens", 0) + read + written,
                output_tokens=seen.get("output_tokens", 0),
                cache_read_tokens=read,
                cache_write_tokens=written,
            )
        )


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if type(found) is dict else {}


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    return found if type(found) is str else ""
