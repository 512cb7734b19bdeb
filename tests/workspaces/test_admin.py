"""The Django admin site: who gets in, what it shows, and that every change is in the audit."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import TOTP
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group
from django.db import connection as database
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from connections import tasks
from connections.models import (
    Alert,
    AlertOptOut,
    AlertSettings,
    Budget,
    Connection,
    ProbeResult,
    Secret,
    SecretCandidate,
    SignIn,
    WorkspaceConnection,
)
from sessions.models import (
    Attachment,
    ChatSession,
    Flag,
    Message,
    SearchText,
    Seen,
    ToolServer,
    Turn,
    UsageDay,
)
from tests.builders import (
    KEY,
    PASSWORD,
    add_passkey,
    give_access,
    make_connection,
    make_member,
    make_user,
    make_workspace,
)
from workspaces import audit
from workspaces.models import (
    AuditEvent,
    AuditHead,
    Erasure,
    Installation,
    Invitation,
    Membership,
    SignInKey,
    User,
    VaultKey,
    Workspace,
)
from workspaces.vault import Plain, file_keys

pytestmark = pytest.mark.django_db

MODELS = sorted(admin.site._registry, key=lambda model: model._meta.label)
OURS = {"workspaces", "connections", "agent_sessions"}
ADDABLE = {User, Workspace, Membership}
SEALED = b"sealed-canary-" + b"\x01" * 80


def url(model, page, *arguments):
    meta = model._meta
    return reverse(f"admin:{meta.app_label}_{meta.model_name}_{page}", args=arguments)


def make_rows(count, *, start=0):
    """`count` rows of every model."""
    at = timezone.now()
    for n in range(start, start + count):
        user = make_user(f"user{n}@example.com", name=f"User {n}", date_joined=at, last_login=at)
        space = make_workspace(f"space-{n}", created_at=at)
        Membership.objects.create(workspace=space, user=user, created_at=at)
        connection = make_connection(f"connection-{n}", created_by=user, created_at=at)
        Secret.objects.filter(connection=connection).update(created_at=at, created_by=user)
        give_access(space, connection, is_default=True)
        ProbeResult.objects.create(connection=connection, started_at=at, requested_by=user)
        Alert.objects.create(connection=connection, state="failing", at=at, since=at)
        Alert.objects.create(workspace=space, state="soft_limit", at=at, since=at)
        AlertOptOut.objects.create(user=user)
        Budget.objects.create(workspace=space, month=at.date(), hard_cost=5)
        Budget.objects.create(connection=connection, month=at.date(), hard_tokens=1_000)
        SignIn.objects.create(
            connection=connection,
            started_by=user,
            started_at=at,
            expires_at=at,
            binding=connection.binding,
            value=Plain("sealed-canary"),
        )
        SecretCandidate.objects.create(
            connection=connection,
            binding=connection.binding,
            value=Plain("sealed-canary"),
            created_at=at,
            created_by=user,
            expires_at=at,
        )
        chat = ChatSession.objects.create(
            workspace=space, owner=user, connection=connection, locked_at=at, updated_at=at
        )
        turn = Turn.objects.create(
            chat=chat, number=1, state="done", started_by=user, created_at=at
        )
        message = Message.objects.create(
            chat=chat, seq=1, role="user", text="Hello", author=user, turn=turn, created_at=at
        )
        Attachment.objects.create(
            message=message, media_type="image/png", name="a.png", width=1, height=1, size=1
        )
        Flag.objects.create(chat=chat, user=user)
        Seen.objects.create(chat=chat, user=user)
        SearchText.objects.create(chat=chat, text="A title")
        UsageDay.objects.create(
            day=at.date(), workspace=space, connection=connection, person=user, model="small"
        )
        ToolServer.objects.create(
            workspace=space,
            name=f"Tools {n}",
            prefix="tools",
            url="https://a.example/",
            created_by=user,
        )
        Invitation.objects.create(
            workspace=space, token_hash=f"{n:064x}", created_by=user, expires_at=timezone.now()
        )
        Erasure.objects.create(user=user, asked_by=user, started_at=at)
        SignInKey.objects.create(value=Plain("sealed-canary"), created_at=at)
        VaultKey.objects.create(key_id=f"{n:016x}", proof=SEALED)
        AuditEvent.objects.create(
            actor=user, actor_label=user.email, action="user.test", target_label="x", at=at
        )


@pytest.fixture
def rows(db):
    make_rows(2)
    Installation.objects.create(id=1)
    canary = Plain("sealed-canary")
    AlertSettings.objects.create(
        webhook_origin="https://hooks.example.com:443", webhook_url=canary, webhook_secret=canary
    )
    AuditHead.objects.create(id=1)


@pytest.fixture
def as_alice(alice, client_for):
    return client_for(alice)


def test_every_model_of_ours_and_no_other_is_registered():

    models = {
        m for m in apps.get_models() if m._meta.app_label in OURS and not m._meta.auto_created
    }
    assert set(MODELS) == models
    assert Group not in MODELS
    assert EmailAddress not in MODELS


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m._meta.model_name)
def test_an_instance_admin_reads_every_page_and_no_secret(model, rows, as_alice):
    row = model.objects.first()
    pages = [url(model, "changelist"), url(model, "change", row.pk), url(model, "history", row.pk)]
    for page in pages:
        response = as_alice.get(page)
        assert response.status_code == 200, page
        # Random texts of every page hold any three characters once in a while.
        text = re.sub(r'nonce="[^"]*"|value="\w{64}"', "", response.content.decode())
        for secret in (KEY, KEY[-4:], "sealed-canary", "MD5", "md5$"):
            assert secret not in text.replace("algorithm</strong>: <bdi>md5", "")
        assert "<bdi>b&#x27;" not in text
    add = as_alice.get(url(model, "add"))
    assert add.status_code == (200 if model in ADDABLE else 403)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m._meta.model_name)
def test_nobody_else_gets_a_page_or_changes_a_row(model, rows, workspace, bob, charlie, client_for):
    viewer, owner = make_user("dora@example.com"), make_user("erin@example.com")
    make_member(workspace, viewer, "viewer")
    make_member(workspace, owner, "admin")
    off = make_user("frank@example.com", is_superuser=True)
    row = model.objects.first()
    columns = [f.attname for f in model._meta.concrete_fields if f.name != "last_login"]
    before = list(model.objects.order_by("pk").values(*columns))
    for page in ("changelist", "add", "change", "delete", "history"):
        path = url(model, page, *([row.pk] if page in ("change", "delete", "history") else []))
        anonymous = client_for(None)
        assert anonymous.get(path).status_code == 302
        assert anonymous.post(path, {"post": "yes"}).status_code == 302
        for person in (bob, charlie, viewer, owner):
            client = client_for(person)
            assert client.get(path).status_code == 403
            assert client.post(path, {"post": "yes", "action": "x"}).status_code == 403
        User.objects.filter(pk=off.pk).update(is_active=False)
        assert client_for(off).get(path).status_code in (302, 403, 404)
        User.objects.filter(pk=off.pk).update(is_active=True)
    assert list(model.objects.order_by("pk").values(*columns)) == before


@pytest.mark.parametrize("name", ["index", "due", "password_change", "jsi18n", "autocomplete"])
def test_the_site_s_own_pages_are_refused_too(name, bob, client_for):
    assert client_for(bob).get(reverse(f"admin:{name}")).status_code == 403
    assert client_for(None).get(reverse(f"admin:{name}")).status_code == 302
    assert client_for(bob).get("/admin/nonsense/").status_code == 403


def test_the_sign_in_is_the_product_s_own(client_for):
    response = client_for(None).get("/admin/", follow=True)
    assert response.redirect_chain[-1][0].startswith("/accounts/login/")


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m._meta.model_name)
def test_a_list_costs_as_many_queries_for_50_rows_as_for_1(model, alice, as_alice):
    def queries():
        as_alice.get(url(model, "changelist"))
        with CaptureQueriesContext(database) as captured:
            assert as_alice.get(url(model, "changelist")).status_code == 200
        return len(captured)

    make_rows(1)
    Installation.objects.get_or_create(id=1)
    one = queries()
    make_rows(49, start=1)
    assert queries() == one
    assert one < 20


# -- people ----------------------------------------------------------------------------------------


def test_a_person_is_added_with_a_password_and_can_sign_in(as_alice, alice, client_for):
    response = as_alice.post(
        url(User, "add"),
        {
            "email": "Dora@Example.com",
            "name": "Dora",
            "password1": "a long enough phrase",
            "password2": "a long enough phrase",
            "is_superuser": "on",
        },
    )
    assert response.status_code == 302, response.context["errors"]
    dora = User.objects.get(email="dora@example.com")
    assert (dora.name, dora.is_instance_admin) == ("Dora", True)
    event = AuditEvent.objects.get(action="user.create")
    assert (event.actor, event.target_id) == (alice, str(dora.pk))
    assert event.details["instance_admin"] is True
    signed_in = client_for(None).post(
        "/accounts/login/", {"login": "dora@example.com", "password": "a long enough phrase"}
    )
    assert signed_in.status_code == 302


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"password1": "short", "password2": "short"}, "password2"),
        ({"password2": "another long phrase"}, "password2"),
        ({"email": "alice@EXAMPLE.com"}, "email"),
        ({"email": "nobody"}, "email"),
    ],
)
def test_a_person_that_cannot_be_added_is_refused(as_alice, change, word):
    data = {"email": "dora@example.com", "name": "", "password1": PASSWORD, "password2": PASSWORD}
    response = as_alice.post(url(User, "add"), data | change)
    assert response.status_code == 200
    assert word in response.context["adminform"].form.errors
    assert User.objects.count() == 1


def change_person(client, person, **fields):
    data = {"email": person.email, "name": person.name, "is_active": "on"}
    if person.is_superuser:
        data["is_superuser"] = "on"
    data |= {"memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0} | fields
    return client.post(
        url(User, "change", person.pk), {k: v for k, v in data.items() if v is not None}
    )


@pytest.mark.parametrize("field", ["is_active", "is_superuser"])
def test_the_last_instance_admin_cannot_step_down(as_alice, alice, field):
    response = change_person(as_alice, alice, **{field: None})
    assert response.status_code == 200
    assert "last instance admin" in response.content.decode()
    alice.refresh_from_db()
    assert alice.is_instance_admin


def test_one_of_two_instance_admins_can_step_down_and_then_the_other_cannot(
    as_alice, alice, client_for
):
    dora = make_user("dora@example.com", is_superuser=True)
    assert change_person(as_alice, alice, is_superuser=None).status_code == 302
    assert AuditEvent.objects.get(action="user.update").details["changed"] == ["is_superuser"]
    assert change_person(client_for(dora), dora, is_active=None).status_code == 200
    dora.refresh_from_db()
    assert dora.is_active


def test_the_last_instance_admin_cannot_be_deleted(as_alice, alice):
    assert as_alice.post(url(User, "delete", alice.pk), {"post": "yes"}).status_code == 403
    as_alice.post(
        url(User, "changelist"),
        {"action": "delete_selected", "_selected_action": [alice.pk], "post": "yes"},
    )
    assert User.objects.filter(pk=alice.pk).exists()


def test_deleting_a_person_is_in_the_audit(as_alice, alice, charlie):
    page = url(User, "changelist")
    data = {"action": "delete_selected", "_selected_action": [charlie.pk], "post": "yes"}
    assert as_alice.post(page, data).status_code == 302
    assert not User.objects.filter(pk=charlie.pk).exists()
    event = AuditEvent.objects.get(action="user.delete")
    assert (event.actor, event.target_label) == (alice, "charlie@example.com")


def test_a_new_password_is_in_the_audit_and_ends_other_sessions(as_alice, bob, client_for):
    old = client_for(bob)
    page = reverse("admin:auth_user_password_change", args=[bob.pk])
    assert as_alice.get(page).status_code == 200
    data = {"password1": "another long phrase", "password2": "another long phrase"}
    assert as_alice.post(page, data | {"usable_password": "true"}).status_code == 302
    event = AuditEvent.objects.get(action="user.password")
    assert "phrase" not in str(event.details)
    assert old.get("/", follow=True).redirect_chain[-1][0].startswith("/accounts/login/")


def test_a_former_address_no_longer_opens_the_account(as_alice, bob):
    EmailAddress.objects.create(user=bob, email=bob.email, primary=True, verified=True)
    assert change_person(as_alice, bob, email="robert@example.com").status_code == 302
    assert not EmailAddress.objects.filter(email="bob@example.com").exists()


# -- workspaces ------------------------------------------------------------------------------------


def test_a_workspace_is_added_with_its_members(as_alice, bob):
    response = as_alice.post(
        url(Workspace, "add"),
        {
            "name": "Field Team",
            "slug": "",
            "instructions": "Be brief.",
            "memberships-TOTAL_FORMS": 1,
            "memberships-INITIAL_FORMS": 0,
            "memberships-0-user": str(bob.pk),
            "memberships-0-role": "admin",
        },
    )
    assert response.status_code == 302, response.context["errors"]
    space = Workspace.objects.get(slug="field-team")
    assert space.instructions == "Be brief."
    assert space.memberships.get().role == "admin"
    events = AuditEvent.objects.filter(workspace_id=space.pk)
    assert {e.action for e in events} == {"workspace.create", "membership.create"}
    assert events.get(action="membership.create").target_label == "bob@example.com · Field Team"


def change_workspace(client, space, *memberships, **fields):
    data = {
        "name": space.name,
        "instructions": space.instructions,
        "memberships-TOTAL_FORMS": len(memberships),
        "memberships-INITIAL_FORMS": len(memberships),
    }
    for n, (member, changes) in enumerate(memberships):
        values = {"id": member.pk, "workspace": space.pk, "user": member.user_id}
        values |= {"role": member.role} | changes
        data |= {f"memberships-{n}-{name}": str(value) for name, value in values.items()}
    return client.post(url(Workspace, "change", space.pk), data | fields)


def test_a_changed_role_and_a_removed_member_are_in_the_audit(as_alice, workspace, bob, charlie):
    first = Membership.objects.get(workspace=workspace, user=bob)
    second = make_member(workspace, charlie)
    response = change_workspace(
        as_alice, workspace, (first, {"role": "viewer"}), (second, {"DELETE": "on"})
    )
    assert response.status_code == 302, response.context["errors"]
    assert list(workspace.memberships.values_list("role")) == [("viewer",)]
    update = AuditEvent.objects.get(action="membership.update")
    assert (update.details["role"], update.workspace_id) == ("viewer", workspace.pk)
    assert AuditEvent.objects.filter(action="membership.delete").count() == 1


def test_a_workspace_s_slug_never_changes(as_alice, workspace):
    assert change_workspace(as_alice, workspace, slug="other", name="Other").status_code == 302
    workspace.refresh_from_db()
    assert (workspace.slug, workspace.name) == ("support", "Other")


def test_a_change_that_cannot_be_audited_does_not_happen(as_alice, workspace, monkeypatch):
    def broken(*arguments, **details):
        raise RuntimeError("no audit")

    monkeypatch.setattr(audit, "record", broken)
    with pytest.raises(RuntimeError):
        change_workspace(as_alice, workspace, name="Other")
    workspace.refresh_from_db()
    assert workspace.name != "Other"


# -- connections -----------------------------------------------------------------------------------


def change_connection(client, connection, **fields):
    data = {
        "name": connection.name,
        "note": connection.note,
        "paused_message": connection.paused_message,
        "mid_stream_behavior": connection.mid_stream_behavior,
        "default_model": connection.default_model,
        "max_tokens_field": connection.max_tokens_field,
        "workspace_rows-TOTAL_FORMS": 0,
        "workspace_rows-INITIAL_FORMS": 0,
    }
    if connection.enabled:
        data["enabled"] = "on"
    return client.post(
        url(Connection, "change", connection.pk),
        {k: v for k, v in (data | fields).items() if v is not None},
    )


def test_a_connection_changes_through_the_verb(as_alice, alice):
    connection = make_connection(health="valid")
    response = change_connection(as_alice, connection, default_model="large", name="Renamed")
    assert response.status_code == 302, response.context["errors"]
    connection.refresh_from_db()
    assert (connection.name, connection.default_model) == ("Renamed", "large")
    assert (connection.health, connection.revision) == ("unchecked", 1)
    event = AuditEvent.objects.get(action="connection.update")
    assert (event.actor, event.details["changed"]) == (alice, ["name", "default_model"])


def test_where_a_secret_goes_cannot_be_changed_here(as_alice):
    connection = make_connection()
    before = Connection.objects.values().get(pk=connection.pk)
    change_connection(
        as_alice,
        connection,
        base_url="https://evil.example/v1",
        provider_type="anthropic_compat",
        auth_type="none",
        slug="other",
        is_default="on",
        codex_path="/bin/sh",
        custom_endpoint_api="anthropic-messages",
    )
    assert Connection.objects.values().get(pk=connection.pk) == before
    page = as_alice.get(url(Connection, "change", connection.pk)).content.decode()
    assert reverse("connections:edit", args=["local"]) in page


def test_a_wrong_default_model_is_refused_with_a_sentence(as_alice):
    connection = make_connection()
    response = change_connection(as_alice, connection, default_model="huge")
    assert response.status_code == 200
    assert "one of the models" in response.content.decode()


def test_a_deleted_connection_can_only_be_looked_at(as_alice):
    connection = make_connection(deleted_at=timezone.now())
    assert change_connection(as_alice, connection, name="Back").status_code == 403
    connection.refresh_from_db()
    assert connection.name == "Local"


def act(client, name, *connections):
    return client.post(
        url(Connection, "changelist"),
        {"action": name, "_selected_action": [c.pk for c in connections]},
        follow=True,
    )


def test_the_selected_are_paused_and_enabled(as_alice):
    first, second = make_connection("first"), make_connection("second")
    act(as_alice, "pause_selected", first, second)
    assert Connection.objects.filter(enabled=False).count() == 2
    act(as_alice, "enable_selected", first)
    assert Connection.objects.get(enabled=True) == first
    assert AuditEvent.objects.filter(action="connection.disable").count() == 2
    assert AuditEvent.objects.filter(action="connection.enable").count() == 1


def test_second_factors_are_shown_and_taken_away(as_alice, bob, charlie):
    add_passkey(bob)
    TOTP.activate(charlie, "SECRET")
    TOTP.activate(bob, "SECRET")
    assert "Authenticator app and one passkey" in as_alice.get(url(User, "change", bob.pk)).text
    page = as_alice.post(
        url(User, "changelist"),
        {"action": "take_second_factors_away", "_selected_action": [bob.pk]},
        follow=True,
    )
    assert "One person had one." in page.text
    assert set(Authenticator.objects.values_list("user", flat=True)) == {charlie.pk}
    assert AuditEvent.objects.get(action="user.second_factor_off").target_id == str(bob.pk)


def test_the_selected_are_validated(as_alice, alice, monkeypatch):
    monkeypatch.setattr(tasks, "_ring", lambda ids: None)
    first, deleted = make_connection("first"), make_connection("gone", deleted_at=timezone.now())
    page = act(as_alice, "validate_selected", first, deleted)
    assert "1 connection is being checked." in page.content.decode()
    assert ProbeResult.objects.get().requested_by == alice
    assert AuditEvent.objects.filter(action="connection.validate").count() == 1


@pytest.mark.parametrize("model", [ProbeResult, Turn])
def test_errors_are_filtered_by_kind(rows, as_alice, model):
    row = model.objects.first()
    model.objects.filter(pk=row.pk).update(error_kind="auth")
    for kind, count in (("auth", 1), ("any", 1), ("quota", 0), ("", 2)):
        page = as_alice.get(url(model, "changelist"), {"error": kind} if kind else {})
        assert page.context["cl"].result_count == count, kind


def test_taking_away_a_workspace_s_access_is_in_the_audit(as_alice, workspace):
    row = give_access(workspace, make_connection(), is_default=True)
    page = url(WorkspaceConnection, "delete", row.pk)
    assert as_alice.post(page, {"post": "yes"}).status_code == 302
    event = AuditEvent.objects.get(action="workspaceconnection.delete")
    assert (event.workspace_id, event.details["was_default"]) == (workspace.pk, True)


# -- sealing with the first key, and what is due next ----------------------------------------------


def test_rotating_seals_the_chosen_connections_with_the_first_key(rows, as_alice, settings):
    chosen, other = Connection.objects.order_by("slug")[:2]
    before = Secret.objects.get(connection=other).value.key_id
    settings.SECRET_KEYS = [secrets.token_urlsafe(32), *(settings.SECRET_KEYS or file_keys())]
    data = {"action": "rotate_selected", "_selected_action": [str(chosen.pk)]}
    for rotated in (3, 0):  # again is harmless
        page = as_alice.post(url(Connection, "changelist"), data, follow=True)
        assert f"{rotated} secret" in page.text
    for model in (Secret, SecretCandidate, SignIn):
        row = model.objects.get(connection=chosen)
        assert row.value.key_id != before
        assert row.value.open()
    assert Secret.objects.get(connection=other).value.key_id == before
    event = AuditEvent.objects.get(action="secret.rotate")
    assert event.details == {"rotated": 3, "unreadable": 0}


def test_rotating_says_what_it_could_not_read(rows, as_alice, settings):
    chosen = Connection.objects.first()
    settings.SECRET_KEYS = [secrets.token_urlsafe(32)]
    data = {"action": "rotate_selected", "_selected_action": [str(chosen.pk)]}
    page = as_alice.post(url(Connection, "changelist"), data, follow=True)
    assert "3 could not be read" in page.text


def test_what_is_due_next_in_a_bounded_number_of_queries(as_alice):
    def asked():
        with CaptureQueriesContext(database) as captured:
            page = as_alice.get("/admin/due/")
        assert page.status_code == 200
        return len(captured), page.text

    make_rows(1)
    soon = timezone.now() + timedelta(hours=1)
    asked()
    few, _html = asked()
    make_rows(24, start=1)
    Connection.objects.update(next_check_at=soon)
    ChatSession.objects.update(queue_not_before=soon, title="the plan of the merger")
    Secret.objects.update(renew_at=soon)
    many, html = asked()
    assert many <= few
    assert html.count("and 5 more") == 4
    assert "Space-3" in html or "Space-1" in html
    assert "merger" not in html
    assert as_alice.post("/admin/due/").status_code == 405
