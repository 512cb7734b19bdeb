"""An open page of a session, without a browser: what `static/js/stream.js` does, and stricter.

It starts from the server's HTML, follows the event stream, and asks for the turns again when it is
told to. Where the script is lenient it insists: text that comes twice must be the same text, and a
closed block may not be drawn differently.
"""

from __future__ import annotations

import codecs
import html
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import httpx

from tests.system.harness import wait_for
from tests.system.parts import Chat


@dataclass
class Block:
    kind: str
    html: str = ""
    offset: int = 0  # UTF-16 units of its text that the HTML covers
    tail: str = ""  # the text after it, as UTF-16 units
    is_open: bool = True


@dataclass
class Message:
    id: str
    role: str
    is_complete: bool
    blocks: list[Block] = field(default_factory=list)
    html: str = ""  # a person's

    def may_begin(self, index: int) -> bool:
        return index == len(self.blocks) and not any(block.is_open for block in self.blocks)


class _Reader(HTMLParser):
    """The turns, what waits and the state, out of a page or an answer."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.turns: dict[int, list[Message]] = {}
        self.waiting: list[tuple[str, str]] = []  # message, delivery
        self.state: dict[str, str] = {}
        self.draft = ""
        self._lines = [0, *(match.end() for match in re.finditer("\n", source))]
        self._source = source
        self._messages: list[Message] = []
        self._open: list[Callable[[str], None] | None] = []  # what takes an element's content
        self._starts: list[int] = []
        self.feed(source)

    def _place(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        takes: Callable[[str], None] | None = None
        if "data-turn" in found:
            self._messages = self.turns.setdefault(int(found["data-turn"] or 0), [])
        elif tag == "article" and "data-message" in found:
            is_complete = "data-complete" in found
            message = Message(found["data-message"] or "", found["data-role"] or "", is_complete)
            self._messages.append(message)
        elif tag == "li" and "data-message" in found:
            self.waiting.append((found["data-message"] or "", found["data-delivery"] or ""))
        elif tag == "div" and "data-block" in found:
            blocks = self._messages[-1].blocks
            assert int(found["data-block"] or -1) == len(blocks), "the blocks are numbered"
            offset = int(found.get("data-offset") or 0)
            block = Block(found["data-kind"] or "", offset=offset, is_open="data-open" in found)
            block.tail = units(found.get("data-rest") or "")
            blocks.append(block)
            takes = lambda content: setattr(block, "html", content)  # noqa: E731
        elif found.get("class") == "message-body" and tag == "div" and self._messages:
            message = self._messages[-1]
            takes = lambda content: setattr(message, "html", content)  # noqa: E731
        elif found.get("id") == "draft":
            takes = lambda content: setattr(self, "draft", html.unescape(content[1:]))  # noqa: E731
        for prefix, is_here in (
            ("data-", found.get("id") == "chat"),
            ("data-chat-", found.get("id") == "chat-state"),
        ):
            if is_here:
                self.state |= {
                    name.removeprefix(prefix): value or ""
                    for name, value in found.items()
                    if name.startswith(prefix)
                }
        if tag not in _VOID:
            self._open.append(takes)
            self._starts.append(self._place() + len(self.get_starttag_text() or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        takes, start = self._open.pop(), self._starts.pop()
        if takes is not None:
            takes(self._source[start : self._place()])


_VOID = frozenset(
    ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr")
)


def units(text: str) -> str:
    """A text with one character for each UTF-16 unit, as JavaScript counts."""
    data = text.encode("utf-16-le", "surrogatepass")
    return "".join(chr(data[i] | data[i + 1] << 8) for i in range(0, len(data), 2))


def plain(source: str) -> str:
    """The words of a piece of HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", source)).split())


def draft_in(source: str) -> str:
    """What stands in the composer of a page."""
    return _Reader(source).draft


def checked(answer: httpx.Response) -> httpx.Response:
    """Raises httpx.HTTPStatusError for a server that can't now; anything else must be a page."""
    if answer.status_code >= 500:
        answer.raise_for_status()
    assert answer.status_code == 200, answer.status_code
    return answer


class Gap(Exception):
    """The stream lacks something: the page starts again from the database."""


