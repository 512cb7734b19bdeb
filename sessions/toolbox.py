"""The tools of one turn: the built-in ones and those of the workspace's servers.

A worker remembers what a server listed for five minutes, and that it failed for one. A turn waits
four seconds at most for lists it doesn't know yet, all servers at once; a slower list goes on
without it and is there for the next turn. A server's failure is a tool's failed result, a sentence
for the model and the page, never the turn's end.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import override

from connections.choices import ProviderType
from connections.providers.base import ErrorKind, ProviderError, ToolSpec
from connections.providers.wire.lenient_json import clean, dumps
from connections.validation import is_plain_json
from sessions import mcp, tool_servers, tools
from sessions.models import ToolServer, Turn
from sessions.tool_servers import Unusable
from sessions.wording import Said
from workspaces.egress import client_for, tool_policy
from workspaces.models import User
from workspaces.runtime import Runtime
from workspaces.statements import Select

logger = logging.getLogger(__name__)

WAIT = 4.0  # seconds a turn waits for lists, all servers together
LIST_SECONDS = 20.0  # for one list, whoever waits
CALL_SECONDS = 60.0
LISTED_FOR = 300.0  # seconds a list is remembered
FAILED_FOR = 60.0  # seconds a server isn't asked again for its list after a failure
MAX_NAME = 64  # providers take [a-zA-Z0-9_-]{1,64}
MAX_DESCRIPTION = 4_000  # characters, for the model
MAX_SCHEMA = 20_000  # bytes as JSON
_REFUSED = re.compile(r"[^a-zA-Z0-9_-]+")
_PROPERTY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Server:
    """What a turn knows of a server before it calls it."""

    id: uuid.UUID
    revision: int
    name: str
    prefix: str
    allowed: frozenset[str] | None

    def allows(self, tool: str) -> bool:
        return self.allowed is None or tool in self.allowed


@dataclass(frozen=True, slots=True)
class Listed:
    """What a list came to: tools, or the kind of the failure."""

    tools: tuple[mcp.Tool, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Remote:
    """A tool of a server, as it is offered and as the server calls it."""

    spec: ToolSpec
    server: Server
    tool: str


def servers_of(turn: Turn) -> list[Server]:
    """The enabled servers of the turn's workspace; none for Codex, which takes no tools. One
    query."""
    connection = turn.chat.connection
    if connection is not None and connection.provider_type == ProviderType.OPENAI:
        return []
    return [
        Server(
            row.pk,
            row.revision,
            row.name,
            row.prefix,
            None if row.allowed_tools is None else frozenset(row.allowed_tools),
        )
        for row in _ENABLED.all(turn.chat.workspace_id)
    ]


_ENABLED = Select(
    lambda workspace_id: ToolServer.objects.filter(workspace_id=workspace_id, enabled=True).defer(
        "headers", "tools"
    )
)


# -- what a worker remembers -----------------------------------------------------------------------


class Lists:
    """The lists that one loop remembers; a list that is asked for twice at once is fetched once."""

    def __init__(self) -> None:
        self._known: dict[tuple[uuid.UUID, int], tuple[float, Listed]] = {}
        self._under_way: dict[tuple[uuid.UUID, int], asyncio.Future[Listed]] = {}

    async def get(
        self, runtime: Runtime, server: Server, actor: User | str, session: str
    ) -> Listed:
        """Raises nothing of its own; cancelled, the list is fetched all the same."""
        key = (server.id, server.revision)
        until, listed = self._known.get(key, (0.0, Listed()))
        if time.monotonic() < until:
            return listed
        if (future := self._under_way.get(key)) is None:
            fetch = runtime.submit(self._fetch(runtime.db, server, actor, session), name="tools")
            future = self._under_way[key] = asyncio.wrap_future(fetch)
            future.add_done_callback(lambda done: self._under_way.pop(key, None))
        return await asyncio.shield(future)

    def forget(self, server: Server) -> None:
        """After a call that failed: the next turn asks for the list again."""
        self._known.pop((server.id, server.revision), None)

    async def _fetch(self, db: Any, server: Server, actor: User | str, session: str) -> Listed:
        detail = ""
        try:
            opened = await db(
                tool_servers.open_for_use,
                server.id,
                actor,
                revision=server.revision,
                session=session,
            )
            listed = Listed(tuple(await _list(opened)))
        except Unusable as unusable:
            listed = Listed(error=unusable.kind)
        except ProviderError as error:
            listed, detail = Listed(error=error.kind.value), error.message
        except Exception as error:
            # Whatever it is, it is the server's list that is missing, not the turn that fails.
            logger.error("a list of tools failed: %s", type(error).__name__, exc_info=True)
            listed = Listed(error=ErrorKind.PROTOCOL.value)
        now = time.monotonic()
        for key in [key for key, (until, _listed) in self._known.items() if until < now]:
            del self._known[key]
        lasts = FAILED_FOR if listed.error else LISTED_FOR
        self._known[server.id, server.revision] = (now + lasts, listed)
        if listed.error:
            await db(tool_servers.note_failure, server.id, server.revision, listed.error, detail)
        else:
            await db(tool_servers.note_tools, server.id, server.revision, listed.tools)
        return listed


async def _list(opened: tool_servers.Opened) -> list[mcp.Tool]:
    session = mcp.Session(client_for(tool_policy()), opened.url, opened.headers)
    try:
        async with asyncio.timeout(LIST_SECONDS):
            return await session.list_tools()
    except TimeoutError:
        raise ProviderError(ErrorKind.TIMEOUT, "No answer in time.") from None
    finally:
        await session.close()


_lists: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Lists] = weakref.WeakKeyDictionary()


def lists_here() -> Lists:
    """The running loop's."""
    loop = asyncio.get_running_loop()
    if loop not in _lists:
        _lists[loop] = Lists()
    return _lists[loop]


