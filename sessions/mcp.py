"""A client of MCP servers over streamable HTTP: lists a server's tools and calls them.

Knows no models and no Django: it takes the guarded client (`workspaces.egress`), an address and
headers. docs/decisions/0013 says why it isn't the `mcp` package's. Whatever goes wrong is a
`ProviderError` with a scrubbed message; no answer is read beyond `MAX_ANSWER` bytes, and the
caller sets the time (`asyncio.timeout`).

Both eras of the protocol: `initialize` and a session id (2025-03-26 to 2025-11-25), or, for a
server that says it knows nothing older, requests that stand alone (2026-07-28).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from connections.providers import errors
from connections.providers.base import ErrorKind, ProviderError, Target
from connections.providers.errors import Scrubber
from connections.providers.wire.lenient_json import dumps, loads
from connections.providers.wire.sse import SSEParser
from workspaces.egress import ResponseTooLarge, bounded_bytes

HANDSHAKE = "2025-11-25"
SPOKEN = frozenset({"2025-03-26", "2025-06-18", HANDSHAKE})
STATELESS = "2026-07-28"
# "Unsupported protocol version" and "method not found": what a server without `initialize` says.
_NO_HANDSHAKE = frozenset({"-32022", "-32601"})
CLIENT = {"name": "Patchbay", "version": "1"}

MAX_ANSWER = 8 * 1024 * 1024  # bytes of one answer, events and all
MAX_EVENTS = 10_000  # of one answer
MAX_PAGES = 20  # of one list
MAX_TOOLS = 500  # of one server
MAX_REQUESTS_OF_SERVER = 20  # that are answered while one answer is read
CONNECT_SECONDS = 5.0
ERROR_BODY_SECONDS = 3.0
CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as its server describes it. `schema` is the JSON schema of its arguments."""

    name: str
    title: str = ""
    description: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)


