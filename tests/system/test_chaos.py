"""The short form of `make chaos`: three faults while people send, steer and queue."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import connection

from tests.chaos import soak
from tests.chaos.trial import CALM, Trial

ON_POSTGRES = connection.vendor == "postgresql"
# The same each time; `make chaos` draws all kinds by chance, those that last half a minute too.
FAULTS = ("worker killed", "web killed", "beat killed" if ON_POSTGRES else "database full")
SEED = 20


@pytest.mark.both_databases
def test_nothing_is_lost_and_nothing_is_done_twice(tmp_path: Path, static_files: None):
    with Trial(SEED, on_postgres=ON_POSTGRES, folder=tmp_path) as trial:
        trial.run(FAULTS)
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
