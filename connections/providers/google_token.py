"""Access tokens for Google Cloud: of a service account's key, or of the server's own credentials.

google-auth signs and, for `environment`, finds the server's credentials; the request of a service
account's token is ours, over the guarded client. Tokens are kept in this process's memory until
shortly before they run out, by the key they were minted with, and minted by one at a time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import threading
import time
import weakref
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

import google.auth
import httpx
from google.auth import exceptions as google_errors
from google.auth import jwt
from google.auth.crypt import RSASigner

from connections.providers import errors
from connections.providers.base import ErrorKind, ProviderError, Target
from connections.providers.errors import Scrubber
from connections.providers.wire.lenient_json import loads

TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 (an address)
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
# All that a service account's file may have. Other credentials name files to read, addresses to
# ask and programs to run.
ACCOUNT_FIELDS = frozenset(
    {
        "type",
        "project_id",
        "private_key_id",
        "private_key",
        "client_email",
        "client_id",
        "auth_uri",
        "token_uri",
        "auth_provider_x509_cert_url",
        "client_x509_cert_url",
        "universe_domain",
    }
)
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
LIFETIME = 3600  # seconds, of the assertion; Google takes no more
EARLY = 240.0  # seconds before its end that a token counts as run out, but a tenth at most
SECONDS = 20.0  # for one minting
MAX_ANSWER = 64 * 1024
MAX_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Token:
    value: str = field(repr=False)
    fresh_until: float  # time.time(), which goes on while the machine sleeps
    quota_project: str = ""  # whom Google counts the calls of a person's own credentials against

    @property
    def is_fresh(self) -> bool:
        return time.time() < self.fresh_until


@dataclass(slots=True)
class _Source:
    """One key's, on one loop. `failed` is when the last minting failed, `why` how."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    failed: float = 0.0
    why: ProviderError | None = None


_kept: dict[str, Token] = {}
_sources: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Source]] = (
    weakref.WeakKeyDictionary()
)


async def token_for(client: httpx.AsyncClient, target: Target) -> Token:
    """A token that lasts for some minutes yet. Raises ProviderError.

    Costs nothing while the last one is fresh, else one request; who comes meanwhile waits for it
    and shares its end, a failure too.
    """
    name = _name(target)
    if (token := _kept.get(name)) and token.is_fresh:
        return token
    source = _sources.setdefault(asyncio.get_running_loop(), {}).setdefault(name, _Source())
    asked = time.monotonic()
    async with source.lock:
        if (token := _kept.get(name)) and token.is_fresh:
            return token
        if source.why is not None and source.failed >= asked:
            raise _again(source.why)
        try:
            async with asyncio.timeout(SECONDS):
                if target.auth_type == "environment":
                    token = await asyncio.to_thread(_lent)
                else:
                    token = await _mint(client, target)
        except ProviderError as error:
            source.failed, source.why = time.monotonic(), _again(error)
            raise
        except TimeoutError:
            error = ProviderError(ErrorKind.TIMEOUT, "No token in time.")
            source.failed, source.why = time.monotonic(), error
            raise _again(error) from None
        source.why = None
        _keep(name, token)
        return token


def forget(target: Target) -> None:
    """After a call that its token didn't pass: the next one mints anew."""
    _kept.pop(_name(target), None)


def _name(target: Target) -> str:
    if target.auth_type == "environment":
        return "environment"
    key = f"{target.secret.get('service_account_json', '')}\n{target.token_url}"
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _keep(name: str, token: Token) -> None:
    if len(_kept) >= MAX_KEPT:
        for old in [key for key, one in _kept.items() if not one.is_fresh] or [*_kept][:1]:
            _kept.pop(old, None)
    _kept[name] = token


def _again(error: ProviderError) -> ProviderError:
    """The same, without the frames that it went through and what they hold."""
    return ProviderError(
        error.kind,
        error.message,
        status=error.status,
        code=error.code,
        retry_after=error.retry_after,
    )


# -- a service account's ---------------------------------------------------------------------------


def account_of(text: str) -> dict[str, str]:
    """The file's fields. Raises ProviderError unless it is a service account's, of Google's own."""
    try:
        info = loads(text.encode())
    except ValueError:
        info = None
    if not isinstance(info, dict) or info.get("type") != "service_account":
        raise _refused("This is not a service account's key.")
    if not ACCOUNT_FIELDS.issuperset(info) or not all(isinstance(v, str) for v in info.values()):
        raise _refused("The service account's file has fields that none has.")
    if (
        info.get("token_uri") != TOKEN_URI
        or info.get("universe_domain", "googleapis.com") != "googleapis.com"
    ):
        raise _refused("The service account's file names an address that isn't Google's own.")
    if not info.get("client_email") or not info.get("private_key"):
        raise _refused("The service account's file has no e-mail address or no key.")
    return info


def _refused(message: str) -> ProviderError:
    return ProviderError(ErrorKind.AUTH, f"{message} Nothing was sent.")


def _assertion(info: dict[str, str]) -> str:
    """A signed request for a token. Some milliseconds of arithmetic; raises ValueError for a key
    that can't be read."""
    now = int(time.time())
    claims = {
        "iss": info["client_email"],
        "scope": SCOPE,
        "aud": TOKEN_URI,
        "iat": now,
        "exp": now + LIFETIME,
    }
    signer = RSASigner.from_string(info["private_key"], info.get("private_key_id") or None)
    return jwt.encode(signer, claims).decode("ascii")


