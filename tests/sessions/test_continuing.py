"""A session that goes on on another connection: a new one with the same transcript and a seam."""

from __future__ import annotations

import pytest
from django.core.files.storage import default_storage

from connections import budgets
from connections.models import Budget, Connection
from sessions import keeping, sending, steps, turns
from sessions.continuing import continue_on
from sessions.models import Attachment, ChatSession, Message, Turn
from sessions.refusals import Refused, TooMany
from tests.builders import make_connection, make_member, make_user
from tests.world import World, make_world
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def other(db: None) -> Connection:
    return make_connection("other", provider_type="anthropic_compat", models=["big"])


def said(chat: ChatSession) -> list[tuple[int | None, str, str, str]]:
    rows = Message.objects.filter(chat=chat).order_by("seq")
    return [(m.turn and m.turn.number, m.role, m.text, m.delivery) for m in rows]


def failed(chat, bob) -> Turn:
    """A turn that was answered, one that failed, and a message that waits behind it."""
    first = turns.claim(sending.send(chat.pk, bob, "first", ring=False).turn.pk)
    step = steps.begin_step(first, first.lease_token, 1)
    parts = [
        {"t": "thinking", "text": "hm", "sig": "s"},
        {"t": "text", "text": "an answer", "sig": {"x": 1}},
    ]
    Message.objects.filter(pk=step.message_id).update(
        text="an answer", parts=parts, is_complete=True
    )
    turns.end(first, first.lease_token, Turn.State.DONE)
    second = turns.claim(sending.send(chat.pk, bob, "second", ring=False).turn.pk)
    sending.send(chat.pk, bob, "third", ring=False)
    turns.end(second, second.lease_token, Turn.State.FAILED, error_kind="quota")
    return second


def test_the_transcript_goes_along_and_the_failed_turn_is_asked_again(chat, bob, other):
    failed(chat, bob)
    before = said(chat)
    assert before[-1] == (None, "user", "third", "queued")
    new = continue_on(chat.pk, bob, other)
    assert said(new) == [
        (1, "user", "first", "sent"),
        (1, "assistant", "an answer", "sent"),
        (2, "user", "second", "sent"),
        (None, "user", "third", "queued"),
    ]
    assert said(chat) == before[:-1]  # what waited is there once
    assert [turn.state for turn in new.turns.all()] == ["done", "pending"]
    assert (new.connection, new.model, new.continued_from) == (other, "big", chat)
    assert new.is_locked
    reply = Message.objects.get(chat=new, role="assistant")
    assert [sorted(part) for part in reply.parts] == [["t", "text"], ["t", "text"]]
    event = AuditEvent.objects.get(action="session.continue")
    assert event.details == {"came_from": str(chat.pk), "connection": "other"}


def test_pressed_twice_it_is_one_and_what_was_written_in_stays(chat, bob, other):
    failed(chat, bob)
    new = continue_on(chat.pk, bob, other)
    assert continue_on(chat.pk, bob, other) == new
    turn = turns.claim(new.turns.get(number=2).pk)
    turns.end(turn, turn.lease_token, Turn.State.DONE)  # then what waited has its turn
    assert new.turns.get(number=3).state == "pending"
    again = continue_on(chat.pk, bob, other)
    assert again.pk != new.pk
    assert [text for _, _, text, _ in said(again)] == ["first", "an answer", "second"]


def test_a_done_session_goes_on_without_a_new_turn_until_somebody_writes(chat, bob, other):
    turn = turns.claim(sending.send(chat.pk, bob, "hello", ring=False).turn.pk)
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    new = continue_on(chat.pk, bob, None)
    assert new.connection == other
    assert continue_on(chat.pk, bob, None) == new
    assert ChatSession.objects.count() == 2
    sending.send(new.pk, bob, "more", ring=False)
    assert new.turns.get(number=2).state == "pending"


def test_while_a_reply_runs_or_nothing_else_is_there_it_is_refused(chat, bob, connection):
    with pytest.raises(Refused) as refused:
        continue_on(chat.pk, bob, None)
    assert refused.value.kind == "not_locked"
    turn = turns.claim(sending.send(chat.pk, bob, "hello", ring=False).turn.pk)
    with pytest.raises(Refused) as refused:
        continue_on(chat.pk, bob, None)
    assert refused.value.kind == "active"
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    for chosen in (None, connection):
        with pytest.raises(Refused) as refused:
            continue_on(chat.pk, bob, chosen)
        assert refused.value.kind == "connection"


