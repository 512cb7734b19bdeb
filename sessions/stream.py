"""The event stream of a page: one reader a process, any number of viewers.

A reader per open page would ask Redis as often as there are pages; one reader hears of all sessions
and hands the events on, each encoded once. A viewer first gets what its cursor misses, then
what comes. Rights are looked at again every few seconds, and so is the session's version: a viewer
that missed a change is told to fetch the page's turns again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import orjson
import redis
import redis.asyncio
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import translation
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from sessions import bus, wording
from sessions.access import SignedOut, SignIn, Watch, readable_chat, watch_all

logger = logging.getLogger(__name__)

CHECK_EVERY = 5.0  # seconds between two looks at rights and version
DEGRADED_EVERY = 2.0  # the same without Redis: then the page follows the database
GATHER = 0.02  # seconds in which such looks of several pages are gathered
CHECKED_AT_ONCE = 500
BEAT = 15.0  # seconds of silence before a comment
LONGEST = 30 * 60.0  # seconds a stream lasts; the page then opens the next
SOON = 0.05  # seconds that a change waits for the next one, or for text
TICK = 0.25  # seconds between two looks at which viewers have waited long enough
LAG = 4 * 2**20  # bytes a viewer may lag behind
HELD = 60.0  # seconds a stream's place among its person's lasts unless it is held again
HOLD_EVERY = 20.0
ANSWER = 2.0  # seconds that a page waits for the reader to hear
QUIET = 10.0  # seconds of silence before Redis is asked whether it is there
LISTEN_AGAIN = 1.0  # seconds after which a Redis that didn't answer is listened to again
ASK_AGAIN = 3.0  # seconds after which a Redis that didn't answer is asked for a place again


def _pair(identifier: str) -> tuple[int, int]:
    left, _, right = identifier.partition("-")
    return int(left), int(right or 0)


def valid_cursor(text: str) -> str:
    """The cursor of a request, "0-0" for anything that isn't one."""
    left, _, right = text.partition("-")
    if all(part.isascii() and part.isdigit() and len(part) <= 16 for part in (left, right or "0")):
        return f"{int(left)}-{int(right or 0)}"
    return "0-0"


@dataclass(frozen=True, slots=True)
class Encoded:
    """An event, encoded once for all viewers, or once a language where it has to be put into words;
    `version` is 0 for those that carry none."""

    place: tuple[int, int]
    version: int
    whole: bytes  # b"" for what has to be put into words
    identifier: bytes
    name: str
    data: bytes
    words: dict[str, bytes]

    @classmethod
    def of(cls, identifier: bytes, called: bytes, data: bytes) -> Encoded:
        name = called.decode()
        version = orjson.loads(data)["v"] if name in ("changed", "turn-end") else 0
        whole = b"" if name in wording.BECOMES else _chunk(identifier, name, data)
        return cls(_pair(identifier.decode()), version, whole, identifier, name, data, {})

    def chunk(self, language: str) -> bytes:
        """As a viewer of this language gets it."""
        if self.whole:
            return self.whole
        if language not in self.words:
            try:
                with translation.override(language):
                    data = wording.worded(self.name, orjson.loads(self.data))
                becomes = wording.BECOMES[self.name]
                self.words[language] = _chunk(self.identifier, becomes, orjson.dumps(data))
            except Exception:  # what one model wrote keeps no page of others from its text
                logger.exception("an event can't be put into words")
                self.words[language] = b""
        return self.words[language]


def _chunk(identifier: bytes, name: str, data: bytes) -> bytes:
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (identifier, name.encode(), data)