async def _mint(client: httpx.AsyncClient, target: Target) -> Token:
    info = account_of(target.secret.get("service_account_json", ""))
    try:
        assertion = await asyncio.to_thread(_assertion, info)
    except Exception:  # whatever a broken key makes of the libraries; none of it may quote the key
        raise _refused("The private key of the service account can't be read.") from None
    scrub = Scrubber(replace(target, secret={**target.secret, "assertion": assertion}))
    try:
        request = client.build_request(
            "POST",
            target.token_url or TOKEN_URI,
            content=urlencode(
                {
                    "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                    "assertion": assertion,
                }
            ).encode(),
            headers={
                "content-type": "application/x-www-form-urlencoded",
                "accept-encoding": "identity",
            },
            timeout=httpx.Timeout(SECONDS),
        )
        asked = time.time()
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            body = await _read(response)
        finally:
            await response.aclose()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # `from None`: httpx's exceptions hold the request, and with it the assertion
        raise errors.from_exception(error, scrub, answering=False) from None
    try:
        answer = loads(body)
    except ValueError:
        answer = None
    if response.status_code != 200:
        raise _refusal(response, body, answer, scrub)
    value = answer.get("access_token") if isinstance(answer, dict) else None
    seconds = answer.get("expires_in") if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value:
        raise ProviderError(ErrorKind.PROTOCOL, "Google's answer holds no token.")
    lasts = seconds if isinstance(seconds, int | float) and 0 < seconds <= 86_400 else LIFETIME
    return Token(value, asked + lasts - min(EARLY, lasts / 10))


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER:
            raise ProviderError(ErrorKind.PROTOCOL, "Google's answer is too large.")
    return bytes(body)


# What Google's token endpoint (RFC 6749, 5.2) says in `error`.
_REFUSALS = {
    "invalid_grant": "Google doesn't accept this service account's key: it may have been deleted, "
    "its account disabled, or this server's clock may be wrong.",
    "invalid_client": "Google doesn't know this service account.",
    "unauthorized_client": "Google gives this service account no tokens for Google Cloud.",
    "invalid_scope": "Google gives this service account no tokens for Google Cloud.",
    "access_denied": "Google refuses this service account a token.",
}


def _refusal(response: httpx.Response, body: bytes, answer: Any, scrub: Scrubber) -> ProviderError:
    code = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(code, str):
        return errors.from_response(response.status_code, response.headers, body, scrub)
    said = answer.get("error_description")
    words = " ".join(
        text for text in (_REFUSALS.get(code, ""), said if isinstance(said, str) else code) if text
    )
    if code in _REFUSALS:
        kind = ErrorKind.AUTH
    elif response.status_code >= 500:
        kind = ErrorKind.SERVER
    else:
        kind = errors.from_response(response.status_code, response.headers, body, scrub).kind
    return ProviderError(
        kind,
        scrub(words),
        status=response.status_code,
        code=scrub(code)[:100],
        retry_after=errors.retry_after(response.headers.get("retry-after")),
    )


# -- the server's own ------------------------------------------------------------------------------

_lending = threading.Lock()
_credentials: Any = None


def _lent() -> Token:
    """Application Default Credentials: variables, files, metadata server, as the operator set them
    up. Blocks, for seconds where there are none; raises ProviderError."""
    # only here, and only for `environment`: it brings a client with a way out of its own
    from google.auth import _cloud_sdk
    from google.auth.transport.requests import Request

    # google-auth would run `gcloud`, with this process's environment and the instance key in it, to
    # learn a project that nobody asks for.
    _cloud_sdk.get_project_id = lambda: None

    global _credentials
    with _lending:
        request = Request()
        try:
            if _credentials is None:
                _credentials, _ = google.auth.default(scopes=[SCOPE], request=request)
            _credentials.refresh(request)
        except google_errors.MalformedError:
            message = "The server's own credentials can't be read."
            raise ProviderError(ErrorKind.AUTH, message) from None
        except google_errors.DefaultCredentialsError:
            raise ProviderError(
                ErrorKind.NO_CREDENTIALS, "The server has no default credentials of Google's."
            ) from None
        except google_errors.RefreshError as error:
            _credentials = None
            kind = ErrorKind.SERVER if error.retryable else ErrorKind.AUTH
            message = "Google doesn't accept the server's own credentials."
            raise ProviderError(kind, message) from None
        except google_errors.TransportError:
            message = "Google's credentials of this server can't be reached."
            raise ProviderError(ErrorKind.CONNECT, message) from None
        except (google_errors.GoogleAuthError, OSError, ValueError) as error:
            message = f"The server's own credentials can't be used ({type(error).__name__})."
            raise ProviderError(ErrorKind.AUTH, message) from None
        value, expiry = _credentials.token, getattr(_credentials, "expiry", None)
        if not value:
            raise ProviderError(ErrorKind.NO_CREDENTIALS, "The server's credentials give no token.")
        ends = expiry.replace(tzinfo=dt.UTC).timestamp() if expiry else time.time() + LIFETIME
        quota_project = getattr(_credentials, "quota_project_id", None) or ""
        return Token(str(value), ends - EARLY, quota_project)
