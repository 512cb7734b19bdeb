"""A workspace's tool servers on the running product: a model calls one while a person steers, and
no address that tools may not reach is reached."""

from __future__ import annotations

import json
import threading
import uuid

import pytest

from tests.fakes.mcp_server import GOOD, FakeMcp
from tests.system.attacks.listener import Listener
from tests.system.attacks.server import Attacked
from tests.system.attacks.test_addresses import CALLED, spelled
from tests.system.harness import wait_for
from tests.workspaces.test_egress import ELSEWHERE, THIS_MACHINE

TOOLS = "/w/support/settings/tools/"
FORCE = """
import json
from sessions.models import ToolServer
from workspaces.models import Workspace
space = Workspace.objects.get(slug="support")
for n, url in enumerate(json.load(open({file!r}))):
    ToolServer.objects.create(workspace=space, name=f"n{{n}}", prefix=f"n{{n}}", url=url)
"""


@pytest.fixture
def shop():
    with FakeMcp() as running:
        yield running


@pytest.fixture
def inside():
    """A server on every address of this machine, which must hear nothing."""
    with Listener(everywhere=True) as running:
        yield running


@pytest.fixture(scope="module")
def tooled(tmp_path_factory, static_files):
    """A server whose tools may reach this machine."""
    env = {"PATCHBAY_TOOL_EGRESS_ALLOW": "127.0.0.0/8", "PATCHBAY_TITLES": "off"}
    with Attacked(tmp_path_factory.mktemp("tooled"), env=env) as running:
        yield running


@pytest.fixture(scope="module")
def closed(tmp_path_factory, static_files):
    """A server that may reach no special address at all."""
    env = {"PATCHBAY_EGRESS_ALLOW": "", "PATCHBAY_TOOL_EGRESS_ALLOW": "", "PATCHBAY_TITLES": "off"}
    with Attacked(tmp_path_factory.mktemp("closed"), env=env) as running:
        yield running


def parts_of(server: Attacked, turn: dict) -> list[dict]:
    found = server.rows(
        "SELECT parts FROM agent_sessions_message WHERE turn_id = ? AND role = 'assistant'"
        " ORDER BY step",
        turn["id"],
    )
    return [part for row in found for part in json.loads(row["parts"])]


def test_a_model_calls_a_servers_tool_while_a_person_steers(tooled, fakes, shop):
    tooled.add(
        "calls",
        fakes.openai,
        fakes.good_key,
        models="calls",
        default_model="calls",
        mid_stream_behavior="steer",
    )
    data = {"name": "Shop", "url": f"{shop.url}/sse", "headers": f"Authorization: Bearer {GOOD}"}
    answer = tooled.admin.post(f"{TOOLS}new/", data=data)
    assert answer.status_code == 303, answer.text
    assert "Search the shop" in tooled.admin.get(TOOLS).text
    shop.hold = threading.Event()
    text = 'call shop__search {"words": "boats"}\ncall shop__say {"kind": "structured"}'
    session = tooled.send("calls", text)
    wait_for(lambda: shop.open_calls, what="the model's call at the server")
    assert tooled.say(session, "only red ones")
    shop.hold.set()
    turn = tooled.wait_for_turn(session)
    assert (turn["state"], turn["error_kind"]) == ("done", "")
    assert "You added: only red ones" in turn["text"]
    assert [part["text"] for part in parts_of(tooled, turn) if part["t"] == "tool_result"] == [
        "Found for boats: a boat.",
        '{"boats":[{"name":"Ada","price":12.5}]}',
    ]
    steered = tooled.rows(
        "SELECT delivery, step FROM agent_sessions_message WHERE text = 'only red ones'"
    )
    assert [(row["delivery"], row["step"]) for row in steered] == [("delivered", 1)]
    page = tooled.admin.get(session).text
    assert "Shop</span> search" in page
    assert "Found for boats" in page
    # The key is nowhere but in its sealed row and at the server.
    for place in (page, tooled.admin.get(TOOLS).text, tooled.output()):
        assert GOOD not in place
    assert GOOD.encode() not in (tooled.data / "patchbay.sqlite3").read_bytes()


def test_no_spelling_of_an_inner_address_is_saved(closed, inside):
    urls = spelled([*THIS_MACHINE, *ELSEWHERE], inside.port)
    for url in urls:
        answer = closed.admin.post(f"{TOOLS}new/", data={"name": "x", "url": url})
        assert answer.status_code == 422, url
        assert 'id="id_url_error"' in answer.text, url
    assert not closed.rows("SELECT 1 FROM agent_sessions_toolserver")
    assert inside.connections == 0


def test_what_is_in_the_database_all_the_same_is_not_called(closed, inside, tmp_path):
    urls = spelled(CALLED, inside.port)
    file = tmp_path / "urls.json"
    file.write_text(json.dumps(urls))
    closed.manage("shell", "-v0", "-c", FORCE.format(file=str(file)))
    servers = closed.rows("SELECT id, url FROM agent_sessions_toolserver")
    assert len(servers) == len(urls)
    for row in servers[:5]:
        address = f"{TOOLS}{uuid.UUID(row['id'])}/test/"
        assert closed.admin.post(address).status_code == 303
    closed.add("any", "https://llm.example.com/v1", "sk-1")
    turn = closed.ask("any", "hello")
    assert turn["state"] == "failed"  # nobody answers there; the lists were asked for before
    wait_for(
        lambda: not closed.rows("SELECT 1 FROM agent_sessions_toolserver WHERE last_error = ''"),
        what="every server was tried",
    )
    found = closed.rows("SELECT url, last_error FROM agent_sessions_toolserver")
    assert {row["last_error"] for row in found} == {"egress"}, found
    assert inside.connections == 0
