"""A connection to Vertex AI on the running product; what every provider does is in `test_table`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.fakes.server import FakeProviders
from tests.fakes.vertex import PROJECT, service_account
from tests.system.harness import wait_for
from tests.system.page import plain
from tests.system.parts import Chat, Parts


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
        "models": "gemini-echo",
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


def test_one_token_serves_the_turns_of_a_worker(vertex: Parts):
    vertex.fakes.reset()
    for number in range(3):
        chat = Chat(vertex, "gemini-echo", connection="vertex")
        chat.send(f"hello {number}")
        chat.wait_until_idle()
        assert chat.reply(1) == f"hello {number}"
    assert vertex.fakes.requests(path="/google/token") == []


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
