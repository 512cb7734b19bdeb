"""Requests of one sign-in wait for each other, for a moment; nobody else's do."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIRequest

from config import fair


class App:
    """Holds each request until it is let go; notes who is worked on."""

    def __init__(self) -> None:
        self.working: list[str] = []
        self.most = 0
        self.go_on: dict[str, asyncio.Event] = {}
        self.streams = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = scope["path"]
        self.working.append(name)
        self.most = max(self.most, len(self.working))
        try:
            if self.streams:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            await self.go_on.setdefault(name, asyncio.Event()).wait()
        finally:
            self.working.remove(name)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def let_go(self, name: str) -> None:
        self.go_on.setdefault(name, asyncio.Event()).set()


class World:
    def __init__(self) -> None:
        self.app = App()
        self.fair = fair.FairShare(self.app, cookie="session")

    def ask(self, name: str, cookie: str) -> asyncio.Task[None]:
        headers = [(b"cookie", f"a=b; session={cookie}".encode())] if cookie else []
        scope: Any = {"type": "http", "path": name, "headers": headers}

        async def nothing(*_: Any) -> None:
            return None

        return asyncio.create_task(self.fair(scope, nothing, nothing))


@pytest.fixture
def world() -> World:
    return World()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_of_one_sign_in_are_worked_on_and_the_next_in_their_order(world: World):
    tasks = [world.ask(f"{number}", "alice") for number in range(5)]
    other, nobody = world.ask("bob's", "bob"), world.ask("nobody's", "")
    await settle()
    assert world.app.working == ["0", "1", "bob's", "nobody's"]
    world.app.let_go("1")
    await settle()
    assert world.app.working == ["0", "bob's", "nobody's", "2"]
    for name in ("0", "2", "3", "4", "bob's", "nobody's"):
        world.app.let_go(name)
    await asyncio.gather(*tasks, other, nobody)
    assert world.fair._lines == {}


async def test_an_answer_that_has_begun_holds_up_nobody(world: World):
    world.app.streams = True
    tasks = [world.ask(f"{number}", "alice") for number in range(5)]
    await settle()
    assert len(world.app.working) == 5
    for number in range(5):
        world.app.let_go(f"{number}")
    await asyncio.gather(*tasks)


async def test_who_waited_long_enough_goes_ahead(world: World, monkeypatch):
    monkeypatch.setattr(fair, "LONGEST_WAIT", 0.05)
    tasks = [world.ask(f"{number}", "alice") for number in range(3)]
    while len(world.app.working) < 3:
        await asyncio.sleep(0.01)
    for number in range(3):
        world.app.let_go(f"{number}")
    await asyncio.gather(*tasks)
    assert world.fair._lines == {}


async def test_who_goes_away_while_waiting_leaves_no_gap(world: World):
    tasks = [world.ask(f"{number}", "alice") for number in range(4)]
    await settle()
    tasks[2].cancel()
    await settle()
    world.app.let_go("0")
    await settle()
    assert "3" in world.app.working
    for number in range(4):
        world.app.let_go(f"{number}")
    await asyncio.gather(*tasks, return_exceptions=True)
    assert world.fair._lines == {}


@pytest.mark.parametrize("cookie", [b"", b"session", b"\xff=\xfe; ;;", b"session=; x=1"])
def test_a_strange_cookie_is_none(cookie: bytes):
    assert fair.session_of({"headers": [(b"cookie", cookie)]}, "session") == ""  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "cookies",
    [[b"a=b", b"session=x"], [b'settings={"a": [1, 2]}; session=x'], [b"a[b]=c; session=x"]],
)
def test_the_sign_in_is_the_one_that_django_will_see(cookies: list[bytes]):
    scope: Any = {"type": "http", "method": "GET", "path": "/", "query_string": b""}
    scope["headers"] = [(b"cookie", cookie) for cookie in cookies]
    assert ASGIRequest(scope, io.BytesIO()).COOKIES["session"] == "x"
    assert fair.session_of(scope, "session") == "x"
