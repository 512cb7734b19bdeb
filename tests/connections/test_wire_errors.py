"""Errors are named by status and typed fields, say little, and hold no secret."""

from __future__ import annotations

import base64
import html
import logging
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote, quote_plus

import httpx
import orjson
import pytest

from connections.providers.base import ErrorKind, ModelRequest, ProviderError, Target, Turnlet
from connections.providers.errors import MAX_RETRY_AFTER, Scrubber, excerpt, retry_after
from tests.connections.wires import TYPES, WIRES, asking, canned, replies, text_of

KEY = "sk-live-Q7x2/ab+cd==EFGH"
HEADER = "header-secret-90210"


def where(wire: str = "openai-completions", **more) -> Target:
    about = {"secret": {"api_key": KEY}, "extra_headers": {"X-Team": HEADER}}
    return Target(TYPES[wire], "none", "http://models.example", **(about | more))


async def failure(http: httpx.AsyncClient, wire: str, model: str = "m1") -> ProviderError:
    async with http:
        _, error = await replies(http, where(wire), asking(model))
    assert error
    return error


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "no"}}, "bad_request"),
        (400, {"error": {"code": "context_length_exceeded"}}, "context_too_long"),
        (400, {"error": {"code": 400, "type": "exceed_context_size_error"}}, "context_too_long"),
        (
            400,
            {"error": {"message": "This model's maximum context length is"}},
            "context_too_long",
        ),
        (400, {"error": {"message": "prompt is too long: 9 tokens > 8"}}, "context_too_long"),
        (400, {"error": {"message": "Your credit balance is too low to"}}, "quota"),
        (400, {"error": {"message": "m1: 401 429 rate limit overloaded quota"}}, "bad_request"),
        (401, b"", "auth"),
        (402, {"error": {"message": "Insufficient Balance"}}, "quota"),
        (403, {"error": {"type": "billing_error"}}, "quota"),
        (404, {"error": {"message": "model 'm1' not found"}}, "model_not_found"),
        (404, {"error": {"message": "no", "param": "model"}}, "model_not_found"),
        (404, {"object": "error", "message": "The model `m1` does not exist."}, "model_not_found"),
        (404, {"type": "error", "error": {"message": "Not Found"}}, "endpoint_not_found"),
        (404, {"detail": "Not Found"}, "endpoint_not_found"),
        (404, b"404 page not found", "endpoint_not_found"),
        (405, {"detail": "Method Not Allowed"}, "endpoint_not_found"),
        (408, b"", "timeout"),
        (409, b"", "bad_request"),
        (413, b"<html>nginx</html>", "too_large"),
        (418, b"", "bad_request"),
        (422, {"detail": [{"msg": "x"}]}, "bad_request"),
        (429, {"error": {"type": "insufficient_quota"}}, "quota"),
        (429, {"error": "slow down"}, "rate_limited"),
        (500, b"oops", "server"),
        (502, b"<html>bad gateway</html>", "server"),
        (503, b"", "overloaded"),
        (504, b"", "timeout"),
        (529, b"", "overloaded"),
        (599, b"\xff\xfe\x00", "server"),
        (300, b"", "redirect"),
        (304, b"", "redirect"),
    ],
)
@pytest.mark.parametrize("wire", WIRES)
async def test_status_and_typed_fields_name_the_error(wire, status, body, kind):
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    error = await failure(canned(content, status=status), wire)
    assert (error.kind, error.status) == (kind, status)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"error": {"code": 502, "message": "upstream"}}, "server"),
        ({"error": {"code": 429, "message": "upstream"}}, "rate_limited"),
        ({"error": {"type": "overloaded_error"}}, "overloaded"),
        ({"error": {"type": "invalid_request_error"}}, "bad_request"),
        ({"error": {"type": "api_error"}}, "server"),
        ({"error": {"code": "context_length_exceeded"}}, "context_too_long"),
        ({"error": "broken"}, "server"),
    ],
)
@pytest.mark.parametrize("wire", WIRES)
async def test_errors_in_the_stream_are_named_too(wire, payload, kind):
    http = canned(b"data: " + orjson.dumps(payload) + b"\n\n")
    assert (await failure(http, wire)).kind == kind


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (httpx.ConnectError("refused"), "connect"),
        (httpx.ConnectTimeout(""), "connect"),
        (httpx.ReadTimeout(""), "timeout"),
        (httpx.WriteTimeout(""), "timeout"),
        (httpx.PoolTimeout(""), "timeout"),
        (httpx.ReadError(""), "truncated"),
        (httpx.RemoteProtocolError("illegal chunk header"), "protocol"),
        (httpx.RemoteProtocolError("peer closed connection without …"), "truncated"),
        (httpx.DecodingError(""), "protocol"),
        (httpx.LocalProtocolError(f"Illegal header value {KEY}"), "protocol"),
        (httpx.UnsupportedProtocol(""), "connect"),
    ],
)
async def test_httpx_exceptions_are_named(wire, raised, kind):
    if isinstance(raised, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol):

        def answer(request: httpx.Request) -> httpx.Response:
            raise raised

        http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    else:
        http = canned(b": hello\n\n", raised)
    error = await failure(http, wire)
    assert error.kind == kind
    assert KEY not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("name", ["ReadError", "WriteError", "RemoteProtocolError"])
