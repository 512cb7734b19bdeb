"""Requests that are too large or come too slowly are refused before anybody reads them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from config import limits

LIMIT = 100_000
HEAD = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"


async def echo(scope, receive, send):
    """Answers with the size of the body, as Django does: read whole, or dropped."""
    if scope["type"] == "lifespan":
        return
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@contextlib.contextmanager
def serving(app):
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=limits.HeadLimits, ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve([listening])), name="limits", daemon=True
    )
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture
def port():
    with serving(limits.BodyLimits(echo, limit=LIMIT)) as port:
        yield port


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(limits, "LINGER_SECONDS", 0.3)


def everything(sock: socket.socket) -> bytes:
    sock.settimeout(5)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65_536):
            received += data
    return received


def test_a_body_within_the_limit_arrives_whole(port):
    url = f"http://127.0.0.1:{port}/echo"
    assert httpx.post(url, content=b"x" * LIMIT, trust_env=False).text == str(LIMIT)


def test_a_body_announced_over_the_limit_is_refused_unread(port):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (LIMIT + 1))
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_over_the_limit_is_refused(port):
    def chunks():
        for _ in range(30):
            yield b"x" * 10_000

    answer = httpx.post(f"http://127.0.0.1:{port}/echo", content=chunks(), trust_env=False)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_body_sent_a_byte_at_a_time_is_answered_408(port, impatient):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        started = time.monotonic()
        sock.settimeout(0.05)
        received = b""
        while not received and time.monotonic() - started < 10:
            sock.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                received = sock.recv(65_536)
        assert received.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 5


def test_a_body_that_keeps_up_may_take_longer_than_the_first_allowance(port, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.4)
    monkeypatch.setattr(limits, "BODY_RATE", 1000)

    def chunks():
        for _ in range(8):
            yield b"x" * 1000
            time.sleep(0.1)

    answer = httpx.post(f"http://127.0.0.1:{port}/echo", content=chunks(), trust_env=False)
    assert answer.text == "8000"


@pytest.mark.parametrize("begun", [b"", HEAD])
def test_a_head_that_never_ends_is_closed(port, impatient, begun):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(begun)
        assert everything(sock) == b""


def test_a_second_head_that_never_ends_is_closed_too(port, impatient):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(HEAD + b"Content-Length: 1\r\n\r\nx" + HEAD)
        assert everything(sock).count(b"HTTP/1.1 ") == 1


def test_an_endless_head_is_refused(port):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(HEAD + b"X-Long: " + b"x" * (limits.HEAD_BYTES * 4))
        received = everything(sock)  # a reset can overtake the answer
        assert received == b"" or received.startswith(b"HTTP/1.1 400 ")


def test_an_answer_may_take_as_long_as_it_likes(impatient):
    async def slow(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await asyncio.sleep(0.1)
            await send({"type": "http.response.body", "body": b".", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with serving(limits.BodyLimits(slow, limit=LIMIT)) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).text == "." * 10
