"""Who may open and change what: every page of connections, by every kind of person."""

import pytest
from django.test import Client
from django.urls import get_resolver

from connections.models import (
    AlertOptOut,
    AlertSettings,
    Budget,
    Connection,
    ProbeResult,
    SecretCandidate,
    WorkspaceConnection,
)
from tests.builders import give_access, make_connection, make_member, make_user, make_workspace
from workspaces.models import AuditEvent, Role

pytestmark = pytest.mark.django_db

READ = {
    "list": "",
    "create": "new/",
    "detail": "local/",
    "row": "local/row/",
    "health": "local/health/",
    "edit": "local/edit/",
    "confirm_delete": "local/delete/confirm/",
    "deleted": "deleted/",
    "status": "status/",
    "progress": "progress/",
}
CHANGE = {
    "validate_many": ("validate/", {}),
    "selected": ("selected/", {"action": "pause", "slug": "local"}),
    "alerts_to_me": ("alerts/me/", {"mail": "no"}),
    "alerts_test": ("alerts/test/", {}),
    "validate": ("local/validate/", {}),
    "default": ("local/default/", {}),
    "mid_stream": ("local/mid-stream/", {"mid_stream_behavior": "queue"}),
    "enable": ("local/enable/", {"enabled": "false"}),
    "order": ("local/order/", {"position": "0"}),
    "sign_in": ("local/sign-in/", {}),
    "sign_in_finish": ("local/sign-in/finish/", {"attempt": "x", "code": "y"}),
    "sign_in_cancel": ("local/sign-in/cancel/", {}),
    "sign_out": ("local/sign-out/", {}),
    "secret_again": ("local/secret/again/", {"candidate": "x"}),
    "secret_use": ("local/secret/use/", {"candidate": "x"}),
    "secret_discard": ("local/secret/discard/", {"candidate": "x"}),
    "live_stop": ("local/live/stop/", {"turn": "all"}),
    "refresh_models": ("local/models/", {}),
    "delete": ("local/delete/", {}),
    "restore": ("gone/restore/", {}),
}
FORMS = {
    "alerts": ("alerts/", {"failures": "1"}),
    "budget": ("local/budget/", {"hard_cost": "1"}),
    "access": ("local/access/", {"access": "chosen"}),
    "grant": ("local/access/support/", {}),
    "create": ("new/", {"name": "Theirs"}),
    "edit": ("local/edit/", {"name": "Theirs"}),
    "secret": ("local/secret/", {"api_key": "sk-theirs-0123456789-abcdef"}),
}
POSTS = [*CHANGE.values(), *FORMS.values()]
# Pages of other modules under the same prefix, with tests of their own.
ELSEWHERE = {"import", "import_result", "export"}


@pytest.fixture
def local(workspace):
    connection = make_connection("local")
    make_connection("other")
    give_access(workspace, connection)
    return connection


def state():
    return [
        list(model.objects.order_by("pk").values())
        for model in (
            Connection,
            ProbeResult,
            SecretCandidate,
            WorkspaceConnection,
            AuditEvent,
            AlertOptOut,
            AlertSettings,
            Budget,
        )
    ]


@pytest.fixture
def people(workspace, bob, charlie):
    carol = make_user("carol@example.com")
    make_member(workspace, carol, Role.ADMIN)
    victor = make_user("victor@example.com")
    make_member(workspace, victor, Role.VIEWER)
    return {"workspace admin": carol, "member": bob, "viewer": victor, "stranger": charlie}


def test_every_page_of_connections_is_in_these_tests():
    resolver = get_resolver()
    names = {name.partition(":")[2] for name in _names(resolver) if name.startswith("connections:")}
    assert names - ELSEWHERE == READ.keys() | CHANGE.keys() | FORMS.keys()
    assert {name for name in _names(resolver) if name.startswith("ai:")} == {
        "ai:settings",
        "ai:default",
        "ai:models",
    }


def _names(resolver, prefix=""):
    for pattern in resolver.url_patterns:
        if hasattr(pattern, "url_patterns"):
            app = f"{pattern.app_name}:" if pattern.app_name else prefix
            yield from _names(pattern, app)
        elif pattern.name:
            yield f"{prefix}{pattern.name}"


@pytest.mark.parametrize("person", ["workspace admin", "member", "viewer", "stranger"])
def test_only_instance_admins_see_or_change_connections(person, people, local, client_for):
    client, before = client_for(people[person]), state()
    for path in READ.values():
        assert client.get(f"/connections/{path}").status_code == 403, path
    for path, data in POSTS:
        assert client.post(f"/connections/{path}", data).status_code == 403, path
    assert client.get("/connections/no-such/").status_code == 403
    assert state() == before