async def test_a_connection_that_breaks_before_the_reply_is_a_connect_error(wire, name):
    def answer(request: httpx.Request) -> httpx.Response:
        raise getattr(httpx, name)("Server disconnected without sending a response.")

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    assert (await failure(http, wire)).kind is ErrorKind.CONNECT


# -- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"bad key {KEY} sent",
        f"it ended in {KEY[-9:]}",
        f"{KEY[:8]}…",
        "x" * 490 + KEY,
        "x" * 499 + KEY,
        KEY * 100,
        f"header {HEADER}",
        "sk-l****************FGH",
        f"<b>{KEY}</b>",
        f"{KEY[:12]}\n{KEY[12:]}",
    ],
)
@pytest.mark.parametrize("status", [401, 500, 200])
@pytest.mark.parametrize("as_json", [True, False])
async def test_no_message_holds_a_piece_of_a_secret(caplog, text, status, as_json):
    caplog.set_level(logging.DEBUG)
    body = orjson.dumps({"error": {"message": text, "code": text}}) if as_json else text.encode()
    headers = {"x-request-id": "req-1", "location": f"http://{HEADER}/", "retry-after": KEY}
    headers["content-type"] = "application/json" if as_json else "text/html"
    error = await failure(canned(body, status=status, headers=headers), WIRES[0])
    shown = "".join(traceback.format_exception(error)) + repr(vars(error)) + caplog.text
    for secret in (KEY, HEADER):
        for start in range(len(secret) - 8):
            assert secret[start : start + 8] not in shown
    assert "sk-l***" not in shown
    assert len(error.message) <= 500


@pytest.mark.parametrize("secret", ["a", "ab", "a b", "\\d+", "é" * 9])
def test_odd_secrets_are_scrubbed_too(secret):
    scrub = Scrubber(Target("openai_compat", "none", "", secret={"api_key": secret}))
    assert secret not in scrub(f"x{secret}y {secret} {secret}").replace("[secret]", "")


@pytest.mark.parametrize("secret", ["k7#Q!z", "o\"d'd%41&<k>\\e+y/=?#{}|~", "Basic a%20b\"c'/"])
@pytest.mark.parametrize(
    "spell",
    [
        quote,
        quote_plus,
        html.escape,
        repr,
        lambda secret: orjson.dumps(secret).decode(),
        lambda secret: base64.b64encode(secret.encode()).decode(),
    ],
)
def test_a_secret_in_another_spelling_is_scrubbed_too(secret, spell):
    scrub = Scrubber(Target("openai_compat", "none", "", secret={"api_key": secret}))
    spelled = spell(secret).strip("\"'=")
    assert spelled not in scrub(f"You sent {spelled} to us")


