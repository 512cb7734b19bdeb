"""A workspace's tool servers: who manages them, where their headers go, what the pages tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection as database
from django.test import Client, override_settings
from django.urls import reverse

from sessions import tool_servers
from sessions.models import ToolServer
from tests.builders import make_member, make_user, make_workspace
from tests.fakes.mcp_server import GOOD, FakeMcp
from tests.workspaces.test_egress import ELSEWHERE, MALFORMED, THIS_MACHINE
from workspaces.models import AuditEvent, Role, User, Workspace

KEY = f"Authorization: Bearer {GOOD}"


@pytest.fixture
def fake() -> Iterator[FakeMcp]:
    with FakeMcp() as running, override_settings(TOOL_EGRESS_ALLOW="127.0.0.0/8"):
        yield running


@pytest.fixture
def wanda(workspace: Workspace) -> User:
    """An admin of the workspace."""
    user = make_user("wanda@example.com")
    make_member(workspace, user, Role.ADMIN)
    return user


@pytest.fixture
def browser(client_for: Any, wanda: User) -> Client:
    return client_for(wanda)


def add(browser: Client, url: str, **data: Any) -> Any:
    values = {"name": "Shop", "url": url, "headers": KEY, **data}
    return browser.post(reverse("tools:create", args=["support"]), values)


def address(server: ToolServer, verb: str = "edit") -> str:
    return reverse(f"tools:{verb}", args=["support", server.pk])


def actions() -> list[str]:
    return list(AuditEvent.objects.order_by("at", "id").values_list("action", flat=True))


def test_a_server_is_added_tested_and_its_tools_are_shown(browser, fake):
    answer = add(browser, f"{fake.url}/json")
    server = ToolServer.objects.get()
    assert (answer.status_code, answer.headers["location"]) == (303, address(server))
    assert (server.prefix, server.enabled, server.allowed_tools) == ("shop", True, None)
    assert [tool["name"] for tool in server.tools] == ["search", "say"]
    page = browser.get(reverse("tools:list", args=["support"])).content.decode()
    assert "Search the shop" in page
    assert "Answers" in page
    assert sorted(actions()) == [
        *("secret.store", "secret.use", "tool_server.create", "tool_server.test"),
    ]


def test_headers_are_never_shown_again(browser, fake, alice, client_for):
    add(browser, f"{fake.url}/json")
    server = ToolServer.objects.get()
    pages = [address(server), reverse("tools:list", args=["support"])]
    admin = reverse("admin:agent_sessions_toolserver_change", args=[server.pk])
    for client, page in [*((browser, page) for page in pages), (client_for(alice), admin)]:
        text = client.get(page).content.decode()
        assert "Authorization" in text or page == pages[1]
        assert GOOD not in text
    with database.cursor() as cursor:
        cursor.execute("SELECT headers FROM agent_sessions_toolserver")
        assert GOOD.encode() not in bytes(cursor.fetchone()[0])
    assert GOOD not in json.dumps(list(AuditEvent.objects.values_list("details", flat=True)))
    wrong = browser.post(address(server), {"name": "", "headers": "X-Key: canary-value-123456"})
    assert wrong.status_code == 422
    assert "canary" not in wrong.content.decode()


def test_members_see_names_and_tools_only(browser, fake, bob, client_for):
    add(browser, f"{fake.url}/json")
    ToolServer.objects.update(
        last_error="auth", last_error_detail="secret words", last_error_at="2100-01-01T00:00Z"
    )
    page = client_for(bob).get(reverse("tools:list", args=["support"])).content.decode()
    assert "Shop" in page
    assert "Search the shop" in page
    for hidden in ("127.0.0.1", "secret words", "Authorization", "/edit", "<form method"):
        assert hidden not in page.split("<main", 1)[1], hidden


def test_another_address_wants_the_headers_again(browser, fake):
    add(browser, f"{fake.url}/json")
    server = ToolServer.objects.get()
    with FakeMcp() as other:
        moved = {"name": "Shop", "prefix": "shop", "url": f"{other.url}/json", "headers": ""}
        answer = browser.post(address(server), moved)
        assert answer.status_code == 422
        assert 'id="id_headers_error"' in answer.content.decode()
        assert other.requests == []
        assert browser.post(address(server), moved | {"headers": KEY}).status_code == 303
        assert other.asked("tools/list")
    server.refresh_from_db()
    assert server.binding == server.origin == other.url
    event = AuditEvent.objects.filter(action="secret.store").latest("at")
    assert event.details["old_host"] == fake.url


def test_another_path_keeps_them(browser, fake):
    add(browser, f"{fake.url}/json")
    server = ToolServer.objects.get()
    answer = browser.post(address(server), {"url": f"{fake.url}/sse", "headers": ""})
    assert answer.status_code == 303
    assert fake.asked("tools/list", path="sse")


def test_a_row_moved_by_hand_sends_its_headers_nowhere(browser, fake):
    add(browser, f"{fake.url}/json")
    with FakeMcp() as other:
        ToolServer.objects.update(url=f"{other.url}/json")
        server = ToolServer.objects.get()
        with pytest.raises(tool_servers.Unusable) as caught:
            tool_servers.open_for_use(server.pk, "worker")
        assert caught.value.kind == tool_servers.MISPLACED
        browser.post(address(server, "test"))
        assert other.requests == []
    ToolServer.objects.update(binding=ToolServer.objects.get().origin)
    with pytest.raises(tool_servers.Unusable) as caught:
        tool_servers.open_for_use(server.pk, "worker")
    assert caught.value.kind == tool_servers.SEALED


def test_headers_can_be_removed(browser, fake):
    add(browser, f"{fake.url}/json")
    server = ToolServer.objects.get()
    assert browser.post(address(server), {"headers": "{}"}).status_code == 303
    server.refresh_from_db()
    assert (server.headers, server.header_names) == (None, [])
    assert "secret.destroy" in actions()
    assert server.last_error == "auth"


def test_tools_are_chosen(browser, fake):
    add(browser, f"{fake.url}/json")
    server = ToolServer.objects.get()
    browser.post(address(server), {"tools_mode": "chosen", "tool": ["say"]})
    server.refresh_from_db()
    assert server.allowed_tools == ["say"]
    page = browser.get(reverse("tools:list", args=["support"])).content.decode()
    assert "Search the shop" not in page
    browser.post(address(server), {"tools_mode": "all"})
    server.refresh_from_db()
    assert server.allowed_tools is None


def test_a_failing_server_is_saved_and_says_why(browser, fake):
    answer = add(browser, f"{fake.url}/json", headers="Authorization: Bearer wrong")
    assert answer.status_code == 303
    page = browser.get(answer.headers["location"]).content.decode()
    assert "It refuses the credentials." in page
    assert "Bearer wrong" not in page
    server = ToolServer.objects.get()
    assert (server.last_error, server.is_failing) == ("auth", True)


def test_it_is_switched_off_and_deleted(browser, fake):
    add(browser, f"{fake.url}/json")
    server = ToolServer.objects.get()
    browser.post(address(server, "enable"), {"enabled": "false"})
    server.refresh_from_db()
    assert not server.enabled
    assert browser.get(address(server, "delete")).status_code == 200
    assert browser.post(address(server, "delete")).status_code == 303
    assert not ToolServer.objects.exists()
    assert actions()[-3:] == ["tool_server.disable", "secret.destroy", "tool_server.delete"]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a" * 61}, "name"),
        ({"prefix": "Ünder_score"}, "prefix"),
        ({"prefix": "9lives"}, "prefix"),
        ({"prefix": "a" * 21}, "prefix"),
        ({"url": ""}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"headers": "no colon"}, "headers"),
        ({"headers": "Host: example.com"}, "headers"),
        ({"headers": "Mcp-Session-Id: x"}, "headers"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field(browser, data, field):
    answer = add(browser, **{"url": "https://tools.example.com/mcp", **data})
    assert answer.status_code == 422
    assert f'id="id_{field}_error"' in answer.content.decode()
    assert not ToolServer.objects.exists()


def test_prefixes_differ_within_a_workspace(wanda, workspace):
    with override_settings(TOOL_EGRESS_ALLOW=""):
        made = [
            tool_servers.create(wanda, workspace, name=name, url="https://tools.example.com/mcp")
            for name in (
                "Our CRM",
                "Our CRM!",
                "2024",
                "日本",
                "A name that is much too long",
                "x-1",
            )
        ]
        other = make_workspace("sales")
        again = tool_servers.create(wanda, other, name="Our CRM", url="https://example.com/")
        with pytest.raises(ValidationError):
            tool_servers.create(
                wanda, workspace, name="x", prefix="our-crm", url="https://example.com/"
            )
    prefixes = [server.prefix for server in made]
    assert prefixes[:4] == ["our-crm", "our-crm-2", "t-2024", "tools"]
    assert all(len(prefix) <= 20 for prefix in prefixes)
    assert again.prefix == "our-crm"


def test_no_spelling_of_a_special_address_is_saved(browser):
    with override_settings(TOOL_EGRESS_ALLOW="", EGRESS_ALLOW="127.0.0.0/8"):
        for url in [*THIS_MACHINE, *ELSEWHERE]:
            url = url.replace("{p}", "8080")
            answer = add(browser, url)
            assert answer.status_code == 422, url
            assert 'id="id_url_error"' in answer.content.decode(), url
        for url in MALFORMED:
            answer = add(browser, url.replace("{p}", "8080"))
            if answer.status_code == 303:  # cleaned of the space around it
                assert ToolServer.objects.get().url.startswith("https://api.example.com"), url
                ToolServer.objects.all().delete()
    assert not ToolServer.objects.exists()


def test_a_change_without_its_audit_row_does_not_happen(browser, fake, monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no audit")

    monkeypatch.setattr("sessions.tool_servers.record", fail)
    with pytest.raises(RuntimeError):
        add(browser, f"{fake.url}/json")
    assert not ToolServer.objects.exists()
    assert fake.requests == []


def test_the_list_costs_the_same_with_many(browser, wanda, workspace):
    def count() -> int:
        from django.test.utils import CaptureQueriesContext

        with CaptureQueriesContext(database) as queries:
            browser.get(reverse("tools:list", args=["support"]))
        return len(queries)

    def make(number: int) -> None:
        ToolServer.objects.create(
            workspace=workspace, name=f"s{number}", prefix=f"s{number}", url="https://example.com/"
        )

    make(0)
    once = count()
    for number in range(1, 15):
        make(number)
    assert count() == once
