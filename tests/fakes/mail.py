"""A mail server on loopback that keeps what it is given."""

from __future__ import annotations

import contextlib
import email
from collections.abc import Iterator

from aiosmtpd.controller import Controller

from tests.system.harness import free_port


class Sink:
    def __init__(self) -> None:
        self.port = free_port()
        self.mails: list[email.message.Message] = []

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    async def handle_DATA(self, server, session, envelope) -> str:
        self.mails.append(email.message_from_bytes(envelope.content))
        return "250 OK"


@contextlib.contextmanager
def running() -> Iterator[Sink]:
    sink = Sink()
    controller = Controller(sink, hostname="127.0.0.1", port=sink.port)
    controller.start()
    try:
        yield sink
    finally:
        controller.stop()
