"""The pages of sessions as the server sends them."""

from __future__ import annotations

import pytest
from django.db import connection as database
from django.test.utils import CaptureQueriesContext

from connections.models import Connection
from sessions import sending
from sessions.models import ChatSession, Message, Turn
from tests.builders import make_member
from workspaces.models import Role


def make_chats(workspace, owner, connection, count: int) -> None:
    for number in range(count):
        chat = ChatSession.objects.create(
            workspace=workspace, owner=owner, shared=True, title=f"About {number}"
        )
        if number % 2:
            sending.send(chat.pk, owner, "hello", ring=False)


def queries_of(client, url: str) -> int:
    with CaptureQueriesContext(
        database,
    ) as queries:
        assert client.get(url).status_code == 200
    return len(queries)


def test_the_list_asks_as_often_for_fifty_as_for_one(client_for, bob, alice, workspace, connection):
    client = client_for(bob)
    make_chats(workspace, bob, connection, 1)
    url = workspace.get_absolute_url()
    one = queries_of(client, url)
    make_chats(workspace, alice, connection, 49)
    assert queries_of(client, url) == one
    assert b"About 48" in client.get(url).content


def test_a_transcript_asks_as_often_for_many_turns_as_for_one(
    client_for, bob, workspace, connection, chat
):
    client = client_for(bob)

    def add_turns(count: int) -> None:
        for _ in range(count):
            turn = sending.send(chat.pk, bob, "hello", ring=False).turn
            Message.objects.create(
                chat=chat,
                seq=Message.objects.count() + 1000,
                role=Message.Role.ASSISTANT,
                turn=turn,
                step=1,
                text="Hi.",
                parts=[{"t": "text", "text": "Hi."}],
            )
            Turn.objects.filter(pk=turn.pk).update(state=Turn.State.DONE)

    url = chat.get_absolute_url()
    add_turns(1)
    one = queries_of(client, url)
    add_turns(24)
    assert queries_of(client, url) == one


def test_an_empty_list_without_a_connection_says_why(client_for, bob, alice, workspace):
    page = client_for(bob).get(workspace.get_absolute_url()).content.decode()
    assert "No connection can be used in this workspace yet." in page
    assert "New session</button>" not in page
    page = client_for(alice).get(workspace.get_absolute_url()).content.decode()
    assert 'href="/connections/"' in page


def test_a_viewer_reads_and_has_no_composer(client_for, bob, alice, workspace, chat, connection):
    Connection.objects.update(is_default=True)
    ChatSession.objects.update(owner=alice, shared=True)
    bob.memberships.all().delete()
    make_member(workspace, bob, Role.VIEWER)
    page = client_for(bob).get(chat.get_absolute_url()).content.decode()
    assert 'id="composer"' not in page
    assert "You can read this session." in page


def test_a_deleted_connection_leaves_the_session_readable(client_for, bob, chat, connection):
    sending.send(chat.pk, bob, "hello", ring=False)
    Turn.objects.update(state=Turn.State.DONE)
    client = client_for(bob)
    Connection.objects.update(deleted_at=chat.created_at, is_default=False)
    page = client.get(chat.get_absolute_url()).content.decode()
    assert "hello" in page
    assert "This connection was deleted." in page
    answer = client.post(
        f"{chat.get_absolute_url()}send/", {"text": "still there?"}, headers={"HX-Request": "true"}
    )
    assert answer.status_code == 409
    assert "still there?</textarea>" in answer.content.decode()


@pytest.mark.parametrize("state", ["failed", "stopped", "interrupted"])
def test_a_turn_that_did_not_end_well_can_be_tried_again(client_for, bob, chat, connection, state):
    sending.send(chat.pk, bob, "hello", ring=False)
    Turn.objects.update(state=state, error_kind="auth", error_detail="sk-leaked words")
    page = client_for(bob).get(chat.get_absolute_url()).content.decode()
    assert "retry/" in page
    assert "sk-leaked words" not in page, "the provider's words are for instance admins"


