"""From what a provider or the network did to the `ErrorKind` that names it.

Kinds come from the HTTP status and from typed fields of the error, never from looking for words or
numbers in its text. Some refusals have no code of their own and are known by how their text
begins (`_PREFIXES`).
"""

from __future__ import annotations

import json
import re
import ssl
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from html import escape
from math import isfinite
from typing import Any
from urllib.parse import quote, quote_plus

import httpx

from connections.providers.base import MAX_MESSAGE, ErrorKind, ProviderError, Target
from connections.providers.wire.lenient_json import clean, loads
from workspaces.egress import EgressBlocked

MAX_RETRY_AFTER = 24 * 3600.0  # seconds
MAX_EXCERPT = 200  # characters of a body that is not the provider's own error format
_FRAGMENT = 8  # so many characters in a row of a secret are a piece of it
NOT_SECRET = frozenset({"quota_project"})  # names that travel with a secret

_BY_STATUS = {
    401: ErrorKind.AUTH,
    402: ErrorKind.QUOTA,
    403: ErrorKind.FORBIDDEN,
    404: ErrorKind.ENDPOINT_NOT_FOUND,
    405: ErrorKind.ENDPOINT_NOT_FOUND,
    408: ErrorKind.TIMEOUT,
    410: ErrorKind.ENDPOINT_NOT_FOUND,
    413: ErrorKind.TOO_LARGE,
    429: ErrorKind.RATE_LIMITED,
    451: ErrorKind.FORBIDDEN,
    503: ErrorKind.OVERLOADED,
    504: ErrorKind.TIMEOUT,
    529: ErrorKind.OVERLOADED,
}
# Values of `error.code` and `error.type` that say more than the status.
_BY_CODE = {
    # Anthropic Messages
    "authentication_error": ErrorKind.AUTH,
    "billing_error": ErrorKind.QUOTA,
    "permission_error": ErrorKind.FORBIDDEN,
    "request_too_large": ErrorKind.TOO_LARGE,
    "rate_limit_error": ErrorKind.RATE_LIMITED,
    "timeout_error": ErrorKind.TIMEOUT,
    "overloaded_error": ErrorKind.OVERLOADED,
    # OpenAI and those who follow it
    "invalid_api_key": ErrorKind.AUTH,
    "insufficient_quota": ErrorKind.QUOTA,
    "billing_hard_limit_reached": ErrorKind.QUOTA,
    "billing_not_active": ErrorKind.QUOTA,
    "rate_limit_exceeded": ErrorKind.RATE_LIMITED,
    "model_not_found": ErrorKind.MODEL_NOT_FOUND,
    "context_length_exceeded": ErrorKind.CONTEXT_TOO_LONG,
    "exceed_context_size_error": ErrorKind.CONTEXT_TOO_LONG,  # llama.cpp
    "unsupported_country_region_territory": ErrorKind.FORBIDDEN,
    # Google: the reasons of `google.rpc.ErrorInfo`, then the words of `google.rpc.Code`
    "ACCESS_TOKEN_EXPIRED": ErrorKind.AUTH,
    "ACCESS_TOKEN_TYPE_UNSUPPORTED": ErrorKind.AUTH,
    "ACCOUNT_STATE_INVALID": ErrorKind.AUTH,
    "CREDENTIALS_MISSING": ErrorKind.AUTH,
    "BILLING_DISABLED": ErrorKind.QUOTA,
    "RESOURCE_QUOTA_EXCEEDED": ErrorKind.QUOTA,
    "RATE_LIMIT_EXCEEDED": ErrorKind.RATE_LIMITED,
    "UNAUTHENTICATED": ErrorKind.AUTH,
    "PERMISSION_DENIED": ErrorKind.FORBIDDEN,
    "FAILED_PRECONDITION": ErrorKind.FORBIDDEN,  # a place, a contract or a setting of the project
    "RESOURCE_EXHAUSTED": ErrorKind.RATE_LIMITED,
    "UNAVAILABLE": ErrorKind.OVERLOADED,
    "DEADLINE_EXCEEDED": ErrorKind.TIMEOUT,
    "ABORTED": ErrorKind.SERVER,
    "CANCELLED": ErrorKind.SERVER,
    "DATA_LOSS": ErrorKind.SERVER,
    "INTERNAL": ErrorKind.SERVER,
    "UNKNOWN": ErrorKind.SERVER,
}
# What AWS calls an exception: in the header x-amzn-errortype, in the frame of an event stream or in
# the body (`__type`, or `Code` of STS).
_BY_AWS_NAME = {
    "AccessDenied": ErrorKind.FORBIDDEN,
    "AccessDeniedException": ErrorKind.FORBIDDEN,
    "ExpiredToken": ErrorKind.AUTH,
    "ExpiredTokenException": ErrorKind.AUTH,
    "IncompleteSignature": ErrorKind.AUTH,
    "IncompleteSignatureException": ErrorKind.AUTH,
    "InternalFailure": ErrorKind.SERVER,
    "InternalServerException": ErrorKind.SERVER,
    "InvalidClientTokenId": ErrorKind.AUTH,
    "InvalidSignatureException": ErrorKind.AUTH,
    "MissingAuthenticationToken": ErrorKind.AUTH,
    "MissingAuthenticationTokenException": ErrorKind.AUTH,
    "ModelErrorException": ErrorKind.SERVER,
    "ModelNotReadyException": ErrorKind.OVERLOADED,
    "ModelStreamErrorException": ErrorKind.SERVER,
    "ModelTimeoutException": ErrorKind.TIMEOUT,
    "NotAuthorized": ErrorKind.FORBIDDEN,
    "OptInRequired": ErrorKind.FORBIDDEN,
    "RequestExpired": ErrorKind.AUTH,
    "RequestTimeoutException": ErrorKind.TIMEOUT,
    "ResourceNotFoundException": ErrorKind.MODEL_NOT_FOUND,
    "ServiceQuotaExceededException": ErrorKind.QUOTA,
    "ServiceUnavailable": ErrorKind.OVERLOADED,
    "ServiceUnavailableException": ErrorKind.OVERLOADED,
    "SignatureDoesNotMatch": ErrorKind.AUTH,
    "Throttling": ErrorKind.RATE_LIMITED,
    "ThrottlingException": ErrorKind.RATE_LIMITED,
    "TooManyRequestsException": ErrorKind.RATE_LIMITED,
    "UnknownOperationException": ErrorKind.ENDPOINT_NOT_FOUND,
    "UnrecognizedClientException": ErrorKind.AUTH,
    "ValidationException": ErrorKind.BAD_REQUEST,
}
# Used only where there is no status to go by: in the middle of a stream.
_BY_CODE_IN_STREAM = {
    "api_error": ErrorKind.SERVER,
    "server_error": ErrorKind.SERVER,
    "invalid_request_error": ErrorKind.BAD_REQUEST,
    "not_found_error": ErrorKind.MODEL_NOT_FOUND,
    "INVALID_ARGUMENT": ErrorKind.BAD_REQUEST,
    "OUT_OF_RANGE": ErrorKind.BAD_REQUEST,
    "NOT_FOUND": ErrorKind.MODEL_NOT_FOUND,
}
_PREFIXES = (
    ("prompt is too long", ErrorKind.CONTEXT_TOO_LONG),  # Anthropic
    ("your credit balance is too low", ErrorKind.QUOTA),  # Anthropic
    ("this model's maximum context length is", ErrorKind.CONTEXT_TOO_LONG),  # vLLM
    ("the input token count", ErrorKind.CONTEXT_TOO_LONG),  # Gemini
    ("unable to submit request because the input token count", ErrorKind.CONTEXT_TOO_LONG),
)
# AWS has one name for many reasons, and none for a Bedrock API key that is wrong.
_AWS_PREFIXES = (
    *_PREFIXES,
    ("input is too long", ErrorKind.CONTEXT_TOO_LONG),
    ("input tokens exceeded", ErrorKind.CONTEXT_TOO_LONG),
    ("too many input tokens", ErrorKind.CONTEXT_TOO_LONG),
    ("1 validation error detected: value at 'body' failed", ErrorKind.TOO_LARGE),
    ("1 validation error detected: value at 'modelid' failed", ErrorKind.MODEL_NOT_FOUND),
    ("the provided model identifier is invalid", ErrorKind.MODEL_NOT_FOUND),
    ("could not resolve the foundation model", ErrorKind.MODEL_NOT_FOUND),
    ("invocation of model id", ErrorKind.MODEL_NOT_FOUND),  # only by its inference profile
    ("model use case details have not been submitted", ErrorKind.FORBIDDEN),
    ("too many tokens per day", ErrorKind.QUOTA),
    ("authentication failed", ErrorKind.AUTH),
    ("bearer token has expired", ErrorKind.AUTH),
    ("invalid api key", ErrorKind.AUTH),
)
_MODEL_SAID = (
    "The model returned the following errors: "  # AWS before the words of the model's host
)
_NO_SUCH_MODEL = ("Publisher Model ", "Publisher model ")  # Vertex AI's 404 for a model

