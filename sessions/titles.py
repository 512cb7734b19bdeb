"""A session's title: the first words at once, then one made by a model, once, after the first turn
is done (silent when it fails), or a person's own."""

from __future__ import annotations

import asyncio
import uuid

from django.conf import settings
from django.db import transaction

from connections.capabilities import capabilities
from connections.models import Connection
from connections.providers.base import (
    ModelRequest,
    Provider,
    ProviderError,
    Target,
    TextDelta,
    Turnlet,
)
from connections.targets import TargetError, availability, provider_of, target_of
from sessions import locking
from sessions.models import ChatSession, Message, Turn
from sessions.texts import clean_text
from workspaces.egress import client_for, provider_policy
from workspaces.runtime import Runtime

FIRST_WORDS = 50  # characters of the first message that make the title at once
FIRST_CHARACTERS = 500  # of it that a model is shown
_ASK = (
    "Give this conversation a title of two to five words, in the language of the message. Answer "
    "with the title alone, without quotation marks.\n\nThe message:\n"
)


def first_words(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= FIRST_WORDS:
        return line
    head = line[:FIRST_WORDS]
    return (head.rsplit(" ", 1)[0] if " " in head else head).rstrip(".,;:") + "…"


@transaction.atomic
def rename(chat_id: uuid.UUID, title: str, *, by_model: bool = False) -> None:
    """A title by a person or, once, by a model, which never replaces the former's."""
    chat = locking.lock(chat_id)
    if by_model and chat.title_is_final:
        return
    chat.title, chat.title_is_final = clean_text(" ".join(title.split()))[:200], True
    locking.changed(chat, "title", "title_is_final")


def mini_model(connection: Connection, model: str) -> str:
    """The connection's small model: for Anthropic the first "haiku", else the first "mini" or
    "flash", else the last of the list."""
    ids = connection.model_ids
    words = ("haiku",) if connection.provider_type.startswith("anthropic") else ("mini", "flash")
    small = next((one for one in ids if any(word in one.lower() for word in words)), None)
    return small or (ids[-1] if ids else model)


def _request(connection: Connection, model: str, text: str) -> ModelRequest:
    """Of a model that thinks first as little of it as it can do with, and room for that."""
    levels = capabilities(connection, model).thinking
    level = levels[0] if levels else ""
    return ModelRequest(
        model=model,
        history=[Turnlet("user", [{"t": "text", "text": _ASK + text}])],
        max_tokens=1_024 if level and level != "off" else 60,
        thinking=level,
    )


def _asked(chat_id: uuid.UUID) -> tuple[Provider, Target, ModelRequest] | None:
    """What the call needs, or None when there is no title to make."""
    chat = ChatSession.objects.select_related("connection").filter(pk=chat_id).first()
    if chat is None or chat.title_is_final or chat.connection is None:
        return None
    if availability(chat.connection) is not None:
        return None
    done = Turn.objects.filter(chat=chat, number=1, state=Turn.State.DONE).exists()
    first = Message.objects.filter(chat=chat, turn__number=1, step=0).order_by("seq").first()
    if not done or first is None or not first.text.strip():
        return None
    try:
        provider, target = provider_of(chat.connection), target_of(chat.connection)
    except TargetError:
        return None
    model = mini_model(chat.connection, chat.model)
    return provider, target, _request(chat.connection, model, first.text[:FIRST_CHARACTERS])


async def make_title(runtime: Runtime, chat_id: uuid.UUID) -> None:
    """At most one call; nothing happens when it fails or titles are off."""
    if not settings.TITLES:
        return
    asked = await runtime.db(_asked, chat_id)
    if asked is None:
        return
    provider, target, request = asked
    pieces: list[str] = []
    try:
        async with asyncio.timeout(30):
            async for event in provider.stream(client_for(provider_policy()), target, request):
                if isinstance(event, TextDelta):
                    pieces.append(event.text)
    except (ProviderError, TimeoutError):
        return
    title = " ".join("".join(pieces).split()).strip("\"'“”„«»*# ")[:80]
    if title:
        await runtime.db(rename, chat_id, title, by_model=True)
