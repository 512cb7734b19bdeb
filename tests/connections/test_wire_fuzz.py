"""Whatever a provider sends, a stream ends with Done or with a ProviderError, and what came can be
stored: no lone surrogate, no NUL, no number a database refuses."""

from __future__ import annotations

import json
import random

import pytest

from connections.providers.base import (
    Done,
    ProviderError,
    Target,
    TextDelta,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    Usage,
)
from tests.connections.wires import CLOCK, TYPES, WIRES, asking, canned, replies
from tests.fakes.app import ENDPOINTS, chunks
from tests.fakes.models import Context, find
from tests.fakes.wires import Asked

ROUNDS = 1500
VALUES = (
    *(b"null true false 0 -1 1e999 -1e999 NaN Infinity 1.5".split()),
    b"9" * 50,
    b"9" * 5000,
    b'""',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\xff"',
    b"[]",
    b"{}",
    b"[" * 1200 + b"]" * 1200,
    b'{"a":' * 600 + b"1" + b"}" * 600,
    b'{"type":"text_delta","text":"x"}',
    b"[[1]]",
)


def samples(wire: str) -> list[bytes]:
    """Streams as the fakes send them."""
    codec, _ = ENDPOINTS["/openai/v1" if wire == "openai-completions" else "/anthropic/v1"]
    found = []
    for name in ("echo", "thinking", "tools", "tools-parallel", "cached", "error-mid"):
        model, match = find(name)
        asked = Asked(
            name,
            100,
            texts=[("user", "some words")],
            tools=["current_time", "fetch_url"],
            fields=frozenset({"stream_options"}),
        )
        steps = model.behaviour(Context(asked, match, "", 0))
        sent = chunks(next(steps), steps, codec.reply(asked, 1), asked, {})
        found.append(b"".join(chunk for chunk in sent if isinstance(chunk, bytes)))
    return found


def _spoil(rng: random.Random, sample: bytes) -> bytes:
    data = bytearray(sample)
    for _ in range(rng.randrange(1, 4)):
        kind = rng.randrange(5)
        at = rng.randrange(len(data) + 1)
        if kind == 0:
            data[at : at + rng.randrange(1, 30)] = b""
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 2:  # another value where there was one
            colon = data.find(b":", at)
            end = min(
                (p for p in (data.find(b",", colon), data.find(b"}", colon)) if p > 0), default=0
            )
            if 0 < colon < end:
                data[colon + 1 : end] = rng.choice(VALUES)
        elif kind == 3:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[min(at, other) : max(at, other)][:500]
        else:
            del data[at:]
    return bytes(data)


def _storable(value) -> None:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)  # raises for NaN and infinity
    text.encode()  # raises for a lone surrogate
    assert r"\u0000" not in text.replace(r"\\", "")


@pytest.mark.parametrize("wire", WIRES)
async def test_no_stream_of_bytes_gets_past_the_error_tree(wire):
    rng = random.Random(20)
    streams = samples(wire)
    where = Target(TYPES[wire], "none", "http://models.example")
    request = asking("m", tools=[CLOCK])
    ends = {"done": 0, "error": 0}
    for _ in range(ROUNDS):
        stream = _spoil(rng, rng.choice(streams))
        cut = rng.randrange(len(stream) + 1)
        async with canned(stream[:cut], stream[cut:]) as http:
            events, error = await replies(http, where, request)
        ends["error" if error else "done"] += 1
        assert error is None or isinstance(error, ProviderError)
        assert (error is None) == (bool(events) and isinstance(events[-1], Done))
        for event in events:
            match event:
                case TextDelta(text) | ThinkingDelta(text):
                    assert type(text) is str
                    _storable(text)
                case ThinkingEnd(sig):
                    _storable(sig)
                case ToolCall(call_id, name, args, raw):
                    assert type(args) is dict
                    _storable([call_id, name, args, raw])
                case Usage():
                    counts = (event.input_tokens, event.output_tokens, event.cache_read_tokens)
                    assert all(type(n) is int and 0 <= n < 2**32 for n in counts)
                case Done(reason):
                    assert reason in {"stop", "tool_calls", "length", "refusal", "other"}
    assert min(ends.values()) > ROUNDS / 20  # both ways out are really tried


@pytest.mark.parametrize("wire", WIRES)
async def test_no_error_body_gets_past_the_error_tree(wire):
    rng = random.Random(21)
    where = Target(TYPES[wire], "none", "http://models.example")
    sample = b'{"type":"error","error":{"type":"a","message":"b","code":"c","param":"d"}}'
    for _ in range(ROUNDS):
        status = rng.choice([200, 300, 302, 400, 401, 404, 413, 429, 500, 529, 999])
        headers = {"retry-after": rng.choice(["1", "x", "-9", "9" * 400]), "location": "::["}
        if rng.random() < 0.5:
            headers["content-type"] = rng.choice(["application/json", "text/html"])
        async with canned(_spoil(rng, sample), status=status, headers=headers) as http:
            events, error = await replies(http, where, asking("m"))
        assert events == []
        assert isinstance(error, ProviderError)
        _storable([error.message, error.code, error.request_id])
