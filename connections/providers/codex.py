"""OpenAI through the Codex app-server: one process for each reply, which has no tools and no key.

    worker ── JSON-RPC over pipes ──► codex app-server ── HTTP on loopback ──► relay ──► provider
                                      (dummy token)                           (the key)

Any worker can run any turn: the thread is ephemeral and the history comes from us. The process
takes messages while it runs: at the end of each reply, before the process hears of it, the relay
asks `ModelRequest.steering`; what is there goes in by `turn/steer`, and the process answers it in
the same turn. Its receipt is the start of a user message with our id.

A place is taken for each process (`settings.CODEX_PROCESSES` in a worker); who gets none waits, and
says so (`Waiting`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import weakref
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, ClassVar

import httpx
from django.conf import settings

from connections.providers.base import (
    Delivered,
    Done,
    ErrorKind,
    Event,
    ListedModel,
    ModelRequest,
    Part,
    ProviderError,
    Target,
    TextDelta,
    ThinkingDelta,
    ThinkingEnd,
    Usage,
    Waiting,
    freshened,
)
from connections.providers.codex_home import (
    PROVIDER,
    HomeError,
    catalogue_of,
    for_replies,
    make_home,
)
from connections.providers.errors import Scrubber
from connections.providers.http import _HEADER_VALUE, HTTPProvider
from connections.providers.relay import Relay
from connections.providers.wire import jsonrpc
from connections.providers.wire.history import Entry, settle
from connections.providers.wire.lenient_json import clean, dumps, loads
from connections.providers.wire.numbers import count

logger = logging.getLogger(__name__)

START_SECONDS = 30.0
STOP_SECONDS = 0.5
SILENT_SECONDS = 30.0  # of a process whose request has ended
LEAST_OUTPUT = 16  # tokens; the provider takes no lower limit

# Instead of the binary's own prompt, which is for an agent that writes code on this machine.
NEUTRAL = "You are a helpful assistant. Answer in the language of the question, in Markdown."
CLIENT = {"name": "patchbay", "title": "Patchbay", "version": "1"}
# What the process tells the provider about itself, beside the conversation.
_ABOUT_ITSELF = ("client_metadata", "prompt_cache_key")
# The backend of personal plans, and what it is told of the headers that came.
CHATGPT = "https://chatgpt.com/backend-api/codex"
_KEPT_HEADERS = ("openai-beta", "originator", "session-id", "thread-id", "x-client-request-id")
_YEAR_2100 = 4_102_444_800
# Where the relay knows nothing, because the process failed before it asked.
_BY_INFO = {
    "contextWindowExceeded": ErrorKind.CONTEXT_TOO_LONG,
    "usageLimitExceeded": ErrorKind.QUOTA,
    "rateLimitExceeded": ErrorKind.RATE_LIMITED,
    "serverOverloaded": ErrorKind.OVERLOADED,
    "internalServerError": ErrorKind.SERVER,
    "unauthorized": ErrorKind.AUTH,
    "badRequest": ErrorKind.BAD_REQUEST,
}


class Codex(HTTPProvider):
    provider_type = "openai"
    auth_types = frozenset({"api_key", "api_key_with_endpoint", "oauth", "environment"})
    default_base_url = "https://api.openai.com/v1"
    default_wire = "openai-completions"  # for its list of models; a reply is the process's affair
    takes_tools: ClassVar[bool] = False

    def origin(self, target: Target) -> str:
        own = CHATGPT if target.auth_type == "oauth" else self.default_base_url
        return target.base_url or own

    async def list_models(self, client: httpx.AsyncClient, target: Target) -> list[ListedModel]:
        if target.auth_type == "oauth":
            raise ProviderError(ErrorKind.ENDPOINT_NOT_FOUND, "A plan has no list of models.")
        try:
            return await super().list_models(client, target)
        except ProviderError as error:
            if error.kind is ErrorKind.FORBIDDEN:
                # A restricted key may answer and not list.
                raise ProviderError(ErrorKind.ENDPOINT_NOT_FOUND, error.message) from None
            raise

    async def check_auth(self, client: httpx.AsyncClient, target: Target, model: str) -> bool:
        """OpenAI's own list of models wants the key; somebody else's may be open to everybody."""
        await self.list_models(client, target)
        return self.origin(target) == self.default_base_url

    async def stream(
        self, client: httpx.AsyncClient, target: Target, request: ModelRequest
    ) -> AsyncIterator[Event]:
        place = _places()
        if waits := place.locked():
            yield Waiting()
        async with place:
            if waits:
                yield Waiting(over=True)
            async with aclosing(_Turn(self, client, target, request).events()) as events:
                async for event in events:
                    yield event

    async def outgoing(
        self,
        client: httpx.AsyncClient,
        target: Target,
        request: ModelRequest,
        came: Mapping[str, str],
        body: bytes,
    ) -> httpx.Request:
        """The request that leaves for one that came from the process. Raises ProviderError."""
        content = without_tools(body)
        headers = {"accept": "text/event-stream"}
        if target.auth_type == "oauth":
            # That backend takes what this binary sends, and no limit.
            headers |= {name: came[name] for name in _KEPT_HEADERS if name in came}
        else:
            for name in _ABOUT_ITSELF:
                content.pop(name, None)
            content["max_output_tokens"] = max(request.max_tokens, LEAST_OUTPUT)
        if request.thinking:
            # Said here and not to the process, whose catalogue may not know the model.
            reasoning = content.get("reasoning")
            before = reasoning if isinstance(reasoning, dict) else {}
            content["reasoning"] = {**before, "effort": request.thinking}
        message = self._request(
            client,
            target,
            "POST",
            "/responses",
            idle=request.idle_timeout,
            content=dumps(content),
            headers=headers,
        )
        await self.authorize(client, target, message)
        return message

    async def authorize(
        self, client: httpx.AsyncClient, target: Target, request: httpx.Request
    ) -> None:
        if target.auth_type != "oauth":
            await super().authorize(client, target, request)
            return
        for name, value in (
            ("authorization", f"Bearer {target.secret.get('access_token', '')}"),
            ("chatgpt-account-id", target.secret.get("account_id", "")),
        ):
            if not _HEADER_VALUE.fullmatch(value):
                raise ProviderError(ErrorKind.AUTH, "The token can't be sent. Sign in again.")
            request.headers[name] = value


def without_tools(body: bytes) -> dict[str, Any]:
    """The request, which must offer no tool in either of the two places where they stand. Raises
    ProviderError(process)."""
    try:
        content = loads(body)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("input"), list):
        raise ProviderError(ErrorKind.PROCESS, "Codex sent a request that can't be read.")
    offered = content.get("tools") or any(
        isinstance(item, dict) and item.get("type") == "additional_tools"
        for item in content["input"]
    )
    if offered:
        raise ProviderError(
            ErrorKind.PROCESS,
            "This Codex binary offers tools of its own, so nothing was sent. Use a tested version.",
        )
    return content


# -- places ----------------------------------------------------------------------------------------

_semaphores: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


def _places() -> asyncio.Semaphore:
    """The running loop's; a worker has one loop."""
    loop = asyncio.get_running_loop()
    if loop not in _semaphores:
        _semaphores[loop] = asyncio.Semaphore(settings.CODEX_PROCESSES)
    return _semaphores[loop]