_MESSAGES = ("message", "Message", "detail")
_CODES = ("code", "type", "Code", "__type")
_TAGS = re.compile(r"(?is)<(script|style)\b.*?(</\1\s*>|\Z)|<!--.*?(-->|\Z)|<[^>]*(>|\Z)")
_MASKED = re.compile(r"\S*\*{3,}\S*")  # a key as providers quote it: sk-ab****wxyz


class Scrubber:
    """Takes a target's secrets, and pieces of them, out of a text, and cuts it to `MAX_MESSAGE`.

    Providers quote a request as it came, or as it stands in an address, in JSON or on a page.
    """

    def __init__(self, target: Target) -> None:
        self._secrets = [*_secret_texts(target.secret), *target.extra_headers.values()]

    @cached_property
    def _values(self) -> list[str]:
        spelled = {text for secret in self._secrets for text in spellings(secret) if text}
        return sorted(spelled, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        # a whole secret that begins within the part kept must be seen whole
        text = text[: MAX_MESSAGE + max(map(len, self._values), default=0)]
        text = " ".join(clean(text).split())
        for value in self._values:
            text = text.replace(value, "[secret]")
        pieces = {
            value[start : start + _FRAGMENT]
            for value in self._values
            for start in range(len(value) - _FRAGMENT + 1)
        }
        hidden = {
            index
            for start in range(len(text) - _FRAGMENT + 1)
            if text[start : start + _FRAGMENT] in pieces
            for index in range(start, start + _FRAGMENT)
        }
        if hidden:
            marked = "".join("\0" if i in hidden else char for i, char in enumerate(text))
            text = re.sub("\0+", "[secret]", marked)
        return _MASKED.sub("[secret]", text[:MAX_MESSAGE])[:MAX_MESSAGE]


def _secret_texts(secret: Mapping[str, str]) -> Iterator[str]:
    """What of a target's secret must not be read. Of a service account's file only the key itself:
    the rest of it is addresses and names, pieces of which are in every message of Google's."""
    for name, value in secret.items():
        if name == "service_account_json":
            try:
                info = loads(value.encode())
            except ValueError:
                info = None
            if not isinstance(info, dict):
                yield value
                continue
            yield from filter(None, [str(info.get("private_key_id") or "")])
            key = str(info.get("private_key") or "").replace("\\n", "\n")
            yield from (line for line in key.split() if len(line) >= _FRAGMENT and "-" not in line)
        elif value and name not in NOT_SECRET:
            yield value


def spellings(secret: str) -> set[str]:
    """A secret as it came, in an address, in JSON, on a page, in base64."""
    secret = " ".join(secret.split())  # as in the text that is scrubbed
    encoded = [code(secret.encode()) for code in (b64encode, urlsafe_b64encode)]
    return {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        escape(secret),
        escape(secret).replace("&#x27;", "&#39;"),
        escape(secret, quote=False),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        *(text.decode().rstrip("=") for text in encoded),
    }


def from_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    scrub: Scrubber,
    *,
    model: str = "",
) -> ProviderError:
    """The error an HTTP answer means. `model` is the one asked for, "" where none was."""
    about: dict[str, Any] = {
        "status": status,
        "retry_after": retry_after(headers.get("retry-after")),
        "request_id": scrub(request_id(headers)),
    }
    if 300 <= status < 400:
        message = f"Redirects to {_host(headers.get('location', ''))}."
        return ProviderError(ErrorKind.REDIRECT, scrub(message), **about)
    try:
        payload = loads(body)
    except ValueError:
        payload = None
    message, codes, param = _details(payload)
    aws = aws_name(headers.get("x-amzn-errortype", ""))
    codes = [aws, *codes] if aws else codes
    if about["retry_after"] is None:
        about["retry_after"] = _retry_delay(payload)
    kind = _BY_STATUS.get(status) or (ErrorKind.SERVER if status >= 500 else ErrorKind.BAD_REQUEST)
    if (
        kind is ErrorKind.ENDPOINT_NOT_FOUND
        and model
        and (param == "model" or model in message or message.startswith(_NO_SUCH_MODEL))
    ):
        kind = ErrorKind.MODEL_NOT_FOUND
    if status == 400:
        kind = _by_prefix(message) or kind
    kind = next((_BY_CODE[code] for code in codes if code in _BY_CODE), kind)
    if name := next((code for code in map(aws_name, codes) if code in _BY_AWS_NAME), ""):
        kind = _by_aws_name(name, message) or kind
    if not message:
        message = excerpt(body)
    elif param and param not in message:
        message = f"{message} ({param})"
    return ProviderError(kind, scrub(message), code=scrub(codes[0])[:100] if codes else "", **about)


