"""No field makes the server run a program, read a file, or use the accounts of its environment."""

from __future__ import annotations

import json
import os
import re
from html import unescape

import pytest

from tests.fakes.server import key_hash
from tests.system.attacks.bait import Bait
from tests.system.attacks.listener import Listener, reply, response
from tests.system.attacks.server import FORM

SERVICE_ACCOUNT = {
    "type": "service_account",
    "project_id": "project-1",
    "client_email": "robot@project-1.iam.gserviceaccount.com",
    "private_key": "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n",
    "token_uri": "https://oauth2.googleapis.com/token",
}
VERTEX = {
    **FORM,
    "provider_type": "vertex",
    "auth_type": "service_account_file",
    "gcp_project_id": "project-1",
    "gcp_region": "europe-west1",
    "base_url": "",
    "name": "google",
}
BEDROCK = {
    **FORM,
    "provider_type": "bedrock",
    "auth_type": "iam_credentials",
    "aws_region": "eu-central-1",
    "base_url": "",
    "name": "aws",
}


@pytest.fixture
def bait(tmp_path):
    return Bait(tmp_path)


def test_the_bait_is_seen_when_it_is_taken(bait):
    assert bait.taken == []
    os.system(bait.program)
    with bait.file.open("rb") as file:
        file.read()
    assert bait.taken == ["ran", "read"]


def test_a_typed_path_of_a_program_is_refused(attacked, bait, people):
    codex = {
        **FORM,
        "name": "codex",
        "provider_type": "openai",
        "auth_type": "api_key_with_endpoint",
        "base_url": "http://127.0.0.1:9/v1",
        "api_key": "sk-1",
    }
    paths = [str(bait.program), "/bin/sh", "codex", "../codex", f"{bait.program} --version", "\t/x"]
    for path in paths:
        for fields in (codex, {**codex, **FORM}, {**codex, "provider_type": "anthropic"}):
            answer = attacked.admin.post("/connections/new/", data={**fields, "codex_path": path})
            assert answer.status_code == 422, (path, fields)
    codex["slug"] = "codex"
    assert attacked.admin.post("/connections/new/", data=codex).status_code == 303
    attacked.wait_for_probe("codex")
    for path in paths:
        assert attacked.edit("codex", codex_path=path).status_code == 422
        for who, person in people.items():
            answer = person.post("/connections/codex/edit/", data={"codex_path": path})
            assert answer.status_code in (302, 403, 404), who
    row = attacked.rows("SELECT id, codex_path FROM connections_connection WHERE slug = 'codex'")[0]
    url = f"/admin/connections/connection/{row['id']}/change/"
    attacked.admin.post(url, data={"name": "codex", "codex_path": paths[0]}, follow_redirects=True)
    row = attacked.rows("SELECT codex_path FROM connections_connection WHERE slug = 'codex'")[0]
    assert row["codex_path"] == ""
    # and one that got there past every check isn't run
    attacked.execute(
        "UPDATE connections_connection SET codex_path = ? WHERE slug = 'codex'", str(bait.program)
    )
    assert attacked.validate("codex")["passed"] == 0
    assert attacked.ask("codex", "hello")["state"] != "done"
    assert bait.taken == []
    attacked.admin.post("/connections/codex/delete/")


