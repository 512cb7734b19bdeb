"""How connections did: the page of one, the overview of all, the bars in the list."""

import datetime as dt
import re

import pytest
from django.utils import timezone

from connections import health
from connections.models import ProbeResult
from tests.builders import make_connection

pytestmark = pytest.mark.django_db

NOW = dt.datetime(2026, 11, 26, 12, tzinfo=dt.UTC)


@pytest.fixture
def page(client_for, alice):
    return client_for(alice)


def add(connection, *, at=None, hours=0, passed=True, **fields):
    """A probe that ended, `hours` before NOW."""
    at = at or NOW - dt.timedelta(hours=hours)
    return ProbeResult.objects.create(
        connection=connection, started_at=at, finished_at=at, passed=passed, **fields
    )


def ended(connection):
    return list(connection.probes.order_by("started_at"))


def rung(name, ms, outcome="passed", detail=""):
    return {"rung": name, "outcome": outcome, "ms": ms, "kind": "", "detail": detail}


# -- counting --------------------------------------------------------------------------------------


def test_probes_are_counted_by_day_of_utc_and_connection():
    one, other = make_connection("one"), make_connection("other")
    midnight = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
    add(one, at=midnight)
    add(one, at=midnight - dt.timedelta(microseconds=1), passed=False)
    add(one, at=midnight, passed=None)
    add(other, at=NOW, passed=False)
    add(one, at=NOW - dt.timedelta(days=3))  # before the first day
    ProbeResult.objects.create(connection=one, started_at=NOW)  # under way
    found = health.strips([one.pk, other.pk], 3, now=NOW)
    counts = [[(d.passed, d.failed, d.untested) for d in strip.days] for strip in found.values()]
    assert counts == [[(0, 1, 0), (1, 0, 1), (0, 0, 0)], [(0, 0, 0), (0, 0, 0), (0, 1, 0)]]
    assert [day.day.day for day in found[one.pk].days] == [24, 25, 26]
    assert found[one.pk].share == 50.0
    assert "1 without a failure, 1 with, 1 unproven. The last failure was on November 24." in (
        found[one.pk].label
    )


def test_one_query_counts_any_number_of_connections(django_assert_num_queries):
    keys = [make_connection(f"c{n}").pk for n in range(30)]
    with django_assert_num_queries(1):
        assert len(health.strips(keys, 30)) == 30
    with django_assert_num_queries(0):
        assert health.strips([], 30) == {}


def test_a_bar_shows_how_much_failed_and_a_day_without_a_proof_is_a_mark():
    day = NOW.date()
    bars = health.Strip(
        [
            health.Day(day, passed=4),
            health.Day(day, passed=99, failed=1),
            health.Day(day, failed=2),
            health.Day(day, untested=1),
        ]
    ).bars
    assert [(bar.y, bar.height, bar.failed) for bar in bars] == [
        (0, 28, 0),
        (6, 22, 6),
        (28, 0, 28),
        (24, 4, 0),
    ]
    assert [bar.words.partition(": ")[2] for bar in bars] == [
        "4 passed",
        "99 passed, 1 failed",
        "2 failed",
        "proved nothing",
    ]


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        ([], None),
        ([(10, None)], None),
        ([(12, True)], 100.0),
        ([(12, False)], 0.0),
        ([(12, True), (6, False)], 50.0),
        ([(12, True), (6, False), (5.9, False), (5.8, False)], 50.0),  # three presses, one outage
        ([(12, True), (9, None), (6, False)], 50.0),  # proves nothing, changes nothing
        ([(100, False), (12, True)], 100.0),  # that was before the day
        ([(30, False), (12, True)], 63.1),  # the failure's last 7 hours lie in the day
    ],
)
def test_uptime_is_the_share_of_known_time(probes, expected):
    connection = make_connection("local")
    for hours, passed in probes:
        add(connection, hours=hours, passed=passed)
    assert health.uptime(ended(connection), 1, now=NOW) == expected


def test_almost_always_is_not_always():
    assert health._percent(99_999, 100_000) == 99.9


def test_times_are_of_what_passed_by_nearest_rank():
    connection = make_connection("local")
    for ms in range(1, 101):
        add(connection, latency_ms=ms, rungs=[rung("network", ms), rung("auth", None)])
    failed = [rung("network", 7), rung("auth", 9_000, "failed")]
    add(connection, passed=False, latency_ms=9_007, rungs=failed)
    whole, network = health.latencies(ended(connection))
    assert (whole.samples, whole.p50, whole.p95) == (100, 50, 95)
    assert (network.label, network.samples, network.p50, network.p95) == ("Network", 101, 50, 95)
    assert health.percentile([], 50) is None
    assert health.percentile([3], 95) == 3


def test_failures_of_a_kind_in_a_row_are_one_error():
    connection = make_connection("local")
    for hours, passed, kind in [
        (9, False, "auth"),
        (8, None, ""),
        (7, False, "auth"),
        (6, False, "quota"),
        (5, True, ""),
        (4, False, "auth"),
    ]:
        add(connection, hours=hours, passed=passed, error_kind=kind)
    first, second, third = health.troubles(ended(connection))
    assert (first.times, first.recovered) == (2, False)
    assert first.ended == second.first
    assert (str(second.sentence.title), second.recovered) == ("Quota used up", True)
    assert (third.times, third.ended) == (1, None)


# -- the page of one -------------------------------------------------------------------------------