def from_payload(
    payload: Any, scrub: Scrubber, *, otherwise: ErrorKind = ErrorKind.SERVER
) -> ProviderError:
    """The error that came under a status of 200; `otherwise` is its kind if nothing in it tells."""
    message, codes, _ = _details(payload)
    tables = _BY_CODE | _BY_CODE_IN_STREAM
    kind = next((tables[code] for code in codes if code in tables), None)
    status = next((int(code) for code in codes if re.fullmatch("[45][0-9]{2}", code)), None)
    if kind is None and status:  # OpenRouter gives the status of the model's host as the code
        kind = _BY_STATUS.get(status) or (
            ErrorKind.SERVER if status >= 500 else ErrorKind.BAD_REQUEST
        )
    kind = _by_prefix(message) or kind or otherwise
    return ProviderError(
        kind,
        scrub(message),
        code=scrub(codes[0])[:100] if codes else "",
        retry_after=_retry_delay(payload),
    )


def from_aws_exception(name: str, payload: bytes, scrub: Scrubber) -> ProviderError:
    """The error that an exception in the middle of AWS's event stream means. `name` is its type,
    `payload` its JSON: `{"message"}`, for a model's own fault also `{"originalMessage"}`."""
    try:
        said = loads(payload)
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    texts = [text for key in ("message", "Message") if isinstance(text := said.get(key), str)]
    message = texts[0] if texts else excerpt(payload)
    name = aws_name(name)
    kind = _by_aws_name(name, message) or ErrorKind.SERVER
    if isinstance(original := said.get("originalMessage"), str) and original not in message:
        message = f"{message} ({original})"
    return ProviderError(kind, scrub(message), code=scrub(name)[:100])


