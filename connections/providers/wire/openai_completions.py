"""OpenAI's Chat Completions, as its API reference has it and as its many imitators speak it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, ClassVar

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
    ToolSpec,
    Usage,
)
from connections.providers.errors import Scrubber, from_payload
from connections.providers.wire import toolargs
from connections.providers.wire.held import Held
from connections.providers.wire.history import Entry, settle
from connections.providers.wire.lenient_json import clean, dumps, loads
from connections.providers.wire.numbers import count, positive
from connections.providers.wire.sse import SSEParser

MAX_CALLS = 128  # in one reply

_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "refusal",
}
# There is no standard place for reasoning. DeepSeek and vLLM use the first, OpenRouter and Groq
# the second; it is sent back under the name it came by. DeepSeek wants back all of an answer that
# used tools, for as long as that is part of the conversation (api-docs.deepseek.com, "Thinking
# Mode"), and nothing of others.
_REASONING = ("reasoning_content", "reasoning")


class OpenAICompletions:
    name: ClassVar[str] = "openai-completions"
    auth_header: ClassVar[str] = "bearer"
    headers: ClassVar[Mapping[str, str]] = {}
    models_path: ClassVar[str] = "/models"

    def chat_path(self, model: str) -> str:
        return "/chat/completions"

    def body(self, request: ModelRequest, *, max_tokens_field: str = "") -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        if request.system.strip():
            messages.append({"role": "system", "content": clean(request.system)})
        used_tools = False
        for entry in settle(request.history):
            if entry.role == "user":
                used_tools = used_tools and bool(entry.results)
                messages.extend(_user(entry))
            else:
                used_tools = used_tools or bool(entry.calls)
                messages.append(_assistant(entry, with_reasoning=used_tools))
        body: dict[str, Any] = {
            "model": request.model,
            "messages": messages,
            max_tokens_field or "max_tokens": request.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if request.thinking and request.thinking != "off":
            body["reasoning_effort"] = request.thinking
        return body

    def parser(self) -> SSEParser:
        return SSEParser()

    def decoder(self, scrub: Scrubber) -> OpenAICompletionsDecoder:
        return OpenAICompletionsDecoder(scrub)

    def models(self, entries: list[Any]) -> list[ListedModel]:
        return [
            ListedModel(
                id=clean(entry["id"]),
                name=clean(name) if isinstance(name := entry.get("name"), str) else "",
                # OpenRouter, Groq, vLLM
                context_window=positive(entry.get("context_length"))
                or positive(entry.get("context_window"))
                or positive(entry.get("max_model_len")),
                supports_images=_takes_images(entry),
            )
            for entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
        ]


def _takes_images(entry: dict[str, Any]) -> bool | None:
    architecture = entry.get("architecture")
    inputs = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    return "image" in inputs if isinstance(inputs, list) else None


def _user(entry: Entry) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [
        {"role": "tool", "tool_call_id": result["id"], "content": result["text"]}
        for result in entry.results
    ]
    if any(part["t"] == "image" for part in entry.parts):
        messages.append({"role": "user", "content": [_content(part) for part in entry.parts]})
    elif entry.parts:
        messages.append({"role": "user", "content": entry.text})
    return messages


def _content(part: Part) -> dict[str, Any]:
    if part["t"] == "image":
        url = f"data:{part['media_type']};base64,{part['data']}"
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "text", "text": part["text"]}


def _assistant(entry: Entry, *, with_reasoning: bool) -> dict[str, Any]:
    calls = entry.calls
    message: dict[str, Any] = {"role": "assistant", "content": entry.text or None}
    if calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": dumps(call["args"]).decode()},
            }
            for call in calls
        ]
    if with_reasoning:
        for part in entry.parts:
            sig = part.get("sig")
            if part["t"] == "thinking" and isinstance(sig, dict) and sig.get("field") in _REASONING:
                field = sig["field"]
                message[field] = message.get(field, "") + part["text"]
    return message


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
        },
    }


class _Call:
    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []


class OpenAICompletionsDecoder:
    def __init__(self, scrub: Scrubber) -> None:
        self.reason = ""
        self.over = False
        self._scrub = scrub
        self._thinking = ""  # the field in which the open thinking comes
        self._calls: list[_Call] = []
        self._held = Held()
        self._by_index: dict[int, _Call] = {}

    def feed(self, name: bytes, data: bytes, out: list[Event]) -> None:
        if data == b"[DONE]":
            self.over = True
            return
        try:
            chunk = loads(data)
        except ValueError:
            chunk = None
        if type(chunk) is not dict:
            raise ProviderError(ErrorKind.PROTOCOL, "A part of the stream is not a JSON object.")
        choices = chunk.get("choices")
        if type(choices) is list and choices and type(choices[0]) is dict:
            choice = choices[0]
            delta = choice.get("delta")
            if type(delta) is dict:
                self._read_delta(delta, out)
            reason = choice.get("finish_reason")
            if type(reason) is str and reason:
                self.reason = _REASONS.get(reason, "other")
        if chunk.get("error") or chunk.get("object") == "error" or name == b"error":
            raise from_payload(chunk, self._scrub)
        usage = chunk.get("usage")
        if type(usage) is dict:
            out.append(_usage(usage))

    def finish(self, out: list[Event]) -> None:
        self._end_thinking(out)
        for call in self._calls:
            args, raw = toolargs.parse("".join(call.arguments))
            out.append(ToolCall(call.id or f"call_{secrets.token_hex(8)}", call.name, args, raw))
        if self._calls and self.reason == "stop":
            self.reason = "tool_calls"  # several servers say "stop" whatever they ask for

    def _read_delta(self, delta: dict[str, Any], out: list[Event]) -> None:
        for field in _REASONING:
            text = delta.get(field)
            if type(text) is str and text:
                self._thinking = field
                out.append(ThinkingDelta(text))
                break
        for field in ("content", "refusal"):
            text = delta.get(field)
            if type(text) is str and text:
                if self._thinking:
                    self._end_thinking(out)
                out.append(TextDelta(text))
        calls = delta.get("tool_calls")
        if type(calls) is list:
            self._end_thinking(out)
            for piece in calls:
                if type(piece) is dict:
                    self._read_call(piece)

    def _read_call(self, piece: dict[str, Any]) -> None:
        index = piece.get("index")
        call_id = piece.get("id")
        function = piece.get("function")
        name = function.get("name") if type(function) is dict else None
        call = self._by_index.get(index) if type(index) is int else None
        if call is None and type(index) is not int and self._calls and not name:
            call = self._calls[-1]
        if call and name and call.id and call_id and call.id != call_id:
            call = None  # some servers give every call the index 0
        if call is None:
            if len(self._calls) >= MAX_CALLS:
                raise ProviderError(ErrorKind.PROTOCOL, "Too many tool calls in one reply.")
            call = _Call()
            self._calls.append(call)
            if type(index) is int:
                self._by_index[index] = call
        if type(call_id) is str and call_id and not call.id:
            call.id = call_id
        if type(name) is str and name and not call.name:
            call.name = name
        arguments = function.get("arguments") if type(function) is dict else None
        if type(arguments) is str:
            call.arguments.append(self._held(arguments))
        elif type(arguments) is dict:  # an object where the format wants its text
            call.arguments.append(self._held(toolargs.written(arguments)))

    def _end_thinking(self, out: list[Event]) -> None:
        if self._thinking:
            out.append(ThinkingEnd({"field": self._thinking}))
            self._thinking = ""


def _usage(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if type(details) is dict else None
    return Usage(
        input_tokens=count(usage.get("prompt_tokens")),
        output_tokens=count(usage.get("completion_tokens")),
        cache_read_tokens=count(cached) or count(usage.get("prompt_cache_hit_tokens")),  # DeepSeek
    )
