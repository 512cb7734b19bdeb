"""The markup of every page, as everybody sees it: what the parser of the HTML standard complains
about, and what it lets pass though a person with a screen reader would stumble over it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest
from django.test import Client
from django.urls import reverse

from tests.test_routes import _read, make_clients, routes
from tests.world import World, make_world

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
INTERACTIVE = {"a", "button", "select", "textarea", "label", "details", "summary"}
HEADINGS = {f"h{level}": level for level in range(1, 7)}
REFERENCES = ("for", "aria-labelledby", "aria-describedby", "aria-controls", "popovertarget")


@pytest.fixture
def world(db: None, settings: Any) -> World:
    settings.MAIL_IS_SET_UP = True
    return make_world()


@pytest.fixture
def clients(world: World, client_for: Any) -> dict[str, Client]:
    return make_clients(world, client_for)


def complaints(html: str) -> list[str]:
    """What is wrong with a page, or with a fragment: one without a doctype."""
    whole = html.lstrip().lower().startswith("<!doctype")
    parser = html5lib.HTMLParser(namespaceHTMLElements=False)
    # A row or an option stands alone only within its parent.
    first = re.match(r"\s*<(tr|td|option|li)\b", html)
    around = {"tr": "tbody", "td": "tr", "option": "select"}.get(first[1] if first else "", "div")
    tree = parser.parse(html) if whole else parser.parseFragment(html, container=around)
    found = [
        f"line {place[0]}: {code} {data or ''}: {_line(html, place[0])}"
        for place, code, data in parser.errors
    ]
    return found + list(_stumbles(tree, whole=whole))


def _line(html: str, number: int) -> str:
    lines = html.splitlines()
    return lines[number - 1].strip()[:160] if 0 < number <= len(lines) else ""


def _stumbles(tree: Element, *, whole: bool) -> Iterator[str]:
    parents = {child: parent for parent in tree.iter() for child in parent}
    # A template's content is no part of the page until a script puts it there.
    inert = {inner for outer in tree.iter("template") for inner in outer.iter()}
    nodes = [node for node in tree.iter() if isinstance(node.tag, str) and node not in inert]

    ids = Counter(node.get("id") for node in nodes if node.get("id") is not None)
    yield from (
        f"{count} elements with the id {name!r}" for name, count in ids.items() if count > 1
    )
    yield from ("an empty id" for name in ids if not name.strip())
    labelled = {node.get("for") for node in nodes if node.tag == "label"}
    level = 0
    for node in nodes:
        above = list(_above(node, parents))
        if whole:
            for name in REFERENCES:
                for target in (node.get(name) or "").split():
                    if target not in ids:
                        yield f"{_tag(node)}: {name} names {target!r}, which isn't there"
        if node.tag in CONTROLS and not _is_silent(node) and not _is_named(node, labelled, above):
            yield f"{_tag(node)}: no label"
        if (node.tag in ("a", "button") and not _text(node)) and not node.get("aria-label"):
            yield f"{_tag(node)}: no text"
        if node.tag == "img" and node.get("alt") is None:
            yield f"{_tag(node)}: no alt"
        if _is_interactive(node):
            for outer in above:
                if outer.tag in ("a", "button") or (outer.tag == "label" and node.tag == "label"):
                    yield f"{_tag(node)} within {_tag(outer)}"
        if node.tag == "form" and any(outer.tag == "form" for outer in above):
            yield f"{_tag(node)} within a form"
        if node.tag in HEADINGS and not any(outer.tag == "dialog" for outer in above):
            if not _text(node):
                yield f"{_tag(node)}: an empty heading"
            if whole and HEADINGS[node.tag] > level + 1:
                yield f"{node.tag} {_text(node)!r} after a heading of level {level}"
            level = HEADINGS[node.tag]
    if whole:
        ones = [_text(node) for node in nodes if node.tag == "h1"]
        if len(ones) != 1:
            yield f"{len(ones)} h1: {ones}"
        if len([node for node in nodes if node.tag == "main"]) != 1:
            yield "not one <main>"
        title = next((node for node in nodes if node.tag == "title"), None)
        if title is None or not _text(title).split("·")[0].strip():
            yield "no title"


def _above(node: Element, parents: dict[Element, Element]) -> Iterator[Element]:
    while (node := parents.get(node)) is not None:
        yield node


def _is_silent(node: Element) -> bool:
    return node.tag == "input" and node.get("type") in ("hidden", "submit", "button", "reset")


def _is_named(node: Element, labelled: set[str | None], above: list[Element]) -> bool:
    return bool(
        node.get("aria-label")
        or node.get("aria-labelledby")
        or (node.get("id") and node.get("id") in labelled)
        or any(outer.tag == "label" for outer in above)
    )


def _is_interactive(node: Element) -> bool:
    if node.tag == "input":
        return node.get("type") != "hidden"
    return node.tag in INTERACTIVE and (node.tag != "a" or node.get("href") is not None)


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


def pages(world: World, client: Client) -> Iterator[tuple[str, str]]:
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
        response = client.get(address)
        if response.headers.get("content-type", "").startswith("text/html"):
            yield address, response.text
        else:
            _read(response)
    for address in WRONG:
        response = client.post(address, {"name": "", "api_key": "x y", "provider_type": "vertex"})
        if response.headers.get("content-type", "").startswith("text/html"):
            yield f"POST {address}", response.text


@pytest.mark.parametrize("person", PEOPLE)
def test_every_page_is_valid(world: World, clients: dict[str, Client], person: str):
    wrong, seen = {}, 0
    for address, html in pages(world, clients[person]):
        seen += 1
        if found := complaints(html):
            wrong[address] = found
    assert wrong == {}
    assert seen > 15


@pytest.mark.parametrize("page", ["setup", "patterns"])
def test_the_pages_nobody_else_asks_for_are_valid(db: None, client_for: Any, alice: Any, page: str):
    if page == "setup":
        alice.delete()
    address = {"setup": "/setup/", "patterns": "/patterns/"}[page]
    response = client_for(alice if page == "patterns" else None).get(address)
    assert response.status_code == 200
    assert complaints(response.text) == []


SHELL = (
    "<!doctype html><html lang=en><head><title>x</title></head><body><main>{}</main></body></html>"
)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<h1>a</h1><p id=x></p><p id=x></p>", "2 elements with the id 'x'"),
        ("<h1>a</h1><input name=q>", "no label"),
        ("<h1>a</h1><label for=y>y</label>", "which isn't there"),
        ("<h1>a</h1><a href=/><button>b</button></a>", "within <a"),
        ("<h1>a</h1><h1>b</h1>", "2 h1"),
        ("<h1>a</h1><h3>b</h3>", "h3 'b' after"),
        ("<h1>a</h1><button><svg></svg></button>", "no text"),
        ("<h1>a</h1><p><div></p></div>", "unexpected-end-tag"),
        ("<h1>a</h1><img src=x>", "no alt"),
    ],
)
def test_what_is_wrong_is_found(body: str, told: str):
    assert told in " ".join(complaints(SHELL.format(body)))


def test_what_is_right_passes():
    body = "<h1>a</h1><h2>b</h2><label>c <input name=q></label><a href=/>d</a>"
    assert complaints(SHELL.format(body)) == []
