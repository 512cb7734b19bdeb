"""Another version of a conversation: an edited message, or an answer again, in a new session."""

from __future__ import annotations

import pytest

from connections.models import Connection
from sessions import keeping, sending, steps, titles, turns, versions
from sessions.models import Attachment, ChatSession, Message, Turn
from sessions.refusals import Refused
from tests.builders import make_member, make_user
from tests.world import World, make_world
from workspaces.models import AuditEvent, Role

pytestmark = pytest.mark.django_db(transaction=True)


def answered(chat: ChatSession, person, text: str) -> Turn:
    """A turn with its reply."""
    turn = turns.claim(sending.send(chat.pk, person, text, ring=False).turn.pk)
    step = steps.begin_step(turn, turn.lease_token, 1)
    parts = [{"t": "text", "text": f"re: {text}", "sig": "s"}]
    Message.objects.filter(pk=step.message_id).update(
        text=f"re: {text}", parts=parts, is_complete=True
    )
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    return turn


def said(chat: ChatSession) -> list[tuple[int | None, str, str]]:
    rows = Message.objects.filter(chat=chat).order_by("seq")
    return [(m.turn and m.turn.number, m.role, m.text) for m in rows]


def question(chat: ChatSession, number: int) -> Message:
    return Message.objects.select_related("turn").get(chat=chat, role="user", turn__number=number)


def test_an_edited_message_goes_out_in_a_new_session_with_what_stood_before_it(chat, bob):
    for text in ("first", "second", "third"):
        answered(chat, bob, text)
    before = said(chat)
    chat.refresh_from_db()
    new = versions.send_edited(question(chat, 2), bob, "second, better", model="large")
    assert said(new) == [
        (1, "user", "first"),
        (1, "assistant", "re: first"),
        (2, "user", "second, better"),
    ]
    assert said(chat) == before
    assert [turn.state for turn in new.turns.all()] == ["done", "pending"]
    assert (new.connection, new.continued_from, new.continued_turns) == (chat.connection, chat, 1)
    new.refresh_from_db()
    assert (new.is_locked, new.model, new.turns.get(number=2).model) == (True, "large", "large")
    # The same provider reads what it wrote.
    assert Message.objects.get(chat=new, role="assistant").parts[0]["sig"] == "s"
    event = AuditEvent.objects.get(action="session.version")
    assert event.details == {"came_from": str(chat.pk), "turn": 2}


def test_the_first_message_can_be_edited_and_a_running_one(chat, bob):
    running = sending.send(chat.pk, bob, "first", ring=False)
    new = versions.send_edited(question(chat, 1), bob, "first, better")
    assert said(new) == [(1, "user", "first, better")]
    assert running.turn.is_active
    assert said(chat) == [(1, "user", "first")]


def test_the_same_key_is_one_session_and_a_refusal_is_none(chat, bob, connection):
    answered(chat, bob, "first")
    message = question(chat, 1)
    new = versions.send_edited(message, bob, "better", client_key="k")
    assert versions.send_edited(message, bob, "better", client_key="k") == new
    assert versions.send_edited(message, bob, "better", client_key="l") != new
    assert ChatSession.objects.count() == 3
    # From a page that one went back to: nothing that was typed or chosen is lost.
    assert said(versions.send_edited(message, bob, "best", client_key="k"))[0][2] == "best"
    large = versions.send_edited(message, bob, "better", model="large", client_key="k")
    assert large.turns.get().model == "large"
    assert versions.send_edited(message, bob, "better", model="large", client_key="k") == large
    ChatSession.objects.exclude(pk__in=[chat.pk, new.pk]).delete()
    for text, model in (("  ", ""), ("x" * 200_001, ""), ("fine", "no-such-model")):
        with pytest.raises(Refused):
            versions.send_edited(message, bob, text, model=model)
    Connection.objects.update(enabled=False)
    with pytest.raises(Refused):
        versions.send_edited(message, bob, "fine")
    with pytest.raises(Refused):
        versions.regenerate(chat.pk, bob, 1)
    assert ChatSession.objects.count() == 2


def test_the_last_answer_is_asked_for_again_and_the_old_one_stays(chat, bob):
    answered(chat, bob, "first")
    answered(chat, bob, "second")
    before = said(chat)
    new = versions.regenerate(chat.pk, bob, 2, client_key="k")
    assert said(new) == [
        (1, "user", "first"),
        (1, "assistant", "re: first"),
        (2, "user", "second"),
    ]
    assert said(chat) == before
    assert [turn.state for turn in new.turns.all()] == ["done", "pending"]
    assert versions.regenerate(chat.pk, bob, 2, client_key="k") == new
    assert Turn.objects.filter(state="pending").count() == 1
    assert versions.regenerate(chat.pk, bob, 2, client_key="l") != new


def test_only_the_last_answer_that_is_done_can_be_asked_for_again(chat, bob):
    answered(chat, bob, "first")
    turn = sending.send(chat.pk, bob, "second", ring=False).turn
    for number in (0, 1, 2, 3):
        with pytest.raises(Refused) as refused:
            versions.regenerate(chat.pk, bob, number)
        assert refused.value.kind == "not_last"
    turns.stop(chat.pk, bob)
    turn.refresh_from_db()
    assert turn.state == "stopped"
    with pytest.raises(Refused):  # that is Retry's
        versions.regenerate(chat.pk, bob, 2)


def test_what_was_steered_into_the_turn_is_asked_again_with_it(chat, bob):
    turn = turns.claim(sending.send(chat.pk, bob, "first", ring=False).turn.pk)
    steps.begin_step(turn, turn.lease_token, 1)
    sending.send(chat.pk, bob, "and that", ring=False)
    steps.begin_step(turn, turn.lease_token, 2)
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    new = versions.regenerate(chat.pk, bob, 1)
    assert said(new) == [(1, "user", "first"), (1, "user", "and that")]
    steered = Message.objects.get(chat=chat, text="and that")
    assert versions.first_message(chat, steered.pk) is None


