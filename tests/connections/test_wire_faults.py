"""Every way a provider fails, on both wires, comes out as the one kind that names it."""

from __future__ import annotations

import pytest

from connections import providers
from connections.providers.base import ErrorKind, Target, ToolCall
from tests.connections.wires import CLOCK, TYPES, WIRES, asking, client, replies, target, text_of
from tests.fakes.server import GOOD_KEY


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("model", "kind", "status"),
    [
        ("err-401", "auth", 401),
        ("err-403", "forbidden", 403),
        ("err-404", "model_not_found", 404),
        ("no-such-model", "model_not_found", 404),
        ("err-429", "rate_limited", 429),
        ("err-400", "bad_request", 400),
        ("err-400-context", "context_too_long", 400),
        ("err-413", "too_large", 413),
        ("err-500", "server", 500),
        ("err-503", "overloaded", 503),
        ("err-529", "overloaded", 529),
        ("redirect-301", "redirect", 301),
        ("redirect-302", "redirect", 302),
        ("redirect-303", "redirect", 303),
        ("redirect-307", "redirect", 307),
        ("redirect-308", "redirect", 308),
        ("html", "protocol", None),
        ("json-200", "protocol", None),
    ],
)
async def test_a_refusal_before_the_reply_has_its_kind(fakes, wire, model, kind, status):
    async with client() as http:
        events, error = await replies(http, target(fakes, wire), asking(model))
    assert (events, error and error.kind, error and error.status) == ([], kind, status)


@pytest.mark.parametrize(("wire", "status"), [*zip(WIRES, (429, 402), strict=True)])
async def test_no_money_left_is_not_a_rate_limit(fakes, wire, status):
    async with client() as http:
        _, error = await replies(http, target(fakes, wire), asking("err-quota"))
    assert (error.kind, error.status, error.retryable) == (ErrorKind.QUOTA, status, False)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        ("cut", "truncated", "This reply is cut off in the middle of a"),
        ("early-end", "truncated", "This reply ends without its last event"),
        ("stall", "timeout", "And then nothing"),
        ("malformed", "protocol", "So far so good"),
        ("stall-first", "timeout", ""),
    ],
)
async def test_a_failure_in_the_reply_keeps_what_came_before(fakes, wire, model, kind, text):
    async with client() as http:
        events, error = await replies(http, target(fakes, wire), asking(model, idle_timeout=0.5))
    assert (text_of(events), error and error.kind) == (text, kind)


@pytest.mark.parametrize(("wire", "kind"), [*zip(WIRES, ("server", "overloaded"), strict=True)])
async def test_an_error_event_in_the_reply_has_its_kind(fakes, wire, kind):
    async with client() as http:
        events, error = await replies(http, target(fakes, wire), asking("error-mid"))
    assert (text_of(events), error.kind) == ("Halfway there", kind)


@pytest.mark.parametrize("wire", WIRES)
async def test_the_time_to_wait_and_the_request_id_come_along(fakes, wire):
    async with client() as http:
        _, error = await replies(http, target(fakes, wire), asking("err-429-after-7"))
    assert error.retry_after == 7
    assert error.request_id.startswith("req_fake_")


@pytest.mark.parametrize("wire", WIRES)
async def test_a_wrong_key_is_refused_and_not_quoted(fakes, wire):
    key = "sk-fake-wrong-1234567890-wxyz"
    async with client() as http:
        _, error = await replies(http, target(fakes, wire, key=key), asking("echo"))
    assert error.kind is ErrorKind.AUTH
    assert "wxyz" not in f"{error} {error.message} {error!r}"


@pytest.mark.parametrize("wire", WIRES)
async def test_a_redirect_takes_nothing_to_the_second_host(fakes, wire):
    fakes.reset()
    async with client() as http:
        await replies(http, target(fakes, wire), asking("redirect"))
    assert [record["path"] for record in fakes.requests(path="/_elsewhere")] == []


@pytest.mark.parametrize("wire", WIRES)
async def test_nobody_there_is_a_connect_error(wire):
    where = Target(TYPES[wire], "none", "http://127.0.0.1:9")
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.CONNECT


@pytest.mark.parametrize("wire", WIRES)
async def test_plain_http_behind_https_is_a_tls_error(fakes, wire):
    where = target(fakes, wire)
    base = where.base_url.replace("http://", "https://")
    async with client() as http:
        _, error = await replies(http, target(fakes, wire, base_url=base), asking("echo"))
    assert error.kind is ErrorKind.TLS


@pytest.mark.parametrize("wire", WIRES)
async def test_a_refused_address_is_an_egress_error(wire):
    where = Target(TYPES[wire], "none", "http://169.254.169.254")
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.EGRESS
    assert not error.retryable


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("base", ["http://", "http://[::1", "nonsense", "http://a b", ""])
async def test_an_address_that_is_none_is_a_connect_error(wire, base):
    async with client() as http:
        _, error = await replies(http, Target(TYPES[wire], "none", base), asking("echo"))
    assert error.kind is ErrorKind.CONNECT


@pytest.mark.parametrize("wire", WIRES)
async def test_a_wrong_path_is_an_endpoint_that_is_not_there(fakes, wire):
    where = target(fakes, wire, base_url=fakes.url + "/nowhere/v1")
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.ENDPOINT_NOT_FOUND


@pytest.mark.parametrize("wire", WIRES)
async def test_an_endless_reply_is_cut_off(fakes, wire):
    async with client(max_bytes=1_000_000) as http:
        events, error = await replies(
            http, target(fakes, wire), asking("endless", max_tokens=10**9)
        )
    assert error.kind is ErrorKind.PROTOCOL
    assert len(text_of(events)) < 1_000_000


@pytest.mark.parametrize("wire", WIRES)
async def test_an_endless_line_is_not_collected(fakes, wire):
    async with client() as http:
        _, error = await replies(http, target(fakes, wire), asking("huge-line"))
    assert error.kind is ErrorKind.PROTOCOL
    assert "4194304 bytes" in error.message


@pytest.mark.parametrize("wire", WIRES)
async def test_arguments_that_are_no_json_are_kept_as_text(fakes, wire):
    async with client() as http:
        events, error = await replies(
            http, target(fakes, wire), asking("tools-bad-args", tools=[CLOCK])
        )
    call = next(event for event in events if isinstance(event, ToolCall))
    assert (error, call.name, call.args, call.raw) == (
        None,
        "current_time",
        {},
        '{"timezone": "Europe/',
    )


@pytest.mark.parametrize("wire", WIRES)
async def test_closing_the_stream_closes_the_connection(fakes, wire):
    fakes.reset()
    where = target(fakes, wire)
    async with client() as http:
        stream = providers.get(where.provider_type).stream(http, where, asking("fast-30tps"))
        await anext(stream)
        await anext(stream)
        await stream.aclose()
        fakes.wait_for(lambda: fakes.requests(end="aborted"), seconds=2)


@pytest.mark.parametrize("secret", ["sk-line\nbreak", "schlüssel", "sk-\r\nx-evil: 1"])
@pytest.mark.parametrize("wire", WIRES)
async def test_a_key_that_no_header_can_hold_is_not_sent(fakes, wire, secret):
    fakes.reset()
    async with client() as http:
        _, error = await replies(http, target(fakes, wire, key=secret), asking("echo"))
    assert error.kind is ErrorKind.AUTH
    assert secret not in str(error)
    assert fakes.requests() == []


async def test_the_repr_of_a_target_has_no_secret():
    where = Target("openai_compat", "none", "", secret={"api_key": GOOD_KEY})
    assert GOOD_KEY not in repr(where)
