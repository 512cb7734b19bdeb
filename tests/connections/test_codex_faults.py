"""Every way a call through Codex fails comes out as the one kind that names it."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connections import ladder, providers
from connections.choices import Outcome, Rung
from connections.ladder import Subject, climb
from connections.providers import codex, codex_home, relay
from connections.providers.base import ErrorKind, ProviderError, TextDelta
from tests.connections.codex import homes, is_alive, processes, target
from tests.connections.wires import asking, canned, client, replies, text_of
from tests.fakes.responses import ResponsesReply
from tests.fakes.server import FakeProviders
from tests.fakes.wires import Asked

CODEX = providers.get("openai")


@pytest.fixture(autouse=True)
def _nothing_left(fakes: FakeProviders) -> Iterator[None]:
    fakes.reset()
    yield
    assert processes() == []
    assert homes() == []


# -- the provider's faults -------------------------------------------------------------------------


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
        ("err-529", "overloaded", 529),
        ("redirect-301", "redirect", 301),
        ("redirect-302", "redirect", 302),
        ("redirect-303", "redirect", 303),
        ("redirect-307", "redirect", 307),
        ("redirect-308", "redirect", 308),
        ("html", "protocol", None),
        ("json-200", "protocol", None),
        ("stall-first", "timeout", None),
    ],
)
async def test_a_refusal_before_the_reply_has_its_kind_and_is_asked_once(
    fakes, model, kind, status
):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking(model, idle_timeout=1))
    assert (events, error and error.kind, error and error.status) == ([], kind, status)
    assert len(fakes.requests()) == 1  # and the second host of a redirect got nothing


@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        ("cut", "truncated", "This reply is cut off in the middle of a"),
        ("early-end", "truncated", "This reply ends without its last event"),
        ("stall", "timeout", "And then nothing"),
        ("malformed", "protocol", "So far so good"),
        ("error-mid", "server", "Halfway there"),
    ],
)
async def test_a_failure_in_the_reply_keeps_what_came_before(fakes, model, kind, text):
    async with client() as http:
        events, error = await replies(http, target(fakes), asking(model, idle_timeout=1))
    assert (text_of(events), error and error.kind) == (text, kind)
    assert len(fakes.requests()) == 1


@pytest.mark.parametrize("end", [b"data: {broken\n\n", b'data: {"type": "error", "code": "x"}\n\n'])
async def test_text_that_comes_in_one_piece_with_the_fault_is_kept(fakes, end):
    reply = ResponsesReply(Asked("echo", None), 1)
    whole = reply.begin() + reply.say("So far") + reply.say(" so good") + end
    async with canned(whole, headers={"content-type": "text/event-stream"}) as http:
        events, error = await replies(http, target(fakes), asking("echo"))
    assert text_of(events) == "So far so good"
    assert error.kind in (ErrorKind.PROTOCOL, ErrorKind.SERVER)


async def test_the_time_to_wait_and_the_request_id_come_along(fakes):
    async with client() as http:
        _, error = await replies(http, target(fakes), asking("err-429-after-7"))
    assert error.retry_after == 7
    assert error.request_id.startswith("req_fake_")


async def test_a_wrong_key_is_refused_and_not_quoted(fakes):
    where = target(fakes, key="sk-fake-wrong-1234567890-wxyz")
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.AUTH
    assert "wxyz" not in f"{error} {error.message} {error!r}"


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        ("http://127.0.0.1:9", "connect"),
        ("http://169.254.169.254", "egress"),
        ("http://[::1", "connect"),
        ("nonsense", "connect"),
    ],
)
async def test_an_address_that_leads_nowhere_has_its_kind(fakes, base, kind):
    async with client() as http:
        events, error = await replies(http, target(fakes, base_url=base), asking("echo"))
    assert (events, error and error.kind) == ([], kind)


async def test_a_name_that_nobody_knows_is_a_connect_error(fakes):
    where = target(fakes, base_url="https://nobody.invalid/v1")
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.CONNECT


async def test_plain_http_behind_https_is_a_tls_error(fakes):
    where = target(fakes, base_url=fakes.openai.replace("http://", "https://"))
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.TLS


async def test_a_wrong_path_is_an_endpoint_that_is_not_there(fakes):
    where = target(fakes, base_url=fakes.url + "/nowhere/v1")
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.ENDPOINT_NOT_FOUND


@pytest.mark.parametrize("secret", ["sk-line\nbreak", "schlüssel", "sk-\r\nx-evil: 1"])
async def test_a_key_that_no_header_can_hold_is_not_sent(fakes, secret):
    async with client() as http:
        _, error = await replies(http, target(fakes, key=secret), asking("echo"))
    assert error.kind is ErrorKind.AUTH
    assert secret not in str(error)
    assert fakes.requests() == []


@pytest.mark.parametrize("model", ["endless", "huge-line"])
async def test_what_has_no_end_is_cut_off(fakes, model):
    async with client(max_bytes=1_000_000) as http:
        events, error = await replies(http, target(fakes), asking(model, max_tokens=10**9))
    assert error.kind is ErrorKind.PROTOCOL
    assert len(text_of(events)) < 1_000_000


# -- the process's ---------------------------------------------------------------------------------


def program(folder: Path, body: str) -> str:
    path = folder / "codex"
    path.write_text(body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


LISTS = """#!/bin/sh
if [ "$1" = debug ]; then echo '{"models": []}'; exit 0; fi
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("#!/bin/sh\nexit 0\n", "list of models"),
        ("#!/bin/sh\nexit 1\n", "doesn't list"),
        ("#!/bin/sh\necho '{}'\n", "list of models"),
        ("#!/nowhere/sh\n", "can't be run"),
        (LISTS + "echo 'unknown field: web_search' >&2; exit 1\n", "unknown field"),
        (LISTS + "echo hello; exec sleep 60\n", "can't be read"),
        (LISTS + 'read line; echo \'{"id": 1, "result": {}}\'; exec 0<&-; exit 7\n', "code 7"),
    ],
)
async def test_a_binary_that_is_none_has_its_own_kind(fakes, tmp_path, body, words):
    where = target(fakes, codex_path=program(tmp_path, body))
    async with client() as http:
        events, error = await replies(http, where, asking("echo"))
    assert (events, error and error.kind) == ([], ErrorKind.PROCESS)
    assert words in error.message
    assert fakes.requests() == []


