"""Every way Bedrock fails comes out as the one kind that names it, with nothing of a secret."""

from __future__ import annotations

import logging
import traceback

import httpx
import orjson
import pytest

from connections import providers
from connections.providers.base import ErrorKind
from tests.connections.aws import IAM, SESSION, aws_client, target
from tests.connections.wires import asking, canned, client, replies, text_of
from tests.fakes.bedrock import EXPIRED_ACCESS_KEY, SESSION_TOKEN, event, exception, frame
from tests.fakes.server import GOOD_KEY

HI = event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "hi"}})
STOP = event("messageStop", {"stopReason": "end_turn"})
USAGE = event("metadata", {"usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}})
STREAM = {"content-type": "application/vnd.amazon.eventstream"}


@pytest.fixture(autouse=True)
def forgotten(fakes):
    fakes.reset()


@pytest.mark.parametrize(
    ("model", "kind", "status"),
    [
        ("err-401", "auth", 403),
        ("err-403", "forbidden", 403),
        ("err-404", "model_not_found", 400),
        ("no-such-model", "model_not_found", 400),
        ("err-429", "rate_limited", 429),
        ("err-quota", "quota", 400),
        ("err-400", "bad_request", 400),
        ("err-400-context", "context_too_long", 400),
        ("err-413", "too_large", 413),
        ("err-500", "server", 500),
        ("err-503", "overloaded", 503),
        ("err-529", "overloaded", 503),
        ("redirect-301", "redirect", 301),
        ("redirect-302", "redirect", 302),
        ("redirect-303", "redirect", 303),
        ("redirect-307", "redirect", 307),
        ("redirect-308", "redirect", 308),
        ("html", "protocol", None),
        ("json-200", "protocol", None),
    ],
)
@pytest.mark.parametrize("auth", ["iam_credentials", "api_key"])
async def test_a_refusal_before_the_reply_has_its_kind(fakes, auth, model, kind, status):
    async with client() as http:
        events, error = await replies(http, target(fakes, auth), asking(model))
    assert (events, error and error.kind, error and error.status) == ([], kind, status)
    assert fakes.requests(path="/_elsewhere") == []


@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        ("cut", "truncated", "This reply is cut off in the middle of a"),
        ("early-end", "truncated", "This reply ends without its last event"),
        ("stall", "timeout", "And then nothing"),
        ("malformed", "protocol", "So far so good"),
        ("stall-first", "timeout", ""),
        ("error-mid", "overloaded", "Halfway there"),
    ],
)
async def test_a_failure_in_the_reply_keeps_what_came_before(fakes, model, kind, text):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking(model, idle_timeout=0.5))
    assert (text_of(events), error and error.kind) == (text, kind)


async def test_the_time_to_wait_and_the_request_id_come_along(fakes):
    async with client() as http:
        _, error = await replies(http, target(fakes), asking("err-429-after-7"))
    assert error.retry_after == 7
    assert error.code == "ThrottlingException"
    assert error.request_id.startswith("req_fake_")


async def test_an_endless_reply_is_cut_off(fakes):
    async with client(max_bytes=1_000_000) as http:
        request = asking("endless", max_tokens=10**9)
        events, error = await replies(http, target(fakes), request)
    assert error.kind is ErrorKind.PROTOCOL
    assert len(text_of(events)) < 1_000_000


async def test_what_pretends_to_be_huge_is_not_collected(fakes):
    async with client() as http:
        _, error = await replies(http, target(fakes), asking("huge-line"))
    assert error.kind is ErrorKind.PROTOCOL


async def test_closing_the_stream_closes_the_connection(fakes):
    async with client() as http:
        stream = providers.get("bedrock").stream(http, target(fakes), asking("fast-30tps"))
        await anext(stream)
        await stream.aclose()
        fakes.wait_for(lambda: fakes.requests(end="aborted"), seconds=5)


# -- the way there ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        ("http://127.0.0.1:9", "connect"),
        ("http://169.254.169.254", "egress"),
        ("http://no-such-host.invalid", "connect"),
        ("http://[::1", "connect"),
        ("nonsense", "connect"),
    ],
)
async def test_an_address_that_does_not_answer_has_its_kind(base, kind):
    async with client() as http:
        _, error = await replies(http, target(None, base_url=base), asking("echo"))
    assert error.kind == kind