def aws_name(text: str) -> str:
    """`ThrottlingException` of `throttlingException`, `ThrottlingException:http://…` and
    `com.amazon.coral#ThrottlingException`."""
    name = text.partition(":")[0].rpartition("#")[2].strip()
    return name[:1].upper() + name[1:]


def _by_aws_name(name: str, message: str) -> ErrorKind | None:
    found = _by_prefix(message.removeprefix(_MODEL_SAID), _AWS_PREFIXES)
    return found or _BY_AWS_NAME.get(name)


def from_exception(error: Exception, scrub: Scrubber, *, answering: bool) -> ProviderError:
    """The error a failure of the connection means; `answering`: the reply had begun.

    A connection that breaks before the reply begins is `connect`: most often one that was kept
    open and that the provider had closed meanwhile.
    """
    text = scrub(str(error))
    if isinstance(error, EgressBlocked):
        return ProviderError(ErrorKind.EGRESS, text)
    if isinstance(error, httpx.ConnectTimeout):
        return ProviderError(ErrorKind.CONNECT, "No connection in time.")
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return ProviderError(ErrorKind.TIMEOUT, "No answer in time.")
    if isinstance(error, httpx.ConnectError) and _has_cause(error, ssl.SSLError):
        return ProviderError(ErrorKind.TLS, text)
    if isinstance(error, httpx.NetworkError | httpx.ProxyError):
        return ProviderError(ErrorKind.TRUNCATED if answering else ErrorKind.CONNECT, text)
    if isinstance(error, httpx.RemoteProtocolError):
        # h11 has no type for an end that came too early
        if text.startswith("peer closed connection"):
            return ProviderError(ErrorKind.TRUNCATED, text)
        if text.startswith("Server disconnected"):
            return ProviderError(ErrorKind.CONNECT, text)
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | UnicodeError):
        return ProviderError(ErrorKind.CONNECT, "The address can't be used.")
    return ProviderError(ErrorKind.PROTOCOL, text)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait, at most a day, from `Retry-After` as seconds or as an HTTP date."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER) if isfinite(seconds) else None


