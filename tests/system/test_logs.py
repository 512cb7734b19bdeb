"""PATCHBAY_LOG_FORMAT=json: every line of every process is one, and none holds a text or a key."""

from __future__ import annotations

import json

import pytest

from tests.fakes.server import FakeProviders
from tests.system.attacks.server import Attacked
from tests.system.harness import wait_for

TEXT = "canary-" + "of-what-somebody-wrote"
KEY = "sk-canary-" + "0123456789-key"
TOKEN = "canary-" + "in-an-address"


@pytest.fixture(scope="module")
def output(tmp_path_factory, static_files):
    env = {"PATCHBAY_LOG_FORMAT": "json", "PATCHBAY_DEBUG": "1", "PATCHBAY_TITLES": "off"}
    with (
        FakeProviders() as fakes,
        Attacked(tmp_path_factory.mktemp("json"), env=env) as server,
    ):
        models = {"models": "err-echo\necho", "default_model": "err-echo"}
        server.add("failing", fakes.openai, KEY, **models)
        server.add("answering", fakes.openai, fakes.good_key, **models)
        found = {}
        for slug in ("failing", "answering"):
            found[slug] = server.send(slug, f"{TEXT} {slug}")
            server.wait_for_turn(found[slug])
        page = server.admin.get(found["failing"], headers={"X-Request-ID": "seen-by-me"})
        assert page.headers["x-request-id"] == "seen-by-me"
        nobody = server.client()
        nobody.sign_in(f"{TEXT}@example.com", TEXT)
        nobody.get(f"/join/{TOKEN}/?next={TOKEN}")
        nobody.get(f"/{TOKEN}/")
        nobody.get("/static/favicon.svg")
        # No such choice: what is raised quotes it.
        server.execute("UPDATE connections_connection SET auth_type = ?", TOKEN)
        assert server.admin.get("/connections/failing/").status_code == 500
        wait_for(lambda: '"celery.beat"' in server.output(), 60, "beat says something")
        wait_for(lambda: '"task": "sessions.tasks.sweep"' in server.output(), 60, "a task does")
        server.stop()
        yield server.output(), found, page.text


def test_every_line_is_an_object_that_says_when_how_bad_and_where_from(output):
    text, _found, _page = output
    console = ("Patchbay is at", "First-run token:")
    lines = [line for line in text.splitlines() if not line.startswith(console)]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(json.loads(line)), line


def test_requests_turns_tasks_and_faults_name_what_they_are_about(output):
    text, found, _page = output
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    chat = found["failing"].rstrip("/").rsplit("/", 1)[-1]
    turns = [line for line in lines if line["logger"] == "patchbay.turns"]
    assert [(line["state"], bool(line["turn_id"])) for line in turns] == [("failed", True)] * 2
    assert turns[0]["session_id"] == chat
    assert turns[0]["error"] == "auth"
    requests = [line for line in lines if line["logger"] == "patchbay.access"]
    assert all(line["request_id"] and line["status"] for line in requests)
    [mine] = [line for line in requests if line["request_id"] == "seen-by-me"]
    assert (mine["route"], mine["session_id"], mine["status"]) == (
        "/w/<str:workspace>/sessions/<uuid:chat_id>/",
        chat,
        200,
    )
    faults = [line for line in lines if line["logger"] == "django.request"]
    assert [line["level"] for line in faults] == ["ERROR"]
    assert "builtins.ValueError" in faults[0]["exception"]
    assert faults[0]["request_id"] in {line["request_id"] for line in requests}
    assert {"celery.beat"} <= {line["logger"] for line in lines}


def test_no_line_holds_a_text_a_key_or_a_part_of_an_address(output):
    text, _found, page = output
    assert TEXT in page  # the reply's owner reads it; the log doesn't
    for canary in (TEXT, KEY, TOKEN):
        assert canary not in text
