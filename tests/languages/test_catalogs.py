"""The catalogs: whole, well formed, compiled; and no text of ours that isn't in them."""

from __future__ import annotations

import ast
import gettext
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import polib
import pytest
from django.conf import settings

from config.management.commands.makemessages import Command
from tests.run import in_ci

ROOT = Path(__file__).resolve().parents[2]
CATALOGS = sorted((ROOT / "locale").glob("*/LC_MESSAGES/django.po"))
APPS = ("config", "connections", "sessions", "workspaces")
_PLACES = re.compile(r"%\(\w+\)[sd]|%%|\{\w*\}|</?\w+")


def test_every_language_has_a_catalog_but_the_one_of_the_source():
    assert {path.parts[-3] for path in CATALOGS} == set(dict(settings.LANGUAGES)) - {"en"}


@pytest.mark.parametrize("path", CATALOGS, ids=lambda path: path.parts[-3])
def test_a_catalog_is_whole_and_its_places_are_those_of_the_source(path: Path):
    catalog = polib.pofile(str(path))
    assert [entry.msgid for entry in catalog.untranslated_entries()] == []
    assert [entry.msgid for entry in catalog.fuzzy_entries()] == []
    assert [entry.msgid for entry in catalog.obsolete_entries()] == []
    assert [wrong for entry in catalog if (wrong := odd(entry))] == []


def odd(entry: polib.POEntry) -> str:
    """What is wrong with a translation, "" for nothing."""
    texts = list(entry.msgstr_plural.values()) if entry.msgid_plural else [entry.msgstr]
    singular = set(_PLACES.findall(entry.msgid))
    asked = singular | set(_PLACES.findall(entry.msgid_plural or ""))
    for text in texts:
        has = set(_PLACES.findall(text))
        if not text.strip():
            return f"empty: {entry.msgid}"
        # A singular may say “one” for the number.
        if has - asked or (asked if not entry.msgid_plural else asked & singular) - has:
            return f"other places: {entry.msgid} → {text}"
        if (text[0] == "\n", text[-1] == "\n") != (entry.msgid[0] == "\n", entry.msgid[-1] == "\n"):
            return f"other line ends: {entry.msgid}"
        if "..." in text or '"' in re.sub(r"<[^>]*>|\{[^}]*\}", "", text):
            return f"plain marks for typographic ones: {text}"
    return ""


@pytest.mark.parametrize(
    ("msgid", "msgstr"),
    [("%(n)s tokens", "Token"), ("Save", ""), ("a %(x)s", "%(y)s"), ("Wait", "Warten...")],
)
def test_what_is_odd_is_found(msgid: str, msgstr: str):
    assert odd(polib.POEntry(msgid=msgid, msgstr=msgstr))


@pytest.mark.parametrize("path", CATALOGS, ids=lambda path: path.parts[-3])
def test_what_runs_is_what_is_written(path: Path):
    """Else: `make messages`."""
    with path.with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for entry in polib.pofile(str(path)):
        for number, text in (entry.msgstr_plural or {1: entry.msgstr}).items():
            n = 1 if int(number) == 0 else 2
            if entry.msgid_plural:
                assert compiled.ngettext(entry.msgid, entry.msgid_plural, n) == text
            else:
                assert compiled.gettext(entry.msgid) == text