async def test_a_binary_that_says_nothing_is_given_up(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(codex, "START_SECONDS", 0.5)
    where = target(fakes, codex_path=program(tmp_path, LISTS + "exec /bin/sleep 60\n"))
    async with client() as http:
        _, error = await replies(http, where, asking("echo"))
    assert error.kind is ErrorKind.PROCESS
    assert "in time" in error.message


async def test_a_process_that_is_killed_in_the_reply_keeps_what_came_before(fakes):
    async with client() as http:
        events = []
        with pytest.raises(ProviderError) as caught:
            async for event in CODEX.stream(http, target(fakes), asking("stall")):
                events.append(event)
                if text_of(events) == "And then nothing":
                    (pid,) = processes()
                    os.kill(pid, signal.SIGKILL)
    assert text_of(events) == "And then nothing"
    assert caught.value.kind is ErrorKind.PROCESS
    assert "signal 9" in caught.value.message
    await asyncio.to_thread(fakes.wait_for, lambda: fakes.requests(end="aborted"), 2)


async def test_a_process_that_falls_silent_is_given_up(fakes, monkeypatch):
    monkeypatch.setattr(codex, "SILENT_SECONDS", 0.3)
    async with client() as http:
        with pytest.raises(ProviderError) as caught:
            async for event in CODEX.stream(http, target(fakes), asking("fast-30tps-5")):
                if isinstance(event, TextDelta):
                    (pid,) = processes()
                    os.kill(pid, signal.SIGSTOP)
    assert caught.value.kind is ErrorKind.PROCESS
    assert not is_alive(pid)


# -- leaving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["fast-30tps-300", "stall", "stall-first"])
async def test_closing_the_stream_closes_the_providers_side_within_two_seconds(fakes, model):
    async with client() as http:
        stream = CODEX.stream(http, target(fakes), asking(model))
        task = asyncio.create_task(anext(stream))
        await asyncio.to_thread(fakes.wait_for, lambda: fakes.requests(model=model))
        if model == "stall-first":
            task.cancel()
            await asyncio.wait({task})
        else:
            await task
        began = time.monotonic()
        await stream.aclose()
        await asyncio.to_thread(fakes.wait_for, lambda: fakes.requests(end="aborted"), 2)
        assert time.monotonic() - began < 2


async def test_a_start_that_is_cancelled_leaves_nothing(fakes):
    for seconds in (0.02, 0.1, 0.3):
        async with client() as http:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await replies(http, target(fakes), asking("stall-first"))
        assert processes() == []


# -- the ladder ------------------------------------------------------------------------------------


def outcomes(results) -> dict[str, str]:
    return {result.rung.value: result.outcome.value for result in results}


async def climbed(fakes: FakeProviders, model: str, http, **more):
    return await climb(Subject(model, target(fakes, **more), CODEX), client=http)


async def test_a_whole_climb_is_green_by_an_answer_through_the_binary(fakes, settings):
    settings.EGRESS_ALLOW = "127.0.0.0/8"
    async with client() as http:
        results = await climbed(fakes, "echo", http)
    assert set(outcomes(results).values()) == {"passed"}, results
    assert [record["path"] for record in fakes.requests()] == [
        "/openai/v1/models",
        "/openai/v1/models",
        "/openai/v1/responses",
    ]
    assert fakes.requests()[-1]["max_tokens"] == 16


@pytest.mark.parametrize(
    ("model", "more", "rung", "kind"),
    [
        ("echo", {"key": "sk-wrong"}, "auth", "auth"),
        ("no-such-model", {}, "models", "model_not_found"),
        ("err-500", {}, "answer", "server"),
        ("cut", {}, "stream", "truncated"),
        ("echo", {"base_url": "http://127.0.0.1:9"}, "network", "connect"),
        ("echo", {"codex_path": "/nowhere/codex"}, "answer", "process"),
    ],
)
async def test_a_climb_stops_at_the_rung_that_fails(fakes, settings, model, more, rung, kind):
    settings.EGRESS_ALLOW = "127.0.0.0/8"
    async with client() as http:
        results = await climbed(fakes, model, http, **more)
    failed = [(r.rung.value, r.kind) for r in results if r.outcome is Outcome.FAILED]
    assert failed == [(rung, kind)]


@pytest.mark.parametrize("status", [403, 404])
async def test_a_key_that_may_not_list_models_proves_and_refutes_nothing(fakes, status):
    async with canned(
        b'{"error": {"message": "Missing scopes: api.model.read"}}', status=status
    ) as http:
        with pytest.raises(ProviderError) as caught:
            await CODEX.check_auth(http, target(fakes, base_url=""), "gpt-6.1-sol")
    assert caught.value.kind is ErrorKind.ENDPOINT_NOT_FOUND


async def test_openais_own_list_proves_the_key_and_another_ones_does_not(fakes):
    async with canned(b'{"data": []}', headers={"content-type": "application/json"}) as http:
        assert await CODEX.check_auth(http, target(fakes, base_url=""), "x") is True
        assert await CODEX.check_auth(http, target(fakes), "x") is False


async def test_a_request_that_is_too_large_says_so(fakes, monkeypatch):
    monkeypatch.setattr(relay, "MAX_BODY", 20_000)
    async with client() as http:
        _, error = await replies(http, target(fakes), asking("echo", "x" * 50_000))
    assert error.kind is ErrorKind.TOO_LARGE
    assert fakes.requests() == []


async def test_an_answer_that_found_no_place_was_not_tested(fakes, settings, monkeypatch):
    settings.EGRESS_ALLOW = "127.0.0.0/8"
    settings.CODEX_PROCESSES = 1
    codex._semaphores.clear()
    monkeypatch.setitem(ladder.SECONDS, Rung.ANSWER, 0.3)
    async with client() as http:
        busy = CODEX.stream(http, target(fakes), asking("stall"))
        await anext(busy)
        results = await climbed(fakes, "echo", http)
        await busy.aclose()
    codex._semaphores.clear()
    answer = results[4]
    assert (answer.rung, answer.outcome) == (Rung.ANSWER, Outcome.NOT_TESTED)
    assert "busy" in answer.detail


async def test_the_home_of_a_worker_that_was_killed_is_swept_and_a_live_one_is_not(fakes):
    first = codex_home.make_home({})
    second = codex_home.make_home({})
    assert homes() == sorted([first.root, second.root])
    os.close(first.lock)  # as its worker's end does
    third = codex_home.make_home({})
    assert homes() == sorted([second.root, third.root])
    for home in (second, third):
        assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
        home.remove()
