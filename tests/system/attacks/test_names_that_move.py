"""A name that leads to one address when it is saved and to this machine when it is called. Names
can't be made up for another process, so the whole product runs in this one."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest
from django.test import override_settings

from connections import actions, tasks
from connections.models import Connection, ProbeResult
from sessions import tools, turns
from sessions.models import ChatSession, Turn
from sessions.worker import Crew
from tests.system.attacks.listener import Listener, reply, response
from tests.system.harness import wait_for
from workspaces import egress
from workspaces.runtime import Runtime

pytestmark = pytest.mark.django_db(transaction=True)

NAME = "models.example.com"
PUBLIC = ipaddress.ip_address("93.184.215.14")
ALLOWED = ipaddress.ip_address("127.0.0.2")  # stands for a public one that can be called here
INSIDE = ipaddress.ip_address("127.0.0.1")
LOOKUPS = 8  # more than a validation and a turn make, if no connection is kept


class Names:
    """Resolves every name to `first` for so many lookups, then to `then`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.first, self.then, self.times, self.asked = [PUBLIC], [INSIDE], 0, 0
        monkeypatch.setattr(egress, "lookup", self.lookup)

    def lookup(self, host: str, port: int) -> list[egress.Address]:
        self.asked += 1
        return list(self.first if self.asked <= self.times else self.then)

    def move_after(self, times: int, *, first: list | None = None, then: list | None = None):
        self.times, self.asked = times, 0
        self.first, self.then = first or [ALLOWED], then or [INSIDE]


def answer(request):
    if request.method == "GET":
        return response(200, {"data": [{"id": "echo"}]})
    return reply("hello")


@pytest.fixture
def names(monkeypatch):
    return Names(monkeypatch)


@pytest.fixture
def servers():
    """The server that may be called, and the one inside that may not, on the same port."""
    with (
        Listener(answer, host=str(ALLOWED)) as outside,
        Listener(answer, host=str(INSIDE), port=outside.port) as inside,
    ):
        yield outside, inside


@pytest.fixture
def crew() -> Iterator[Crew]:
    runtime = Runtime()
    with override_settings(EGRESS_ALLOW=f"{ALLOWED}", TOOL_EGRESS_ALLOW="", TITLES=False):
        crew = Crew(runtime)
        yield crew
        crew.close(5)
        runtime.stop(5)


@pytest.fixture
def connection(alice, names, servers, crew) -> Connection:
    names.move_after(1, first=[PUBLIC])
    data = {
        "name": "moving",
        "provider_type": "openai_compat",
        "auth_type": "api_key_with_endpoint",
        "base_url": f"http://{NAME}:{servers[0].port}/v1",
        "models": ["echo"],
        "default_model": "echo",
    }
    made = actions.create(alice, data, secret={"api_key": "sk-moving"})
    assert names.asked == 1
    return made


def climb(crew: Crew, connection: Connection) -> ProbeResult:
    return crew.runtime.submit(tasks.probe(connection.pk, force=True)).result(60)


def turn(crew: Crew, chat: ChatSession, person) -> Turn:
    started = turns.send(chat.pk, person, "words for one server", ring=False).turn
    assert crew.take(started.pk)
    wait_for(lambda: not Turn.objects.get(pk=started.pk).is_active, 30)
    started.refresh_from_db()
    return started


@pytest.fixture
def chat(workspace, bob, connection) -> ChatSession:
    return ChatSession.objects.create(workspace=workspace, owner=bob, connection=connection)


def test_a_name_that_moved_after_the_save_is_not_called(
    crew, names, servers, connection, chat, bob
):
    for then in ([INSIDE], [ALLOWED, INSIDE], [ipaddress.ip_address("169.254.169.254")]):
        names.move_after(0, then=then)
        probe = climb(crew, connection)
        assert (probe.passed, probe.error_kind) == (False, "egress")
        ended = turn(crew, chat, bob)
        assert (ended.state, ended.error_kind) == (Turn.State.FAILED, "egress")
    assert [server.connections for server in servers] == [0, 0]


def test_a_name_that_moves_in_the_middle_is_not_followed(
    crew, names, servers, connection, chat, bob
):
    """At every lookup of a whole validation and of a turn, one after the other."""
    outside, inside = servers
    for times in range(LOOKUPS):
        names.move_after(times)
        probe = climb(crew, connection)
        assert probe.passed or probe.error_kind == "egress"
        ended = turn(crew, chat, bob)
        assert ended.state == Turn.State.DONE or ended.error_kind == "egress"
    assert probe.passed and ended.state == Turn.State.DONE
    assert outside.connections
    assert inside.connections == 0


def test_fetch_url_does_not_follow_a_name_inside(crew, names, servers):
    """The addresses that connections may reach are not for tools."""
    for then in ([INSIDE], [ALLOWED], [PUBLIC, INSIDE]):
        names.move_after(0, then=then)
        url = f"http://{NAME}:{servers[0].port}/"
        text, is_error = crew.runtime.submit(tools.run("fetch_url", {"url": url})).result(30)
        assert is_error
        assert "can't be fetched" in text
    assert [server.connections for server in servers] == [0, 0]
