"""Two hundred connections validated at once, on providers that take 0.3 s for every answer."""

from __future__ import annotations

import datetime as dt
import statistics
import time

from tests.system.harness import wait_for
from tests.system.parts import Parts

MANY = 200
ALONE = 5  # are validated one after another, for the comparison


def test_two_hundred_at_once_take_less_than_a_twentieth_of_one_after_another(parts: Parts):
    parts.manage(
        "shell",
        "-v0",
        "-c",
        "from tests.builders import make_connection as make\n"
        f"for n in range({MANY}):\n"
        f"    make(f'late-{{n}}', base_url={parts.fakes.late!r}, models=['echo'],"
        f" default_model='echo', key={parts.fakes.good_key!r})\n"
        "from connections.models import Connection\n"
        "Connection.objects.update(next_check_at='2100-01-01T00:00Z')",
    )
    slugs = [f"late-{n}" for n in range(MANY)]

    alone = 0.0
    for slug in slugs[:ALONE]:
        asked = time.monotonic()
        parts.admin.post(f"/connections/{slug}/validate/")
        wait_for(lambda slug=slug: finished(parts, slug), what=f"{slug} is validated")
        alone += time.monotonic() - asked
    parts.execute("DELETE FROM connections_proberesult")

    asked = dt.datetime.now(dt.UTC)
    answer = parts.admin.post("/connections/validate/", data={"only": "selected", "slug": slugs})
    assert answer.status_code == 303
    pages = []
    while len(ends := finished(parts)) < MANY:
        started = time.monotonic()
        parts.admin.get("/connections/").raise_for_status()
        pages.append(time.monotonic() - started)
        assert dt.datetime.now(dt.UTC) - asked < dt.timedelta(seconds=120)
    took = (max(ends) - asked).total_seconds()
    one_by_one = alone / ALONE * MANY
    print(
        f"{MANY} at once {took:.1f} s, one after another {one_by_one:.0f} s (1/"
        f"{one_by_one / took:.0f}); the list meanwhile {statistics.median(pages):.2f} s"
    )
    outcomes = parts.rows("SELECT passed, count(*) AS n FROM connections_proberesult GROUP BY 1")
    assert outcomes == [{"passed": 1, "n": MANY}]
    assert took < one_by_one / 20
    assert statistics.median(pages) < 1


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
