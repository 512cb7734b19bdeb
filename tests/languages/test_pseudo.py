"""Every page in a language that doesn't exist: each text of ours stands in ⟦brackets⟧, so that what
stands outside is data, or was never marked. It is written from right to left, as Hebrew is, from
which Django's own texts come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import polib
import pytest
from django.apps import apps
from django.test import Client

from config import guide
from connections import presets
from tests.languages.test_catalogs import CATALOGS
from tests.test_html import PEOPLE, pages
from tests.test_routes import make_clients
from tests.world import World, make_world

PSEUDO = "he"
_BRACKETS = re.compile(r"⟦[^⟦⟧]*⟧")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_BETWEEN = re.compile(r"[\s,;:·–—()/“”\"'|→+…]+")
_SPOKEN = ("alt", "aria-description", "aria-label", "label", "placeholder", "title", "data-label")
# Neither text of ours nor data: names, signs, formats, addresses.
NO_TEXTS = """
Patchbay CSV JSON UTC MCP MB KB GB ms XHR Markdown K M UUID URL html js https http
llmConnections Authorization Bearer Name Value English Deutsch Pseudo Django
x-api-key max_completion_tokens https://api.anthropic.com
https://bedrock-runtime.us-east-1.amazonaws.com https://us-central1-aiplatform.googleapis.com
"""
# Names of products and models, with which a form is filled in.
PRESETS = "\n".join(map(str, presets.PRESETS.values()))
# The guide is in English in every language.
GUIDE = "\n".join(page.title for page in guide.pages().values())


@pytest.fixture
def pseudo(tmp_path: Path, settings: Any) -> None:
    folder = tmp_path / PSEUDO / "LC_MESSAGES"
    folder.mkdir(parents=True)
    catalog = polib.pofile(str(CATALOGS[0]))
    catalog.metadata["Language"] = PSEUDO
    for entry in catalog:
        if entry.msgid_plural:
            entry.msgstr_plural = {0: wrapped(entry.msgid), 1: wrapped(entry.msgid_plural)}
        else:
            entry.msgstr = wrapped(entry.msgid)
    catalog.save_as_mofile(str(folder / "django.mo"))
    settings.LANGUAGES = [("en", "English"), (PSEUDO, "Pseudo")]
    settings.LOCALE_PATHS = [tmp_path]


def wrapped(text: str) -> str:
    if text == "j F":  # the form of a date
        return text
    if re.fullmatch(r"\w+,\w+", text):  # the two of `yesno`
        return ",".join(f"⟦{part}⟧" for part in text.split(","))
    return f"⟦{text}⟧" if not text.endswith("\n") else f"⟦{text[:-1]}⟧\n"


@pytest.fixture
def world(db: None, settings: Any) -> World:
    settings.MAIL_IS_SET_UP = True
    return make_world()


def data() -> str:
    """All words of the database."""
    found: list[str] = []

    def take(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                found.append(str(key))
                take(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                take(inner)
        elif value is not None:
            found.append(str(value))

    for model in apps.get_models():
        for row in model._default_manager.values():
            take({name: value for name, value in row.items() if name not in ("value", "password")})
    return "\n".join(found)


def texts(html: str) -> Iterator[str]:
    # What stands in the midst of a text.
    tree = html5lib.parse(re.sub("</?(mark|time)[^>]*>", "", html), namespaceHTMLElements=False)
    yield from _texts(tree)


def _texts(node: Element) -> Iterator[str]:
    if not isinstance(node.tag, str) or node.tag in ("script", "style", "code", "pre", "kbd"):
        return
    if node.get("lang") == "en":
        return
    for name in _SPOKEN:
        if node.get(name):
            yield node.get(name) or ""
    yield node.text or ""
    for child in node:
        yield from _texts(child)
        yield child.tail or ""


def strange(text: str, known: str) -> str:
    """What of a text is neither ours nor data; "" for nothing."""
    rest = text
    while (inner := _BRACKETS.sub(" ", rest)) != rest:
        rest = inner
    rest = " ".join(rest.split())
    if not _LETTERS.search(rest) or rest in known:
        return ""
    words = [word.strip(".!?%$“”[]{}=") for word in _BETWEEN.split(rest)]
    odd = [word for word in words if _LETTERS.search(word) and word not in known]
    return rest if odd else ""


@pytest.mark.parametrize("person", PEOPLE)
def test_every_text_of_a_page_is_translated(
    world: World, client_for: Any, pseudo: None, person: str
):
    clients = make_clients(world, client_for)
    client: Client = clients[person]
    client.defaults["HTTP_ACCEPT_LANGUAGE"] = PSEUDO
    found: dict[str, set[str]] = {}
    seen = 0
    for address, html in pages(world, client):
        if 'lang="he" dir="rtl"' not in html[:500]:
            continue  # a fragment of a page, or Django's own
        if address == "/patterns/":
            continue  # in English, for those who work on the pages
        seen += 1
        known = f"{data()}\n{NO_TEXTS}\n{PRESETS}\n{GUIDE}\n{address}"
        for text in texts(html):
            if odd := strange(text, known):
                found.setdefault(odd, set()).add(address)
    assert {text: sorted(at)[:2] for text, at in found.items()} == {}
    assert seen > 12


def test_an_untranslated_text_is_found():
    assert strange("⟦Save⟧ profile", "alice") == "profile"
    assert strange("alice ⟦of ⟦two⟧⟧", "alice") == ""
