"""What a turn sends: the transcript as neutral history, cut to what the model's window takes."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from connections.capabilities import Capabilities, capabilities
from connections.models import Connection
from connections.providers.base import Part, Provider, Target, ToolSpec, Turnlet
from connections.resolve import Candidates, Choice, resolve
from connections.sentences import Reason
from connections.targets import provider_of, target_of
from sessions.models import Attachment, Message, Turn
from workspaces.statements import Select, prefetched

WINDOW_SHARE = 0.85  # of the window, less the output, is filled
BYTES_A_TOKEN = 3.5  # UTF-8; low, so that the estimate is rather too high
IMAGE_TOKENS = 1_600
PAGE = 50  # turns loaded at once, from the newest back
TOOLS_SHARE = 0.25  # of the window, at most, is spent on the descriptions of tools
MAX_TOOLS = 128  # that a request offers; some providers take no more
KEPT = 1_000  # characters of an older tool result that stay when the window is full
MAX_IMAGE_BYTES = 20 * 2**20  # base64 of one request's images; providers take no more either


class CannotRun(Exception):
    """The turn can't begin, or can't go on."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a turn needs, loaded in one go before its first request."""

    connection: Connection
    target: Target
    provider: Provider
    capabilities: Capabilities
    max_output: int
    thinking: str
    history: list[Turnlet]
    system: str
    left_out_before: int  # number of the first turn that is sent; 0: nothing is left out
    tools: tuple[ToolSpec, ...] = ()
    tools_left_out: int = 0  # offered by the workspace's servers, but too many for the window
    budget: float = 0.0  # tokens that the history may take, instructions and tools not counted


def prepare(turn: Turn, tools: Sequence[ToolSpec] = ()) -> Prepared:
    """Resolves the locked connection once more, opens its secret and builds the history.

    Of `tools` as many are kept, from the first on, as a quarter of the window takes. Raises
    `CannotRun`. Reads only as many turns as the window takes. Queries: three, and two for each 50
    turns.
    """
    chat = turn.chat
    among = Candidates.of(chat.workspace, only=chat.connection_id)
    resolution = resolve(chat.workspace, Choice(chat.connection_id, chat.locked_at), among=among)
    if resolution.connection is None:
        raise CannotRun(resolution.refusal or Reason.NO_CONNECTION)
    connection = resolution.connection
    row = among.rows.get(connection.pk)
    if row is not None and not row.allows(turn.model):
        raise CannotRun(Reason.MODEL_NOT_ALLOWED)
    caps = capabilities(connection, turn.model)
    thinking = chat.thinking if chat.thinking in caps.thinking else ""
    max_output = caps.output_for(thinking, chat.max_output)
    budget = caps.context_window * WINDOW_SHARE - max_output
    system = chat.workspace.instructions.strip()
    offered = tools if caps.takes_tools else ()
    fitting, cost = _fitting(offered, caps.context_window * TOOLS_SHARE)
    budget -= _tokens(system) + cost
    history, first = _history(turn, budget, images=caps.supports_images)
    return Prepared(
        connection=connection,
        target=target_of(connection),
        provider=provider_of(connection),
        capabilities=caps,
        max_output=max_output,
        thinking=thinking,
        history=history,
        system=system,
        left_out_before=first if first > 1 else 0,
        tools=fitting,
        tools_left_out=len(offered) - len(fitting),
        budget=budget,
    )


def _fitting(tools: Sequence[ToolSpec], room: float) -> tuple[tuple[ToolSpec, ...], float]:
    kept: list[ToolSpec] = []
    total = 0.0
    for tool in tools[:MAX_TOOLS]:
        cost = 10 + _tokens(tool.name + tool.description) + _tokens(json.dumps(tool.parameters))
        if total + cost > room:
            break
        kept.append(tool)
        total += cost
    return tuple(kept), total


def _history(turn: Turn, budget: float, *, images: bool) -> tuple[list[Turnlet], int]:
    """The newest whole turns that fit, oldest first, and the number of the first of them. The
    running turn is always among them."""
    kept: list[list[Turnlet]] = []
    room = MAX_IMAGE_BYTES
    first = turn.number
    below = turn.number + 1
    while below > 1:
        page = _page(turn, below)
        if not page:
            break
        for number in sorted(page, reverse=True):
            entries, cost = _entries(page[number], images=images)
            weight = sum(
                len(part["data"])
                for entry in entries
                for part in entry.parts
                if part["t"] == "image"
            )
            if kept and (cost > budget or weight > room):
                return [entry for group in reversed(kept) for entry in group], first
            budget -= cost
            room -= weight
            kept.append(entries)
            first = number
        below = min(page)
    return [entry for group in reversed(kept) for entry in group], first


