"""The page that brings connections in: shown first, applied then, nothing kept between."""

from __future__ import annotations

import html
import ipaddress
import json
import re
import time

import pytest
from django.core import signing
from django.core.files.uploadedfile import SimpleUploadedFile

from connections import actions, deleting, grants, views_transfer
from connections.models import Connection, ProbeResult, WorkspaceConnection
from sessions.models import ChatSession
from tests.builders import KEY, make_connection, make_user, make_workspace
from tests.connections.test_schema import REFERENCE, compat, file_of
from tests.world import digest, make_world
from workspaces import egress
from workspaces.models import AuditEvent, Workspace

pytestmark = pytest.mark.django_db

URL = "/connections/import/"
CANARY = "sk-canary-0123456789abcdef"


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Name lookups without a network."""
    address = ipaddress.ip_address("93.184.216.34")
    monkeypatch.setattr(egress, "lookup", lambda host, port: [address])


@pytest.fixture
def client(alice, client_for):
    return client_for(alice)


def upload(client, data: bytes, **more):
    file = SimpleUploadedFile("config.json", data, "application/json")
    return client.post(URL, {"file": file}, **more)


def show(client, *entries, **more):
    answer = upload(client, file_of(*entries, **more))
    assert answer.status_code == 200, answer.text
    return answer


def draft_of(answer) -> str:
    return html.unescape(re.search(r'name="draft" value="([^"]*)"', answer.text)[1])


def ticked(answer) -> list[str]:
    return re.findall(r'name="take" value="([^"]+)" checked', answer.text)


def offered(answer) -> list[str]:
    return re.findall(r'name="take" value="([^"]+)"', answer.text)


def apply(client, shown, *, take=None, **more):
    take = ticked(shown) if take is None else take
    data = {"draft": draft_of(shown), "take": take, "validate": "off"}
    return client.post(URL, {**data, **more})


def words(answer) -> str:
    text = re.sub(r"<(script|style).*?</\1>", " ", answer.text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


# -- shown, then applied ---------------------------------------------------------------------------


def test_the_reference_s_file_is_shown_and_then_applied(client, alice):
    make_workspace("support")
    before = digest()
    shown = upload(client, json.dumps(REFERENCE).encode())
    assert shown.status_code == 200
    assert digest() == before
    assert ticked(shown) == ["connection-1", "connection-2", "default", "workspace-1"]
    assert "Anthropic (API Key)" in words(shown)
    assert "It needs its secret" in words(shown)

    done = apply(client, shown)
    assert done.status_code == 303
    assert [c.slug for c in Connection.objects.living()] == ["anthropic-api", "local"]
    assert Connection.objects.get(is_default=True).slug == "anthropic-api"
    link = WorkspaceConnection.objects.get(is_default=True)
    assert (link.workspace.slug, link.connection.slug) == ("support", "local")
    event = AuditEvent.objects.get(action="connection.import")
    assert (event.actor, event.details["new"]) == (alice, 2)
    assert AuditEvent.objects.filter(action="connection.create", actor=alice).count() == 2

    result = client.get(done.headers["Location"])
    assert "2 added, 0 changed" in words(result)
    assert "One needs a secret" in words(result)
    assert 'href="/connections/anthropic-api/edit/"' in result.text
    assert 'href="/connections/local/"' in result.text


def test_pasted_text_is_read_like_a_file(client):
    shown = client.post(URL, {"text": file_of(compat()).decode()})
    assert ticked(shown) == ["connection-1"]
    assert apply(client, shown).status_code == 303
    assert Connection.objects.get().slug == "one"


def test_a_changed_connection_is_shown_field_by_field(client):
    apply(client, show(client, compat(note="as it was", future={"x": 1})))
    changed = compat(
        name="<b>Two</b>",
        models=["m", {"id": "n", "contextWindow": 9000}],
        midStreamBehavior="queue",
        note="as it was",
        future={"x": 2},
    )
    shown = show(client, changed)
    text = words(shown)
    assert "1 Changed" in text
    assert "name Now: One Then: <b>Two</b>" in text
    assert "<b>Two</b>" not in shown.text
    assert 'models not set Then: {"id": "n", "contextWindow": 9000}' in text
    assert "midStreamBehavior not set Then: queue" in text
    assert 'future Now: {"x": 1} Then: {"x": 2}' in text
    assert "note" not in re.findall(r"<dt>([^<\s]*)", shown.text)


def test_the_same_again_offers_nothing(client):
    apply(client, show(client, compat()))
    shown = show(client, compat())
    assert offered(shown) == []
    assert "1 item is the same as here" in words(shown)
    assert "Apply" not in words(shown)


def test_what_is_refused_says_why_and_has_no_box(client, settings):
    settings.EGRESS_ALLOW = ""
    shown = show(
        client,
        compat(slug="good"),
        {"slug": "copilot", "name": "C", "providerType": "copilot", "authType": "oauth"},
        compat(slug="twice"),
        compat(slug="twice", name="Again"),
        compat(slug="inside", baseUrl="http://169.254.169.254/v1"),
        {"slug": "x", "name": "X", "providerType": "mystery", "authType": "api_key"},
        "nonsense",
        defaultLlmConnection="nowhere",
    )
    assert offered(shown) == ["connection-1"]
    text = words(shown)
    for sentence in (
        "GitHub Copilot works only inside its own editors",
        "More than one connection of this file has this slug",
        "169.254.169.254",
        "providerType: Use one of",
        "not an object",
        "There is no connection “nowhere”",
    ):
        assert sentence in text


def test_only_what_is_ticked_is_taken(client):
    support = make_workspace("support")
    shown = show(
        client,
        compat(slug="a"),
        compat(slug="b"),
        defaultLlmConnection="b",
        workspaces=[{"name": "Support", "defaults": {"defaultLlmConnection": "a"}}],
    )
    assert apply(client, shown, take=["connection-1", "workspace-1"]).status_code == 303
    assert [c.slug for c in Connection.objects.living()] == ["a"]
    assert support.connection_rows.get().connection.slug == "a"


def test_nothing_ticked_changes_nothing_and_says_so(client):
    shown = show(client, compat())
    before = digest()
    answer = apply(client, shown, take=[])
    assert answer.status_code == 422
    assert "Tick at least one item first" in words(answer)
    assert offered(answer) == ["connection-1"]
    assert digest() == before


def test_a_default_needs_its_connection(client):
    shown = show(client, compat(slug="a"), compat(slug="b"), defaultLlmConnection="b")
    before = digest()
    answer = apply(client, shown, take=["connection-1", "default"])
    assert answer.status_code == 409
    assert "It needs the connection “b”: tick it" in words(answer)
    assert ticked(answer) == ["connection-1", "default"]
    assert digest() == before


# -- workspaces ------------------------------------------------------------------------------------


def test_a_workspace_that_is_not_here_is_made_when_asked_for(client, alice):
    entries = [{"name": "Nowhere", "defaults": {"defaultLlmConnection": "one"}}, {"name": "Quiet"}]
    shown = show(client, compat(), workspaces=entries)
    assert offered(shown) == ["connection-1", "workspace-1", "workspace-2"]
    assert ticked(shown) == ["connection-1"]
    apply(client, shown)
    assert not Workspace.objects.exists()

    shown = show(client, compat(), workspaces=entries)
    done = apply(client, shown, take=["workspace-1", "workspace-2"])
    nowhere = Workspace.objects.get(slug="nowhere")
    assert nowhere.connection_rows.get(is_default=True).connection.slug == "one"
    assert nowhere.memberships.get().user == alice
    assert Workspace.objects.filter(slug="quiet").exists()
    assert AuditEvent.objects.filter(action="workspace.create", actor=alice).count() == 2
    assert "Nowhere (made): one" in words(client.get(done.headers["Location"]))
    assert offered(show(client, compat(), workspaces=entries)) == []


def test_the_first_connection_says_that_it_becomes_the_default(client):
    assert "There is no global default yet" in words(show(client, compat()))
    make_connection("here", is_default=True)
    assert "There is no global default yet" not in words(show(client, compat()))


# -- somebody else was quicker ---------------------------------------------------------------------


def test_what_changed_since_the_preview_is_shown_again(client, alice):
    make_connection("one", base_url="https://api.example.com/v1", models=["m"], default_model="m")
    shown = show(client, compat(name="Imported"), compat(slug="two"))
    other = make_user("dora@example.com", is_superuser=True)
    actions.update(other, Connection.objects.get(slug="one"), {"name": "Edited meanwhile"})
    before = digest()
    answer = apply(client, shown)
    assert answer.status_code == 409
    assert digest() == before
    text = words(answer)
    assert "Nothing was applied" in text
    assert "This changed since you looked" in text
    assert "name Now: Edited meanwhile Then: Imported" in text
    assert apply(client, answer).status_code == 303
    assert Connection.objects.get(slug="one").name == "Imported"


def test_a_field_the_file_does_not_name_may_change_meanwhile(client):
    apply(client, show(client, compat()))
    shown = show(client, compat(name="Imported"))
    actions.update("command", Connection.objects.get(), {"note": "ours"})
    assert apply(client, shown).status_code == 303
    connection = Connection.objects.get()
    assert (connection.name, connection.note) == ("Imported", "ours")


@pytest.mark.parametrize("how", ["made", "deleted", "default", "workspace"])
def test_everything_that_was_shown_is_looked_at_again(client, how):
    make_connection("other", is_default=True)
    support = make_workspace("support")
    shown = show(
        client,
        compat(),
        defaultLlmConnection="one",
        workspaces=[{"name": "Support", "defaults": {"defaultLlmConnection": "one"}}],
    )
    if how == "made":
        make_connection("one", key=None)
    elif how == "deleted":
        gone = make_connection("one")
        deleting.delete("command", gone)
    elif how == "default":
        actions.set_global_default("command", make_connection("third"))
    else:
        grants.set_workspace_default("command", support, Connection.objects.get(slug="other"))
    before = digest()
    assert apply(client, shown).status_code == 409
    assert digest() == before


def test_applied_twice_is_applied_once(client):
    shown = show(client, compat())
    assert apply(client, shown).status_code == 303
    before = digest()
    assert apply(client, shown).status_code == 409
    assert digest() == before


# -- the draft -------------------------------------------------------------------------------------


def test_a_draft_is_good_for_one_person_and_half_an_hour(client, client_for, monkeypatch):
    shown = show(client, compat())
    eve = client_for(make_user("eve@example.com", is_superuser=True))
    before = digest()
    assert apply(eve, shown).status_code == 422
    for wrong in ("", "x", draft_of(shown)[:-3], signing.dumps({"document": {}})):
        answer = client.post(URL, {"draft": wrong, "take": "connection-1"})
        assert answer.status_code == 422
        assert "Choose the file again" in words(answer)
    later = time.time() + views_transfer.PREVIEW_SECONDS + 60
    monkeypatch.setattr(time, "time", lambda: later)
    answer = apply(client, shown)
    assert answer.status_code == 422
    assert "older than half an hour" in words(answer)
    assert digest() == before


def test_a_secret_of_the_file_is_kept_nowhere(client, caplog):
    caplog.set_level("DEBUG")
    entry = compat(
        apiKey="short-one",
        headers={"X-Team": "hush-hush"},
        extra=[f"Bearer {CANARY}", {"deep": CANARY}],
        customEndpoint={"api": "openai-completions", "token": "quiet-one"},
    )
    hostile = [{"name": CANARY, "defaults": {"defaultLlmConnection": CANARY}}, {"slug": CANARY}]
    shown = show(
        client, entry, compat(slug="two", name=f"x {CANARY}"), compat(slug=CANARY),
        defaultLlmConnection=CANARY, workspaces=hostile,
    )  # fmt: skip
    assert words(shown).count("looks like a secret and was left out") == 5
    done = apply(client, shown)
    assert done.status_code == 303
    places = {
        "page": shown.text,
        "draft": json.dumps(signing.loads(draft_of(shown), salt=_salt(client))),
        "rows": repr([list(m.objects.values()) for m in (Connection, AuditEvent, Workspace)]),
        "export": client.post("/connections/export/").text,
        "result": client.get(done.headers["Location"]).text,
        "browser": repr([dict(client.session), client.cookies]),
        "log": caplog.text,
    }
    found = [
        (place, secret)
        for place, text in places.items()
        for secret in (CANARY, "short-one", "hush-hush", "quiet-one")
        if secret in text
    ]
    assert found == []


def _salt(client) -> str:
    return f"connections.import.{client.session['_auth_user_id']}"


def test_a_pasted_file_that_is_refused_is_not_shown_again(client):
    answer = client.post(URL, {"text": f'{{"llmConnections": [{{"apiKey": "{CANARY}"}},]}}'})
    assert answer.status_code == 422
    assert CANARY not in answer.text


# -- what an import never does ---------------------------------------------------------------------


def test_a_changed_address_destroys_the_secret_and_the_preview_says_so(client):
    connection = make_connection(
        "one", base_url="https://api.example.com/v1", models=["m"], default_model="m"
    )
    shown = show(client, compat(baseUrl="https://thief.example.com/v1"))
    assert "is destroyed: enter it again" in words(shown)
    assert connection.secrets.count() == 1
    done = apply(client, shown)
    assert connection.secrets.count() == 0
    assert "One needs a secret" in words(client.get(done.headers["Location"]))
    event = AuditEvent.objects.get(action="connection.update")
    assert event.details["old_host"] == "https://api.example.com:443"
    assert event.details["host"] == "https://thief.example.com:443"


def test_a_changed_path_keeps_the_secret(client):
    connection = make_connection(
        "one", base_url="https://api.example.com/v1", models=["m"], default_model="m"
    )
    apply(client, show(client, compat(baseUrl="https://api.example.com/v2")))
    assert connection.secrets.get().value.open().decode().find(KEY) > 0


def test_a_codex_path_is_never_set_and_one_in_use_stays(client, settings):
    settings.CODEX_PATHS = ("/opt/codex",)
    entry = {"slug": "codex", "name": "Codex", "providerType": "openai", "authType": "oauth"}
    shown = show(client, {**entry, "codexPath": "/tmp/evil"})
    assert "PATCHBAY_CODEX_PATHS" in words(shown)
    apply(client, shown)
    connection = Connection.objects.get()
    assert connection.codex_path == ""
    actions.update("command", connection, {"codex_path": "/opt/codex"})
    apply(client, show(client, {**entry, "name": "Renamed", "codexPath": "/tmp/evil"}))
    connection.refresh_from_db()
    assert (connection.name, connection.codex_path) == ("Renamed", "/opt/codex")


@pytest.mark.parametrize(
    "field", ["command", "executable", "awsProfile", "credential_process", "credentialSource"]
)
def test_a_file_that_names_a_program_or_an_account_is_refused(client, field):
    shown = show(client, compat(**{field: "/bin/sh"}))
    assert offered(shown) == []
    assert field in words(shown)


def test_a_locked_session_keeps_its_connection(client_for):
    world = make_world()
    client = client_for(world.people["alice"])
    before = list(ChatSession.objects.order_by("pk").values())
    entry = compat(slug="local", baseUrl="https://other.example.com/v1", models=["new"])
    shown = show(client, {**entry, "defaultModel": "new"}, compat(slug="two"),
                 defaultLlmConnection="two")  # fmt: skip
    assert apply(client, shown).status_code == 303
    assert list(ChatSession.objects.order_by("pk").values()) == before
    assert world.connection.pk in {row["connection_id"] for row in before}


# -- validated -------------------------------------------------------------------------------------


def test_what_needs_no_secret_is_validated_if_wished(client, settings):
    settings.EGRESS_ALLOW = "127.0.0.0/8"
    local = compat(slug="open", authType="none", baseUrl="http://127.0.0.1:9/v1")
    shown = show(client, compat(), local, compat(slug="off", authType="none", enabled=False))
    assert 'name="validate" value="on" checked' in shown.text
    done = apply(client, shown, validate="on")
    assert [p.connection.slug for p in ProbeResult.objects.all()] == ["open"]
    assert ProbeResult.objects.get().trigger == "import"
    result = client.get(done.headers["Location"])
    assert "hx-trigger" in result.text
    assert 'id="connection-open" data-status="checking"' in result.text
    part = client.get(done.headers["Location"], headers={"HX-Request": "true"})
    assert part.text.lstrip().startswith("<section")


def test_without_the_tick_nothing_is_validated(client):
    apply(client, show(client, compat(authType="none")))
    assert not ProbeResult.objects.exists()


# -- what isn't a file -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [{}, {"file": ""}, {"text": "  "}, {"file": "x", "draft2": "y"}, {"take": "default"}]
)
def test_nothing_given_is_asked_for(client, data):
    answer = client.post(URL, data)
    assert answer.status_code == 422
    assert "Choose a file, or paste its text, first." in words(answer)


def test_for_htmx_only_the_sentence_comes_back(client):
    answer = upload(client, b"[]", headers={"HX-Request": "true"})
    assert answer.status_code == 422
    assert answer.headers["HX-Retarget"] == "#import-problem"
    assert answer.text.lstrip().startswith('<div id="import-problem">')
    shown = upload(client, file_of(compat()), headers={"HX-Request": "true"})
    assert shown.text.lstrip().startswith('<div class="stack" id="import"')


def test_the_largest_file_comes_through(client):
    """500 connections that fill the limit, and as many boxes as a form may have."""
    entries = [compat(slug=f"c-{n}", name=f"C {n}", x="y" * 3_000) for n in range(500)]
    spaces = [
        {"name": f"W {n}", "defaults": {"defaultLlmConnection": f"c-{n}"}} for n in range(400)
    ]
    shown = show(client, *entries, workspaces=spaces, defaultLlmConnection="c-1")
    assert len(offered(shown)) == 901
    # Every box is sent; one of them alone is of this draft, so that not all has to be made here.
    others = [f"other-{n}" for n in range(900)]
    assert apply(client, shown, take=["connection-7", *others]).status_code == 303
    assert Connection.objects.get().slug == "c-6"


def test_a_workspace_without_access_is_refused_before(client):
    closed = make_connection("closed", access="chosen")
    support, sales = make_workspace("support"), make_workspace("sales")
    grants.set_access("command", closed, access="chosen", workspaces=[sales.pk])
    spaces = [
        {"name": name, "defaults": {"defaultLlmConnection": "closed"}}
        for name in ("Support", "Sales", "Nowhere")
    ]
    shown = show(client, workspaces=spaces)
    assert ticked(shown) == ["workspace-2"]
    assert words(shown).count("This workspace has no access to the connection.") == 2
    assert apply(client, shown, take=["workspace-2", "workspace-3"]).status_code == 303
    assert sales.connection_rows.get().is_default
    assert not support.connection_rows.exists()
    assert Workspace.objects.filter(slug="nowhere").exists()


# -- rights ----------------------------------------------------------------------------------------


def test_only_instance_admins_bring_in(bob, client_for):
    before = digest()
    client = client_for(bob)
    assert client.get(URL).status_code == 403
    assert upload(client, file_of(compat())).status_code == 403
    assert client.post(URL, {"draft": "x", "take": "connection-1"}).status_code == 403
    assert digest("sessions.Session") == digest("sessions.Session")
    assert Connection.objects.count() == 0
    assert before


def test_a_result_is_an_import_s(client, bob, client_for):
    done = apply(client, show(client, compat()))
    other = AuditEvent.objects.filter(action="connection.create").first()
    assert client.get(f"{URL}{other.pk}/").status_code == 404
    assert client_for(bob).get(done.headers["Location"]).status_code == 403
    connection = Connection.objects.get()
    deleting.delete("command", connection)
    assert client.get(done.headers["Location"]).status_code == 200