# -- the tools of a turn ---------------------------------------------------------------------------


@dataclass(slots=True)
class Toolbox:
    """What a turn may call. `missing` says which servers' tools aren't there, and why."""

    runtime: Runtime
    turn: Turn
    specs: tuple[ToolSpec, ...] = tools.TOOLS
    missing: list[Said] = field(default_factory=list)
    _remote: dict[str, Remote] = field(default_factory=dict)
    _sessions: dict[uuid.UUID, mcp.Session] = field(default_factory=dict)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    async def open(cls, runtime: Runtime, turn: Turn, servers: Sequence[Server]) -> Toolbox:
        """With the tools of every server that is known or answers within `WAIT`."""
        box = cls(runtime, turn)
        if not servers:
            return box
        lists, actor = lists_here(), turn.started_by or "worker"
        waits = {
            asyncio.ensure_future(lists.get(runtime, server, actor, str(turn.chat_id))): server
            for server in servers
        }
        try:
            await asyncio.wait(waits, timeout=WAIT)
        finally:
            late = [wait for wait in waits if not wait.done()]
            for wait in late:
                wait.cancel()
        for wait, server in waits.items():
            listed = Listed(error=ErrorKind.TIMEOUT.value)
            if wait.done() and not wait.cancelled() and wait.exception() is None:
                listed = wait.result()
            if listed.error:
                box.missing.append(("tool_server", {"name": server.name, "kind": listed.error}))
            box._take(server, listed.tools)
        box.specs = (*tools.TOOLS, *(remote.spec for remote in box._remote.values()))
        return box

    def _take(self, server: Server, listed: Sequence[mcp.Tool]) -> None:
        left_out = 0
        for tool in listed:
            if not server.allows(tool.name):
                continue
            schema = schema_for_providers(tool.schema)
            if schema is None:
                left_out += 1
                continue
            name = offered_name(server.prefix, tool.name)
            if name in self._remote:
                name = offered_name(server.prefix, tool.name, distinct=True)
            about = clean(tool.description or tool.title)[:MAX_DESCRIPTION]
            self._remote[name] = Remote(ToolSpec(name, about, schema), server, tool.name)
        if left_out:
            self.missing.append(("tool_schemas", {"name": server.name, "n": left_out}))

    def origin_of(self, name: str) -> tuple[str, str]:
        """The server's name and its own name of a tool, for the page; ("", "") for ours."""
        remote = self._remote.get(name)
        return (remote.server.name, clean(remote.tool)[:200]) if remote else ("", "")

    async def run(self, name: str, args: Mapping[str, Any]) -> tuple[str, bool]:
        """The text of a call's result, and whether it is an error. Never raises."""
        remote = self._remote.get(name)
        if remote is None:
            return await tools.run(name, args)
        server = remote.server
        try:
            async with asyncio.timeout(CALL_SECONDS):
                session = await self._session(server)
                result = await session.call(remote.tool, args)
            text, is_error = mcp.text_of(result)
        except Unusable as unusable:
            return self._failed(server, _for_models(unusable.kind)), True
        except TimeoutError:
            said = f"It took longer than {CALL_SECONDS:.0f} seconds."
            await self._note(server, ErrorKind.TIMEOUT.value, said)
            return self._failed(server, said), True
        except ProviderError as error:
            lists_here().forget(server)
            if error.kind is ErrorKind.BAD_REQUEST and error.message:
                # A refusal of this call, in words for who made it.
                return self._failed(server, error.message), True
            await self._note(server, error.kind.value, error.message)
            return self._failed(server, _for_models(error.kind)), True
        except Exception as error:
            # By its type alone: the text may quote what was sent.
            logger.error("a tool's call failed: %s", type(error).__name__)
            return self._failed(server, "The call failed."), True
        return tools.cut(clean(text)), is_error

    async def close(self) -> None:
        """Ends the sessions with the servers; two seconds at most."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        await asyncio.gather(*(session.close() for session in sessions))

    async def _session(self, server: Server) -> mcp.Session:
        """One a server and turn: what a server remembers of a session is nobody else's."""
        async with self._opening:
            if (session := self._sessions.get(server.id)) is None:
                opened = await self.runtime.db(
                    tool_servers.open_for_use,
                    server.id,
                    self.turn.started_by or "worker",
                    revision=server.revision,
                    session=str(self.turn.chat_id),
                    turn=self.turn.number,
                )
                session = mcp.Session(client_for(tool_policy()), opened.url, opened.headers)
                self._sessions[server.id] = session
            return session

    async def _note(self, server: Server, kind: str, detail: str) -> None:
        await self.runtime.db(tool_servers.note_failure, server.id, server.revision, kind, detail)

    @staticmethod
    def _failed(server: Server, why: str) -> str:
        return f"The tool server “{server.name}” could not do this. {why}"


