"""Turns that call a workspace's tool servers, and what a server may do to a turn: nothing."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import override_settings

from connections.models import Connection
from connections.providers.base import ToolSpec, Turnlet
from sessions import sending, tool_servers, toolbox, turns
from sessions.history import KEPT, prepare, shorten
from sessions.models import ChatSession, Message, ToolServer, Turn
from sessions.reply import blocks_of
from sessions.worker import Crew
from tests.builders import make_connection
from tests.crew import running_crew
from tests.fakes.mcp_server import GOOD, FakeMcp
from tests.fakes.server import FakeProviders
from tests.workspaces.test_egress import THIS_MACHINE
from workspaces.models import AuditEvent, User, Workspace

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def shop() -> Iterator[FakeMcp]:
    with FakeMcp() as running:
        yield running


@pytest.fixture
def crew(fakes: FakeProviders) -> Iterator[Crew]:
    fakes.reset()
    with running_crew(TOOL_EGRESS_ALLOW="127.0.0.0/8") as running:
        yield running


@pytest.fixture
def add(workspace: Workspace, alice: User, crew: Crew) -> Callable[..., ToolServer]:
    def make(url: str, name: str = "Shop", **fields: Any) -> ToolServer:
        headers = fields.pop("headers", {"Authorization": f"Bearer {GOOD}"})
        return tool_servers.create(
            alice, workspace, name=name, url=url, headers=json.dumps(headers), **fields
        )

    return make


@pytest.fixture
def start(crew: Crew, fakes: FakeProviders, workspace: Workspace, bob: User) -> Callable[..., Turn]:
    """`start(text)`: a turn on the model that calls what the text names, taken by a worker."""

    def begin(text: str, *, chat: ChatSession | None = None, **fields: Any) -> Turn:
        connection = Connection.objects.filter(slug="fake").first() or make_connection(
            "fake",
            key=fakes.good_key,
            **{
                "base_url": fakes.openai,
                "models": ["calls"],
                "default_model": "calls",
                "mid_stream_behavior": "steer",
                **fields,
            },
        )
        chat = chat or ChatSession.objects.create(
            workspace=workspace, owner=bob, connection=connection
        )
        turn = sending.send(chat.pk, bob, text, ring=False).turn
        assert turn is not None
        assert crew.take(turn.pk)
        return turn

    return begin


@pytest.fixture
def ask(start: Callable[..., Turn]) -> Callable[..., Turn]:
    return lambda text, **options: ended(start(text, **options))


def ended(turn: Turn, seconds: float = 40) -> Turn:
    until(lambda: not Turn.objects.get(pk=turn.pk).is_active, seconds)
    turn.refresh_from_db()
    return turn


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def results(turn: Turn) -> list[dict[str, Any]]:
    replies = Message.objects.filter(turn=turn, role="assistant").order_by("step")
    return [part for reply in replies for part in reply.parts if part["t"] == "tool_result"]


# -- a server that works ---------------------------------------------------------------------------


def test_a_models_call_reaches_the_server_and_its_result_the_model(ask, add, shop, fakes):
    add(f"{shop.url}/json")
    turn = ask('call shop__search {"words": "boats"}')
    assert turn.state == "done"
    assert fakes.requests()[0]["tools"] == [
        *("current_time", "fetch_url", "shop__search", "shop__say"),
    ]
    (call,) = shop.calls()
    assert call["params"] == {"name": "search", "arguments": {"words": "boats"}}
    assert [one["text"] for one in results(turn)] == ["Found for boats: a boat."]
    assert fakes.requests()[-1]["results"] == ["Found for boats: a boat."]


def test_the_page_names_the_server(ask, add, shop):
    add(f"{shop.url}/json", name="The <b>Shop</b>", prefix="shop")
    turn = ask('call shop__search {"words": "boats"}')
    (block,) = blocks_of(Message.objects.get(turn=turn, step=1))
    assert "The &lt;b&gt;Shop&lt;/b&gt;</span> search" in block.html
    assert "shop__search" not in block.html


def test_a_message_steered_while_a_tool_runs_goes_out_with_its_result(start, add, shop, fakes, bob):
    import threading

    add(f"{shop.url}/json")
    shop.hold = threading.Event()
    turn = start('call shop__search {"words": "boats"}\ncall shop__say {"kind": "nothing"}')
    until(lambda: shop.open_calls)
    steered = sending.send(turn.chat_id, bob, "only red ones").message
    assert steered.delivery == "steering"
    shop.hold.set()
    assert ended(turn).state == "done"
    steered.refresh_from_db()
    assert (steered.delivery, steered.step) == ("delivered", 1)
    assert fakes.requests()[1]["steered"] == ["only red ones"]


def test_stopping_a_turn_hangs_up_on_the_server(start, add, shop, bob):
    import threading

    add(f"{shop.url}/json")
    shop.hold = threading.Event()
    turn = start('call shop__search {"words": "boats"}')
    until(lambda: shop.open_calls)
    turns.stop(turn.chat_id, bob)
    assert ended(turn).state == "stopped"
    until(lambda: shop.aborted)


def test_a_turn_has_a_session_of_its_own_and_ends_it(ask, add, shop):
    add(f"{shop.url}/json")
    text = 'call shop__search {"words": "a"}\ncall shop__search {"words": "b"}'
    first = ask(text)
    ask(text)
    used = [call["session"] for call in shop.calls()]
    assert used[0] == used[1] != used[2] == used[3]
    assert len(shop.asked("tools/list")) == 1  # remembered
    until(lambda: len([one for one in shop.requests if one["http"] == "DELETE"]) == 3)
    assert first.state == "done"


def test_the_use_of_headers_is_audited_once_a_turn(ask, add, shop):
    server = add(f"{shop.url}/json")
    ask('call shop__search {"words": "a"}\ncall shop__search {"words": "b"}')
    used = AuditEvent.objects.filter(action="secret.use", target_id=str(server.pk))
    assert [event.details.get("turn") for event in used.order_by("at")] == [None, 1]
    assert {event.details["host"] for event in used} == {shop.url}


def test_only_chosen_tools_are_offered_and_called(ask, add, shop, fakes):
    add(f"{shop.url}/json", allowed_tools=["say"])
    turn = ask('call shop__search {"words": "boats"}')
    assert fakes.requests()[0]["tools"] == ["current_time", "fetch_url", "shop__say"]
    assert shop.calls() == []
    assert results(turn)[0]["is_error"] is True


def test_a_server_that_is_off_is_not_asked(ask, add, shop, fakes, alice):
    tool_servers.set_enabled(alice, add(f"{shop.url}/json"), False)
    ask("hello")
    assert shop.requests == []
    assert fakes.requests()[0]["tools"] == ["current_time", "fetch_url"]


def test_another_workspaces_server_is_not_offered(ask, add, shop, fakes):
    server = add(f"{shop.url}/json")
    other = Workspace.objects.create(name="Sales", slug="sales")
    ToolServer.objects.filter(pk=server.pk).update(workspace=other)
    ask("hello")
    assert fakes.requests()[0]["tools"] == ["current_time", "fetch_url"]


def test_a_server_removed_in_mid_turn_is_not_called(start, add, shop, fakes, alice, monkeypatch):
    server = add(f"{shop.url}/json")
    original = toolbox.Toolbox._session

    async def late(self: Any, of: Any) -> Any:
        await self.runtime.db(ToolServer.objects.filter(pk=server.pk).delete)
        return await original(self, of)

    monkeypatch.setattr(toolbox.Toolbox, "_session", late)
    turn = ended(start('call shop__search {"words": "boats"}'))
    assert turn.state == "done"
    assert "switched off or removed" in results(turn)[0]["text"]
    assert shop.calls() == []


def test_codex_is_offered_nothing(add, shop, workspace, bob, fakes):
    add(f"{shop.url}/json")
    connection = make_connection("codex", provider_type="openai", auth_type="api_key", base_url="")
    chat = ChatSession.objects.create(workspace=workspace, owner=bob, connection=connection)
    turn = Turn.objects.create(chat=chat, number=1)
    assert toolbox.servers_of(turn) == []


# -- results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected", "is_error"),
    [
        ("image", "Here it is.\n\n[image, image/png, 66 bytes, not shown]", False),
        ("error", "The shop is closed.", True),
        ("key", "You sent [secret]", False),
    ],
)
def test_a_result_is_what_the_server_says(ask, add, shop, kind, expected, is_error):
    add(f"{shop.url}/json")
    turn = ask(f'call shop__say {{"kind": "{kind}"}}')
    (result,) = results(turn)
    assert (result["text"], result.get("is_error", False)) == (expected, is_error)


def test_a_result_has_50_kb_at_most(ask, add, shop):
    add(f"{shop.url}/json")
    (result,) = results(ask('call shop__say {"kind": "big"}'))
    assert len(result["text"]) < 50_100
    assert result["text"].endswith("[cut: 200000 characters in all]")


# -- servers that don't work -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("401", "auth", "refuses the credentials"),
        ("403", "forbidden", "doesn't allow this"),
        ("429", "rate_limited", "limits the rate"),
        ("500", "server", "error of its own"),
        ("html", "protocol", "doesn't speak MCP"),
        ("bad-json", "protocol", "doesn't speak MCP"),
        ("redirect", "redirect", "redirects elsewhere"),
        ("endless", "too_large", "too large"),
        ("huge", "too_large", "too large"),
        ("refuses", "", "Not today"),
    ],
)
def test_a_call_that_fails_is_a_sentence_and_the_turn_goes_on(ask, add, shop, path, kind, words):
    server = add(f"{shop.url}/calls-{path}")
    turn = ask('call shop__search {"words": "boats"}')
    assert turn.state == "done"
    (result,) = results(turn)
    assert result["is_error"] is True
    assert words in result["text"]
    assert GOOD not in json.dumps(result)
    server.refresh_from_db()
    assert server.last_error == kind
    assert GOOD not in server.last_error_detail
    assert not shop.asked("", path="elsewhere")


def test_a_call_takes_no_longer_than_it_may(ask, add, shop, monkeypatch):
    monkeypatch.setattr(toolbox, "CALL_SECONDS", 0.5)
    server = add(f"{shop.url}/calls-slow")
    turn = ask('call shop__search {"words": "boats"}')
    assert turn.state == "done"
    assert "longer than" in results(turn)[0]["text"]
    server.refresh_from_db()
    assert (server.last_error, server.last_error_at is None) == ("timeout", False)
    until(lambda: shop.aborted)


@pytest.mark.parametrize("path", ["401", "500", "html", "endless", "bad-json"])
def test_a_server_without_a_list_costs_the_turn_nothing_but_its_tools(ask, add, shop, fakes, path):
    server = add(f"{shop.url}/{path}", name="Broken")
    add(f"{shop.url}/json", name="Shop")
    turn = ask('call shop__search {"words": "boats"}')
    assert (turn.state, results(turn)[0]["text"]) == ("done", "Found for boats: a boat.")
    assert not any(name.startswith("broken__") for name in fakes.requests()[0]["tools"])
    server.refresh_from_db()
    assert server.last_error
    assert server.last_error_at is not None


def test_a_silent_server_delays_one_turn_by_no_more_than_the_wait(
    ask, add, shop, fakes, monkeypatch
):
    monkeypatch.setattr(toolbox, "WAIT", 0.5)
    monkeypatch.setattr(toolbox, "LIST_SECONDS", 1.0)
    add(f"{shop.url}/slow", name="Silent")
    add(f"{shop.url}/json", name="Shop")
    turn = ask("hello")
    assert turn.state == "done"
    assert "shop__search" in fakes.requests()[0]["tools"]
    until(lambda: ToolServer.objects.get(prefix="silent").last_error == "timeout")
    before = len(shop.asked("initialize", path="slow"))
    ask("hello again")
    assert len(shop.asked("initialize", path="slow")) == before  # known to fail: not asked again


def test_an_edited_server_is_asked_anew(ask, add, shop, alice):
    server = add(f"{shop.url}/401")
    ask("hello")
    tool_servers.update(alice, server, name="Shop", prefix="shop", url=f"{shop.url}/json")
    turn = ask('call shop__search {"words": "boats"}')
    assert results(turn)[0]["text"] == "Found for boats: a boat."


def test_a_call_that_failed_makes_the_next_turn_ask_for_the_list(ask, add, shop):
    add(f"{shop.url}/calls-500")
    ask('call shop__search {"words": "boats"}')
    ask("hello")
    assert len(shop.asked("tools/list")) == 2


def test_no_special_address_is_called_whatever_the_row_says(ask, add, shop, workspace):
    urls = [url for url in THIS_MACHINE if url.isascii() and "%" not in url]
    port = shop.url.rpartition(":")[2]
    for number, url in enumerate(urls):
        ToolServer.objects.create(
            workspace=workspace,
            name=f"n{number}",
            prefix=f"n{number}",
            url=url.replace("{p}", port),
        )
    with override_settings(TOOL_EGRESS_ALLOW=""):
        assert ask("hello").state == "done"
    assert shop.requests == []
    assert set(ToolServer.objects.values_list("last_error", flat=True)) <= {"egress", "connect"}
    assert ToolServer.objects.filter(last_error="egress").count() > len(urls) * 0.7


# -- names and schemas -----------------------------------------------------------------------------


def test_odd_names_and_schemas_become_what_providers_take(ask, add, shop, fakes):
    add(f"{shop.url}/odd")
    turn = ask("hello")
    assert turn.state == "done"
    offered = fakes.requests()[0]["tools"]
    assert len(offered) == len(set(offered)) == 2 + 4
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in offered)
    assert not any("bad-key" in name or "huge" in name for name in offered)


def test_a_tool_of_an_odd_name_is_called_by_its_own(ask, add, shop, fakes):
    add(f"{shop.url}/odd")
    ask("hello")
    name = next(one for one in fakes.requests()[0]["tools"] if one.startswith("shop__nnn"))
    ask(f'call {name} {{"words": "x"}}')
    assert shop.calls()[-1]["params"]["name"] == "n" * 120


@pytest.mark.parametrize(
    ("schema", "kept"),
    [
        ({}, {"type": "object", "properties": {}}),
        ({"type": "object", "$schema": "x", "allOf": []}, {"type": "object", "properties": {}}),
        ({"type": "array"}, None),
        ({"type": "object", "properties": []}, None),
        ({"type": "object", "properties": {"a" * 65: {}}}, None),
        (
            {"type": "object", "properties": {"a": {}}, "required": "a"},
            {"type": "object", "properties": {"a": {}}},
        ),
    ],
)
def test_schemas(schema, kept):
    assert toolbox.schema_for_providers(schema) == kept


def test_a_schema_nested_beyond_measure_is_not_offered():
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(900):
        deep = {"type": "object", "properties": {"a": deep}}
    assert toolbox.schema_for_providers(deep) is None


def test_tools_take_no_more_than_their_share_of_the_window(workspace, bob):
    connection = make_connection("small", models=[{"id": "m", "contextWindow": 8_000}])
    connection.default_model = "m"
    connection.save()
    chat = ChatSession.objects.create(workspace=workspace, owner=bob, connection=connection)
    turn = sending.send(chat.pk, bob, "hello", ring=False).turn
    many = [ToolSpec(f"tool-{n}", "word " * 100, {"type": "object"}) for n in range(60)]
    prepared = prepare(turn, many)
    assert 5 < len(prepared.tools) < 20
    assert prepared.tools_left_out == 60 - len(prepared.tools)
    assert [tool.name for tool in prepared.tools][:2] == ["tool-0", "tool-1"]


# -- the window within one turn --------------------------------------------------------------------


def entry(*texts: str) -> Turnlet:
    return Turnlet(
        "user",
        [
            {"t": "tool_result", "id": f"c{number}", "name": "x", "text": text}
            for number, text in enumerate(texts)
        ],
    )


def test_nothing_is_shortened_while_there_is_room():
    history = [entry("a" * 10_000)]
    assert shorten(history, 0, 10_000) == []
    assert history[0].parts[0]["text"] == "a" * 10_000


def test_the_oldest_results_are_shortened_first_and_only_as_many_as_needed():
    history = [entry("a" * 35_000), entry("b" * 35_000), entry("c" * 35_000)]
    done = shorten(history, 0, 22_000)
    assert [(one.entry, one.kept) for one in done] == [(0, KEPT)]
    text = history[0].parts[0]["text"]
    assert text == "a" * KEPT + "\n[shortened: 35000 characters in all]"
    assert history[1].parts[0]["text"] == "b" * 35_000


def test_what_earlier_turns_said_is_left_alone():
    history = [entry("a" * 35_000), entry("b" * 35_000)]
    done = shorten(history, 1, 5_000)
    assert [one.entry for one in done] == [1]
    assert history[0].parts[0]["text"] == "a" * 35_000


def test_the_newest_result_keeps_what_there_is_room_for_and_gives_it_up_later():
    history = [entry("a" * 50_000)]
    (first,) = shorten(history, 0, 5_000)
    assert KEPT < first.kept < 5_000 * 3.5
    history.append(entry("b" * 15_000))
    done = shorten(history, 0, 5_000)
    assert (done[0].entry, done[0].kept) == (0, KEPT)
    assert history[0].parts[0]["text"].endswith("[shortened: 50000 characters in all]")


def test_a_turn_of_many_big_results_ends_well_and_says_what_was_shortened(ask, add, shop, fakes):
    add(f"{shop.url}/json")
    model = {"id": "calls", "contextWindow": 40_000}
    text = "\n".join(['call shop__say {"kind": "big"}'] * 6)
    turn = ask(text, models=[model])
    assert turn.state == "done"
    assert max(one["bytes"] for one in fakes.requests()) < 40_000 * 0.85 * 3.5
    replies = Message.objects.filter(turn=turn, role="assistant").order_by("step")
    kept = [part.get("kept") for part in results(turn)]
    assert kept[:4] == [KEPT] * 4
    assert all(len(part["text"]) > 50_000 for part in results(turn))  # the page has all of it
    (block,) = blocks_of(replies[0])
    assert "1000 characters" in block.html.replace(",", "")
    # The next turn sends what this one sent last.
    ask("hello", chat=turn.chat)
    sent = fakes.requests()[-1]
    assert sent["bytes"] < 40_000 * 0.85 * 3.5
    assert sent["texts"][0]["text"] == text
