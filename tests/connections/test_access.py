"""Which workspaces may use a connection, which of its models are granted, and which are used."""

import pytest
from django.core.exceptions import ValidationError

from connections.capabilities import usable_models
from connections.grants import set_access, set_allowed_models, set_granted_models
from connections.models import Connection, WorkspaceConnection
from tests.builders import give_access, make_connection, make_workspace
from workspaces.models import AuditEvent, Role

pytestmark = pytest.mark.django_db

MODELS = ["small", "medium", "large"]


@pytest.fixture
def local():
    return make_connection("local", models=MODELS, default_model="small")


def usable(workspace, connection) -> list[str]:
    row = WorkspaceConnection.objects.filter(workspace=workspace, connection=connection).first()
    return usable_models(Connection.objects.get(pk=connection.pk), row)


def test_a_workspace_uses_what_is_granted_and_chosen(alice, workspace, local):
    set_granted_models(alice, workspace, local, ["small", "medium"])
    assert usable(workspace, local) == ["small", "medium"]
    set_allowed_models(alice, workspace, local, ["medium"])
    assert usable(workspace, local) == ["medium"]
    set_granted_models(alice, workspace, local, ["small"])
    assert usable(workspace, local) == []
    set_granted_models(alice, workspace, local, None)
    assert usable(workspace, local) == ["medium"]
    set_allowed_models(alice, workspace, local, None)
    assert usable(workspace, local) == MODELS
    assert not WorkspaceConnection.objects.exists()
    granted = AuditEvent.objects.filter(action="workspace.grant").order_by("at", "id")
    assert [row.details["models"] for row in granted] == [2, 1, "all"]


def test_a_workspaces_admin_cannot_use_what_is_not_granted(client, workspace, local, bob):
    bob.memberships.update(role=Role.ADMIN)
    give_access(workspace, local)
    WorkspaceConnection.objects.update(granted_models=["small"])
    with pytest.raises(ValidationError, match="granted"):
        set_allowed_models(bob, workspace, local, ["small", "large"])
    client.force_login(bob)
    page = f"/w/{workspace.slug}/settings/ai/local/models/"
    assert "large" not in client.get(page).text
    assert client.post(page, {"model": ["large"]}).status_code == 400
    assert client.post(page, {"model": ["small"]}).status_code == 303
    assert usable(workspace, local) == ["small"]


def test_access_keeps_what_was_granted(alice, workspace, local):
    set_granted_models(alice, workspace, local, ["small"])
    set_access(alice, local, access="chosen", workspaces=[workspace.pk])
    assert usable(workspace, local) == ["small"]
    set_access(alice, local, access="all", workspaces=[])
    assert usable(workspace, local) == ["small"]


def test_the_access_page_saves_who_and_which_models(client, alice, workspace, local):
    other = make_workspace("other")
    client.force_login(alice)
    data = {"access": "chosen", "workspaces": [str(workspace.pk), "nonsense"]}
    assert client.post("/connections/local/access/", data).status_code == 303
    assert list(Connection.objects.visible_to(workspace)) == [local]
    assert list(Connection.objects.visible_to(other)) == []
    assert client.post("/connections/local/access/", {"access": "x"}).status_code == 400
    grant = f"/connections/local/access/{workspace.slug}/"
    assert client.post(grant, {"model": ["small"]}).status_code == 303
    assert usable(workspace, local) == ["small"]
    page = client.get("/connections/local/access/").text
    assert "small" in page
    assert "Grant models to Support" in page
    assert "Grant models to Other" not in page
    assert client.post(f"/connections/local/access/{other.slug}/").status_code == 400


@pytest.mark.parametrize("many", [2, 40])
def test_the_access_page_costs_the_same_for_any_number(
    client, alice, local, django_assert_num_queries, many
):
    for number in range(many):
        give_access(make_workspace(f"space-{number}"), local)
    client.force_login(alice)
    client.get("/connections/local/access/")
    with django_assert_num_queries(7):
        client.get("/connections/local/access/")


def test_what_if_a_connection_is_disabled(client, workspace, bob):
    make_connection("first", name="First one")
    used = make_connection("used", name="Used one")
    make_connection("hidden", access="chosen")
    give_access(workspace, used, is_default=True)
    client.force_login(bob)
    page = f"/w/{workspace.slug}/settings/ai/"
    assert "Without Used one, new sessions use First one" in client.get(page + "?without=used").text
    assert "Without" not in client.get(page + "?without=hidden").text
    assert "Without" not in client.get(page).text
