"""Bringing a config in and taking it out, on the database."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from connections import actions, grants, schema
from connections.models import Connection, Secret, WorkspaceConnection
from connections.schema import Result
from connections.transfer import import_document
from tests.connections.test_schema import REFERENCE, SIX_TYPES, compat, file_of
from workspaces import egress
from workspaces.models import AuditEvent, Workspace

pytestmark = pytest.mark.django_db

PUBLIC = {"api.example.com": "93.184.216.34", "other.example.com": "93.184.216.35"}


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Name lookups without a network: what isn't known can't be looked up."""
    asked = []

    def lookup(host, port):
        import ipaddress

        from django.db import connection

        asked.append((host, connection.in_atomic_block))
        return [ipaddress.ip_address(PUBLIC.get(host, "93.184.216.99"))]

    monkeypatch.setattr(egress, "lookup", lookup)
    return asked


@pytest.fixture
def support():
    return Workspace.objects.create(name="Support", slug="support")


def bring_in(*entries, dry_run=False, **more) -> schema.Plan:
    document = schema.read(file_of(*entries, **more))
    return import_document("command", document, dry_run=dry_run).plan


def run(command, *arguments):
    out, err = StringIO(), StringIO()
    call_command(command, *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def state():
    return [
        list(model.objects.order_by("pk").values())
        for model in (Connection, Secret, WorkspaceConnection, AuditEvent)
    ]


def test_the_reference_s_file_goes_in_and_comes_out(tmp_path, support):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(REFERENCE))
    out, _err = run("import_connections", str(path))
    assert "New: anthropic-api" in out
    assert [c.slug for c in Connection.objects.living()] == ["anthropic-api", "local"]
    assert Connection.objects.get(is_default=True).slug == "anthropic-api"
    assert support.connection_rows.get(is_default=True).connection.slug == "local"
    exported = json.loads(run("export_connections")[0])
    assert exported["llmConnections"] == REFERENCE["llmConnections"]
    assert exported["defaultLlmConnection"] == "anthropic-api"
    assert exported["workspaces"][0]["defaults"] == {"defaultLlmConnection": "local"}


def test_an_export_imported_elsewhere_is_the_same_export():
    entries = [{"slug": f"c{n}", "name": f"C {n}", **e} for n, e in enumerate(SIX_TYPES)]
    bring_in(*entries, compat(slug="unknown", future={"x": [1]}))
    first, _err = run("export_connections")
    Connection.objects.all().delete()
    import_document("command", schema.read(first.encode()))
    assert json.loads(run("export_connections")[0]) == json.loads(first)


def test_importing_twice_changes_nothing():
    bring_in(compat(), compat(slug=None, name="Two"))
    before = list(Connection.objects.values())
    plan = bring_in(compat(), compat(slug=None, name="Two"))
    assert plan.count(Result.SAME) == 2
    assert list(Connection.objects.values()) == before


def test_a_dry_run_tells_the_same_and_changes_nothing(tmp_path, support):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(REFERENCE))
    before = state()
    dry, _err = run("import_connections", str(path), "--dry-run")
    assert state() == before
    wet, _err = run("import_connections", str(path))
    assert dry.replace(" Nothing was changed: this was a dry run.", "") == wet


def test_a_missing_file_is_one_line():
    with pytest.raises(CommandError, match="can't be read"):
        run("import_connections", "/nowhere/config.json")


def test_every_change_and_the_import_itself_are_in_the_audit():
    bring_in(compat(), {"slug": "bad", "name": "Bad", "providerType": "copilot"})
    actions_seen = set(AuditEvent.objects.values_list("action", flat=True))
    assert actions_seen >= {"connection.create", "connection.import"}
    event = AuditEvent.objects.get(action="connection.import")
    assert (event.details["new"], event.details["refused"]) == (1, 1)


def test_an_address_that_may_not_be_reached_is_refused_and_the_others_come_in(settings):
    settings.EGRESS_ALLOW = ""
    plan = bring_in(compat(), compat(slug="two", baseUrl="http://169.254.169.254/v1"))
    assert [row.result for row in plan.rows] == [Result.NEW, Result.REFUSED]
    assert Connection.objects.get().slug == "one"


@pytest.mark.django_db(transaction=True)
def test_names_are_looked_up_before_the_transaction(names):
    bring_in(compat())
    assert names == [("api.example.com", False)]


def test_a_changed_address_destroys_the_stored_secret():
    connection = actions.create(
        "command",
        {
            "name": "One",
            "slug": "one",
            "provider_type": "openai_compat",
            "auth_type": "api_key_with_endpoint",
            "base_url": "https://api.example.com/v1",
            "models": ["m"],
            "default_model": "m",
        },
        secret={"api_key": "sk-canary-0123456789abcdef"},
    )
    bring_in(compat(name="Renamed"))
    assert connection.secrets.count() == 1
    bring_in(compat(baseUrl="https://other.example.com/v1"))
    assert connection.secrets.count() == 0
    assert AuditEvent.objects.filter(action="secret.destroy").exists()