# -- one turn --------------------------------------------------------------------------------------


class _Turn:
    """One process from its start to its end."""

    def __init__(
        self, provider: Codex, client: httpx.AsyncClient, target: Target, request: ModelRequest
    ) -> None:
        self.provider, self.client = provider, client
        self.target, self.request = target, request
        self.scrub = Scrubber(target)
        self.steered: set[str] = set()  # given to the process, without a receipt so far
        self.thread = self.turn = ""
        self.peer: jsonrpc.Peer
        self.relay: Relay

    async def events(self) -> AsyncIterator[Event]:
        items, last = _items(self.request)
        self.target = await freshened(self.target)
        self.scrub = Scrubber(self.target)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(START_SECONDS):
                    await self._start(stack)
                    await self._begin(items, last)
            except (HomeError, jsonrpc.CannotStart) as error:
                raise ProviderError(ErrorKind.PROCESS, str(error)) from None
            except TimeoutError:
                raise ProviderError(ErrorKind.PROCESS, "Codex didn't start in time.") from None
            except jsonrpc.RPCError as error:
                raise self._ended(error) from None
            stack.push_async_callback(self._leave)
            async with aclosing(self._follow()) as events:
                async for event in events:
                    yield event

    async def _start(self, stack: AsyncExitStack) -> None:
        request = self.request

        async def make(headers: Mapping[str, str], body: bytes) -> httpx.Request:
            return await self.provider.outgoing(self.client, self.target, request, headers, body)

        catalogue = await catalogue_of(self.target.codex_path)
        self.relay = await stack.enter_async_context(
            Relay(
                self.client,
                make,
                self.scrub,
                model=request.model,
                gate=self._steer,
                token=_stand_in(self.account) if self.signed_in else "",
                tells_401=self.signed_in,
            )
        )
        home = make_home(
            for_replies(catalogue, self.relay.base_url, idle_seconds=request.idle_timeout)
        )
        stack.callback(home.remove)
        self.cwd = str(home.cwd)
        self.peer = await stack.enter_async_context(
            await jsonrpc.Peer.start(
                [self.target.codex_path, "app-server", "--strict-config"],
                env=home.environment(),
                cwd=self.cwd,
                handlers={"account/chatgptAuthTokens/refresh": self._refresh},
            )
        )

    async def _begin(self, items: Sequence[Any], last: Sequence[Any]) -> None:
        request, peer = self.request, self.peer
        await peer.request(
            "initialize", {"clientInfo": CLIENT, "capabilities": {"experimentalApi": True}}
        )
        await peer.notify("initialized")
        await peer.request("account/login/start", self._login())
        started = await peer.request(
            "thread/start",
            {
                "model": request.model,
                "modelProvider": PROVIDER,
                "cwd": self.cwd,
                "sandbox": "read-only",
                "approvalPolicy": "never",
                "baseInstructions": clean(request.system).strip() or NEUTRAL,
                "ephemeral": True,
            },
        )
        self.thread = _at(started, "thread", "id")
        if items:
            await peer.request("thread/inject_items", {"threadId": self.thread, "items": items})
        begun = await peer.request("turn/start", {"threadId": self.thread, "input": last})
        self.turn = _at(begun, "turn", "id")

    # -- as whom -----------------------------------------------------------------------------------

    @property
    def signed_in(self) -> bool:
        return self.target.auth_type == "oauth"

    @property
    def account(self) -> str:
        return self.target.secret.get("account_id", "")

    def _login(self) -> dict[str, str]:
        if self.signed_in:
            return {"type": "chatgptAuthTokens", **self._tokens()}
        return {"type": "apiKey", "apiKey": self.relay.token}

    def _tokens(self) -> dict[str, str]:
        """The process gets a stand-in; the relay has the token."""
        return {"accessToken": self.relay.token, "chatgptAccountId": self.account}

    async def _refresh(self, params: Mapping[str, Any]) -> dict[str, str]:
        """Asked by the process when it was refused. A renewal that fails is the turn's failure."""
        failure = self.relay.failure
        if not self.signed_in or failure is None or failure.status != 401:
            # One of its other calls, which the relay refused: there the token is not at fault.
            return self._tokens()
        rejected = self.target.secret.get("access_token", "")
        try:
            self.target = await freshened(self.target, rejected=rejected)
        except ProviderError as error:
            self.relay.failure = error
            raise
        self.scrub = self.relay.scrub = Scrubber(self.target)
        return self._tokens()

    # -- what comes --------------------------------------------------------------------------------

    async def _follow(self) -> AsyncIterator[Event]:
        message = ""  # the reply's item that is being written
        usage: Usage | None = None
        async for heard in self._heard():
            params = heard.params
            if params.get("threadId") != self.thread:
                continue
            match heard.method:
                case "item/agentMessage/delta":
                    item, text = params.get("itemId"), params.get("delta")
                    if message and item != message:
                        yield TextDelta("\n\n")  # after a call of a tool that isn't there
                    message = item if isinstance(item, str) else message
                    if isinstance(text, str) and text:
                        yield TextDelta(text)
                case "item/reasoning/summaryTextDelta":
                    if isinstance(text := params.get("delta"), str) and text:
                        yield ThinkingDelta(text)
                case "item/reasoning/summaryPartAdded":
                    if params.get("summaryIndex"):
                        yield ThinkingDelta("\n\n")
                case "item/completed" if _is(params, "reasoning"):
                    yield ThinkingEnd()
                case "item/started" if _is(params, "userMessage"):
                    receipt = params["item"].get("clientId")
                    if receipt in self.steered:
                        self.steered.discard(receipt)
                        message, usage = "", None
                        yield Delivered(receipt)
                case "thread/tokenUsage/updated":
                    usage = _usage(params)
                    yield usage
                case "turn/completed":
                    self.turn = ""
                    for event in self._end(params.get("turn"), counted=usage is not None):
                        yield event
                    return

    async def _heard(self) -> AsyncIterator[jsonrpc.Notification]:
        """What the process tells. Raises ProviderError when it ends or falls silent."""
        async with aclosing(self.peer.notifications()) as notifications:
            while True:
                asked = asyncio.ensure_future(anext(notifications))
                try:
                    while not (await asyncio.wait({asked}, timeout=SILENT_SECONDS))[0]:
                        if not self.relay.busy:
                            raise ProviderError(ErrorKind.PROCESS, "Codex fell silent.")
                    heard = asked.result()
                except jsonrpc.RPCError as error:
                    raise self._ended(error) from None
                finally:
                    if not asked.done():
                        asked.cancel()
                        await asyncio.wait({asked})
                yield heard

    def _end(self, turn: Any, *, counted: bool) -> list[Event]:
        """The last events of a turn that is over. Raises ProviderError when it failed."""
        turn = turn if isinstance(turn, dict) else {}
        relay = self.relay
        if relay.failure is not None:
            raise relay.failure
        if turn.get("status") != "completed" and not relay.reason:
            raise self._fault(turn.get("error"))
        if turn.get("status") != "completed" and relay.reason == "stop":
            # The provider's answer was whole, and the process could not read it.
            raise self._fault(turn.get("error"), otherwise=ErrorKind.PROTOCOL)
        events: list[Event] = []
        if relay.refusal:
            events.append(TextDelta(relay.refusal))
        # The process counts nothing of a reply that ended before its time.
        if relay.usage is not None and (not counted or relay.reason != "stop"):
            events.append(relay.usage)
        return [*events, Done(relay.reason or "stop")]

    def _fault(self, error: Any, *, otherwise: ErrorKind = ErrorKind.PROCESS) -> ProviderError:
        error = error if isinstance(error, dict) else {}
        info = error.get("codexErrorInfo")
        name = info if isinstance(info, str) else next(iter(info), "") if info else ""
        kind = _BY_INFO.get(name, otherwise)
        words = str(error.get("message") or "Codex ended the turn.")
        words = words.replace(self.relay.base_url, "the relay").replace(self.relay.token, "")
        return ProviderError(kind, self.scrub(words), code=str(name)[:100])

    def _ended(self, error: jsonrpc.RPCError) -> ProviderError:
        """What an end, or an answer that isn't one, means: the provider's fault if it had one."""
        if getattr(self, "relay", None) is not None and self.relay.failure is not None:
            return self.relay.failure
        words = f"Codex: {error}"
        if not self.thread and isinstance(error, jsonrpc.Closed):
            # It has seen nothing of the conversation so far.
            words = f"{words} {self.peer.words}"
        return ProviderError(ErrorKind.PROCESS, self.scrub(words.replace(self.relay.token, "")))

    # -- into the running turn ---------------------------------------------------------------------

    async def _steer(self) -> bool:
        """Asked by the relay at the end of a reply: puts in what people wrote meanwhile."""
        took = False
        for message in await self.request.steering():
            self.steered.add(message.id)
            try:
                await self.peer.request(
                    "turn/steer",
                    {
                        "threadId": self.thread,
                        "expectedTurnId": self.turn,
                        "input": _input(message.parts),
                        "clientUserMessageId": message.id,
                    },
                    seconds=5,
                )
            except jsonrpc.RPCError as error:
                logger.info("a message was not steered (%s)", type(error).__name__)
                self.steered.discard(message.id)
            else:
                took = True
        return took

    async def _leave(self) -> None:
        """Before the end. The provider's side is closed at once, whatever the process does."""
        await asyncio.gather(self.relay.close(), self._interrupt())

    async def _interrupt(self) -> None:
        if self.turn:  # it isn't over
            with contextlib.suppress(jsonrpc.RPCError):
                await self.peer.request(
                    "turn/interrupt",
                    {"threadId": self.thread, "turnId": self.turn},
                    seconds=STOP_SECONDS,
                )


