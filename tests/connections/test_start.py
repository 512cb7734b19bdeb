"""The short path: model servers on this machine, the short form of each preset, and the check."""

from __future__ import annotations

import re
import socket
import time
from contextlib import contextmanager

import pytest
from django.urls import reverse
from django.utils import timezone

from config import env
from connections import local_servers
from connections.choices import SECRET_FIELDS, AuthType
from connections.models import Connection, ProbeResult
from connections.presets import PRESETS, Group, by_group
from tests.builders import KEY, give_access, make_connection
from tests.fakes.vertex import service_account
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db

FOUND = re.compile(r'href="/start/(ollama|lm-studio)/"')


@pytest.fixture
def page(client_for, alice):
    return client_for(alice)


@pytest.fixture
def local(settings, fakes, monkeypatch):
    """Ollama and LM Studio answer, on a machine that may be busy with other things."""
    fakes.reset()
    monkeypatch.setattr(local_servers, "SECONDS", 20)
    settings.EGRESS_ALLOW = "127.0.0.0/8"
    settings.LOCAL_SERVERS = {"ollama": fakes.ollama, "lm-studio": fakes.lm_studio}
    return fakes


@contextmanager
def silent_server():
    """Takes connections and says nothing; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


# -- servers on this machine -----------------------------------------------------------------------


def test_servers_that_answer_are_found_with_a_model_that_can_chat_first(local):
    ollama, lm_studio = local_servers.look()
    assert (ollama.preset.key, ollama.base_url) == ("ollama", local.ollama)
    assert ollama.models == ["llama3.2:latest", "qwen3:8b", "nomic-embed-text:latest"]
    assert lm_studio.preset.key == "lm-studio"
    assert lm_studio.models[0] == "qwen2.5-7b-instruct"
    assert [one.preset.key for one in local_servers.look(["lm-studio"])] == ["lm-studio"]
    assert local_servers.look(["anthropic"]) == []


def test_one_without_a_model_is_found_too(settings, local):
    settings.LOCAL_SERVERS = {"ollama": local.ollama_empty}
    assert [one.models for one in local_servers.look()] == [[]]


def test_nobody_waits_for_those_that_do_not_answer(settings, fakes, monkeypatch):
    assert local_servers.SECONDS <= 0.5
    settings.EGRESS_ALLOW = "127.0.0.0/8"
    with silent_server() as mute, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        settings.LOCAL_SERVERS = {"ollama": mute, "lm-studio": gone}
        began = time.monotonic()
        assert local_servers.look() == []
        assert time.monotonic() - began < 10  # a provider's own call has 20 seconds
        # The others are asked at the same time.
        monkeypatch.setattr(local_servers, "SECONDS", 3)
        settings.LOCAL_SERVERS = {"ollama": mute, "lm-studio": fakes.lm_studio}
        assert [one.preset.key for one in local_servers.look()] == ["lm-studio"]


@pytest.mark.parametrize("path", ["/_page", "/nothing/v1", "/openai/v1"])
def test_what_answers_otherwise_is_not_offered(settings, local, path):
    settings.LOCAL_SERVERS = {"ollama": local.url + path}
    assert local_servers.look() == []


@pytest.mark.parametrize("allowed", ["", "10.0.0.0/8", "127.0.0.1:1"])
def test_where_base_urls_may_not_go_nobody_looks(settings, local, page, allowed):
    settings.EGRESS_ALLOW = allowed
    assert local_servers.look() == []
    assert "/start/ollama/" not in page.get("/start/local/").text
    assert page.get("/start/ollama/").status_code == 200
    assert local.requests() == []


def test_the_cards_ask_for_them_after_the_page_is_there(page, local):
    html = page.get("/connections/").text
    assert 'hx-get="/start/local/" hx-trigger="load"' in html
    assert local.requests() == []
    part = page.get("/start/local/", headers={"HX-Request": "true"}).text
    assert FOUND.findall(part) == ["ollama", "lm-studio"]
    assert "Answers with 3 models." in part
    assert "<html" not in part
    whole = page.get("/start/local/").text
    assert FOUND.findall(whole) == ["ollama", "lm-studio"]
    assert "<html" in whole


def test_without_an_answer_the_page_says_what_to_do(page):
    assert "No model server answers here" in page.get("/start/local/").text
    part = page.get("/start/local/", headers={"HX-Request": "true"}).text
    assert "href" not in part


def test_which_servers_is_the_operators_choice(monkeypatch):
    default = {"ollama": "http://127.0.0.1:11434/v1", "lm-studio": "http://127.0.0.1:1234/v1"}

    def read():
        return env.addresses("PATCHBAY_LOCAL_SERVERS", default)

    monkeypatch.delenv("PATCHBAY_LOCAL_SERVERS", raising=False)
    assert read() == default
    monkeypatch.setenv("PATCHBAY_LOCAL_SERVERS", "")
    assert read() == {}
    monkeypatch.setenv("PATCHBAY_LOCAL_SERVERS", " ollama=http://ollama:11434/v1 ")
    assert read() == {"ollama": "http://ollama:11434/v1"}
    for wrong in ("http://ollama:11434/v1", "vllm=http://vllm/v1", "ollama=ftp://x", "ollama="):
        monkeypatch.setenv("PATCHBAY_LOCAL_SERVERS", wrong)
        with pytest.raises(env.BadEnv, match="PATCHBAY_LOCAL_SERVERS"):
            read()


# -- the short form --------------------------------------------------------------------------------

TYPED = {
    "name": "Ours",
    "base_url": "https://llm.example.com/v1",
    "default_model": "some-model",
    "aws_region": "eu-central-1",
    "gcp_region": "europe-west1",
    "gcp_project_id": "team-project",
    "api_key": KEY,
    "access_key_id": "AKIAIOSFODNN7EXAMPLE",
    "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "session_token": "",
    "service_account_json": service_account(),
}


@pytest.mark.parametrize("key", PRESETS)
def test_every_preset_asks_for_what_it_needs_and_no_more(page, key):
    preset = PRESETS[key]
    html = page.get(f"/start/{key}/").text
    form = html.partition('id="start-form"')[2].partition("</form>")[0]
    assert set(re.findall(r'name="(\w+)"', form)) == {"csrfmiddlewaretoken", *preset.asks}
    if preset.key_url:
        assert f'href="{preset.key_url}"' in html
    typed = {name: TYPED[name] for name in preset.asks}
    answer = page.post(f"/start/{key}/", typed)
    assert answer.status_code == 303, re.findall(r"errorlist.*?</ul>", answer.text)
    made = Connection.objects.get()
    if preset.values["auth_type"] == AuthType.OAUTH:
        assert answer.headers["Location"] == f"/connections/{made.slug}/#sign-in"
        assert not ProbeResult.objects.exists()
        return
    assert answer.headers["Location"] == f"/start/check/{made.slug}/"
    assert made.status == "checking"
    assert ProbeResult.objects.get().trigger == "save"
    assert made.is_default
    assert made.default_model
    assert made.default_model in made.model_ids
    # One model was named: the provider tells the others.
    assert made.models_synced is not bool(preset.values.get("models"))
    assert KEY not in page.get(answer.headers["Location"]).text


def test_every_preset_that_takes_a_key_says_where_it_is():
    for preset in PRESETS.values():
        takes = bool(SECRET_FIELDS[AuthType(preset.values["auth_type"])])
        assert bool(preset.key_from) is takes, preset.key
        assert not preset.key_url or preset.key_url.startswith("https://"), preset.key
    everywhere = [preset for _group, presets in by_group() for preset in presets]
    assert sorted(p.key for p in everywhere) == sorted(PRESETS)
    assert next(iter(by_group()))[0] is Group.KEY


@pytest.mark.parametrize("key", [key for key, one in PRESETS.items() if "api_key" in one.asks])
def test_a_form_without_the_key_says_so_at_the_field(page, key):
    answer = page.post(f"/start/{key}/", {"name": "Ours", "base_url": TYPED["base_url"]})
    assert answer.status_code == 422
    assert 'id="id_api_key_error"' in answer.text
    assert not Connection.objects.exists()


def test_a_wrong_form_keeps_what_was_typed_but_the_key(page):
    typed = {**TYPED, "base_url": "http://169.254.169.254/v1", "name": "Own name"}
    answer = page.post("/start/openai-compatible/", typed)
    assert answer.status_code == 422
    assert "a cloud metadata address" in answer.text
    for kept in ("Own name", "http://169.254.169.254/v1", "some-model"):
        assert kept in answer.text
    assert KEY not in answer.text
    assert not Connection.objects.exists()


def test_with_htmx_the_form_alone_is_put_right_and_the_key_stays_in_the_browser(page):
    htmx, url = {"HX-Request": "true"}, "/start/openai-compatible/"
    answer = page.post(url, TYPED | {"base_url": "nonsense"}, headers=htmx)
    assert answer.status_code == 422
    assert answer.text.lstrip().startswith('<form class="form" id="start-form"')
    assert f'hx-post="{url}"' in answer.text
    assert re.search(r'<input[^>]* name="api_key"[^>]* hx-preserve="true"', answer.text)
    assert KEY not in answer.text
    answer = page.post(url, TYPED, headers=htmx)
    assert answer.headers["HX-Redirect"] == f"/start/check/{Connection.objects.get().slug}/"


def test_nothing_but_what_is_asked_for_can_be_sent_along(page):
    smuggled = {"provider_type": "openai", "base_url": "https://evil.example", "models": "x"}
    page.post("/start/anthropic/", {"api_key": KEY, "name": "Mine", **smuggled})
    made = Connection.objects.get()
    assert (made.name, made.provider_type, made.base_url) == ("Anthropic", "anthropic", "")


def test_the_form_of_a_server_that_answers_offers_its_models(page, local):
    html = page.get("/start/ollama/").text
    assert "Ollama answers on this machine" in html
    assert f'value="{local.ollama}"' in html
    options = re.findall(r'<option value="([^"]+)"( selected)?>', html)
    assert options[0] == ("llama3.2:latest", " selected")
    assert len(options) == 3
    # Another address than the one that was found may have other models, and none of it is lost.
    wrong = page.post("/start/ollama/", {"base_url": "nonsense", "default_model": "my-own"})
    assert wrong.status_code == 422
    assert 'value="my-own"' in wrong.text
    typed = {"base_url": local.openai_nokey, "default_model": "echo"}
    assert page.post("/start/ollama/", typed).status_code == 303


def test_the_form_of_a_server_that_does_not_answer_says_what_to_do(page, settings, local):
    settings.LOCAL_SERVERS = {"ollama": local.ollama_empty, "lm-studio": "http://127.0.0.1:1/v1"}
    assert "has no model yet" in page.get("/start/ollama/").text
    html = page.get("/start/lm-studio/").text
    # (Django writes the apostrophe as an entity.)
    assert "answer on this machine" in html
    assert 'name="default_model"' in html


# -- the check -------------------------------------------------------------------------------------


def at(page, slug="local", **headers):
    return page.get(f"/start/check/{slug}/", headers=headers).text


def test_the_check_follows_itself_until_it_ends(page, workspace):
    connection = make_connection("local", is_default=True)
    page.post("/connections/local/validate/")
    part = at(page, **{"HX-Request": "true"})
    assert 'hx-trigger="every 500ms"' in part
    assert 'data-status="checking"' in part
    assert "<html" not in part
    probe = ProbeResult.objects.get()
    probe.rungs = [
        {"rung": "config", "outcome": "passed"},
        {"rung": "network", "outcome": "passed"},
    ]
    probe.save()
    outcomes = re.findall(r'data-outcome="(\w+)"', at(page))
    assert outcomes == ["passed", "passed", "running", *["not_tested"] * 3]
    Connection.objects.update(checking_until=None, health="valid", health_at=timezone.now())
    html = at(page)
    assert "hx-trigger" not in html.partition('id="check"')[2].partition("</section>")[0]
    assert f'action="{reverse("sessions:create", args=["support"])}"' in html
    assert "Begin the first session" in html
    assert connection.name in html


def test_where_sessions_take_another_one_it_says_so(page, workspace):
    make_connection("first", is_default=True)
    make_connection("local", health="valid", health_at=timezone.now())
    assert "New sessions in Support take “First” by themselves" in at(page)
    give_access(workspace, Connection.objects.get(slug="local"), is_default=True)
    assert "by themselves" not in at(page)


def test_without_a_workspace_there_is_no_session_to_begin(page):
    make_connection("local", is_default=True, health="valid", health_at=timezone.now())
    html = at(page)
    assert "Begin" not in html.partition("<main")[2]
    assert "Look at the connection" in html


def test_a_rejected_key_is_pasted_again_where_the_ladder_is(page):
    connection = make_connection("local", health="failed", health_error="auth")
    html = at(page)
    assert "Key rejected" in html
    assert 'name="api_key"' in html
    new = "sk-new-0123456789-abcdef-n3W1"
    answer = page.post("/start/check/local/", {"api_key": new})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/start/check/local/")
    connection.refresh_from_db()
    assert connection.status == "checking"
    assert connection.secrets.get().hints == {"api_key": "n3W1"}
    assert AuditEvent.objects.filter(action="secret.store").count() == 1
    assert new not in at(page)


def test_checked_again_with_nothing_entered_it_keeps_the_key(page):
    connection = make_connection("local", health="failed", health_error="timeout")
    before = connection.secrets.get().value.stored
    assert page.post("/start/check/local/", {"api_key": ""}).status_code == 303
    assert connection.secrets.get().value.stored == before
    assert Connection.objects.get().status == "checking"


def test_a_secret_that_makes_no_sense_is_refused_at_its_field(page):
    make_connection("local", health="failed", health_error="auth")
    answer = page.post("/start/check/local/", {"api_key": "two\nlines"})
    assert answer.status_code == 422
    assert 'id="id_api_key_error"' in answer.text
    assert not ProbeResult.objects.exists()


def test_of_two_parts_of_a_secret_the_one_that_is_right_stays_typed(page):
    aws = {"provider_type": "bedrock", "auth_type": "iam_credentials", "aws_region": "us-east-1"}
    make_connection("aws", key=None, base_url="", **aws)
    assert 'hx-post="/start/check/aws/" hx-target="#check"' in at(page, "aws")
    typed = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "two\nlines"}
    headers = {"HX-Request": "true"}
    answer = page.post("/start/check/aws/", typed, headers=headers)
    assert answer.status_code == 422
    assert answer.text.lstrip().startswith('<section class="stack"')
    right = re.search(r'<input[^>]*name="access_key_id"[^>]*>', answer.text)[0]
    wrong = re.search(r'<input[^>]*name="secret_access_key"[^>]*>', answer.text)[0]
    assert 'hx-preserve="true"' in right  # by which the browser keeps what stands there
    assert "hx-preserve" not in wrong
    assert "AKIDEXAMPLE" not in answer.text


def test_two_presses_ask_for_one_probe(page):
    make_connection("local", key=None, auth_type="none")
    for _press in range(2):
        assert page.post("/start/check/local/").status_code == 303
    assert ProbeResult.objects.count() == 1
