"""The validation ladder: one climb tests a connection rung by rung and says where it stopped.

config → network → auth → models → answer → stream. A rung that nothing tested is "not tested", a
result of its own; nothing passes without a call. No model of Django's is touched while it climbs:
`subject_of` reads the connection first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx
from django.utils.translation import gettext, gettext_noop

from connections.choices import AuthType, Outcome, Rung
from connections.models import Connection
from connections.providers.base import (
    Done,
    ErrorKind,
    ModelRequest,
    Provider,
    ProviderError,
    Target,
    TextDelta,
    Turnlet,
    Waiting,
)
from connections.sentences import Reason, Sentence, sentence
from connections.targets import configuration_fault, provider_of, target_of
from workspaces import egress

# A worker knows no reader: what it notes stands there in the words of the source, and is translated
# where it is shown (`detail_of`).
_ = gettext_noop

logger = logging.getLogger(__name__)

RUNGS = tuple(Rung)
SECONDS = {
    Rung.NETWORK: 10.0,
    Rung.AUTH: 20.0,
    Rung.MODELS: 20.0,
    Rung.ANSWER: 30.0,
}
ANSWER_TOKENS = 16
MOST_CHARACTERS = 20_000  # of an answer by a server that ignores the limit
# A refusal of these kinds says that there is no such call there, and nothing about the key.
_NO_SUCH_CALL = frozenset({ErrorKind.ENDPOINT_NOT_FOUND, ErrorKind.PROTOCOL})
_ABOUT_THE_KEY = frozenset({ErrorKind.AUTH, ErrorKind.SIGN_IN_AGAIN, ErrorKind.FORBIDDEN})
_BROKEN_STREAM = frozenset({ErrorKind.TRUNCATED, ErrorKind.PROTOCOL, ErrorKind.TIMEOUT})


@dataclass(frozen=True, slots=True)
class RungResult:
    """`ms` is None where no call was made; `kind` an `ErrorKind` or `Reason`; `detail` the
    provider's own scrubbed words, for admins."""

    rung: Rung
    outcome: Outcome
    ms: int | None = None
    kind: str = ""
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "rung": self.rung.value,
            "outcome": self.outcome.value,
            "ms": self.ms,
            "kind": self.kind,
            "detail": self.detail,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> RungResult:
        return cls(
            Rung(stored["rung"]),
            Outcome(stored["outcome"]),
            stored.get("ms"),
            stored.get("kind", ""),
            stored.get("detail", ""),
        )

    @property
    def words(self) -> Sentence | None:
        return sentence(self.kind) if self.kind else None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is climbed: a connection read and opened, or the reason why it can't be."""

    model: str = ""
    target: Target | None = None
    provider: Provider | None = None
    fault: Reason | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`passed`: True proven, False failed, None neither (what was tested passed, but the key or
    the model weren't). `latency_ms`: of all that was timed together."""

    passed: bool | None
    kind: str = ""
    latency_ms: int | None = None


def detail_of(stored: Mapping[str, Any]) -> str:
    """The detail of a stored rung for a person: ours translated, a provider's as it is."""
    text = stored.get("detail", "")
    return gettext(text) if text else ""


Tell = Callable[[Sequence[RungResult]], Awaitable[object]]


def subject_of(
    connection: Connection,
    *,
    secret: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Subject:
    """Opens the secrets. `secret` and `headers`: those that are tried in place of the stored ones.
    No query when `secrets` is prefetched."""
    model = connection.default_model or next(iter(connection.model_ids), "")
    if fault := configuration_fault(connection, secret=secret, headers=headers):
        return Subject(model, fault=fault)
    target = target_of(connection, secret=secret, headers=headers)
    return Subject(model, target, provider_of(connection))


async def climb(
    subject: Subject,
    *,
    upto: Rung = Rung.STREAM,
    client: httpx.AsyncClient | None = None,
    tell: Tell | None = None,
) -> list[RungResult]:
    """One result a rung, always all of them. Never raises but `CancelledError`, and what `tell`
    raises, which is given the rungs climbed so far before each next one.

    At most 80 seconds, and 30 more where it waits for a place. Above `models` it costs one request
    of at most 16 tokens.
    """
    return await _Climb(subject, upto, client, tell).run()


def verdict(results: Sequence[RungResult]) -> Verdict:
    """What the rungs say of the connection as a whole."""
    by_rung = {result.rung: result for result in results}
    # The stream's time, to the first token, is part of the answer's.
    timed = [r.ms for r in results if r.ms is not None and r.rung is not Rung.STREAM]
    latency = sum(timed) if timed else None
    for result in results:
        if result.outcome is Outcome.FAILED:
            return Verdict(False, result.kind, latency)

    def passed(rung: Rung) -> bool:
        return by_rung[rung].outcome is Outcome.PASSED

    proven = passed(Rung.ANSWER) or (passed(Rung.AUTH) and passed(Rung.MODELS))
    return Verdict(True if proven else None, "", latency)


class _Stop(Exception):
    """A rung failed: the rest isn't tested."""


class _Climb:
    def __init__(
        self,
        subject: Subject,
        upto: Rung,
        client: httpx.AsyncClient | None,
        tell: Tell | None = None,
    ) -> None:
        self.subject = subject
        self.tell = tell
        self.upto = RUNGS.index(upto)
        self.results = {rung: RungResult(rung, Outcome.NOT_TESTED) for rung in RUNGS}
        self.policy = egress.provider_policy()
        self.client = client
        self.waiting = False  # for a place in this process
        self.deadline: asyncio.Timeout

    async def run(self) -> list[RungResult]:
        with suppress(_Stop):
            await self._climb()
        return [self.results[rung] for rung in RUNGS]

    async def _climb(self) -> None:
        if self.subject.fault:
            self._note(Rung.CONFIG, Outcome.FAILED, kind=self.subject.fault)
            return
        self._note(Rung.CONFIG, Outcome.PASSED)
        assert self.subject.target and self.subject.provider
        self.client = self.client or egress.client_for(self.policy)
        for rung, test in (
            (Rung.NETWORK, self._network),
            (Rung.AUTH, self._auth),
            (Rung.MODELS, self._models),
            (Rung.ANSWER, self._answer),
        ):
            if RUNGS.index(rung) > self.upto:
                return
            if self.tell is not None:
                await self.tell([self.results[one] for one in RUNGS[: RUNGS.index(rung)]])
            started = time.monotonic()
            try:
                async with asyncio.timeout(SECONDS[rung]) as self.deadline:
                    await test(started)
            except ProviderError as error:
                self._fail(rung, started, error.kind, error.message)
            except TimeoutError:
                if self.waiting:
                    self._note(
                        rung,
                        Outcome.NOT_TESTED,
                        detail=_("Every Codex process of this worker was busy."),
                    )
                    return
                self._fail(rung, started, ErrorKind.TIMEOUT)
            except _Stop:
                raise
            except Exception as error:
                # By its type alone: what a fault of ours holds may be a secret.
                logger.error("a probe failed on %s: %s", rung.value, type(error).__name__)
                self._fail(rung, started, Reason.INTERNAL)

    # -- the rungs -------------------------------------------------------------------------------

    async def _network(self, started: float) -> None:
        url = self.subject.provider.origin(self.subject.target)
        try:
            await egress.dial(url, self.policy, seconds=SECONDS[Rung.NETWORK])
        except egress.EgressBlocked as error:
            self._fail(Rung.NETWORK, started, ErrorKind.EGRESS, error.reason)
        except egress.LookupFailed:
            self._fail(Rung.NETWORK, started, Reason.DNS)
        except egress.HandshakeFailed as error:
            self._fail(Rung.NETWORK, started, ErrorKind.TLS, str(error))
        except (httpcore.TimeoutException, TimeoutError):
            self._fail(Rung.NETWORK, started, ErrorKind.TIMEOUT)
        except (httpcore.NetworkError, OSError):
            self._fail(Rung.NETWORK, started, ErrorKind.CONNECT)
        self._note(Rung.NETWORK, Outcome.PASSED, started)

    async def _auth(self, started: float) -> None:
        try:
            proven = await self.subject.provider.check_auth(
                self.client, self.subject.target, self.subject.model
            )
        except ProviderError as error:
            if error.kind not in _NO_SUCH_CALL:
                raise
            proven = False
        if proven:
            self._note(Rung.AUTH, Outcome.PASSED, started)
        else:
            detail = _(
                "Only an answer can tell: the provider has no free call that proves the key."
            )
            self._note(Rung.AUTH, Outcome.NOT_TESTED, detail=detail)

    async def _models(self, started: float) -> None:
        try:
            listed = await self.subject.provider.list_models(self.client, self.subject.target)
        except ProviderError as error:
            if error.kind is ErrorKind.FORBIDDEN:
                # Rights are given call by call: a chat may be permitted all the same.
                detail = _("The provider doesn't permit this connection to list its models.")
            elif error.kind in _NO_SUCH_CALL:
                detail = _("The provider doesn't list its models.")
            else:
                raise
            self._note(Rung.MODELS, Outcome.NOT_TESTED, detail=detail)
            return
        if self.subject.target.auth_type == AuthType.NONE:
            self._note(Rung.AUTH, Outcome.PASSED, detail=_("The server answers without a key."))
        if self.subject.model in {model.id for model in listed}:
            self._note(Rung.MODELS, Outcome.PASSED, started)
            return
        # It may be an alias, which lists leave out: only an answer tells.
        self._note(
            Rung.MODELS,
            Outcome.NOT_TESTED,
            started,
            kind=ErrorKind.MODEL_NOT_FOUND,
            detail=_("The default model is not in the provider's list."),
        )

    async def _answer(self, started: float) -> None:
        request = ModelRequest(
            model=self.subject.model,
            history=[Turnlet("user", [{"t": "text", "text": "Reply with the one word OK."}])],
            max_tokens=ANSWER_TOKENS,
            idle_timeout=SECONDS[Rung.ANSWER] / 2,
        )
        first: float | None = None
        said, done = 0, False
        try:
            stream = self.subject.provider.stream(self.client, self.subject.target, request)
            async with aclosing(stream) as events:
                async for event in events:
                    if isinstance(event, Waiting):
                        # What the wait took isn't the provider's.
                        self.waiting = not event.over
                        started = time.monotonic()
                        self.deadline.reschedule(
                            asyncio.get_running_loop().time() + SECONDS[Rung.ANSWER]
                        )
                        continue
                    first = first or time.monotonic()
                    done = done or isinstance(event, Done)
                    if isinstance(event, TextDelta):
                        said += len(event.text)
                    if said > MOST_CHARACTERS:
                        raise ProviderError(ErrorKind.PROTOCOL, _("The reply has no end."))
        except ProviderError as error:
            if said and error.kind in _BROKEN_STREAM:
                self._answered(started)
                self._fail(Rung.STREAM, started, error.kind, error.message)
            if error.kind in _ABOUT_THE_KEY and self._is(Rung.AUTH, Outcome.NOT_TESTED):
                self._fail(Rung.AUTH, started, error.kind, error.message)
            if error.kind is ErrorKind.MODEL_NOT_FOUND and self._is(
                Rung.MODELS, Outcome.NOT_TESTED
            ):
                self._fail(Rung.MODELS, started, error.kind, error.message)
            raise
        if not done:
            raise ProviderError(ErrorKind.TRUNCATED)
        self._answered(started)
        if self.upto >= RUNGS.index(Rung.STREAM):
            self._note(Rung.STREAM, Outcome.PASSED, started, until=first)

    def _answered(self, started: float) -> None:
        """An answer proves the key and the model too, where nothing else could."""
        if self._is(Rung.AUTH, Outcome.NOT_TESTED):
            self._note(Rung.AUTH, Outcome.PASSED, detail=_("Proven by the answer."))
        if self._is(Rung.MODELS, Outcome.NOT_TESTED) and self.results[Rung.MODELS].kind:
            detail = _("Not in the provider's list, but the model answers.")
            self._note(Rung.MODELS, Outcome.PASSED, detail=detail)
        self._note(Rung.ANSWER, Outcome.PASSED, started)

    # -- notes -----------------------------------------------------------------------------------

    def _is(self, rung: Rung, outcome: Outcome) -> bool:
        return self.results[rung].outcome is outcome

    def _note(
        self,
        rung: Rung,
        outcome: Outcome,
        started: float | None = None,
        *,
        kind: str = "",
        detail: str = "",
        until: float | None = None,
    ) -> None:
        ms = None if started is None else round(((until or time.monotonic()) - started) * 1000)
        self.results[rung] = RungResult(rung, outcome, ms, str(kind), detail)

    def _fail(self, rung: Rung, started: float, kind: str, detail: str = "") -> None:
        self._note(rung, Outcome.FAILED, started, kind=kind, detail=detail)
        raise _Stop