def _stand_in(account: str) -> str:
    """A token of the form that the process insists on, and of no use but at the relay."""

    def part(value: Mapping[str, Any]) -> str:
        return urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    about = {"chatgpt_account_id": account, "chatgpt_plan_type": "unknown"}
    claims = {"exp": _YEAR_2100, "https://api.openai.com/auth": about}
    return f"{part({'alg': 'none'})}.{part(claims)}.{secrets.token_urlsafe(32)}"


# -- the conversation in the process's words -------------------------------------------------------


def _items(request: ModelRequest) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The history as items of the Responses API, and the last message as a turn's input."""
    *before, last = settle(request.history) or [Entry("user")]
    items = [item for entry in before for item in _item(entry)]
    items += [_result(result) for result in last.results]
    if last.role != "user" or not (given := _input(last.parts)):
        raise ProviderError(ErrorKind.BAD_REQUEST, "There is no message to answer.")
    return items, given


def _item(entry: Entry) -> list[dict[str, Any]]:
    items = [_result(result) for result in entry.results]
    content: list[dict[str, Any]] = []
    for part in entry.parts:
        if part["t"] == "text":
            kind = "input_text" if entry.role == "user" else "output_text"
            content.append({"type": kind, "text": part["text"]})
        elif part["t"] == "image":
            content.append({"type": "input_image", "image_url": _data_url(part)})
    if content:
        items.append({"type": "message", "role": entry.role, "content": content})
    # Calls of a connection that the conversation came from: none can be made here.
    items += [
        {
            "type": "function_call",
            "call_id": call["id"],
            "name": call["name"],
            "arguments": dumps(call["args"]).decode(),
        }
        for call in entry.calls
    ]
    return items


