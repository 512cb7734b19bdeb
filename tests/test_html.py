"""The markup of every page, as everybody sees it: what the checker of the W3C complains about, and
what it lets pass though a person with a screen reader would stumble over it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from sessions.models import ChatSession
from tests import validator
from tests.e2e import every_page_rows, hostile_rows
from tests.run import in_ci
from tests.test_routes import _read, make_clients, routes
from tests.world import World, make_world
from workspaces.models import Erasure

PEOPLE = ("anonymous", "viewer", "owner", "wadmin", "alice")
# What a page shows only when asked: filters, presets, a form that was filled in wrongly.
ASKED = (
    "/connections/new/?preset=openrouter",
    "/connections/new/?preset=bedrock",
    "/connections/new/?preset=vertex",
    "/connections/new/?preset=claude-oauth",
    "/connections/new/?like=local",
    "/connections/?q=nothing+like+it",
    "/connections/?show=failed",
    "/start/ollama/",
    "/start/vertex/",
    "/start/claude-oauth/",
    "/w/support/?q=nothing+like+it",
    "/audit/?q=nothing+like+it",
    "/palette/?q=e",
    "/palette/?q=nothing+like+it",
    "/people/?q=nothing+like+it",
    "/people/?show=nonsense",
    "/nothing/",
)
WRONG = (
    *("/connections/new/", "/connections/import/", "/accounts/login/", "/w/support/members/"),
    *("/people/invite/", "/w/support/settings/", "/start/anthropic/", "/start/vllm/"),
)

CONTROLS = {"input", "select", "textarea"}
REFERENCES = ("aria-labelledby", "aria-describedby", "aria-controls", "popovertarget")


def stumbles(html: str) -> list[str]:
    """What is wrong with a page, or with a fragment, that the checker doesn't look at."""
    whole = validator.is_whole(html)
    parse = html5lib.parse if whole else html5lib.parseFragment
    return list(_stumbles(parse(html, namespaceHTMLElements=False), whole=whole))


def _stumbles(tree: Element, *, whole: bool) -> Iterator[str]:
    parents = {child: parent for parent in tree.iter() for child in parent}
    # A template's content is no part of the page until a script puts it there.
    inert = {inner for outer in tree.iter("template") for inner in outer.iter()}
    nodes = [node for node in tree.iter() if isinstance(node.tag, str) and node not in inert]

    ids = {node.get("id") for node in nodes}
    labelled = {node.get("for") for node in nodes if node.tag == "label"}
    for node in nodes:
        if whole:
            for name in REFERENCES:
                for target in (node.get(name) or "").split():
                    if target not in ids:
                        yield f"{_tag(node)}: {name} names {target!r}, which isn't there"
        above = _above(node, parents)
        if node.tag in CONTROLS and not _is_silent(node) and not _is_named(node, labelled, above):
            yield f"{_tag(node)}: no label"
        if (node.tag in ("a", "button") and not _text(node)) and not node.get("aria-label"):
            yield f"{_tag(node)}: no text"
    if whole:
        ones = [_text(node) for node in nodes if node.tag == "h1"]
        if len(ones) != 1:
            yield f"{len(ones)} h1: {ones}"
        if "main" not in {node.tag for node in nodes}:
            yield "no <main>"
        title = next((node for node in nodes if node.tag == "title"), None)
        if title is None or not _text(title).split("·")[0].strip():
            yield "no title"


def _above(node: Element, parents: dict[Element, Element]) -> Iterator[Element]:
    while (node := parents.get(node)) is not None:
        yield node


def _is_silent(node: Element) -> bool:
    return node.tag == "input" and node.get("type") in ("hidden", "submit", "button", "reset")


def _is_named(node: Element, labelled: set[str | None], above: Iterator[Element]) -> bool:
    return bool(
        node.get("aria-label")
        or node.get("aria-labelledby")
        or (node.get("id") and node.get("id") in labelled)
        or any(outer.tag == "label" for outer in above)
    )


def _text(node: Element) -> str:
    images = "".join(image.get("alt", "") for image in node.iter("img"))
    # An icon with a label speaks through it.
    drawn = "".join(part.get("aria-label") or "" for part in node.iter() if part is not node)
    return f"{''.join(node.itertext())}{images}{drawn}".strip()


def _tag(node: Element) -> str:
    marks = " ".join(
        f'{name}="{node.get(name)}"' for name in ("id", "name", "class", "href") if node.get(name)
    )
    return f"<{node.tag} {marks}>"


