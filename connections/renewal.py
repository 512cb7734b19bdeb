"""The tokens of signed-in connections: given out while they last, renewed by exactly one.

A refresh token is used up by its use: two renewals at once would sign the connection out. So
whoever renews first takes a lease on the secret's row by compare-and-set, calls the issuer outside
any transaction, and stores what it got before anybody uses it. Everybody else waits for the row to
change: within a process all share one wait, and the wait sleeps on the loop between short looks,
holding no database thread. A renewal that fails counts for all who waited for it.

    idle ──take──► leased ──saved──► idle, new tokens
                     ├──failed─────► idle, the kind of the failure noted
                     ├──refused────► ended: tokens destroyed, "Sign in again"
                     └──killed─────► free again after LEASE; if the issuer had answered meanwhile,
                                     the next call is refused, and that ends it
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as dt
import enum
import json
import logging
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, transaction
from django.utils import timezone

from connections.issuers import issuer_for
from connections.models import Secret
from connections.providers.base import ErrorKind, ProviderError
from connections.providers.wire import oauth
from connections.providers.wire.oauth import Issuer, Tokens
from workspaces import egress
from workspaces.audit import record
from workspaces.runtime import get_runtime
from workspaces.vault import Plain, VaultError

logger = logging.getLogger(__name__)

MARGIN = 300.0  # seconds before its end from which on a token is renewed
LEASE = dt.timedelta(seconds=oauth.SECONDS + 10)  # longer than a call and its save
WAIT = LEASE.total_seconds() + 10  # seconds; a lease whose holder was killed ends within it
FIRST_LOOK, LAST_LOOK = 0.05, 0.5  # seconds between two looks, growing
SAVE_TRIES = 4
LAST_WORDS = 6.0  # seconds that a shutdown leaves to a renewal under way

# What doesn't go into a target: only a renewal needs it.
_KEPT_BACK = frozenset({"refresh_token", "issuer"})


# -- what is stored --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """Opened tokens. `fields` are those of `Target.secret`."""

    fields: Mapping[str, str]
    renew_at: dt.datetime | None

    def will_do(self, rejected: str = "") -> bool:
        """Whether the access token lasts and isn't the one that was rejected."""
        if rejected and self.fields["access_token"] == rejected:
            return False
        return self.renew_at is None or self.renew_at > timezone.now()


def stored_tokens(secret: Secret) -> Stored:
    """Without the refresh token. Raises `VaultError` or ValueError."""
    values = json.loads(secret.value.open())
    fields = {name: text for name, text in values.items() if name not in _KEPT_BACK}
    if "access_token" not in fields:
        raise ValueError("no access token")
    return Stored(fields, secret.renew_at)


def values_of(tokens: Tokens, issuer: Issuer) -> dict[str, str]:
    """What is sealed. A refresh token goes back only where it came from: `issuer` says where."""
    return {
        "access_token": tokens.access_token,
        "refresh_token": tokens.refresh_token,
        "issuer": issuer.origin,
        **tokens.more,
    }


def times_of(tokens: Tokens) -> dict[str, dt.datetime | None]:
    """When the token ends and from when on it is renewed: `MARGIN` before; half its life for one
    that lives shorter than twice that."""
    if tokens.lifetime is None:
        return {"expires_at": None, "renew_at": None}
    now = timezone.now()
    early = min(MARGIN, tokens.lifetime / 2)
    return {
        "expires_at": now + dt.timedelta(seconds=tokens.lifetime),
        "renew_at": now + dt.timedelta(seconds=tokens.lifetime - early),
    }


# -- the one function that calls ask ---------------------------------------------------------------


class Renewed:
    """`Target.fresh` of a signed-in connection: the tokens of one target, kept current."""

    def __init__(self, secret_id: uuid.UUID, stored: Stored) -> None:
        self._secret_id = secret_id
        self._stored = stored

    @property
    def fields(self) -> Mapping[str, str]:
        return self._stored.fields

    async def __call__(self, *, rejected: str = "") -> Mapping[str, str]:
        if not self._stored.will_do(rejected):
            self._stored = await _shared(self._secret_id, rejected)
        return self._stored.fields


_flights: dict[tuple[uuid.UUID, str], concurrent.futures.Future[Any]] = {}
_guard = threading.Lock()