def test_the_catalogs_hold_every_text_of_the_source(tmp_path: Path):
    """Else: `make messages`, and translate what is new."""
    if not shutil.which("xgettext"):
        (pytest.fail if in_ci() else pytest.skip)("no gettext: xgettext isn't there")
    for name in (*APPS, "templates", "locale", "manage.py"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    subprocess.run(
        [sys.executable, "manage.py", "makemessages"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PATCHBAY_DATA_DIR": str(tmp_path / "data")},
        check=True,
        capture_output=True,
    )
    for path in CATALOGS:
        found = polib.pofile(str(tmp_path / path.relative_to(ROOT)))
        kept = polib.pofile(str(path))
        ours = {(entry.msgid, entry.msgid_plural) for entry in kept}
        assert {(entry.msgid, entry.msgid_plural) for entry in found} == ours


def test_every_name_of_gettext_is_one_that_is_looked_for():
    known = {
        "_",
        "gettext",
        "gettext_noop",
        "ngettext",
        "gettext_lazy",
        "ngettext_lazy",
        "get_language",
    }
    known |= {"pgettext", "npgettext", "pgettext_lazy", "override"}
    known |= {one.removeprefix("--keyword=") for one in Command.xgettext_options}
    for path in (found for app in APPS for found in (ROOT / app).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "django.utils.translation":
                for alias in node.names:
                    assert (alias.asname or alias.name) in known, path


# -- what is marked --------------------------------------------------------------------------------

_TAG = re.compile(r"({%.*?%}|{{.*?}}|{#.*?#})", re.DOTALL)
_SPOKEN = {"alt", "aria-description", "aria-label", "label", "placeholder", "summary", "title"}
_LETTERS = re.compile(r"[A-Za-z]{2,}")
# Names, formats, and the page of samples for those who work on the pages, which is in English.
_NO_TEXTS = re.compile(r'Patchbay|placeholder=\{"llmConnections": \[…\]\}')
_UNMARKED = {"patterns.html"}


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.within = tag if tag in ("script", "style") else ""
        for name, value in attrs:
            if (name in _SPOKEN or name.startswith("data-label")) and _LETTERS.search(value or ""):
                self.found.append(f"{name}={value}")

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if not self.within and _LETTERS.search(data):
            self.found.append(data.strip())


def unmarked(template: str) -> list[str]:
    """The texts of a template that no translation reaches; attributes that are put together and
    literals handed to our own components too."""
    parts, until = [], ""
    literals = []
    for part in _TAG.split(template):
        name = part[2:-2].split()[0] if part.startswith("{%") else ""
        if until:
            until = "" if name == until else until
        elif name in ("blocktranslate", "comment"):
            until = f"end{name}"
        elif part.startswith("{%") and name not in (
            "translate",
            "load",
            "extends",
            "url",
            "static",
        ):
            literals += re.findall(r'\b(?:title|label|text|caption|note|help)="([A-Z][^"]+)"', part)
        elif not part.startswith(("{%", "{{", "{#")):
            parts.append(part)
    page = re.sub(r"^(?:[^<]*data-width=\"\w+\")", "", "".join(parts))
    texts = _Texts()
    texts.feed(page)
    return [t for t in (*texts.found, *literals) if _LETTERS.search(_NO_TEXTS.sub("", t))]


def templates() -> Iterator[Path]:
    for path in sorted((ROOT / "templates").rglob("*.html")):
        if path.name not in _UNMARKED:
            yield path


def test_every_text_of_a_template_is_marked():
    found = {str(path.relative_to(ROOT)): unmarked(path.read_text()) for path in templates()}
    assert {name: texts for name, texts in found.items() if texts} == {}


@pytest.mark.parametrize(
    "template",
    [
        "<p>Save</p>",
        '<a title="Look here">{{ x }}</a>',
        '{% include "components/badge.html" with label="New" only %}',
        "<p>{% translate 'Yes' %} and no</p>",
        '<td data-label="Provider"></td>',
    ],
)
def test_an_unmarked_text_is_found(template: str):
    assert unmarked(template)


def test_a_marked_text_passes():
    assert (
        unmarked('<p title="{% translate "Yes" %}">{% blocktranslate %}No{% endblocktranslate %}')
        == []
    )


def test_scripts_say_nothing_themselves():
    """Their words come from the page, in its language."""
    spoken = re.compile(
        r"(?:textContent|innerText|title|ariaLabel|placeholder|alt)\s*[=:]\s*[\"'`]([^\"'`]*)"
    )
    for path in (ROOT / "static" / "js").glob("*.js"):
        said = [text for text in spoken.findall(path.read_text()) if _LETTERS.search(text)]
        assert said == [], path


def test_no_text_is_translated_while_a_module_is_imported():
    """It would stay in the language of that moment: there `gettext_lazy`."""
    now = {"gettext", "ngettext", "pgettext"}
    for path in (found for app in APPS for found in (ROOT / app).rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "django.utils.translation"
            for alias in node.names
            if alias.name in now
        }
        assert [call.lineno for call in _at_import(tree, names)] == [], path


def _at_import(node: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for default in (*child.args.defaults, *child.args.kw_defaults, *child.decorator_list):
                if default is not None:
                    yield from _at_import(ast.Expression(default), names)
            continue
        if isinstance(child, ast.Lambda):
            continue
        if isinstance(child, ast.Call) and getattr(child.func, "id", "") in names:
            yield child
        yield from _at_import(child, names)


def test_a_text_that_is_translated_at_import_is_found():
    source = "X = [_('a')]\ndef f(x=_('b')): return _('c')\nclass C: y = _('d')"
    assert [call.lineno for call in _at_import(ast.parse(source), {"_"})] == [1, 2, 3]