def pages(world: World, client: Client, **headers: str) -> Iterator[tuple[str, str]]:
    """(address, markup) of all that answers with HTML, errors too."""
    addresses = [
        reverse(name, args=attempt.args)
        for name, route in routes(world).items()
        for attempt in route.tries
        if "GET" in route.methods and name not in ("account_logout",)
    ]
    join = reverse("members:accept", args=["token-of-the-invitation-to-support"])
    logout = reverse("account_logout")
    for address in dict.fromkeys([*addresses, *ASKED, join, logout]):
        response = client.get(address, headers=headers)
        if response.headers.get("content-type", "").startswith("text/html"):
            yield address, response.text
        else:
            _read(response)
    for address in WRONG:
        data = {"name": "", "api_key": "x y", "provider_type": "vertex"}
        response = client.post(address, data, headers=headers)
        if response.headers.get("content-type", "").startswith("text/html"):
            yield f"POST {address}", response.text


def everything(client_for: Any) -> Iterator[tuple[str, str]]:
    """(who and where, markup) of every page and fragment, from an empty database on."""
    yield "setup", client_for(None).get("/setup/").text
    world = make_world()
    clients = make_clients(world, client_for)
    for person in PEOPLE:
        for address, html in pages(world, clients[person]):
            yield f"{person} {address}", html
    for person in ("owner", "alice"):
        for address, html in pages(world, clients[person], hx_request="true"):
            yield f"htmx of {person} {address}", html
    # What isn't so at first: a deletion under way, and sessions that a retention would end.
    alice, left = clients["alice"], world.left.chat
    Erasure.objects.create(user=left.owner, total=2, left=1)
    yield "an erasure", alice.get(f"/people/{left.owner_id}/").text
    yield "its progress", alice.get(f"/people/{left.owner_id}/progress/").text
    then = timezone.now() - dt.timedelta(days=100)
    ChatSession.objects.filter(pk=left.pk).update(updated_at=then)
    form = {"name": "Support", "retention_days": "90"}
    yield "a preview", clients["wadmin"].post("/w/support/settings/", form).text
    own, hostile = every_page_rows.own_sessions(world), hostile_rows.make()
    for address in ("/patterns/", *own.values(), *hostile["pages"]):
        yield address, alice.get(address).text


def test_every_page_is_valid(db: None, settings: Any, client_for: Any, tmp_path: Path):
    settings.MAIL_IS_SET_UP = True
    first = {html: name for name, html in reversed([*everything(client_for)])}
    found = {name: html for html, name in first.items()}
    assert len(found) > 200
    assert {name: wrong for name, html in found.items() if (wrong := stumbles(html))} == {}
    if lacking := validator.missing():
        (pytest.fail if in_ci() else pytest.skip)(f"no {lacking}")
    wrong = validator.findings(found, tmp_path)
    assert wrong == {}, json.dumps(wrong, indent=1, ensure_ascii=False)


SHELL = (
    "<!doctype html><html lang=en><head><title>x</title></head><body><main>{}</main></body></html>"
)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<h1>a</h1><input name=q>", "no label"),
        ("<h1>a</h1><p aria-describedby=y>y</p>", "which isn't there"),
        ("<h1>a</h1><h1>b</h1>", "2 h1"),
        ("<h1>a</h1><button><svg></svg></button>", "no text"),
    ],
)
def test_what_makes_people_stumble_is_found(body: str, told: str):
    assert told in " ".join(stumbles(SHELL.format(body)))


def test_what_is_invalid_is_found_and_what_is_right_passes(tmp_path: Path):
    if lacking := validator.missing():
        (pytest.fail if in_ci() else pytest.skip)(f"no {lacking}")
    right = SHELL.format("<h1>a</h1><h2>b</h2><label>c <input name=q hx-get=/></label>")
    bodies = {
        "right": right,
        "a row": "<tr><td><label for=elsewhere>a</label></td></tr>",
        "twice": SHELL.format("<h1>a</h1><p id=x></p><p id=x></p>"),
        "within": SHELL.format("<h1>a</h1><a href=/><button>b</button></a>"),
        "skipped": SHELL.format("<h1>a</h1><h3>b</h3>"),
        "unclosed": SHELL.format("<h1>a</h1><p><div></p></div>"),
        "a fragment": "<p><img src=x></p>",
    }
    found = validator.findings(bodies, tmp_path)
    assert set(found) == set(bodies) - {"right", "a row"}
    assert "Duplicate ID “x”" in found["twice"][0]
    assert stumbles(right) == []
