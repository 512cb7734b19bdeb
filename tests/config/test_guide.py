"""The guide: every page, link and picture is there, in the files and in the product."""

from __future__ import annotations

import re

import pytest
from django.conf import settings
from django.template import engines
from django.test import Client
from django.utils import translation

from config import guide
from sessions.render import anchor, render_document
from tests import screenshots
from workspaces.models import User

FILES = sorted(guide.FOLDER.glob("*.md"))
PICTURES = sorted((guide.FOLDER / "pictures").iterdir())
# Fenced code says nothing of its own.
TEXTS = {path: re.sub(r"(?ms)^```.*?^```", "", path.read_text()) for path in FILES}
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)]+)\)")
HELP = re.compile(r"""{% read_more "([^"]+)"(?: "([^"]+)")? %}""")


def anchors(name: str) -> set[str]:
    text = TEXTS[guide.FOLDER / f"{name or 'README'}.md"]
    return {anchor(heading) for heading in re.findall(r"(?m)^#{2,6} (.*)$", text)}


def test_the_index_names_every_page():
    named = [f"{name or 'README'}.md" for name in guide.pages()]
    assert sorted(named) == [path.name for path in FILES]


def test_every_link_and_picture_of_a_page_is_there():
    wrong = []
    for path, text in TEXTS.items():
        for picture, to in LINK.findall(text):
            name, _hash, section = to.partition("#")
            if picture or not name.endswith(".md"):
                is_there = bool(picture) and (guide.FOLDER / to) in PICTURES
            else:
                page = name.removesuffix(".md").removeprefix("README")
                is_there = page in guide.pages() and (not section or section in anchors(page))
            if not is_there:
                wrong.append(f"{path.name}: {to}")
    assert wrong == []


def test_no_picture_is_there_for_nothing_and_all_are_small():
    shown = {
        (path.parent / to).resolve()
        for path in (*FILES, settings.BASE_DIR / "README.md")
        for picture, to in LINK.findall(path.read_text())
        if picture
    }
    assert {path.resolve() for path in PICTURES} == shown
    assert {path.suffix for path in PICTURES} == {".png"}
    assert {path.stem for path in PICTURES} == {screenshots.FIRST, *screenshots.PICTURES}
    assert sum(path.stat().st_size for path in PICTURES) < 1_500_000


def test_every_help_link_leads_to_a_section_of_the_guide():
    wrong, found = [], 0
    for path in (settings.BASE_DIR / "templates").rglob("*.html"):
        text = path.read_text()
        links = HELP.findall(text)
        assert len(links) == text.count("{% read_more"), path  # none is left unread
        found += len(links)
        for page, section in links:
            if page not in guide.pages() or (section and section not in anchors(page)):
                wrong.append(f"{path.name}: {page} {section}")
    assert wrong == []
    assert found > 20


@pytest.fixture
def bob(db: None, client: Client) -> User:
    bob = User.objects.create_user("bob@example.org")
    client.force_login(bob)
    return bob


def test_every_page_is_read_in_the_product(bob: User, client: Client):
    for page in guide.pages().values():
        html = client.get(page.url).text
        assert html.count(f'<h1 lang="en">{page.title}</h1>') == 1
        ids = re.findall(r'\bid="([^"]+)"', html)
        assert len(ids) == len(set(ids)), page.name
        article = html[html.index("<article") : html.index("</article>")]
        # What is written as Markdown has become HTML, and no file's name is left in a link.
        assert not re.search(r"\]\(|\.md[\"#]|href=\"\"", article), page.name
        for href in re.findall(r'href="(/[^"#]*)', article):
            assert client.get(href).status_code == 200, href
    assert client.get("/help/no-such/").status_code == 404
    assert client.get("/help/README/").status_code == 404


def test_pages_follow_each_other(bob: User, client: Client):
    names = list(guide.pages())
    html = client.get(f"/help/{names[1]}/").text
    assert 'rel="prev"' not in html
    assert f'href="/help/{names[2]}/" rel="next"' in html
    html = client.get(f"/help/{names[-1]}/").text
    assert f'href="/help/{names[-2]}/" rel="prev"' in html
    assert 'rel="next"' not in html


def test_a_picture_is_a_static_file_with_its_size(bob: User, client: Client):
    html = guide.pages()["health"].html
    picture = r'<img src="/static/guide/health\.png" alt="[^"]+" width="\d+" height="\d+">'
    assert re.search(picture, html)


def test_who_reads_another_language_is_told(bob: User, client: Client):
    told = "Die Anleitung ist auf Englisch"
    assert told in client.get("/help/", headers={"accept-language": "de"}).text
    html = client.get("/help/audit/", headers={"accept-language": "de"}).text
    assert told in html
    assert '<article class="prose" lang="en">' in html
    assert told not in client.get("/help/").text
    with translation.override("de"):
        more = engines["django"].from_string('{% read_more "audit" %}').render()
    assert "Mehr dazu" in more
    assert '<span class="visually-hidden" lang="en">: Audit</span>' in more


def test_the_palette_finds_a_page(bob: User, client: Client):
    page = client.get("/palette/", {"q": "replace a sec"}, headers={"hx-request": "true"}).text
    assert "/help/replace-a-secret/" in page
    # Into which nothing was typed yet, it offers the index alone.
    page = client.get("/palette/", headers={"hx-request": "true"}).text
    assert "/help/" in page
    assert "/help/replace-a-secret/" not in page


def test_a_text_of_ours_passes_an_allow_list_too():
    text = "## A *b*, c\n\n<script>x</script> [x](javascript:x) [y](page.md) ![p](p.png)\n"
    size = guide.Picture("/static/p.png", 3, 4)
    html = render_document(text, link=lambda href: f"/{href}", picture=lambda src: size)
    assert '<h2 id="a-b-c">A <em>b</em>, c</h2>' in html
    assert "&lt;script&gt;" in html
    assert '<img src="/static/p.png" alt="p" width="3" height="4">' in html
    unsafe = render_document("[x](a)", link=lambda href: "javascript:x", picture=lambda src: size)
    assert "javascript" not in unsafe
