"""AWS's binary event stream (`application/vnd.amazon.eventstream`), from bytes to events.

A message is, in big-endian numbers::

    total length (4)  length of the headers (4)  CRC32 of these eight (4)
    headers: length of the name (1), name, type (1), value; a text (type 7) has its length (2) first
    payload
    CRC32 of all that stands before it (4)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from struct import error as StructError
from zlib import crc32

from connections.providers.base import ErrorKind, ProviderError
from connections.providers.wire.lenient_json import dumps

MAX_MESSAGE = 4 * 1024 * 1024  # bytes; a message may have 24 MB, but a piece of a reply is small
EXCEPTION = b"exception:"  # begins the name of an event that reports a failure

_PRELUDE = Struct(">III")
_CRC = Struct(">I")
_LENGTH = Struct(">H")
_OVERHEAD = _PRELUDE.size + _CRC.size
# Bytes of a value by its type: two booleans, numbers, bytes, text, time, UUID. -1: length first.
_SIZES = (0, 0, 1, 2, 4, 8, -1, -1, 8, 16)
_TEXT = 7


class EventStreamParser:
    """`feed` takes bytes as they come, cut anywhere, and returns the events completed by them.

    An event is `(name, payload)`, both bytes: `name` is the event's type, or `exception:` and the
    type of the exception. Raises ProviderError(protocol) for a message that is larger than
    `max_message`, is damaged, or is none; the events before it come first.
    """

    __slots__ = ("_buffer", "_max", "_seen", "_total")

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._max = max_message
        self._buffer = bytearray()
        self._seen: tuple[bytes, bytes] = (b"", b"")  # headers of the last event, and its name
        self._total = 0  # length of the message that the buffer begins with, 0 while unknown

    def feed(self, chunk: bytes) -> Iterable[tuple[bytes, bytes]]:
        events: list[tuple[bytes, bytes]] = []
        try:
            self._take(chunk, events)
        except ProviderError as fault:
            if not events:
                raise
            return _followed(events, fault)
        return events

    def _take(self, chunk: bytes, events: list[tuple[bytes, bytes]]) -> None:
        buffer = self._buffer
        buffer += chunk
        start, have = 0, len(buffer)
        while have - start >= (self._total or _PRELUDE.size):
            if not self._total:
                self._total = self._read_prelude(buffer, start)
                continue
            end = start + self._total
            events.append(self._read(bytes(buffer[start:end])))
            start, self._total = end, 0
        if start:
            del buffer[:start]

    def close(self) -> list[tuple[bytes, bytes]]:
        """A message that is not whole can't be an event."""
        return []

    def _read_prelude(self, buffer: bytearray, start: int) -> int:
        total, headers, given = _PRELUDE.unpack_from(buffer, start)
        if crc32(memoryview(buffer)[start : start + 8]) != given:
            raise _damaged("it doesn't begin as a message does")
        if total > self._max:
            raise ProviderError(
                ErrorKind.PROTOCOL, f"The provider sent an event of more than {self._max} bytes."
            )
        if headers > total - _OVERHEAD:
            raise _damaged("its lengths contradict each other")
        return total

    def _read(self, message: bytes) -> tuple[bytes, bytes]:
        end = len(message) - _CRC.size
        if crc32(memoryview(message)[:end]) != _CRC.unpack_from(message, end)[0]:
            raise _damaged("its checksum is wrong")
        payload = _PRELUDE.size + _PRELUDE.unpack_from(message)[1]
        head = message[_PRELUDE.size : payload]
        seen, name = self._seen
        if head == seen:  # most events of a reply are of one kind
            return name, message[payload:end]
        headers = _headers(head)
        kind = headers.get(b":message-type")
        if kind == b"exception":
            return EXCEPTION + headers.get(b":exception-type", b""), message[payload:end]
        if kind == b"error":  # it has no payload: all that is known stands in the headers
            said = headers.get(b":error-message", b"").decode("utf-8", "replace")
            return EXCEPTION + headers.get(b":error-code", b""), dumps({"message": said})
        name = headers.get(b":event-type", b"")
        self._seen = (head, name)
        return name, message[payload:end]


def _followed(
    events: list[tuple[bytes, bytes]], fault: ProviderError
) -> Iterator[tuple[bytes, bytes]]:
    yield from events
    raise fault


def _headers(data: bytes) -> dict[bytes, bytes]:
    """The texts among the headers. Raises ProviderError where they can't be read."""
    found: dict[bytes, bytes] = {}
    at = 0
    try:
        while at < len(data):
            name_end = at + 1 + data[at]
            name, kind, at = data[at + 1 : name_end], data[name_end], name_end + 1
            size = _SIZES[kind]
            if size < 0:
                size = _LENGTH.unpack_from(data, at)[0]
                at += _LENGTH.size
            value, at = data[at : at + size], at + size
            if kind == _TEXT:
                found[name] = value
    except (IndexError, StructError):
        raise _damaged("its headers can't be read") from None
    if at != len(data):
        raise _damaged("its headers can't be read")
    return found


def _damaged(how: str) -> ProviderError:
    return ProviderError(ErrorKind.PROTOCOL, f"A message of the event stream is damaged: {how}.")
