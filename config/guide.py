"""The user guide, read inside the product: the Markdown files of docs/guide, one a task.

README.md there is the index: its links say which pages there are, and in which order. Links between
pages are of the files' names, so they work in a viewer of the repository as well. The pictures are
static files (`settings.STATICFILES_DIRS`).
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.templatetags.static import static
from django.urls import reverse
from django.utils.safestring import SafeString
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from sessions.render import Picture, render_document

FOLDER: Path = settings.BASE_DIR / "docs" / "guide"
_LISTED = re.compile(r"\]\(([a-z0-9-]+)\.md\)")
_PAGE = re.compile(r"([a-z0-9-]+)\.md(#.*)?")


@dataclass(frozen=True, slots=True)
class GuidePage:
    """`name` is that of the file, and "" of the index; `text` is what stands below the title."""

    name: str
    title: str
    text: str

    @property
    def url(self) -> str:
        return address(self.name)

    @property
    def html(self) -> SafeString:
        return _html(self)


def address(name: str) -> str:
    return reverse("help_page", args=[name]) if name else reverse("help")


# The files are part of the release: they don't change while a process runs.
@functools.cache
def pages() -> dict[str, GuidePage]:
    """By name, in the order of the index, which stands first."""
    index = _read("", FOLDER / "README.md")
    names = dict.fromkeys(_LISTED.findall(index.text))
    return {"": index} | {name: _read(name, FOLDER / f"{name}.md") for name in names}


def _read(name: str, path: Path) -> GuidePage:
    title, _line, text = path.read_text(encoding="utf-8").partition("\n")
    return GuidePage(name, title.removeprefix("# ").strip(), text.strip() + "\n")


@functools.cache
def _html(page: GuidePage) -> SafeString:
    return render_document(page.text, link=_link, picture=_picture)


def _link(href: str) -> str:
    if match := _PAGE.fullmatch(href):
        return address(match[1]) + (match[2] or "")
    return reverse("help") if href == "README.md" else href


def _picture(src: str) -> Picture:
    """One of docs/guide/pictures; its size stands at the beginning of a PNG."""
    with (FOLDER / src).open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return Picture(static(f"guide/{Path(src).name}"), width, height)


@require_safe
def guide_index(request: HttpRequest) -> HttpResponse:
    return _show(request, pages()[""])


@require_safe
def guide_page(request: HttpRequest, page: str) -> HttpResponse:
    if page not in pages():
        raise Http404
    return _show(request, pages()[page])


def _show(request: HttpRequest, page: GuidePage) -> HttpResponse:
    listed = list(pages().values())
    place = listed.index(page)
    context = {
        "page": page,
        "pages": listed[1:],
        "before": listed[place - 1] if place > 1 else None,
        "after": listed[place + 1] if 0 < place < len(listed) - 1 else None,
        "crumbs": [{"label": _("Help"), "url": reverse("help")}, {"label": page.title}],
        "is_foreign": get_language() != "en",
    }
    return render(request, "guide.html", context)
