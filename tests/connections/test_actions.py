"""Every change of a connection, what it does to the secret, and the audit row it leaves."""

import json
import threading

import pytest
from django.core.exceptions import ValidationError
from django.db import connection as database
from django.utils import timezone

from connections import actions
from connections.actions import (
    create,
    move,
    reorder,
    set_enabled,
    set_global_default,
    set_mid_stream,
    update,
)
from connections.choices import Status
from connections.deleting import delete
from connections.grants import set_access, set_workspace_default
from connections.models import Connection, Secret, WorkspaceConnection
from connections.targets import target_of
from tests.builders import KEY, give_access, make_connection, make_secret, make_workspace
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db

DATA = {
    "name": "OpenRouter",
    "provider_type": "openai_compat",
    "auth_type": "api_key_with_endpoint",
    "base_url": "https://openrouter.example/api/v1/chat/completions",
    "models": "a\nb",
    "default_model": "a",
}


def slugs():
    return [c.slug for c in Connection.objects.living()]


def errors_of(call, *arguments, **named):
    with pytest.raises(ValidationError) as caught:
        call(*arguments, **named)
    return caught.value.message_dict if hasattr(caught.value, "error_dict") else caught.value


def events():
    return list(AuditEvent.objects.order_by("at", "id").values_list("action", flat=True))


# -- create ----------------------------------------------------------------------------------------


def test_a_new_connection_is_cleaned_sealed_audited_and_the_first_is_the_default(alice):
    made = create(alice, DATA, secret={"api_key": KEY}, headers="X-Team: blue")
    made.refresh_from_db()
    assert made.slug == "openrouter"
    assert made.base_url == "https://openrouter.example/api/v1"
    assert made.is_default
    assert made.created_by == alice
    target = target_of(made)
    assert dict(target.secret) == {"api_key": KEY}
    assert dict(target.extra_headers) == {"X-Team": "blue"}
    assert set(events()) == {
        "connection.create",
        "connection.default",
        "secret.store",
    }
    assert KEY not in json.dumps(list(AuditEvent.objects.values("details")), default=str)
    assert not create(alice, DATA).is_default


def test_hints_show_the_last_four_of_long_values_only(alice):
    made = create(alice, DATA, secret={"api_key": KEY}, headers="X-Team: blue")
    assert made.secrets.get(purpose="auth").hints == {"api_key": "x7Q2"}
    assert made.secrets.get(purpose="headers").hints == {"X-Team": ""}
    made = create(alice, DATA, secret={"api_key": "k" * 19})
    assert made.secrets.get().hints == {"api_key": ""}


def test_a_made_slug_that_is_taken_or_reserved_gets_a_number(alice):
    assert [create(alice, DATA).slug for _ in range(3)] == [
        "openrouter",
        "openrouter-2",
        "openrouter-3",
    ]
    assert create(alice, DATA | {"name": "New"}).slug == "new-2"
    assert create(alice, DATA | {"name": "本地"}).slug == "connection"


def test_a_typed_slug_that_is_taken_or_a_tombstones_is_refused(alice):
    made = create(alice, DATA | {"slug": "mine"})
    assert "Another connection" in errors_of(create, alice, DATA | {"slug": "mine"})["slug"][0]
    delete(alice, made)
    assert "deleted" in errors_of(create, alice, DATA | {"slug": "mine"})["slug"][0]
    assert "slug" in errors_of(create, alice, DATA | {"slug": "import"})


def test_a_tombstones_slug_is_not_made_again(alice):
    delete(alice, create(alice, DATA))
    assert create(alice, DATA).slug == "openrouter-2"


def test_nothing_is_stored_when_the_audit_row_cannot_be_written(alice, monkeypatch):
    def broken(*arguments, **named):
        raise RuntimeError("no audit")

    monkeypatch.setattr(actions, "record", broken)
    with pytest.raises(RuntimeError):
        create(alice, DATA, secret={"api_key": KEY})
    assert not Connection.objects.exists()
    assert not Secret.objects.exists()