def test_the_page_draws_90_days_and_says_the_same_in_words(page):
    connection = make_connection("local", health="failed", health_error="auth")
    now = timezone.now()
    add(connection, at=now - dt.timedelta(days=1, hours=2), latency_ms=80)
    failed = [rung("network", 12), rung("auth", 40, "failed", "<b>bad</b> key")]
    add(connection, at=now, passed=False, error_kind="auth", rungs=failed, latency_ms=52)
    html = page.get("/connections/local/health/").text
    drawing = re.search(r'<svg class="days".*?</svg>', html, re.DOTALL)[0]
    assert drawing.count("<g>") == drawing.count("<title>") == 90
    assert drawing.count('data-tone="danger"') == drawing.count('data-tone="success"') == 1
    assert 'role="img" aria-label="90 days: 1 without a failure, 1 with, 88 unproven.' in drawing
    assert "The provider rejected this key. Paste a new key and validate again." in html
    assert "&lt;b&gt;bad&lt;/b&gt; key" in html
    assert "Goes on" in html
    assert "80 ms" in html
    assert "style=" not in html
    assert 'href="/connections/local/health/"' in page.get("/connections/local/").text


def test_without_a_validation_the_page_says_so(page):
    make_connection("local")
    html = page.get("/connections/local/health/").text
    assert "No validation in 90 days" in html
    assert '<svg class="days"' not in html


def test_the_page_of_one_costs_the_same_for_any_number_of_probes(page, django_assert_num_queries):
    connection = make_connection("local")
    sizes = []
    for _size in range(2):
        for hours in range(30):
            add(connection, at=timezone.now() - dt.timedelta(hours=hours), passed=bool(hours % 2))
        with django_assert_num_queries(7) as counted:
            page.get("/connections/local/health/")
        sizes.append(len(counted))
    assert sizes[0] == sizes[1]


def test_an_old_probe_and_one_too_many_are_left_out(monkeypatch):
    connection = make_connection("local")
    add(connection, hours=24 * 91, passed=False)
    for hours in range(4):
        add(connection, hours=hours)
    assert health.report(connection, now=NOW).probes == 4
    monkeypatch.setattr(health, "MOST_PROBES", 3)
    report = health.report(connection, now=NOW)
    assert (report.probes, report.is_cut) == (3, True)


# -- all of them -----------------------------------------------------------------------------------


def test_the_overview_shows_every_connection_with_its_days_the_failing_first(page):
    good = make_connection("good", health="valid")
    bad = make_connection("bad", health="failed", health_error="quota", health_at=timezone.now())
    make_connection("paused", health="failed", enabled=False)
    make_connection("gone", deleted_at=timezone.now())
    add(good, at=timezone.now())
    add(good, at=timezone.now(), passed=False)
    add(good, at=timezone.now())
    html = page.get("/connections/status/").text
    assert re.findall(r'<tr id="status-(\w+)"', html) == ["bad", "good", "paused"]
    row = html.partition('id="status-good"')[2].partition("</tr>")[0]
    assert re.findall(r'data-tone="(\w+)"/>', row) == ["success", "neutral", "danger"]
    assert "30 days: 0 without a failure, 1 with, 29 unproven." in row
    assert "66.6 %" in row
    assert "Quota used up" in html.partition(f'id="status-{bad.slug}"')[2].partition("</tr>")[0]
    assert "style=" not in html


def test_the_overview_can_show_one_status_alone(page):
    make_connection("good", health="valid")
    make_connection("bad", health="failed", health_error="quota")
    html = page.get("/connections/status/?show=failed").text
    assert re.findall(r'<tr id="status-(\w+)"', html) == ["bad"]
    assert "None of that status" in page.get("/connections/status/?show=unchecked").text
    assert page.get("/connections/status/?show=nonsense&page=x").text.count('<tr id="status-') == 2


def test_the_overview_without_connections_says_so(page):
    assert "No connections yet" in page.get("/connections/status/").text


def test_the_overview_costs_the_same_for_any_number(page, django_assert_num_queries):
    page.get("/connections/status/")
    counts = []
    for start, size in ((0, 2), (2, 28)):
        for n in range(start, start + size):
            connection = make_connection(f"c{n}")
            add(connection, at=timezone.now())
            add(connection, at=timezone.now(), passed=False)
        with django_assert_num_queries(8) as counted:
            html = page.get("/connections/status/").text
        counts.append(len(counted))
        assert html.count('<tr id="status-') == start + size
    assert counts[0] == counts[1]


def test_a_row_of_the_list_shows_its_days_and_leads_to_its_health(page):
    connection = make_connection("local")
    add(connection, at=timezone.now(), passed=False)
    for path in ("/connections/", "/connections/local/row/"):
        row = re.search(r'<tr id="connection-local".*?</tr>', page.get(path).text, re.DOTALL)[0]
        drawn = dict(re.findall(r'<path d="(\w[^"]*)" data-tone="(\w+)"', row))
        assert {tone: d.count("M") for d, tone in drawn.items()} == {"neutral": 13, "danger": 1}
        assert 'href="/connections/local/health/"' in row
        assert "14 days: 0 without a failure, 1 with, 13 unproven." in row


def test_a_slug_that_is_a_page_of_its_own_is_not_given(page):
    answer = page.post("/connections/new/", {"name": "X", "slug": "status"})
    assert answer.status_code == 422
    assert "status" in answer.text
