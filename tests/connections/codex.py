"""What the tests of Codex share: the real binary against the fake Responses API."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings

from connections.providers.base import Target
from tests.fakes.server import GOOD_KEY, FakeProviders


def target(fakes: FakeProviders, *, key: str = GOOD_KEY, **more: Any) -> Target:
    about = {
        "provider_type": "openai",
        "auth_type": "api_key_with_endpoint",
        "base_url": fakes.openai,
        "secret": {"api_key": key},
        "codex_path": settings.CODEX_PATHS[0],
    }
    return Target(**(about | more))


def processes(of: int | None = None) -> list[int]:
    """The living Codex processes that `of` (this process, unless given) started."""
    found = []
    for pid in children(os.getpid() if of is None else of):
        with contextlib.suppress(OSError):
            if b"app-server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def children(parent: int) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state not in "ZX":
                yield int(folder.name)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def homes() -> list[Path]:
    folder = Path(settings.DATA_DIR) / "codex" / "homes"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def readable_memory(pid: int) -> bytes:
    """What the process can write: its heap, stacks and data."""
    pieces = []
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            if not rights.startswith("rw"):
                continue
            start, end = (int(one, 16) for one in span.split("-"))
            try:
                memory.seek(start)
                pieces.append(memory.read(end - start))
            except (OSError, OverflowError, ValueError):
                continue
    return b"".join(pieces)