def test_a_refused_address_is_refused_at_save(alice, settings):
    settings.EGRESS_ALLOW = ""
    for url in ("http://127.0.0.1/v1", "http://169.254.169.254/v1", "http://2130706433/v1"):
        assert "base_url" in errors_of(create, alice, DATA | {"base_url": url})
    assert not Connection.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_two_first_connections_made_at_once_one_is_the_default(alice):
    start = threading.Barrier(2)

    def make():
        try:
            start.wait(10)
            create(alice, DATA)
        finally:
            database.close()

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(slugs()) == ["openrouter", "openrouter-2"]
    assert Connection.objects.filter(is_default=True).count() == 1


# -- update: what a secret is bound to -------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "http://llm.example.com/v1"},
        {"base_url": "https://evil.example/v1"},
        {"base_url": "https://llm.example.com:8443/v1"},
        {"provider_type": "anthropic_compat"},
        {"provider_type": "openai"},
        {"provider_type": "openai", "auth_type": "api_key"},
    ],
)
def test_a_secret_is_asked_for_again_where_it_would_go_elsewhere(alice, changes):
    made = make_connection()
    errors = errors_of(update, alice, made, changes)
    assert "https://llm.example.com:443" in errors["api_key"][0]
    made.refresh_from_db()
    assert made.base_url == "https://llm.example.com/v1"
    assert made.revision == 0
    assert events() == []
    update(alice, made, changes, secret={"api_key": "another"})
    assert json.loads(made.secrets.get().value.open()) == {"api_key": "another"}


def test_extra_headers_are_asked_for_again_too(alice):
    made = make_connection()
    make_secret(made, {"X-Team": "blue"}, Secret.Purpose.HEADERS)
    moved = {"base_url": "https://evil.example/v1"}
    errors = errors_of(update, alice, made, moved, secret={"api_key": "k"})
    assert set(errors) == {"extra_headers"}
    update(alice, made, moved, secret={"api_key": "k"}, headers="{}")
    assert made.secrets.get().purpose == "auth"


def test_a_change_of_the_path_keeps_the_secret(alice):
    made = make_connection()
    assert update(alice, made, {"base_url": "https://llm.example.com/other/v1"}) == ["base_url"]
    assert target_of(made).secret["api_key"] == KEY
    assert target_of(made).base_url == "https://llm.example.com/other/v1"


def test_saving_what_is_there_changes_nothing(alice):
    made = make_connection()
    stored = made.secrets.get().value.stored
    same = {name: getattr(made, name) for name in ("name", "base_url", "models")}
    assert update(alice, made, same, secret={"api_key": ""}, headers="") == []
    assert made.secrets.get().value.stored == stored
    assert events() == []


def test_a_region_of_bedrock_may_change_without_the_secret(alice):
    made = make_connection(
        provider_type="bedrock",
        auth_type="iam_credentials",
        base_url="",
        aws_region="us-east-1",
    )
    make_secret(made, {"access_key_id": "a", "secret_access_key": "s"})
    update(alice, made, {"aws_region": "eu-central-1"})
    assert made.secrets.get().binding == made.binding


def test_going_without_a_key_destroys_the_stored_one(alice):
    made = make_connection()
    update(alice, made, {"auth_type": "none"})
    assert not made.secrets.exists()
    assert "secret.destroy" in events()


def test_an_import_forgets_what_it_may_not_send_elsewhere(alice):
    made = make_connection()
    update(alice, made, {"base_url": "https://evil.example/v1"}, forget_secrets=True)
    assert not made.secrets.exists()
    assert made.status == Status.INCOMPLETE


def test_the_audit_names_the_hosts_and_no_value(alice):
    made = make_connection()
    update(alice, made, {"base_url": "https://b.example/v1"}, secret={"api_key": "canary"})
    change, stored = AuditEvent.objects.order_by("at")
    assert change.details["old_host"] == "https://llm.example.com:443"
    assert change.details["host"] == "https://b.example:443"
    assert stored.details["old_host"] == "https://llm.example.com:443"
    assert "canary" not in json.dumps([change.details, stored.details])


