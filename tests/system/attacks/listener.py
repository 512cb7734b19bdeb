"""Servers on loopback that keep what they are sent: the places where a secret must not arrive."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


class Request:
    """One HTTP request as it came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        line, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = line.split(" ", 2)
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (one.partition(":") for one in lines if one)
        }
        self.raw = head + b"\r\n\r\n" + body
        self.body = body

    @property
    def model(self) -> str:
        with contextlib.suppress(ValueError):
            return json.loads(self.body).get("model", "")
        return ""

    @property
    def said(self) -> str:
        """What a person said last."""
        content = json.loads(self.body)["messages"][-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]


Answer = Callable[[Request], bytes | Iterator[bytes]]


class Listener:
    """`with Listener(answer) as there: there.url, there.connections, there.requests`.

    Listens on `host`; with `everywhere` on every address of this machine, in IPv4 and IPv6.
    Each connection carries one request, answered with the bytes of `answer(request)`; an empty
    answer leaves the caller waiting until it goes. Pieces are written one by one, the next when the
    last one is taken, until the caller has gone.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        everywhere: bool = False,
    ) -> None:
        self._answer = answer or (lambda request: OK)
        self.connections = 0
        self.requests: list[Request] = []
        listener = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = 60

            def handle(self) -> None:
                listener.connections += 1
                with contextlib.suppress(OSError, ValueError):
                    listener._serve(self.rfile, self.wfile)

        self._server = socketserver.ThreadingTCPServer(("", 0), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.socket.close()
        self._server.socket = _everywhere() if everywhere else _at(host, port)
        self._server.server_activate()
        self.port: int = self._server.socket.getsockname()[1]
        self.url = f"http://{host}:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, rfile: Any, wfile: Any) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = rfile.readline(65536)
            if not line:
                return
            head += line
        request = Request(head.removesuffix(b"\r\n\r\n"), b"")
        request.body = rfile.read(int(request.headers.get("content-length", 0)))
        request.raw += request.body
        self.requests.append(request)
        answer = self._answer(request)
        if not isinstance(answer, bytes):
            for piece in answer:
                wfile.write(piece)
        elif answer:
            wfile.write(answer)
        else:
            rfile.read(1)

    @property
    def received(self) -> bytes:
        """Everything that came, one request after the other."""
        return b"\n".join(request.raw for request in self.requests)


def _at(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


def _everywhere() -> socket.socket:
    if not socket.has_dualstack_ipv6():
        return _at("", 0)
    bound = socket.socket(socket.AF_INET6)
    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    bound.bind(("::", 0))
    return bound


def response(status: int, body: Any = b"", **headers: str) -> bytes:
    """The bytes of an answer; what isn't bytes becomes JSON. `_` in a header's name is a `-`."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers.setdefault("content_type", "application/json")
    lines = [f"HTTP/1.1 {status} Status", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def reply(text: str) -> bytes:
    """A whole streamed reply in the format of OpenAI."""
    events = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    ]
    body = "".join(f"data: {json.dumps({'id': 'x', **event})}\n\n" for event in events)
    return response(200, f"{body}data: [DONE]\n\n".encode(), content_type="text/event-stream")
