"""The page that gives connections as a file."""

from __future__ import annotations

import html
import json
import re

import pytest

from tests.builders import KEY, give_access, make_connection, make_workspace
from workspaces.models import AuditEvent

pytestmark = pytest.mark.django_db

URL = "/connections/export/"


@pytest.fixture
def client(alice, client_for):
    return client_for(alice)


@pytest.fixture
def three():
    """One of each kind: everywhere, in one generation only, nowhere but here."""
    make_connection("one", is_default=True)
    make_connection(
        "keyed", provider_type="bedrock", auth_type="api_key", base_url="", aws_region="us-east-1"
    )
    make_connection("lent", provider_type="anthropic", auth_type="environment", base_url="")


def slugs(answer) -> list[str]:
    assert answer.status_code == 200
    assert answer.headers["Content-Disposition"].startswith("attachment")
    return [row["slug"] for row in json.loads(answer.content)["llmConnections"]]


def left_out(answer) -> list[str]:
    return re.findall(r'<li><span class="mono">(.*?)</span>: ', html.unescape(answer.text))


def test_the_file_holds_every_connection_and_no_secret(client, alice):
    make_connection("one")
    make_connection("two")
    answer = client.post(URL)
    assert slugs(answer) == ["one", "two"]
    assert KEY not in answer.content.decode()
    assert AuditEvent.objects.filter(action="connection.export", actor=alice).count() == 1


def test_looking_at_the_page_takes_nothing(client, three):
    for query in ("", "?generation=pi", "?generation=reference&which=chosen", "?generation=x"):
        assert client.get(URL + query).status_code == 200
    assert not AuditEvent.objects.exists()


def test_what_a_generation_has_no_place_for_is_said_before_and_left_out(client, three):
    assert left_out(client.get(URL)) == []
    assert slugs(client.post(URL, {"generation": "own"})) == ["one", "keyed", "lent"]

    page = client.get(URL, {"generation": "reference"})
    assert left_out(page) == ["lent"]
    assert "Craft Agents up to 0.5.0 has no place for" in page.text
    answer = client.post(URL, {"generation": "reference"})
    assert slugs(answer) == ["one", "keyed"]
    assert json.loads(answer.content)["llmConnections"][1]["authType"] == "bearer_token"

    assert left_out(client.get(URL, {"generation": "pi"})) == ["keyed", "lent"]
    answer = client.post(URL, {"generation": "pi"})
    assert slugs(answer) == ["one"]
    assert json.loads(answer.content)["llmConnections"][0]["providerType"] == "pi_compat"
    event = AuditEvent.objects.filter(action="connection.export").order_by("at").last()
    assert event.details == {"connections": 1, "generation": "pi"}


def test_for_htmx_only_what_is_left_out_comes_back(client, three):
    answer = client.get(URL, {"generation": "pi"}, headers={"HX-Request": "true"})
    assert answer.text.lstrip().startswith('<div id="left-out"')
    assert left_out(answer) == ["keyed", "lent"]


def test_chosen_ones_go_without_the_others_and_their_defaults(client, three):
    support, quiet = make_workspace("support"), make_workspace("quiet")
    from connections.models import Connection

    give_access(support, Connection.objects.get(slug="keyed"), is_default=True)
    give_access(quiet, Connection.objects.get(slug="one"), is_default=True)
    asked = {"generation": "own", "which": "chosen", "slug": ["keyed", "no-such", "\x00"]}
    answer = client.post(URL, {**asked, "workspaces": "on"})
    assert slugs(answer) == ["keyed"]
    document = json.loads(answer.content)
    assert "defaultLlmConnection" not in document
    defaults = {w["slug"]: w["defaults"] for w in document["workspaces"]}
    assert defaults == {"quiet": {}, "support": {"defaultLlmConnection": "keyed"}}
    assert json.loads(client.post(URL, asked).content)["workspaces"] == []


def test_without_the_workspaces_there_are_none(client, three):
    make_workspace("support")
    document = json.loads(client.post(URL, {"which": "all"}).content)
    assert document["workspaces"] == []
    assert len(json.loads(client.post(URL, {}).content)["workspaces"]) == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"which": "chosen"}, "Choose at least one connection."),
        ({"which": "chosen", "slug": "", "generation": "x"}, "Choose one of the versions."),
        ({"generation": "\x00"}, "Choose one of the versions."),
        ({"generation": ""}, "Choose one of the versions."),
    ],
)
def test_what_makes_no_sense_is_said(client, three, data, sentence):
    answer = client.post(URL, data)
    assert answer.status_code == 422
    assert sentence in answer.text
    assert not AuditEvent.objects.exists()


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_member_may_not(bob, client_for, method):
    assert getattr(client_for(bob), method)(URL).status_code == 403