async def test_plain_http_behind_https_is_a_tls_error(fakes):
    where = target(fakes, base_url=fakes.bedrock.replace("http://", "https://"))
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.TLS


async def test_a_wrong_path_is_an_endpoint_that_is_not_there(fakes):
    async with client() as http:
        where = target(fakes, base_url=f"{fakes.bedrock}/nowhere")
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.ENDPOINT_NOT_FOUND


@pytest.mark.parametrize("region", ["", "us-east-1.evil.example/", "US", "a" * 41])
async def test_a_region_that_is_none_leads_nowhere(region):
    async with canned() as http:
        _, error = await replies(http, target(None, region=region), asking("echo"))
    assert error.kind is ErrorKind.CONNECT


# -- credentials -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "secret"),
    [
        ("iam_credentials", IAM | {"secret_access_key": "wrong/0123456789/0123456789/wrong"}),
        ("iam_credentials", IAM | {"access_key_id": "AKIAFAKEWRONG0000001"}),
        ("iam_credentials", SESSION | {"session_token": "wrong-token-0123456789"}),
        ("iam_credentials", {k: v for k, v in SESSION.items() if k != "session_token"}),
        ("iam_credentials", SESSION | {"secret_access_key": "wrong/0123456789/0123456789"}),
        ("iam_credentials", SESSION | {"access_key_id": EXPIRED_ACCESS_KEY}),
        ("iam_credentials", {}),
        ("api_key", {"api_key": "sk-fake-wrong-1234567890-wxyz"}),
        ("api_key", {"api_key": "sk-line\nbreak"}),
    ],
)
async def test_wrong_credentials_are_an_auth_error_that_quotes_none(fakes, caplog, auth, secret):
    caplog.set_level(logging.DEBUG)
    async with client() as http:
        where = target(fakes, auth, secret=secret)
        events, error = await replies(http, where, asking("echo"))
    assert (events, error.kind) == ([], ErrorKind.AUTH)
    shown = "".join(traceback.format_exception(error)) + repr(vars(error)) + caplog.text
    for value in secret.values():
        for start in range(len(value) - 8):
            assert value[start : start + 8] not in shown


async def test_a_signature_for_another_region_is_refused(fakes):
    """The fake, as AWS, refuses it: else a wrong region would go unnoticed here."""
    async with aws_client(fakes) as http:

        async def elsewhere(request):
            request.headers["host"] = "bedrock-runtime.eu-west-1.amazonaws.com"

        http.event_hooks = {"request": [elsewhere]}
        _, error = await replies(http, target(None), asking("echo"))
    assert error.kind is ErrorKind.AUTH


# -- what AWS calls it -----------------------------------------------------------------------------


def over_http(status: int, name: str, message: str, *, how: str) -> httpx.AsyncClient:
    headers, body = {}, {"message": message}
    match how:
        case "header":
            headers["x-amzn-errortype"] = name
        case "header with address":
            headers["x-amzn-errortype"] = f"{name}:http://internal.amazon.com/coral/com.amazon/"
        case "type":
            body["__type"] = f"com.amazon.coral.service#{name}"
        case "STS":
            body = {"Error": {"Code": name, "Message": message, "Type": "Sender"}}
        case "capital":
            headers["x-amzn-errortype"] = name
            body = {"Message": message}
    return canned(orjson.dumps(body), status=status, headers=headers)