def request_id(headers: Mapping[str, str]) -> str:
    """The id to quote to the provider's support, "" if it gave none."""
    names = ("request-id", "x-request-id", "x-amzn-requestid")
    value = next((found for name in names if (found := headers.get(name))), "")
    return value if re.fullmatch(r"[\x21-\x7e]{1,100}", value) else ""


def excerpt(body: bytes) -> str:
    """The first words of a page or a plain text, without markup."""
    text = clean(body[:4096].decode("utf-8", "replace"))
    return " ".join(_TAGS.sub(" ", text).split())[:MAX_EXCERPT]


def _details(payload: Any) -> tuple[str, list[str], str]:
    """`(message, [code, type], param)` of the error formats in use:

    {"type": "error", "error": {"type", "message"}}      Anthropic
    {"error": {"message", "type", "code", "param"}}      OpenAI
    {"error": {"code", "message", "status", "details"}}  Google, and the same in a list of one
    {"error": "…"}  {"object": "error", "message", …}    Ollama, LM Studio, older vLLM
    {"detail": "…"}  {"message": "…"}                    gateways
    {"message" or "Message", "__type"}                   AWS
    {"Error": {"Code", "Message"}}                       STS
    """
    payload = unwrapped(payload)
    if not isinstance(payload, dict):
        return "", [], ""
    error = payload.get("error") or payload.get("Error")
    if isinstance(error, str):
        return error, [], ""
    if not isinstance(error, dict):
        error = payload
    message = next((text for key in _MESSAGES if isinstance(text := error.get(key), str)), "")
    found = [code for key in _CODES if isinstance(code := error.get(key), str | int)]
    codes = [str(code).rpartition("#")[2] for code in found]  # AWS puts a namespace before
    if isinstance(status := error.get("status"), str):
        codes = [*_google_reasons(error), status, *codes]
    param = error.get("param")
    return message, codes, param if isinstance(param, str) else ""


def unwrapped(payload: Any) -> Any:
    """An error that came as a list of one, as Google's sometimes do, without the list."""
    if isinstance(payload, list) and len(payload) == 1 and isinstance(payload[0], dict):
        return payload[0]
    return payload


def _google_details(error: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(last word of the type, the detail) of `google.rpc.Status.details`."""
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict):
            yield str(detail.get("@type", "")).rpartition(".")[2], detail


def _google_reasons(error: dict[str, Any]) -> list[str]:
    """What the details say more exactly than the status. A quota that is used up for the day, or
    that has no time to wait for, isn't a rate."""
    reasons: list[str] = []
    exceeded = waits = for_the_day = False
    for kind, detail in _google_details(error):
        if kind == "ErrorInfo" and isinstance(reason := detail.get("reason"), str):
            reasons.append(reason)
        elif kind == "RetryInfo":
            waits = True
        elif kind == "QuotaFailure":
            exceeded = True
            found = detail.get("violations")
            for one in found if isinstance(found, list) else ():
                quota = one.get("quotaId") if isinstance(one, dict) else None
                for_the_day |= isinstance(quota, str) and "PerDay" in quota
    if for_the_day or (exceeded and not waits):
        reasons.insert(0, "RESOURCE_QUOTA_EXCEEDED")
    return reasons


def _retry_delay(payload: Any) -> float | None:
    """Seconds to wait, from Google's `RetryInfo`."""
    payload = unwrapped(payload)
    error = payload.get("error") if isinstance(payload, dict) else None
    for kind, detail in _google_details(error):
        delay = detail.get("retryDelay") if kind == "RetryInfo" else None
        if isinstance(delay, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?s", delay):
            return min(float(delay[:-1]), MAX_RETRY_AFTER)
    return None


def _by_prefix(
    message: str, prefixes: tuple[tuple[str, ErrorKind], ...] = _PREFIXES
) -> ErrorKind | None:
    start = message[:60].lower()
    return next((kind for prefix, kind in prefixes if start.startswith(prefix)), None)


def _host(location: str) -> str:
    try:
        url = httpx.URL(location)
    except (httpx.InvalidURL, UnicodeError):
        return "an unreadable address"
    return f"{url.scheme}://{url.netloc.decode('ascii')}" if url.host else "another path"


def _has_cause(error: BaseException | None, kind: type[BaseException]) -> bool:
    for _ in range(8):
        if error is None or isinstance(error, kind):
            break
        error = error.__cause__ or error.__context__
    return isinstance(error, kind)
