"""Turns on an expired OAuth token in several worker processes, and a worker that is killed right
after the issuer has answered."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from tests.fakes.server import FakeProviders
from tests.system.harness import wait_for
from tests.system.parts import Chat, Parts

WORKERS = ("worker", "worker-2", "worker-3")
SECRETS = ("code", "code_verifier")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Parts]:
    """The running product with the connection `claude`."""
    with FakeProviders() as fakes:
        running = Parts(tmp_path_factory.mktemp("oauth"), fakes)
        running.env |= fakes.oauth_env() | {"PATCHBAY_DEBUG": "1"}
        make = "from tests.builders import make_connection as make\n"
        make += "made = make('claude', provider_type='anthropic', auth_type='oauth',"
        make += f" base_url={fakes.anthropic_oauth!r}, models=['echo'], default_model='echo')\n"
        with running:
            running.manage("shell", "-v0", "-c", make)
            yield running


@pytest.fixture
def parts(system: Parts) -> Parts:
    """`system`, whole, with `claude` signed in anew through its page."""
    system.make_whole()
    system.fakes.issuer.hold = 0
    sign_in(system)
    no_probes(system)
    return system


def sign_in(parts: Parts) -> None:
    admin, fakes = parts.admin, parts.fakes
    assert admin.post("/connections/claude/sign-in/").status_code == 303
    html = admin.get("/connections/claude/").text
    url = unescape(re.search(r'href="([^"]*/issuer/authorize[^"]*)"', html)[1])
    attempt = re.search(r'name="attempt" value="([^"]+)"', html)[1]
    data = {"attempt": attempt, "code": fakes.issuer.agree(url)}
    answer = admin.post("/connections/claude/sign-in/finish/", data=data)
    assert answer.status_code == 303, answer.text
    # the probe that the sign-in asked for
    wait_for(lambda: health(parts) == "valid", what="the sign-in is validated")


def health(parts: Parts) -> str:
    (row,) = parts.rows(
        "SELECT health, checking_until FROM connections_connection WHERE slug = 'claude'"
    )
    return "" if row["checking_until"] else row["health"]


def no_probes(parts: Parts) -> None:
    parts.execute("UPDATE connections_connection SET next_check_at = '2100-01-01 00:00:00'")


def expire(parts: Parts) -> None:
    parts.fakes.issuer.withdraw()
    parts.execute("UPDATE connections_secret SET renew_at = '2020-01-01 00:00:00'")
    parts.fakes.issuer.calls.clear()


def secret(parts: Parts) -> dict:
    (row,) = parts.rows(
        "SELECT s.* FROM connections_secret s JOIN connections_connection c"
        " ON c.id = s.connection_id WHERE c.slug = 'claude'"
    )
    return row


def renewals_audited(parts: Parts) -> int:
    return len(parts.rows("SELECT 1 FROM workspaces_auditevent WHERE action = 'secret.renew'"))


def test_twenty_turns_in_three_workers_are_one_renewal(parts: Parts):
    for name in WORKERS[1:]:
        parts.run(name)
    chats = [Chat(parts, connection="claude") for _ in range(20)]
    expire(parts)
    before = secret(parts)["renewals"], renewals_audited(parts)
    parts.fakes.issuer.hold = 1.5  # long enough for all of them to come
    for name in WORKERS:
        parts.freeze(name)
    for number, chat in enumerate(chats):
        chat.send(f"question {number}")
    for name in WORKERS:
        parts.thaw(name)
    for chat in chats:
        chat.wait_until_idle(60)
    assert [chat.states() for chat in chats] == [["done"]] * 20
    assert [call.outcome for call in parts.fakes.issuer.renewals()] == ["ok"]
    kept = secret(parts)
    assert kept["renewing_until"] is None
    assert (kept["renewals"], renewals_audited(parts)) == (before[0] + 1, before[1] + 1)


def test_a_worker_killed_after_the_issuer_answered_ends_in_a_sign_in(parts: Parts):
    issuer = parts.fakes.issuer
    chat = Chat(parts, connection="claude")
    expire(parts)
    issuer.hold = 600  # the token is rotated; its answer never arrives
    chat.send("first")
    wait_for(lambda: issuer.renewals(), what="the renewal is on its way")
    os.kill(parts.pids()["worker"], signal.SIGKILL)
    parts.end("worker")
    issuer.hold = 0
    parts.run("worker")
    # The next turn waits for the dead worker's lease, asks once, and is refused: a person has to
    # sign in. Nothing goes round in circles after that.
    again = Chat(parts, connection="claude")
    again.send("second")
    wait_for(lambda: again.states() == ["failed"], 90, "the turn ends")
    assert again.turns()[0]["error_kind"] == "sign_in_again"
    assert [call.outcome for call in issuer.renewals()] == ["ok", "invalid_grant"]
    chat.wait_until_idle(60)
    assert chat.states() == ["interrupted"]
    assert "Sign in again" in parts.admin.get("/connections/claude/").text
    refused = again.client.post(f"{again.url}send/", data={"text": "third"})
    assert refused.status_code in (303, 409)
    assert len(issuer.renewals()) == 2
    assert secret(parts)["ended_at"]

    sign_in(parts)
    new = Chat(parts, connection="claude")
    new.send("hello")
    new.wait_until_idle()
    assert new.states() == ["done"]


def test_a_worker_that_is_stopped_keeps_what_the_issuer_gives(parts: Parts):
    issuer = parts.fakes.issuer
    chat = Chat(parts, connection="claude")
    expire(parts)
    issuer.hold = 2
    chat.send("first")
    wait_for(lambda: issuer.renewals(), what="the renewal is on its way")
    parts.end("worker", signal.SIGTERM)
    parts.run("worker")
    issuer.hold = 0
    later = Chat(parts, connection="claude")
    later.send("second")
    later.wait_until_idle()
    assert later.states() == ["done"]
    assert [call.outcome for call in issuer.renewals()] == ["ok"]


def test_no_token_is_found_anywhere_but_sealed(parts: Parts):
    """Sign-in, use, renewal, refusals and the end of it, with the log at DEBUG."""
    issuer = parts.fakes.issuer
    found = {"page": [], "export": []}
    tokens = {call.body[name] for call in issuer.calls for name in SECRETS if name in call.body}
    assert len(tokens) >= 2  # the code and its verifier
    for fault in (None, 500, (400, {"error": "invalid_request"})):
        expire(parts)
        issuer.faults = [fault] if fault else []
        chat = Chat(parts, connection="claude")
        chat.send("hello")
        chat.wait_until_idle(60)
    issuer.end()
    expire(parts)
    Chat(parts, connection="claude").send("over")
    wait_for(lambda: secret(parts)["ended_at"], what="the sign-in is over")
    tokens |= set(issuer.given)
    for path in ("/connections/", "/connections/claude/", "/connections/claude/edit/", chat.url):
        found["page"].append(parts.admin.get(path).text)
    found["export"].append(parts.admin.post("/connections/export/").text)
    found["export"].append(parts.manage("export_connections").stdout)
    texts = [*found["page"], *found["export"], parts.output()]
    texts += [json.dumps(row, default=str) for row in parts.rows("SELECT * FROM django_session")]
    files = [path.read_bytes() for path in parts.data.rglob("*") if path.is_file()]
    argv = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in parts.pids().values()]
    dump = [parts.redis.dump(key) or b"" for key in parts.redis.keys("*")]
    for token in tokens:
        assert not [text for text in texts if token in text]
        assert not [data for data in (*files, *argv, *dump) if token.encode() in data]