def test_google_s_other_kinds_of_credentials_are_refused(attacked, bait, listener):
    asks = {"url": listener.url, "headers": {"Metadata-Flavor": "Google"}}
    external = {
        "type": "external_account",
        "audience": "//iam.googleapis.com/x",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{listener.url}/token",
    }
    files = [
        {**external, "credential_source": {"file": str(bait.file)}},
        {**external, "credential_source": asks},
        {**external, "credential_source": {"executable": {"command": str(bait.program)}}},
        {**external, "credential_source": {"environment_id": "aws1", "region_url": listener.url}},
        {**external, "type": "external_account_authorized_user", "refresh_token": "x"},
        {"type": "authorized_user", "client_id": "x", "client_secret": "x", "refresh_token": "x"},
        {
            "type": "impersonated_service_account",
            "service_account_impersonation_url": listener.url,
            "source_credentials": SERVICE_ACCOUNT,
        },
        {"type": "gdch_service_account", "token_uri": listener.url, "ca_cert_path": "/etc/passwd"},
        {**SERVICE_ACCOUNT, "token_uri": f"{listener.url}/token"},
        {**SERVICE_ACCOUNT, "token_uri": "https://oauth2.googleapis.com.example.com/token"},
        {**SERVICE_ACCOUNT, "token_uri": "https://oauth2.googleapis.com@127.0.0.1/token"},
        {**SERVICE_ACCOUNT, "token_uri": "http://oauth2.googleapis.com/token"},
        {**SERVICE_ACCOUNT, "token_uri": ""},
        {name: value for name, value in SERVICE_ACCOUNT.items() if name != "token_uri"},
        {**SERVICE_ACCOUNT, "universe_domain": "example.com"},
        *(
            {**SERVICE_ACCOUNT, name: value}
            for name, value in {
                "file": str(bait.file),
                "url": listener.url,
                "executable": {"command": str(bait.program)},
                "command": str(bait.program),
                "credential_source": {"file": str(bait.file)},
                "trust_boundary": listener.url,
            }.items()
        ),
        [SERVICE_ACCOUNT],
        "text",
    ]
    texts = [json.dumps(file) for file in files] + [str(bait.file), f"@{bait.file}", "{", "\x00"]
    # the last of two fields of one name counts for some readers, the first for others
    foreign = f'"token_uri": "{listener.url}", '
    texts.append(
        json.dumps(SERVICE_ACCOUNT)[:-1] + f', "type": "external_account", {foreign}"x":1}}'
    )
    for text in texts:
        answer = attacked.admin.post(
            "/connections/new/", data={**VERTEX, "service_account_json": text}
        )
        assert answer.status_code == 422, text
    assert not attacked.rows("SELECT 1 FROM connections_connection WHERE name = 'google'")
    assert bait.taken == []
    assert listener.connections == 0


def test_profiles_and_commands_of_aws_have_no_field(attacked, bait, listener):
    """They aren't stored, wherever they are typed, and mean nothing."""
    extra = {
        "aws_profile": "default",
        "profile": "default",
        "credential_process": str(bait.program),
        "command": str(bait.program),
        "executable": str(bait.program),
        "file": str(bait.file),
        "url": listener.url,
        "endpoint_url": listener.url,
        "role_arn": "arn:aws:iam::1:role/x",
        "web_identity_token_file": str(bait.file),
    }
    without = attacked.admin.post("/connections/new/", data={**BEDROCK, **extra})
    if without.status_code == 303:
        slug = without.headers["location"].rstrip("/").rpartition("/")[2]
        assert attacked.wait_for_probe(slug)["passed"] != 1
        assert attacked.secrets(slug) == {}
        row = attacked.rows("SELECT * FROM connections_connection WHERE slug = ?", slug)[0]
        assert not [value for value in row.values() if str(bait.program.parent) in str(value)]
        attacked.admin.post(f"/connections/{slug}/delete/")
    custom = {**BEDROCK, "auth_type": "environment", "base_url": listener.url}
    assert attacked.admin.post("/connections/new/", data=custom).status_code == 422
    assert bait.taken == []
    assert listener.connections == 0