def test_an_edit_that_matters_is_unchecked_and_counted(alice):
    made = make_connection(health=Status.VALID, health_at=timezone.now())
    update(alice, made, {"note": "hello", "name": "Other", "mid_stream_behavior": "queue"})
    assert (made.revision, made.status) == (0, Status.VALID)
    update(alice, made, {"default_model": "large"})
    assert (made.revision, made.status) == (1, Status.UNCHECKED)
    update(alice, made, {}, secret={"api_key": "new"})
    assert made.revision == 2


def test_an_edit_keeps_what_somebody_else_wrote_meanwhile(alice):
    made = make_connection()
    stale = Connection.objects.get(pk=made.pk)
    update(alice, made, {"note": "first"})
    update(alice, stale, {"name": "Second"})
    stale.refresh_from_db()
    assert (stale.note, stale.name) == ("first", "Second")


def test_the_slug_never_changes(alice):
    assert "slug" in errors_of(update, alice, make_connection(), {"slug": "other"})


def test_an_edited_field_is_no_longer_exported_as_it_was_imported(alice):
    made = make_connection(imported_as={"baseUrl": "https://X/", "authType": "bearer_token"})
    update(alice, made, {"base_url": "https://llm.example.com/v2"})
    assert made.imported_as == {"authType": "bearer_token"}


def test_a_deleted_connection_cannot_be_changed(alice):
    made = make_connection()
    delete(alice, made)
    for change in (
        lambda: update(alice, made, {"name": "x"}),
        lambda: set_enabled(alice, made, True),
        lambda: set_mid_stream(alice, made, "steer"),
        lambda: set_global_default(alice, made),
        lambda: delete(alice, made),
    ):
        with pytest.raises(ValidationError):
            change()


# -- the list --------------------------------------------------------------------------------------


def test_deleting_leaves_a_tombstone(alice):
    workspace = make_workspace()
    made = make_connection("gone", is_default=True)
    rest = make_connection("rest")
    give_access(workspace, made, is_default=True, allowed_models=["small"])
    result = delete(alice, made)
    made.refresh_from_db()
    assert made.deleted_at
    assert not made.is_default
    assert not made.secrets.exists()
    assert not WorkspaceConnection.objects.exists()
    assert made.cleared["is_default"] is True
    assert made.cleared["workspaces"][0]["allowed_models"] == ["small"]
    assert slugs() == ["rest"]
    assert result.new_default == rest
    assert result.cleared_workspaces == ["Support"]
    rest.refresh_from_db()
    assert rest.is_default


def test_deleting_another_leaves_the_default_alone(alice):
    first = make_connection("first", is_default=True)
    assert delete(alice, make_connection("second")).new_default is None
    first.refresh_from_db()
    assert first.is_default


def test_deleting_the_last_leaves_no_default(alice):
    assert delete(alice, make_connection(is_default=True)).new_default is None


def test_the_global_default_moves(alice):
    first, second = make_connection("first", is_default=True), make_connection("second")
    set_global_default(alice, second)
    assert list(Connection.objects.filter(is_default=True)) == [second]
    first.refresh_from_db()
    assert not first.is_default


def test_the_list_is_put_in_order(alice):
    a, b, c = (make_connection(slug) for slug in "abc")
    reorder(alice, [c.pk, a.pk])
    assert slugs() == ["c", "a", "b"]
    move(alice, b, 0)
    assert slugs() == ["b", "c", "a"]
    move(alice, b, 99)
    assert slugs() == ["c", "a", "b"]
    assert events() == ["connection.reorder"] * 3
    reorder(alice, [c.pk, a.pk, b.pk])
    assert events() == ["connection.reorder"] * 3


