"""The lock of a session on the running system: two first messages at once, and every way in which
somebody might change it afterwards."""

from __future__ import annotations

import re

import pytest

from tests.system.harness import Client
from tests.system.parts import Chat, Parts
from tests.system.test_first_admin import at_once


def connection_of(parts: Parts, chat: Chat) -> tuple[str, str]:
    """(slug, locked_at) as stored."""
    rows = parts.rows(
        "SELECT c.slug, s.locked_at FROM agent_sessions_chatsession s"
        " LEFT JOIN connections_connection c ON c.id = s.connection_id WHERE s.id = ?",
        chat.id.hex,
    )
    return rows[0]["slug"], rows[0]["locked_at"]


@pytest.mark.parametrize("attempt", range(3))
def test_two_first_messages_on_two_connections_give_one_lock(parts: Parts, attempt: int):
    chat = Chat(parts)
    other: Client = parts.sign_in("alice@example.com")
    tabs = ((parts.admin, "queue"), (other, "steer-anthropic"))

    def choose_and_send(number: int) -> list[int]:
        client, connection = tabs[number]
        choice = client.post(f"{chat.url}connection/", data={"connection": connection})
        sent = client.post(f"{chat.url}send/", data={"text": f"from {connection}"})
        return [choice.status_code, sent.status_code]

    codes = at_once(2, choose_and_send)
    assert all(code[0] in (303, 409) for code in codes), codes
    assert all(code[1] == 303 for code in codes), codes
    chat.wait_until_idle()
    slug, locked_at = connection_of(parts, chat)
    assert locked_at
    locks = parts.rows(
        "SELECT details FROM workspaces_auditevent WHERE action = 'session.lock' AND target_id = ?",
        str(chat.id),
    )
    assert len(locks) == 1
    assert f'"{slug}"' in locks[0]["details"]
    wire = "anthropic" if slug == "steer-anthropic" else "openai"
    sent = [
        one for text in ("queue", "steer-anthropic") for one in parts.requests_with(f"from {text}")
    ]
    assert sent
    assert {one["path"].split("/")[1] for one in sent} == {wire}
    for _, connection in tabs:
        answer = parts.admin.post(f"{chat.url}connection/", data={"connection": connection})
        assert answer.status_code == 409
    assert connection_of(parts, chat) == (slug, locked_at)


def test_no_route_changes_the_lock(parts: Parts):
    chat = Chat(parts)
    chat.send("hello")
    chat.wait_until_idle()
    before = connection_of(parts, chat)
    smuggled = {
        "connection": "steer",
        "connection_id": "steer",
        "locked_at": "",
        "workspace": "other",
        "model": "echo",
        "text": "x",
        "title": "x",
        "shared": "true",
    }
    for slug in ("steer", "", "no-such", "queue"):
        answer = parts.admin.post(f"{chat.url}connection/", data={"connection": slug})
        assert answer.status_code == 409, slug
        assert "locked" in answer.text
    for verb in ("send", "model", "rename", "share", "stop", "resume", "retry"):
        parts.admin.post(f"{chat.url}{verb}/", data=smuggled)
        assert connection_of(parts, chat) == before, verb
    admin = f"/admin/agent_sessions/chatsession/{chat.id}/change/"
    assert parts.admin.post(admin, data=smuggled).status_code == 403
    assert parts.admin.get("/admin/agent_sessions/chatsession/add/").status_code == 403
    assert connection_of(parts, chat) == before
    chat.wait_until_idle()


@pytest.mark.parametrize("loss", ["enable", "delete"])
def test_a_lost_connection_refuses_and_no_other_steps_in(parts: Parts, loss: str):
    parts.manage(
        "shell",
        "-v0",
        "-c",
        "from tests.builders import make_connection\n"
        f"make_connection('lost-{loss}', models=['echo'], default_model='echo',"
        f" base_url={parts.fakes.openai!r}, key={parts.fakes.good_key!r})",
    )
    chat = Chat(parts, connection=f"lost-{loss}")
    chat.send("before")
    chat.wait_until_idle()
    asked = len(parts.fakes.requests())
    data = {"enabled": "false"} if loss == "enable" else {}
    assert parts.admin.post(f"/connections/lost-{loss}/{loss}/", data=data).status_code == 303

    answer = parts.admin.post(f"{chat.url}send/", data={"text": "after"})
    assert answer.status_code == 409
    assert re.search("paused|deleted", answer.text)
    assert [message["text"] for message in chat.messages()] == ["before"]
    assert parts.admin.get(chat.url).status_code == 200  # it stays readable
    assert len(parts.fakes.requests()) == asked
