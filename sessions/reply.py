"""A reply: one step's parts, cut into the blocks that pages show.

Every part gives one block, a text part one for each top-level Markdown block; blocks are numbered
through the message. The same numbering serves the growing reply (`Reply`, in the worker) and the
stored one (`blocks_of`, on the page), so that a page rebuilt in mid-stream goes on where it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.template.loader import render_to_string
from django.utils.safestring import SafeString, mark_safe

from connections.providers.base import Part, ToolCall
from connections.providers.wire.lenient_json import dumps
from sessions.bus import Writer
from sessions.models import Message
from sessions.render import Blocks, clean, utf16_len

# What may make more than words of a text, once a block has come to more than its beginning.
_MARKUP = re.compile(r"[!#&()*+<>\[\\\]_`|~\n-]")
BEGINNING = 80  # UTF-16 units
MAX_REPLY = 2_000_000  # characters of one reply, its calls included; more is cut and said so


@dataclass(frozen=True, slots=True)
class Block:
    """A block as the page draws it. Of an open one the HTML covers the text up to `offset` (UTF-16
    units); `rest` is the space after it, which no rendering shows."""

    index: int
    kind: str  # "text" | "thinking" | "tool"
    html: SafeString
    offset: int = 0
    closed: bool = True
    rest: str = ""


def text_of(parts: Sequence[Part]) -> str:
    """What people read and search: the text parts, a blank line between."""
    return "\n\n".join(part["text"] for part in parts if part["t"] == "text" and part["text"])


def blocks_of(message: Message) -> list[Block]:
    """The blocks of a stored message; of one that still grows, the last is open."""
    blocks: list[Block] = []
    results = {part["id"]: part for part in message.parts if part["t"] == "tool_result"}
    last = len(message.parts) - 1
    for number, part in enumerate(message.parts):
        base = len(blocks)
        # what has its signature is closed
        is_open = number == last and not message.is_complete and "sig" not in part
        if part["t"] == "text":
            blocks.extend(_text_blocks(part["text"], base, is_open))
        elif part["t"] == "thinking":
            html = thinking_html(part["text"], is_open=is_open, ms=part.get("ms"))
            blocks.append(Block(base, "thinking", html, utf16_len(part["text"]), not is_open))
        elif part["t"] == "tool_call":
            html = tool_html(part, results.get(part["id"]), ended=message.is_complete)
            blocks.append(Block(base, "tool", html))
    return blocks


def _text_blocks(text: str, base: int, is_open: bool) -> list[Block]:
    splitter = Blocks()
    closed = splitter.append(text)
    if not is_open:
        closed += splitter.finish()
    blocks = [Block(base + one.index, "text", one.html) for one in closed]
    if is_open:
        source = text[splitter.open_start :]
        covered = source.rstrip()
        blocks.append(
            Block(
                base + len(closed),
                "text",
                splitter.render_open(),
                utf16_len(covered),
                closed=False,
                rest=source[len(covered) :],
            )
        )
    return blocks


def thinking_html(text: str, *, is_open: bool, ms: int | None = None) -> SafeString:
    context = {"text": text, "is_open": is_open, "ms": ms}
    return mark_safe(  # noqa: S308 (a template of ours, which escapes)
        render_to_string("sessions/_thinking.html", context)
    )


def tool_html(call: Part, result: Part | None, *, ended: bool = False) -> SafeString:
    # As pairs: in a template `args.items` would be the argument that is called "items".
    args = list(call["args"].items())
    context = {"call": call, "args": args, "result": result, "ended": ended}
    return mark_safe(render_to_string("sessions/_tool.html", context))  # noqa: S308


class Reply:
    """A growing reply: collects the parts and tells the pages."""

    def __init__(self, chat_id: str, message_id: str, writer: Writer) -> None:
        self.parts: list[dict[str, Any]] = []
        self.is_cut = False
        self.changed = False  # since the last checkpoint
        self._chat, self._message, self._writer = chat_id, message_id, writer
        self._base = 0  # blocks of the parts before the open one
        self._splitter: Blocks | None = None
        self._closed = 0  # closed blocks of the open text part
        self._texts: list[str] = []  # pieces of the open part
        self._open_length = 0  # UTF-16 units of the open block
        self._rendered_length = 0
        self._has_markup = False  # in the open block, since it was rendered last
        self._size = 0
        self._calls: dict[str, tuple[int, dict[str, Any]]] = {}  # call id → its block and part
        self._kind = ""  # of the open part: "text", "thinking" or ""
        self._began = 0.0  # when it was opened
        self._spoke = False

    @property
    def has_content(self) -> bool:
        return bool(self.parts) or bool(self._texts)

    def snapshot(self) -> list[dict[str, Any]]:
        """The parts so far, the open one included, for a checkpoint."""
        self._settle_open()
        return [dict(part) for part in self.parts]

    def add_text(self, text: str) -> None:
        text = self._within_limit(clean(text))
        if not text:
            return
        if self._kind != "text":
            self._close_part()
            self._open_part("text")
            self._splitter = Blocks()
        assert self._splitter is not None
        self._texts.append(text)
        closed = self._splitter.append(text)
        for one in closed:
            self._publish_block(self._base + one.index, one.html)
        if closed:
            self._closed += len(closed)
            whole = self._join()
            rest = whole[closed[-1].end :]
            self._open_length = self._rendered_length = 0
            offset = 0
        else:
            rest, offset = text, self._open_length
        if rest:
            self._open_length = offset + utf16_len(rest)
            self._has_markup = self._has_markup or bool(_MARKUP.search(rest))
            self._publish_text(self._base + self._closed, "text", offset, rest)

    def add_thinking(self, text: str) -> None:
        text = self._within_limit(clean(text))
        if not text:
            return
        if self._kind != "thinking":
            self._close_part()
            self._open_part("thinking")
        self._texts.append(text)
        self._publish_text(self._base, "thinking", self._open_length, text)
        self._open_length += utf16_len(text)

    def end_text(self, sig: Any) -> None:
        if self._kind != "text":
            self._close_part()
            self._open_part("text")
            self._splitter = Blocks()
        self.parts[-1]["sig"] = sig
        self._close_part()

    def end_thinking(self, sig: Any) -> None:
        if self._kind != "thinking":
            self._close_part()
            if sig is None:
                return
            self._open_part("thinking")
        if sig is not None:
            self.parts[-1]["sig"] = sig
        self._close_part()

    def add_call(self, call: ToolCall, server: str = "", tool: str = "") -> None:
        """`server` and `tool`: whose tool it is and what it is called there; "" for ours."""
        self._close_part()
        part: dict[str, Any] = {
            "t": "tool_call",
            "id": call.id,
            "name": call.name,
            "args": dict(call.args),
        }
        if server:
            part |= {"server": server, "tool": tool}
        if call.raw:
            part["raw"] = call.raw
        if call.sig is not None:
            part["sig"] = call.sig
        if call.args or call.raw:
            size = len(call.raw) + len(dumps(part["args"]))
            if size > MAX_REPLY - self._size:
                self.is_cut = True
                return
            self._size += size
        self.parts.append(part)
        self.changed = True
        self._calls[call.id] = (self._base, part)
        self._publish("tool", self._base, call=part)
        self._base += 1

    def add_result(self, result: Part) -> None:
        """The result of a call; the call's block is drawn again with it."""
        self.parts.append(result)
        self.changed = True
        if (found := self._calls.get(result["id"])) is not None:
            index, call = found
            self._publish("tool", index, call=call, result=result)

    def finish(self) -> list[dict[str, Any]]:
        """Closes the open part and returns all."""
        self._close_part()
        return self.parts

    def render_open(self) -> None:
        """Draws the open block as it stands, when it grew since it was drawn last by more than
        plain words, which look on the page as they would here."""
        if (
            self._kind == "text"
            and self._splitter is not None
            and self._open_length > self._rendered_length
            and (self._has_markup or self._rendered_length < BEGINNING)
        ):
            self._rendered_length, self._has_markup = self._open_length, False
            source = self._join()[self._splitter.open_start :]
            self._publish_block(
                self._base + self._closed,
                self._splitter.render_open(),
                # Space at the end isn't in the HTML, so it isn't covered by it.
                covers=self._open_length - (len(source) - len(source.rstrip())),
            )

    # -- inside ----------------------------------------------------------------------------------

    def _within_limit(self, text: str) -> str:
        room = MAX_REPLY - self._size
        if len(text) > room:
            self.is_cut = True
            text = text[:room]
        self._size += len(text)
        return text

    def _open_part(self, kind: str) -> None:
        self._kind = kind
        self._began = time.monotonic()
        self._texts = []
        self._open_length = self._rendered_length = self._closed = 0
        self.parts.append({"t": kind, "text": ""})

    def _join(self) -> str:
        whole = "".join(self._texts)
        self._texts = [whole]
        return whole

    def _settle_open(self) -> None:
        if self._kind:
            self.parts[-1]["text"] = self._join()

    def _close_part(self) -> None:
        if not self._kind:
            return
        self._settle_open()
        if self._kind == "text":
            assert self._splitter is not None
            for one in self._splitter.finish():
                self._publish_block(self._base + one.index, one.html)
                self._closed += 1
            self._base += self._closed
        else:
            part = self.parts[-1]
            if part["text"]:
                part["ms"] = round((time.monotonic() - self._began) * 1000)
            self._publish("thought", self._base, text=part["text"], ms=part.get("ms"))
            self._base += 1
        self._kind, self._splitter, self._texts = "", None, []

    def _publish_text(self, block: int, kind: str, offset: int, text: str) -> None:
        self.changed = True
        self._writer.add_text(self._chat, self._message, block, kind, offset, text)
        if not self._spoke:
            self._spoke = True
            self._writer.hurry()

    def _publish_block(self, index: int, html: str, *, covers: int | None = None) -> None:
        """A closed block, or with `covers` the open one as it stands."""
        self._publish("block", index, h=html, **({"c": 1} if covers is None else {"o": covers}))

    def _publish(self, name: str, index: int, **data: Any) -> None:
        self._writer.add(self._chat, name, {"m": self._message, "b": index, **data})
