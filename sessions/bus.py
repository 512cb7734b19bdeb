"""The event log between the workers and the open pages: one Redis stream a session, and a channel
on which all web processes hear what is added.

The database holds the truth; the stream only makes it quick. Nothing is lost when it is: every
event that changes the page's structure carries the session's `version`, and a page that finds the
database ahead of what it saw asks for the transcript again.

The stream is for who comes later: it is read from a cursor, once. What happens now is heard on the
channel, for which it doesn't matter how many sessions are followed.

Events, as they stand in the stream (fields `e` the name, `d` JSON) and on the page's event stream::

    text      {m, b, k, o, t}     text of a growing block: message, block, kind ("text" or
                                  "thinking"), offset, text; offsets are UTF-16 units in the block
    block     {m, b, o, h, c?}    the block rendered: replaces its text up to offset `o`; c: closed
    changed   {v}                 rows changed (a message, a delivery, the turn): fetch the last
                                  turns again, unless the page has version v
    notice    {t}                 a sentence about the running turn ("Trying again in 3 s…")
    turn-end  {v, turn, state}    the turn is over

What is put into words stands in the stream without them, and on the page's in its language
(`sessions.wording`)::

    tool      {m, b, call, result?}   a tool's call: a closed `block`
    thought   {m, b, text, ms?}       a piece of thinking that is complete: a closed `block`
    say       {said}                  the names of sentences, with their values: a `notice`

Offsets make `text` and `block` idempotent, versions make the others so: an event that comes twice
changes nothing, a gap shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import orjson
import redis
import redis.asyncio
from django.conf import settings

from workspaces import network

logger = logging.getLogger(__name__)

# Seconds that text waits for more, after the first of a turn: a reader's eye notices nothing below
# a tenth, and of many sessions each window costs the whole path from here to the pages.
WINDOW = 0.025
WINDOW_A_SESSION = 0.0004  # added for each session that spoke in the last window
LONGEST_WINDOW = 0.06
MAX_EVENTS = 4000  # kept a session (approximately)
EXPIRE = 3600  # seconds after the last event
SKIP_AFTER_FAILURE = 3.0  # seconds in which a process doesn't try a dead Redis again


LIVE = "patchbay:live"

# Adds a batch as one command, and says it on the channel as one message: of each event four lines,
# its stream's key, its id there, its name and its data, in which JSON has no line's end. Each event
# comes as its name and its data; a key to be kept has "1" there.
_ADD_ALL = """
local ids, lines = {}, {}
for i, key in ipairs(KEYS) do
  local at = 3 * i + 2
  local kept, name, data = ARGV[at - 1], ARGV[at], ARGV[at + 1]
  ids[i] = redis.call('XADD', key, 'MAXLEN', '~', ARGV[1], '*', 'e', name, 'd', data)
  if kept == '1' then redis.call('EXPIRE', key, ARGV[2]) end
  lines[i] = table.concat({key, ids[i], name, data}, '\\n')
end
redis.call('PUBLISH', ARGV[3], table.concat(lines, '\\n'))
return ids
"""


def key_of(chat_id: uuid.UUID | str) -> str:
    return f"patchbay:chat:{chat_id}"


def _addition(chats: Sequence[str], events: Sequence[str | bytes]) -> list[Any]:
    """The arguments of an EVAL that adds: of each event whose it is, and three things in a row:
    whether its stream is to be kept ("0" or "1"), its name and its data."""
    keys = [key_of(chat_id) for chat_id in chats]
    return [_ADD_ALL, len(keys), *keys, MAX_EVENTS, EXPIRE, LIVE, *events]


class Publisher:
    """For the web process and the database threads: few events, each at once, never raising."""

    def __init__(self) -> None:
        self._client: redis.Redis | None = None
        self._lock = threading.Lock()
        self._not_before = 0.0

    @property
    def is_resting(self) -> bool:
        """Redis didn't answer a moment ago: whoever waits for it now waits in vain."""
        return time.monotonic() < self._not_before

    def _connected(self) -> redis.Redis:
        with self._lock:
            if self._client is None:
                self._client = redis.Redis.from_url(
                    settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1
                )
            return self._client

    def publish(self, chat_id: uuid.UUID | str, name: str, data: dict[str, Any]) -> None:
        if self.is_resting:
            return
        try:
            addition = _addition([str(chat_id)], ["1", name, orjson.dumps(data)])
            self._connected().eval(*addition)
        except (redis.RedisError, OSError) as error:
            self._not_before = time.monotonic() + SKIP_AFTER_FAILURE
            logger.warning("the event stream doesn't answer (%s)", type(error).__name__)

    def last_id(self, chat_id: uuid.UUID | str) -> str:
        """The newest event's id, "0-0" when there is none or no answer."""
        if self.is_resting:
            return "0-0"
        try:
            newest = self._connected().xrevrange(key_of(chat_id), count=1)
        except (redis.RedisError, OSError):
            self._not_before = time.monotonic() + SKIP_AFTER_FAILURE
            return "0-0"
        return newest[0][0].decode() if newest else "0-0"


