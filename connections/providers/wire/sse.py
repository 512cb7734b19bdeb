"""Server-sent events, from bytes to events (WHATWG HTML, "Interpreting an event stream").

One deliberate difference: an event that the stream ends in the middle of is handed out by `close`
rather than dropped, because some servers leave out the last blank line.
"""

from __future__ import annotations

from connections.providers.base import ErrorKind, ProviderError

MAX_EVENT = 4 * 1024 * 1024  # bytes; bounds one line and the data of one event
_LINE = 16  # that each further line of an event's data counts besides, as a piece that is kept
BOM = b"\xef\xbb\xbf"


class SSEParser:
    """`feed` takes bytes as they come, cut anywhere, and returns the events completed by them.

    An event is `(name, data)`, both bytes: `name` is the value of the `event` field or b"", `data`
    the joined `data` lines. Bytes that are not UTF-8 are passed on for the reader to replace.
    Raises ProviderError(protocol) for a line or an event of more than `max_event` bytes.
    """

    __slots__ = ("_data", "_max", "_name", "_size", "_skip_lf", "_started", "_tail", "_tail_size")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._max = max_event
        self._tail: list[bytes] = []  # pieces of a line whose end has not come
        self._tail_size = 0
        self._skip_lf = False  # the last chunk ended in CR: an LF now belongs to it
        self._started = False
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._skip_lf = chunk[-1:] == b"\r"
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if self._tail and lines:
            self._tail.append(lines[0])
            lines[0] = b"".join(self._tail)
            self._tail.clear()
            self._tail_size = 0
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
            if self._tail_size > self._max:
                raise self._too_big()
        return self._read(lines) if lines else []

    def close(self) -> list[tuple[bytes, bytes]]:
        """The event the stream ended in, if there is one."""
        lines = [b"".join(self._tail), b""]
        self._tail.clear()
        return self._read(lines)

    def _read(self, lines: list[bytes]) -> list[tuple[bytes, bytes]]:
        if not self._started:
            self._started = True
            lines[0] = lines[0].removeprefix(BOM)
        events = []
        data = self._data
        for line in lines:
            if line[:5] == b"data:":
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._size += len(value) + (_LINE if data else 0)
                if self._size > self._max:
                    raise self._too_big()
                data.append(value)
            elif not line:
                if data:
                    events.append((self._name, data[0] if len(data) == 1 else b"\n".join(data)))
                    data.clear()
                    self._size = 0
                self._name = b""
            elif line[:6] == b"event:":
                self._name = line[7:] if line[6:7] == b" " else line[6:]
            elif line == b"data":
                self._size += _LINE
                if self._size > self._max:
                    raise self._too_big()
                data.append(b"")
            # comments, `id`, `retry` and unknown fields say nothing to a reader of one reply
        return events

    def _too_big(self) -> ProviderError:
        return ProviderError(
            ErrorKind.PROTOCOL, f"The provider sent an event of more than {self._max} bytes."
        )
