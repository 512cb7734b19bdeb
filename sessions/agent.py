"""One turn: steps of a model's reply and its tools, with steering between them.

    prepare ─► step 1: request, reply ─► tools? ─► steering taken ─► step 2 … ─► end
                                          no tools: the turn is done (nothing was taken)

A provider that takes messages into a running call is asked once: it asks for the steering itself
at the end of each reply, and the receipt of a message (`Delivered`) begins the next step.

Runs on the worker's loop. Every write goes through `steps` and `turns` with the lease's token, on a
database thread. A request that can be made again safely (429, 529, no connection, before the first
token) is, twice at most, and the page says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db import InterfaceError, OperationalError

from connections.capabilities import cost_of
from connections.providers.base import (
    Delivered,
    Done,
    ErrorKind,
    Event,
    ModelRequest,
    ProviderError,
    Steered,
    TextDelta,
    TextEnd,
    ThinkingDelta,
    ThinkingEnd,
    ToolCall,
    ToolSpec,
    Turnlet,
    Usage,
    Waiting,
)
from connections.sentences import Reason
from connections.tasks import record_turn_outcome
from sessions import steps, turns
from sessions.bus import Writer
from sessions.history import CannotRun, Prepared, entries_of, prepare, shorten
from sessions.leases import LeaseLost
from sessions.models import Message, Turn
from sessions.reply import Reply, text_of
from sessions.toolbox import Server, Toolbox
from sessions.wording import Said
from workspaces.egress import client_for, provider_policy
from workspaces.runtime import Runtime

logger = logging.getLogger(__name__)
_ended = logging.getLogger("patchbay.turns")  # a line a turn, for machines

MAX_STEPS = 25
MAX_SECONDS = 15 * 60.0
AGAIN = frozenset({ErrorKind.RATE_LIMITED, ErrorKind.OVERLOADED, ErrorKind.CONNECT})
AGAIN_TIMES = 2
AGAIN_WITHIN = 20.0  # seconds, all waits of a step together
AGAIN_AFTER = 2.0  # seconds before the second try, doubled before the third
SPREAD = 1.5  # up to so many times as long: what failed together doesn't come back together
STORE_WITHIN = 60.0  # seconds that a write waits for a database that doesn't answer
STORE_AGAIN = 0.5


@dataclass(slots=True)
class Live:
    """A turn that this worker runs: what its heartbeat, checkpoints and Stop need."""

    turn: Turn
    token: uuid.UUID
    servers: Sequence[Server] = ()  # whose tools it may call
    task: asyncio.Task[None] | None = None
    reply: Reply | None = None
    message_id: uuid.UUID | None = None
    why: str = ""  # why it was cancelled: "stop", "lost", "drain"
    ending: bool = False  # the end is being written: too late to cancel

    def cancel(self, why: str) -> None:
        if not self.why and not self.ending:
            self.why = why
            if self.task is not None:
                self.task.cancel()


class Agent:
    """Runs one claimed turn to its end."""

    def __init__(self, live: Live, runtime: Runtime, writer: Writer) -> None:
        self.live, self.runtime, self.writer = live, runtime, writer
        self.turn, self.token = live.turn, live.token
        self.chat_id = str(live.turn.chat_id)
        self.began = time.monotonic()
        self.cost: Decimal | None = None
        self.number = 0  # of the step that runs, with its reply and that one's row
        self.reply: Reply
        self.message_id: uuid.UUID
        self.toolbox = Toolbox(runtime, self.turn)
        self.answered: dict[int, uuid.UUID] = {}  # entry of tool results → the reply's message

    async def run(self) -> None:
        """To the end, whatever it is; nothing is written when the lease is lost."""
        try:
            await self._run()
        finally:
            await self.toolbox.close()

    async def _run(self) -> None:
        try:
            try:
                async with asyncio.timeout(MAX_SECONDS):
                    await self._steps()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self.live.why not in ("stop", "drain") or task is None:
                    raise
                task.uncancel()
                if self.live.why == "stop":
                    await self._end(Turn.State.STOPPED)
                else:
                    await self._end(Turn.State.INTERRUPTED)
            except TimeoutError:
                await self._end(Turn.State.FAILED, error_kind=Reason.TURN_TIMEOUT.value)
            except CannotRun as refusal:
                await self._end(Turn.State.FAILED, error_kind=refusal.reason.value)
            except ProviderError as error:
                await self._end(
                    Turn.State.FAILED,
                    error_kind=error.kind.value,
                    error_detail=_detail(error),
                    retry_after=error.retry_after,
                )
            else:
                await self._end(Turn.State.DONE)
        except LeaseLost:
            logger.info("the lease of a turn is somebody else's")
        except (OperationalError, InterfaceError) as error:
            # The end can't be written either; the lease runs out, and a sweep writes it.
            logger.error("a turn is given up (%s)", type(error).__name__)
        except Exception:
            logger.exception("a turn failed")
            with contextlib.suppress(LeaseLost):
                await self._end(Turn.State.FAILED, error_kind=Reason.INTERNAL.value)

    async def _steps(self) -> None:
        self.toolbox = await Toolbox.open(self.runtime, self.turn, self.live.servers)
        prepared, step = await self._db(self._open, self.toolbox.specs)
        self._begun(step)
        if prepared.left_out_before:
            self.turn.left_out_before = prepared.left_out_before
        self._tell_of_missing_tools(prepared)
        history = list(prepared.history)
        while True:
            for message in step.steered:
                history.extend(await self._entries_of(prepared, message))
            await self._shorten(history, prepared)
            calls, usage = await self._ask(prepared, history)
            reply = self.reply
            history.append(Turnlet("assistant", [dict(part) for part in reply.finish()]))
            if calls:
                results = await self._call_tools(calls, reply)
                self.answered[len(history)] = self.message_id
                history.append(Turnlet("user", results))
            await self._finish_step(prepared, usage)
            if not calls:
                return
            if self.number >= MAX_STEPS:
                raise CannotRun(Reason.TOO_MANY_STEPS)
            step = await self._begin_step()

    def _open(self, specs: Sequence[ToolSpec]) -> tuple[Prepared, steps.Step]:
        """What comes before the first request, in one go on a database thread."""
        prepared = prepare(self.turn, specs)
        return prepared, steps.begin_step(self.turn, self.token, 1)

    async def _db[T](self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What a database function gives, asked again while there is no database or no room: a
        reply that the provider gives meanwhile isn't lost. After a minute the error counts; the
        lease then ends the turn."""
        until = time.monotonic() + STORE_WITHIN
        while True:
            try:
                return await self.runtime.db(function, *args, **kwargs)
            except (OperationalError, InterfaceError) as error:
                if time.monotonic() > until:
                    raise
                logger.warning(
                    "turn %s: the database doesn't answer (%s)", self.turn.pk, type(error).__name__
                )
            await asyncio.sleep(STORE_AGAIN)

    async def _begin_step(self, receipt: uuid.UUID | None = None) -> steps.Step:
        step = await self._db(
            steps.begin_step, self.turn, self.token, self.number + 1, receipt=receipt
        )
        self._begun(step)
        return step

    def _begun(self, step: steps.Step) -> None:
        self.number = step.number
        self.message_id = step.message_id
        self.reply = Reply(self.chat_id, str(step.message_id), self.writer)
        self.live.reply, self.live.message_id = self.reply, step.message_id

    async def _entries_of(self, prepared: Prepared, message: Message) -> list[Turnlet]:
        images = prepared.capabilities.supports_images
        return await self._db(entries_of, message, images=images)

    def _tell_of_missing_tools(self, prepared: Prepared) -> None:
        missing = list(self.toolbox.missing)
        if left := prepared.tools_left_out:
            missing.append(("tools_left_out", {"n": left}))
        if missing:
            self._say(("tools", {}), *missing)

    def _say(self, *said: Said) -> None:
        """Nothing takes back what was said before."""
        self.writer.add(self.chat_id, "say", {"said": said}, urgent=True)

    async def _shorten(self, history: list[Turnlet], prepared: Prepared) -> None:
        """Makes room for the next request, out of this turn's own tool results."""
        shortened = shorten(history, len(prepared.history), prepared.budget)
        if not shortened:
            return
        kept: dict[uuid.UUID, dict[str, int]] = {}
        for one in shortened:
            kept.setdefault(self.answered[one.entry], {})[one.id] = one.kept
        await self._db(steps.mark_shortened, self.turn, self.token, kept)
        self._say(("window", {}))

    async def _ask(
        self, prepared: Prepared, history: list[Turnlet]
    ) -> tuple[list[ToolCall], Usage]:
        async def steering() -> list[Steered]:
            if self.number >= MAX_STEPS:
                return []
            return [
                Steered(
                    str(message.pk),
                    [
                        part
                        for entry in await self._entries_of(prepared, message)
                        for part in entry.parts
                    ],
                )
                for message in await self._db(steps.claim_steering, self.turn, self.token)
            ]

        request = ModelRequest(
            model=self.turn.model,
            history=history,
            max_tokens=prepared.max_output,
            thinking=prepared.thinking,
            system=prepared.system,
            tools=prepared.tools,
            steering=steering,
        )
        started, first = time.monotonic(), self.number
        tries = 0
        while True:
            try:
                return await self._receive(prepared, request)
            except ProviderError as error:
                tries += 1
                wait = max(AGAIN_AFTER * 2 ** (tries - 1), error.retry_after or 0)
                left = AGAIN_WITHIN - (time.monotonic() - started)
                if (
                    error.kind not in AGAIN
                    or self.reply.has_content
                    or self.number != first
                    or tries > AGAIN_TIMES
                    or wait > left
                ):
                    raise
                wait = min(wait * random.uniform(1, SPREAD), left)  # noqa: S311 (no secret)
                self._notice(error, wait)
                await asyncio.sleep(wait)

    def _notice(self, error: ProviderError, wait: float) -> None:
        why = error.kind.value
        if error.kind not in (ErrorKind.RATE_LIMITED, ErrorKind.OVERLOADED):
            why = "connect"
        self._say((why, {}), ("again", {"n": max(1, round(wait))}))

    async def _receive(
        self, prepared: Prepared, request: ModelRequest
    ) -> tuple[list[ToolCall], Usage]:
        calls: list[ToolCall] = []
        usage = Usage()
        reply, receipts = self.reply, False  # whether nothing but receipts came in this step
        stream = prepared.provider.stream(client_for(provider_policy()), prepared.target, request)
        async with _closing(stream) as events:
            async for event in events:
                if isinstance(event, Delivered):
                    receipt = uuid.UUID(event.id)
                    if receipts:  # beside the one before: one reply answers both
                        await self._db(
                            steps.deliver_steered,
                            self.turn,
                            self.token,
                            receipt,
                            self.number - 1,
                        )
                    else:
                        reply.finish()
                        await self._finish_step(prepared, usage)
                        await self._begin_step(receipt)
                        reply, usage, receipts = self.reply, Usage(), True
                    continue
                receipts = False
                match event:
                    case Waiting(over):
                        self._say(*([] if over else [("codex", {})]))
                    case TextDelta(text):
                        reply.add_text(text)
                    case TextEnd(sig):
                        reply.end_text(sig)
                    case ThinkingDelta(text):
                        reply.add_thinking(text)
                    case ThinkingEnd(sig):
                        reply.end_thinking(sig)
                    case ToolCall():
                        calls.append(event)
                        reply.add_call(event, *self.toolbox.origin_of(event.name))
                    case Usage():
                        usage = event
                    case Done():
                        pass
                if reply.is_cut:
                    raise ProviderError(ErrorKind.TOO_LARGE, "the reply is too long")
        return calls, usage

    async def _call_tools(self, calls: list[ToolCall], reply: Reply) -> list[dict[str, Any]]:
        """All calls of a step at once; the results stand in the order of the calls."""

        async def one(call: ToolCall) -> dict[str, Any]:
            began = time.monotonic()
            if call.raw:
                text, is_error = "The arguments aren't a JSON object.", True
            else:
                text, is_error = await self.toolbox.run(call.name, call.args)
            result = {"t": "tool_result", "id": call.id, "name": call.name, "text": text}
            result["ms"] = round((time.monotonic() - began) * 1000)
            return {**result, "is_error": True} if is_error else result

        results = await asyncio.gather(*(one(call) for call in calls))
        for result in results:
            reply.add_result(result)
        return [dict(result) for result in results]

    async def _finish_step(self, prepared: Prepared, usage: Usage) -> None:
        reply = self.reply
        cost = cost_of(prepared.connection, self.turn.model, usage)
        if cost is not None:
            self.cost = (self.cost or Decimal(0)) + cost
        await self.writer.settle()
        await self._db(
            steps.finish_step,
            self.turn.pk,
            self.token,
            self.message_id,
            text=text_of(reply.parts),
            parts=reply.parts,
            usage={
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cache_read_tokens": usage.cache_read_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
                "context_tokens": usage.input_tokens + usage.output_tokens,
            },
            left_out_before=prepared.left_out_before,
        )
        self.live.reply = self.live.message_id = None

    async def _end(self, state: Turn.State, **why: Any) -> None:
        self.live.ending = True
        reply, message_id = self.live.reply, self.live.message_id
        self.live.reply = self.live.message_id = None
        partial = None
        if reply is not None and message_id is not None:
            parts = [dict(part) for part in reply.finish()]
            partial = (message_id, text_of(parts), parts)
        await self.writer.settle()
        await self._db(
            turns.end, self.turn, self.token, state, reply=partial, cost=self.cost, **why
        )
        self.writer.forget(self.chat_id)
        milliseconds = round(1000 * (time.monotonic() - self.began))
        ended = {"state": str(state), "error": why.get("error_kind", ""), "ms": milliseconds}
        _ended.info("turn", extra={"fields": ended})
        if state in (Turn.State.DONE, Turn.State.FAILED) and self.turn.chat.connection_id:
            await self.runtime.db(
                record_turn_outcome,
                self.turn.chat.connection_id,
                why.get("error_kind") or None,
                # As it was when the turn began: an old turn says nothing about a new key.
                revision=self.turn.chat.connection.revision,
            )


def _detail(error: ProviderError) -> str:
    where = f"HTTP {error.status}" if error.status else ""
    ident = f"request {error.request_id}" if error.request_id else ""
    return " · ".join(part for part in (where, error.code, error.message, ident) if part)


@contextlib.asynccontextmanager
async def _closing(stream: AsyncIterator[Event]) -> AsyncIterator[AsyncIterator[Event]]:
    """Closes the generator, and with it the socket, however the block is left."""
    try:
        yield stream
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