async def _shared(secret_id: uuid.UUID, rejected: str) -> Stored:
    """The outcome of this process's one wait for these tokens; a caller who goes away leaves it
    to the others. Raises `ProviderError`."""
    key = (secret_id, rejected)
    with _guard:
        flight = _flights.get(key)
        if flight is None:
            flight = get_runtime().submit(_outcome(secret_id, rejected), name="renewal")
            _flights[key] = flight
            flight.add_done_callback(lambda _: _land(key))
    found = await asyncio.shield(asyncio.wrap_future(flight))
    if isinstance(found, ProviderError):
        # A new one for each: an exception that many raise gathers the tracebacks of all.
        raise ProviderError(
            found.kind,
            found.message,
            status=found.status,
            code=found.code,
            retry_after=found.retry_after,
        )
    return found


def _land(key: tuple[uuid.UUID, str]) -> None:
    with _guard:
        _flights.pop(key, None)


async def _outcome(secret_id: uuid.UUID, rejected: str) -> Stored | ProviderError:
    """Ends well when the process is asked to stop: a call that was answered is stored."""
    work = asyncio.ensure_future(_renew(secret_id, rejected))
    try:
        return await asyncio.shield(work)
    except ProviderError as error:
        return error
    except asyncio.CancelledError:
        await asyncio.wait({work}, timeout=LAST_WORDS)
        work.cancel()
        raise


# -- take, call, save ------------------------------------------------------------------------------


class _Busy(enum.Enum):
    """Somebody else renews."""

    NOW = enum.auto()


@dataclass(frozen=True, slots=True)
class _Leased:
    """The right to renew, until the lease ends."""

    secret_id: uuid.UUID
    token: uuid.UUID
    issuer: Issuer
    refresh_token: str


async def _renew(secret_id: uuid.UUID, rejected: str) -> Stored:
    db = get_runtime().db
    waited_since: int | None = None  # the count of renewals when the wait began
    until, pause = time.monotonic() + WAIT, FIRST_LOOK
    while True:
        count, found = await db(_look, secret_id, rejected, waited_since)
        if found is None:
            found = await db(_take, secret_id, rejected)
        if isinstance(found, Stored):
            return found
        if isinstance(found, _Leased):
            return await _call(found)
        if waited_since is None:
            waited_since = count
        if time.monotonic() > until:
            raise ProviderError(ErrorKind.TIMEOUT, "Another process renews this sign-in.")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LAST_LOOK)


def _look(
    secret_id: uuid.UUID, rejected: str, waited_since: int | None
) -> tuple[int, Stored | _Busy | None]:
    """The count of renewals so far, and the tokens, or that somebody renews, or None: they are to
    be renewed. One query, no lock. Raises `ProviderError`."""
    secret = _read(Secret.objects.filter(pk=secret_id))
    stored = _opened(secret)
    if stored.will_do(rejected):
        return secret.renewals, stored
    if waited_since is not None and secret.renewals != waited_since:
        if secret.renewal_error:
            raise ProviderError(ErrorKind(secret.renewal_error), "The renewal failed.")
        return secret.renewals, stored  # new, if not for long
    if secret.renewing_until is not None and secret.renewing_until > timezone.now():
        return secret.renewals, _Busy.NOW
    return secret.renewals, None


def _take(secret_id: uuid.UUID, rejected: str) -> Stored | _Busy | _Leased:
    """The lease, unless somebody was quicker. Locks the secret's row for two queries."""
    with transaction.atomic():
        secret = _read(Secret.objects.select_for_update(of=("self",)).filter(pk=secret_id))
        stored = _opened(secret)
        if stored.will_do(rejected):
            return stored
        now = timezone.now()
        if secret.renewing_until is not None and secret.renewing_until > now:
            return _Busy.NOW
        values = json.loads(secret.value.open())
        issuer = issuer_for(secret.connection.provider_type)
        if issuer is None:
            raise ProviderError(ErrorKind.FORBIDDEN, "Signing in is off on this server.")
        if not values.get("refresh_token") or values.get("issuer") != issuer.origin:
            refused: ProviderError | None = ProviderError(ErrorKind.SIGN_IN_AGAIN)
            _end(secret, "no refresh token" if not values.get("refresh_token") else "issuer")
        else:
            refused = None
            secret.renewing_token, secret.renewing_until = uuid.uuid4(), now + LEASE
            secret.save(update_fields=["renewing_token", "renewing_until"])
    if refused is not None:
        raise refused
    return _Leased(secret.pk, secret.renewing_token, issuer, values["refresh_token"])


