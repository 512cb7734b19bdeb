"""OAuth 2 as a client without a secret speaks it: PKCE (RFC 7636), the exchange of a code, the
renewal of tokens (RFC 6749). Says nothing of where tokens are kept.

Whatever goes wrong is a `ProviderError` whose message was scrubbed of what was sent; a refused
grant is `sign_in_again`.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from connections.providers import errors
from connections.providers.base import ErrorKind, ProviderError, Target
from connections.providers.errors import Scrubber
from connections.providers.wire.lenient_json import clean, dumps, loads
from workspaces.egress import Policy, ResponseTooLarge, bounded_bytes, guarded_client

SECONDS = 15.0  # one call to the token endpoint, all in all
MAX_BYTES = 256 * 1024  # of its answer, headers included
MAX_TOKEN = 16_384
MAX_LIFETIME = 10 * 365 * 24 * 3600.0

_TOKEN = re.compile(r"[\x21-\x7e]+")
# The grant (a code, a refresh token) is used up, too old or withdrawn: only a person can help.
_OVER = frozenset(
    {
        "invalid_grant",
        "refresh_token_expired",
        "refresh_token_reused",
        "refresh_token_invalidated",
    }
)
_UNKNOWN_CLIENT = frozenset({"invalid_client", "unauthorized_client"})


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who issues the tokens, as the operator set it. `json_body`: the token endpoint takes JSON
    instead of a form."""

    client_id: str
    token_url: str
    authorize_url: str = ""
    redirect_uri: str = ""
    scopes: str = ""
    json_body: bool = False

    @property
    def origin(self) -> str:
        """Where refresh tokens may be sent: scheme and host of the token endpoint."""
        parts = urlsplit(self.token_url)
        return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an issuer gave. `lifetime` in seconds, None when it doesn't tell; `refresh_token` ""
    when there is none; `account` is the label of whose they are, `kind` "personal", "organisation"
    or "" (not told); `more` is what calls need besides."""

    access_token: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)
    lifetime: float | None = None
    account: str = ""
    kind: str = ""
    more: Mapping[str, str] = field(default_factory=dict, repr=False)


# -- signing in ------------------------------------------------------------------------------------


def make_verifier() -> str:
    return secrets.token_urlsafe(48)


def challenge_of(verifier: str) -> str:
    """PKCE's S256."""
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    return urlsafe_b64encode(digest).decode("ascii").rstrip("=")


def authorize_url(issuer: Issuer, *, state: str, verifier: str) -> str:
    """The page of the provider where a person agrees and gets the code."""
    query = {
        "response_type": "code",
        "client_id": issuer.client_id,
        "redirect_uri": issuer.redirect_uri,
        "scope": issuer.scopes,
        "state": state,
        "code_challenge": challenge_of(verifier),
        "code_challenge_method": "S256",
    }
    mark = "&" if urlsplit(issuer.authorize_url).query else "?"
    return f"{issuer.authorize_url}{mark}{urlencode(query)}"


def split_code(pasted: str) -> tuple[str, str]:
    """(code, state or "") of what a person pasted: `code`, `code#state`, or the whole address that
    the provider's page ended at. ("", "") when none of it can be a code."""
    text = "".join(pasted.split())
    if text.startswith(("https://", "http://")):
        found = parse_qs(text.partition("?")[2].partition("#")[0])
        code, state = found.get("code", [""])[0], found.get("state", [""])[0]
    else:
        code, _, state = text.partition("#")
    if len(code) > MAX_TOKEN or not _TOKEN.fullmatch(code):
        return "", ""
    return code, state


async def exchange(
    policy: Policy, issuer: Issuer, *, code: str, state: str, verifier: str
) -> Tokens:
    """The tokens for a code. One call; raises `ProviderError`."""
    sent = {
        "grant_type": "authorization_code",
        "code": code,
        "state": state,
        "client_id": issuer.client_id,
        "redirect_uri": issuer.redirect_uri,
        "code_verifier": verifier,
    }
    if not issuer.json_body:
        del sent["state"]  # no parameter of the standard's token request
    return tokens_of(await _post(policy, issuer, sent, ("code", "code_verifier")))


async def renew(policy: Policy, issuer: Issuer, refresh_token: str) -> Tokens:
    """New tokens for a refresh token, which is used up by it where the issuer rotates them. One
    call; raises `ProviderError`."""
    sent = {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "client_id": issuer.client_id,
    }
    tokens = tokens_of(await _post(policy, issuer, sent, ("refresh_token",)))
    return tokens if tokens.refresh_token else replace(tokens, refresh_token=refresh_token)


# -- the answer ------------------------------------------------------------------------------------


