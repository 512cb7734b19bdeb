"""`/metrics`: who may read it, what it says, and what it never says."""

from __future__ import annotations

import re

import pytest
from django.db import DatabaseError
from prometheus_client.parser import text_string_to_metric_families

from config import metrics
from sessions import sending
from sessions.models import ChatSession
from tests.builders import make_connection, make_user, make_workspace

pytestmark = pytest.mark.django_db
TOKEN = "a-token-of-the-tests"


@pytest.fixture
def token(settings):
    settings.METRICS_TOKEN = TOKEN
    return {"Authorization": f"Bearer {TOKEN}"}


def figures(answer):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_without_a_token_of_the_operator_it_is_not_there(client, path):
    assert client.get(path).status_code == 404
    assert client.get(path, headers={"Authorization": "Bearer "}).status_code == 404


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", "Bearer é"])
def test_a_wrong_token_is_refused(client, token, given):
    headers = {"Authorization": given} if given is not None else {}
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 401
    assert b"patchbay_" not in answer.content


def test_it_tells_what_waits_and_names_nobody(client, token, django_assert_max_num_queries):
    space, bob = make_workspace("canary-space"), make_user("canary@example.com")
    make_connection("canary", is_default=True)
    chat = ChatSession.objects.create(workspace=space, owner=bob)
    sending.send(chat.pk, bob, "canary text", ring=False)
    sending.send(chat.pk, bob, "another", ring=False)
    with django_assert_max_num_queries(12):
        answer = client.get("/metrics", headers=token)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = figures(answer)
    assert found["patchbay_turns", "pending"] == 1
    assert found["patchbay_turns", "running"] == 0
    assert found["patchbay_messages_waiting", "steering"] == 1
    assert found["patchbay_connections", "unchecked"] == 1
    assert found["patchbay_turn_wait_seconds",] >= 0
    assert found["patchbay_audit_unsealed",] > 0
    assert found["patchbay_turns_ended_total",] == 0
    assert found["process_resident_memory_bytes",] > 1_000_000
    assert not re.search("canary", answer.content.decode())


def test_a_dead_database_is_a_figure_and_no_fault(client, token, monkeypatch):
    def fail():
        raise DatabaseError("down")
        yield

    monkeypatch.setattr(metrics, "database_state", lambda: "down")
    found = figures(client.get("/metrics", headers=token))
    assert found["patchbay_database_up",] == 0
    assert ("patchbay_turns", "pending") not in found
    monkeypatch.setattr(metrics, "database_state", lambda: "ok")
    monkeypatch.setattr(metrics, "_stored", fail)
    assert client.get("/metrics", headers=token).status_code == 200
