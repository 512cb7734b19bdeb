"""What a reply's bytes may become: no text of a few megabytes takes a hundred of memory."""

from __future__ import annotations

import json
import time

import pytest

from connections.providers.base import ErrorKind, ProviderError, Target
from connections.providers.errors import Scrubber
from connections.providers.wire.anthropic_messages import AnthropicMessages
from connections.providers.wire.converse import ConverseDecoder
from connections.providers.wire.gemini import Gemini
from connections.providers.wire.held import MAX_HELD
from connections.providers.wire.lenient_json import MAX_ITEMS, loads
from connections.providers.wire.openai_completions import OpenAICompletions

SCRUB = Scrubber(Target("x", "none"))


@pytest.mark.parametrize("item", [b"{}", b"[]", b"0", b'{"":0}', b'"a,b"'])
def test_json_of_too_many_values_is_not_read(item):
    with pytest.raises(ValueError, match="too many"):
        loads(b"[" + b",".join([item] * (MAX_ITEMS + 2)) + b"]")


@pytest.mark.parametrize("text", ["," * MAX_ITEMS * 2, '[{"a\\",', '"' * 3, "\\", "[" * MAX_ITEMS])
def test_a_long_text_is_read_whatever_its_characters_are(text):
    text *= 1 + 1_000_000 // len(text)
    assert loads(json.dumps({"text": text}).encode()) == {"text": text}


@pytest.mark.parametrize("piece", [b'"', b'"\\', b'\\"', b',"', b'{"\\\\'])
def test_a_broken_text_costs_no_more_than_its_length(piece):
    began = time.process_time()
    with pytest.raises(ValueError):
        loads(b"[" * (MAX_ITEMS + 2) + piece * 500_000)
    assert time.process_time() - began < 5


def openai(text: str):
    call = {"index": 0, "function": {"name": "x", "arguments": text}}
    return OpenAICompletions().decoder(SCRUB), {"choices": [{"delta": {"tool_calls": [call]}}]}


def anthropic(text: str, kind: str = "input_json_delta", field: str = "partial_json"):
    decoder = AnthropicMessages().decoder(SCRUB)
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}
    decoder.feed(b"", json.dumps(start).encode(), [])
    delta = {"type": kind, field: text}
    return decoder, {"type": "content_block_delta", "index": 0, "delta": delta}


def converse(text: str):
    delta = {"reasoningContent": {"signature": text}}
    return ConverseDecoder(SCRUB), {"contentBlockIndex": 0, "delta": delta}


def gemini(text: str):
    part = {"functionCall": {"name": "x", "args": {"a": text}}}
    return Gemini("/x").decoder(SCRUB), {"candidates": [{"content": {"parts": [part]}}]}


@pytest.mark.parametrize(
    "make",
    [openai, anthropic, lambda text: anthropic(text, "signature_delta", "signature"), converse,
     gemini],
    ids=["openai", "anthropic", "anthropic signature", "converse signature", "gemini"],
)  # fmt: skip
def test_what_is_kept_back_of_a_reply_is_bounded(make):
    decoder, event = make("x" * 50_000)
    data, out = json.dumps(event).encode(), []
    with pytest.raises(ProviderError) as caught:
        for _ in range(MAX_HELD // 50_000 + 1):
            decoder.feed(b"contentBlockDelta", data, out)
    assert caught.value.kind is ErrorKind.TOO_LARGE