class Viewer:
    """One open page. While it catches up, live events are held back; an event that came already
    is dropped; who lags too far behind fetches anew."""

    def __init__(self, after: str, version: int, language: str) -> None:
        self.version = version
        self.language = language
        self._is_ready = False
        self._changed = -1  # which of the chunks is a change that waits for more
        self._due = 0.0  # on the loop's clock: until then `wait` waits for something to write
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._after = _pair(after)
        self._held: list[Encoded] | None = []

    @property
    def cursor(self) -> str:
        return f"{self._after[0]}-{self._after[1]}"

    def own(self, name: str) -> bytes:
        """An event to this viewer alone: `refresh` or `closed`. It moves no cursor."""
        return _chunk(self.cursor.encode(), name, b"{}")

    def put(self, event: Encoded) -> None:
        if self._held is not None:
            self._held.append(event)
        else:
            self._take(event)

    def catch_up(self, missed: list[Encoded]) -> None:
        held, self._held = self._held or [], None
        for event in (*missed, *held):
            self._take(event)

    def _take(self, event: Encoded) -> None:
        if event.place <= self._after:
            return
        self._after = event.place
        self.version = max(self.version, event.version)
        chunk = event.chunk(self.language)
        if self._size + len(chunk) > LAG:
            self._chunks, self._size, self._changed = [self.own("refresh")], 0, -1
        elif event.name == "changed":
            # Changes come in twos and threes, and only the last one's version counts.
            if self._changed >= 0:
                self._chunks[self._changed] = b""
            else:
                asyncio.get_running_loop().call_later(SOON, self._wake)
            self._changed = len(self._chunks)
            self._chunks.append(chunk)
            return
        else:
            self._chunks.append(chunk)
            self._size += len(chunk)
        self._wake()

    async def wait(self, seconds: float) -> bool:
        """Until something waits to be written; False when nothing came within `seconds`, give or
        take `TICK`: one timer serves all viewers (`wake_when_due`)."""
        if not self._is_ready:
            loop = asyncio.get_running_loop()
            self._due, self._waiter = loop.time() + seconds, loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_ready = False
        return bool(self._chunks)

    def wake_when_due(self, now: float) -> None:
        if now >= self._due:
            self._end_wait()

    def _wake(self) -> None:
        self._is_ready = True
        self._end_wait()

    def _end_wait(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def drain(self) -> bytes:
        """All that waits, as one piece."""
        waiting, self._chunks, self._size = b"".join(self._chunks), [], 0
        self._changed = -1
        return waiting


class Reader:
    """The process's one reader: hears what is added to any session's stream, and hands on what its
    viewers follow."""

    def __init__(self) -> None:
        self._client = redis.asyncio.Redis.from_url(
            settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1
        )
        self._viewers: dict[bytes, set[Viewer]] = {}
        self._hears = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.is_well = True  # Redis answered when it was last asked
        self._ask_places = 0.0  # not before: a dead Redis isn't asked for every page
        self._leaving: set[asyncio.Task[None]] = set()
        self._open: set[Viewer] = set()
        self._ticks = False  # one timer, also when a page that was the last is reloaded at once

    def open(self, viewer: Viewer) -> None:
        """From now on the viewer's `wait` ends in time."""
        if not self._ticks:
            self._ticks = True
            asyncio.get_running_loop().call_later(TICK, self._tick)
        self._open.add(viewer)

    def close(self, viewer: Viewer) -> None:
        self._open.discard(viewer)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        for viewer in self._open:
            viewer.wake_when_due(loop.time())
        self._ticks = bool(self._open)
        if self._ticks:
            loop.call_later(TICK, self._tick)

    async def watch(self, chat_id: uuid.UUID, viewer: Viewer) -> None:
        """Joins a viewer: what its cursor misses waits for it when this returns, the rest
        follows. Raises redis.RedisError or OSError when there is no answer."""
        key = bus.key_of(chat_id)
        self._viewers.setdefault(key.encode(), set()).add(viewer)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        # Heard before it is read, so that nothing falls between; what comes twice counts once.
        async with asyncio.timeout(ANSWER):
            await self._hears.wait()
        missed = await self._client.xrange(key, min=f"({viewer.cursor}")
        viewer.catch_up(_encoded(missed))

    async def take_place(self, person: uuid.UUID, place: str) -> bool:
        """One of the places that a person's streams have, of all web processes together; False when
        all are taken. Without Redis only this process's own streams count. One round trip."""
        most = settings.STREAMS_PER_PERSON
        if not most:
            return True
        if _open_by_person[person] >= most:
            return False
        if time.monotonic() < self._ask_places:
            return True
        now = time.time()
        until, lasts = now + HELD, int(2 * HELD)
        try:
            return bool(
                await self._client.eval(_TAKE, 1, _places(person), now, most, until, place, lasts)
            )
        except (redis.RedisError, OSError):
            self._ask_places = time.monotonic() + ASK_AGAIN
        return True

    async def hold_place(self, person: uuid.UUID, place: str) -> None:
        """Says that the stream is still there, also to a Redis that forgot."""
        if settings.STREAMS_PER_PERSON and time.monotonic() >= self._ask_places:
            pipe = self._client.pipeline(transaction=False)
            pipe.zadd(_places(person), {place: time.time() + HELD})
            pipe.expire(_places(person), int(2 * HELD))
            try:
                await pipe.execute()
            except (redis.RedisError, OSError):
                self._ask_places = time.monotonic() + ASK_AGAIN

    def leave_place(self, person: uuid.UUID, place: str) -> None:
        """In a task of its own: the stream that ends may be cancelled already."""
        if settings.STREAMS_PER_PERSON:
            task = asyncio.get_running_loop().create_task(self._leave_place(person, place))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _leave_place(self, person: uuid.UUID, place: str) -> None:
        with contextlib.suppress(redis.RedisError, OSError):  # else it runs out
            await self._client.zrem(_places(person), place)

    def leave(self, chat_id: uuid.UUID, viewer: Viewer) -> None:
        key = bus.key_of(chat_id).encode()
        watching = self._viewers.get(key)
        if watching is not None:
            watching.discard(viewer)
            if not watching:
                del self._viewers[key]

    async def _run(self) -> None:
        while self._viewers:
            try:
                async with self._client.pubsub() as channel:
                    await channel.subscribe(bus.LIVE)
                    await self._listen(channel)
            except Exception as error:
                # Nothing that is said on the channel may end the listening: pages would be deaf.
                known = isinstance(error, redis.RedisError | OSError)
                if self.is_well:
                    logger.warning(
                        "the event stream doesn't answer (%s)",
                        type(error).__name__,
                        exc_info=not known,
                    )
                self.is_well = False
                self._hears.clear()
                await asyncio.sleep(LISTEN_AGAIN)
        self._hears.clear()

    async def _listen(self, channel: redis.asyncio.client.PubSub) -> None:
        """While there are viewers. Of the client's own forms of a message none is needed."""
        while self._viewers:
            heard = await channel.parse_response(block=False, timeout=QUIET)
            if heard is None:
                await self._client.ping()  # silent, or frozen?
            elif heard[0] == b"subscribe":  # also when the client has connected anew by itself
                await self._catch_up()
                self.is_well = True
                self._hears.set()
            elif heard[0] == b"message":
                for key, *event in itertools.batched(heard[2].split(b"\n"), 4):
                    if key in self._viewers:
                        encoded = Encoded.of(*event)
                        for viewer in self._viewers[key]:
                            viewer.put(encoded)

    async def _catch_up(self) -> None:
        """What viewers missed while nobody listened."""
        behind = [(key, viewer) for key, found in self._viewers.items() for viewer in found]
        pipe = self._client.pipeline(transaction=False)
        for key, viewer in behind:
            pipe.xrange(key, min=f"({viewer.cursor}")
        for (_key, viewer), missed in zip(behind, await pipe.execute(), strict=True):
            for event in _encoded(missed):
                viewer.put(event)


def _encoded(entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[Encoded]:
    """Entries of a session's stream."""
    return [Encoded.of(identifier, fields[b"e"], fields[b"d"]) for identifier, fields in entries]


# One that is refused is never counted: it would stand in another one's way at that moment.
_TAKE = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, ARGV[1])
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 1
"""


def _places(person: uuid.UUID) -> str:
    return f"patchbay:streams:{person}"


type _Question = tuple[SignIn, uuid.UUID, asyncio.Future[Watch | SignedOut | None]]


class Checks:
    """Looks at the rights and versions of all open pages of a loop: those that ask within a moment
    are looked at together, and pages that only wait ask at the same moments."""

    def __init__(self) -> None:
        self._waiting: list[_Question] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def look(self, sign_in: SignIn, chat_id: uuid.UUID) -> Watch | None:
        """Raises `SignedOut`, or an error of the database when there is no answer."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Watch | SignedOut | None] = loop.create_future()
        if not self._waiting:
            loop.call_later(GATHER, self._start)
        self._waiting.append((sign_in, chat_id, answer))
        found = await answer
        if isinstance(found, SignedOut):
            raise found
        return found

    def _start(self) -> None:
        batch, self._waiting = self._waiting, []
        for first in range(0, len(batch), CHECKED_AT_ONCE):
            part = batch[first : first + CHECKED_AT_ONCE]
            task = asyncio.get_running_loop().create_task(self._answer(part))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, part: list[_Question]) -> None:
        loop = asyncio.get_running_loop()
        try:
            looks = [(sign_in, chat_id) for sign_in, chat_id, _ in part]
            found = await loop.run_in_executor(_checks, _checked, looks)
        except Exception as error:
            for _sign_in, _chat_id, answer in part:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for (_sign_in, _chat_id, answer), one in zip(part, found, strict=True):
                if not answer.done():
                    answer.set_result(one)