@pytest.mark.django_db(transaction=True)
def test_of_two_moves_at_once_both_count(alice):
    for slug in "abcdef":
        make_connection(slug)
    start = threading.Barrier(2)
    failures = []

    def shift(slug, **where):
        try:
            start.wait(10)
            move(alice, Connection.objects.get(slug=slug), **where)
        except Exception as error:
            failures.append(error)
        finally:
            database.close()

    threads = [
        threading.Thread(target=shift, args=("f",), kwargs={"before": "b"}),
        threading.Thread(target=shift, args=("a",), kwargs={"after": "d"}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert slugs() == ["f", "b", "c", "d", "a", "e"]
    assert [one.position for one in Connection.objects.living()] == list(range(6))
    assert events() == ["connection.reorder"] * 2


def test_a_move_tells_where_it_stood_and_stands(alice):
    a, b = make_connection("a"), make_connection("b")
    moved = move(alice, b, by=-1)
    assert (moved.place, moved.total, moved.stood_after) == (1, 2, a)
    moved = move(alice, b, by=-1)
    assert (moved.place, moved.stood_after) == (1, None)
    with pytest.raises(ValidationError):
        move(alice, b, before="b")
    with pytest.raises(ValidationError):
        move(alice, b, after="gone")
    assert slugs() == ["b", "a"]


def test_pausing_keeps_a_message_for_people(alice):
    made = make_connection()
    set_enabled(alice, made, False, message="Back on Monday.")
    made.refresh_from_db()
    assert (made.status, made.paused_message) == (Status.DISABLED, "Back on Monday.")
    set_enabled(alice, made, True)
    made.refresh_from_db()
    assert made.enabled
    assert events() == ["connection.disable", "connection.enable"]


def test_the_mid_stream_behaviour_is_one_of_three(alice):
    made = make_connection()
    for behaviour in ("queue", "steer", ""):
        set_mid_stream(alice, made, behaviour)
        made.refresh_from_db()
        assert made.mid_stream_behavior == behaviour
    assert errors_of(set_mid_stream, alice, made, "stop")


# -- workspaces ------------------------------------------------------------------------------------


def test_a_workspaces_default_is_set_moved_and_cleared(alice, workspace):
    a, b = make_connection("a"), make_connection("b")
    set_workspace_default(alice, workspace, a)
    set_workspace_default(alice, workspace, b)
    row = WorkspaceConnection.objects.get()
    assert (row.connection, row.is_default) == (b, True)
    set_workspace_default(alice, workspace, None)
    assert not WorkspaceConnection.objects.exists()
    assert AuditEvent.objects.filter(workspace_id=workspace.pk).count() == 3


def test_clearing_a_default_keeps_what_else_the_row_says(alice, workspace):
    chosen = make_connection("chosen", access="chosen")
    narrow = make_connection("narrow")
    give_access(workspace, chosen, is_default=True)
    give_access(workspace, narrow, allowed_models=["small"])
    set_workspace_default(alice, workspace, narrow)
    set_workspace_default(alice, workspace, None)
    assert WorkspaceConnection.objects.filter(is_default=False).count() == 2


def test_a_workspace_cannot_give_itself_access(alice, workspace):
    chosen = make_connection(access="chosen")
    assert "connection" in errors_of(set_workspace_default, alice, workspace, chosen)
    assert not WorkspaceConnection.objects.exists()


def test_access_is_given_to_the_chosen_and_taken_from_the_rest(alice, workspace):
    other = make_workspace("other")
    made = make_connection()
    give_access(other, made, is_default=True)
    lost = set_access(alice, made, access="chosen", workspaces=[workspace.pk])
    assert lost == ["Other"]
    assert WorkspaceConnection.objects.get().workspace == workspace
    assert list(Connection.objects.visible_to(other)) == []


def test_access_for_all_keeps_defaults_and_narrower_lists(alice, workspace):
    other = make_workspace("other")
    made = make_connection(access="chosen")
    give_access(workspace, made, is_default=True, allowed_models=["small"])
    give_access(other, made)
    assert set_access(alice, made, access="all", workspaces=[]) == []
    row = WorkspaceConnection.objects.get()
    assert (row.is_default, row.allowed_models) == (True, ["small"])
    assert list(Connection.objects.visible_to(other)) == [made]
