"""Every way that Vertex AI fails, with Gemini and with Claude, comes out as the one kind for it."""

from __future__ import annotations

import logging
import traceback

import orjson
import pytest

from connections import providers
from connections.providers import google_token
from connections.providers.base import ErrorKind, ProviderError
from tests.connections.vertex import PUBLISHERS, spoken, target
from tests.connections.wires import CLOCK, asking, canned, client, replies, text_of
from tests.fakes.vertex import service_account


@pytest.fixture(autouse=True)
def no_tokens():
    google_token._kept.clear()


async def failure(fakes, model, *, where=None, **more) -> ProviderError:
    async with client() as http:
        _, error = await replies(http, where or target(fakes), asking(model, **more))
    assert error
    return error


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize(
    ("model", "kind", "status"),
    [
        ("err-401", "auth", 401),
        ("err-403", "forbidden", 403),
        ("err-404", "model_not_found", 404),
        ("no-such-model", "model_not_found", 404),
        ("err-429", "rate_limited", 429),
        ("err-quota", "quota", 429),
        ("err-400", "bad_request", 400),
        ("err-400-context", "context_too_long", 400),
        ("err-413", "too_large", 413),
        ("err-500", "server", 500),
        ("err-503", "overloaded", 503),
        ("redirect-301", "redirect", 301),
        ("redirect-302", "redirect", 302),
        ("redirect-303", "redirect", 303),
        ("redirect-307", "redirect", 307),
        ("redirect-308", "redirect", 308),
        ("html", "protocol", None),
        ("json-200", "protocol", None),
    ],
)
async def test_a_refusal_before_the_reply_has_its_kind(fakes, publisher, model, kind, status):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking(spoken(publisher, model)))
    assert (events, error and error.kind, error and error.status) == ([], kind, status)


@pytest.mark.parametrize(("publisher", "status"), [("google", 503), ("anthropic", 529)])
async def test_an_overloaded_host_is_overloaded(fakes, publisher, status):
    error = await failure(fakes, spoken(publisher, "err-529"))
    assert (error.kind, error.status) == (ErrorKind.OVERLOADED, status)


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        ("cut", "truncated", "This reply is cut off in the middle of a"),
        ("early-end", "truncated", "This reply ends without its last event"),
        ("stall", "timeout", "And then nothing"),
        ("malformed", "protocol", "So far so good"),
        ("error-mid", "overloaded", "Halfway there"),
        ("stall-first", "timeout", ""),
    ],
)
async def test_a_failure_in_the_reply_keeps_what_came_before(fakes, publisher, model, kind, text):
    async with client() as http:
        events, error = await replies(
            http, target(fakes), asking(spoken(publisher, model), idle_timeout=0.5)
        )
    assert (text_of(events), error and error.kind) == (text, kind)


@pytest.mark.parametrize("publisher", PUBLISHERS)
async def test_the_time_to_wait_comes_along(fakes, publisher):
    error = await failure(fakes, spoken(publisher, "err-429-after-7"))
    assert error.retry_after == 7


@pytest.mark.parametrize("publisher", PUBLISHERS)
async def test_a_redirect_takes_nothing_to_the_second_host(fakes, publisher):
    fakes.reset()
    await failure(fakes, spoken(publisher, "redirect"))
    assert fakes.requests(path="/_elsewhere") == []


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize(
    ("base", "kind"),
    [
        ("http://127.0.0.1:9", "connect"),
        ("https://no-such-host.example", "connect"),
        ("http://169.254.169.254", "egress"),
        ("http://[::1", "connect"),
    ],
)
async def test_an_address_that_cannot_be_reached(fakes, publisher, base, kind):
    where = target(fakes, base_url=base)
    assert (await failure(fakes, spoken(publisher, "echo"), where=where)).kind == kind


@pytest.mark.parametrize("publisher", PUBLISHERS)
async def test_plain_http_behind_https_is_a_tls_error(fakes, publisher):
    where = target(fakes, base_url=fakes.vertex.replace("http://", "https://"))
    assert (await failure(fakes, spoken(publisher, "echo"), where=where)).kind is ErrorKind.TLS


@pytest.mark.parametrize("publisher", PUBLISHERS)
async def test_a_wrong_path_is_an_endpoint_that_is_not_there(fakes, publisher):
    where = target(fakes, base_url=f"{fakes.url}/vertex/nowhere")
    error = await failure(fakes, spoken(publisher, "echo"), where=where)
    assert error.kind is ErrorKind.ENDPOINT_NOT_FOUND


