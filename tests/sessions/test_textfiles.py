"""Text files that go along with a message: what is taken, what is refused, and where they go."""

from __future__ import annotations

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from sessions import queueing, turns, versions
from sessions.history import entries_of
from sessions.models import ChatSession, Message, Turn
from sessions.textfiles import FileRefused, files_of, read_files

pytestmark = pytest.mark.django_db(transaction=True)


def upload(name: str, data: bytes | str) -> SimpleUploadedFile:
    return SimpleUploadedFile(name, data.encode() if isinstance(data, str) else data)


@pytest.mark.parametrize(
    ("name", "data", "shown"),
    [
        ("notes.txt", "one\r\ntwo\r\n", ("notes.txt", "one\ntwo")),
        ("a.csv", "é,ü", ("a.csv", "é,ü")),
        ("bom.txt", b"\xef\xbb\xbfx", ("bom.txt", "x")),
        ("wide.txt", "wïde".encode("utf-16"), ("wide.txt", "wïde")),
        ("md.md", "```py\nx\n````", ("md.md", "```py\nx\n````")),
        ("../../etc/passwd", "x", ("passwd", "x")),
        ("a`b\u202etxt.x", "x", ("abtxt.x", "x")),
        ("x" * 300, "x", ("x" * 120, "x")),
        ("empty", "", ("empty", "")),
        ("colours.log", "\x1b[31mred", ("colours.log", "\ufffd[31mred")),
    ],
)
def test_text_is_read_as_it_is(name, data, shown):
    (part,) = read_files([upload(name, data)])
    (file,) = files_of([part])
    assert (file.name, file.text) == shown
    fence = part["text"].split("\n")[1]
    assert set(fence) == {"`"}
    assert fence not in file.text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\x00", "isn't a text file"),
        (b"caf\xe9", "isn't a text file"),
        (b"a\x00b", "isn't a text file"),
        (b"\xff\xfe\x00", "isn't a text file"),
        (b"x" * (512 * 1024 + 1), "is larger than 512 KB"),
    ],
)
def test_what_is_no_text_is_refused_by_name(data, said):
    with pytest.raises(FileRefused, match=said):
        read_files([upload("what.bin", data)])


def test_too_many_and_too_long_are_refused(client, chat, bob):
    with pytest.raises(FileRefused, match="at most 10"):
        read_files([upload(f"{n}", "x") for n in range(11)])
    client.force_login(bob)
    here = chat.get_absolute_url()
    data = {"text": "see", "files": [upload("a.txt", "x" * 200_000)]}
    answer = client.post(f"{here}send/", data)
    assert answer.status_code == 422
    assert "This message and its files have 20" in answer.content.decode()
    answer = client.post(f"{here}send/", {"text": "see", "files": [upload("a.bin", b"\xff\x00")]})
    assert answer.status_code == 422
    assert "“a.bin” isn’t" in answer.content.decode() or "isn&#x27;t" in answer.content.decode()
    assert ">\nsee</textarea>" in answer.content.decode()
    assert not Message.objects.exists()


def test_a_file_goes_to_the_model_and_stands_in_the_session(client, chat, bob):
    client.force_login(bob)
    here = chat.get_absolute_url()
    answer = client.post(f"{here}send/", {"text": "", "files": [upload("a.txt", "<b>one</b>\n")]})
    assert answer.status_code == 303
    message = Message.objects.get()
    (entry,) = entries_of(message, images=False)
    assert [part["text"] for part in entry.parts] == ["a.txt:\n```\n<b>one</b>\n```"]
    page = client.get(here).content.decode()
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    chat.refresh_from_db()
    assert chat.title == "a.txt"
    # Waiting, edited, not given back by Stop, and exported.
    client.post(f"{here}send/", {"text": "two", "files": [upload("b.txt", "2")]})
    waiting = Message.objects.get(text="two")
    queueing.edit(chat.pk, waiting.pk, bob, "two, better")
    waiting.refresh_from_db()
    assert [part.get("file") for part in waiting.parts] == [None, "b.txt"]
    assert turns.stop(chat.pk, bob) == []
    assert "[file: b.txt]" in client.get(f"{here}export/").content.decode()


def test_a_file_goes_along_into_another_version_unless_left_out(client, chat, bob):
    client.force_login(bob)
    here = chat.get_absolute_url()
    client.post(f"{here}send/", {"text": "see", "files": [upload("a.txt", "one")]})
    turn = turns.claim(Turn.objects.get().pk)
    turns.end(turn, turn.lease_token, Turn.State.DONE)
    message = Message.objects.get()
    new = versions.regenerate(chat.pk, bob, 1)
    assert Message.objects.get(chat=new).files == message.files
    again = f"{here}messages/{message.pk}/again/"
    assert "a.txt" in client.get(again).content.decode()
    client.post(again, {"text": "kept", "keep": ["a.txt"], "files": [upload("b.txt", "two")]})
    client.post(again, {"text": "left out"})
    kept, left = (Message.objects.get(text=text) for text in ("kept", "left out"))
    assert [file.name for file in kept.files] == ["a.txt", "b.txt"]
    assert left.files == []
    assert ChatSession.objects.count() == 4