def _page(turn: Turn, below: int) -> dict[int, list[Message]]:
    attached: dict[uuid.UUID, list[Attachment]] = {}
    for attachment in _ATTACHED.all(turn.chat_id, below, below - PAGE):
        attached.setdefault(attachment.message_id, []).append(attachment)
    page: dict[int, list[Message]] = {}
    for message in _MESSAGES.all(turn.chat_id, below, below - PAGE):
        prefetched(message, "attachments", attached.get(message.pk, ()), Attachment)
        page.setdefault(message.turn.number, []).append(message)
    return page


_MESSAGES = Select(
    lambda chat_id, below, least: (
        Message.objects.filter(chat_id=chat_id, turn__number__lt=below, turn__number__gte=least)
        .exclude(delivery__among=Message.WAITING)
        .select_related("turn")
        .order_by("turn__number", "step", "role", "place", "seq")
    )
)
_ATTACHED = Select(
    lambda chat_id, below, least: Attachment.objects.filter(
        message__chat_id=chat_id,
        message__turn__number__lt=below,
        message__turn__number__gte=least,
    )
)


def _entries(messages: Sequence[Message], *, images: bool) -> tuple[list[Turnlet], float]:
    entries: list[Turnlet] = []
    cost = 0.0
    for message in messages:
        for entry in entries_of(message, images=images):
            entries.append(entry)
            cost += 8 + sum(_cost(part) for part in entry.parts)
    return entries, cost


def entries_of(message: Message, *, images: bool) -> list[Turnlet]:
    """A message as history: a reply's tool results follow it in an entry of the user's."""
    if message.role == Message.Role.USER:
        parts: list[Part] = [dict(part) for part in message.parts]
        parts.extend(_image(attachment, images=images) for attachment in message.attachments.all())
        return [Turnlet("user", parts)] if parts else []
    said = [part for part in message.parts if part["t"] != "tool_result"]
    results = [part for part in message.parts if part["t"] == "tool_result"]
    entries = [Turnlet("assistant", said)] if said else []
    if results:
        entries.append(Turnlet("user", [_as_sent(part) for part in results]))
    return entries


def _as_sent(result: Part) -> Part:
    """A result as long as the model was sent it last: `kept` characters of a shortened one."""
    kept = result.get("kept")
    if kept is None:
        return result
    text = result["text"]
    return {**result, "text": f"{text[:kept]}\n[shortened: {len(text)} characters in all]"}


@dataclass(frozen=True, slots=True)
class Shortened:
    """A tool result of which only the first `kept` characters are sent from now on; `entry` is the
    index of its entry in the history."""

    entry: int
    id: str
    kept: int


def shorten(history: list[Turnlet], start: int, budget: float) -> list[Shortened]:
    """Shortens tool results of the running turn, whose entries begin at `start`, until `history`
    takes no more than `budget` tokens: the oldest first, to `KEPT` characters; those of the last
    entry by no more than needed. Changes the parts in place; what it did is returned, for the
    record. Not enough results to shorten: the provider has the last word."""
    over = sum(8 + sum(_cost(part) for part in entry.parts) for entry in history) - budget
    done: list[Shortened] = []
    last = len(history) - 1
    for index in range(start, len(history)):
        for part in history[index].parts:
            if over <= 0:
                return done
            if part["t"] != "tool_result":
                continue
            whole = part.get("whole", part["text"])
            sent = part.get("kept", len(whole))
            if sent <= KEPT:
                continue
            kept = KEPT
            if index == last:
                # A character is a byte at least.
                kept = max(KEPT, sent - int((over + 20) * BYTES_A_TOKEN))
            before = _tokens(part["text"])
            part.update(_as_sent({**part, "text": whole, "kept": kept}), whole=whole)
            over -= before - _tokens(part["text"])
            done.append(Shortened(index, part["id"], kept))
    return done


def _image(attachment: Attachment, *, images: bool) -> Part:
    """The image, or the words that stand for one that can't go."""
    if images:
        try:
            with attachment.file.open("rb") as file:
                data = base64.b64encode(file.read()).decode()
        except OSError:
            return {"t": "text", "text": f"[image: {attachment.name}, missing]"}
        return {"t": "image", "media_type": attachment.media_type, "data": data}
    return {"t": "text", "text": f"[image: {attachment.name}, not shown]"}


def _cost(part: Part) -> float:
    if part["t"] == "image":
        return IMAGE_TOKENS
    if part["t"] == "tool_call":
        return _tokens(part["name"]) + _tokens(str(part["args"])) + 10
    return _tokens(part.get("text", ""))


def _tokens(text: str) -> float:
    return len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN
