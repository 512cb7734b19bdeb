"""Providers and tool servers that send without end, without bounds or without sense: the turn
fails with what came before, the worker stays small, and others' replies go on."""

from __future__ import annotations

import gzip
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from tests.fakes.mcp_server import GOOD, FakeMcp
from tests.fakes.vertex import PROJECT, service_account
from tests.system.attacks.listener import Listener, Request, reply, response
from tests.system.attacks.server import FORM, Attacked
from tests.system.harness import wait_for

MB = 1 << 20
MOST_GROWTH = 100 * MB  # of a worker, by one of these
BEFORE = "What came before."

Pieces = Iterator[bytes]


def head(kind: str = "text/event-stream", more: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n{more}\r\n".encode()


def many(piece: bytes, size: int) -> Pieces:
    """`size` bytes of a piece, in writes of some 64 KB."""
    block = piece * max(1, 65_536 // len(piece))
    return repeat(block, size // len(block) + 1)


def endless(piece: bytes) -> Pieces:
    return repeat(piece * max(1, 65_536 // len(piece)))


# -- in the format of OpenAI -----------------------------------------------------------------------


def chunk(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


def argument(text: str, index: int = 0) -> bytes:
    call = {"index": index, "id": f"c{index}", "function": {"name": "x", "arguments": text}}
    return chunk(tool_calls=[call])


# Each follows the head and `BEFORE`.
STREAMS: dict[str, Callable[[], Pieces]] = {
    "endless-text": lambda: endless(chunk(content="word " * 20)),
    "endless-thinking": lambda: endless(chunk(reasoning_content="word " * 20)),
    "endless-comments": lambda: endless(b": " + b"ping " * 20 + b"\n\n"),
    "long-line": lambda: chain([b"data: "], many(b"x" * 4096, 100 * MB)),
    "lines-of-nothing": lambda: endless(b"data:\n"),
    "million-events": lambda: many(b'data: {"choices":[]}\n\n', 21 * 1_000_000),
    "bad-utf-8": lambda: iter([b'data: {"choices":[{"delta":{"content":"\xff\xfe\xc3"}}]}\n\n']),
    "unpacked-json": lambda: chain(
        [b'data: {"choices":[],"x":['], many(b"{},", 3 * MB), [b"0]}\n\n"]
    ),
    "endless-arguments": lambda: endless(argument("x" * 200)),
    "large-arguments": lambda: chain(
        *(many(argument("[" + "{}," * 20_000 + "0]", index), MB) for index in range(60))
    ),
    "many-calls": lambda: (argument("{}", index) for index in range(100_000)),
}
NO_STREAM: dict[str, Callable[[], Pieces]] = {
    "bomb": lambda: chain(
        [head(more="content-encoding: gzip\r\n")], repeat(gzip.compress(bytes(10 * MB)), 100)
    ),
    "headers": lambda: chain([b"HTTP/1.1 200 OK\r\n"], endless(b"x-y: " + b"z" * 4000 + b"\r\n")),
    "interim": lambda: endless(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"),
    "long-status": lambda: chain([b"HTTP/1.1 200 "], endless(b"x" * 4096)),
    "endless-refusal": lambda: chain(
        [b"HTTP/1.1 400 No\r\ncontent-type: application/json\r\n\r\n"], endless(b'{"error":[')
    ),
}


def openai(request: Request) -> bytes | Pieces:
    if request.method == "GET":
        return response(200, {"data": []})
    if request.model in NO_STREAM:
        return NO_STREAM[request.model]()
    if request.model in STREAMS:
        return chain([head(), chunk(content=BEFORE)], STREAMS[request.model]())
    if request.model == "steady":
        return steady()
    return reply("hello")


def steady() -> Pieces:
    yield head()
    for number in range(100_000):
        yield chunk(content=f"{number} ")
        time.sleep(0.05)


# -- in the format of Bedrock ----------------------------------------------------------------------


def frame(event: str, payload: bytes, *, total: int = 0, crcs: tuple[int, int] = (0, 0)) -> bytes:
    """A message; `total` in place of its length, its checksums changed by `crcs`."""
    headers = b""
    for name, value in ((":message-type", "event"), (":event-type", event)):
        headers += bytes([len(name)]) + name.encode() + b"\x07"
        headers += struct.pack(">H", len(value)) + value.encode()
    size = total or 16 + len(headers) + len(payload)
    prelude = struct.pack(">II", size, len(headers))
    prelude += struct.pack(">I", zlib.crc32(prelude) ^ crcs[0])
    message = prelude + headers + payload
    return message + struct.pack(">I", zlib.crc32(message) ^ crcs[1])


def delta(text: str) -> bytes:
    said = {"contentBlockIndex": 0, "delta": {"text": text}}
    return frame("contentBlockDelta", json.dumps(said).encode())


def signature(text: str) -> bytes:
    said = {"contentBlockIndex": 0, "delta": {"reasoningContent": {"signature": text}}}
    return frame("contentBlockDelta", json.dumps(said).encode())


FRAMES: dict[str, Callable[[], Pieces]] = {
    "endless-frames": lambda: endless(delta("word " * 20)),
    "empty-frames": lambda: endless(frame("x", bytes(1000))),
    "claims-4-gb": lambda: chain([frame("x", b"", total=2**32 - 1)], endless(bytes(4096))),
    "claims-nothing": lambda: iter([frame("x", b"", total=1)]),
    "claims-more": lambda: iter([frame("x", b"{}", total=200)]),
    "claims-less": lambda: iter([frame("contentBlockDelta", b"{}" * 50, total=60)]),
    "wrong-first-crc": lambda: iter([frame("x", b"{}", crcs=(1, 0))]),
    "wrong-last-crc": lambda: iter([frame("x", b"{}", crcs=(0, 1))]),
    "no-frames": lambda: endless(b"\xff" * 4096),
    "long-signature": lambda: endless(signature("s" * 20)),
}


def bedrock(request: Request) -> bytes | Pieces:
    model = request.path.rpartition("/model/")[2].partition("/")[0]
    if model not in FRAMES:
        return response(200, {"modelSummaries": [], "inferenceProfileSummaries": []})
    start = [head("application/vnd.amazon.eventstream"), delta(BEFORE)]
    return chain(start, FRAMES[model]())


# -- in the format of Anthropic --------------------------------------------------------------------


def named(kind: str, **more: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


def block(kind: str, index: int = 0, **start: object) -> bytes:
    return named("content_block_start", index=index, content_block={"type": kind, **start})


def change(kind: str, index: int = 0, **more: object) -> bytes:
    return named("content_block_delta", index=index, delta={"type": kind, **more})


MESSAGES: dict[str, Callable[[], Pieces]] = {
    "endless-text": lambda: endless(change("text_delta", text="word " * 20)),
    "endless-thinking": lambda: chain(
        [block("thinking", 1, thinking="")],
        endless(change("thinking_delta", 1, thinking="word " * 20)),
    ),
    "long-signature": lambda: chain(
        [block("thinking", 1, thinking="")],
        endless(change("signature_delta", 1, signature="s" * 200)),
    ),
    "endless-arguments": lambda: chain(
        [block("tool_use", 1, id="c", name="x")],
        endless(change("input_json_delta", 1, partial_json="x" * 200)),
    ),
    "endless-pings": lambda: endless(named("ping")),
    "many-blocks": lambda: (block("text", index, text="") for index in range(1, 100_000)),
    "long-line": lambda: chain([b"data: "], many(b"x" * 4096, 100 * MB)),
    "bad-utf-8": lambda: iter([b'event: x\ndata: {"type":"\xff\xfe"}\n\n']),
}


def anthropic(request: Request) -> bytes | Pieces:
    if request.method == "GET":
        return response(200, {"data": []})
    if request.model not in MESSAGES:
        return response(400, {"error": {"message": "not this one"}})
    opened = [
        head(),
        named("message_start", message={"id": "m", "role": "assistant", "content": []}),
        block("text", text=""),
        change("text_delta", text=BEFORE),
    ]
    return chain(opened, MESSAGES[request.model]())


# -- in the format of Gemini -----------------------------------------------------------------------


def candidate(*parts: dict[str, object]) -> bytes:
    said = {"candidates": [{"index": 0, "content": {"role": "model", "parts": list(parts)}}]}
    return b"data: " + json.dumps(said).encode() + b"\n\n"


GEMINI: dict[str, Callable[[], Pieces]] = {
    "gemini-endless-text": lambda: endless(candidate({"text": "word " * 20})),
    "gemini-endless-thoughts": lambda: endless(candidate({"text": "word " * 20, "thought": True})),
    "gemini-signatures": lambda: endless(candidate({"text": "a", "thoughtSignature": "s" * 200})),
    "gemini-large-arguments": lambda: endless(
        candidate({"functionCall": {"name": "x", "args": {"x": "y" * 60_000}}})
    ),
    "gemini-many-calls": lambda: endless(candidate({"functionCall": {"name": "x", "args": {}}})),
    "gemini-nothing": lambda: endless(b'data: {"candidates":[]}\n\n'),
    "gemini-long-line": lambda: chain([b"data: "], many(b"x" * 4096, 100 * MB)),
}


def vertex(request: Request) -> bytes | Pieces:
    if request.path == "/google/token":
        token = {"access_token": "ya29.x", "expires_in": 3600, "token_type": "Bearer"}
        return response(200, token)
    model = request.path.rpartition("/models/")[2].partition(":")[0]
    if model not in GEMINI:
        return response(404, {"error": {"message": "not this one"}})
    return chain([head(), candidate({"text": BEFORE})], GEMINI[model]())


# -- in the format of the Responses API, through the relay and the Codex process -------------------


def event(kind: str, **more: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


def said(text: str) -> bytes:
    return event("response.output_text.delta", item_id="m", output_index=0, delta=text)


OPENED = b"".join(
    (
        event("response.created", response={"id": "r"}),
        event(
            "response.output_item.added",
            output_index=0,
            item={"type": "message", "id": "m", "role": "assistant", "content": []},
        ),
    )
)
RESPONSES: dict[str, Callable[[], Pieces]] = {
    "endless-text": lambda: endless(said("word " * 100)),
    "large-deltas": lambda: endless(said("word " * 100_000)),
    "endless-comments": lambda: endless(b": " + b"ping " * 200 + b"\n\n"),
    "long-line": lambda: chain([b"data: "], many(b"x" * 4096, 100 * MB)),
    "bad-utf-8": lambda: iter([b'event: x\ndata: {"type":"\xff\xfe"}\n\n']),
    "unpacked-json": lambda: chain(
        [b'event: x\ndata: {"type":"x","x":['], many(b"{},", 3 * MB), [b"0]}\n\n"]
    ),
}


def responses(request: Request) -> bytes | Pieces:
    if request.method == "GET":
        return response(200, {"data": []})
    if request.model in NO_STREAM:
        return NO_STREAM[request.model]()
    if request.model in RESPONSES:
        return chain([head(), OPENED, said(BEFORE)], RESPONSES[request.model]())
    return response(400, {"error": {"message": "not this one"}})


# -- the attacks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory, static_files) -> Iterator[Attacked]:
    env = {
        "PATCHBAY_EGRESS_ALLOW": "127.0.0.0/8",
        "PATCHBAY_TOOL_EGRESS_ALLOW": "127.0.0.0/8",
        "PATCHBAY_TITLES": "off",
    }
    providers = {
        "openai": openai,
        "bedrock": bedrock,
        "codex": responses,
        "anthropic": anthropic,
        "vertex": vertex,
    }
    there = {name: Listener(answer) for name, answer in providers.items()}
    for one in there.values():
        one.__enter__()
    env["PATCHBAY_GOOGLE_TOKEN_URL"] = f"{there['vertex'].url}/google/token"
    with Attacked(tmp_path_factory.mktemp("hostile"), env=env) as running:
        url = there["openai"].url
        models = "\n".join(("hello", "steady", *STREAMS, *NO_STREAM))
        openai_fields = {"models": models, "default_model": "hello"}
        running.add("openai", f"{url}/v1", "sk-1", **openai_fields)
        make(running, "bedrock", there["bedrock"].url, FRAMES)
        make(running, "codex", f"{there['codex'].url}/v1", {**RESPONSES, **NO_STREAM})
        make(running, "anthropic", there["anthropic"].url, MESSAGES)
        make(running, "vertex", there["vertex"].url, GEMINI)
        assert running.ask("openai", "hello")["text"] == "hello"
        yield running
    for one in there.values():
        one.__exit__()


def make(server: Attacked, slug: str, url: str, models: dict[str, object]) -> None:
    types = {
        "bedrock": {"provider_type": "bedrock", "auth_type": "api_key", "aws_region": "eu-west-1"},
        "codex": {"provider_type": "openai", "auth_type": "api_key_with_endpoint"},
        "anthropic": {"provider_type": "anthropic_compat"},
        "vertex": {
            "provider_type": "vertex",
            "auth_type": "service_account_file",
            "gcp_project_id": PROJECT,
            "gcp_region": "us-central1",
            "service_account_json": service_account(),
        },
    }
    # paused while it is made: what is validated first is no turn
    data = {**FORM, **types[slug], "name": slug, "slug": slug, "base_url": url, "api_key": "sk-1"}
    names = {"models": "\n".join(models), "default_model": next(reversed(models))}
    answer = server.admin.post("/connections/new/", data={**data, **names})
    assert answer.status_code == 303, answer.text
    server.wait_for_probe(slug)


class Watched:
    """The worker's memory and another person's reply while something happens."""

    def __init__(self, server: Attacked, steady: str) -> None:
        self.server, self.steady = server, steady
        self.status = Path(f"/proc/{server.pids()['worker']}")

    def size(self, name: str) -> int:
        for line in (self.status / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(name)

    def __enter__(self) -> Watched:
        (self.status / "clear_refs").write_text("5")  # the peak is what it is now
        self.before = self.size("VmRSS")
        self.length = self.length_now()
        return self

    def length_now(self) -> int:
        (turn,) = self.server.turns(self.steady)
        assert turn["state"] == "running", turn
        return len(turn["text"])

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            wait_for(lambda: self.length_now() > self.length, what="the other reply goes on")
            self.growth = self.size("VmHWM") - self.before


@pytest.fixture
def other(server) -> Iterator[str]:
    """A session on the same worker whose reply goes on and on."""
    session = server.send("openai", "go on", model="steady")
    wait_for(lambda: server.turns(session)[0]["text"], what="the other reply has begun")
    yield session
    server.admin.post(f"{session}stop/")
    server.wait_for_turn(session)


CASES = [
    *(("openai", name) for name in (*STREAMS, *NO_STREAM)),
    *(("bedrock", name) for name in FRAMES),
    *(("codex", name) for name in (*RESPONSES, *NO_STREAM)),
    *(("anthropic", name) for name in MESSAGES),
    *(("vertex", name) for name in GEMINI),
]


@pytest.mark.parametrize(("connection", "model"), CASES)
def test_it_is_capped_and_the_rest_goes_on(server, other, connection, model):
    with Watched(server, other) as watched:
        turn = server.ask(connection, "hello", model=model)
    assert turn["state"] == "failed"
    assert turn["error_kind"] not in ("", "internal"), turn
    if model not in NO_STREAM:
        assert turn["text"].startswith(BEFORE), turn
    assert watched.growth < MOST_GROWTH, turn


@pytest.mark.parametrize("path", ["calls-endless", "calls-huge"])
def test_a_tool_server_is_capped_too(server, fakes, other, path):
    slug = "with-tools"
    if not server.probes(slug):
        server.add(slug, fakes.openai, fakes.good_key, models="calls", default_model="calls")
    with FakeMcp() as shop:
        url = "/w/support/settings/tools/new/"
        data = {
            "name": path,
            "prefix": path[-4:],
            "url": f"{shop.url}/{path}",
            "headers": f"Authorization: Bearer {GOOD}",
        }
        assert server.admin.post(url, data=data).status_code == 303
        with Watched(server, other) as watched:
            text = f'call {path[-4:]}__search {{"words": "boats"}}'
            turn = server.ask(slug, text)
    assert turn["state"] == "done", turn
    results = server.rows(
        "SELECT parts FROM agent_sessions_message WHERE turn_id = ? ORDER BY step", turn["id"]
    )
    assert "too large" in "".join(row["parts"] for row in results)
    assert watched.growth < MOST_GROWTH