_readers: dict[asyncio.AbstractEventLoop, Reader] = {}
_open_by_person: Counter[uuid.UUID] = Counter()
_look = Checks()
# Two threads of the process for them, whatever the number of pages.
_checks = concurrent.futures.ThreadPoolExecutor(2, "patchbay-watch")


def open_streams() -> int:
    """How many pages follow a session through this process."""
    return sum(_open_by_person.values())


def _reader() -> Reader:
    loop = asyncio.get_running_loop()
    for other in [other for other in _readers if other.is_closed()]:
        del _readers[other]
    if loop not in _readers:
        _readers[loop] = Reader()
    return _readers[loop]


def _checked(looks: list[tuple[SignIn, uuid.UUID]]) -> list[Watch | SignedOut | None]:
    try:
        return watch_all(looks)
    finally:
        # Back to the pool: no stream holds a database connection while it is open.
        connections.close_all()


class EventStream(StreamingHttpResponse):
    """Bytes from one generator, without the layers that make bytes of other things."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterator


@require_GET
async def chat_stream(request: HttpRequest, workspace: str, chat_id: uuid.UUID) -> HttpResponseBase:
    """A session's events from `Last-Event-ID`, else `?after=`; `?v=` is the version the page has.
    404 before any byte for whom the session doesn't exist."""

    def first_check() -> SignIn:
        readable_chat(request, workspace, chat_id)
        return SignIn.of(request)

    sign_in = await sync_to_async(first_check)()
    place = uuid.uuid4().hex
    if not await _reader().take_place(sign_in.user_id, place):
        return HttpResponse(
            _("You have too many pages open. Close some and reload this one."),
            status=429,
            content_type="text/plain; charset=utf-8",
            headers={"Retry-After": "10", "Cache-Control": "no-store"},
        )
    after = valid_cursor(request.headers.get("last-event-id") or request.GET.get("after", ""))
    version = request.GET.get("v", "0")
    seen = int(version) if version.isascii() and version.isdigit() else 0
    viewer = Viewer(after, seen, translation.get_language() or settings.LANGUAGE_CODE)
    return EventStream(
        _follow(sign_in, chat_id, viewer, place),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _follow(
    sign_in: SignIn, chat_id: uuid.UUID, viewer: Viewer, place: str
) -> AsyncIterator[bytes]:
    reader = _reader()
    reader.open(viewer)
    user_id = sign_in.user_id
    _open_by_person[user_id] += 1
    joined = False
    behind = 0
    started = held = spoke = time.monotonic()
    checked = 0.0
    try:
        yield b"retry: 1000\n: hello\n\n"
        while (now := time.monotonic()) - started < LONGEST:
            if not joined:
                with contextlib.suppress(redis.RedisError, OSError):
                    await reader.watch(chat_id, viewer)
                    joined = True
            if now - held >= HOLD_EVERY:
                held = now
                await reader.hold_place(user_id, place)
            hears = joined and reader.is_well
            every = (CHECK_EVERY if hears else DEGRADED_EVERY) if not behind else 1.0
            if now - checked >= every:
                checked = now - now % every
                with contextlib.suppress(DatabaseError, InterfaceError):
                    try:
                        found = await _look.look(sign_in, chat_id)
                    except SignedOut:
                        # The page asks again with the cookies of now: who signed in anew goes on.
                        return
                    if found is None:
                        yield viewer.own("closed")
                        return
                    # A change that was committed a moment ago may be on its way still: two looks.
                    behind = behind + 1 if found.version > viewer.version else 0
                    if behind > 1 or (not hears and (behind or found.is_active)):
                        viewer.version, behind = found.version, 0
                        yield viewer.own("refresh")
            left = min(checked + every, spoke + BEAT) - time.monotonic()
            if not await viewer.wait(max(left, 0.05)):
                if time.monotonic() - spoke >= BEAT:
                    spoke = time.monotonic()
                    yield b": still here\n\n"
                continue
            spoke = time.monotonic()
            yield viewer.drain()
    finally:
        _open_by_person[user_id] -= 1
        if not _open_by_person[user_id]:
            del _open_by_person[user_id]
        reader.close(viewer)
        reader.leave(chat_id, viewer)
        reader.leave_place(user_id, place)
