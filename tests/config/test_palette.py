"""The command palette and the sheet of shortcuts, as the server answers them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client

from sessions import search
from sessions.models import ChatSession
from tests.builders import make_connection, make_member, make_user, make_workspace
from workspaces.models import Role, User, Workspace
from workspaces.palette import Command, Group, _parts, _rank, typed

HTMX = {"HTTP_HX_REQUEST": "true"}


def ask(client: Client, query: str = "", **data: str) -> str:
    response = client.get("/palette/", {"q": query, **data}, **HTMX)
    assert response.status_code == 200
    return response.text


def found(html: str) -> list[str]:
    """The labels of the options."""
    options = re.findall(r'role="option".*?<span class="grow">(.*?)</span>', html, re.DOTALL)
    return [re.sub(r"<[^>]*>", "", option) for option in options]


def make_chat(owner: User, workspace: Workspace, title: str, **fields: Any) -> ChatSession:
    return ChatSession.objects.create(owner=owner, workspace=workspace, title=title, **fields)


def test_without_a_query_it_offers_what_one_does_most(bob: User, workspace: Workspace, client_for):
    make_chat(bob, workspace, "About the invoice")
    make_chat(bob, workspace, "Old and away", archived_at="2026-01-01T00:00Z")
    labels = found(ask(client_for(bob)))
    assert labels[:2] == ["About the invoice", "New session"]
    assert {"Sign out", "Members", "Keyboard shortcuts"} <= set(labels)
    assert "Old and away" not in labels
    assert not {"Connections", "Add a connection", "Admin site", "Audit"} & set(labels)


def test_a_title_is_found_before_and_after_the_index_knows_it(bob, workspace, client_for):
    make_chat(bob, workspace, "Über die Rechnung")
    client = client_for(bob)
    assert found(ask(client, "rechnung die")) == ["Über die Rechnung"]
    assert search.take_in() == 1
    assert found(ask(client, "über RECHNUNG")) == ["Über die Rechnung"]
    assert "<mark>Über</mark> die <mark>Rechnung</mark>" in ask(client, "über rechnung")


def test_nobody_finds_what_is_not_for_him(bob, workspace, alice, charlie, client_for):
    sales = make_workspace("sales")
    make_member(sales, charlie)
    make_connection("local", name="Findable connection")
    for owner, space, title, shared in (
        (charlie, sales, "Findable of sales", True),
        (alice, workspace, "Findable of alice", False),
        (alice, workspace, "Findable and shared", True),
        (bob, workspace, "Findable of bob", False),
    ):
        make_chat(owner, space, title, shared=shared)
    assert set(found(ask(client_for(bob), "findable"))) == {
        "Findable and shared",
        "Findable of bob",
    }
    assert found(ask(client_for(charlie), "findable")) == ["Findable of sales"]
    # One who left a workspace finds nothing of it, his own sessions among it.
    charlie.memberships.all().delete()
    assert found(ask(client_for(charlie), "findable")) == []
    labels = found(ask(client_for(alice), "findable"))
    assert {"Findable connection", "Validate Findable connection"} <= set(labels)
    assert "Findable of bob" not in labels
    assert found(ask(client_for(bob), "sales", workspace="sales")) == []


def test_a_viewer_is_offered_no_new_session(workspace: Workspace, client_for):
    vera = make_user("vera@example.com")
    make_member(workspace, vera, Role.VIEWER)
    client = client_for(vera)
    assert "New session" not in found(ask(client, "new"))
    assert 'data-keys="n"' not in client.get("/shortcuts/").text


def test_commands_that_change_something_are_posted(alice, workspace, client_for):
    make_connection("local", name="Local")
    client = client_for(alice)
    html = ask(client, "validate local")
    assert 'form="commands" formaction="/connections/local/validate/"' in html
    assert client.get("/connections/local/validate/").status_code == 405
    assert '<form id="commands" method="post" hidden>' in client.get("/palette/?q=validate").text


def test_the_page_of_the_workspace_decides_where_a_session_begins(alice, workspace, client_for):
    make_workspace("sales")
    client = client_for(alice)
    for slug in ("support", "sales"):
        html = ask(client, "new session", workspace=slug)
        assert f'formaction="/w/{slug}/sessions/new/"' in html


def test_its_queries_are_bounded(
    bob: User, workspace: Workspace, alice: User, client_for, django_assert_max_num_queries
):
    client = client_for(alice)
    for number in range(30):
        make_connection(f"local-{number}")
        make_chat(alice, make_workspace(f"space-{number}"), f"Session {number}")
    for query in ("", "s", "session", "local"):
        with django_assert_max_num_queries(8):
            ask(client, query)


def test_without_javascript_it_is_a_page_of_links_and_buttons(bob, workspace, client_for):
    chat = make_chat(bob, workspace, "About the invoice")
    html = client_for(bob).get("/palette/", {"q": "invoice"}).text
    main = html[html.index("<main") : html.index("</main>")]
    assert f'<a href="/w/support/sessions/{chat.pk}/">' in main
    assert "role=option" not in main
    assert "Nothing found" in client_for(bob).get("/palette/", {"q": "zzz"}).text


@pytest.mark.parametrize("query", ["(", "[a", "\\", "%", "_", "a" * 5_000, "é" * 50, " \t ", "ß"])
def test_any_text_may_be_typed(bob, workspace, client_for, query: str):
    make_chat(bob, workspace, "About the invoice")
    assert "About the invoice" not in found(ask(client_for(bob), query)) or not query.strip()


@pytest.mark.parametrize(
    ("label", "query", "rank"),
    [
        ("New session", "new", 0),
        ("Add a new one", "new", 1),
        ("Renew", "new", 2),
        ("Profile", "password", 3),
        ("Profile", "nothing", None),
        ("New session", "session new", 1),
    ],
)
def test_what_begins_so_comes_first(label: str, query: str, rank: int | None):
    command = Command(Group.PAGES, label, "/", "x", words="password")
    assert _rank(command, [re.compile(re.escape(w), re.I) for w in typed(query).split()]) == rank


def test_what_was_typed_is_marked():
    patterns = [re.compile("se", re.I), re.compile("ess", re.I)]
    assert _parts("A session", patterns) == [("A ", False), ("sess", True), ("ion", False)]
    assert _parts("", patterns) == []


def test_the_sheet_leads_where_the_person_may_go(bob, alice, workspace, client_for):
    assert 'href="/connections/" data-keys="g c"' in client_for(alice).get("/shortcuts/").text
    page = client_for(bob).get("/shortcuts/").text
    assert 'href="/w/support/" data-keys="g s"' in page
    assert 'data-keys="g c"' not in page


def test_no_two_places_have_the_same_keys(alice, workspace, client_for):
    html = client_for(alice).get("/shortcuts/").text.partition("<main")[2].partition("</main>")[0]
    keys = re.findall(r'data-keys="([^"]+)"', html)
    assert len(set(keys)) == len(keys) > 8
