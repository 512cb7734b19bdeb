"""The two wire formats, seen from the provider's side, written from the public API references.

A wire reads a request into what was `Asked`, refusing with the provider's own error whatever the
real one refuses, and encodes a reply's parts as the chunks of its stream.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson


class Refusal(Exception):
    """`kind` names the error; every wire has its own status and words for it."""

    def __init__(self, kind: str, message: str = "", *, param: str | None = None, **extra: Any):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.extra = extra


@dataclass
class Asked:
    model: str
    max_tokens: int | None
    system: str = ""
    texts: list[tuple[str, str]] = field(default_factory=list)  # (role, text), in order
    images: list[str] = field(default_factory=list)  # media types
    tools: list[str] = field(default_factory=list)
    rounds: int = 0  # replies with tool calls since the last message only a person wrote
    results: list[str] = field(default_factory=list)  # of those rounds
    steered: list[str] = field(default_factory=list)  # texts that came with those results
    fields: frozenset[str] = frozenset()  # names of the request's fields
    thinking: str = ""  # what was said about it: a type, an effort, a budget

    @property
    def last_user(self) -> str:
        return next((text for role, text in reversed(self.texts) if role == "user"), "")

    @property
    def input_tokens(self) -> int:
        return len(self.system) // 4 + sum(len(text) // 4 + 1 for _, text in self.texts)


def _require(condition: Any, message: str, param: str | None = None) -> None:
    if not condition:
        raise Refusal("bad_request", message, param=param)


def _data(text: Any, where: str) -> None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raw = b""
    _require(raw, f"{where}: the image is not valid base64")


MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")


# -- OpenAI chat completions -----------------------------------------------------------------------


EFFORTS = ("", "minimal", "low", "medium", "high")


def claude_thinking(body: Mapping[str, Any], limit: int) -> str:
    """What a request says about thinking, in the rules of Anthropic's documentation."""
    thinking, effort = body.get("thinking"), body.get("output_config", {}).get("effort", "")
    _require(effort in EFFORTS, "output_config.effort: Input should be 'low', 'medium' or 'high'")
    if thinking is None:
        return effort
    _require(isinstance(thinking, dict), "thinking: Input should be an object")
    kind = thinking.get("type")
    if kind == "enabled":
        _require(set(thinking) == {"type", "budget_tokens"}, "thinking: Extra inputs")
        budget = thinking["budget_tokens"]
        _require(type(budget) is int and budget >= 1024, "budget_tokens: at least 1024")
        _require(budget < limit, "`max_tokens` must be greater than `thinking.budget_tokens`")
        return f"budget {budget}"
    _require(kind in ("adaptive", "disabled"), "thinking.type: Input should be 'enabled'")
    _require(set(thinking) == {"type"}, "thinking: Extra inputs are not permitted")
    return f"{kind} {effort}".strip()


