"""The lines of the logs: what they name, and that they hold nobody's values."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.decorators import login_not_required
from django.http import HttpResponse
from django.urls import path

from config import asgi
from workspaces import logs
from workspaces.runtime import Runtime

CANARY = "canary-" + "of-a-person"


@login_not_required
def broken(request, token):
    try:
        raise KeyError(f"{CANARY} of the cause")
    except KeyError as error:
        raise ValueError(f"{CANARY} in what went wrong: {token}") from error


@login_not_required
def fine(request, chat_id):
    logging.getLogger("sessions.test").warning("looked at")
    return HttpResponse("fine")


urlpatterns = [path("broken/<str:token>/", broken), path("chats/<uuid:chat_id>/", fine)]
handler500 = "config.views.server_error"
handler404 = "config.views.not_found"

CHAT = "0d9df5a4-9d0b-4f83-a41e-0f3f7a3f1c11"


@pytest.fixture(params=["json", "text"])
def form(request):
    return request.param


@pytest.fixture
def written(settings, form):
    """What is logged at DEBUG, as the settings have it."""
    settings.ROOT_URLCONF = __name__
    settings.SECURE_SSL_REDIRECT = False
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter({"json": logs.JSON, "text": logs.Line}[form]())
    handler.addFilter(logs.without_values)
    root, access = logging.getLogger(), logging.getLogger("patchbay.access")
    before = root.level, access.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    access.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before[0])
    access.setLevel(before[1])


def ask(path, *headers, method="GET"):
    """Status, headers and text of one request, through all of the application."""

    async def go():
        scope = {
            "type": "http",
            "method": method,
            "path": path.partition("?")[0],
            "query_string": path.partition("?")[2].encode(),
            "headers": [(b"host", b"localhost"), *headers],
            "server": ("localhost", 80),
        }
        client = ApplicationCommunicator(asgi.application, scope)
        await client.send_input({"type": "http.request", "body": b""})
        start = await client.receive_output(10)
        body = b""
        while True:
            part = await client.receive_output(10)
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        await client.wait(10)
        return start["status"], dict(start["headers"]), body.decode()

    return asyncio.run(go())


def lines_of(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.django_db(transaction=True)
def test_a_fault_has_type_place_and_the_id_that_the_page_shows(written, form):
    status, headers, page = ask(f"/broken/{CANARY}/?q={CANARY}")
    assert status == 500
    request_id = headers[b"x-request-id"].decode()
    assert f"<code>{request_id}</code>" in page
    text = written.getvalue()
    assert CANARY not in text
    assert CANARY not in page
    assert "/broken/<str:token>/" in text
    assert "builtins.KeyError" in text
    assert "builtins.ValueError" in text
    assert "in broken" in text
    assert request_id in text
    if form == "json":
        [fault] = [line for line in lines_of(written) if line["logger"] == "django.request"]
        assert fault["level"] == "ERROR"
        assert fault["request_id"] == request_id
        assert fault["exception"].startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("form", ["json"], indirect=True)
def test_a_request_is_one_line_and_those_in_between_have_its_id(written):
    status, headers, _page = ask(
        f"/chats/{CHAT}/?q={CANARY}", (b"x-request-id", b"from-the-proxy.7")
    )
    assert (status, headers[b"x-request-id"]) == (200, b"from-the-proxy.7")
    ours = ("sessions.test", "patchbay.access")
    warned, access = [line for line in lines_of(written) if line["logger"] in ours]
    assert warned["message"] == "looked at"
    assert warned["request_id"] == access["request_id"] == "from-the-proxy.7"
    assert {name: access[name] for name in ("method", "route", "status", "session_id")} == {
        "method": "GET",
        "route": "/chats/<uuid:chat_id>/",
        "status": 200,
        "session_id": CHAT,
    }
    assert access["ms"] >= 0
    assert CANARY not in written.getvalue()


@pytest.mark.parametrize("form", ["json"], indirect=True)
@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 65, b"a\nb", b"\xff", b'"}{', b"<script>"])
def test_an_id_that_is_no_plain_word_is_replaced(written, given):
    status, headers, page = ask("/nowhere/", (b"x-request-id", given))
    assert status == 404
    own = headers[b"x-request-id"].decode()
    assert len(own) == 16
    assert own in page
    [access] = [line for line in lines_of(written) if line["logger"] == "patchbay.access"]
    assert (access["request_id"], access["status"], access["route"]) == (own, 404, "")


def test_what_a_line_is_about_goes_along_to_the_loop_and_its_database_threads():
    runtime, found = Runtime(), []

    async def turn():
        found.append(dict(logs._about.get()))
        await runtime.db(lambda: found.append(dict(logs._about.get())))

    with logs.about(turn_id="t"), logs.about(session_id="s"):
        task = runtime.submit(turn())
    task.result(10)
    runtime.submit(turn()).result(10)
    runtime.stop(1)
    assert found == [{"turn_id": "t", "session_id": "s"}] * 2 + [{}] * 2


def record(name, text, *args, error=None):
    info = (type(error), error, None) if error else None
    made = logging.LogRecord(name, logging.ERROR, "", 0, text, args, info)
    assert logs.without_values(made)
    return logs.Line().format(made) + logs.JSON().format(made)


def test_lines_of_others_lose_the_values_in_them():
    error = ValueError(CANARY)
    context = {"name": "a.task", "exc": repr(error), "args": CANARY, "kwargs": CANARY}
    said = record("celery.app.trace", "Task %(name)s failed: %(exc)s", context, error=error)
    assert CANARY not in said
    assert "Task a.task failed: ValueError" in said
    said = record(
        "asyncio", f"Task exception was never retrieved\nfuture: <{error!r}>", error=error
    )
    assert CANARY not in said
    group = ExceptionGroup(CANARY, [error, ExceptionGroup(CANARY, [KeyError(CANARY)])])
    said = record("x", "%s failed", "it", error=group)
    assert CANARY not in said
    assert "builtins.KeyError" in said
    assert record("x", "it's 100%", error=None).count("it's 100%") == 2


def test_a_line_in_another_shape_becomes_one_of_ours():
    line = json.loads(logs.as_json("valkey", 'some "text"\t'))
    assert (line["logger"], line["level"], line["message"]) == (
        "valkey",
        "WARNING",
        'some "text"\t',
    )
