"""Processes that a test may break, started once and mended before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.server import FakeProviders
from tests.system.harness import wait_for
from tests.system.page import Page
from tests.system.parts import Chat, Parts


@pytest.fixture(scope="session")
def _parts(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Parts]:
    with FakeProviders() as fakes, Parts(tmp_path_factory.mktemp("parts"), fakes) as parts:
        yield parts


def _streams_well(parts: Parts) -> bool:
    chat = Chat(parts, "fast-30tps-30")
    page = Page(chat)
    chat.send("hello")
    page.follow(lambda page: page.state == "done" or (page.messages() and page.text()))
    streamed = page.state == "running" and page.rebuilds == 0
    chat.wait_until_idle()
    return streamed


@pytest.fixture
def parts(_parts: Parts) -> Iterator[Parts]:
    """Valkey, web, one worker and beat, all running; the fakes have no records."""
    _parts.make_whole()
    if _parts.redis_was_hurt:  # who didn't reach Redis leaves it alone for some seconds
        wait_for(lambda: _streams_well(_parts), 30, "replies are streamed again")
        _parts.redis_was_hurt = False
    _parts.fakes.reset()
    yield _parts