@pytest.mark.parametrize("publisher", PUBLISHERS)
async def test_another_project_is_forbidden(fakes, publisher):
    where = target(fakes, project="somebody-elses")
    error = await failure(fakes, spoken(publisher, "echo"), where=where)
    assert (error.kind, error.code) == (ErrorKind.FORBIDDEN, "IAM_PERMISSION_DENIED")


async def test_a_publisher_without_a_wire_is_named(fakes):
    fakes.reset()
    for model in ("mistralai/mistral-large", "publishers/meta/models/llama-4"):
        error = await failure(fakes, model)
        assert error.kind is ErrorKind.MODEL_NOT_FOUND
        assert model.replace("publishers/", "").partition("/")[0] in error.message
    assert [one["path"] for one in fakes.requests()] == ["/google/token"]


async def test_a_call_that_the_model_cannot_write_is_a_failure_of_the_server(fakes):

    error = await failure(fakes, "tools-bad-args", tools=[CLOCK])
    assert (error.kind, error.code) == (ErrorKind.SERVER, "MALFORMED_FUNCTION_CALL")
    assert "current_time" in error.message


@pytest.mark.parametrize("publisher", PUBLISHERS)
async def test_an_endless_reply_and_an_endless_line_are_cut_off(fakes, publisher):
    async with client(max_bytes=1_000_000) as http:
        asked = asking(spoken(publisher, "endless"), max_tokens=10**9)
        events, error = await replies(http, target(fakes), asked)
    assert error.kind is ErrorKind.PROTOCOL
    assert len(text_of(events)) < 1_000_000
    error = await failure(fakes, spoken(publisher, "huge-line"))
    assert "4194304 bytes" in error.message


@pytest.mark.parametrize("publisher", PUBLISHERS)
async def test_closing_the_stream_closes_the_connection(fakes, publisher):
    fakes.reset()
    async with client() as http:
        asked = asking(spoken(publisher, "fast-30tps"))
        stream = providers.get("vertex").stream(http, target(fakes), asked)
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        fakes.wait_for(lambda: fakes.requests(end="aborted"), seconds=2)


# -- Google's errors -------------------------------------------------------------------------------


def status(word: str, code: int, *details: tuple[str, dict], message: str = "no") -> dict:
    listed = [{"@type": f"type.googleapis.com/google.rpc.{kind}", **rest} for kind, rest in details]
    return {"error": {"code": code, "message": message, "status": word, "details": listed}}


def reason(word: str) -> tuple[str, dict]:
    return "ErrorInfo", {"reason": word, "domain": "googleapis.com"}


def quota(name: str) -> tuple[str, dict]:
    return "QuotaFailure", {"violations": [{"quotaId": name, "quotaMetric": "m"}]}


DELAY = ("RetryInfo", {"retryDelay": "37.5s"})
SHORT_FORM = "Unable to submit request because the input token count is 36872 but model only takes"
CASES = [
    (401, status("UNAUTHENTICATED", 401), "auth", None),
    (401, status("UNAUTHENTICATED", 401, reason("ACCESS_TOKEN_EXPIRED")), "auth", None),
    (403, status("PERMISSION_DENIED", 403), "forbidden", None),
    (403, status("PERMISSION_DENIED", 403, reason("SERVICE_DISABLED")), "forbidden", None),
    (403, status("PERMISSION_DENIED", 403, reason("BILLING_DISABLED")), "quota", None),
    (429, status("RESOURCE_EXHAUSTED", 429), "rate_limited", None),
    (429, status("RESOURCE_EXHAUSTED", 429, DELAY), "rate_limited", 37.5),
    (429, status("RESOURCE_EXHAUSTED", 429, quota("PerMinute"), DELAY), "rate_limited", 37.5),
    (429, status("RESOURCE_EXHAUSTED", 429, quota("PerMinute")), "quota", None),
    (429, status("RESOURCE_EXHAUSTED", 429, DELAY, quota("RequestsPerDay")), "quota", 37.5),
    (404, status("NOT_FOUND", 404), "endpoint_not_found", None),
    (404, status("NOT_FOUND", 404, message="Publisher Model `x` was not"), "model_not_found", None),
    (400, status("INVALID_ARGUMENT", 400), "bad_request", None),
    (
        400,
        status("INVALID_ARGUMENT", 400, message="The input token count (9) exceeds the maximum"),
        "context_too_long",
        None,
    ),
    (400, status("INVALID_ARGUMENT", 400, message=SHORT_FORM), "context_too_long", None),
    (400, status("FAILED_PRECONDITION", 400), "forbidden", None),
    (400, status("OUT_OF_RANGE", 400), "bad_request", None),
    (499, status("CANCELLED", 499), "server", None),
    (500, status("INTERNAL", 500), "server", None),
    (503, status("UNAVAILABLE", 503), "overloaded", None),
    (504, status("DEADLINE_EXCEEDED", 504), "timeout", None),
    # words of their own in a message name nothing
    (400, status("INVALID_ARGUMENT", 400, message="429 RESOURCE_EXHAUSTED"), "bad_request", None),
    # details that are none
    (429, {"error": {"status": "RESOURCE_EXHAUSTED", "details": "x"}}, "rate_limited", None),
    (429, {"error": {"status": "X", "details": [1, {"@type": 3}]}}, "rate_limited", None),
    (
        429,
        status("RESOURCE_EXHAUSTED", 429, ("RetryInfo", {"retryDelay": "-1s"})),
        "rate_limited",
        None,
    ),
]


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("model", ["gemini-2.5-pro", "claude-sonnet-4-5"])
@pytest.mark.parametrize(("code", "body", "kind", "wait"), CASES)
async def test_googles_errors_are_named_by_status_and_details(
    fakes, code, body, kind, wait, model, listed
):
    google_token._kept[google_token._name(target(fakes))] = google_token.Token("t" * 20, 1e12)
    content = orjson.dumps([body] if listed else body)
    async with canned(content, status=code) as http:
        _, error = await replies(http, target(fakes), asking(model))
    assert (error.kind, error.status, error.retry_after) == (kind, code, wait)