class OpenAI:
    default_key = "bearer"
    _FIELDS = frozenset(
        {
            "max_completion_tokens",
            "max_tokens",
            "messages",
            "model",
            "parallel_tool_calls",
            "reasoning_effort",
            "seed",
            "stop",
            "stream",
            "stream_options",
            "temperature",
            "tool_choice",
            "tools",
            "top_p",
            "user",
        }
    )

    def read(self, body: Any, headers: Mapping[str, str]) -> Asked:
        _require(isinstance(body, dict), "We could not parse the JSON body of your request.")
        for name in body:
            _require(name in self._FIELDS, f"Unrecognized request argument supplied: {name}", name)
        _require(isinstance(body.get("model"), str), "you must provide a model parameter", "model")
        _require(body.get("stream") is True, "This fake only streams.", "stream")
        limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if name in body]
        _require(len(limits) < 2, "max_tokens and max_completion_tokens can't both be set")
        _require(all(type(n) is int and n > 0 for n in limits), "max_tokens must be positive")
        effort = body.get("reasoning_effort", "")
        _require(effort in EFFORTS, "Invalid value for 'reasoning_effort'", "reasoning_effort")
        asked = Asked(body["model"], limits[0] if limits else None, fields=frozenset(body))
        asked.thinking = effort
        for tool in body.get("tools", []):
            function = tool.get("function", {})
            _require(tool.get("type") == "function", "Invalid tool type", "tools")
            _require(function.get("name"), "Missing tools[].function.name", "tools")
            _require(isinstance(function.get("parameters"), dict), "Invalid schema", "tools")
            asked.tools.append(function["name"])
        messages = body.get("messages")
        _require(isinstance(messages, list) and messages, "messages is too short", "messages")
        waiting: list[str] = []  # ids of calls without a result
        for number, message in enumerate(messages):
            where = f"messages[{number}]"
            role = message.get("role")
            if role == "tool":
                _require(
                    message.get("tool_call_id") in waiting,
                    f"{where}: messages with role 'tool' must be a response to a preceding "
                    "message with 'tool_calls'.",
                    "messages",
                )
                waiting.remove(message["tool_call_id"])
                _require(isinstance(message.get("content"), str), f"{where}.content", "messages")
                asked.results.append(message["content"])
                continue
            _require(
                not waiting,
                "An assistant message with 'tool_calls' must be followed by tool messages "
                f"responding to each 'tool_call_id'. Missing: {waiting}",
                "messages",
            )
            if role in ("system", "developer"):
                _require(number == 0, f"{where}: system must come first", "messages")
                asked.system = message["content"]
            elif role == "user":
                after_results = number > 0 and messages[number - 1].get("role") == "tool"
                text = self._user_content(message, where, asked)
                if after_results:
                    asked.steered.append(text)
                else:
                    asked.rounds, asked.results, asked.steered = 0, [], []
            elif role == "assistant":
                waiting = self._assistant(message, where, asked)
            else:
                raise Refusal("bad_request", f"{where}: invalid role {role!r}", param="messages")
        _require(not waiting, f"Tool calls without results: {waiting}", "messages")
        _require(messages[-1]["role"] in ("user", "tool"), "The last message must be the user's")
        return asked

    def _user_content(self, message: Mapping[str, Any], where: str, asked: Asked) -> str:
        content = message.get("content")
        if isinstance(content, list):
            texts = []
            for part in content:
                if part.get("type") == "text":
                    texts.append(part["text"])
                elif part.get("type") == "image_url":
                    head, _, data = part["image_url"]["url"].partition(";base64,")
                    media_type = head.removeprefix("data:")
                    _require(media_type in MEDIA_TYPES, f"{where}: unsupported image", "messages")
                    _data(data, where)
                    asked.images.append(media_type)
                else:
                    raise Refusal("bad_request", f"{where}: invalid content type", param="messages")
            content = "\n".join(texts)
        _require(isinstance(content, str), f"{where}.content must be text", "messages")
        asked.texts.append(("user", content))
        return content

    def _assistant(self, message: Mapping[str, Any], where: str, asked: Asked) -> list[str]:
        allowed = {"role", "content", "tool_calls", "reasoning_content", "reasoning"}
        _require(set(message) <= allowed, f"{where}: unknown field", "messages")
        calls = message.get("tool_calls", [])
        content = message.get("content")
        _require(calls or content, f"{where}: content or tool_calls must be set", "messages")
        _require("tool_calls" not in message or calls, f"{where}.tool_calls is empty", "messages")
        if content:
            asked.texts.append(("assistant", content))
        for call in calls:
            _require(call.get("type") == "function" and call.get("id"), f"{where}.tool_calls")
            arguments = call["function"]["arguments"]
            try:
                valid = isinstance(json.loads(arguments), dict)
            except (TypeError, ValueError):
                valid = False
            _require(valid, f"{where}: arguments are not a JSON object", "messages")
        if calls:
            asked.rounds += 1
            if asked.model.startswith("thinking"):  # as DeepSeek does
                _require(
                    message.get("reasoning_content"),
                    "The reasoning_content of a reply with tool calls must be passed back.",
                )
        return [call["id"] for call in calls]

    def error(self, refusal: Refusal) -> tuple[int, dict[str, Any]]:
        status, kind, code = {
            "auth": (401, "invalid_request_error", "invalid_api_key"),
            "forbidden": (403, "invalid_request_error", "unsupported_country_region_territory"),
            "endpoint": (404, "invalid_request_error", None),
            "model": (404, "invalid_request_error", "model_not_found"),
            "rate": (429, "requests", "rate_limit_exceeded"),
            "quota": (429, "insufficient_quota", "insufficient_quota"),
            "context": (400, "invalid_request_error", "context_length_exceeded"),
            "large": (413, "invalid_request_error", None),
            "server": (500, "server_error", None),
            "overloaded": (529, "server_error", None),
            "unavailable": (503, "server_error", None),
            "bad_request": (400, "invalid_request_error", refusal.extra.get("code")),
        }[refusal.kind]
        error = {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": code,
        }
        return status, {"error": error}

    def reply(self, asked: Asked, number: int) -> OpenAIReply:
        return OpenAIReply(asked, number)