@pytest.mark.parametrize("how", ["header", "header with address", "type", "STS", "capital"])
@pytest.mark.parametrize(
    ("status", "name", "message", "kind"),
    [
        (403, "AccessDeniedException", "not authorized to perform", "forbidden"),
        (403, "AccessDeniedException", "Authentication failed: Please make sure", "auth"),
        (403, "AccessDeniedException", "Bearer Token has expired", "auth"),
        (403, "UnrecognizedClientException", "The security token is invalid.", "auth"),
        (403, "InvalidSignatureException", "Signature expired", "auth"),
        (403, "ExpiredTokenException", "expired", "auth"),
        (403, "InvalidClientTokenId", "invalid", "auth"),
        (403, "SignatureDoesNotMatch", "no", "auth"),
        (400, "IncompleteSignatureException", "no", "auth"),
        (403, "MissingAuthenticationTokenException", "no", "auth"),
        (429, "ThrottlingException", "Too many requests, please wait", "rate_limited"),
        (400, "ThrottlingException", "Rate exceeded", "rate_limited"),
        (429, "ThrottlingException", "Too many tokens per day, please wait", "quota"),
        (400, "ServiceQuotaExceededException", "", "quota"),
        (429, "ModelNotReadyException", "", "overloaded"),
        (408, "ModelTimeoutException", "", "timeout"),
        (424, "ModelErrorException", "", "server"),
        (424, "ModelStreamErrorException", "", "server"),
        (404, "ResourceNotFoundException", "", "model_not_found"),
        (
            404,
            "ResourceNotFoundException",
            "Model use case details have not been submitted",
            "forbidden",
        ),
        (404, "UnknownOperationException", "", "endpoint_not_found"),
        (500, "InternalServerException", "", "server"),
        (503, "ServiceUnavailableException", "", "overloaded"),
        (400, "ValidationException", "Malformed input request", "bad_request"),
        (400, "ValidationException", "401 throttling quota access denied", "bad_request"),
        (400, "ValidationException", "Input is too long for requested model.", "context_too_long"),
        (
            400,
            "ValidationException",
            "The model returned the following errors: Input is too long for requested model.",
            "context_too_long",
        ),
        (
            400,
            "ValidationException",
            "The model returned the following errors: prompt is too long: 9 tokens > 8 maximum",
            "context_too_long",
        ),
        (
            400,
            "ValidationException",
            "The provided model identifier is invalid.",
            "model_not_found",
        ),
        (
            400,
            "ValidationException",
            "Invocation of model ID x with on-demand throughput isn\u2019t supported.",
            "model_not_found",
        ),
        (
            400,
            "ValidationException",
            "1 validation error detected: Value at 'body' failed to satisfy constraint",
            "too_large",
        ),
        (409, "ConflictException", "", "bad_request"),
        (499, "SomethingNewException", "", "bad_request"),
        (599, "SomethingNewException", "", "server"),
    ],
)
async def test_names_and_known_beginnings_tell_the_kind(status, name, message, kind, how):
    async with over_http(status, name, message, how=how) as http:
        _, error = await replies(http, target(None), asking("m"))
    assert (error.kind, error.status, error.code) == (kind, status, name)


@pytest.mark.parametrize(
    ("name", "message", "kind"),
    [
        ("throttlingException", "slow down", "rate_limited"),
        ("internalServerException", "", "server"),
        ("modelStreamErrorException", "the model broke", "server"),
        ("serviceUnavailableException", "", "overloaded"),
        ("validationException", "no", "bad_request"),
        ("validationException", "Input is too long for requested model.", "context_too_long"),
        ("modelTimeoutException", "", "timeout"),
        ("accessDeniedException", "", "forbidden"),
        ("expiredTokenException", "", "auth"),
        ("somethingNewException", "", "server"),
        ("", "", "server"),
    ],
)
async def test_exceptions_in_the_stream_have_their_kind(name, message, kind):
    said = {"message": message, "originalMessage": "of the host", "originalStatusCode": 500}
    async with canned(HI, exception(name, said), STOP, headers=STREAM) as http:
        events, error = await replies(http, target(None), asking("m"))
    assert (text_of(events), error.kind) == ("hi", kind)
    assert "of the host" in error.message


async def test_an_error_in_the_stream_is_read_from_its_headers():
    headers = {":message-type": "error", ":error-code": "InternalFailure", ":error-message": "oh"}
    async with canned(HI, frame(headers, b""), headers=STREAM) as http:
        _, error = await replies(http, target(None), asking("m"))
    assert (error.kind, error.message) == (ErrorKind.SERVER, "oh")