def test_what_is_on_its_way_into_a_running_turn_began_none(chat, bob):
    turn = turns.claim(sending.send(chat.pk, bob, "first", ring=False).turn.pk)
    steps.begin_step(turn, turn.lease_token, 1)
    sending.send(chat.pk, bob, "and that", ring=False)
    [claimed] = steps.claim_steering(turn, turn.lease_token)
    assert versions.first_message(chat, claimed.pk) is None


def test_too_many_replies_at_once_are_too_many_here_as_well(client, chat, bob, settings):
    answered(chat, bob, "first")
    client.force_login(bob)
    here = chat.get_absolute_url()
    again = f"{here}messages/{question(chat, 1).pk}/again/"
    settings.TURNS_PER_PERSON = 1
    other = ChatSession.objects.create(workspace=chat.workspace, owner=bob)
    sending.send(other.pk, bob, "a long one", ring=False)
    for address, sent in ((again, {"text": "a better one"}), (f"{here}regenerate/", {"turn": 1})):
        response = client.post(address, sent)
        assert (response.status_code, bool(response.headers["Retry-After"])) == (429, True)
    assert "a better one" in client.post(again, {"text": "a better one"}).content.decode()
    assert not ChatSession.objects.filter(continued_from=chat).exists()


def test_the_pages_lead_from_one_version_to_the_other(client, chat, bob):
    answered(chat, bob, "first")
    answered(chat, bob, "second")
    client.force_login(bob)
    here = chat.get_absolute_url()
    message = question(chat, 2)
    again = f"{here}messages/{message.pk}/again/"
    page = client.get(here).content.decode()
    assert again in page
    assert f'action="{here}regenerate/"' in page
    page = client.get(again).content.decode()
    assert "re: first" in page
    assert "re: second" not in page
    assert "second</textarea>" in page
    refused = client.post(again, {"text": " ", "client_key": "k"})
    assert refused.status_code == 422
    assert "Write a message first." in refused.content.decode()
    answer = client.post(again, {"text": "better", "client_key": "k"})
    assert answer.status_code == 303
    page = client.get(answer["location"]).content.decode()
    assert "Asked again from here on." in page
    assert f"{here}#turn-2" in page
    page = client.get(here).content.decode()
    assert f"{answer['location']}#turn-2" in page
    # A colleague who may not read the new one sees no link to it.
    carol = make_user("carol@example.com")
    make_member(chat.workspace, carol)
    ChatSession.objects.filter(pk=chat.pk).update(shared=True)
    client.force_login(carol)
    assert answer["location"] not in client.get(here).content.decode()


def test_versions_of_one_conversation_tell_apart_by_a_number(client, chat, bob):
    client.force_login(bob)
    answered(chat, bob, "first")
    titles.rename(chat.pk, "Letters")
    chat.refresh_from_db()
    second = versions.send_edited(question(chat, 1), bob, "first, better")
    turns.stop(second.pk, bob)
    third = versions.regenerate(chat.pk, bob, 1)  # of the first one too
    turns.stop(third.pk, bob)
    fourth = versions.send_edited(question(second, 1), bob, "first, best")  # of the second
    turns.stop(fourth.pk, bob)
    named = [one.heading for one in (chat, second, third, fourth)]
    assert named == ["Letters", *(f"Letters · version {n}" for n in (2, 3, 4))]
    listed = client.get("/w/support/").text
    palette = client.get("/palette/?workspace=support&q=letters").text
    for name in named:
        assert f">{name}</a>" in listed
    assert "version 4" in palette
    page = client.get(fourth.get_absolute_url()).text
    assert "<title>" in page
    assert "Letters · version 4" in page.partition("</title>")[0]
    assert 'name="title" value="Letters"' in page  # a new name keeps the number
    first = client.get(chat.get_absolute_url()).text
    assert "version 2</a>" in first
    assert "version 3</a>" in first
    # No number comes a second time when one of them is gone.
    keeping.delete(third.pk, bob)
    assert versions.send_edited(question(chat, 1), bob, "again").nth_version == 5
    assert ChatSession(title="").heading == "New session"


def test_readers_have_neither_pencil_nor_button(client, chat, bob):
    answered(chat, bob, "first")
    ChatSession.objects.filter(pk=chat.pk).update(shared=True)
    viewer = make_user("viewer@example.com")
    make_member(chat.workspace, viewer, Role.VIEWER)
    client.force_login(viewer)
    here = chat.get_absolute_url()
    page = client.get(here).content.decode()
    assert "again/" not in page
    assert "regenerate/" not in page
    assert client.get(f"{here}messages/{question(chat, 1).pk}/again/").status_code == 403


def test_the_images_that_were_kept_go_along_as_files_of_their_own(client, db, settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path
    world: World = make_world()
    client.force_login(world.people["owner"])
    talk = world.shared
    again = f"{talk.chat.get_absolute_url()}messages/{talk.said.pk}/again/"
    assert str(talk.attachment.pk) in client.get(again).content.decode()
    answer = client.post(again, {"text": "look", "keep": [str(talk.attachment.pk), "x"]})
    assert answer.status_code == 303
    copy = Attachment.objects.get(message__text="look")
    assert copy.file.name != talk.attachment.file.name
    assert (copy.width, copy.height, copy.file.size > 0) == (2, 2, True)
    answer = client.post(again, {"text": "without"})
    assert not Attachment.objects.filter(message__text="without").exists()