@pytest.mark.parametrize(
    ("state", "before"),
    [
        (Turn.State.RUNNING, "Working…: "),
        (Turn.State.FAILED, "Failed: "),
        (Turn.State.INTERRUPTED, "Interrupted: "),
        (Turn.State.DONE, ""),
    ],
)
def test_the_tab_tells_the_state_before_the_title(client_for, bob, chat, connection, state, before):
    turn = sending.send(chat.pk, bob, "hello", ring=False).turn
    Turn.objects.filter(pk=turn.pk).update(state=state)
    ChatSession.objects.filter(pk=chat.pk).update(title="A week")
    page = client_for(bob).get(chat.get_absolute_url()).text
    assert f"<title>{before}A week · Patchbay</title>" in page


def test_a_paused_connection_of_a_session_leads_an_admin_there(client_for, alice, chat, connection):
    sending.send(chat.pk, chat.owner, "hello", ring=False)
    ChatSession.objects.filter(pk=chat.pk).update(shared=True)
    Connection.objects.filter(pk=connection.pk).update(enabled=False)
    reason = client_for(alice).get(chat.get_absolute_url()).text.partition('id="reason"')[2]
    assert f'href="{connection.get_absolute_url()}"' in reason.partition("</form>")[0]


def test_a_changed_title_changes_the_tab_as_text(client_for, bob, chat):
    answer = client_for(bob).post(
        f"{chat.get_absolute_url()}rename/",
        {"title": "</title><script>1</script>"},
        headers={"HX-Request": "true"},
    )
    assert "<title>&lt;/title&gt;&lt;script&gt;" in answer.content.decode()


def test_what_a_script_posts_is_answered_with_303_or_422(client_for, bob, workspace, connection):
    client = client_for(bob)
    created = client.post(f"{workspace.get_absolute_url()}sessions/new/")
    assert created.status_code == 303
    url = created.headers["location"]
    chosen = client.post(f"{url}connection/", {"connection": connection.slug})
    assert chosen.status_code == 303
    for path, data in (
        ("connection/", {}),
        ("connection/", {"connection_slug": connection.slug}),
        ("stop/", {"queued": "Continue"}),
        ("model/", {}),
        ("send/", {}),
    ):
        assert client.post(url + path, data).status_code == 422, (path, data)
    chat = ChatSession.objects.get()
    assert chat.connection == connection, "a field that is missing undoes no choice"
    assert client.post(f"{url}connection/", {"connection": ""}).status_code == 303
    chat.refresh_from_db()
    assert chat.connection is None


def test_long_client_keys_are_told_apart(client_for, bob, chat):
    client = client_for(bob)
    for number in (1, 2, 2):
        data = {"text": f"message {number}", "client_key": f"{'k' * 80}{number}"}
        assert client.post(f"{chat.get_absolute_url()}send/", data).status_code == 303
    sent = Message.objects.filter(chat=chat).order_by("seq")
    assert [message.text for message in sent] == ["message 1", "message 2"]


def test_what_an_admin_wrote_of_a_pause_stands_wherever_people_meet_it(
    client_for, alice, bob, chat, connection
):
    client, admin = client_for(bob), client_for(alice)
    words = {"enabled": "false", "paused_message": "Back on Monday <3.", "next": "detail"}
    assert admin.post("/connections/local/enable/", words).status_code == 303
    said = "Back on Monday &lt;3."
    # An empty session that has nothing else to go to, and the rungs that led there.
    empty = client.get(chat.get_absolute_url()).text
    assert empty.count(said) == 2
    assert "“Local” is paused: " + said in empty
    assert said in client.get("/w/support/settings/ai/").text
    refused = client.post(f"{chat.get_absolute_url()}send/", {"text": "hello"})
    assert refused.status_code == 409
    assert said in refused.text
    # A session that is locked to it: beside the composer, and when somebody sends all the same.
    admin.post("/connections/local/enable/", {"enabled": "true"})
    sending.send(chat.pk, bob, "hello")
    admin.post("/connections/local/enable/", words)
    assert said in client.get(chat.get_absolute_url()).text
    refused = client.post(f"{chat.get_absolute_url()}send/", {"text": "hello again"})
    assert refused.status_code == 409
    assert said in refused.text
