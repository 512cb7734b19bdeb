"""Bytes become the same events however they are cut, and nothing grows without bound."""

from __future__ import annotations

import random

import pytest

from connections.providers.base import ErrorKind, ProviderError
from connections.providers.wire.sse import SSEParser


def events_of(*chunks: bytes, max_event: int = 1000) -> list[tuple[bytes, bytes]]:
    parser = SSEParser(max_event)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.close()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"data:  a\n\n", [(b"", b" a")]),
        (b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
        (b"event: x\ndata: a\n\n", [(b"x", b"a")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [(b"x", b"a"), (b"", b"b")]),
        (b"event: x\n\ndata: b\n\n", [(b"", b"b")]),
        (b"data: a\ndata: b\ndata:\ndata: c\n\n", [(b"", b"a\nb\n\nc")]),
        (b"data\ndata\n\n", [(b"", b"\n")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\r\rdata: b\r\r", [(b"", b"a"), (b"", b"b")]),
        (b"data: a\r\ndata: b\n\r\n", [(b"", b"a\nb")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        (b": ping\n\n: ping\ndata: a\n\n", [(b"", b"a")]),
        (b"id: 7\nretry: 1000\ndata: a\nunknown\ndatas: x\n\n", [(b"", b"a")]),
        (b"data: \xff\xfe\n\n", [(b"", b"\xff\xfe")]),
        (b"data: [DONE]", [(b"", b"[DONE]")]),
        (b"data: [DONE]\n", [(b"", b"[DONE]")]),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
def test_a_stream_gives_its_events_however_it_is_cut(stream, events):
    assert events_of(stream) == events
    assert events_of(*(stream[n : n + 1] for n in range(len(stream)))) == events
    for cut in range(len(stream)):
        assert events_of(stream[:cut], stream[cut:]) == events


def test_random_streams_do_not_depend_on_the_cuts():
    rng = random.Random(4)
    pieces = [b"data: ", b"data", b"event: e", b":", b"\n", b"\n\n", b"\r", b"\r\n", b"x", b"\xff"]
    for _ in range(500):
        stream = b"".join(rng.choices(pieces, k=rng.randrange(30)))
        cuts = sorted(rng.choices(range(len(stream) + 1), k=rng.randrange(6)))
        ends = [*cuts, len(stream)]
        parts = [stream[a:b] for a, b in zip([0, *cuts], ends, strict=True)]
        assert events_of(*parts) == events_of(stream)


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * 1001],
        [b"data: " + b"x" * 1001 + b"\n\n"],
        [b"x" * 100] * 11,
        [b"data: " + b"x" * 100 + b"\n"] * 11,
        [b"event: " + b"x" * 1001],
    ],
)
def test_a_line_or_an_event_that_is_too_long_is_refused(chunks):
    with pytest.raises(ProviderError) as caught:
        events_of(*chunks)
    assert caught.value.kind is ErrorKind.PROTOCOL


def test_many_events_of_the_largest_size_pass():
    chunks = [b"data: " + b"x" * 492 + b"\ndata: " + b"x" * 492 + b"\n\n"] * 50
    assert len(events_of(*chunks)) == 50


@pytest.mark.parametrize("line", [b"data:\n", b"data\n"])
def test_lines_of_nothing_count(line):
    parser = SSEParser(1000)
    with pytest.raises(ProviderError, match="more than 1000 bytes"):
        parser.feed(line * 100)
