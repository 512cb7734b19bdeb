"""The short form of `make chaos`: a few faults by chance while people send, steer and queue."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from django.db import connection

from tests.chaos.trial import Trial

ON_POSTGRES = connection.vendor == "postgresql"
# One of each row; those that last half a minute are in `make chaos` alone.
CHOICES = (
    ("worker killed", "all workers killed", "worker told to end"),
    ("Valkey killed, restarted empty", "Valkey killed, restarted with its file", "web killed"),
    ("beat killed", "web told to end") if ON_POSTGRES else ("database full", "disk full"),
)


@pytest.mark.both_databases
def test_nothing_is_lost_and_nothing_is_done_twice(tmp_path: Path, static_files: None):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with Trial(seed, on_postgres=ON_POSTGRES, folder=tmp_path) as trial:
        trial.run([trial.chance.choice(row) for row in CHOICES])
        print(trial.table())
        assert trial.violations == []
        assert sum(row.counts["answered"] for row in trial.rows.values()) > 10
