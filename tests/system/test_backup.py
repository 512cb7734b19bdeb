"""A backup of a server that people use, and what it is worth on another machine."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sessions.transcript import PAGE
from tests import postgres
from tests.fakes.server import FakeProviders
from tests.system.harness import ADMIN, ROOT, Client, Patchbay, wait_for
from tests.system.parts import MODELS
from tests.world import png

pytestmark = pytest.mark.system

PASSPHRASE = "seven brown foxes jump"
LOOPBACK = {"PATCHBAY_EGRESS_ALLOW": "127.0.0.0/8", "PATCHBAY_TITLES": "off"}


@pytest.fixture(scope="module")
def passphrase_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("passphrase") / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    return path


def make_connection(admin: Client, fakes: FakeProviders) -> None:
    answer = admin.post(
        "/connections/new/",
        data={
            "name": "Fakes",
            "slug": "fakes",
            "provider_type": "openai_compat",
            "auth_type": "api_key_with_endpoint",
            "base_url": fakes.openai,
            "api_key": fakes.good_key,
            "models": "\n".join(MODELS),
            "default_model": "echo",
            "supports_images": "on",
            "enabled": "on",
        },
    )
    assert answer.status_code == 303, answer.text


def new_session(client: Client) -> str:
    return client.post("/w/support/sessions/new/").headers["location"]


def send(client: Client, chat: str, text: str, **more: Any) -> None:
    answer = client.post(
        f"{chat}send/", data={"text": text, "client_key": uuid.uuid4().hex}, **more
    )
    assert answer.status_code == 303, answer.text


def count(patchbay: Patchbay, what: str) -> str:
    script = f"from sessions.models import *\nprint({what})"
    return patchbay.manage("shell", "--no-imports", "-c", script).stdout.strip()


def shows_all(patchbay: Patchbay, client: Client, chat: str, texts: list[str]) -> bool:
    """Whether a session has these messages, and its page shows them, older turns included."""
    newest = "Turn.objects.count()"
    pages = client.get(chat).text
    for before in range(PAGE + 1, int(count(patchbay, newest)) + PAGE, PAGE):
        pages += client.get(f"{chat}turns/?before={before}").text
    return all(text in pages for text in texts)


class Used:
    """A server with a session that is full, an image in it, and a backup made under load."""

    def __init__(
        self, patchbay: Patchbay, fakes: FakeProviders, folder: Path, phrase: Path
    ) -> None:
        self.patchbay = patchbay
        self.admin = patchbay.setup_admin()
        make_connection(self.admin, fakes)
        self.chat = new_session(self.admin)
        image = {"images": ("pixel.png", png(), "image/png")}
        send(self.admin, self.chat, "with an image", files=image)
        self.accepted: list[str] = ["with an image"]
        self._enough = threading.Event()
        sender = threading.Thread(target=self._send)
        sender.start()
        try:
            wait_for(lambda: len(self.accepted) > 10, what="messages are being sent")
            self.before = list(self.accepted)
            self.file = folder / "with keys.tar.gz"
            self.said = patchbay.manage(
                "backup", str(self.file), "--passphrase-file", str(phrase)
            ).stdout
            self.bare = folder / "without keys.tar.gz"
            patchbay.manage("backup", str(self.bare))
            sent_meanwhile = len(self.accepted) - len(self.before)
        finally:
            self._enough.set()
            sender.join()
        assert sent_meanwhile > 0, "nobody was held up"

    def _send(self) -> None:
        while not self._enough.is_set() and len(self.accepted) < 300:
            text = f"message-{len(self.accepted):03d}-{uuid.uuid4().hex[:8]}"
            data = {"text": text, "client_key": uuid.uuid4().hex}
            answer = self.admin.post(f"{self.chat}send/", data=data)
            if answer.status_code == 409:  # so many wait that no more is taken for now
                self._enough.wait(0.1)
                continue
            assert answer.status_code == 303, answer.text
            self.accepted.append(text)


@pytest.fixture(scope="module")
def used(
    tmp_path_factory: pytest.TempPathFactory,
    fakes: FakeProviders,
    passphrase_file: Path,
    static_files: None,
) -> Iterator[Used]:
    folder = tmp_path_factory.mktemp("used")
    with Patchbay(folder, env=LOOPBACK) as patchbay:
        yield Used(patchbay, fakes, folder, passphrase_file)


def elsewhere(tmp_path: Path, **env: str) -> Patchbay:
    """Another machine: nothing of the first is here."""
    return Patchbay(tmp_path / "elsewhere", env={**LOOPBACK, **env})


def test_with_the_passphrase_another_machine_goes_on(
    used: Used, tmp_path: Path, passphrase_file: Path
):
    there = elsewhere(tmp_path)
    said = there.manage("restore", str(used.file), "--passphrase-file", str(passphrase_file)).stdout
    assert "1 of 1 secrets open" in said
    assert "What was here before" not in said
    with there:
        assert there.client().get("/setup/").status_code == 404
        admin = there.sign_in(ADMIN["email"])
        assert shows_all(there, admin, used.chat, used.before[-5:])
        checked = there.manage("validate_connections", "fakes", "--json").stdout
        assert json.loads(checked)[0]["passed"] is True
        # What was accepted is answered there, in order, the rest of the queue included.
        texts = "list(Message.objects.filter(role='user').values_list('text', flat=True))"
        stored = count(there, texts)
        assert [text for text in used.before if text not in stored] == []
        answered = "Message.objects.filter(delivery='queued').count()"
        waiting = int(count(there, answered))
        wait_for(lambda: int(count(there, answered)) < max(waiting, 1), 60, "the queue goes on")
        assert any((there.data / "attachments").rglob("*.png"))


def test_without_the_keys_history_is_readable_and_secrets_are_asked_for(
    used: Used, tmp_path: Path, fakes: FakeProviders
):
    there = elsewhere(tmp_path)
    said = there.manage("restore", str(used.bare)).stdout
    assert "0 of 1 secrets open" in said
    assert "PATCHBAY_START_SEALED" in said
    there.start(wait=False)
    assert there.wait(60) == 1
    assert "The database is sealed with key" in there.output()

    there.env["PATCHBAY_START_SEALED"] = "1"
    with there:
        admin = there.sign_in(ADMIN["email"])
        assert shows_all(there, admin, used.chat, used.before[-3:])
        assert 'data-status="sealed"' in admin.get("/connections/").text
        form = {
            "name": "Fakes",
            "provider_type": "openai_compat",
            "auth_type": "api_key_with_endpoint",
            "base_url": fakes.openai,
            "api_key": fakes.good_key,
            "models": "echo",
            "default_model": "echo",
            "enabled": "on",
        }
        answer = admin.post("/connections/fakes/edit/", data=form)
        assert answer.status_code == 303, answer.text
        checked = there.manage("validate_connections", "fakes", "--json").stdout
        assert json.loads(checked)[0]["passed"] is True


def test_a_backup_holds_no_secret_in_clear(used: Used, fakes: FakeProviders):
    keys = used.patchbay.data / "keys"
    forbidden = [fakes.good_key, PASSPHRASE, ADMIN["password"]]
    for path in keys.iterdir():
        forbidden += [
            line for line in path.read_text().split("\n") if line and not line.startswith("#")
        ]
    assert len(forbidden) > 4
    for file in (used.file, used.bare):
        assert file.stat().st_mode & 0o777 == 0o600
        data = gzip.decompress(file.read_bytes())
        assert [word for word in forbidden if word.encode() in data] == []
    with tarfile.open(used.bare) as tar:
        assert "keys.json" not in tar.getnames()


def test_a_rehearsal_opens_everything_and_changes_nothing(
    used: Used, tmp_path: Path, passphrase_file: Path
):
    key = ("--passphrase-file", str(passphrase_file))
    said = used.patchbay.manage("restore", str(used.file), *key, "--rehearse").stdout
    assert "This backup can be restored" in said
    assert "1 of 1 secrets open" in said
    there = elsewhere(tmp_path)
    refused = there.manage("restore", str(used.bare), "--rehearse", check=False)
    assert refused.returncode == 1
    assert "1 of 1 secrets can't be read" in refused.stderr
    assert not (there.data / "patchbay.sqlite3").exists()


def test_a_running_server_is_not_replaced(used: Used):
    refused = used.patchbay.manage("restore", str(used.bare), check=False)
    assert refused.returncode == 1
    assert "Patchbay runs: end it first" in refused.stderr
    assert used.admin.get(used.chat).status_code == 200


def test_what_was_there_is_kept_aside(used: Used, tmp_path: Path):
    there = elsewhere(tmp_path)
    with there:
        there.setup_admin(email="other@example.com", workspace="Other")
    said = there.manage("restore", str(used.bare)).stdout
    (aside,) = there.data.glob("before-restore-*")
    assert str(aside) in said
    assert (aside / "patchbay.sqlite3").exists()
    assert count(there, "ChatSession.objects.count()") == "1"


def test_broken_files_change_nothing_and_say_why(used: Used, tmp_path: Path, passphrase_file: Path):
    there = elsewhere(tmp_path)
    whole = used.file.read_bytes()
    plain = bytearray(gzip.decompress(whole))
    middle = plain.index(b"SQLite format 3") + 40_000
    plain[middle] ^= 1
    other = tmp_path / "other"
    other.write_text("another passphrase\n")
    short = tmp_path / "short"
    short.write_text("short\n")
    cases = {
        "no file": (None, passphrase_file, "There is no file"),
        "empty": (b"", passphrase_file, "no backup of Patchbay"),
        "text": (b"hello", passphrase_file, "no backup of Patchbay"),
        "cut": (whole[: len(whole) // 2], passphrase_file, "damaged"),
        "a flipped bit": (gzip.compress(bytes(plain), 1), passphrase_file, "damaged"),
        "another passphrase": (whole, other, "isn't the passphrase"),
        "a short one": (whole, short, "12 characters"),
    }
    for name, (data, phrase, expected) in cases.items():
        path = tmp_path / f"{name}.tar.gz"
        if data is not None:
            path.write_bytes(data)
        done = there.manage("restore", str(path), "--passphrase-file", str(phrase), check=False)
        assert done.returncode == 1, name
        assert expected in done.stderr, (name, done.stderr)
        assert "Traceback" not in done.stderr, name
        assert not (there.data / "patchbay.sqlite3").exists(), name
        assert list(there.data.glob(".patchbay-restore-*")) == [], name


def test_on_postgresql(tmp_path: Path, fakes: FakeProviders, passphrase_file: Path) -> None:
    with postgres.cluster() as url, postgres.cluster() as second:
        here = Patchbay(tmp_path / "here", env={**LOOPBACK, "DATABASE_URL": url})
        with here:
            used = Used(here, fakes, tmp_path, passphrase_file)
            key = ("--passphrase-file", str(passphrase_file))
            said = here.manage("restore", str(used.file), *key, "--rehearse").stdout
            assert "1 of 1 secrets open" in said
            refused = here.manage("restore", str(used.file), *key, check=False)
            assert refused.returncode == 1
            assert "Patchbay runs" in refused.stderr
        refused = here.manage("restore", str(used.file), *key, check=False)
        assert "holds an installation already" in refused.stderr

        there = elsewhere(tmp_path, DATABASE_URL=second)
        there.manage("restore", str(used.file), *key)
        with there:
            admin = there.sign_in(ADMIN["email"])
            assert shows_all(there, admin, used.chat, used.before[-5:])
            checked = there.manage("validate_connections", "fakes", "--json").stdout
            assert json.loads(checked)[0]["passed"] is True
            # New rows get numbers after the restored ones.
            send(admin, new_session(admin), "a first message there")


def test_a_restore_killed_half_way_can_be_run_again(
    used: Used, tmp_path: Path, passphrase_file: Path
):
    there = elsewhere(tmp_path)
    command = [sys.executable, "manage.py", "restore", str(used.file)]
    command += ["--passphrase-file", str(passphrase_file)]
    there.data.mkdir(mode=0o700, parents=True)
    process = subprocess.Popen(
        command, cwd=ROOT, env=there.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Opening every secret" in line:
            os.kill(process.pid, 9)
    process.communicate()
    there.manage(*command[2:])
    assert int(count(there, "Message.objects.count()")) >= len(used.before)
