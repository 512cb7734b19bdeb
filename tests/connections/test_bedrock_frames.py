"""AWS's event stream: our parser reads what botocore's reads, and refuses more."""

from __future__ import annotations

import itertools
import random
import struct
import zlib

import orjson
import pytest
from botocore.eventstream import EventStreamBuffer

from connections.providers.base import ErrorKind, ProviderError
from connections.providers.wire.aws_event_stream import MAX_MESSAGE, EventStreamParser
from tests.fakes.bedrock import Bedrock, BedrockReply, event, exception, frame
from tests.fakes.wires import Asked, Refusal


def read(data: bytes, cuts: list[int] | None = None) -> list[tuple[bytes, bytes]]:
    parser = EventStreamParser()
    events = []
    edges = [0, *(cuts or []), len(data)]
    for start, end in itertools.pairwise(edges):
        events += parser.feed(data[start:end])
    return events + list(parser.close())


def a_reply() -> bytes:
    reply = BedrockReply(Asked("m", 100), 1)
    return b"".join(
        [
            reply.begin(),
            reply.redacted(),
            reply.think("hm"),
            reply.say("Grüße, 世界"),
            reply.call("clock", '{"a": 1}'),
            reply.end("tool_calls", 3, (1, 2)),
        ]
    )


def by_botocore(data: bytes) -> list[tuple[dict, bytes]]:
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return [(message.headers, message.payload) for message in buffer]


def test_botocore_reads_the_fakes_frames_as_we_do():
    data = a_reply() + exception("throttlingException", {"message": "slow"})
    theirs = by_botocore(data)
    ours = read(data)
    assert len(theirs) == len(ours) > 10
    for (headers, payload), (name, data) in zip(theirs, ours, strict=True):
        if headers[":message-type"] == "exception":
            assert name == b"exception:" + headers[":exception-type"].encode()
        else:
            assert name == headers[":event-type"].encode()
        assert payload == data
        assert orjson.loads(payload)


def test_it_may_be_cut_anywhere():
    data = a_reply()
    whole = read(data)
    assert read(data, list(range(1, len(data)))) == whole
    chance = random.Random(1)
    for _ in range(200):
        cuts = sorted(chance.sample(range(1, len(data)), 5))
        assert read(data, cuts) == whole


def test_half_a_message_is_no_event():
    data = event("messageStop", {"stopReason": "end_turn"})
    assert read(data[:-1]) == []
    assert read(data + data[:5]) == read(data)


def test_an_error_has_its_code_and_message_as_headers():
    headers = {":message-type": "error", ":error-code": "Broken", ":error-message": "no \u00fc"}
    [(name, data)] = read(frame(headers, b""))
    assert (name, orjson.loads(data)) == (b"exception:Broken", {"message": "no \u00fc"})


def raw(head: bytes, payload: bytes = b"", *, total: int | None = None, headers: int | None = None):
    """A message with right checksums, whatever its lengths say."""
    total = 16 + len(head) + len(payload) if total is None else total
    prelude = struct.pack(">II", total, len(head) if headers is None else headers)
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))


def test_headers_of_every_type_are_skipped_over():
    values = [
        (0, b""),
        (1, b""),
        (2, b"x"),
        (3, b"xx"),
        (4, b"xxxx"),
        (5, b"x" * 8),
        (6, b"\0\3abc"),
        (7, b"\0\3abc"),
        (8, b"x" * 8),
        (9, b"x" * 16),
    ]
    head = b"".join(
        struct.pack(">B", 2) + b"h%d" % kind + bytes([kind]) + value for kind, value in values
    )
    name = b":event-type"
    head += struct.pack(">B", len(name)) + name + b"\7\0\4ping"
    assert read(raw(head, b"{}")) == [(b"ping", b"{}")]
    assert by_botocore(raw(head, b"{}"))[0][0][":event-type"] == "ping"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"data: {}\n\ndata: {}\n\n", id="server-sent events"),
        pytest.param(b"<!doctype html><title>It works</title>", id="a page"),
        pytest.param(raw(b"\1a\12"), id="unknown header type"),
        pytest.param(raw(b"\1a\7\0\x09abc"), id="a header longer than the headers"),
        pytest.param(raw(b"\x09a"), id="a name longer than the headers"),
        pytest.param(raw(b"\1a\7\0"), id="half a length"),
        pytest.param(raw(b"", b"{}", headers=3), id="headers longer than the message"),
        pytest.param(raw(b"", total=4), id="shorter than its own frame"),
        pytest.param(raw(b"", total=0), id="empty"),
        pytest.param(raw(b"", total=MAX_MESSAGE + 1), id="too large"),
        pytest.param(raw(b"", total=2**32 - 1), id="4 GB"),
    ],
)
def test_what_is_no_message_is_a_protocol_error(data):
    with pytest.raises(ProviderError) as caught:
        read(data)
    assert caught.value.kind is ErrorKind.PROTOCOL


def test_every_flipped_bit_is_found():
    data = event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "hi"}})
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(ProviderError) as caught:
            # a length that was made larger waits for more: the next message shows it
            read(bytes(damaged) + data * 2)
        assert caught.value.kind is ErrorKind.PROTOCOL


def test_noise_is_never_an_unmapped_exception():
    chance = random.Random(2)
    for _ in range(500):
        head = chance.randbytes(chance.randrange(40))
        try:
            read(raw(head, b"{}"))
        except ProviderError as error:
            assert error.kind is ErrorKind.PROTOCOL


def test_an_unfinished_message_is_not_collected_beyond_its_limit():
    parser = EventStreamParser(max_message=1000)
    parser.feed(raw(b"", b"x" * 900)[:500])
    with pytest.raises(ProviderError, match="more than 1000 bytes"):
        EventStreamParser(max_message=1000).feed(raw(b"", b"x" * 2000)[:12])


def test_what_stands_before_a_damaged_message_comes_first():
    good, bad = raw(b"", b"{}"), bytearray(raw(b"", b"{}"))
    bad[-1] ^= 1
    found = []
    with pytest.raises(ProviderError, match="checksum"):
        for event in EventStreamParser().feed(good + good + bytes(bad)):
            found.append(event)
    assert found == [(b"", b"{}")] * 2


def test_the_fakes_exceptions_are_read_by_botocore():
    reply = BedrockReply(Asked("m", 1), 1)
    for kind in ("rate", "server", "bad_request", "overloaded"):
        [(headers, payload)] = by_botocore(reply.fail(Refusal(kind, "words")))
        assert headers[":exception-type"].endswith("Exception")
        assert orjson.loads(payload) == {"message": "words"}
    assert Bedrock.content_type == "application/vnd.amazon.eventstream"
