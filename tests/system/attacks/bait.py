"""A program and a file that tell when somebody takes them."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path


class Bait:
    """A program that leaves a mark when it runs, and a file that tells when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.program, self.file, self._mark = folder / "program", folder / "file", folder / "mark"
        self.program.write_text(f"#!/bin/sh\ntouch {self._mark}\n")
        self.program.chmod(0o755)
        os.mkfifo(self.file)
        self._opened = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        with self.file.open("wb"):  # opens when somebody opens it to read
            self._opened.set()

    @property
    def taken(self) -> list[str]:
        assert stat.S_ISFIFO(self.file.stat().st_mode)
        return ["ran"] * self._mark.exists() + ["read"] * self._opened.is_set()
