"""OpenAI through the real Codex binary on the running server: configured in the form, validated,
chatted with, steered, queued, stopped, and gone with its worker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.connections.codex import is_alive, processes, readable_memory
from tests.system.harness import wait_for
from tests.system.page import Page, plain
from tests.system.parts import Chat, Parts

SLUG = "openai-here"
MODELS = "echo\nfast-30tps-300\nfast-60tps-120\nstall"


@pytest.fixture(scope="module")
def began() -> list[int]:
    """Where what the processes write of these tests begins: others, who hurt Redis, may have gone
    before on the same processes."""
    return []


@pytest.fixture
def codex(parts: Parts, began: list[int]) -> Parts:
    """The server with a connection that was made in the form."""
    if not began:
        began.append(len(parts.output()))
    parts.sign_in_admin()
    if not parts.rows("SELECT 1 FROM connections_connection WHERE slug = ?", SLUG):
        answer = parts.admin.post(
            "/connections/new/",
            data={
                "name": "OpenAI here",
                "slug": SLUG,
                "provider_type": "openai",
                "auth_type": "api_key_with_endpoint",
                "base_url": f"{parts.fakes.openai}/responses",
                "api_key": parts.fakes.good_key,
                "models": MODELS,
                "default_model": "echo",
                "mid_stream_behavior": "",
                "enabled": "on",
            },
        )
        assert answer.status_code == 303, plain(answer.text)
    return parts


def row(parts: Parts) -> dict:
    return parts.rows("SELECT * FROM connections_connection WHERE slug = ?", SLUG)[0]


def worker(parts: Parts) -> int:
    return parts.pids()["worker"]


def test_it_is_validated_by_an_answer_of_the_binary(codex: Parts):
    codex.admin.post(f"/connections/{SLUG}/validate/")
    wait_for(
        lambda: row(codex)["health"] == "valid" and not row(codex)["checking_until"],
        40,
        "the probe is green",
    )
    assert row(codex)["base_url"] == codex.fakes.openai
    page = codex.admin.get(f"/connections/{SLUG}/").text
    assert "Streaming" in page
    answers = [one for one in codex.fakes.requests() if one["path"].endswith("/responses")]
    assert {(one["max_tokens"], tuple(one["tools"])) for one in answers} == {(16, ())}
    assert processes(worker(codex)) == []


def test_a_streamed_turn_a_steer_with_its_receipt_a_queued_message_and_a_stop(codex: Parts):
    chat = Chat(codex, "fast-60tps-120", connection=SLUG)
    page = Page(chat)
    chat.send("first")
    page.follow(lambda page: page.messages() and page.text())
    assert page.state == "running"
    chat.send("and be brief")
    page.follow(lambda page: [how for _, how in page.waiting] == ["steering"])
    page.follow(lambda page: len(page.messages()) == 2)  # the reply after the receipt
    assert page.waiting == []
    assert [one.role for one in page.turns[1]] == ["user", "assistant", "user", "assistant"]
    assert plain(page.turns[1][2].html) == "and be brief"
    codex.admin.post(f"/connections/{SLUG}/mid-stream/", data={"mid_stream_behavior": "queue"})
    chat.send("queued")
    page.follow(lambda page: [how for _, how in page.waiting] == ["queued"])
    page.follow(lambda page: len(page.messages()) == 3 and page.text())
    assert page.state == "running"
    asked = time.monotonic()
    chat.post("stop")
    wait_for(lambda: codex.requests_with("queued")[-1]["end"] == "aborted", 5, "it is closed")
    assert time.monotonic() - asked < 2
    chat.wait_until_idle()
    codex.admin.post(f"/connections/{SLUG}/mid-stream/", data={"mid_stream_behavior": ""})
    assert chat.states() == ["done", "stopped"]
    assert [(one["text"], one["delivery"]) for one in chat.messages()] == [
        ("first", "sent"),
        ("and be brief", "delivered"),
        ("queued", "sent"),
    ]
    assert chat.reply(2)
    # The first reply was not cut off, and each text was asked once.
    assert [one["end"] for one in codex.requests_with("first")] == ["done"]
    assert len(codex.requests_with("and be brief")) == 1
    assert all(not one.get("tools") for one in codex.fakes.requests())
    wait_for(lambda: processes(worker(codex)) == [], 5, "no process is left")


def test_the_process_of_a_worker_holds_nothing_of_the_server(codex: Parts):
    chat = Chat(codex, "stall", connection=SLUG)
    chat.send("a word in confidence")
    chat.wait_for_reply(4)
    (pid,) = processes(worker(codex))
    (home,) = (codex.data / "codex" / "homes").iterdir()
    proc = Path(f"/proc/{pid}")
    environ = (proc / "environ").read_bytes().decode().strip("\0").split("\0")
    assert {one.partition("=")[0] for one in environ} == {
        *("HOME", "CODEX_HOME", "TMPDIR", "PATH", "LANG")
    }
    held = b"\0".join(
        [
            (proc / "environ").read_bytes(),
            (proc / "cmdline").read_bytes(),
            readable_memory(pid),
            *(path.read_bytes() for path in home.rglob("*") if path.is_file()),
        ]
    )
    assert b"a word in confidence" in held  # the search finds what is there
    secrets = [codex.env[name] for name in ("PATCHBAY_SECRET_KEYS", "SECRET_KEY", "REDIS_URL")]
    for secret in (codex.fakes.good_key, *secrets):
        assert secret.encode() not in held
    assert (proc / "cwd").readlink() == home / "cwd"
    assert list((home / "cwd").iterdir()) == []
    chat.post("stop")
    wait_for(lambda: list(home.parent.iterdir()) == [], 5, "its home is gone")


def test_a_worker_that_is_killed_takes_its_process_along(codex: Parts):
    chat = Chat(codex, "fast-30tps-300", connection=SLUG)
    chat.send("first")
    chat.wait_for_reply(4)
    (process,) = processes(worker(codex))
    homes = codex.data / "codex" / "homes"
    assert len(list(homes.iterdir())) == 1
    chat.choose("echo")
    codex.end("worker")
    wait_for(lambda: not is_alive(process), 5, "the process ended")
    assert codex.requests_with("first")[0]["end"] == "aborted"
    codex.run("worker")
    wait_for(lambda: chat.states() == ["interrupted"], 30, "the turn is interrupted")
    chat.send("second")
    chat.wait_until_idle()
    assert chat.reply(2).endswith("second")
    assert list(homes.iterdir()) == []  # the one that was left was swept


def test_ask_runs_a_turn_on_it_in_the_commands_own_process(codex: Parts):
    told = codex.manage("ask", "--workspace", "support", "--connection", SLUG, "hello there")
    assert told.stdout.strip() == "hello there"
    (record,) = [one for one in codex.fakes.requests() if one.get("last_user") == "hello there"]
    assert record["path"] == "/openai/v1/responses"


def test_no_secret_is_in_what_the_worker_wrote(codex: Parts, began: list[int]):
    assert codex.fakes.good_key not in codex.output()
    written = codex.output()[began[0] :]  # mostly nothing: what goes well isn't logged
    assert "Traceback" not in written, written[-6000:]