class OpenAIReply:
    def __init__(self, asked: Asked, number: int) -> None:
        self._asked = asked
        head = {"id": f"chatcmpl-fake-{number}", "object": "chat.completion.chunk"}
        head |= {"created": 1_760_000_000, "model": asked.model}
        self._head = b"data: " + orjson.dumps(head)[:-1]
        self._content = (
            self._head + b',"choices":[{"index":0,"delta":{"content":',
            b'},"finish_reason":null}]}\n\n',
        )
        self._calls = 0

    def _choice(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._head + b',"choices":' + orjson.dumps([choice]) + b"}\n\n"

    def begin(self) -> bytes:
        return self._choice({"role": "assistant", "content": "", "refusal": None})

    def say(self, text: str) -> bytes:
        before, after = self._content
        return before + orjson.dumps(text) + after

    def think(self, text: str) -> bytes:
        return self._choice({"reasoning_content": text})

    def redacted(self) -> bytes:
        return b""

    def call(self, name: str, arguments: str) -> bytes:
        index = self._calls
        self._calls += 1
        half = len(arguments) // 2
        call_id = f"call_{hashlib.sha256(self._head + bytes([index])).hexdigest()[:16]}"
        function = {"name": name, "arguments": ""}
        first = {"index": index, "id": call_id, "type": "function", "function": function}
        pieces = [self._choice({"tool_calls": [first]})]
        for piece in (arguments[:half], arguments[half:]):
            more = {"index": index, "function": {"arguments": piece}}
            pieces.append(self._choice({"tool_calls": [more]}))
        return b"".join(pieces)

    def end(self, reason: str, tokens: int, cached: tuple[int, int]) -> bytes:
        final = self._choice({}, {"refusal": "content_filter"}.get(reason, reason))
        read, written = cached
        prompt = self._asked.input_tokens + read + written
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
            "prompt_tokens_details": {"cached_tokens": read},
        }
        if "stream_options" in self._asked.fields:
            final += self._head + b',"choices":[],"usage":' + orjson.dumps(usage) + b"}\n\n"
        return final + b"data: [DONE]\n\n"

    def fail(self, refusal: Refusal) -> bytes:
        return b"data: " + orjson.dumps(OpenAI().error(refusal)[1]) + b"\n\n"


# -- Anthropic messages ----------------------------------------------------------------------------


def _signature(thinking: str) -> str:
    return "sig-" + hashlib.sha256(thinking.encode()).hexdigest()[:32]


