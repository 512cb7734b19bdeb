"""A fake MCP server on loopback: streamable HTTP as the specification has it, with strict readers.

What it does is chosen by the path; every path but `/open` wants `Authorization: Bearer
mcp-good-…`, and every path but `/stateless` wants the session id that it gave.

    /json /sse       two of a shop's tools; answers as JSON, or as events (a comment, a primer,
                     progress, a ping that must be answered, then the answer)
    /open            as /json, without a key
    /plain           as /json, without session ids
    /stateless       as /json, in the era without a handshake (2026-07-28)
    /paged           seven tools, three on a page
    /forgets         forgets every session after its first call
    /odd             tools with names and schemas that providers don't take
    /old             speaks a version that nobody speaks any more
    /401 /403 /404 /429 /500 /html /bad-json /redirect /refuses
    /slow            says nothing
    /endless /huge   events without end; one answer of 100 MB
    /calls-…         lists as /json does, and does on a call what the path without `calls-` does

For tests: `requests` (what came, with keys as hashes), `open_calls`, `aborted`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Self

import orjson
import uvloop

from tests.fakes.http import Exchange, Hang, Server, Step

GOOD = "mcp-good-key-0123456789abcdef"
VERSIONS = ("2025-03-26", "2025-06-18", "2025-11-25")
STATELESS = "2026-07-28"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"

SEARCH = {
    "name": "search",
    "title": "Search the shop",
    "description": "Finds articles by words.",
    "inputSchema": {
        "type": "object",
        "properties": {"words": {"type": "string"}},
        "required": ["words"],
    },
}
TOOLS = [
    SEARCH,
    {
        "name": "say",
        "description": "Gives what `kind` names.",
        "inputSchema": {"type": "object", "properties": {"kind": {"type": "string"}}},
    },
]
ODD = [
    {**SEARCH, "name": "files.read/all it’s fine"},
    {**SEARCH, "name": "files_read_all_it_s_fine"},
    {**SEARCH, "name": "n" * 120},
    {**SEARCH, "name": "no-schema", "inputSchema": {"type": "string"}},
    {**SEARCH, "name": "bad-key", "inputSchema": {"type": "object", "properties": {"a b": {}}}},
    {**SEARCH, "name": "huge", "inputSchema": {"type": "object", "title": "x" * 100_000}},
    {**SEARCH, "name": "top", "inputSchema": {"type": "object", "anyOf": [{"required": ["a"]}]}},
    {"title": "no name"},
    "not an object",
]


class FakeMcp:
    """Runs in a thread of the test from `__enter__` to `__exit__`."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.open_calls = 0
        self.aborted = 0
        self.hold: threading.Event | None = None  # when set, `search` answers only after it
        self._sessions: dict[str, str] = {}  # id → the path it was given on
        # asyncio's own leaves a socket open that it accepted in the turn before the server closes
        self._loop = uvloop.new_event_loop()
        self._server = Server(self._handle)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *failure: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def calls(self, **wanted: Any) -> list[dict[str, Any]]:
        """The `tools/call` requests, oldest first."""
        return self.asked("tools/call", **wanted)

    def asked(self, method: str, **wanted: Any) -> list[dict[str, Any]]:
        return [
            one
            for one in self.requests
            if one["method"] == method and all(one.get(key) == v for key, v in wanted.items())
        ]

    # -- one request -----------------------------------------------------------------------------

    def _handle(self, exchange: Exchange) -> None:
        path = exchange.path.strip("/")
        record: dict[str, Any] = {
            "path": path,
            "http": exchange.method,
            "headers": {
                name: value if name != "authorization" else f"{value[:15]}…"
                for name, value in exchange.headers.items()
            },
            "method": "",
        }
        self.requests.append(record)
        try:
            self._serve(exchange, path, record)
        except _Wrong as wrong:
            error = {"code": -32600, "message": str(wrong)}
            if isinstance(wrong, _Unsupported):
                error |= {"code": -32022, "data": {"supported": [STATELESS]}}
            body = {"jsonrpc": "2.0", "id": record.get("id"), "error": error}
            exchange.respond(wrong.status, body)

    def _serve(self, exchange: Exchange, path: str, record: dict[str, Any]) -> None:
        headers = exchange.headers
        if path != "open":
            given = headers.get("authorization", "")
            if not given.startswith("Bearer mcp-good"):
                raise _Wrong(401, f"Not signed in as {given}")
        if exchange.method == "DELETE":
            self._end_session(exchange, headers)
            return
        if exchange.method != "POST":
            raise _Wrong(405, "Only POST and DELETE")
        _need(headers.get("content-type") == "application/json", "content-type")
        accepted = {part.strip() for part in headers.get("accept", "").split(",")}
        _need({"application/json", "text/event-stream"} <= accepted, "accept", 406)
        _need("cookie" not in headers, "cookies")
        _need(headers.get("accept-encoding") == "identity", "compression")
        message = orjson.loads(exchange.body)
        _need(isinstance(message, dict) and message.get("jsonrpc") == "2.0", "jsonrpc")
        method = record["method"] = message.get("method", "")
        record["params"] = message.get("params", {})
        record["id"] = message.get("id")
        calls, path = path.startswith("calls-"), path.removeprefix("calls-")
        if calls and method != "tools/call":
            path = "json"
        if self._fault(exchange, path):
            return
        if path == "stateless":
            self._check_envelope(headers, message)
        elif method == "initialize":
            self._initialize(exchange, path, message)
            return
        else:
            self._check_session(headers, path, record)
        if "method" not in message or "id" not in message:  # an answer of ours, or a notification
            record["answer"] = message
            exchange.respond(202, b"")
            return
        self._method(exchange, path, message)

    def _end_session(self, exchange: Exchange, headers: dict[str, str]) -> None:
        if self._sessions.pop(headers.get("mcp-session-id", ""), None) is None:
            raise _Wrong(404, "No such session")
        exchange.respond(200, b"")

    def _initialize(self, exchange: Exchange, path: str, message: dict[str, Any]) -> None:
        params = message["params"]
        _need(set(params) == {"protocolVersion", "capabilities", "clientInfo"}, "params")
        _need({"name", "version"} <= set(params["clientInfo"]), "clientInfo")
        asked = params["protocolVersion"]
        version = asked if asked in VERSIONS else VERSIONS[-1]
        result = {
            "protocolVersion": "2024-11-05" if path == "old" else version,
            "capabilities": {"tools": {"listChanged": False}},
            "serverInfo": {"name": "fake", "version": "1"},
        }
        extra = {}
        if path != "plain":
            ident = uuid.uuid4().hex
            self._sessions[ident] = path
            extra["mcp-session-id"] = ident
        self._answer(
            exchange, path, {"jsonrpc": "2.0", "id": message["id"], "result": result}, extra
        )

    def _check_session(self, headers: dict[str, str], path: str, record: dict[str, Any]) -> None:
        _need(headers.get("mcp-protocol-version") in VERSIONS, "mcp-protocol-version")
        if path == "plain":
            _need("mcp-session-id" not in headers, "mcp-session-id")
            return
        record["session"] = ident = headers.get("mcp-session-id", "")
        _need(ident, "mcp-session-id")
        if ident not in self._sessions:
            raise _Wrong(404, "Session not found")

    def _check_envelope(self, headers: dict[str, str], message: dict[str, Any]) -> None:
        if message["method"] == "initialize" or headers.get("mcp-protocol-version") != STATELESS:
            raise _Unsupported
        _need("mcp-session-id" not in headers, "mcp-session-id")
        _need(headers.get("mcp-method") == message["method"], "mcp-method")
        if message["method"] == "tools/call":
            _need(headers.get("mcp-name") == message["params"]["name"], "mcp-name")
        meta = message["params"].get("_meta", {})
        keys = ("protocolVersion", "clientInfo", "clientCapabilities")
        _need(set(meta) == {f"io.modelcontextprotocol/{key}" for key in keys}, "_meta")

    def _method(self, exchange: Exchange, path: str, message: dict[str, Any]) -> None:
        params, reply = message.get("params", {}), {"jsonrpc": "2.0", "id": message["id"]}
        match message["method"]:
            case "tools/list":
                self._answer(exchange, path, {**reply, "result": _listed(path, params)})
            case "tools/call":
                names = {"say", "search", *(f"tool-{n}" for n in range(7))}
                if params["name"] not in names and path != "odd":
                    error = {"code": -32602, "message": f"Unknown tool: {params['name']}"}
                    self._answer(exchange, path, {**reply, "error": error})
                    return
                _need(isinstance(params.get("arguments"), dict), "arguments")
                if path == "forgets":
                    self._sessions.clear()
                result = {**reply, "result": _called(params, exchange.headers)}
                if self.hold is not None and params["name"] == "search":
                    self._later(exchange, path, result)
                else:
                    self._answer(exchange, path, result)
            case "ping":
                self._answer(exchange, path, {**reply, "result": {}})
            case _:
                error = {"code": -32601, "message": "Method not found"}
                self._answer(exchange, path, {**reply, "error": error})

    def _later(self, exchange: Exchange, path: str, payload: dict[str, Any]) -> None:
        self.open_calls += 1

        def over(how: str) -> None:
            self.open_calls -= 1
            self.aborted += how == "aborted"

        exchange.on_end = over

        def look() -> None:
            if exchange.over:
                return
            if self.hold is None or self.hold.is_set():
                self._answer(exchange, path, payload)
            else:
                self._loop.call_later(0.02, look)

        look()

    def _answer(
        self,
        exchange: Exchange,
        path: str,
        payload: dict[str, Any],
        headers: dict[str, str] | None = None,
    ) -> None:
        if path != "sse":
            exchange.respond(200, payload, headers)
            return
        progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
        ping = {"jsonrpc": "2.0", "id": "srv-1", "method": "ping"}
        # A client that has no session yet has nothing to answer with.
        asked = [] if "protocolVersion" in payload.get("result", {}) else [_event(ping)]
        steps = [b": hello\n\n", b"id: 1\ndata:\n\n", _event(progress), *asked, _event(payload)]
        kind = {"content-type": "text/event-stream", **(headers or {})}
        # Left open after the answer: a client that waits for the end waits for ever.
        exchange.play(iter([*steps, Hang]), kind)

    def _fault(self, exchange: Exchange, path: str) -> bool:
        stream = {"content-type": "text/event-stream"}
        match path:
            case "403" | "404" | "429" | "500":
                exchange.respond(int(path), {"error": f"No: {exchange.headers['authorization']}"})
            case "401":
                raise _Wrong(401, f"Wrong key {exchange.headers['authorization']}")
            case "html":
                exchange.respond(200, b"<h1>Welcome</h1>", {"content-type": "text/html"})
            case "bad-json":
                exchange.respond(200, b'{"jsonrpc": "2.0", "id": 1, "res')
            case "redirect":
                exchange.respond(307, b"", {"location": f"{self.url}/elsewhere"})
            case "refuses":
                error = {
                    "code": -32000,
                    "message": f"Not today, {exchange.headers['authorization']}",
                }
                ident = orjson.loads(exchange.body).get("id")
                exchange.respond(200, {"jsonrpc": "2.0", "id": ident, "error": error})
            case "slow":
                self.open_calls += 1

                def over(how: str) -> None:
                    self.open_calls -= 1
                    self.aborted += how == "aborted"

                exchange.on_end = over
            case "endless":
                exchange.play(_endless(), stream)
            case "huge":
                exchange.play(_huge(), {"content-type": "application/json"})
            case "ends":
                exchange.play(iter([b"id: 1\ndata:\n\n"]), stream)
            case _:
                return False
        return True


