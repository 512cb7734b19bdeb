"""Search over titles and texts, in every script, for what a person may read."""

from __future__ import annotations

import pytest

from sessions import keeping, search, sending, steps, titles, turns
from sessions.access import visible_chats
from sessions.keeping import Sharing
from sessions.models import ChatSession, Message, SearchText, Turn
from tests.builders import make_connection, make_member, make_user, make_workspace
from tests.world import make_talk
from workspaces.models import Role
from workspaces.permissions import Access

pytestmark = pytest.mark.django_db(transaction=True)

TEXTS = {
    "latin": "The Straßenbahn to Łódź leaves at nine",
    "cyrillic": "Привет, мир: как дела сегодня?",
    "chinese": "机器学习是人工智能的一个分支",
    "arabic": "مرحبا بالعالم الجديد",
    "thai": "สวัสดีชาวโลก",
    "odd": '100%_done "quoted" O\'Neil a*b (NEAR) AND',
}


@pytest.fixture
def connection():
    return make_connection("local", is_default=True)


def said(workspace, owner, connection, text, **fields) -> ChatSession:
    chat = make_talk(workspace, owner, connection).chat
    Message.objects.filter(chat=chat, role="assistant").update(text=text)
    ChatSession.objects.filter(pk=chat.pk).update(**fields)
    return chat


def found(access: Access, query: str) -> set:
    return set(search.find(visible_chats(access), query))


@pytest.fixture
def access(workspace, bob):
    return Access(workspace, bob, Role.MEMBER)


@pytest.mark.parametrize(
    ("script", "query"),
    [
        ("latin", "straßenbahn"),
        ("latin", "Łódź"),
        ("latin", "enbah"),
        ("cyrillic", "МИР"),
        ("cyrillic", "как дела"),
        ("chinese", "人工智能"),
        ("chinese", "机器"),
        ("arabic", "بالعالم"),
        ("thai", "ชาวโลก"),
        ("odd", "100%_done"),
        ("odd", '"quoted"'),
        ("odd", "O'Neil"),
        ("odd", "a*b"),
        ("odd", "(NEAR) AND"),
    ],
)
def test_every_script_is_found(access, bob, workspace, connection, script, query):
    chats = {name: said(workspace, bob, connection, text) for name, text in TEXTS.items()}
    search.take_in(100)
    assert found(access, query) == {chats[script].pk}
    assert found(access, "nowhere at all") == set()


@pytest.mark.parametrize(
    "query", ["%", "_", "%%%", "___", '"', '"""', "*", "NOT x", "q\0z", "x" * 200]
)
def test_no_query_is_special(access, bob, workspace, connection, query):
    said(workspace, bob, connection, "plain words")
    search.take_in(100)
    assert found(access, query) == set()


def test_only_what_a_person_may_read_is_found(access, bob, workspace, connection):
    carol = make_user("carol@example.com")
    make_member(workspace, carol)
    theirs = said(workspace, carol, connection, "the secret recipe")
    elsewhere = make_workspace("elsewhere")
    said(elsewhere, bob, connection, "the secret recipe")
    search.take_in(100)
    assert found(access, "recipe") == set()
    keeping.share(theirs.pk, carol, Sharing.READ)
    assert found(access, "recipe") == {theirs.pk}


def test_what_changes_is_found_anew(access, bob, workspace, connection):
    chat = said(workspace, bob, connection, "about whales")
    search.take_in()
    titles.rename(chat.pk, "Sea animals")
    assert found(access, "animals") == set()
    assert search.take_in() == 1
    assert found(access, "animals") == {chat.pk}
    titles.rename(chat.pk, "Land creatures")
    search.take_in()
    assert (found(access, "animals"), found(access, "whales")) == (set(), {chat.pk})
    assert search.take_in() == 0
    keeping.delete(chat.pk, bob)
    assert found(access, "whales") == set()
    assert not SearchText.objects.exists()


def test_a_reply_comes_in_when_its_turn_has_ended(access, bob, workspace, connection):
    chat = ChatSession.objects.create(workspace=workspace, owner=bob)
    turn = turns.claim(sending.send(chat.pk, bob, "tell me of penguins", ring=False).turn.pk)
    step = steps.begin_step(turn, turn.lease_token, 1)
    Message.objects.filter(pk=step.message_id).update(text="they swim", is_complete=True)
    assert search.take_in() == 0
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    assert search.take_in() == 1
    assert found(access, "penguins") == found(access, "they swim") == {chat.pk}
    assert search.take_in() == 0


def test_the_page_shows_where_it_was_found(client, bob, workspace, connection):
    said(workspace, bob, connection, "a long way to <b>Tipperary</b> & back")
    search.take_in()
    client.force_login(bob)
    page = client.get("/w/support/", {"q": "tipperary"}).text
    assert "to &lt;b&gt;<mark>Tipperary</mark>&lt;/b&gt; &amp; back" in page
    assert "Nothing found" in client.get("/w/support/", {"q": "nowhere"}).text
    assert client.get("/w/support/", {"q": 'a%_"'}).status_code == 200


def test_an_archived_session_is_found(client, bob, workspace, connection):
    chat = said(workspace, bob, connection, "kept for later")
    keeping.archive(chat.pk, True)
    search.take_in()
    client.force_login(bob)
    assert "<mark>kept for later</mark>" in client.get("/w/support/", {"q": "kept for later"}).text


def test_excerpts_are_cut_around_the_place():
    text = "x" * 100 + " needle " + "y" * 100
    before, at, after = search.excerpt(text, "NEEDLE")
    assert at == "needle"
    assert before.startswith("…x")
    assert after.endswith("y…")
    assert search.excerpt("short", "none") == ("short", "", "")