class Anthropic:
    default_key = "x-api-key"
    _FIELDS = frozenset(
        {
            "max_tokens",
            "messages",
            "metadata",
            "model",
            "output_config",
            "stop_sequences",
            "stream",
            "system",
            "temperature",
            "thinking",
            "tool_choice",
            "tools",
            "top_k",
            "top_p",
        }
    )

    def read(self, body: Any, headers: Mapping[str, str]) -> Asked:
        _require(headers.get("anthropic-version"), "anthropic-version: header is required")
        _require(headers["anthropic-version"] == "2023-06-01", "anthropic-version: not valid")
        _require(isinstance(body, dict), "The request body is not valid JSON")
        for name in body:
            _require(name in self._FIELDS, f"{name}: Extra inputs are not permitted")
        for name in ("model", "max_tokens", "messages"):
            _require(name in body, f"{name}: Field required")
        _require(isinstance(body["model"], str), "model: Input should be a valid string")
        limit = body["max_tokens"]
        _require(type(limit) is int and limit > 0, "max_tokens: must be greater than 0")
        _require(body.get("stream") is True, "stream: this fake only streams")
        system = body.get("system", "")
        _require(isinstance(system, str), "system: Input should be a valid string")
        _require("system" not in body or system, "system: text content blocks must be non-empty")
        asked = Asked(body["model"], limit, system=system, fields=frozenset(body))
        asked.thinking = claude_thinking(body, limit)
        for tool in body.get("tools", []):
            _require(set(tool) == {"name", "description", "input_schema"}, "tools: invalid")
            schema = tool["input_schema"]
            _require(schema.get("type") == "object", "tools: input_schema.type: Field required")
            asked.tools.append(tool["name"])
        messages = body["messages"]
        _require(isinstance(messages, list) and messages, "messages: at least one is required")
        calls: list[str] = []
        for number, message in enumerate(messages):
            where = f"messages.{number}"
            _require(set(message) == {"role", "content"}, f"{where}: Extra inputs")
            role = "assistant" if number % 2 else "user"
            _require(message["role"] == role, f"{where}: roles must alternate, from user on")
            blocks = message["content"]
            if isinstance(blocks, str):
                blocks = [{"type": "text", "text": blocks}]
            _require(isinstance(blocks, list) and blocks, f"{where}: content must be non-empty")
            read = self._user if role == "user" else self._assistant
            calls = read(blocks, where, asked, calls)
        _require(not calls, f"messages.{len(messages)}: tool_use without tool_result: {calls}")
        _require(messages[-1]["role"] == "user", "messages: the last one must be the user's")
        return asked

    def _user(self, blocks: list[Any], where: str, asked: Asked, calls: list[str]) -> list[str]:
        waiting = list(calls)
        results, texts = [], []
        for block in blocks:
            kind = block.get("type")
            if kind == "tool_result":
                _require(not texts, f"{where}: tool_result blocks must come first")
                _require(
                    block.get("tool_use_id") in waiting,
                    f"{where}: unexpected `tool_use_id` found in `tool_result` blocks",
                )
                waiting.remove(block["tool_use_id"])
                _require(isinstance(block.get("content"), str), f"{where}: content")
                results.append(block["content"])
            elif kind == "text":
                texts.append(self._text(block, where))
            elif kind == "image":
                source = block.get("source", {})
                _require(source.get("type") == "base64", f"{where}: source.type")
                _require(source.get("media_type") in MEDIA_TYPES, f"{where}: media_type")
                _data(source.get("data"), where)
                asked.images.append(source["media_type"])
            else:
                raise Refusal("bad_request", f"{where}: Input tag {kind!r} is not expected")
        _require(not waiting, f"{where}: `tool_use` ids without `tool_result`: {waiting}")
        if results:
            asked.results += results
            asked.steered += texts
        else:
            asked.rounds, asked.results, asked.steered = 0, [], []
        asked.texts += [("user", text) for text in texts]
        return []

    def _assistant(self, blocks: list[Any], where: str, asked: Asked, _: list[str]) -> list[str]:
        calls = []
        for block in blocks:
            kind = block.get("type")
            if kind == "text":
                asked.texts.append(("assistant", self._text(block, where)))
            elif kind == "tool_use":
                _require(isinstance(block.get("input"), dict), f"{where}: tool_use.input")
                calls.append(block["id"])
            elif kind == "thinking":
                valid = block.get("signature") == _signature(block.get("thinking", ""))
                _require(valid, f"{where}: Invalid `signature` in `thinking` block")
            elif kind == "redacted_thinking":
                valid = block.get("data") == "redacted-by-fake"
                _require(valid, f"{where}: Invalid `data` in `redacted_thinking` block")
            else:
                raise Refusal("bad_request", f"{where}: Input tag {kind!r} is not expected")
        asked.rounds += bool(calls)
        if calls and asked.model.startswith("thinking"):
            _require(
                blocks[0].get("type") in ("thinking", "redacted_thinking"),
                f"{where}: Expected `thinking` or `redacted_thinking`, but found "
                f"`{blocks[0].get('type')}`",
            )
        return calls

    def _text(self, block: Mapping[str, Any], where: str) -> str:
        text = block.get("text")
        _require(isinstance(text, str) and text.strip(), f"{where}: text must be non-empty")
        return text

    def error(self, refusal: Refusal) -> tuple[int, dict[str, Any]]:
        status, kind = {
            "auth": (401, "authentication_error"),
            "forbidden": (403, "permission_error"),
            "endpoint": (404, "not_found_error"),
            "model": (404, "not_found_error"),
            "rate": (429, "rate_limit_error"),
            "quota": (402, "billing_error"),
            "context": (400, "invalid_request_error"),
            "large": (413, "request_too_large"),
            "server": (500, "api_error"),
            "overloaded": (529, "overloaded_error"),
            "unavailable": (503, "api_error"),
            "bad_request": (400, "invalid_request_error"),
        }[refusal.kind]
        message = refusal.message
        if refusal.kind == "context":  # it has no code: people know it by these words
            message = "prompt is too long: 210000 tokens > 200000 maximum"
        if refusal.kind == "model":
            message = f"model: {refusal.extra['model']}"
        error = {"type": kind, "message": message}
        return status, {"type": "error", "error": error, "request_id": "req_fake"}

    def reply(self, asked: Asked, number: int) -> AnthropicReply:
        return AnthropicReply(asked, number)


