"""A workspace's AI settings: what its people see, and what its admins choose."""

import re

import pytest
from django.utils import timezone

from connections.models import WorkspaceConnection
from connections.resolve import Rule, resolve
from tests.builders import KEY, give_access, make_connection, make_member, make_user
from workspaces.models import AuditEvent, Role

pytestmark = pytest.mark.django_db


@pytest.fixture
def carol(workspace):
    """The admin of the workspace."""
    user = make_user("carol@example.com")
    make_member(workspace, user, Role.ADMIN)
    return user


def main_of(html):
    return html.partition("<main")[2].partition("</main>")[0]


def test_members_see_name_health_models_and_capabilities_and_nothing_else(bob, client_for):
    make_connection(
        "local",
        name="Local",
        note="note-canary",
        base_url="https://url-canary.example.com/v1",
        models=["small", {"id": "big", "contextWindow": 200_000, "supportsImages": True}],
        health="failed",
        health_error="quota",
        health_at=timezone.now(),
        created_by=make_user("creator-canary@example.com"),
    )
    html = main_of(client_for(bob).get("/w/support/settings/ai/").text)
    for text in ("Local", "Failed", "Quota used up", "small", "big", "200K", "images"):
        assert text in html
    assert 'id="connection-local" data-status="failed"' in html
    assert "canary" not in html
    assert KEY not in html
    assert "openai_compat" not in html
    assert "/connections/" not in html


def test_a_connection_for_chosen_workspaces_stays_unknown_to_the_others(bob, client_for, workspace):
    make_connection("open")
    hidden = make_connection("hidden", name="hidden-canary", access="chosen", is_default=True)
    client = client_for(bob)
    html = client.get("/w/support/settings/ai/").text
    assert "canary" not in html
    assert "connection-hidden" not in html
    give_access(workspace, hidden)
    assert "hidden-canary" in client.get("/w/support/settings/ai/").text


def test_the_trace_says_why_this_connection(bob, client_for, workspace):
    paused = make_connection("paused", name="Paused one", enabled=False)
    make_connection("fallback", name="Fallback", is_default=True)
    give_access(workspace, paused, is_default=True)
    html = main_of(client_for(bob).get("/w/support/settings/ai/").text)
    trace = html.partition("Why this connection?")[2].partition("</ol>")[0]
    rungs = re.findall(r"<span>(.*?)</span>", trace)
    assert rungs == [
        "Workspace default “Paused one”: disabled.",
        "Global default “Fallback”: used.",
    ]
    assert trace.count("aria-current") == 1


def test_a_paused_connection_says_what_its_admin_wrote(bob, client_for, workspace):
    make_connection("local", enabled=False, paused_message="Back on Monday.")
    html = main_of(client_for(bob).get("/w/support/settings/ai/").text)
    assert 'data-status="disabled"' in html
    assert "Back on Monday." in html


def test_a_status_is_not_said_twice(bob, client_for, workspace):
    make_connection("local", key=None)
    html = main_of(client_for(bob).get("/w/support/settings/ai/").text)
    row = html.partition('<tr id="connection-local"')[2].partition("</tr>")[0]
    assert row.count("Secret needed") == 1


def test_without_any_connection_the_page_says_whom_to_ask(bob, client_for, workspace):
    html = main_of(client_for(bob).get("/w/support/settings/ai/").text)
    assert "No connection yet" in html
    assert "Ask an admin to add one." in html


def test_an_admin_of_the_workspace_sets_and_clears_its_default(carol, client_for, workspace):
    make_connection("first", is_default=True)
    make_connection("second")
    client = client_for(carol)
    answer = client.post("/w/support/settings/ai/default/", {"connection": "second"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/w/support/settings/ai/")
    assert resolve(workspace).rule is Rule.WORKSPACE
    html = main_of(client.get("/w/support/settings/ai/").text)
    assert '<option value="second" selected>' in html
    client.post("/w/support/settings/ai/default/", {"connection": ""})
    assert resolve(workspace).rule is Rule.GLOBAL
    assert AuditEvent.objects.filter(action="workspace.default", actor=carol).count() == 2


def test_a_connection_without_access_cant_be_the_default(carol, client_for, workspace):
    make_connection("hidden", access="chosen")
    for slug in ("hidden", "missing", "x" * 500):
        answer = client_for(carol).post("/w/support/settings/ai/default/", {"connection": slug})
        assert answer.status_code == 404
    assert not WorkspaceConnection.objects.exists()


def test_an_admin_of_the_workspace_narrows_the_models_and_widens_them_again(
    carol, client_for, workspace
):
    make_connection("local", models=["small", "large"], default_model="small")
    client = client_for(carol)
    url = "/w/support/settings/ai/local/models/"
    assert client.get(url).text.count(" checked>") == 2
    assert client.post(url, {"model": ["large"]}).status_code == 303
    assert resolve(workspace).model == "large"
    assert client.get(url).text.count(" checked>") == 1
    assert AuditEvent.objects.filter(action="workspace.models", actor=carol).exists()
    client.post(url, {"model": []})
    assert not resolve(workspace).ok
    client.post(url, {"model": ["small", "large"]})
    assert resolve(workspace).model == "small"
    assert not WorkspaceConnection.objects.exists()


def test_narrowing_keeps_the_default_and_widening_keeps_the_access(carol, client_for, workspace):
    local = make_connection("local", access="chosen")
    give_access(workspace, local, is_default=True)
    client = client_for(carol)
    url = "/w/support/settings/ai/local/models/"
    for models, stored in ((["small"], ["small"]), (["small", "large"], None)):
        client.post(url, {"model": models})
        row = WorkspaceConnection.objects.get()
        assert (row.is_default, row.allowed_models) == (True, stored)


def test_only_models_of_the_connection_can_be_chosen(carol, client_for, workspace):
    make_connection("local")
    answer = client_for(carol).post(
        "/w/support/settings/ai/local/models/", {"model": ["small", "elsewhere"]}
    )
    assert answer.status_code == 400
    assert not WorkspaceConnection.objects.exists()