async def test_exceptions_in_the_stream_quote_no_secret():
    said = {"message": f"token {SESSION_TOKEN} of {GOOD_KEY}", "originalMessage": SESSION_TOKEN}
    async with canned(exception("validationException", said), headers=STREAM) as http:
        where = target(None, secret=SESSION | {"extra": GOOD_KEY})
        _, error = await replies(http, where, asking("m"))
    assert SESSION_TOKEN[:8] not in str(error)
    assert GOOD_KEY not in str(error)


@pytest.mark.parametrize("payload", [b"", b"[1]", b"\xff", b"nonsense", b'{"message": 5}'])
async def test_an_exception_that_says_nothing_readable_is_still_one(payload):
    headers = {":message-type": "exception", ":exception-type": "throttlingException"}
    async with canned(HI, frame(headers, payload), headers=STREAM) as http:
        _, error = await replies(http, target(None), asking("m"))
    assert error.kind is ErrorKind.RATE_LIMITED


# -- the end ---------------------------------------------------------------------------------------


def damaged(message: bytes) -> bytes:
    return message[:-1] + bytes([message[-1] ^ 1])


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        ([HI], "truncated"),
        ([HI, USAGE], "truncated"),
        ([HI, HI[:20]], "truncated"),
        ([HI, STOP], None),
        ([HI, STOP, USAGE], None),
        ([HI, STOP, USAGE[:30]], None),
        ([HI, STOP, httpx.ReadError("")], None),
        ([HI, STOP, damaged(USAGE)], None),
        ([HI, damaged(STOP)], "protocol"),
        ([HI, damaged(HI), STOP], "protocol"),
        ([HI, httpx.ReadError("")], "truncated"),
        ([HI, event("messageStop", {}), USAGE], "truncated"),
        ([HI, event("messageStop", {"stopReason": 5})], "truncated"),
        ([HI, event("messageStop", {"stopReason": "of tomorrow"})], None),
        ([HI, event("somethingNew", {}), STOP], None),
    ],
)
async def test_a_reply_is_whole_only_with_its_message_stop(chunks, kind):
    async with canned(*chunks, headers=STREAM) as http:
        events, error = await replies(http, target(None), asking("m"))
    assert text_of(events) == "hi"
    assert (error.kind if error else None) == kind


ODD = [
    {"contentBlockIndex": None, "delta": {"text": "x"}},
    {"contentBlockIndex": "0", "delta": {"toolUse": {"input": "x"}}},
    {"contentBlockIndex": 0, "delta": {"toolUse": {"input": 5}}},
    {"contentBlockIndex": 0, "delta": {"toolUse": None}},
    {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": 5, "signature": []}}},
    {"contentBlockIndex": 0, "delta": {"reasoningContent": {"redactedContent": "?"}}},
    {"contentBlockIndex": 0, "delta": {"text": 5}},
    {"contentBlockIndex": 0, "delta": []},
    {"contentBlockIndex": {}, "start": {"toolUse": {"name": 1}}},
    {},
]


@pytest.mark.parametrize("kind", ["contentBlockStart", "contentBlockDelta", "contentBlockStop"])
@pytest.mark.parametrize("data", ODD)
async def test_odd_events_are_no_unmapped_exception(kind, data):
    async with canned(event(kind, data), event(kind, data), STOP, headers=STREAM) as http:
        _, error = await replies(http, target(None), asking("m"))
    assert error is None


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'"text"', b"\xff"])
async def test_an_event_that_is_no_object_is_a_protocol_error(payload):
    headers = {":message-type": "event", ":event-type": "contentBlockDelta"}
    async with canned(HI, frame(headers, payload), STOP, headers=STREAM) as http:
        _, error = await replies(http, target(None), asking("m"))
    assert error.kind is ErrorKind.PROTOCOL


async def test_too_many_blocks_are_a_protocol_error():
    use = {"start": {"toolUse": {"toolUseId": "a", "name": "b"}}}
    starts = [event("contentBlockStart", {"contentBlockIndex": n, **use}) for n in range(1100)]
    async with canned(*starts, STOP, headers=STREAM) as http:
        _, error = await replies(http, target(None), asking("m"))
    assert error.kind is ErrorKind.PROTOCOL