class AnthropicReply:
    def __init__(self, asked: Asked, number: int) -> None:
        self._asked = asked
        self._number = number
        self._open = ""  # the kind of the open block
        self._index = -1
        self._thinking = ""

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        payload = orjson.dumps({"type": name, **data})
        return b"event: %b\ndata: %b\n\n" % (name.encode(), payload)

    def _usage(self, output: int, cached: tuple[int, int] = (0, 0)) -> dict[str, int]:
        return {
            "input_tokens": self._asked.input_tokens,
            "cache_read_input_tokens": cached[0],
            "cache_creation_input_tokens": cached[1],
            "output_tokens": output,
        }

    def _block(self, kind: str, start: dict[str, Any] | None = None) -> bytes:
        """Opens a block of this kind unless it is open, and closes the one before."""
        if kind == self._open and start is None:
            return b""
        closing = b""
        if self._open == "thinking":
            signature = {"type": "signature_delta", "signature": _signature(self._thinking)}
            data = {"index": self._index, "delta": signature}
            closing = self._event("content_block_delta", data)
            self._thinking = ""
        if self._open:
            closing += self._event("content_block_stop", {"index": self._index})
        self._open = kind
        if not kind:
            return closing
        self._index += 1
        block = start or {"type": kind, kind: ""}
        if kind == "thinking":
            block["signature"] = ""
        opening = {"index": self._index, "content_block": block}
        if kind == "text":
            head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            self._content = (head % self._index) + b'"delta":{"type":"text_delta","text":'
        return closing + self._event("content_block_start", opening)

    def begin(self) -> bytes:
        message = {
            "id": f"msg_fake_{self._number}",
            "type": "message",
            "role": "assistant",
            "model": self._asked.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(1),
        }
        return self._event("message_start", {"message": message}) + self._event("ping", {})

    def say(self, text: str) -> bytes:
        opening = self._block("text")
        return opening + self._content + orjson.dumps(text) + b"}}\n\n"

    def think(self, text: str) -> bytes:
        opening = self._block("thinking")
        self._thinking += text
        delta = {"type": "thinking_delta", "thinking": text}
        return opening + self._event("content_block_delta", {"index": self._index, "delta": delta})

    def redacted(self) -> bytes:
        return self._block(
            "redacted_thinking", {"type": "redacted_thinking", "data": "redacted-by-fake"}
        )

    def call(self, name: str, arguments: str) -> bytes:
        call_id = f"toolu_fake_{self._number}_{self._index + 1}"
        start = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
        sent = self._block("tool_use", start)
        half = len(arguments) // 2
        for piece in ("", arguments[:half], arguments[half:]):
            delta = {"type": "input_json_delta", "partial_json": piece}
            sent += self._event("content_block_delta", {"index": self._index, "delta": delta})
        return sent

    def end(self, reason: str, tokens: int, cached: tuple[int, int]) -> bytes:
        own = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
        delta = {"stop_reason": own.get(reason, reason), "stop_sequence": None}
        final = {"delta": delta, "usage": self._usage(tokens, cached)}
        return (
            self._block("") + self._event("message_delta", final) + self._event("message_stop", {})
        )

    def fail(self, refusal: Refusal) -> bytes:
        return b"event: error\ndata: " + orjson.dumps(Anthropic().error(refusal)[1]) + b"\n\n"