def use_up_the_budget(connection, bob) -> None:
    budgets.set_limits(bob, connection, budgets.Limits(hard_tokens=1))
    Budget.objects.filter(connection=connection).update(tokens=1)


def test_what_would_answer_at_once_keeps_to_the_budget_and_the_replies_a_person_may_have(
    chat, bob, other, settings
):
    failed(chat, bob)
    use_up_the_budget(other, bob)
    with pytest.raises(Refused) as refused:
        continue_on(chat.pk, bob, other)
    assert refused.value.kind == "budget"
    budgets.set_limits(bob, other, budgets.Limits())
    settings.TURNS_PER_PERSON = 1
    elsewhere = ChatSession.objects.create(
        workspace=chat.workspace, owner=bob, connection=chat.connection
    )
    running = sending.send(elsewhere.pk, bob, "a long one", ring=False).turn
    with pytest.raises(TooMany):
        continue_on(chat.pk, bob, other)
    assert not ChatSession.objects.filter(continued_from=chat).exists()
    assert Message.objects.get(chat=chat, text="third").delivery == "queued"
    turns.stop(elsewhere.pk, bob, turn_id=running.pk)
    new = continue_on(chat.pk, bob, other)
    # Its own reply is under way now: pressed again, it is the same one.
    assert continue_on(chat.pk, bob, other) == new


def test_without_anything_to_answer_a_budget_stands_against_nothing(chat, bob, other):
    turn = turns.claim(sending.send(chat.pk, bob, "first", ring=False).turn.pk)
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    use_up_the_budget(other, bob)
    assert continue_on(chat.pk, bob, other).continued_from == chat


def test_what_is_being_deleted_goes_nowhere_and_is_no_continuation(chat, bob, other):
    failed(chat, bob)
    new = continue_on(chat.pk, bob, other)
    keeping.doom(ChatSession.objects.filter(pk=new.pk))
    again = continue_on(chat.pk, bob, other)
    assert again != new
    keeping.doom(ChatSession.objects.filter(pk=chat.pk))
    for refused in (lambda: continue_on(chat.pk, bob, other), lambda: turns.retry(chat.pk, bob)):
        with pytest.raises(Refused) as gone:
            refused()
        assert gone.value.kind == "gone"


def test_images_go_along_as_files_of_their_own(db, settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path
    world: World = make_world()
    other = make_connection("other", supports_images=True)
    owner = world.people["owner"]
    new = continue_on(world.shared.chat.pk, owner, other)
    copy = Attachment.objects.get(message__chat=new)
    original = world.shared.attachment
    assert copy.file.name != original.file.name
    with copy.file.open("rb") as one, original.file.open("rb") as two:
        assert one.read() == two.read()
    default_storage.delete(original.file.name)
    assert default_storage.exists(copy.file.name)


def test_the_pages_show_where_it_came_from_and_where_it_went(client, chat, bob, other):
    failed(chat, bob)
    client.force_login(bob)
    page = client.get(chat.get_absolute_url()).content.decode()
    assert f'action="{chat.get_absolute_url()}continue/"' in page
    answer = client.post(f"{chat.get_absolute_url()}continue/", {"connection": "other"})
    assert answer.status_code == 303
    page = client.get(answer["location"]).content.decode()
    assert "Continued on “Other” from here on." in page
    assert chat.get_absolute_url() in page
    assert answer["location"] in client.get(chat.get_absolute_url()).content.decode()
    # A stranger to the first session sees no link to it.
    carol = make_user("carol@example.com")
    make_member(chat.workspace, carol)
    new = ChatSession.objects.get(continued_from=chat)
    ChatSession.objects.filter(pk=new.pk).update(shared=True)
    client.force_login(carol)
    page = client.get(new.get_absolute_url()).content.decode()
    assert "Continued from another session" in page
    assert str(chat.pk) not in page


def test_a_deleted_connections_session_goes_on(client, chat, bob, connection, other):
    failed(chat, bob)
    Connection.objects.filter(pk=connection.pk).update(enabled=False)
    client.force_login(bob)
    page = client.get(chat.get_absolute_url()).content.decode()
    assert "Continue there" in page
    new = continue_on(chat.pk, bob, None)
    assert new.connection == other
