"""Requests of one sign-in wait for each other, for a moment; nobody else's do."""

from __future__ import annotations

import asyncio

import pytest

from config import fair


class World:
    """Requests that are worked on until they are let go."""

    def __init__(self) -> None:
        self.fair = fair.FairShare()
        self.working: list[str] = []
        self.go_on: dict[str, asyncio.Event] = {}

    def ask(self, name: str, cookie: str) -> asyncio.Task[None]:
        self.go_on[name] = asyncio.Event()
        return asyncio.create_task(self._work(name, cookie))

    async def _work(self, name: str, cookie: str) -> None:
        async with self.fair.turn(cookie):
            self.working.append(name)
            try:
                await self.go_on[name].wait()
            finally:
                self.working.remove(name)

    async def end(self, *tasks: asyncio.Task[None]) -> None:
        for event in self.go_on.values():
            event.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert self.fair._lines == {}


@pytest.fixture
def world() -> World:
    return World()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair, "LONGEST", 3600)


async def test_one_of_a_sign_in_is_worked_on_and_the_next_in_their_order(world, patience):
    tasks = [world.ask(f"{number}", "alice") for number in range(4)]
    tasks += [world.ask("bob's", "bob"), world.ask("nobody's", ""), world.ask("nobody else's", "")]
    await settle()
    assert world.working == ["0", "bob's", "nobody's", "nobody else's"]
    world.go_on["0"].set()
    await settle()
    assert world.working == ["bob's", "nobody's", "nobody else's", "1"]
    await world.end(*tasks)


async def test_one_that_takes_long_goes_on_beside_the_next(world, monkeypatch):
    monkeypatch.setattr(fair, "LONGEST", 0.02)
    tasks = [world.ask(f"{number}", "alice") for number in range(3)]
    while len(world.working) < 3:
        await asyncio.sleep(0.01)
    await world.end(*tasks)


async def test_one_that_took_long_gives_up_its_place_once(world, monkeypatch):
    monkeypatch.setattr(fair, "LONGEST", 0.02)
    tasks = [world.ask("slow", "alice")]
    await settle()
    monkeypatch.setattr(fair, "LONGEST", 3600)
    tasks += [world.ask("next", "alice"), world.ask("last", "alice")]
    while "next" not in world.working:
        await asyncio.sleep(0.001)
    world.go_on["slow"].set()
    await settle()
    assert world.working == ["next"]
    await world.end(*tasks)


@pytest.mark.parametrize("place", ["first", "waiting", "given"])
async def test_who_goes_away_leaves_no_gap(world, patience, place):
    tasks = [world.ask(f"{number}", "alice") for number in range(3)]
    await settle()
    if place == "first":
        tasks[0].cancel()
    elif place == "waiting":
        tasks[1].cancel()
        await settle()
        world.go_on["0"].set()
    else:  # its place is given to it in the moment in which it goes
        world.go_on["0"].set()
        while tasks[0] in asyncio.all_tasks():
            await asyncio.sleep(0)
        tasks[1].cancel()
    await settle()
    assert world.working == (["1"] if place == "first" else ["2"])
    await world.end(*tasks)


async def test_a_failure_gives_the_place_back(world, patience):
    with pytest.raises(ValueError, match="broken"):
        async with world.fair.turn("alice"):
            raise ValueError("broken")
    assert world.fair._lines == {}
