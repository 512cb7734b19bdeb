"""What a turn sends: the transcript as neutral history, cut to what the model's window takes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from connections.capabilities import Capabilities, capabilities
from connections.models import Connection, WorkspaceConnection
from connections.providers.base import Part, Provider, Target, Turnlet
from connections.resolve import Choice, resolve
from connections.sentences import Reason
from connections.targets import provider_of, target_of
from sessions.models import Attachment, Message, Turn

WINDOW_SHARE = 0.85  # of the window, less the output, is filled
BYTES_A_TOKEN = 3.5  # UTF-8; low, so that the estimate is rather too high
IMAGE_TOKENS = 1_600
PAGE = 50  # turns loaded at once, from the newest back
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
    history: list[Turnlet]
    system: str
    left_out_before: int  # number of the first turn that is sent; 0: nothing is left out


def prepare(turn: Turn) -> Prepared:
    """Resolves the locked connection once more, opens its secret and builds the history.

    Raises `CannotRun`. Reads only as many turns as the window takes. Queries: four, and two for
    each 50 turns.
    """
    chat = turn.chat
    resolution = resolve(chat.workspace, Choice(chat.connection_id, chat.locked_at))
    if resolution.connection is None:
        raise CannotRun(resolution.refusal or Reason.NO_CONNECTION)
    connection = resolution.connection
    row = WorkspaceConnection.objects.filter(
        workspace_id=chat.workspace_id, connection=connection
    ).first()
    if row is not None and row.allowed_models is not None and turn.model not in row.allowed_models:
        raise CannotRun(Reason.MODEL_NOT_ALLOWED)
    caps = capabilities(connection, turn.model)
    budget = caps.context_window * WINDOW_SHARE - caps.max_output
    system = chat.workspace.instructions.strip()
    history, first = _history(turn, budget - _tokens(system), images=caps.supports_images)
    return Prepared(
        connection=connection,
        target=target_of(connection),
        provider=provider_of(connection),
        capabilities=caps,
        history=history,
        system=system,
        left_out_before=first if first > 1 else 0,
    )


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
    messages = (
        Message.objects.filter(
            chat_id=turn.chat_id, turn__number__lt=below, turn__number__gte=below - PAGE
        )
        .exclude(delivery__in=Message.WAITING)
        .select_related("turn")
        .prefetch_related("attachments")
        .order_by("turn__number", "step", "role", "place", "seq")
    )
    page: dict[int, list[Message]] = {}
    for message in messages:
        page.setdefault(message.turn.number, []).append(message)
    return page


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
        entries.append(Turnlet("user", results))
    return entries


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
