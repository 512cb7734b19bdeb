"""The page of one connection: its health, ladder, history, models and facts."""

import datetime as dt

import pytest
from django.utils import timezone

from connections.models import Connection, ProbeResult
from tests.builders import KEY, give_access, make_connection, make_secret, make_workspace

pytestmark = pytest.mark.django_db

FAILED = [
    {"rung": "config", "outcome": "passed", "ms": None, "kind": "", "detail": ""},
    {"rung": "network", "outcome": "passed", "ms": 12, "kind": "", "detail": ""},
    {
        "rung": "auth",
        "outcome": "failed",
        "ms": 1_340,
        "kind": "auth",
        "detail": "<b>invalid x-api-key</b>",
    },
    *(
        {"rung": rung, "outcome": "not_tested", "ms": None, "kind": "", "detail": ""}
        for rung in ("models", "answer", "stream")
    ),
]


@pytest.fixture
def page(client_for, alice):
    return client_for(alice)


def add_probe(connection, *, minutes=0, **fields):
    started = timezone.now() - dt.timedelta(minutes=minutes)
    values = {"finished_at": started, "passed": True, "latency_ms": 80, "rungs": []}
    return ProbeResult.objects.create(
        connection=connection, started_at=started, **(values | fields)
    )


def test_a_failed_probe_says_where_it_stopped_and_what_to_do(page, alice):
    local = make_connection("local", health="failed", health_error="auth", health_at=timezone.now())
    add_probe(local, passed=False, error_kind="auth", rungs=FAILED, requested_by=alice)
    html = page.get("/connections/local/").text
    assert 'data-status="failed"' in html
    assert "The provider rejected this key. Paste a new key and validate again." in html
    assert 'data-outcome="failed"' in html
    assert html.count('data-outcome="not_tested"') == 3
    assert "12 ms" in html
    assert "1.3 s" in html
    words = html.partition("own words")[2].partition("</details>")[0]
    assert "&lt;b&gt;invalid x-api-key&lt;/b&gt;" in words
    assert "alice@example.com" in html


@pytest.mark.parametrize(
    ("fields", "aged"),
    [({"health": "valid"}, True), ({"enabled": False}, False), ({"key": None}, False)],
)
def test_only_a_health_that_was_tested_shows_its_age(page, fields, aged):
    make_connection("local", health_at=timezone.now() - dt.timedelta(minutes=7), **fields)
    assert ("7 min ago" in page.get("/connections/local/").text) is aged


def test_while_it_is_checked_the_health_asks_for_itself_and_then_stops(page):
    local = make_connection("local")
    assert "Never validated." in page.get("/connections/local/").text
    page.post("/connections/local/validate/")
    health = {"HX-Request": "true", "HX-Target": "health"}
    part = page.get("/connections/local/", headers=health).text
    assert 'hx-trigger="every 1s"' in part
    assert 'data-outcome="running"' in part
    assert "<html" not in part
    Connection.objects.update(checking_until=None, health="valid", health_at=timezone.now())
    local.probes.update(finished_at=timezone.now(), passed=True, latency_ms=40)
    part = page.get("/connections/local/", headers=health).text
    assert 'data-status="valid"' in part
    assert "hx-trigger" not in part


def test_earlier_probes_are_drawn_oldest_first(page):
    local = make_connection("local")
    add_probe(local, minutes=30, passed=False, error_kind="quota", latency_ms=200)
    add_probe(local, minutes=20, latency_ms=12_000)
    add_probe(local, minutes=10, passed=None, latency_ms=None)
    add_probe(local, minutes=0, latency_ms=80)
    html = page.get("/connections/local/").text
    bars = html.partition('class="history"')[2].partition("</ol>")[0]
    tones = [piece.partition('"')[0] for piece in bars.split('data-tone="')[1:]]
    levels = [piece.partition('"')[0] for piece in bars.split('data-level="')[1:]]
    assert tones == ["danger", "success", "neutral", "success"]
    assert levels == ["5", "5", "5", "2"]
    assert "Quota used up, 0.2 s" in bars
    assert "style=" not in html


def test_every_field_is_on_the_page(page, alice, workspace):
    local = make_connection(
        "local",
        provider_type="openai_compat",
        models=["small", {"id": "big", "contextWindow": 200_000, "supportsImages": True}],
        custom_endpoint_api="anthropic-messages",
        mid_stream_behavior="queue",
        auth_header="bearer",
        max_tokens_field="max_completion_tokens",
        aws_region="eu-central-1",
        gcp_project_id="project-1",
        gcp_region="europe-west1",
        codex_path="/opt/codex",
        note="Ask Dana.\n<script>alert(1)</script>",
        access="chosen",
        created_by=alice,
        unknown_fields={"futureField": 1},
        last_used_at=timezone.now(),
    )
    make_secret(local, {"X-Team": "header-canary"}, purpose="headers")
    local.secrets.filter(purpose="auth").update(hints={"api_key": "x7Q2"})
    local.secrets.filter(purpose="headers").update(hints={"X-Team": ""})
    give_access(workspace, local, is_default=True, allowed_models=["small"])
    html = page.get("/connections/local/").text
    for text in (
        "OpenAI-compatible endpoint",
        "API key with endpoint",
        "https://llm.example.com/v1",
        "Anthropic Messages",
        "Queue until ready",
        "Authorization: Bearer",
        "max_completion_tokens",
        "eu-central-1",
        "project-1",
        "europe-west1",
        "/opt/codex",
        "Ask Dana.",
        "alice@example.com",
        "futureField",
        "ends in …x7Q2",
        "X-Team",
        "small; its default",
        "200K",
        "128K",
    ):
        assert text in html, text
    assert "<script>alert" not in html
    assert "header-canary" not in html
    assert KEY not in html


def test_how_models_are_kept_is_not_called_an_import(page):
    make_connection(
        "local", unknown_fields={"modelSelectionMode": "automaticallySyncedFromProvider"}
    )
    assert "Kept from import" not in page.get("/connections/local/").text


def test_a_paused_connection_says_so_with_its_message(page):
    make_connection("local", enabled=False, paused_message="Back on Monday.")
    html = page.get("/connections/local/").text
    assert 'data-status="disabled"' in html
    assert "Back on Monday." in html


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"key": None}, "Enter it on the connection"),
        ({"provider_type": "anthropic", "auth_type": "oauth", "key": None}, "PATCHBAY_OAUTH"),
    ],
)
def test_a_missing_secret_says_what_to_do(page, fields, words):
    make_connection("local", **fields)
    assert words in page.get("/connections/local/").text


def test_the_queries_do_not_grow(page, django_assert_num_queries, django_assert_max_num_queries):
    local = make_connection("local")
    add_probe(local)
    give_access(make_workspace("one"), local)
    with django_assert_max_num_queries(13) as few:
        page.get("/connections/local/")
    for number in range(20):
        add_probe(local, minutes=number)
        give_access(make_workspace(f"more-{number}"), local)
    Connection.objects.update(models=[f"model-{n}" for n in range(300)])
    with django_assert_num_queries(len(few)):
        page.get("/connections/local/")