def _for_models(kind: str) -> str:
    """All that models are told by us is in English; it is stored with the reply."""
    with override("en"):
        return tool_servers.sentence(kind)


# -- names and schemas that providers take ---------------------------------------------------------


def offered_name(prefix: str, tool: str, *, distinct: bool = False) -> str:
    """`prefix__tool` in the letters that every provider takes, 64 at most. The same tool has the
    same name on every worker and in every turn; what was cut has a piece of a hash at its end."""
    room = MAX_NAME - len(prefix) - 2
    name = _REFUSED.sub("_", tool) or "_"
    if len(name) > room or distinct:
        tail = "_" + hashlib.sha256(tool.encode("utf-8", "replace")).hexdigest()[:8]
        name = name[: room - len(tail)] + tail
    return f"{prefix}__{name}"


def schema_for_providers(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema of a tool's arguments as providers take it, None for what they'd refuse: one such
    tool would cost every turn its request. Alternatives at the top go; the server checks them."""
    if schema and schema.get("type", "object") != "object":
        return None
    kept = {
        key: value
        for key, value in schema.items()
        if key not in ("$schema", "$id", "oneOf", "anyOf", "allOf", "not", "if", "then", "else")
    }
    kept["type"] = "object"
    properties = kept.setdefault("properties", {})
    if not isinstance(properties, dict) or not all(map(_PROPERTY.fullmatch, properties)):
        return None
    required = kept.get("required")
    if required is not None and not (
        isinstance(required, list) and all(isinstance(one, str) for one in required)
    ):
        del kept["required"]
    try:
        if not is_plain_json(kept) or len(dumps(kept)) > MAX_SCHEMA:
            return None
    except ValueError:
        return None
    return kept