def reaching(bait: Bait, listener: Listener, prefix: str) -> list[dict]:
    """Entries of a file that name programs, files and profiles."""
    entry = {
        "name": "x",
        "providerType": "bedrock",
        "authType": "iam_credentials",
        "awsRegion": "eu-central-1",
        "models": ["m"],
    }
    codex = {"name": "x", "providerType": "openai", "authType": "api_key", "models": ["m"]}
    google = {**entry, "providerType": "vertex", "authType": "service_account_file"}
    google |= {"gcpProjectId": "project-1", "gcpRegion": "europe-west1"}
    external = {"type": "external_account", "token_url": listener.url}
    entries = [
        {**entry, "awsProfile": "default"},
        {**entry, "aws_profile": "default"},
        {**entry, "credentialProcess": str(bait.program)},
        {**entry, "credential_process": str(bait.program)},
        {**entry, "command": str(bait.program)},
        {**entry, "executable": {"command": str(bait.program)}},
        {**entry, "extra": {"credential_source": {"file": str(bait.file)}}},
        {**entry, "authType": "environment", "baseUrl": listener.url},
        {**codex, "codexPath": str(bait.program)},
        {**codex, "codexPath": "/bin/sh"},
        {**google, "serviceAccountJson": json.dumps(external)},
        {**google, "credentials": {**external, "credential_source": {"file": str(bait.file)}}},
        {**google, "serviceAccountFile": str(bait.file)},
        {**google, "tokenUri": listener.url, "token_uri": listener.url},
        {**google, "gcpRegion": "127.0.0.1/"},
        {**entry, "awsRegion": "eu.127.0.0.1:1/"},
    ]
    return [{**one, "slug": f"{prefix}-{n}"} for n, one in enumerate(entries)]


def check_what_came_in(attacked, bait, listener, prefix: str) -> None:
    stored = attacked.rows(
        "SELECT slug, codex_path, unknown_fields FROM connections_connection WHERE slug LIKE ?",
        f"{prefix}-%",
    )
    assert not [row for row in stored if row["codex_path"]]
    assert not [row for row in stored if str(bait.program) in row["unknown_fields"]], stored
    # only what is harmless without what was left out
    harmless = {f"{prefix}-{n}" for n in (6, 8, 9, 10, 11, 12, 13)}
    assert {row["slug"] for row in stored} <= harmless
    for row in stored:
        attacked.validate(row["slug"])
        assert attacked.ask(row["slug"], "hello")["state"] != "done"
    assert bait.taken == []
    assert listener.connections == 0


def test_a_file_brings_in_no_program_no_file_and_no_profile(attacked, bait, listener, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"llmConnections": reaching(bait, listener, "reaching")}))
    attacked.manage("import_connections", str(file), check=False)
    check_what_came_in(attacked, bait, listener, "reaching")


def test_nor_does_one_on_the_page(attacked, bait, listener):
    text = json.dumps({"llmConnections": reaching(bait, listener, "uploaded")})
    files = {"file": ("config.json", text.encode())}
    shown = attacked.admin.post("/connections/import/", files=files)
    assert shown.status_code == 200, shown.text
    draft = unescape(re.search(r'name="draft" value="([^"]*)"', shown.text)[1])
    # all of it is asked for, what was refused too
    offered = re.findall(r'name="take" value="([^"]+)"', shown.text)
    keys = {unescape(key) for key in offered} | {f"connection:{n}" for n in range(20)}
    data = {"draft": draft, "take": sorted(keys), "validate": "on", "codex_path": str(bait.program)}
    assert attacked.admin.post("/connections/import/", data=data).status_code in (303, 409, 422)
    data["take"] = [unescape(key) for key in offered]
    attacked.admin.post("/connections/import/", data=data)
    check_what_came_in(attacked, bait, listener, "uploaded")
    # a draft that was changed on its way is none
    data["draft"] = draft.replace(draft[10], "A" if draft[10] != "A" else "B", 1)
    assert attacked.admin.post("/connections/import/", data=data).status_code == 422


def test_a_path_that_left_in_an_export_does_not_come_in_again(attacked, bait, tmp_path):
    attacked.add("leaving", "", "sk-1", provider_type="openai", auth_type="api_key")
    attacked.execute(
        "UPDATE connections_connection SET codex_path = ? WHERE slug = 'leaving'", str(bait.program)
    )
    data = {"which": "chosen", "slug": "leaving"}
    exported = attacked.admin.post("/connections/export/", data=data)
    attacked.execute("UPDATE connections_connection SET codex_path = '' WHERE slug = 'leaving'")
    (entry,) = exported.json()["llmConnections"]
    entry |= {"codexPath": str(bait.program), "name": "Changed"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"llmConnections": [entry]}))
    attacked.manage("import_connections", str(file), check=False)
    row = attacked.rows("SELECT codex_path FROM connections_connection WHERE slug = 'leaving'")[0]
    assert row["codex_path"] == ""
    attacked.validate("leaving")
    assert bait.taken == []
    attacked.admin.post("/connections/leaving/delete/")


