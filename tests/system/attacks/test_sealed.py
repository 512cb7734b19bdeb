"""Secrets that don't open: nothing is sent, everything else works, and no byte of them changes."""

from __future__ import annotations

import re

import pytest

from tests.fakes.server import key_hash
from tests.system.attacks.server import Attacked

KEY = "sk-fake-good-sealed-{}"
FIRST_KEY = "2sp1Q3nFKfwGcTuzK7cTzjNXGnlbqDc1kcEqxzZ0cvo"
OTHER_KEY = "tN5mWc0Yy8uKXo2rVb7dJ1fHqLz4sAe9gPi6EkRx3Qw"


def change(attacked, slug, value, purpose="auth"):
    attacked.execute(
        "UPDATE connections_secret SET value = ? WHERE purpose = ? AND connection_id IN"
        " (SELECT id FROM connections_connection WHERE slug = ?)",
        value,
        purpose,
        slug,
    )


def flipped(value, byte):
    return value[:byte] + bytes([value[byte] ^ 1]) + value[byte + 1 :]


def test_what_was_swapped_or_damaged_in_the_database_is_never_sent(attacked, fakes):
    broken = ("swapped-a", "swapped-b", "flipped-key", "flipped", "cut", "emptied", "headers")
    sessions = {}
    for slug in (*broken, "intact"):
        attacked.add(slug, fakes.openai, KEY.format(slug), extra_headers=f"X-Of: {slug}")
        sessions[slug] = attacked.send(slug, "before")
    for url in sessions.values():
        assert attacked.wait_for_turn(url)["state"] == "done"
    values = {slug: attacked.secrets(slug)["auth"] for slug in broken}

    change(attacked, "swapped-a", values["swapped-b"])
    change(attacked, "swapped-b", values["swapped-a"])
    change(attacked, "flipped-key", flipped(values["flipped-key"], 30))
    change(attacked, "flipped", flipped(values["flipped"], len(values["flipped"]) - 1))
    change(attacked, "cut", values["cut"][:40])
    change(attacked, "emptied", b"")
    change(attacked, "headers", values["headers"], purpose="headers")
    fakes.reset()

    page = attacked.admin.get("/connections/")
    assert page.status_code == 200
    for slug in broken:
        assert attacked.status(slug) == "sealed"
        assert attacked.admin.get(f"/connections/{slug}/").status_code == 200
        assert attacked.admin.get(f"/connections/{slug}/edit/").status_code == 200
        assert attacked.validate(slug)["error_kind"] == "sealed"
        assert attacked.ask(slug, "in a new session")["state"] == "refused"
        assert not attacked.say(sessions[slug], "in a session that is locked to it")
    assert "Secret unreadable" in page.text
    said = attacked.manage(
        *("ask", "--workspace", "support", "--connection", "flipped", "hello"), check=False
    )
    assert said.returncode == 1
    assert said.stdout == ""
    assert fakes.requests() == []

    assert attacked.status("intact") == "valid"
    assert attacked.validate("intact")["passed"] == 1
    assert attacked.say(sessions["intact"], "after")
    assert attacked.wait_for_turn(sessions["intact"])["text"] == "after"
    assert {one["key"] for one in fakes.requests()} == {key_hash(KEY.format("intact"))}

    # entered again it works again
    assert attacked.edit("flipped", api_key=KEY.format("new")).status_code == 303
    assert attacked.wait_for_probe("flipped")["passed"] == 1
    for slug in (*broken, "intact"):
        attacked.admin.post(f"/connections/{slug}/delete/")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (f"{FIRST_KEY},c2hvcnQ", "key 2 is 5 bytes long"),
        ("dGhlcXVpY2ticm93bmZveC1qdW1wcy1vdmVyLTEzZG8", "key 1 is readable text"),
    ],
)
def test_a_short_or_well_known_key_does_not_start(tmp_path, static_files, keys, says):
    server = Attacked(tmp_path, env={"PATCHBAY_SECRET_KEYS": keys})
    assert server.start(wait=False).wait() != 0
    (line,) = server.output().strip().splitlines()
    assert says in line
    assert keys not in line


def refuses(folder, data, env):
    """Whether a start ends by itself with one line about the key."""
    server = Attacked(folder, data=data, env=env)
    assert server.start(wait=False).wait() != 0
    output = server.output()
    assert "Patchbay is at" not in output
    assert "Traceback" not in output
    (line,) = [one for one in output.splitlines() if "key" in one]
    return re.search(r"^Patchbay can't start: .*sealed with key [0-9a-f]{16}", line) is not None


def test_without_its_keys_the_history_stays_and_no_sealed_byte_changes(
    tmp_path, static_files, fakes
):
    with Attacked(tmp_path / "1", env={"PATCHBAY_SECRET_KEYS": FIRST_KEY}) as server:
        server.add("old", fakes.openai, KEY.format("old"), extra_headers="X-Of: old")
        session = server.send("old", "words of the past")
        assert server.wait_for_turn(session)["state"] == "done"
        sealed = server.secrets("old")
    data = server.data

    assert refuses(tmp_path / "2", data, {"PATCHBAY_SECRET_KEYS": OTHER_KEY})
    assert refuses(tmp_path / "3", data, {})
    assert server.secrets("old") == sealed
    assert not (data / "keys" / "secret.keys").exists()

    env = {"PATCHBAY_SECRET_KEYS": OTHER_KEY, "PATCHBAY_START_SEALED": "1"}
    with Attacked(tmp_path / "4", data=data, env=env) as server:
        server.admin = server.sign_in("alice@example.com")
        fakes.reset()
        assert "words of the past" in server.admin.get(session).text
        assert server.status("old") == "sealed"
        assert server.validate("old")["error_kind"] == "sealed"
        assert not server.say(session, "more")
        assert server.edit("old", note="still without its key").status_code == 303
        server.wait_for_probe("old")
        assert fakes.requests() == []
        server.manage("rotate_secrets", check=False)
        assert server.secrets("old") == sealed

    env = {"PATCHBAY_SECRET_KEYS": f"{OTHER_KEY},{FIRST_KEY}"}
    with Attacked(tmp_path / "5", data=data, env=env) as server:
        server.admin = server.sign_in("alice@example.com")
        server.add("newer", fakes.openai, KEY.format("new"))
        assert server.validate("old")["passed"] == 1
        assert server.secrets("old") == sealed

    with Attacked(tmp_path / "6", data=data, env={"PATCHBAY_SECRET_KEYS": OTHER_KEY}) as server:
        assert "Missing key" in server.output()
        server.admin = server.sign_in("alice@example.com")
        fakes.reset()
        assert (server.status("old"), server.status("newer")) == ("sealed", "valid")
        assert server.ask("newer", "hello")["text"] == "hello"
        assert not server.say(session, "more")
        assert {one["key"] for one in fakes.requests()} == {key_hash(KEY.format("new"))}
        assert server.secrets("old") == sealed
