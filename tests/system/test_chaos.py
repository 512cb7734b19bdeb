"""The short form of `make chaos`: a few faults by chance while people send, steer and queue."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from django.db import connection

from tests.chaos import soak
from tests.chaos.trial import CALM, Trial

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
        assert sum(row.counts["answered"] for row in trial.rows.values()) > 5


def test_the_soak_measures_and_counts(tmp_path: Path, static_files: None, capsys):
    """A look at the instrument: one measured turn, two samples, and what is said of them."""
    with Trial(1, folder=tmp_path) as trial:
        measured = soak.Measured(trial)
        samples = [soak.sample(trial)]
        measured.turn("how long does it take?")
        trial.run([CALM])
        samples.append(soak.sample(trial))
        soak.report(samples, measured.found, trial)
        assert trial.violations == []
    assert measured.found.failed == 0
    assert len(measured.found.first) == 1
    assert 0 < measured.found.first[0] < 20_000
    assert len(measured.found.relay) == 30
    assert samples[1]["web MB"] > 50
    assert samples[1]["worker descriptors"] > 10
    said = capsys.readouterr().out
    assert "first token " in said
    assert "slope" in said
