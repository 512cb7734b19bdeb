"""A connection to Vertex AI on the running product: made in the form, validated, talked with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.fakes.server import FakeProviders
from tests.fakes.vertex import PROJECT, service_account
from tests.system.harness import wait_for
from tests.system.page import Page, plain
from tests.system.parts import Chat, Parts

BEHAVIOURS = ("echo", "thinking-tools", "tools-2-0.5s", "fast-30tps-300", "err-quota")
MODELS = [f"{publisher}{name}" for publisher in ("gemini-", "anthropic/") for name in BEHAVIOURS]


@pytest.fixture(scope="module")
def vertex(tmp_path_factory: pytest.TempPathFactory, static_files: None) -> Iterator[Parts]:
    """The product with one valid connection to Vertex AI, entered in its form."""
    with FakeProviders() as fakes:
        parts = Parts(tmp_path_factory.mktemp("vertex"), fakes)
        parts.env["PATCHBAY_GOOGLE_TOKEN_URL"] = fakes.google_token
        with parts:
            make(parts, "Vertex", service_account())
            wait_for(lambda: status(parts, "vertex") == "valid", what="it is valid")
            yield parts


def make(parts: Parts, name: str, account: str, **fields: str) -> None:
    about = {
        "name": name,
        "provider_type": "vertex",
        "auth_type": "service_account_file",
        "gcp_project_id": PROJECT,
        "gcp_region": "us-central1",
        "base_url": parts.fakes.vertex,
        "models": "\n".join(MODELS),
        "default_model": "gemini-echo",
        "service_account_json": account,
    }
    answer = parts.admin.post("/connections/new/", data={**about, **fields})
    assert answer.status_code == 303, plain(answer.text)


def status(parts: Parts, slug: str) -> str:
    html = parts.admin.get("/connections/").text
    row = re.search(rf'<[^>]*id="connection-{slug}"[^>]*>', html)
    assert row, html
    return re.search(r'data-status="([a-z]*)"', row[0])[1]


@pytest.mark.parametrize("publisher", ["gemini-", "anthropic/"])
def test_a_streamed_turn_thinks_calls_a_tool_and_answers(vertex: Parts, publisher: str):
    chat = Chat(vertex, f"{publisher}thinking-tools", connection="vertex")
    page = Page(chat)
    chat.send("what time is it?")
    page.follow(lambda page: page.state == "done")
    kinds = [block.kind for message in page.messages() for block in message.blocks]
    assert kinds.count("tool") == 1
    assert "thinking" in kinds
    assert kinds[-1] == "text"
    assert "Done after 1 tool rounds." in page.text()
    assert page.rebuilds == 0
    # What went through the stream is what the database has.
    assert Page(chat).text() == page.text()
    # The next turn sends all of it back, signatures and all, to a fake that looks at them.
    chat.send("and now?")
    chat.wait_until_idle()
    assert chat.states() == ["done", "done"]
    assert all(turn["output_tokens"] > 0 for turn in chat.turns())


@pytest.mark.parametrize("publisher", ["gemini-", "anthropic/"])
def test_a_message_sent_mid_stream_is_steered_into_the_turn(vertex: Parts, publisher: str):
    chat = Chat(vertex, f"{publisher}tools-2-0.5s", connection="vertex")
    chat.send("go")
    chat.wait_for_reply()
    chat.send("and this")
    chat.wait_until_idle()
    assert [(one["text"], one["delivery"]) for one in chat.messages()] == [
        ("go", "sent"),
        ("and this", "delivered"),
    ]
    assert "You added: and this" in chat.reply(1)


@pytest.mark.parametrize("publisher", ["gemini-", "anthropic/"])
def test_stop_closes_the_stream_and_keeps_the_text(vertex: Parts, publisher: str):
    chat = Chat(vertex, f"{publisher}fast-30tps-300", connection="vertex")
    text = f"stop {publisher}"
    chat.send(text)
    chat.wait_for_reply()
    chat.post("stop")
    wait_for(lambda: vertex.requests_with(text)[-1]["end"] == "aborted", 5, "it is closed")
    chat.wait_until_idle()
    assert chat.states() == ["stopped"]
    assert chat.reply(1)


@pytest.mark.parametrize("publisher", ["gemini-", "anthropic/"])
def test_a_quota_that_is_used_up_is_said_so(vertex: Parts, publisher: str):
    chat = Chat(vertex, f"{publisher}err-quota", connection="vertex")
    chat.send("hello")
    chat.wait_until_idle()
    assert [turn["error_kind"] for turn in chat.turns()] == ["quota"]
    assert "no credit or quota left" in plain(vertex.admin.get(chat.url).text)


def test_one_token_serves_the_turns_of_a_worker(vertex: Parts):
    vertex.fakes.reset()
    for number in range(3):
        chat = Chat(vertex, "gemini-echo", connection="vertex")
        chat.send(f"hello {number}")
        chat.wait_until_idle()
        assert chat.reply(1) == f"hello {number}"
    assert vertex.fakes.requests(path="/google/token") == []


def test_a_key_that_google_took_back_fails_with_what_to_do(vertex: Parts):
    make(vertex, "Gone", service_account("deleted"))
    wait_for(lambda: status(vertex, "gone") == "failed", what="it failed")
    page = plain(vertex.admin.get("/connections/gone/").text)
    assert "The provider rejected this key." in page
    assert "it may have been deleted" in page


def test_a_file_of_another_kind_makes_no_connection_and_no_request(vertex: Parts):
    vertex.fakes.reset()
    for change in ({"type": "external_account"}, {"token_uri": vertex.fakes.google_token}):
        file = json.dumps({**json.loads(service_account()), **change})
        data = {
            "name": "Odd",
            "provider_type": "vertex",
            "auth_type": "service_account_file",
            "gcp_project_id": PROJECT,
            "gcp_region": "us-central1",
            "service_account_json": file,
        }
        answer = vertex.admin.post("/connections/new/", data=data)
        assert answer.status_code == 422
    assert vertex.fakes.requests() == []


def test_neither_key_nor_token_is_in_a_page_a_log_or_the_database(vertex: Parts):
    account = json.loads(service_account())
    secrets = [account["private_key_id"], account["private_key"].splitlines()[3], "ya29."]
    pages = "".join(
        vertex.admin.get(path).text
        for path in ("/connections/", "/connections/vertex/", "/connections/vertex/edit/")
    )
    stored = b"".join(
        file.read_bytes() for file in vertex.data.rglob("*") if file.is_file()
    ).decode("latin-1")
    for secret in secrets:
        assert secret not in pages
        assert secret not in vertex.output()
        assert secret not in stored
