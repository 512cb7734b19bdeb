"""Whatever happens to a secret leaves a row that says who, what and where, but not the value; where
that row can't be written, it doesn't happen."""

from __future__ import annotations

import contextlib
import json

from tests.system.attacks.canary import hits
from tests.system.attacks.listener import Listener, reply
from tests.system.attacks.server import FORM
from tests.system.harness import wait_for

KEYS = ("sk-fake-good-audit-vwxy", "sk-fake-good-audit-rstu")
HEADER = "header-audit-klmn"
TRIGGER = """
CREATE TRIGGER no_audit BEFORE INSERT ON workspaces_auditevent
BEGIN SELECT RAISE(ABORT, 'the audit is full'); END
"""


@contextlib.contextmanager
def no_audit(attacked):
    attacked.execute(TRIGGER)
    try:
        yield
    finally:
        attacked.execute("DROP TRIGGER no_audit")


def state(attacked):
    tables = ("connections_connection", "connections_secret", "connections_proberesult")
    return [attacked.rows(f"SELECT * FROM {table} ORDER BY id") for table in tables]


def test_the_life_of_a_secret_is_in_the_audit(attacked, fakes):
    with Listener(lambda request: reply("hello")) as other:
        attacked.add("audited", fakes.openai, KEYS[0], extra_headers=f"X-Team: {HEADER}")
        attacked.ask("audited", "hello")
        attacked.validate("audited")
        moved = {"base_url": f"{other.url}/v1", "api_key": KEYS[1]}
        assert attacked.edit("audited", **moved).status_code == 422
        moved["extra_headers"] = "{}"
        assert attacked.edit("audited", **moved).status_code == 303
        attacked.wait_for_probe("audited")
        attacked.ask("audited", "hello")
        assert attacked.edit("audited", auth_type="none").status_code == 303
        attacked.wait_for_probe("audited")
        attacked.admin.post("/connections/audited/delete/")
    here, there = fakes.url, other.url

    created = attacked.audit("connection.create", "audited")
    assert [row["details"]["host"] for row in created] == [here]
    stored = [row["details"] for row in attacked.audit("secret.store", "audited")]
    assert [(one["purpose"], one["host"], one.get("old_host")) for one in stored] == [
        ("auth", here, None),
        ("headers", here, None),
        ("auth", there, here),
    ]
    used = [row["details"]["host"] for row in attacked.audit("secret.use", "audited")]
    assert used == [here, there]
    tested = attacked.audit("connection.validate", "audited")
    assert [row["details"]["trigger"] for row in tested] == ["save", "button", "save", "save"]
    changed = attacked.audit("connection.update", "audited")[0]["details"]
    assert (changed["old_host"], changed["host"]) == (here, there)
    destroyed = [row["details"] for row in attacked.audit("secret.destroy", "audited")]
    assert [(one["purpose"], one["host"]) for one in destroyed] == [
        ("headers", here),
        ("auth", there),
    ]
    assert len(attacked.audit("connection.delete", "audited")) == 1

    rows = attacked.rows("SELECT * FROM workspaces_auditevent WHERE target_label = 'audited'")
    assert {row["actor_label"] for row in rows} == {"alice@example.com"}
    evidence = {"audit": json.dumps(rows, default=str).encode()}
    for secret in (*KEYS, HEADER, KEYS[0][-4:], KEYS[1][-4:]):
        assert hits(secret, evidence) == []


def test_deleting_a_connection_with_a_secret_says_that_the_secret_went(attacked, fakes):
    attacked.add("removed", fakes.openai, KEYS[0], extra_headers=f"X-Team: {HEADER}")
    attacked.admin.post("/connections/removed/delete/")
    assert attacked.secrets("removed") == {}
    destroyed = [row["details"]["purpose"] for row in attacked.audit("secret.destroy", "removed")]
    assert sorted(destroyed) == ["auth", "headers"]


def test_without_its_row_nothing_happens(attacked, fakes):
    attacked.add("unaudited", fakes.openai, KEYS[0])
    session = attacked.send("unaudited", "before")
    assert attacked.wait_for_turn(session)["state"] == "done"
    attacked.add("unaudited-too", fakes.openai, KEYS[0])
    used = "SELECT 1 FROM connections_connection WHERE slug = 'unaudited' AND last_used_at NOTNULL"
    wait_for(lambda: attacked.rows(used), what="the worker has told of the turn")
    fakes.reset()
    before = state(attacked)
    fresh = {**FORM, "name": "fresh", "base_url": fakes.openai, "api_key": KEYS[1]}
    with no_audit(attacked):
        for path, data in (
            ("new/", fresh),
            ("unaudited/edit/", {"api_key": KEYS[1]}),
            ("unaudited/edit/", {"base_url": "http://localhost:1/v1", "api_key": KEYS[1]}),
            ("unaudited/edit/", {"auth_type": "none"}),
            ("unaudited/edit/", {"extra_headers": "X-Team: 1"}),
            ("unaudited/validate/", {}),
            ("validate/", {"only": "all"}),
            ("unaudited/enable/", {"enabled": "false"}),
            ("unaudited-too/default/", {}),
            ("unaudited/delete/", {}),
        ):
            answer = attacked.admin.post(f"/connections/{path}", data=data)
            assert answer.status_code == 500, path
            assert not hits(KEYS[1], {path: answer.content})
        assert attacked.manage("export_connections", check=False).returncode != 0
        assert state(attacked) == before
        assert fakes.requests() == []
        # a turn uses the secret: not without the row that says so
        log = len(attacked.output())
        assert attacked.say(session, "without a row")
        wait_for(lambda: "IntegrityError" in attacked.output()[log:], 30, "the worker has tried")
        assert fakes.requests() == []
    wait_for(lambda: fakes.requests(last_user="without a row"), 60, "the turn goes on")
    assert attacked.wait_for_turn(session)["text"] == "without a row"
    assert len(attacked.audit("secret.use", "unaudited")) == 2


def test_an_import_without_its_row_brings_nothing_in(attacked, tmp_path):
    entry = {"slug": "in", "name": "in", "providerType": "anthropic", "authType": "api_key"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"llmConnections": [entry]}))
    with no_audit(attacked):
        assert attacked.manage("import_connections", str(file), check=False).returncode != 0
    assert not attacked.rows("SELECT 1 FROM connections_connection WHERE slug = 'in'")
