"""Signing in with a code that a person types at the provider: a worker holds the Codex process that
has asked for the code, until its tokens come.

The attempt's row (`SignIn`) is the queue; the message to a worker is only the doorbell. Whoever
takes it holds `busy_until` and renews it at each look for a cancel; when a worker dies, the lease
ends and the page says so. The process can't be taken over: the person begins again.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import logging
import uuid
from contextlib import aclosing
from dataclasses import dataclass

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from connections.issuers import OPENAI, issuer_for
from connections.models import SignIn
from connections.providers.base import ProviderError
from connections.providers.codex_login import DeviceCode, device_login
from connections.providers.wire.oauth import Issuer, Tokens
from connections.sign_in import keep
from connections.targets import CodexMissing, codex_path_of
from workspaces.audit import record
from workspaces.models import User
from workspaces.runtime import get_runtime
from workspaces.vault import Plain

logger = logging.getLogger(__name__)

LEASE = dt.timedelta(seconds=20)
LOOK = 2.0  # seconds between two looks for a cancel


@dataclass(frozen=True, slots=True)
class _Taken:
    attempt: SignIn
    codex_path: str
    issuer: Issuer


def waiting() -> list[uuid.UUID]:
    """The attempts that no worker has taken yet. One query."""
    return list(_free(SignIn.objects.all()).values_list("pk", flat=True))


async def run(attempt_id: uuid.UUID) -> None:
    """Takes an attempt to its end. Safe to run twice; quiet when there is nothing to take."""
    db = get_runtime().db
    taken = await db(_take, attempt_id)
    if taken is None:
        return
    try:
        origin = taken.issuer.origin
        steps = device_login(
            taken.codex_path,
            client_id=taken.issuer.client_id,
            issuer="" if origin == OPENAI else origin,
        )
        async with aclosing(steps):
            code = await anext(steps)
            if not await db(_show, taken, code):
                return
            tokens = await _tokens(taken, asyncio.ensure_future(anext(steps)))
            if tokens is not None:
                await db(_keep, taken, tokens)
    except ProviderError as error:
        await db(_fail, taken, error.kind.value, error.message)
    except Exception as error:
        # By its type alone: what a fault of ours holds may be a token.
        logger.error("a sign-in failed: %s", type(error).__name__)
        await db(_fail, taken, "internal", "")


async def _tokens(taken: _Taken, coming: asyncio.Future[DeviceCode | Tokens]) -> Tokens | None:
    """What the process ends with; None when the person gave up first."""
    try:
        while not (await asyncio.wait({coming}, timeout=LOOK))[0]:
            if not await get_runtime().db(_goes_on, taken):
                return None
        found = coming.result()
        assert isinstance(found, Tokens)
        return found
    finally:
        if not coming.done():
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, ProviderError):
                await coming


# -- on the database's threads ---------------------------------------------------------------------


def _free(rows: QuerySet[SignIn]) -> QuerySet[SignIn]:
    now = timezone.now()
    free = Q(busy_until=None) | Q(busy_until__lte=now)
    return rows.filter(free, state=SignIn.State.OPEN, by_device=True, tries=0, expires_at__gt=now)


def _take(attempt_id: uuid.UUID) -> _Taken | None:
    token, until = uuid.uuid4(), timezone.now() + LEASE
    with transaction.atomic():
        rows = _free(SignIn.objects.filter(pk=attempt_id))
        if not rows.update(busy_token=token, busy_until=until):
            return None
        attempt = SignIn.objects.select_related("connection", "started_by").get(pk=attempt_id)
        issuer = issuer_for(attempt.connection.provider_type)
        if issuer is None or attempt.binding != attempt.connection.binding:
            SignIn.objects.filter(pk=attempt_id).update(state=SignIn.State.CANCELLED)
            return None
    try:
        return _Taken(attempt, codex_path_of(attempt.connection), issuer)
    except CodexMissing as error:
        _fail(_Taken(attempt, "", issuer), error.reason.value, "")
        return None


def _held(taken: _Taken) -> QuerySet[SignIn]:
    return SignIn.objects.filter(
        pk=taken.attempt.pk, busy_token=taken.attempt.busy_token, state=SignIn.State.OPEN
    )


def _show(taken: _Taken, code: DeviceCode) -> bool:
    """Puts the code on the page; False when nobody waits for it any more. From here on no other
    worker takes the attempt (`tries`)."""
    with transaction.atomic():
        attempt = _held(taken).select_for_update().first()
        if attempt is None:
            return False
        now = timezone.now()
        attempt.value = Plain(json.dumps({"url": code.url, "code": code.code}))
        attempt.tries = 1
        attempt.expires_at = now + dt.timedelta(seconds=code.lifetime)
        attempt.busy_until = now + LEASE
        attempt.save(update_fields=["value", "tries", "expires_at", "busy_until"])
    return True


def _goes_on(taken: _Taken) -> bool:
    """Renews the lease; False when the person cancelled, is no admin any more, or the time is
    over."""
    now = timezone.now()
    person = User.objects.filter(is_active=True, is_superuser=True)
    held = _held(taken).filter(expires_at__gt=now, started_by__in=person)
    return bool(held.update(busy_until=now + LEASE))


def _keep(taken: _Taken, tokens: Tokens) -> None:
    attempt = taken.attempt
    try:
        keep(attempt.started_by, attempt.connection, attempt, tokens, taken.issuer)
    except ValidationError:
        return  # cancelled, deleted or edited at the last moment: the tokens are nobody's
    from connections.tasks import request_validation

    request_validation([attempt.connection], attempt.started_by, "save")


def _fail(taken: _Taken, kind: str, words: str) -> None:
    with transaction.atomic():
        failed = {"state": SignIn.State.FAILED, "error": kind, "detail": words[:500]}
        if _held(taken).update(**failed, busy_until=None, busy_token=None):
            attempt = taken.attempt
            record(attempt.started_by, "connection.sign_in_failed", attempt.connection, error=kind)
