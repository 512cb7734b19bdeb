"""The client of MCP servers: against a strict fake, against the reference implementation, and
against servers that mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn

from connections.providers.base import ErrorKind, ProviderError
from sessions import mcp
from tests.fakes.mcp_server import GOOD, FakeMcp
from workspaces.egress import Policy, guarded_client

HEADERS = {"Authorization": f"Bearer {GOOD}"}
HERE = Policy.parse("127.0.0.0/8", setting="PATCHBAY_TOOL_EGRESS_ALLOW")


@pytest.fixture
def server() -> Iterator[FakeMcp]:
    with FakeMcp() as running:
        yield running


@contextlib.asynccontextmanager
async def talking(
    url: str, headers: dict[str, str] = HEADERS, policy: Policy = HERE
) -> AsyncIterator[mcp.Session]:
    async with guarded_client(policy) as client:
        session = mcp.Session(client, url, headers)
        try:
            async with asyncio.timeout(20):
                yield session
        finally:
            await session.close()


@pytest.mark.parametrize("path", ["json", "sse", "plain", "stateless", "open"])
async def test_tools_are_listed_and_called(server, path):
    headers = {} if path == "open" else HEADERS
    async with talking(f"{server.url}/{path}", headers) as session:
        tools = await session.list_tools()
        assert [tool.name for tool in tools] == ["search", "say"]
        assert (tools[0].title, tools[0].description) == (
            "Search the shop",
            "Finds articles by words.",
        )
        assert tools[0].schema["required"] == ["words"]
        result = await session.call("search", {"words": "boats"})
        assert mcp.text_of(result) == ("Found for boats: a boat.", False)
    asked = [one["method"] for one in server.requests if one["method"]]
    if path == "stateless":
        assert asked == ["initialize", "tools/list", "tools/call"]
    else:
        assert asked == ["initialize", "notifications/initialized", "tools/list", "tools/call"]
    deleted = [one for one in server.requests if one["http"] == "DELETE"]
    assert len(deleted) == (path not in ("plain", "stateless"))


async def test_a_server_that_asks_in_the_middle_of_a_call_is_answered(server):
    async with talking(f"{server.url}/sse") as session:
        await session.call("search", {"words": "boats"})
    answers = [one["answer"] for one in server.requests if "result" in one.get("answer", {})]
    assert answers and all(
        one == {"jsonrpc": "2.0", "id": "srv-1", "result": {}} for one in answers
    )


async def test_every_page_of_a_list_is_read(server):
    async with talking(f"{server.url}/paged") as session:
        tools = await session.list_tools()
    assert [tool.name for tool in tools] == [f"tool-{number}" for number in range(7)]
    assert len(server.asked("tools/list")) == 3


async def test_a_session_that_the_server_forgot_is_begun_anew(server):
    async with talking(f"{server.url}/forgets") as session:
        for _ in range(3):
            assert mcp.text_of(await session.call("search", {"words": "x"}))[1] is False
    assert len(server.asked("initialize")) == 3


async def test_calls_at_once_share_a_session(server):
    async with talking(f"{server.url}/json") as session:
        await asyncio.gather(*(session.call("search", {"words": str(n)}) for n in range(8)))
    assert len(server.asked("initialize")) == 1
    assert len({one["session"] for one in server.calls()}) == 1


@pytest.mark.parametrize(
    ("kind", "text", "is_error"),
    [
        ("image", "Here it is.\n\n[image, image/png, 66 bytes, not shown]", False),
        ("structured", '{"boats":[{"name":"Ada","price":12.5}]}', False),
        ("resource", "its text\n\n[link: b https://example.com/b]", False),
        ("error", "The shop is closed.", True),
        ("nul", "a\ufffdb", False),
        ("nothing", "(no content)", False),
        ("nonsense", "(no content)", False),
    ],
)
async def test_a_result_is_text(server, kind, text, is_error):
    async with talking(f"{server.url}/json") as session:
        assert mcp.text_of(await session.call("say", {"kind": kind})) == (text, is_error)


async def test_what_a_server_says_twice_is_read_once(server):
    async with talking(f"{server.url}/json") as session:
        text, _ = mcp.text_of(await session.call("say", {"kind": "twice"}))
    assert text.count("Ada") == 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("401", ErrorKind.AUTH),
        ("403", ErrorKind.FORBIDDEN),
        ("404", ErrorKind.ENDPOINT_NOT_FOUND),
        ("429", ErrorKind.RATE_LIMITED),
        ("500", ErrorKind.SERVER),
        ("html", ErrorKind.PROTOCOL),
        ("bad-json", ErrorKind.PROTOCOL),
        ("redirect", ErrorKind.REDIRECT),
        ("refuses", ErrorKind.BAD_REQUEST),
        ("endless", ErrorKind.TOO_LARGE),
        ("huge", ErrorKind.TOO_LARGE),
        ("ends", ErrorKind.TRUNCATED),
    ],
)
@pytest.mark.parametrize("late", [False, True])
async def test_each_fault_has_its_kind_and_no_secret(server, path, kind, late):
    url = f"{server.url}/{'calls-' if late else ''}{path}"
    async with talking(url) as session:
        with pytest.raises(ProviderError) as caught:
            if late:
                await session.call("search", {"words": "x"})
            else:
                await session.list_tools()
    assert caught.value.kind == kind
    assert GOOD not in str(caught.value)
    assert GOOD[4:16] not in str(caught.value)
    assert not server.asked("", path="elsewhere")


async def test_a_wrong_key_and_a_missing_one_are_told_apart_from_nothing_else(server):
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        async with talking(f"{server.url}/json", headers) as session:
            with pytest.raises(ProviderError) as caught:
                await session.list_tools()
        assert caught.value.kind == ErrorKind.AUTH


async def test_a_version_that_nobody_speaks_any_more_is_refused(server):
    async with talking(f"{server.url}/old") as session:
        with pytest.raises(ProviderError, match="2024-11-05") as caught:
            await session.list_tools()
    assert caught.value.kind == ErrorKind.PROTOCOL


async def test_nobody_there_is_no_connection():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with talking(f"http://127.0.0.1:{taken.getsockname()[1]}/") as session:
            with pytest.raises(ProviderError) as caught:
                await session.list_tools()
    assert caught.value.kind == ErrorKind.CONNECT


async def test_an_address_of_this_machine_is_not_called(server):
    async with talking(f"{server.url}/json", policy=Policy()) as session:
        with pytest.raises(ProviderError) as caught:
            await session.list_tools()
    assert caught.value.kind == ErrorKind.EGRESS
    assert server.requests == []


async def test_a_silent_server_is_left_when_the_caller_has_had_enough(server):
    async with talking(f"{server.url}/slow") as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await session.list_tools()
    async with asyncio.timeout(10):
        while not server.aborted:
            await asyncio.sleep(0.01)


async def test_a_redirect_is_not_followed(server):
    async with talking(f"{server.url}/redirect") as session:
        with pytest.raises(ProviderError):
            await session.list_tools()
    assert [one["path"] for one in server.requests] == ["redirect"]


# -- the reference implementation ------------------------------------------------------------------


@pytest.fixture(scope="module", params=["events", "json", "stateless"])
def reference(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the protocol's own server, in each of its ways to answer."""
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("reference")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    @server.tool()
    def fail() -> str:
        raise ValueError("not today")

    app = server.streamable_http_app(
        json_response=request.param == "json", stateless_http=request.param == "stateless"
    )
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="on", ws="none")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not running.started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/mcp"
    running.should_exit = True
    thread.join(20)


@pytest.mark.parametrize("handshake", [True, False])
async def test_the_reference_server_understands_us_in_both_eras(reference, monkeypatch, handshake):
    if not handshake:

        async def none(self: mcp.Session) -> None:
            raise ProviderError(ErrorKind.BAD_REQUEST, code="-32022")

        monkeypatch.setattr(mcp.Session, "_handshake", none)
    async with talking(reference, {}) as session:
        tools = {tool.name: tool for tool in await session.list_tools()}
        assert tools.keys() == {"add", "fail"}
        assert tools["add"].description == "Adds two numbers."
        assert mcp.text_of(await session.call("add", {"a": 2, "b": 3}))[0].startswith("5")
        text, is_error = mcp.text_of(await session.call("fail", {}))
        assert is_error
        assert "fail" in text or "not today" in text
        text, is_error = mcp.text_of(await session.call("add", {"a": "x"}))
        assert is_error
