"""`make bench-probes`: two hundred connections validated at once, against one after another.

The fake provider takes 0.3 s for every answer. The real processes validate: first a few of the
connections, each when the one before has ended, then all of them, asked for in one request, while
somebody looks at the list of connections twice a second.

    python -m tests.bench.probes [--connections 200]
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path

from tests.fakes.server import FakeProviders
from tests.system.harness import collect_static, wait_for
from tests.system.parts import Parts

ALONE = 5  # are validated one after another, for the comparison
MAKE = """
from connections.models import Connection
from tests.builders import make_connection
for n in range({many}):
    make_connection(
        f"late-{{n}}", base_url={url!r}, models=["echo"], default_model="echo", key={key!r}
    )
Connection.objects.update(next_check_at="2100-01-01T00:00Z")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=200)
    many = parser.parse_args().connections
    collect_static()
    for name in ("PATCHBAY_SECRET_KEYS", "SECRET_KEY"):
        os.environ.setdefault(name, secrets.token_urlsafe(32))
    with tempfile.TemporaryDirectory() as folder, FakeProviders() as fakes:
        parts = Parts(Path(folder) / "patchbay", fakes)
        try:
            parts.start()
            measure(parts, many)
        finally:
            parts.stop()


def measure(parts: Parts, many: int) -> None:
    key = parts.fakes.good_key
    parts.manage("shell", "-v0", "-c", MAKE.format(many=many, url=parts.fakes.late, key=key))
    slugs = [f"late-{n}" for n in range(many)]

    one_by_one = 0.0
    for slug in slugs[:ALONE]:
        asked = time.monotonic()
        parts.admin.post(f"/connections/{slug}/validate/")
        wait_for(lambda slug=slug: finished(parts, slug), what=f"{slug} is validated")
        one_by_one += (time.monotonic() - asked) / ALONE * many
    parts.execute("DELETE FROM connections_proberesult")

    asked_at = dt.datetime.now(dt.UTC)
    data = {"only": "selected", "slug": slugs}
    assert parts.admin.post("/connections/validate/", data=data).status_code == 303
    pages = []
    while len(ends := finished(parts)) < many:
        started = time.monotonic()
        parts.admin.get("/connections/").raise_for_status()
        pages.append((time.monotonic() - started) * 1000)
        time.sleep(0.5)
    at_once = (max(ends) - asked_at).total_seconds()
    passed = parts.rows("SELECT count(*) AS n FROM connections_proberesult WHERE passed")[0]["n"]
    print(f"{many} connections, {passed} valid")
    print(f"one after another {one_by_one:8.1f} s  (from {ALONE} of them)")
    print(f"at once           {at_once:8.1f} s  (1/{one_by_one / at_once:.0f})")
    print(f"the list meanwhile {statistics.median(pages):7.0f} ms median, {max(pages):.0f} ms most")


def finished(parts: Parts, slug: str = "") -> list[dt.datetime]:
    """When the probes ended; those of one connection."""
    rows = parts.rows(
        "SELECT finished_at FROM connections_proberesult AS probe"
        " JOIN connections_connection AS one ON one.id = probe.connection_id"
        " WHERE finished_at IS NOT NULL AND (one.slug = ? OR ? = '')",
        slug,
        slug,
    )
    return [dt.datetime.fromisoformat(row["finished_at"]).replace(tzinfo=dt.UTC) for row in rows]


if __name__ == "__main__":
    main()
