"""Somebody loses access while a page of theirs is open and work of theirs waits."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable

import httpx
import pytest

from tests.system.harness import ADMIN, Client, wait_for
from tests.system.parts import Chat, Parts

WITHIN = 15.0  # seconds

WITHDRAWALS = {
    "switched off on the person's page": "",
    "switched off": "UPDATE workspaces_user SET is_active = 0 WHERE email = ?",
    "removed": (
        "DELETE FROM workspaces_membership WHERE user_id ="
        " (SELECT id FROM workspaces_user WHERE email = ?)"
    ),
    "made a viewer": (
        "UPDATE workspaces_membership SET role = 'viewer' WHERE user_id ="
        " (SELECT id FROM workspaces_user WHERE email = ?)"
    ),
}


class Follower:
    """An open event stream, read in a thread."""

    def __init__(self, client: Client, url: str) -> None:
        self.status, self.text, self.ended_at = 0, "", 0.0
        self._client, self._url = client, url
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            with self._client.stream("GET", self._url, timeout=60) as answer:
                self.status = answer.status_code
                for piece in answer.iter_text():
                    self.text += piece
        except httpx.HTTPError as error:
            self.text += f"[{type(error).__name__}]"
        self.ended_at = time.monotonic()

    @property
    def has_begun(self) -> bool:
        return ": hello" in self.text


@pytest.fixture
def member(parts: Parts) -> Callable[[], tuple[str, Client]]:
    """`member()`: a new member of the workspace, by address and client."""

    def make() -> tuple[str, Client]:
        email = f"member-{uuid.uuid4().hex[:8]}@example.com"
        parts.manage(
            "shell",
            "-v0",
            "-c",
            "from tests.builders import make_member, make_user\n"
            "from workspaces.models import Workspace\n"
            f"make_member(Workspace.objects.get(slug='support'), make_user({email!r}))",
        )
        return email, parts.sign_in(email, ADMIN["password"])

    return make


@pytest.mark.parametrize("how", WITHDRAWALS)
def test_the_stream_closes_and_the_queue_stops(parts: Parts, member, how: str):
    email, client = member()
    chat = Chat(parts, "bench-30tps-600", client=client)
    stream = Follower(client, f"{chat.url}stream/")
    wait_for(lambda: stream.has_begun, what="the stream has begun")
    chat.send("a reply of twenty seconds")
    chat.wait_for_reply()
    chat.send("queued one")
    chat.send("queued two")

    withdrawn = time.monotonic()
    if how == "switched off on the person's page":
        found = parts.rows("SELECT id FROM workspaces_user WHERE email = ?", email)[0]["id"]
        page = f"/people/{uuid.UUID(found)}/deactivate/"
        assert parts.admin.post(page).status_code in (302, 303)
    else:
        parts.execute(WITHDRAWALS[how], email)
    if how != "made a viewer":  # a viewer reads on
        wait_for(lambda: stream.ended_at, WITHIN, "the stream is closed")
        assert stream.ended_at - withdrawn < WITHIN
        assert "\nevent: closed\ndata: {}" in stream.text
        assert re.search(
            r"^id: \d+-\d+$", stream.text.partition("\nevent: closed")[0].splitlines()[-1]
        )
    wait_for(lambda: chat.states()[:1] == ["stopped"], WITHIN, "the running reply is stopped")
    wait_for(lambda: chat.states() == ["stopped", "failed", "failed"], what="the queue is refused")
    assert [turn["error_kind"] for turn in chat.turns()[1:]] == ["access_ended"] * 2
    assert chat.reply(1)  # what was said is kept
    assert parts.requests_with("queued one") == parts.requests_with("queued two") == []
    expected = {"removed": 404, "made a viewer": 403}.get(how, 302)
    answer = client.post(f"{chat.url}send/", data={"text": "once more"})
    assert answer.status_code == expected
    assert len(chat.messages()) == 3


def test_a_foreign_stream_is_not_found_before_a_byte(parts: Parts, member):
    _, client = member()
    chat = Chat(parts)  # the admin's, private
    for url in (
        chat.url,
        f"/w/support/sessions/{uuid.uuid4()}/",
        f"/w/no-such/sessions/{chat.id}/",
        f"/w/Support/sessions/{chat.id}/",
    ):
        answer = client.get(f"{url}stream/", headers={"Last-Event-ID": "0-0"})
        assert answer.status_code == 404
        assert "event-stream" not in answer.headers["content-type"]
        assert ": hello" not in answer.text
    stranger = parts.client().get(f"{chat.url}stream/")
    assert stranger.status_code == 302
    assert stranger.text == ""


def test_unsharing_closes_the_colleagues_stream(parts: Parts, member):
    _, client = member()
    chat = Chat(parts)
    chat.post("share", shared="true")
    stream = Follower(client, f"{chat.url}stream/")
    wait_for(lambda: stream.has_begun, what="the stream has begun")
    chat.post("share", shared="false")
    wait_for(lambda: stream.ended_at, WITHIN, "the stream is closed")
    assert client.get(chat.url).status_code == 404


@pytest.mark.parametrize("how", ["signed out", "a new password"])
def test_a_sign_in_that_ended_ends_its_streams(parts: Parts, member, how: str):
    email, client = member()
    chat = Chat(parts, client=client)
    stream = Follower(client, f"{chat.url}stream/")
    wait_for(lambda: stream.has_begun, what="the stream has begun")
    if how == "signed out":
        client.post("/accounts/logout/")
    else:
        parts.execute("UPDATE workspaces_user SET password = 'another' WHERE email = ?", email)
    wait_for(lambda: stream.ended_at, WITHIN, "the stream is closed")
    # Not told that access ended: the page asks again, and whoever signs in anew goes on.
    assert "event: closed" not in stream.text
    assert client.get(f"{chat.url}stream/").status_code == 302