def _result(result: Part) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": result["id"], "output": result["text"]}


def _input(parts: Sequence[Part]) -> list[dict[str, Any]]:
    given: list[dict[str, Any]] = []
    for part in parts:
        if part["t"] == "text" and part["text"].strip():
            given.append({"type": "text", "text": clean(part["text"])})
        elif part["t"] == "image":
            given.append({"type": "image", "url": _data_url(part)})
    return given


def _data_url(part: Part) -> str:
    return f"data:{part['media_type']};base64,{part['data']}"


# -- what the process says -------------------------------------------------------------------------


def _is(params: Mapping[str, Any], kind: str) -> bool:
    item = params.get("item")
    return isinstance(item, dict) and item.get("type") == kind


def _at(result: Any, *names: str) -> str:
    for name in names:
        result = result.get(name) if isinstance(result, dict) else None
    if not isinstance(result, str) or not result:
        raise jsonrpc.Closed("it gave an answer of another form")
    return result


def _usage(params: Mapping[str, Any]) -> Usage:
    """Of the last reply; `inputTokens` has the cached ones in it."""
    usage = params.get("tokenUsage")
    last = usage.get("last") if isinstance(usage, dict) else None
    last = last if isinstance(last, dict) else {}
    return Usage(
        input_tokens=count(last.get("inputTokens")),
        output_tokens=count(last.get("outputTokens")),
        cache_read_tokens=count(last.get("cachedInputTokens")),
        cache_write_tokens=count(last.get("cacheWriteInputTokens")),
    )
