"""Files that are broken, hostile, or hold nothing that can be taken: through the page and through
the command each gives its reason in a sentence, quickly, and not a row is changed."""

from __future__ import annotations

import ipaddress
import re
import time
from io import StringIO

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command

from tests.builders import make_connection, make_workspace
from tests.connections.test_schema import BROKEN, REFUSED
from tests.world import digest
from workspaces import egress

pytestmark = pytest.mark.django_db

URL = "/connections/import/"
SECONDS = 5  # of work, however busy the machine is


@pytest.fixture(autouse=True)
def place(monkeypatch, settings):
    """Somewhere with a connection and a workspace of its own, and names without a network."""
    address = ipaddress.ip_address("93.184.216.34")
    monkeypatch.setattr(egress, "lookup", lambda host, port: [address])
    settings.EGRESS_ALLOW = ""
    make_connection("here", is_default=True)
    make_workspace("support")


def upload(client, data: bytes):
    file = SimpleUploadedFile("config.json", data, "application/json")
    return client.post(URL, {"file": file})


def command(tmp_path, data: bytes, *more: str) -> tuple[str, str]:
    """What the command says on standard error, and the error it ends with."""
    path = tmp_path / "config.json"
    path.write_bytes(data)
    err = StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("import_connections", str(path), *more, stdout=StringIO(), stderr=err)
    return err.getvalue(), str(caught.value)


def is_sentence(text: str) -> bool:
    return 10 < len(text) < 400 and text.endswith((".", "”")) and "Traceback" not in text


def test_there_are_more_than_fifty():
    assert len(BROKEN) + len(REFUSED) >= 90


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_on_the_page(alice, client_for, name):
    client, before, started = client_for(alice), digest(), time.process_time()
    answer = upload(client, BROKEN[name])
    assert time.process_time() - started < SECONDS
    assert answer.status_code == 422
    [said] = re.findall(
        r"<p>(.*?)</p>", answer.text.partition('role="alert"')[2].partition("form")[0]
    )
    assert said.endswith("Nothing was changed.")
    assert is_sentence(said)
    assert digest() == before


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_by_command(tmp_path, name):
    before, started = digest(), time.process_time()
    said, error = command(tmp_path, BROKEN[name])
    assert time.process_time() - started < SECONDS
    assert said == ""
    assert error.endswith("Nothing was changed.")
    assert is_sentence(error)
    assert digest() == before


@pytest.mark.parametrize("name", [n for n, data in BROKEN.items() if len(data) < 3_000_000])
def test_a_broken_text_that_is_pasted(alice, client_for, name):
    client, before = client_for(alice), digest()
    answer = client.post(URL, {"text": BROKEN[name].decode("utf-8", "replace")})
    # What is no text when it is a file may be one when it is pasted, but no config.
    assert answer.status_code == 422 or 'name="take"' not in answer.text
    assert digest() == before


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_nothing_that_can_be_taken_on_the_page(alice, client_for, name):
    client, before, started = client_for(alice), digest(), time.process_time()
    answer = upload(client, REFUSED[name])
    assert time.process_time() - started < SECONDS
    assert answer.status_code == 200
    assert 'name="take"' not in answer.text
    reasons = re.findall(r'<li data-tone="danger">.*?<span>(.*?)</span>', answer.text, re.S)
    assert reasons
    assert all(map(is_sentence, reasons)), reasons
    assert "<script>alert" not in answer.text
    assert "\x1b" not in answer.text
    draft = re.search(r'name="draft" value="([^"]*)"', answer.text)[1]
    keys = ["connection-1", "connection-2", "default", "workspace-1"]
    assert client.post(URL, {"draft": draft, "take": keys}).status_code in (409, 422)
    assert digest() == before


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_nothing_that_can_be_taken_by_command(tmp_path, name):
    for dry in ([], ["--dry-run"]):
        before = digest()
        said, error = command(tmp_path, REFUSED[name], *dry)
        assert "Nothing was changed." in error
        assert said.strip()
        assert "\x1b" not in said
        assert all(map(is_sentence, said.strip().splitlines())), said
        assert digest() == before