def tokens_of(payload: Any) -> Tokens:
    """The tokens in a token endpoint's answer. Raises `ProviderError`."""
    if not isinstance(payload, dict):
        raise ProviderError(ErrorKind.PROTOCOL, "The answer is not a JSON object.")
    if str(payload.get("token_type") or "bearer").lower() != "bearer":
        raise ProviderError(ErrorKind.PROTOCOL, "The tokens are not bearer tokens.")
    access_token, refresh_token = _token(payload.get("access_token")), payload.get("refresh_token")
    account, kind = _account(payload)
    return Tokens(
        access_token=access_token,
        refresh_token=_token(refresh_token) if refresh_token else "",
        lifetime=_lifetime(payload.get("expires_in")) or lifetime_of(access_token),
        account=account,
        kind=kind,
    )


def claims_of(token: Any) -> dict[str, Any]:
    """What a JWT says of itself, unproven: it came from the issuer over TLS. {} for another
    form."""
    try:
        part = token.split(".")[1]
        claims = loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (AttributeError, IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def lifetime_of(token: str) -> float | None:
    """The seconds that a JWT has left, by its own word; at least one, so that it is renewed."""
    expires = claims_of(token).get("exp")
    return _lifetime(max(1.0, expires - time.time())) if isinstance(expires, int | float) else None


def _token(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TOKEN or not _TOKEN.fullmatch(value):
        raise ProviderError(ErrorKind.PROTOCOL, "The answer has no usable token.")
    return value


def _lifetime(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(seconds) or seconds <= 0:
        return None
    return min(seconds, MAX_LIFETIME)


def _account(payload: Mapping[str, Any]) -> tuple[str, str]:
    """Label and kind. A person's account is a personal login, unless the issuer says that its
    organisation is a team's."""
    person, organisation = payload.get("account"), payload.get("organization")
    person = person if isinstance(person, dict) else {}
    organisation = organisation if isinstance(organisation, dict) else {}
    email, name = _label(person.get("email_address")), _label(organisation.get("name"))
    plan = str(organisation.get("organization_type") or "").removeprefix("claude_")
    if plan in ("team", "enterprise") or (name and not email):
        kind = "organisation"
    else:
        kind = "personal" if email else ""
    return email or name, kind


def _label(value: Any) -> str:
    return " ".join(clean(value).split())[:200] if isinstance(value, str) else ""


# -- the call --------------------------------------------------------------------------------------


async def _post(
    policy: Policy, issuer: Issuer, sent: Mapping[str, str], secret: tuple[str, ...]
) -> Any:
    """The JSON that the token endpoint answers. A client of its own: its bounds are narrower than
    those of chats, and a shutdown that closes the others doesn't cut a renewal off."""
    scrub = Scrubber(Target("", "", secret={name: sent[name] for name in secret}))
    if issuer.json_body:
        body, kind = dumps(dict(sent)), "application/json"
    else:
        body, kind = urlencode(sent).encode(), "application/x-www-form-urlencoded"
    headers = {"content-type": kind, "accept": "application/json"}
    async with _mapped(scrub), asyncio.timeout(SECONDS):
        timeout = httpx.Timeout(SECONDS)
        async with (
            guarded_client(
                policy, timeout=timeout, max_bytes=MAX_BYTES, max_seconds=SECONDS
            ) as client,
            client.stream("POST", issuer.token_url, content=body, headers=headers) as response,
        ):
            answer = await bounded_bytes(response, MAX_BYTES)
    if response.status_code >= 300:
        raise _refusal(response, answer, scrub)
    try:
        return loads(answer)
    except ValueError:
        raise ProviderError(ErrorKind.PROTOCOL, "The answer is not JSON.") from None


@asynccontextmanager
async def _mapped(scrub: Scrubber) -> AsyncIterator[None]:
    try:
        yield
    except ResponseTooLarge:
        raise ProviderError(ErrorKind.PROTOCOL, "The answer is too large.") from None
    except TimeoutError:
        raise ProviderError(ErrorKind.TIMEOUT, "No answer in time.") from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        # `from None`: httpx's exceptions hold the request, and with it the grant
        raise errors.from_exception(error, scrub, answering=False) from None


def _refusal(response: httpx.Response, body: bytes, scrub: Scrubber) -> ProviderError:
    found = errors.from_response(response.status_code, response.headers, body, scrub)
    if found.kind is ErrorKind.REDIRECT or response.status_code >= 500:
        return found
    codes = _codes(body)
    if codes & _OVER:
        found.kind = ErrorKind.SIGN_IN_AGAIN
    elif codes & _UNKNOWN_CLIENT:
        found.kind, found.code = ErrorKind.FORBIDDEN, "invalid_client"
    elif found.kind in (ErrorKind.AUTH, ErrorKind.MODEL_NOT_FOUND):
        found.kind = ErrorKind.FORBIDDEN
    return found


def _codes(body: bytes) -> set[str]:
    """The error codes of the standard's answer, and of those that nest them in an object."""
    try:
        payload = loads(body)
    except ValueError:
        return set()
    error = payload.get("error") if isinstance(payload, dict) else None
    values = error.values() if isinstance(error, dict) else [error]
    return {value for value in values if isinstance(value, str)}