async def _call(leased: _Leased) -> Stored:
    """One call to the issuer, and its outcome stored before it is used."""
    try:
        tokens = await oauth.renew(egress.provider_policy(), leased.issuer, leased.refresh_token)
    except ProviderError as error:
        logger.warning("a sign-in could not be renewed (%s)", error.kind)
        await _stored_surely(_note_failure, leased, error)
        raise
    return await _stored_surely(_save, leased, tokens)


async def _stored_surely(function: Any, *arguments: Any) -> Any:
    """On a database thread; a database that fails for a moment costs no sign-in."""
    for tries in range(1, SAVE_TRIES):
        try:
            return await get_runtime().db(function, *arguments)
        except DatabaseError as error:
            logger.warning("a renewal isn't stored yet (%s)", type(error).__name__)
            await asyncio.sleep(0.5 * tries)
    return await get_runtime().db(function, *arguments)


def _save(leased: _Leased, tokens: Tokens) -> Stored:
    """Stores new tokens under the lease, with the audit row. Raises `ProviderError` when the
    connection was signed out or in anew meanwhile: then they are nobody's."""
    with transaction.atomic():
        secret = _held(leased)
        if secret is None:
            raise ProviderError(ErrorKind.AUTH, "The connection was signed out or in meanwhile.")
        kept = json.loads(secret.value.open())
        secret.value = Plain(json.dumps(kept | values_of(tokens, leased.issuer)))
        for name, moment in times_of(tokens).items():
            setattr(secret, name, moment)
        _over(secret)
        secret.save(update_fields=["value", "expires_at", "renew_at", *_LEASE_FIELDS])
        record("worker", "secret.renew", secret.connection, host=leased.issuer.origin)
        return stored_tokens(secret)


def _note_failure(leased: _Leased, error: ProviderError) -> None:
    with transaction.atomic():
        secret = _held(leased)
        if secret is None:
            return
        if error.kind is ErrorKind.SIGN_IN_AGAIN:
            _end(secret, error.kind.value)
            return
        _over(secret, error.kind.value)
        secret.save(update_fields=_LEASE_FIELDS)
        record(
            "worker",
            "secret.renew_failed",
            secret.connection,
            host=leased.issuer.origin,
            error=error.kind.value,
        )


# -- the parts -------------------------------------------------------------------------------------

_LEASE_FIELDS = ["renewals", "renewal_error", "renewing_token", "renewing_until"]


def _read(rows: Any) -> Secret:
    secret = rows.select_related("connection").first()
    if secret is None or secret.binding != secret.connection.binding:
        raise ProviderError(ErrorKind.SIGN_IN_AGAIN, "The connection was signed out.")
    if secret.ended_at is not None:
        raise ProviderError(ErrorKind.SIGN_IN_AGAIN)
    return secret


def _opened(secret: Secret) -> Stored:
    try:
        return stored_tokens(secret)
    except (VaultError, ValueError):
        raise ProviderError(ErrorKind.AUTH, "The stored tokens can't be read.") from None


def _held(leased: _Leased) -> Secret | None:
    """The row, locked, while the lease is ours: nobody took it over, signed out or in anew."""
    rows = Secret.objects.select_for_update(of=("self",)).select_related("connection")
    return rows.filter(pk=leased.secret_id, renewing_token=leased.token).first()


def _over(secret: Secret, error: str = "") -> None:
    secret.renewals += 1
    secret.renewal_error = error
    secret.renewing_token = secret.renewing_until = None


def _end(secret: Secret, why: str) -> None:
    """Only a person can help: the tokens are destroyed, the account's label stays. Expects the
    row's lock."""
    secret.value = Plain("{}")
    secret.ended_at = timezone.now()
    secret.expires_at = secret.renew_at = None
    _over(secret, ErrorKind.SIGN_IN_AGAIN.value)
    secret.save(update_fields=["value", "ended_at", "expires_at", "renew_at", *_LEASE_FIELDS])
    record("worker", "connection.sign_in_ended", secret.connection, why=why)