@pytest.mark.parametrize(
    ("body", "kind", "wait"),
    [(body, kind, wait) for code, body, kind, wait in CASES if "NOT_FOUND" not in str(body)],
)
async def test_the_same_errors_in_the_middle_of_a_stream(fakes, body, kind, wait):
    google_token._kept[google_token._name(target(fakes))] = google_token.Token("t" * 20, 1e12)
    part = {"candidates": [{"content": {"role": "model", "parts": [{"text": "half"}]}}]}
    lines = [b"data: " + orjson.dumps(one) + b"\r\n\r\n" for one in (part, body)]
    async with canned(*lines, headers={"content-type": "text/event-stream"}) as http:
        events, error = await replies(http, target(fakes), asking("gemini-2.5-pro"))
    assert text_of(events) == "half"
    expected = "server" if kind == "rate_limited" and "'X'" in str(body) else kind
    assert (error.kind, error.retry_after) == (expected, wait)


async def test_what_comes_in_the_same_bytes_as_an_error_is_kept(fakes):
    google_token._kept[google_token._name(target(fakes))] = google_token.Token("t" * 20, 1e12)
    part = {"candidates": [{"content": {"role": "model", "parts": [{"text": "half"}]}}]}
    lines = [b"data: " + orjson.dumps(one) + b"\r\n\r\n" for one in (part, status("INTERNAL", 500))]
    async with canned(b"".join(lines), headers={"content-type": "text/event-stream"}) as http:
        events, error = await replies(http, target(fakes), asking("gemini-2.5-pro"))
    assert (text_of(events), error.kind) == ("half", ErrorKind.SERVER)


# -- no secret in an error -------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gemini-2.5-pro", "claude-sonnet-4-5"])
async def test_an_error_quotes_neither_the_token_nor_the_key(fakes, model, caplog):
    caplog.set_level(logging.DEBUG)
    token = "ya29.c0ffee-QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo"
    account = orjson.loads(service_account())
    line = account["private_key"].splitlines()[3]
    google_token._kept[google_token._name(target(fakes))] = google_token.Token(token, 1e12)
    said = f"Bearer {token} of {account['private_key_id']} and {line[5:40]} at example.com"
    body = orjson.dumps(status("UNAUTHENTICATED", 401, message=said))
    async with canned(body, status=401) as http:
        _, error = await replies(http, target(fakes), asking(model))
    written = "".join(traceback.format_exception(error)) + error.message + caplog.text
    for secret in (token, token[5:20], account["private_key_id"], line[5:40], line[10:20]):
        assert secret not in written
    assert "at example.com" in error.message


async def test_what_is_no_secret_of_the_file_stays_readable(fakes):
    google_token._kept[google_token._name(target(fakes))] = google_token.Token("t" * 20, 1e12)
    said = "Enable it at https://console.developers.google.com/apis/api/aiplatform.googleapis.com"
    body = orjson.dumps(status("PERMISSION_DENIED", 403, message=said))
    async with canned(body, status=403) as http:
        _, error = await replies(http, target(fakes), asking("gemini-2.5-pro"))
    assert error.message == said
