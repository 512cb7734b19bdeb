"""A name that leads to one address when it is saved and to this machine when it is called. Names
can't be made up for another process, so the whole product runs in this one."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from connections import actions, providers, tasks
from connections.models import Connection, ProbeResult
from connections.providers import google_token
from connections.providers.base import ModelRequest, ProviderError, Target, Turnlet
from connections.providers.wire import oauth
from sessions import sending, tool_servers, tools
from sessions.models import ChatSession, Turn
from sessions.worker import Crew
from tests.crew import running_crew
from tests.system.attacks.listener import Listener, reply, response
from tests.system.harness import wait_for
from workspaces import egress

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
    with running_crew(EGRESS_ALLOW=f"{ALLOWED}", TOOL_EGRESS_ALLOW="") as running:
        yield running


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
    started = sending.send(chat.pk, person, "words for one server", ring=False).turn
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


KINDS = {
    "bedrock": {
        "provider_type": "bedrock",
        "auth_type": "api_key",
        "region": "eu-central-1",
        "secret": {"api_key": "sk-moving"},
    },
    "vertex": {
        "provider_type": "vertex",
        "auth_type": "service_account_file",
        "region": "europe-west1",
        "project": "project-1",
        "secret": {"service_account_json": "{}"},
    },
    "codex": {
        "provider_type": "openai",
        "auth_type": "api_key_with_endpoint",
        "secret": {"api_key": "sk-moving"},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_provider_follows_a_name_inside(crew, names, servers, settings, kind):
    """The relay of Codex neither."""
    names.move_after(0)
    fields = {**KINDS[kind], "base_url": f"http://{NAME}:{servers[0].port}"}
    path = settings.CODEX_PATHS[0] if kind == "codex" else ""
    target = Target(wire="", codex_path=path, **fields)
    provider = providers.get(target.provider_type)
    if kind == "vertex":
        good = google_token.Token("token", time.time() + 600)
        google_token._keep(google_token._name(target), good)
    request = ModelRequest("m", [Turnlet("user", [{"t": "text", "text": "words"}])], 100)

    async def ask(call: str) -> str:
        client = egress.client_for(egress.provider_policy())
        try:
            if call == "models":
                await provider.list_models(client, target)
            else:
                async for _ in provider.stream(client, target, request):
                    pass
        except ProviderError as error:
            return error.kind.value
        return ""

    for call in ("models", "stream"):
        assert crew.runtime.submit(ask(call)).result(60) == "egress", call
    assert [server.connections for server in servers] == [0, 0]


def test_no_token_is_fetched_from_a_name_inside(crew, names, servers):
    """Neither by a code nor by a refresh token, nor for a service account."""
    names.move_after(0)
    url = f"http://{NAME}:{servers[0].port}/token"
    issuer = oauth.Issuer("client", url, url, url, "x", json_body=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "client_email": "robot@project-1.iam.gserviceaccount.com",
        "private_key": key.decode(),
        "token_uri": google_token.TOKEN_URI,
    }
    secret = {"service_account_json": json.dumps(account)}
    target = Target("vertex", "service_account_file", secret=secret, token_url=url)

    async def fetch(what: str) -> str:
        policy = egress.provider_policy()
        try:
            if what == "code":
                await oauth.exchange(policy, issuer, code="c", state="s", verifier="v" * 43)
            elif what == "refresh":
                await oauth.renew(policy, issuer, "refresh")
            else:
                await google_token.token_for(egress.client_for(policy), target)
        except ProviderError as error:
            return error.kind.value
        return ""

    for what in ("code", "refresh", "account"):
        assert crew.runtime.submit(fetch(what)).result(60) == "egress", what
    assert [server.connections for server in servers] == [0, 0]


def test_no_tool_server_is_called_at_a_name_inside(crew, names, servers, alice, workspace):
    names.move_after(1, first=[PUBLIC])
    url = f"http://{NAME}:{servers[0].port}/mcp"
    headers = "Authorization: Bearer moving-0123456789"
    made = tool_servers.create(alice, workspace, name="x", url=url, headers=headers)
    for then in ([INSIDE], [ALLOWED], [PUBLIC, INSIDE]):
        names.move_after(0, then=then)
        assert tool_servers.test(alice, made) == "egress"
    assert [server.connections for server in servers] == [0, 0]
