"""A worker's turns in this process, for tests on the test database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.test import override_settings

from sessions.worker import Crew
from workspaces.runtime import Runtime


@contextlib.contextmanager
def running_crew(*, sweeps: bool = True, **settings: Any) -> Iterator[Crew]:
    """A crew that may call this machine, unless the settings say otherwise, and makes no titles."""
    runtime = Runtime()
    with override_settings(**{"EGRESS_ALLOW": "127.0.0.0/8", "TITLES": False, **settings}):
        crew = Crew(runtime, sweeps=sweeps)
        yield crew
        crew.close(5)
        runtime.stop(0)  # no turn runs: only the chores sleep, for up to a second
