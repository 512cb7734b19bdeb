"""How a request goes through the application: on one thread at once, drawing after messages."""

from __future__ import annotations

import asyncio
import threading

from django.http import HttpResponse
from django.test import AsyncRequestFactory

from config import asgi


async def answer_to(path: str) -> int:
    """The status of a GET, sent as a server sends it."""
    statuses: list[int] = []
    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        for message in asked:
            return message
        return await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        **AsyncRequestFactory()._base_scope(path=path),
        "asgi": {"version": "3.0"},
        "headers": [(b"host", b"127.0.0.1")],
    }
    await asgi.application(scope, receive, send)
    return statuses[0]


async def test_a_request_goes_to_a_thread_for_its_beginning_itself_and_its_end(monkeypatch):
    ways = []
    submit = asgi._threads.submit
    monkeypatch.setattr(
        asgi._threads, "submit", lambda *given, **named: ways.append(1) or submit(*given, **named)
    )
    assert await answer_to("/healthz") == 200
    assert len(ways) <= 3


async def test_few_pages_draw_their_turns_at_once_and_others_pass_them():
    handler = asgi.OneGo()
    drawing, go_on = threading.Semaphore(0), threading.Event()

    def respond(request):
        if request.path.endswith("/turns/"):
            drawing.release()
            assert go_on.wait(20)
        return HttpResponse()

    handler.get_response = respond

    async def ask(path: str) -> None:
        async with asgi.ThreadSensitiveContext(executor=asgi._threads):
            await handler.get_response_async(AsyncRequestFactory().get(path))

    waiting = [asyncio.create_task(ask("/w/a/sessions/b/turns/")) for _ in range(10)]
    for _ in range(asgi.DRAWING):
        assert await asyncio.to_thread(drawing.acquire, timeout=20)
    await asyncio.wait_for(ask("/w/a/sessions/b/send/"), 20)
    assert not drawing.acquire(blocking=False)
    go_on.set()
    await asyncio.gather(*waiting)