publisher = Publisher()


class Writer:
    """For the worker's loop: all sessions' growing texts, in one pipeline a window.

    One writer a process keeps every session's events in order (adds over a pool of connections
    arrive out of order) and sends a hundred sessions' windows in one round trip. `add_text` of the
    same block within a window is merged. When Redis doesn't answer, events are dropped: pages
    rebuild from the database's checkpoints.
    """

    def __init__(self) -> None:
        self._client = redis.asyncio.Redis.from_url(
            settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=1
        )
        self._pending: list[tuple[str, str, dict[str, Any]]] = []
        self._open_text: dict[str, dict[str, Any]] = {}
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last_ids: dict[str, str] = {}
        self._not_before = 0.0
        self._speaking = 0.0  # sessions, at the last windows
        self._added = self._left = 0  # events, ever; those given up have left too

    def add_text(
        self, chat_id: str, message: str, block: int, kind: str, offset: int, text: str
    ) -> None:
        """Text that stands at `offset` (UTF-16 units) of a block of a message."""
        last = self._open_text.get(chat_id)
        if last is not None and (last["m"], last["b"], last["k"]) == (message, block, kind):
            last["t"] += text
            return
        data = {"m": message, "b": block, "k": kind, "o": offset, "t": text}
        self._open_text[chat_id] = data
        self._add(chat_id, "text", data)

    def add(self, chat_id: str, name: str, data: dict[str, Any], *, urgent: bool = False) -> None:
        self._open_text.pop(chat_id, None)
        self._add(chat_id, name, data)
        if urgent:
            self._urgent.set()

    def hurry(self) -> None:
        """Ends the running window: for the first text of a turn, and when all streams were read."""
        self._urgent.set()

    def last_id(self, chat_id: str) -> str:
        """The id of the session's newest event that has left, "" when none did."""
        return self._last_ids.get(chat_id, "")

    def forget(self, chat_id: str) -> None:
        self._last_ids.pop(chat_id, None)

    def _add(self, chat_id: str, name: str, data: dict[str, Any]) -> None:
        if len(self._pending) > 100_000:  # Redis is gone: the checkpoints have it all
            self._left += len(self._pending)
            self._pending.clear()
            self._open_text.clear()
        self._pending.append((chat_id, name, data))
        self._added += 1
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
            network.beat().after = self.hurry

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._urgent.clear()
            batch, self._pending = self._pending, []
            # One that ended early, for the first text of one session, says little of the others.
            self._speaking = max(len(self._open_text), 0.8 * self._speaking)
            window = WINDOW + WINDOW_A_SESSION * self._speaking
            self._open_text.clear()
            try:
                await self._flush(batch)
            finally:
                self._left += len(batch)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), min(window, LONGEST_WINDOW))

    async def _flush(self, batch: list[tuple[str, str, dict[str, Any]]]) -> None:
        if not batch or time.monotonic() < self._not_before:
            return
        chats: list[str] = []
        events: list[str | bytes] = []
        for chat_id, name, data in batch:
            try:
                written = orjson.dumps(data)
            except TypeError:  # arguments that a model nested too deeply: others' text goes on
                logger.warning("an event of %s can't be written", chat_id)
                continue
            chats.append(chat_id)
            events += ["0" if name == "text" else "1", name, written]
        try:
            ids = await self._client.eval(*_addition(chats, events))
        except (redis.RedisError, OSError) as error:
            self._not_before = time.monotonic() + SKIP_AFTER_FAILURE
            logger.warning("the event stream doesn't answer (%s)", type(error).__name__)
        else:
            for chat_id, identifier in zip(chats, ids, strict=False):
                self._last_ids[chat_id] = (
                    identifier.decode() if isinstance(identifier, bytes) else str(identifier)
                )

    async def settle(self) -> None:
        """Until everything added so far has left (or was given up), not what others add since."""
        until = self._added
        while self._left < until and self._task is not None and not self._task.done():
            self._urgent.set()
            self._wake.set()
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        await self.settle()
        if self._task is not None:
            self._task.cancel()
        await self._client.aclose()
