"""A stored secret goes to the place it was entered for, and nowhere else."""

from __future__ import annotations

import json

import pytest

from tests.fakes.server import key_hash
from tests.system.attacks.listener import Listener, reply
from tests.system.attacks.server import FORM, untouched

KEY = "sk-fake-good-destination-4c1f"


@pytest.fixture(scope="module")
def slug(attacked, fakes):
    """A connection with a key and a header, both entered for the fake provider."""
    attacked.add("bound", fakes.openai, KEY, extra_headers="X-Team: header-destination-77a0")
    return "bound"


def elsewhere(fakes, port):
    """What an attacker changes, the secret left blank: name → the fields."""
    fake_port = fakes.url.rpartition(":")[2]
    anthropic = {"provider_type": "anthropic_compat"}
    return {
        "port": {"base_url": f"http://127.0.0.1:{port}/openai/v1"},
        "host and port": {"base_url": f"http://localhost:{port}/v1"},
        "host": {"base_url": f"http://localhost:{fake_port}/openai/v1"},
        "scheme": {"base_url": f"https://127.0.0.1:{fake_port}/openai/v1"},
        "scheme and port": {"base_url": f"https://127.0.0.1:{port}/v1"},
        "provider": anthropic,
        "provider and port": {**anthropic, "base_url": f"http://127.0.0.1:{port}"},
        "provider and auth type": {
            "provider_type": "anthropic",
            "auth_type": "api_key",
            "base_url": f"http://127.0.0.1:{port}",
        },
        "auth type": {
            "provider_type": "openai",
            "auth_type": "api_key",
            "base_url": fakes.openai,
        },
        "wire and port": {
            "custom_endpoint_api": "anthropic-messages",
            "base_url": f"http://127.0.0.1:{port}",
        },
        "port, key of blanks": {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": " \t "},
        "port, header given": {
            "base_url": f"http://127.0.0.1:{port}/v1",
            "extra_headers": "X-Mine: 1",
        },
        "port, key given but not the header": {
            "base_url": f"http://127.0.0.1:{port}/v1",
            "api_key": "sk-of-the-attacker",
        },
        "port, with the masked text as the key": {
            "base_url": f"http://127.0.0.1:{port}/v1",
            "api_key": "Stored, ends in …4c1f. Leave blank to keep.",
        },
    }


def stored(attacked, slug):
    return attacked.secrets(slug), attacked.rows(
        "SELECT base_url, provider_type, auth_type, custom_endpoint_api, revision"
        " FROM connections_connection WHERE slug = ?",
        slug,
    )


def test_another_destination_is_refused_to_an_admin_who_leaves_the_secret_blank(
    attacked, fakes, slug, listener
):
    before = stored(attacked, slug)
    form = untouched(attacked.admin.get(f"/connections/{slug}/edit/").text)
    fakes.reset()
    for what, fields in elsewhere(fakes, listener.port).items():
        for sent in (
            {**form, **fields},
            fields,
            {**fields, "_validate": "1", "action": "validate"},
        ):
            answer = attacked.edit(slug, **sent)
            assert answer.status_code == 422, what
            assert KEY not in answer.text
        assert attacked.edit(slug, _refresh="1", **fields).status_code == 200, what
    assert stored(attacked, slug) == before
    assert (listener.connections, fakes.requests()) == (0, [])


def test_the_button_that_validates_takes_no_destination(attacked, fakes, slug, listener):
    fakes.reset()
    for fields in elsewhere(fakes, listener.port).values():
        for path in (f"/connections/{slug}/validate/", "/connections/validate/"):
            answer = attacked.admin.post(path, data={**FORM, **fields, "slug": slug})
            assert answer.status_code == 303
        assert attacked.wait_for_probe(slug)["passed"] == 1
    assert listener.connections == 0
    assert {one["key"] for one in fakes.requests()} == {key_hash(KEY)}


@pytest.mark.parametrize("who", ["workspace admin", "member", "viewer", "stranger", "nobody"])
def test_others_neither_save_nor_validate_any_destination(
    attacked, people, fakes, slug, listener, who
):
    before = stored(attacked, slug)
    fakes.reset()
    client = people[who]
    refused = (302,) if who == "nobody" else (403, 404)
    paths = [f"/connections/{slug}/{verb}/" for verb in ("edit", "validate", "enable", "default")]
    for fields in elsewhere(fakes, listener.port).values():
        for key in ({}, {"api_key": "sk-of-the-attacker", "extra_headers": "{}"}):
            data = {**FORM, "name": "x", **fields, **key}
            for path in (*paths, "/connections/new/", "/connections/validate/"):
                answer = client.post(path, data=data)
                assert answer.status_code in refused, (path, answer.status_code)
                if who == "nobody":
                    assert answer.headers["location"].startswith("/accounts/login/")
    assert stored(attacked, slug) == before
    assert (listener.connections, fakes.requests()) == (0, [])


def test_the_admin_site_takes_no_destination(attacked, fakes, slug, listener):
    before = stored(attacked, slug)
    row = attacked.rows("SELECT id FROM connections_connection WHERE slug = ?", slug)[0]
    url = f"/admin/connections/connection/{row['id']}/change/"
    page = attacked.admin.get(url, follow_redirects=True)
    form = untouched(page.text, "connection_form")
    assert "name" in form
    for fields in elsewhere(fakes, listener.port).values():
        assert attacked.admin.post(str(page.url), data={**form, **fields}).status_code == 302
    assert stored(attacked, slug) == before
    assert listener.connections == 0


def test_a_file_that_names_another_destination_gets_no_secret(attacked, fakes, listener, tmp_path):
    attacked.add("moved", fakes.openai, KEY)
    file = tmp_path / "config.json"
    entry = {
        "slug": "moved",
        "name": "moved",
        "providerType": "openai_compat",
        "authType": "api_key_with_endpoint",
        "baseUrl": f"http://127.0.0.1:{listener.port}/v1",
        "models": ["echo"],
        "defaultModel": "echo",
    }
    file.write_text(json.dumps({"llmConnections": [entry]}))
    attacked.manage("import_connections", str(file))
    assert attacked.secrets("moved") == {}
    attacked.validate("moved")
    attacked.ask("moved", "hello")
    # and back again: what was entered for the first place is gone, not waiting
    entry["baseUrl"] = fakes.openai
    file.write_text(json.dumps({"llmConnections": [entry]}))
    attacked.manage("import_connections", str(file))
    fakes.reset()
    attacked.validate("moved")
    assert {one["key"] for one in fakes.requests()} == {""}
    assert KEY.encode() not in listener.received


def test_a_detour_over_no_sign_in_does_not_carry_the_key_along(attacked, fakes):
    with Listener(lambda request: reply("hello")) as other:
        attacked.add("detour", fakes.openai, KEY)
        nothing = {"auth_type": "none", "base_url": f"{other.url}/v1"}
        assert attacked.edit("detour", **nothing).status_code == 303
        attacked.wait_for_probe("detour")
        back = {"auth_type": "api_key_with_endpoint"}
        assert attacked.edit("detour", **back).status_code == 303
        attacked.wait_for_probe("detour")
        assert attacked.ask("detour", "hello")["state"] == "done"
        assert other.requests
        assert KEY.encode() not in other.received
        assert attacked.secrets("detour") == {}


def test_a_row_changed_behind_the_product_s_back_sends_nothing(attacked, fakes, listener):
    attacked.add("forced", fakes.openai, KEY)
    session = attacked.send("forced", "before")
    assert attacked.wait_for_turn(session)["state"] == "done"
    attacked.execute(
        "UPDATE connections_connection SET base_url = ? WHERE slug = 'forced'",
        f"{listener.url}/v1",
    )
    assert attacked.status("forced") == "incomplete"
    assert attacked.validate("forced")["passed"] == 0
    assert attacked.ask("forced", "in a new session")["state"] == "refused"
    assert not attacked.say(session, "in a session that is locked to it")
    # the binding changed along with it: the sealed bytes know where they belong
    attacked.execute(
        "UPDATE connections_secret SET binding = replace(binding, ?, ?)"
        " WHERE connection_id IN (SELECT id FROM connections_connection WHERE slug = 'forced')",
        fakes.url,
        listener.url,
    )
    assert attacked.status("forced") == "sealed"
    assert attacked.validate("forced")["passed"] == 0
    assert attacked.ask("forced", "in a new session")["state"] == "refused"
    assert not attacked.say(session, "in a session that is locked to it")
    assert listener.connections == 0


def test_an_untouched_form_saved_again_keeps_the_secret_and_it_works(attacked, fakes, slug):
    before = attacked.secrets(slug)
    form = untouched(attacked.admin.get(f"/connections/{slug}/edit/").text)
    assert form["base_url"] == fakes.openai
    assert form["api_key"] == form["extra_headers"] == ""
    assert attacked.edit(slug, **form).status_code == 303
    assert attacked.secrets(slug) == before
    fakes.reset()
    assert attacked.ask(slug, "still here")["text"] == "still here"
    (request,) = fakes.requests(last_user="still here")
    assert request["key"] == key_hash(KEY)
    assert request["headers"]["x-team"] == "header-destination-77a0"


def test_another_path_on_the_same_host_keeps_the_secret(attacked, fakes, slug):
    before = attacked.secrets(slug)
    assert attacked.edit(slug, base_url=f"{fakes.url}/openai-nokey/v1").status_code == 303
    assert attacked.edit(slug, base_url=fakes.openai).status_code == 303
    assert attacked.secrets(slug) == before
    assert attacked.wait_for_probe(slug)["passed"] == 1