class _Wrong(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Unsupported(_Wrong):
    def __init__(self) -> None:
        super().__init__(400, "Unsupported protocol version")


def _need(condition: object, what: str, status: int = 400) -> None:
    if not condition:
        raise _Wrong(status, f"wrong or missing: {what}")


def _event(payload: dict[str, Any]) -> bytes:
    return b"event: message\ndata: " + orjson.dumps(payload) + b"\n\n"


def _listed(path: str, params: dict[str, Any]) -> dict[str, Any]:
    if path == "odd":
        return {"tools": ODD}
    if path != "paged":
        return {"tools": TOOLS}
    tools = [{**SEARCH, "name": f"tool-{number}"} for number in range(7)]
    start = int(params.get("cursor", "0"))
    page: dict[str, Any] = {"tools": tools[start : start + 3]}
    return page | ({"nextCursor": str(start + 3)} if start + 3 < 7 else {})


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _called(params: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    args = params["arguments"]
    if params["name"] != "say":
        return {"content": [_text(f"Found for {args.get('words', '')}: a boat.")]}
    found = {"boats": [{"name": "Ada", "price": 12.5}]}
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "image": lambda: {
            "content": [
                _text("Here it is."),
                {"type": "image", "mimeType": "image/png", "data": PIXEL},
            ]
        },
        "structured": lambda: {"content": [], "structuredContent": found},
        "twice": lambda: {
            "content": [_text(json.dumps(found, indent=2))],
            "structuredContent": found,
        },
        "resource": lambda: {
            "content": [
                {"type": "resource", "resource": {"uri": "file:///a", "text": "its text"}},
                {"type": "resource_link", "uri": "https://example.com/b", "name": "b"},
            ]
        },
        "error": lambda: {"content": [_text("The shop is closed.")], "isError": True},
        "big": lambda: {"content": [_text("word " * 40_000)]},
        "nul": lambda: {"content": [_text("a\0b")]},
        "key": lambda: {"content": [_text(f"You sent {headers.get('authorization')}")]},
        "nothing": lambda: {"content": []},
        "nonsense": lambda: {"content": "not a list", "isError": "no"},
    }
    return kinds.get(args.get("kind", "nothing"), kinds["nothing"])()


def _endless() -> Iterator[Step]:
    progress = _event({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}})
    while True:
        yield progress * 100


def _huge() -> Iterator[Step]:
    yield b'{"jsonrpc": "2.0", "id": 2, "result": {"content": [{"type": "text", "text": "'
    for _ in range(1600):
        yield b"x" * 65536
    yield b'"}]}}'