async def test_a_request_id_that_is_the_key_is_scrubbed():
    error = await failure(canned(b"", status=500, headers={"x-request-id": KEY}), WIRES[0])
    assert error.request_id == "[secret]"


def test_a_long_secret_is_scrubbed_in_good_time():
    secret = "".join(chr(33 + n % 90) for n in range(16_000))
    scrub = Scrubber(Target("openai_compat", "none", "", secret={"api_key": secret}))
    assert secret[:8] not in scrub(secret + "*" * 5000 + "x" * 20_000)


def test_a_page_leaves_a_short_plain_excerpt():
    page = b"<html><script>var a='<b>'</script><style>x{}</style><h1>Bad\n gateway</h1>" * 500
    assert excerpt(page).startswith("Bad gateway")
    assert "<" not in excerpt(page)
    assert "var" not in excerpt(page)
    assert len(excerpt(page)) <= 200


async def test_a_large_error_body_is_not_read_to_its_end():
    http = canned(*[b"x" * 65_536] * 3, AssertionError("read too far"), status=500)
    error = await failure(http, WIRES[0])
    assert error.kind is ErrorKind.SERVER
    assert len(error.message) <= 200


# -- Retry-After -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("1e99", MAX_RETRY_AFTER),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("9" * 5000, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", MAX_RETRY_AFTER),
        ("Wed, 99 Oct 99999999999 07:28:00 GMT", None),
    ],
)
def test_the_time_to_wait_is_bounded(value, seconds):
    assert retry_after(value) == seconds


def test_the_time_to_wait_may_be_a_date():
    moment = datetime.now(UTC) + timedelta(seconds=90)
    assert 80 < retry_after(format_datetime(moment, usegmt=True)) <= 90


# -- the end of a stream ---------------------------------------------------------------------------


def anthropic(*events: dict) -> list[bytes]:
    return [b"data: " + orjson.dumps(event) + b"\n\n" for event in events]


TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
FINAL = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
O_TEXT = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
O_FINAL = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize(
    ("wire", "chunks", "kind"),
    [
        ("anthropic-messages", anthropic(TEXT), "truncated"),
        ("anthropic-messages", anthropic(TEXT, {"type": "message_stop"}), "truncated"),
        ("anthropic-messages", anthropic(TEXT, FINAL), None),
        ("anthropic-messages", [*anthropic(TEXT, FINAL), httpx.ReadError("")], None),
        ("anthropic-messages", [*anthropic(TEXT, FINAL), b"data: {\n\n"], None),
        ("anthropic-messages", [*anthropic(TEXT), b'data: {"type": "mess'], "truncated"),
        ("openai-completions", [O_TEXT], "truncated"),
        ("openai-completions", [O_TEXT, b"data: [DONE]\n\n"], "truncated"),
        ("openai-completions", [O_TEXT, O_FINAL], None),
        ("openai-completions", [O_TEXT, O_FINAL, httpx.ReadError("")], None),
        ("openai-completions", [O_TEXT, O_FINAL[:-2]], None),
        ("openai-completions", [O_TEXT, O_FINAL[:-20]], "truncated"),
    ],
)
async def test_a_reply_is_whole_only_with_the_providers_final_word(wire, chunks, kind):
    async with canned(*chunks) as http:
        events, error = await replies(http, where(wire), asking("m"))
    assert text_of(events) == "hi"
    assert (error.kind if error else None) == kind


async def test_a_history_that_can_not_be_written_is_a_bad_request():
    deep: dict = {}
    for _ in range(400):
        deep = {"a": deep}
    call = {"t": "tool_call", "id": "1", "name": "x", "args": deep}
    history = [Turnlet("assistant", [call])]
    for wire in WIRES:
        async with canned() as http:
            _, error = await replies(http, where(wire), ModelRequest("m", history, 10))
        assert error.kind is ErrorKind.BAD_REQUEST