class Page:
    """`follow` until something shows; `rebuilds` counts how often it had to start again."""

    def __init__(self, chat: Chat, *, client: httpx.Client | None = None) -> None:
        self.chat = chat
        self.client = client or chat.client
        self.rebuilds = 0
        self._rebuilt_at = 0.0
        self._has_gap = False
        self.connects = 0
        self.notices: list[str] = []
        self.turns: dict[int, list[Message]] = {}
        self.ended: list[str] = []  # states, as the events said
        self.reload()

    def reload(self) -> None:
        found = _Reader(checked(self.client.get(self.chat.url)).text)
        self.turns, self.waiting = found.turns, found.waiting
        self.version, self.cursor = int(found.state["version"]), found.state["cursor"]
        self.state = found.state["turn-state"]

    # -- what it shows -----------------------------------------------------------------------------

    def messages(self, role: str = "assistant") -> list[Message]:
        return [one for turn in self.turns.values() for one in turn if one.role == role]

    def shown(self) -> list[tuple[str, list[str]]]:
        """Every message with the HTML of its blocks; growing text is not there yet."""
        return [
            (message.id, [block.html + block.tail for block in message.blocks] or [message.html])
            for turn in self.turns.values()
            for message in turn
        ]

    def text(self) -> str:
        """The words of the last reply."""
        said = [block for block in self.messages()[-1].blocks if block.kind == "text"]
        return " ".join(plain(block.html + block.tail) for block in said)

    # -- the stream --------------------------------------------------------------------------------

    def follow(
        self,
        until: Callable[[Page], Any],
        *,
        cuts: Iterator[int] | None = None,
        seconds: float = 60,
    ) -> None:
        """Follows the stream until the condition holds; `cuts` says after how many bytes each
        connection breaks."""
        wait_for(lambda: self.follow_once(until, next(cuts) if cuts else None), seconds, "it shows")

    def follow_once(self, until: Callable[[Page], Any], most: int | None = None) -> bool:
        if until(self):
            return True
        self.connects += 1
        try:
            if self._has_gap:
                # What is missing comes with the next save: as the script, it asks once a second.
                wait_for(lambda: time.monotonic() >= self._rebuilt_at + 1)
                self._rebuilt_at = time.monotonic()
                self.refetch(rebuild=True)
                self._has_gap = False
                if until(self):
                    return True
            for name, data in self._events(most):
                self.handle(name, data)
                if until(self):
                    return True
        except Gap:
            self.rebuilds += 1
            self._has_gap = True
        except httpx.HTTPError:
            pass  # as a browser does: again, from the cursor
        return bool(until(self))

    def _events(self, most: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
        address = f"{self.chat.url}stream/?after={self.cursor}&v={self.version}"
        decode, rest = codecs.getincrementaldecoder("utf-8")(), ""
        with self.client.stream("GET", address, timeout=httpx.Timeout(20)) as answer:
            checked(answer)
            for raw in answer.iter_raw():
                rest += decode.decode(raw if most is None else raw[:most])
                *whole, rest = rest.split("\n\n")
                for event in whole:
                    fields = dict(
                        line.split(": ", 1)
                        for line in event.split("\n")
                        if not line.startswith(":")
                    )
                    self.cursor = fields.get("id", self.cursor)
                    if "data" in fields:
                        yield fields["event"], json.loads(fields["data"])
                if most is not None:
                    most -= len(raw)
                    if most <= 0:
                        return

    # -- events ------------------------------------------------------------------------------------

    def handle(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "text" | "block":
                message = self._find(data["m"])
                if message is None:
                    self.refetch()
                    message = self._find(data["m"])
                if message is not None and not message.is_complete:
                    (self._on_text if name == "text" else self._on_block)(message, data)
            case "changed" | "turn-end":
                if name == "turn-end":
                    self.ended.append(data["state"])
                if data["v"] > self.version:
                    self.refetch()
            case "notice":
                self.notices.append(data["t"])
            case "refresh":
                raise Gap
            case "closed":
                raise AssertionError("the server closed the page")
            case _:
                raise AssertionError(f"an unknown event: {name}")

    def _find(self, ident: str) -> Message | None:
        return next((one for one in self.messages() if one.id == ident), None)

    def _on_text(self, message: Message, data: dict[str, Any]) -> None:
        index, offset, text = data["b"], data["o"], units(data["t"])
        if index >= len(message.blocks):
            if offset or not message.may_begin(index):
                raise Gap
            message.blocks.append(Block(data["k"]))
        block = message.blocks[index]
        assert block.kind == data["k"], "a block keeps its kind"
        if not block.is_open:
            return
        known = block.offset + len(block.tail)
        if offset > known:
            raise Gap
        start = max(offset, block.offset)  # what the HTML covers can't be compared
        again = block.tail[start - block.offset : offset + len(text) - block.offset]
        assert text[start - offset :].startswith(again), "text that comes twice is the same"
        block.tail += text[known - offset :]

    def _on_block(self, message: Message, data: dict[str, Any]) -> None:
        index, drawn = data["b"], data["h"]
        if index >= len(message.blocks):
            if not message.may_begin(index):
                raise Gap
            kind = "text"
            if found := re.match(r'\s*<details class="([^"]*)"', drawn):
                kind = "tool" if "tool" in found[1].split() else "thinking"
            message.blocks.append(Block(kind))
        block = message.blocks[index]
        if data.get("c"):
            if not block.is_open and block.kind != "tool":
                assert block.html == drawn, "a closed block changes no more"
            block.html, block.offset, block.tail, block.is_open = drawn, 0, "", False
        elif block.is_open and data["o"] >= block.offset:
            block.tail = block.tail[data["o"] - block.offset :]
            block.html, block.offset = drawn, data["o"]

    def refetch(self, *, rebuild: bool = False) -> None:
        """The turns from the last one on. A growing reply stays as it is here, for the server has
        what was saved a moment ago, unless the page starts again."""
        last = max(self.turns, default=0)
        answer = checked(self.client.get(f"{self.chat.url}turns/", params={"since": last}))
        found = _Reader(answer.text)
        for number, fresh in found.turns.items():
            known = {message.id: message for message in self.turns.get(number, [])}
            self.turns[number] = [
                self._blend(known[message.id], message, rebuild=rebuild)
                if message.id in known
                else message
                for message in fresh
            ]
        self.waiting, self.version = found.waiting, int(found.state["version"])
        self.state = found.state["turn-state"]
        if rebuild:
            self.cursor = found.state["cursor"]

    def _blend(self, old: Message, fresh: Message, *, rebuild: bool) -> Message:
        if old.role != "assistant" or (rebuild and not old.is_complete):
            return fresh
        if not fresh.is_complete:
            assert not old.is_complete, "a complete reply grows no more"
            return old
        for ours, theirs in zip(old.blocks, fresh.blocks, strict=False):
            if not ours.is_open and ours.kind == "text":
                assert ours.html == theirs.html, "a closed block changes no more"
        assert len(fresh.blocks) >= len(old.blocks), "nothing that was shown goes"
        return fresh
