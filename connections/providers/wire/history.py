"""The history as every provider accepts it, before a wire puts it in its own words.

Providers refuse, with a 400, what a turn that was stopped or crashed leaves behind: empty texts,
calls without results, two entries of one role. `settle` mends these; nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from connections.providers.base import Part, Turnlet
from connections.providers.wire.lenient_json import clean

INTERRUPTED = "interrupted: this tool call was stopped before it gave a result"


@dataclass(slots=True)
class Entry:
    """One message: results only in "user" entries, and always before its other parts."""

    role: str
    results: list[Part] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    @property
    def calls(self) -> list[Part]:
        return [part for part in self.parts if part["t"] == "tool_call"]

    @property
    def text(self) -> str:
        """All texts as one: separate texts are separate messages of a person."""
        return "\n\n".join(part["text"] for part in self.parts if part["t"] == "text")


def settle(history: Sequence[Turnlet], *, keep_signed: bool = False) -> list[Entry]:
    """`history` with same-role neighbours merged, empty texts dropped (with `keep_signed` not those
    that carry a signature), text made valid Unicode, and exactly one result for every tool call, in
    the order of the calls."""
    entries: list[Entry] = []
    for turnlet in history:
        parts = [part for one in turnlet.parts if (part := _kept(one, keep_signed=keep_signed))]
        if all(part["t"] == "thinking" for part in parts):
            continue  # nothing, or a reply that was stopped before its first word
        if not entries or entries[-1].role != turnlet.role:
            entries.append(Entry(turnlet.role))
        entry = entries[-1]
        for part in parts:
            (entry.results if part["t"] == "tool_result" else entry.parts).append(part)
    return _answered(entries)


def _kept(part: Part, *, keep_signed: bool) -> Part | None:
    kind = part["t"]
    if kind == "text":
        kept = part["text"].strip() or (keep_signed and part.get("sig"))
        return {**part, "text": clean(part["text"])} if kept else None
    if kind in ("tool_result", "thinking"):
        return {**part, "text": clean(part.get("text", ""))}
    return part


def _answered(entries: list[Entry]) -> list[Entry]:
    """Gives every call its result and drops results that answer no call of the message before."""
    answered: list[Entry] = []
    open_calls: list[Part] = []
    for entry in entries:
        if entry.role == "user":
            given: dict[Any, Part] = {}
            for result in entry.results:
                given.setdefault(result["id"], result)
            entry.results = [given.get(call["id"]) or _interrupted(call) for call in open_calls]
            if not entry.results and not entry.parts:
                continue
        open_calls = entry.calls if entry.role == "assistant" else []
        answered.append(entry)
    if open_calls:
        answered.append(Entry("user", results=[_interrupted(call) for call in open_calls]))
    return answered


def _interrupted(call: Part) -> Part:
    return {
        "t": "tool_result",
        "id": call["id"],
        "name": call["name"],
        "text": INTERRUPTED,
        "is_error": True,
    }
