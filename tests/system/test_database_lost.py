"""The database is gone for half a minute, or the disk is full: nothing half is stored, whoever asks
is told so, and what was under way ends well by itself."""

from __future__ import annotations

import contextlib
import io
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from django.db import connection
from PIL import Image

from tests import postgres
from tests.chaos.faults import database_full, disk_full
from tests.chaos.trial import integrity
from tests.fakes.server import FakeProviders
from tests.system.harness import wait_for
from tests.system.page import Page
from tests.system.parts import Chat, Parts

pytestmark = pytest.mark.both_databases
SAID = "Patchbay can't reach its database, or has no room to save."
ON_POSTGRES = connection.vendor == "postgresql"
FAULTS = ["stopped"] if ON_POSTGRES else ["database full", "disk full"]


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, static_files: None
) -> Iterator[tuple[Parts, postgres.Server | None]]:
    """Parts whose database may be broken; the server where there is one."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres.server()) if ON_POSTGRES else None
        folder = tmp_path_factory.mktemp("lost")
        parts = Parts(
            folder,
            stack.enter_context(FakeProviders()),
            database_url=server.url if server else "",
            settings="config.settings" if server else "tests.system.full",
        )
        parts.env["FULL"] = str(folder / "full")
        yield stack.enter_context(parts), server


@contextlib.contextmanager
def stopped(server: postgres.Server) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


def breaks(fault: str, own: tuple[Parts, postgres.Server | None]) -> AbstractContextManager[None]:
    parts, server = own
    if server is not None:
        return stopped(server)
    return {"database full": database_full, "disk full": disk_full}[fault](parts)


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_half_stored_and_all_goes_on_by_itself(own, fault: str, tmp_path: Path):
    parts, _ = own
    running, other = Chat(parts, "fast-30tps-300"), Chat(parts, "vision")
    page = Page(running)
    first, second = f"{fault}: a reply of ten seconds", f"{fault}: and then this"
    running.send(first)
    running.wait_for_reply()
    running.choose("echo")
    running.send(second)
    files = sorted(parts.media.rglob("*.*"))

    picture = io.BytesIO()
    Image.effect_noise((300, 300), 90).convert("RGB").save(picture, "PNG")
    sends: dict[str, Callable[[], httpx.Response]] = {
        "queued": lambda: send(running, "refused-1", "x" * 20_000),
        "first": lambda: send(other, "refused-2", "y" * 20_000),
        "image": lambda: send(other, "refused-3", "z" * 20_000, picture.getvalue()),
    }
    with breaks(fault, own):
        began = time.monotonic()
        # A full disk lets small changes through until there is no page left.
        wait_for(lambda: sends["first"]().status_code == 503, 30, "a send is refused")
        before = {chat: len(chat.messages()) for chat in (running, other) if not ON_POSTGRES}
        for name, act in sends.items():
            asked = time.monotonic()
            answer = act()
            assert answer.status_code == 503, (name, answer.status_code)
            assert SAID in answer.text.replace("&#x27;", "'")
            assert answer.headers["retry-after"] == "5"
            assert time.monotonic() - asked < 15
        for path in ("/", running.url, f"{running.url}turns/", "/connections/", "/accounts/login/"):
            answer = parts.admin.get(path)
            assert answer.status_code in (200, 302, 503), path
            assert answer.status_code != 503 or SAID in answer.text.replace("&#x27;", "'")
        assert parts.client().get("/healthz").status_code == 200
        assert {chat: len(chat.messages()) for chat in before} == before
        if ON_POSTGRES:
            assert parts.client().get("/readyz").status_code == 503
            wait_for(lambda: time.monotonic() - began > 30, 40, "half a minute")

    mended = time.monotonic()
    assert [file for file in sorted(parts.media.rglob("*.*")) if file not in files] == []
    wait_for(lambda: sends["queued"]().status_code == 303, 40, "the same is taken")
    sends["first"]()
    running.wait_until_idle(60)
    other.wait_until_idle(60)
    print(f"{fault}: all is answered {time.monotonic() - mended:.1f} s after the end")
    assert running.states()[0] in ("done", "interrupted")
    assert running.states()[1:] == ["done"] * 2
    assert running.reply(2) == second
    keys = [one["client_key"] for chat in (running, other) for one in chat.messages()]
    assert len(keys) == len(set(keys))
    for text in (first, second):
        assert len(parts.requests_with(text)) == 1
    page.follow(lambda page: page.state == "done" and not page.waiting)
    assert page.shown() == Page(running).shown()
    assert list(integrity(parts)) == []
    assert all(name in parts.pids() for name in ("web", "worker", "beat", "valkey"))


def send(chat: Chat, key: str, text: str, image: bytes = b"") -> httpx.Response:
    """As the page does: the same key again is the same message."""
    files = {"images": ("x.png", image, "image/png")} if image else None
    key = uuid.uuid5(chat.id, key).hex
    data = {"text": text, "client_key": key}
    return chat.client.post(f"{chat.url}send/", data=data, files=files)
