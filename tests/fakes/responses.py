"""OpenAI's Responses API, seen from the provider's side, written from its public reference.

Stricter than the real one in one thing: a request that offers any tool, in `tools` or in an item
`additional_tools`, is refused. Only Codex speaks this wire here, and it may offer none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from tests.fakes.wires import MEDIA_TYPES, Asked, OpenAI, Refusal, _data, _require


class Responses(OpenAI):
    _FIELDS = frozenset(
        {
            "include",
            "input",
            "instructions",
            "max_output_tokens",
            "model",
            "parallel_tool_calls",
            "reasoning",
            "service_tier",
            "store",
            "stream",
            "text",
            "tool_choice",
            "tools",
        }
    )

    def read(self, body: Any, headers: Mapping[str, str]) -> Asked:
        _require(isinstance(body, dict), "We could not parse the JSON body of your request.")
        _require(headers.get("accept") == "text/event-stream", "Accept must be text/event-stream")
        fields = self._FIELDS
        if "chatgpt-account-id" in headers:  # the backend of personal plans
            fields = fields - {"max_output_tokens"} | {"client_metadata", "prompt_cache_key"}
        for name in body:
            _require(name in fields, f"Unknown parameter: '{name}'.", name)
        _require(isinstance(body.get("model"), str), "you must provide a model parameter", "model")
        _require(body.get("stream") is True, "This fake only streams.", "stream")
        _require(body.get("store") is False, "This fake stores nothing.", "store")
        limit = body.get("max_output_tokens")
        _require(limit is None or (type(limit) is int and limit >= 16), "max_output_tokens")
        _require(not body.get("tools"), "This fake takes no tools.", "tools")
        asked = Asked(
            body["model"],
            limit,
            system=body.get("instructions") or "",
            fields=frozenset(body),
            thinking=(body.get("reasoning") or {}).get("effort") or "",
        )
        items = body.get("input")
        _require(isinstance(items, list) and items, "input must not be empty", "input")
        waiting: list[str] = []
        for number, item in enumerate(items):
            where = f"input[{number}]"
            match item.get("type"):
                case "message":
                    _require(not waiting, f"No tool output found for {waiting}", "input")
                    self._message(item, where, asked)
                case "function_call":
                    waiting.append(item["call_id"])
                case "function_call_output":
                    _require(item["call_id"] in waiting, f"{where}: no such call", "input")
                    waiting.remove(item["call_id"])
                    asked.results.append(item["output"])
                case "reasoning":
                    _require(item.get("encrypted_content"), f"{where}: not persisted", "input")
                case other:
                    raise Refusal("bad_request", f"{where}: type {other!r} is not taken")
        _require(not waiting, f"No tool output found for {waiting}", "input")
        last = items[-1]
        _require(
            last["type"] == "function_call_output" or last.get("role") == "user",
            "The last item must be the user's",
        )
        return asked

    def _message(self, item: Mapping[str, Any], where: str, asked: Asked) -> None:
        role, content = item.get("role"), item.get("content")
        _require(role in ("developer", "system", "user", "assistant"), f"{where}: role", "input")
        _require(isinstance(content, list) and content, f"{where}: content", "input")
        texts = []
        for part in content:
            kind = part.get("type")
            if kind == "input_image" and role == "user":
                head, _, data = part["image_url"].partition(";base64,")
                media_type = head.removeprefix("data:")
                _require(media_type in MEDIA_TYPES, f"{where}: unsupported image", "input")
                _data(data, where)
                asked.images.append(media_type)
            else:
                wanted = "output_text" if role == "assistant" else "input_text"
                _require(kind == wanted, f"{where}: content type {kind!r}", "input")
                _require(part["text"], f"{where}: empty text", "input")
                texts.append(part["text"])
        text = "\n".join(texts)
        if role in ("developer", "system"):
            asked.system = f"{asked.system}\n{text}".strip()
        else:
            asked.texts.append((role, text))

    def reply(self, asked: Asked, number: int) -> ResponsesReply:
        return ResponsesReply(asked, number)


class ResponsesReply:
    def __init__(self, asked: Asked, number: int) -> None:
        self._asked = asked
        self._id = f"resp_fake_{number}"
        self._number = 0
        self._index = -1
        self._open: dict[str, Any] | None = None  # the item that is being written
        self._text: list[str] = []
        self._items: list[dict[str, Any]] = []
        self._refuses = asked.model == "refusal"

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": 1_760_000_000,
            "status": status,
            "model": self._asked.model,
            "output": self._items,
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **more,
        }

    def begin(self) -> bytes:
        return self._event(
            "response.created", response=self._response("in_progress")
        ) + self._event("response.in_progress", response=self._response("in_progress"))

    def _where(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": self._index}

    def _open_item(self, kind: str) -> bytes:
        if self._open is not None and self._open["type"] == kind:
            return b""
        closed = self._close_item("completed")
        self._index += 1
        name = f"{'rs' if kind == 'reasoning' else 'msg'}_{self._id}_{self._index}"
        self._text = []
        if kind == "reasoning":
            self._open = {"type": kind, "id": name, "summary": []}
            part = {"type": "summary_text", "text": ""}
            more = self._event(
                "response.reasoning_summary_part.added", **self._where(), summary_index=0, part=part
            )
        else:
            self._open = {"type": kind, "id": name, "role": "assistant", "content": []}
            self._open["status"] = "in_progress"
            part = {"type": "output_text", "text": "", "annotations": []}
            if self._refuses:
                part = {"type": "refusal", "refusal": ""}
            more = self._event(
                "response.content_part.added", **self._where(), content_index=0, part=part
            )
        added = self._event("response.output_item.added", output_index=self._index, item=self._open)
        return closed + added + more

    def _close_item(self, status: str) -> bytes:
        if self._open is None:
            return b""
        text, item, where = "".join(self._text), self._open, self._where()
        if item["type"] == "reasoning":
            part = {"type": "summary_text", "text": text}
            item |= {"summary": [part], "encrypted_content": "gAAAAA=="}
            done = self._event(
                "response.reasoning_summary_text.done", **where, summary_index=0, text=text
            )
            done += self._event(
                "response.reasoning_summary_part.done", **where, summary_index=0, part=part
            )
        elif self._refuses:
            item |= {"status": status, "content": [{"type": "refusal", "refusal": text}]}
            done = self._event("response.refusal.done", **where, content_index=0, refusal=text)
        else:
            part = {"type": "output_text", "text": text, "annotations": []}
            item |= {"status": status, "content": [part]}
            done = self._event("response.output_text.done", **where, content_index=0, text=text)
            done += self._event("response.content_part.done", **where, content_index=0, part=part)
        self._open = None
        self._items.append(item)
        return done + self._event("response.output_item.done", output_index=self._index, item=item)

    def say(self, text: str) -> bytes:
        opened = self._open_item("message")
        self._text.append(text)
        kind = "response.refusal.delta" if self._refuses else "response.output_text.delta"
        return opened + self._event(kind, **self._where(), content_index=0, delta=text)

    def think(self, text: str) -> bytes:
        if (self._asked_for_summary()) is False:
            return b""
        opened = self._open_item("reasoning")
        self._text.append(text)
        return opened + self._event(
            "response.reasoning_summary_text.delta", **self._where(), summary_index=0, delta=text
        )

    def _asked_for_summary(self) -> bool:
        return "reasoning" in self._asked.fields

    def redacted(self) -> bytes:
        return b""

    def call(self, name: str, arguments: str) -> bytes:
        closed = self._close_item("completed")
        self._index += 1
        call_id = f"call_{hashlib.sha256(f'{self._id}{self._index}'.encode()).hexdigest()[:16]}"
        item = {"type": "function_call", "id": f"fc_{call_id}", "call_id": call_id, "name": name}
        item |= {"arguments": arguments, "status": "completed"}
        self._items.append(item)
        return (
            closed
            + self._event("response.output_item.added", output_index=self._index, item=item)
            + self._event("response.output_item.done", output_index=self._index, item=item)
        )

    def end(self, reason: str, tokens: int, cached: tuple[int, int]) -> bytes:
        read, written = cached
        prompt = self._asked.input_tokens + read + written
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + tokens,
        }
        if reason == "length":
            closed = self._close_item("incomplete")
            details = {"reason": "max_output_tokens"}
            response = self._response("incomplete", incomplete_details=details, usage=usage)
            return closed + self._event("response.incomplete", response=response)
        closed = self._close_item("completed")
        response = self._response("completed", usage=usage)
        return closed + self._event("response.completed", response=response)

    def fail(self, refusal: Refusal) -> bytes:
        error = {"code": "server_error", "message": refusal.message}
        return self._event("response.failed", response=self._response("failed", error=error))
