"""Addresses of this machine and of its network are reached by nobody whom the operator didn't
allow: neither when they are saved nor when they are called."""

from __future__ import annotations

import json

import pytest

from tests.system.attacks.listener import Listener
from tests.system.attacks.server import FORM, Attacked
from tests.workspaces.test_egress import ELSEWHERE, MALFORMED, THIS_MACHINE

# Behind the form's back these are called, and must be stopped by the way out itself.
CALLED = [
    *("http://127.0.0.1:{p}", "http://127.0.0.53:{p}", "http://127.1:{p}", "http://0:{p}"),
    *("http://0x7f000001:{p}", "http://2130706433:{p}", "http://017700000001:{p}"),
    *("http://0.0.0.0:{p}", "http://localhost:{p}", "http://app.localhost:{p}"),
    *("http://[::1]:{p}", "http://[::]:{p}", "http://[::ffff:127.0.0.1]:{p}"),
    *("http://[::127.0.0.1]:{p}", "http://[64:ff9b::7f00:1]:{p}", "http://[2002:7f00:1::]:{p}"),
    *("http://169.254.169.254", "http://2852039166", "http://[fd00:ec2::254]", "http://10.0.0.1"),
    *("http://100.100.100.200", "http://192.168.1.1", "http://172.16.0.1", "http://[fe80::1]"),
    *("http://LOCALHOST:{p}", "https://127.0.0.1:{p}", "http://[fc00::1]"),
    *("http://168.63.129.16", "http://224.0.0.1", "http://255.255.255.255", "http://100.64.0.1"),
]
FORCE = """
import json, sys
from tests.builders import make_connection
for n, url in enumerate(json.load(open({file!r}))):
    make_connection(f"forced-{{n}}", provider_type="anthropic_compat" if n % 2 else "openai_compat",
        auth_type="none", base_url=url, models=["echo"], default_model="echo", position=n)
"""


@pytest.fixture(scope="module")
def inside():
    """A server on every address of this machine, which must hear nothing."""
    with Listener(everywhere=True) as running:
        yield running


@pytest.fixture(scope="module")
def closed(tmp_path_factory, static_files):
    """A server that may reach no special address at all."""
    env = {"PATCHBAY_EGRESS_ALLOW": "", "PATCHBAY_TOOL_EGRESS_ALLOW": "", "PATCHBAY_TITLES": "off"}
    with Attacked(tmp_path_factory.mktemp("closed"), env=env) as running:
        yield running


def spelled(urls, port):
    return [url.replace("{p}", str(port)) for url in urls]


def test_no_spelling_is_saved_by_an_admin(closed, inside):
    urls = spelled([*THIS_MACHINE, *ELSEWHERE, *MALFORMED], inside.port)
    for number, url in enumerate(urls):
        data = {**FORM, "name": f"n{number}", "base_url": url, "api_key": "sk-1"}
        answer = closed.admin.post("/connections/new/", data=data)
        if answer.status_code == 303:  # cleaned: without spaces, without invisible letters
            slug = answer.headers["location"].rstrip("/").rpartition("/")[2]
            row = closed.rows("SELECT base_url FROM connections_connection WHERE slug = ?", slug)[0]
            assert url in MALFORMED
            assert row["base_url"].startswith("https://api.example.com"), url
            closed.admin.post(f"/connections/{slug}/delete/")
            continue
        assert answer.status_code == 422, url
        assert 'id="id_base_url_error"' in answer.text, url
    assert inside.connections == 0


def test_no_spelling_comes_in_with_a_file(closed, inside, tmp_path):
    urls = spelled([*THIS_MACHINE, *ELSEWHERE], inside.port)
    entry = {
        "providerType": "openai_compat",
        "authType": "none",
        "models": ["m"],
        "defaultModel": "m",
    }
    entries = [
        {**entry, "slug": f"file-{n}", "name": "x", "baseUrl": url} for n, url in enumerate(urls)
    ]
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"llmConnections": entries}))
    done = closed.manage("import_connections", str(file), check=False)
    assert done.returncode == 1
    assert f"{len(urls)} refused" in done.stdout
    assert not closed.rows("SELECT 1 FROM connections_connection WHERE slug LIKE 'file-%'")
    assert inside.connections == 0


def test_what_is_in_the_database_all_the_same_is_not_called(closed, inside, tmp_path):
    urls = spelled(CALLED, inside.port)
    file = tmp_path / "urls.json"
    file.write_text(json.dumps(urls))
    closed.manage("shell", "-v0", "-c", FORCE.format(file=str(file)))
    assert closed.admin.post("/connections/validate/", data={"only": "all"}).status_code == 303
    sessions = [closed.send(f"forced-{n}", "hello") for n in range(len(urls))]
    for number, url in enumerate(urls):
        probe = closed.wait_for_probe(f"forced-{number}")
        assert (probe["passed"], probe["error_kind"]) == (0, "egress"), url
        failed = [one for one in probe["rungs"] if one["outcome"] == "failed"]
        assert [(one["rung"], one["kind"]) for one in failed] == [("network", "egress")], url
        assert "PATCHBAY_EGRESS_ALLOW" in failed[0]["detail"], url
    for url, session in zip(urls, sessions, strict=True):
        turn = closed.wait_for_turn(session)
        assert (turn["state"], turn["error_kind"]) == ("failed", "egress"), (url, turn)
    assert "Address not allowed" in closed.admin.get("/connections/forced-0/").text
    done = closed.manage("validate_connections", "forced-0", "forced-10", "--json", check=False)
    assert done.returncode == 1
    assert [one["error"] for one in json.loads(done.stdout)] == ["egress", "egress"]
    assert inside.connections == 0


def test_members_set_no_address_at_all(attacked, people, inside):
    urls = ("https://api.example.com/v1", f"http://127.0.0.1:{inside.port}/v1")
    for who, person in people.items():
        for url in urls:
            data = {**FORM, "name": "mine", "base_url": url, "api_key": "sk-1"}
            answer = person.post("/connections/new/", data=data)
            assert answer.status_code in ((302,) if who == "nobody" else (403, 404)), who
            person.post("/w/support/settings/ai/default/", data={**data, "connection": ""})
            person.post("/w/support/sessions/new/", data=data)
    assert not attacked.rows("SELECT 1 FROM connections_connection WHERE name = 'mine'")
    assert inside.connections == 0


def test_fetch_url_reaches_nothing_special_though_connections_may(attacked, fakes, inside):
    """Embedded, base URLs on loopback are allowed: Ollama lives there. Tools are another matter."""
    attacked.add("tools", fakes.openai, fakes.good_key, models="tools", default_model="tools")
    odd = [url for url in THIS_MACHINE if not url.isascii() or "%" in url]
    urls = spelled([*CALLED, *odd, "file:///etc/passwd"], inside.port)
    urls += [f"{fakes.url}/_page", "http://valkey", "unix:///run/valkey.sock"]
    sessions = {url: attacked.send("tools", f"Read {url}") for url in urls}
    for url, session in sessions.items():
        turn = attacked.wait_for_turn(session)
        assert turn["state"] == "done", url
        (result,) = [
            part
            for message in attacked.rows(
                "SELECT parts FROM agent_sessions_message WHERE turn_id = ?", turn["id"]
            )
            for part in json.loads(message["parts"])
            if part["t"] == "tool_result" and part["name"] == "fetch_url"
        ]
        assert result.get("is_error") is True, (url, result)
        assert "Some words" not in result["text"]
    assert inside.connections == 0