@pytest.mark.parametrize("person", ["workspace admin", "member", "viewer", "stranger"])
def test_only_instance_admins_begin_connections(person, people, local, client_for):
    client, before = client_for(people[person]), state()
    for path in ("local/", "anthropic/", "no-such/", "check/local/", "check/no-such/"):
        assert client.get(f"/start/{path}").status_code == 403, path
    for path in ("anthropic/", "check/local/"):
        answer = client.post(f"/start/{path}", {"api_key": "sk-theirs-0123456789-abcdef"})
        assert answer.status_code == 403, path
    assert state() == before


def test_who_is_not_signed_in_is_sent_to_the_sign_in_page(local, client_for):
    client, before = client_for(None), state()
    answers = [client.get(f"/connections/{path}") for path in READ.values()]
    answers += [client.post(f"/connections/{path}", data) for path, data in POSTS]
    answers += [
        client.get("/w/support/settings/ai/"),
        client.post("/w/support/settings/ai/default/"),
    ]
    for answer in answers:
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith("/accounts/login/")
    assert state() == before


def test_what_changes_something_takes_only_post(local, alice, client_for):
    client, before = client_for(alice), state()
    for path, _data in CHANGE.values():
        for method in (client.get, client.head, client.put, client.delete):
            assert method(f"/connections/{path}").status_code == 405, path
    for path in ("", "local/", "local/row/", "local/delete/confirm/"):
        assert client.post(f"/connections/{path}").status_code == 405, path
    assert client.get("/w/support/settings/ai/default/").status_code == 405
    assert client.post("/w/support/settings/ai/").status_code == 405
    assert state() == before


def test_reading_every_page_changes_nothing(local, alice, client_for):
    client, before = client_for(alice), state()
    for path in READ.values():
        assert client.get(f"/connections/{path}").status_code == 200, path
    assert client.get("/w/support/settings/ai/").status_code == 200
    assert client.get("/w/support/settings/ai/local/models/").status_code == 200
    assert state() == before


def test_a_post_without_the_token_is_refused(local, alice, client_for):
    client, before = client_for(alice, enforce_csrf_checks=True), state()
    for path, data in POSTS:
        assert client.post(f"/connections/{path}", data).status_code == 403, path
    assert (
        client.post("/w/support/settings/ai/default/", {"connection": "local"}).status_code == 403
    )
    assert state() == before


def test_what_is_not_there_is_404(local, alice, client_for):
    client = client_for(alice)
    for path, data in CHANGE.values():
        if path.startswith("local/"):
            missing = path.replace("local/", "missing/")
            assert client.post(f"/connections/{missing}", data).status_code == 404
    local.deleted_at = local.created_at
    local.save()
    for path in ("local/", "local/edit/", "local/delete/confirm/"):
        assert client.get(f"/connections/{path}").status_code == 404


# -- a workspace's AI settings ---------------------------------------------------------------------


def test_a_stranger_gets_404_for_a_workspaces_settings(local, people, client_for):
    client, before = client_for(people["stranger"]), state()
    assert client.get("/w/support/settings/ai/").status_code == 404
    assert client.get("/w/nowhere/settings/ai/").status_code == 404
    for path in ("default/", "local/models/"):
        answer = client.post(f"/w/support/settings/ai/{path}", {"connection": "local"})
        assert answer.status_code == 404
    assert state() == before


@pytest.mark.parametrize("person", ["member", "viewer"])
def test_members_read_the_settings_and_change_nothing(person, people, local, client_for):
    client, before = client_for(people[person]), state()
    page = client.get("/w/support/settings/ai/")
    assert page.status_code == 200
    assert 'method="post"' not in page.text.partition("<main")[2].partition("</main>")[0]
    for path in ("default/", "local/models/"):
        answer = client.post(f"/w/support/settings/ai/{path}", {"connection": "local"})
        assert answer.status_code == 403
    assert client.get("/w/support/settings/ai/local/models/").status_code == 403
    assert state() == before


def test_an_admin_of_one_workspace_is_nobody_in_another(local, people, client_for):
    make_workspace("sales")
    client, before = client_for(people["workspace admin"]), state()
    assert client.get("/w/sales/settings/ai/").status_code == 404
    answer = client.post("/w/sales/settings/ai/default/", {"connection": "local"})
    assert answer.status_code == 404
    assert state() == before


def test_somebody_deactivated_gets_nowhere(local, alice, client_for):
    client: Client = client_for(alice)
    alice.is_active = False
    alice.save()
    assert client.get("/connections/").status_code in (302, 403)
    assert client.post("/connections/local/delete/").status_code in (302, 403)
    assert Connection.objects.living().filter(slug="local").exists()
