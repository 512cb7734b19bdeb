"""Processes that a test may break, started once and mended before each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.server import FakeProviders
from tests.system.parts import Parts


@pytest.fixture(scope="session")
def _parts(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Parts]:
    with FakeProviders() as fakes, Parts(tmp_path_factory.mktemp("parts"), fakes) as parts:
        yield parts


@pytest.fixture
def parts(_parts: Parts) -> Iterator[Parts]:
    """Valkey, web, one worker and beat, all running; the fakes have no records."""
    _parts.make_whole()
    _parts.fakes.reset()
    yield _parts