def test_own_keys_only_go_out_whatever_the_environment_holds(attacked, trap):
    """Of the kinds that have a variable, a chain or a program of their own."""
    forms = {
        "own-aws": {
            "provider_type": "bedrock",
            "auth_type": "iam_credentials",
            "aws_region": "eu-central-1",
            "access_key_id": "AKIAOWN0000000000001",
            "secret_access_key": "own/secret+0123456789",
        },
        "own-aws-key": {
            "provider_type": "bedrock",
            "auth_type": "api_key",
            "aws_region": "eu-central-1",
            "api_key": "own-bedrock-key-0123456789",
        },
        "own-anthropic": {
            "provider_type": "anthropic",
            "auth_type": "api_key",
            "api_key": "sk-own-anthropic-0123456789",
        },
        "own-codex": {"provider_type": "openai", "api_key": "sk-own-openai-0123456789"},
    }
    own = ("AKIAOWN0000000000001", "own-bedrock-key", "sk-own-anthropic", "sk-own-openai")
    with Listener(lambda request: response(404, {"error": {"message": "no"}})) as provider:
        for slug, fields in forms.items():
            attacked.add(slug, f"{provider.url}/v1", **fields)
            attacked.ask(slug, "hello")
            attacked.admin.post(f"/connections/{slug}/delete/")
    assert b"canary" not in provider.received.lower()
    for key in own:
        assert any(
            key in request.headers.get("authorization", "") + request.headers.get("x-api-key", "")
            for request in provider.requests
            if request.method == "POST"
        ), key
    assert {request.headers["host"] for request in provider.requests} == {
        f"127.0.0.1:{provider.port}"
    }
    assert trap.connections == 0


def test_the_server_s_environment_has_no_effect(attacked, fakes, trap, home_bait):
    with Listener(lambda request: reply("hello")) as provider:
        attacked.add("no-key", f"{provider.url}/v1", auth_type="none")
        anthropic = {"provider_type": "anthropic_compat", "auth_type": "none"}
        attacked.add("no-key-either", provider.url, **anthropic)
        attacked.add("own-key", fakes.openai, "sk-fake-good-of-its-own")
        fakes.reset()
        assert attacked.ask("no-key", "hello")["text"] == "hello"
        attacked.validate("no-key-either")
        attacked.ask("no-key-either", "hello")
        assert attacked.ask("own-key", "hello")["text"] == "hello"
        assert {one["key"] for one in fakes.requests()} == {key_hash("sk-fake-good-of-its-own")}
        assert provider.requests
        for request in provider.requests:
            assert not {"authorization", "x-api-key", "cookie"} & request.headers.keys()
            assert request.path.startswith(("/v1/", "/chat"))
        assert b"canary" not in provider.received.lower()  # nor what the home directory holds
    # the environment is for those who ask for it, on the provider's own address, once allowed
    for provider_type in ("anthropic", "openai", "bedrock", "vertex"):
        data = {
            **BEDROCK,
            "gcp_project_id": "project-1",
            "gcp_region": "europe-west1",
            "provider_type": provider_type,
            "auth_type": "environment",
        }
        own = {**data, "name": provider_type, "slug": f"environment-{provider_type}"}
        elsewhere = {**own, "base_url": trap.url}
        assert attacked.admin.post("/connections/new/", data=elsewhere).status_code == 422
        assert attacked.admin.post("/connections/new/", data=own).status_code == 303
        slug = f"environment-{provider_type}"
        assert attacked.wait_for_probe(slug)["passed"] == 0
        assert attacked.ask(slug, "hello")["state"] != "done"
    assert trap.connections == 0
    assert home_bait.taken == []