def test_an_export_holds_no_secret():
    actions.create(
        "command",
        {
            "name": "One",
            "provider_type": "anthropic",
            "auth_type": "api_key",
            "default_model": "claude-sonnet-4-6",
        },
        secret={"api_key": "sk-canary-0123456789abcdef"},
        headers={"X-Team": "canary-header"},
    )
    out, err = run("export_connections")
    assert "canary" not in out + err
    assert AuditEvent.objects.filter(action="connection.export").exists()


def test_a_workspace_without_access_keeps_its_default(support):
    bring_in(compat())
    connection = Connection.objects.get()
    grants.set_access("command", connection, access="chosen", workspaces=[])
    plan = bring_in(
        compat(),
        workspaces=[{"name": "Support", "defaults": {"defaultLlmConnection": "one"}}],
    )
    assert plan.workspaces[0].result == Result.REFUSED
    assert not WorkspaceConnection.objects.exists()


# -- the commands' own words -----------------------------------------------------------------------


def written(tmp_path, *entries, **more) -> str:
    path = tmp_path / "config.json"
    path.write_bytes(file_of(*entries, **more))
    return str(path)


def test_a_dry_run_says_old_and_new_of_every_field(tmp_path):
    bring_in(compat(future={"x": 1}))
    path = written(tmp_path, compat(name="Zwei \u202e", models=["m", "n"], future={"x": 2}))
    out, _err = run("import_connections", path, "--dry-run")
    assert "Changed: one\n" in out
    assert '  name: "One" -> "Zwei \\u202e"\n' in out
    assert '  models: ["m"] -> ["m", "n"]\n' in out
    assert '  future: {"x": 1} -> {"x": 2}\n' in out
    assert Connection.objects.get().name == "One"


def test_workspaces_are_made_only_when_asked_for(tmp_path):
    spaces = [{"name": "Nowhere", "defaults": {"defaultLlmConnection": "one"}}, {"slug": "quiet"}]
    path = written(tmp_path, compat(), workspaces=spaces)
    _out, err = run("import_connections", path)
    assert "Nowhere: one is not made the default. There is no workspace of this name." in err
    assert not Workspace.objects.exists()
    dry, _err = run("import_connections", path, "--make-workspaces", "--dry-run")
    assert "New workspace: Nowhere\nDefault of Nowhere: one\n" in dry
    assert not Workspace.objects.exists()
    run("import_connections", path, "--make-workspaces")
    assert [w.slug for w in Workspace.objects.all()] == ["nowhere", "quiet"]
    link = WorkspaceConnection.objects.get(is_default=True)
    assert (link.workspace.slug, link.connection.slug) == ("nowhere", "one")


def test_an_import_that_does_nothing_leaves_no_row():
    bring_in(compat())
    before = state()
    bring_in(compat())
    bring_in({"slug": "bad", "name": "Bad", "providerType": "copilot"})
    assert state() == before


def test_names_that_nobody_answers_for_do_not_hold_an_import_up(monkeypatch):
    import threading

    from connections import transfer

    answered = threading.Event()
    monkeypatch.setattr(egress, "lookup", lambda host, port: answered.wait(60) and [])
    monkeypatch.setattr(transfer, "_LOOKUP_SECONDS", 0.05)
    try:
        plan = bring_in(*[compat(slug=f"c-{n}", baseUrl=f"https://h{n}.test/") for n in range(40)])
    finally:
        answered.set()
    assert plan.count(Result.NEW) == 40


def test_an_export_in_a_generation_names_what_it_leaves_out():
    pi = {
        "slug": "router",
        "name": "Router",
        "providerType": "pi",
        "piAuthProvider": "openrouter",
        "authType": "api_key",
        "models": ["pi/a"],
        "defaultModel": "pi/a",
        "createdAt": 5,
        "modelSelectionMode": "userDefined3Tier",
    }
    lent = {"slug": "lent", "name": "Lent", "providerType": "anthropic", "authType": "environment"}
    bring_in(lent, pi, compat(), defaultLlmConnection="lent")

    def exported(*options):
        out, err = run("export_connections", *options)
        return {entry["slug"]: entry for entry in json.loads(out)["llmConnections"]}, err

    own, err = exported()
    assert (set(own), err) == ({"lent", "router", "one"}, "")
    assert own["router"] == pi
    newer, err = exported("--generation", "pi")
    assert newer["router"] == pi
    assert newer["one"]["providerType"] == "pi_compat"
    assert "Left out: lent. Craft Agents from 0.5.1 on has no place for" in err
    assert "Left out: Global default. “lent” is left out." in err
    older, err = exported("--generation", "reference")
    assert older["one"] == compat()
    assert older["router"] == {
        "slug": "router",
        "name": "Router",
        "providerType": "openai_compat",
        "authType": "api_key_with_endpoint",
        "baseUrl": "https://openrouter.ai/api/v1",
        "models": ["a"],
        "defaultModel": "a",
        "createdAt": 5,
        "modelSelectionMode": "userDefined3Tier",
    }
    assert "lent" in err
    with pytest.raises(CommandError):
        run("export_connections", "--generation", "newest")