class Session:
    """One conversation with one server; opened by its first request, ended by `close`.

    Requests may run at once. `headers` go with every request and with no other destination.
    """

    def __init__(self, client: httpx.AsyncClient, url: str, headers: Mapping[str, str]) -> None:
        self._client, self._url = client, url
        self._own = {name.lower(): value for name, value in headers.items()}
        self._scrub = Scrubber(Target("mcp", "", extra_headers=headers))
        self._hidden = _hidden(headers)
        self._lock = asyncio.Lock()
        self._number = 0
        self._is_open = False
        self._id = ""
        self._version = ""

    async def list_tools(self) -> list[Tool]:
        """All pages, at most `MAX_TOOLS`. Raises ProviderError."""
        tools: list[Tool] = []
        cursor: Any = None
        for _page in range(MAX_PAGES):
            result = await self._ask("tools/list", {"cursor": cursor} if cursor else {})
            found = result.get("tools")
            if not isinstance(found, list):
                raise ProviderError(ErrorKind.PROTOCOL, "The list of tools is not a list.")
            tools += [tool for one in found if (tool := _tool(one))]
            cursor = result.get("nextCursor")
            if not isinstance(cursor, str) or not cursor or len(tools) >= MAX_TOOLS:
                break
        return tools[:MAX_TOOLS]

    async def call(self, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """The server's result: `content`, `structuredContent`, `isError`. Raises ProviderError."""
        return await self._ask("tools/call", {"name": name, "arguments": dict(args)}, name=name)

    async def close(self) -> None:
        """Tells the server that nothing more comes. Never raises; two seconds at most."""
        if not self._id:
            return
        with contextlib.suppress(TimeoutError, ProviderError):
            async with (
                asyncio.timeout(CLOSE_SECONDS),
                self._sent("DELETE", self._headers(), None),
            ):
                pass
        self._id, self._is_open = "", False

    # -- requests --------------------------------------------------------------------------------

    async def _ask(self, method: str, params: dict[str, Any], *, name: str = "") -> dict[str, Any]:
        opened = await self._open()
        try:
            return await self._request(method, params, name=name)
        except ProviderError as error:
            # The server forgot the session, so it didn't do what was asked either.
            if error.status != 404 or not opened:
                raise
        async with self._lock:
            if self._id == opened:
                self._id, self._is_open = "", False
        await self._open()
        return await self._request(method, params, name=name)

    async def _open(self) -> str:
        """Agrees on a version, once; the session's id, "" for a server without sessions."""
        async with self._lock:
            if not self._is_open:
                self._version = ""
                try:
                    await self._handshake()
                except ProviderError as error:
                    if error.code not in _NO_HANDSHAKE:
                        raise
                    self._id, self._version = "", STATELESS
                self._is_open = True
            return self._id

    async def _handshake(self) -> None:
        result = await self._request(
            "initialize",
            {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": CLIENT},
        )
        version = result.get("protocolVersion")
        if version not in SPOKEN:
            message = self._scrub(f"The server speaks version {str(version)[:40]!r} of MCP only.")
            raise ProviderError(ErrorKind.PROTOCOL, message)
        self._version = version
        await self._tell({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def _request(
        self, method: str, params: dict[str, Any], *, name: str = ""
    ) -> dict[str, Any]:
        self._number += 1
        number = self._number
        headers = self._headers()
        if self._version == STATELESS:
            params = {**params, "_meta": _ENVELOPE}
            headers["mcp-method"] = method
            if name:
                headers["mcp-name"] = _header_value(name)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        async with self._sent("POST", headers, message) as response:
            answer = await self._answer(response, number)
            if method == "initialize":
                given = response.headers.get("mcp-session-id", "")
                self._id = given if re.fullmatch(r"[\x21-\x7e]{1,1000}", given) else ""
        if "error" in answer:
            raise errors.from_payload(answer, self._scrub, otherwise=ErrorKind.BAD_REQUEST)
        result = answer.get("result")
        if not isinstance(result, dict):
            raise ProviderError(ErrorKind.PROTOCOL, "The answer has neither result nor error.")
        return _masked(result, self._hidden) if self._hidden else result

    async def _tell(self, message: dict[str, Any]) -> None:
        """Sends what has no answer. Raises ProviderError."""
        async with self._sent("POST", self._headers(), message):
            pass

    def _headers(self) -> dict[str, str]:
        headers = {**self._own, "accept": "application/json, text/event-stream"}
        if self._version:
            headers["mcp-protocol-version"] = self._version
        if self._id:
            headers["mcp-session-id"] = self._id
        return headers

    @contextlib.asynccontextmanager
    async def _sent(
        self, method: str, headers: dict[str, str], message: dict[str, Any] | None
    ) -> AsyncIterator[httpx.Response]:
        """The response, its head read; a refusal or a redirect is raised. Every failure of the
        network within the block is a ProviderError."""
        content = None
        if message is not None:
            headers = {**headers, "content-type": "application/json"}
            try:
                content = dumps(message)
            except ValueError:
                text = "The arguments can't be written as JSON."
                raise ProviderError(ErrorKind.BAD_REQUEST, text) from None
        answering = False
        try:
            timeout = httpx.Timeout(CONNECT_SECONDS, read=None)
            request = self._client.build_request(
                method, self._url, content=content, headers=headers, timeout=timeout
            )
            response = await self._client.send(request, stream=True, follow_redirects=False)
            try:
                if response.status_code >= 300 and method == "POST":
                    raise await self._refusal(response)
                answering = True
                yield response
            finally:
                await response.aclose()
        except ResponseTooLarge:
            raise ProviderError(ErrorKind.TOO_LARGE, "The answer is too large.") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            # `from None`: httpx's exceptions hold the request, and with it the headers
            raise errors.from_exception(error, self._scrub, answering=answering) from None

    async def _refusal(self, response: httpx.Response) -> ProviderError:
        try:
            async with asyncio.timeout(ERROR_BODY_SECONDS):
                body = await bounded_bytes(response, 64 * 1024)
        except (TimeoutError, httpx.HTTPError):
            body = b""  # the status is enough
        return errors.from_response(response.status_code, response.headers, body, self._scrub)

    # -- answers ---------------------------------------------------------------------------------

    async def _answer(self, response: httpx.Response, number: int) -> dict[str, Any]:
        """The message that answers request `number`, from a JSON body or a stream of events."""
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            body = await bounded_bytes(response, MAX_ANSWER)
            found = _answer_in(self._loads(body), number)
            if found is None:
                raise ProviderError(ErrorKind.PROTOCOL, "The answer belongs to no request.")
            return found
        if kind != "text/event-stream":
            shown = self._scrub(kind) or "nothing"
            raise ProviderError(ErrorKind.PROTOCOL, f"The answer is {shown}, not MCP.")
        parser, size, events, asked = SSEParser(MAX_ANSWER), 0, 0, 0
        async with contextlib.aclosing(response.aiter_raw()) as chunks:
            async for chunk in chunks:
                size += len(chunk)
                for _name, data in parser.feed(chunk):
                    events += 1
                    if not data.strip():
                        continue
                    message = self._loads(data)
                    if (found := _answer_in(message, number)) is not None:
                        return found
                    if _is_request(message) and asked < MAX_REQUESTS_OF_SERVER:
                        asked += 1
                        await self._reply(message)
                if size > MAX_ANSWER or events > MAX_EVENTS:
                    raise ProviderError(ErrorKind.TOO_LARGE, "The answer is too large.")
        for _name, data in parser.close():
            if data.strip() and (found := _answer_in(self._loads(data), number)) is not None:
                return found
        raise ProviderError(ErrorKind.TRUNCATED, "The stream ended without an answer.")

    async def _reply(self, message: dict[str, Any]) -> None:
        """To what the server may ask in the middle of a call: that we are there, no more."""
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] == "ping":
            reply["result"] = {}
        else:
            reply["error"] = {"code": -32601, "message": "Method not found"}
        await self._tell(reply)

    def _loads(self, data: bytes) -> Any:
        try:
            return loads(data)
        except ValueError:
            text = self._scrub(f"The answer is not JSON: {errors.excerpt(data)}")
            raise ProviderError(ErrorKind.PROTOCOL, text) from None


_ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": STATELESS,
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}


def _hidden(headers: Mapping[str, str]) -> list[str]:
    """The headers' values, and what stands in one after its scheme, in every spelling, longest
    first. A short one is no key, and its letters are in every text."""
    values = {piece for value in headers.values() for piece in (value, value.partition(" ")[2])}
    found = {text for value in values if len(value) >= 8 for text in errors.spellings(value)}
    return sorted(found, key=len, reverse=True)


def _masked(value: Any, hidden: Sequence[str]) -> Any:
    """What a server says without what it was sent: its tools are shown to all members."""
    if isinstance(value, str):
        for text in hidden:
            value = value.replace(text, "[secret]")
        return value
    if isinstance(value, list):
        return [_masked(one, hidden) for one in value]
    if isinstance(value, dict):
        return {_masked(key, hidden): _masked(one, hidden) for key, one in value.items()}
    return value


def _header_value(text: str) -> str:
    if re.fullmatch(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?", text) and not text.startswith("=?"):
        return text
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


def _answer_in(payload: Any, number: int) -> dict[str, Any] | None:
    """The answer to request `number` in a message, or in one of a batch; an error without an id
    can only be about it too."""
    for message in payload if isinstance(payload, list) else [payload]:
        if not isinstance(message, dict) or "method" in message:
            continue
        ident = message.get("id")
        if ident == number or (ident is None and "error" in message):
            return message
    return None


def _is_request(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and isinstance(message.get("method"), str)
        and isinstance(message.get("id"), str | int)
    )


def _tool(entry: Any) -> Tool | None:
    if not isinstance(entry, dict) or not isinstance(name := entry.get("name"), str) or not name:
        return None
    schema = entry.get("inputSchema")

    def text(key: str) -> str:
        return value if isinstance(value := entry.get(key), str) else ""

    annotations = entry.get("annotations")
    title = text("title")
    if not title and isinstance(annotations, dict):
        title = annotations["title"] if isinstance(annotations.get("title"), str) else ""
    return Tool(name, title, text("description"), schema if isinstance(schema, dict) else {})


# -- results as text -------------------------------------------------------------------------------


def text_of(result: Mapping[str, Any]) -> tuple[str, bool]:
    """A result as the model reads it, and whether the server calls it an error. What isn't text is
    named, not shown."""
    content = result.get("content")
    pieces = [_piece(block) for block in content] if isinstance(content, list) else []
    structured = result.get("structuredContent")
    if structured is not None and not any(_says_the_same(piece, structured) for piece in pieces):
        with contextlib.suppress(ValueError):
            pieces.append(dumps(structured).decode())
    if not pieces and result.get("resultType") not in (None, "complete"):
        return "The tool asks for something that only a person could give it here.", True
    return "\n\n".join(pieces) or "(no content)", result.get("isError") is True


def _piece(block: Any) -> str:
    if not isinstance(block, dict):
        return "[something that isn't MCP, not shown]"
    kind = str(block.get("type"))[:40]
    if kind == "text":
        return str(block.get("text", ""))
    if kind == "resource_link":
        name, uri = block.get("title") or block.get("name") or "", block.get("uri", "")
        return f"[link: {str(name)[:200]} {str(uri)[:2000]}]"
    if kind == "resource" and isinstance(inner := block.get("resource"), dict):
        if isinstance(text := inner.get("text"), str):
            return text
        block = {**inner, "data": inner.get("blob")}
        kind = f"resource {str(inner.get('uri', ''))[:200]}".strip()
    media, data = str(block.get("mimeType") or "")[:100], block.get("data")
    size = f"{len(data) * 3 // 4:,} bytes" if isinstance(data, str) else ""
    return f"[{', '.join(filter(None, (kind, media, size)))}, not shown]"


def _says_the_same(piece: str, structured: Any) -> bool:
    """Servers repeat the structured content as text, for clients that know nothing of it."""
    if not piece.lstrip().startswith(("{", "[")):
        return False
    try:
        return bool(loads(piece.encode("utf-8", "replace")) == structured)
    except ValueError:
        return False
