"""What is new in a session since a person looked."""

from __future__ import annotations

import pytest

from sessions import queueing, sending, turns
from sessions.models import ChatSession, Seen, Turn
from tests.builders import make_member, make_user

pytestmark = pytest.mark.django_db(transaction=True)


def answer(chat, person) -> Turn:
    turn = turns.claim(sending.send(chat.pk, person, "hello", ring=False).turn.pk)
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    return turn


def badge(client, chat) -> str:
    page = client.get(f"/w/{chat.workspace.slug}/")
    (row,) = [row for row in page.context["rows"] if row.chat == chat]
    assert ("New reply" in page.content.decode()) == (row.chat.unseen and not row.chat.active)
    return "new" if row.chat.unseen else ""


def test_an_end_that_nobody_saw_is_news_until_it_is_seen(client, chat, bob):
    client.force_login(bob)
    here = chat.get_absolute_url()
    assert client.post(f"{here}seen/", {"turn": "0"}).status_code == 204
    sent = sending.send(chat.pk, bob, "hello", ring=False)
    assert badge(client, chat) == ""  # it is at work
    assert client.post(f"{here}seen/", {"turn": "1"}).status_code == 204
    assert Seen.objects.get().number == 0  # its end wasn't there to be seen
    turn = turns.claim(sent.turn.pk)
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    assert badge(client, chat) == "new"
    assert str(chat.pk) in client.get(f"/w/{chat.workspace.slug}/?show=unseen").content.decode()
    client.post(f"{here}seen/", {"turn": "1"})
    assert badge(client, chat) == ""
    assert client.get(f"/w/{chat.workspace.slug}/?show=unseen").context["rows"] == []
    client.post(f"{here}seen/", {"turn": "0"})  # an older page, late
    assert Seen.objects.get().number == 1


def test_a_line_stands_where_the_new_begins(client, chat, bob):
    client.force_login(bob)
    here = chat.get_absolute_url()
    for _ in range(2):
        answer(chat, bob)
    assert 'id="news"' not in client.get(here).content.decode()  # never looked: nothing is news
    client.post(f"{here}seen/", {"turn": "1"})
    page = client.get(here).content.decode()
    assert page.index('id="turn-1"') < page.index('id="news"') < page.index('id="turn-2"')
    client.post(f"{here}seen/", {"turn": "2"})
    sending.send(chat.pk, bob, "more", ring=False)
    assert 'id="news"' not in client.get(here).content.decode()  # it runs before one's eyes


def test_each_has_marks_of_their_own(client, chat, bob):
    carol = make_user("carol@example.com")
    make_member(chat.workspace, carol)
    ChatSession.objects.filter(pk=chat.pk).update(shared=True)
    client.force_login(carol)
    here = chat.get_absolute_url()
    client.post(f"{here}seen/", {"turn": "0"})
    answer(chat, bob)
    assert badge(client, chat) == "new"
    client.force_login(bob)
    assert badge(client, chat) == ""


def test_an_open_list_asks_for_the_states_of_what_it_shows(client, chat, bob):
    client.force_login(bob)
    foreign = ChatSession.objects.create(
        workspace=chat.workspace, owner=make_user("carol@example.com")
    )
    sending.send(chat.pk, bob, "hello", ring=False)
    of = {"of": [str(chat.pk), str(foreign.pk), "x"]}
    page = client.get(f"/w/{chat.workspace.slug}/", of, headers={"HX-Request": "true"})
    text = page.content.decode()
    assert f'id="state-{chat.pk}" hx-swap-oob="true"' in text
    assert "Working" in text
    assert str(foreign.pk) not in text


def test_a_waiting_message_is_put_before_another(chat, bob):
    sending.send(chat.pk, bob, "begin", ring=False)
    waiting = []
    for text in ("one", "two", "three"):
        message = sending.send(chat.pk, bob, text, ring=False).message
        message.delivery = "queued"
        message.save(update_fields=["delivery"])
        waiting.append(message)
    one, two, three = waiting

    def order() -> list[str]:
        return [message.text for message in queueing.waiting(chat)]

    queueing.move(chat.pk, three.pk, before=str(one.pk))
    assert order() == ["three", "one", "two"]
    queueing.move(chat.pk, three.pk, before="")
    assert order() == ["one", "two", "three"]
    queueing.move(chat.pk, two.pk, before="gone")
    assert order() == ["two", "one", "three"]
    version = ChatSession.objects.get(pk=chat.pk).version
    queueing.move(chat.pk, two.pk, before=str(one.pk))
    queueing.move(chat.pk, two.pk, before=str(two.pk))
    queueing.move(chat.pk, two.pk, earlier=True)
    assert order() == ["two", "one", "three"]
    queueing.move(chat.pk, two.pk)
    assert order() == ["one", "two", "three"]
    assert ChatSession.objects.get(pk=chat.pk).version == version + 1
