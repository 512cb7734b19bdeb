"""Hostile uploads: refused with a sentence and nothing stored, or stored under our own name."""

from __future__ import annotations

import struct
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection
from django.test import Client

from sessions import bus, images, locking, sending
from sessions.models import Attachment, ChatSession, Message
from tests.builders import make_connection, make_user
from tests.world import png

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = [
    "../../../etc/passwd.png",
    "..\\..\\boot.png",
    "/etc/cron.d/x.png",
    "a\x00b.png",
    "\u202egnp.exe",
    "x" * 300 + ".png",
    "é" * 300,
    "<img src=x onerror=alert(1)>.png",
    'a"; filename="b.html',
    "con.png",
    ".htaccess",
    "a\r\nSet-Cookie: x=1.png",
    "%2e%2e%2fx.png",
]


def svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def bomb() -> bytes:
    """A PNG of a few kilobytes that says it has 900 million pixels."""
    return _png_with_size(30_000, 30_000, b"\0" * 1_000_000)


def _png_with_size(width: int, height: int, raw: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


BAD_FILES = {
    "svg": svg(),
    "svg with an xml head": b"<?xml version='1.0'?>" + svg(),
    "html": b"<!doctype html><script>alert(1)</script>",
    "pdf": b"%PDF-1.7\n1 0 obj <<>> endobj",
    "tiff": b"II*\x00\x08\x00\x00\x00" + b"\0" * 64,
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
    "ico": b"\0\0\1\0\1\0\1\1\0\0\1\0\x20\0\x30\0\0\0\x16\0\0\0" + b"\0" * 48,
    "nothing": b"",
    "truncated png": png(64, 64)[:-40],
    "png of no pixels": _png_with_size(0, 0, b""),
    "too wide": _png_with_size(9_000, 1, b"\0" * 27_001),
    "bomb": bomb(),
    "only a head": b"\x89PNG\r\n\x1a\n",
    "broken crc": png().replace(b"IDAT", b"IDAX"),
}


@pytest.fixture
def client(bob: Any, client_for: Any) -> Client:
    return client_for(bob)


@pytest.fixture
def picture_chat(workspace: Any, bob: Any) -> ChatSession:
    make_connection("local", is_default=True, supports_images=True)
    return ChatSession.objects.create(workspace=workspace, owner=bob)


def stored() -> set[Path]:
    return {path for path in Path(settings.MEDIA_ROOT).rglob("*") if path.is_file()}


def send(client: Client, chat: ChatSession, *files: SimpleUploadedFile, **data: Any) -> Any:
    address = f"/w/{chat.workspace.slug}/sessions/{chat.pk}/send/"
    return client.post(address, {"text": "look", **data, "images": list(files)})


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_hostile_name_never_reaches_the_disk(client: Client, picture_chat: ChatSession, name):
    before = stored()
    data = png()
    part = (
        b'--xyz\r\nContent-Disposition: form-data; name=images; filename="'
        + name.replace("\r\n", " ").encode("utf-8", "surrogatepass").replace(b'"', b"%22")
        + b'"\r\nContent-Type: text/html\r\n\r\n'
        + data
        + b"\r\n--xyz--\r\n"
    )
    response = client.post(
        f"/w/support/sessions/{picture_chat.pk}/send/",
        part,
        content_type="multipart/form-data; boundary=xyz",
    )
    assert response.status_code in (303, 400, 422)
    for path in stored() - before:
        uuid.UUID(path.stem)
        assert path.suffix == ".png"
        assert path.parent.parent == Path(settings.MEDIA_ROOT)
        assert path.stat().st_mode & 0o111 == 0
    for attachment in Attachment.objects.all():
        assert attachment.name == "image-1.png"
        assert attachment.media_type == "image/png"


@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("says", ["image/png", "image/svg+xml", "text/html"])
def test_what_is_no_image_is_refused_whatever_it_says(
    client: Client, picture_chat: ChatSession, kind: str, says: str
):
    before = stored()
    response = send(client, picture_chat, SimpleUploadedFile("a.png", BAD_FILES[kind], says))
    assert response.status_code == 422
    assert Message.objects.count() == Attachment.objects.count() == 0
    assert stored() == before
    picture_chat.refresh_from_db()
    assert not picture_chat.is_locked


def test_a_good_image_beside_a_bad_one_is_not_kept(client: Client, picture_chat: ChatSession):
    before = stored()
    good, bad = SimpleUploadedFile("a.png", png()), SimpleUploadedFile("b.png", svg())
    assert send(client, picture_chat, good, bad).status_code == 422
    assert stored() == before
    assert Message.objects.count() == 0


def test_too_many_and_too_large_are_refused(
    client: Client, picture_chat: ChatSession, monkeypatch: pytest.MonkeyPatch
):
    before = stored()
    eleven = [SimpleUploadedFile(f"{number}.png", png()) for number in range(11)]
    assert send(client, picture_chat, *eleven).status_code == 422
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    large = SimpleUploadedFile("large.png", png() + b"\0" * 100)
    assert send(client, picture_chat, large).status_code == 422
    many = [SimpleUploadedFile(f"{number}.png", png()) for number in range(150)]
    assert send(client, picture_chat, *many).status_code in (400, 422)
    assert stored() == before
    assert Message.objects.count() == 0


def test_a_polyglot_is_served_as_the_image_it_is(
    client: Client, picture_chat: ChatSession, client_for: Any
):
    polyglot = png() + b"<script>alert(document.domain)</script><!-- PK\x03\x04"
    response = send(client, picture_chat, SimpleUploadedFile("a.html", polyglot, "text/html"))
    assert response.status_code == 303
    attachment = Attachment.objects.get()
    address = f"/w/support/sessions/{picture_chat.pk}/images/{attachment.pk}/"
    response = client.get(address)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert response.headers["content-disposition"].startswith("inline; filename=")
    assert "html" not in response.headers["content-disposition"]
    assert response.getvalue() == polyglot
    assert client_for(make_user("stranger@example.com")).get(address).status_code == 404
    assert client_for(None).get(address).status_code == 302


@pytest.mark.parametrize("path", ["/attachments/", "/media/", "/data/", "/static/../data/"])
def test_no_address_leads_to_the_files_themselves(client: Client, path: str):
    for name in ("", "keys/django.key", "../keys/django.key", "patchbay.sqlite3"):
        assert client.get(path + name).status_code == 404


def test_a_message_that_is_not_taken_leaves_no_file(
    client: Client, picture_chat: ChatSession, bob: Any, monkeypatch: pytest.MonkeyPatch
):
    before = stored()

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(locking, "changed", fail)  # the last step before the commit
    checked = images.check_images([SimpleUploadedFile("a.png", png())])
    with pytest.raises(RuntimeError):
        sending.send(picture_chat.pk, bob, "look", images=checked)
    assert Message.objects.count() == 0
    assert stored() == before


def test_a_full_disk_at_the_second_image_keeps_neither(
    picture_chat: ChatSession, bob: Any, monkeypatch: pytest.MonkeyPatch
):
    before, save, calls = stored(), default_storage.save, []

    def fail_later(*args: Any, **options: Any) -> str:
        calls.append(save(*args, **options))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return calls[-1]

    monkeypatch.setattr(default_storage, "save", fail_later)
    checked = images.check_images([SimpleUploadedFile(f"{n}.png", png()) for n in range(3)])
    with pytest.raises(OSError, match="No space"):
        sending.send(picture_chat.pk, bob, "look", images=checked)
    assert len(calls) == 2
    assert stored() == before


def test_a_message_sent_twice_stores_its_image_once(picture_chat: ChatSession, bob: Any):
    before = stored()
    for _ in range(2):
        checked = images.check_images([SimpleUploadedFile("a.png", png())])
        sending.send(picture_chat.pk, bob, "look", client_key="k", images=checked)
    assert len(stored() - before) == 1
    assert Attachment.objects.count() == 1


def test_a_commit_that_fails_leaves_no_file(
    picture_chat: ChatSession, bob: Any, monkeypatch: pytest.MonkeyPatch
):
    before = stored()

    def fail() -> None:
        raise OperationalError("the database is gone")

    checked = images.check_images([SimpleUploadedFile("a.png", png())])
    with monkeypatch.context() as patch, pytest.raises(OperationalError):
        patch.setattr(connection, "commit", fail)
        sending.send(picture_chat.pk, bob, "look", images=checked)
    assert stored() == before
    assert Message.objects.count() == 0


def test_a_message_that_is_taken_keeps_its_file_whatever_comes_after(
    picture_chat: ChatSession, bob: Any, monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("nobody hears")

    monkeypatch.setattr(bus.publisher, "publish", fail)
    checked = images.check_images([SimpleUploadedFile("a.png", png())])
    with pytest.raises(RuntimeError):
        sending.send(picture_chat.pk, bob, "look", images=checked)
    attachment = Attachment.objects.get()
    with attachment.file.open("rb") as file:
        assert file.read() == png()


def test_a_model_without_eyes_refuses_images(client: Client, workspace: Any, bob: Any):
    make_connection("blind", is_default=True)
    chat = ChatSession.objects.create(workspace=workspace, owner=bob)
    before = stored()
    assert send(client, chat, SimpleUploadedFile("a.png", png())).status_code == 422
    assert stored() == before
    assert Message.objects.count() == 0
