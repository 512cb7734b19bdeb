"""`make chaos`: people send, steer and queue messages while things break, by chance.

The real processes run (two web processes, two workers, beat, Valkey; SQLite or PostgreSQL) on a
fake provider. After each fault it waits until nothing runs and nothing waits, and checks that every
accepted message was answered or visibly failed once, in order; that the provider accepted no step
twice; that open pages show what is stored; that the database is sound; and that nobody had to help.
Exit code 1 when anything of it isn't so.

    python -m tests.chaos [--seed N] [--faults 40] [--postgres] [--only "worker killed"]
"""

from __future__ import annotations

import argparse
import os
import random
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--faults", type=int, default=40, help="how many, each kind at least once")
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL instead of SQLite")
    parser.add_argument("--only", help="this fault only")
    chosen = parser.parse_args()

    import django

    django.setup()
    from tests.chaos.trial import Trial
    from tests.system.harness import collect_static

    collect_static()
    print(f"seed {chosen.seed}", flush=True)
    with Trial(chosen.seed, on_postgres=chosen.postgres) as trial:
        kinds = list(trial.kinds())
        if chosen.only:
            names = [chosen.only] * chosen.faults
        else:
            names = kinds + trial.chance.choices(kinds, k=max(0, chosen.faults - len(kinds)))
            names = trial.chance.sample(names, len(names))[: chosen.faults]
        trial.run(names, tell=lambda line: print(line, flush=True))
        print(f"\n{trial.table()}\n")
        for name, times in trial.ended_alone.items():
            print(f"ended by itself: {name}, {times} times")
        for line in trial.violations:
            print(f"VIOLATION {line}")
        if trial.violations:
            print(f"Again with the same chances: --seed {chosen.seed}")
            print(trial.parts.output()[-20_000:], file=sys.stderr)
        return 1 if trial.violations else 0


if __name__ == "__main__":
    sys.exit(main())
