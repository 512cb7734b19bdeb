"""The Nu Html Checker of the W3C over many pages in one run, which takes seconds; started for each
of them, Java would take as long for every page. `make validator` fetches it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

JAR = Path(__file__).parent / "node_modules" / "vnu-jar" / "build" / "dist" / "vnu.jar"

# What it says and isn't to be mended.
FILTERS = (
    # htmx's own; as `data-hx-…` they would be valid, and every page longer.
    r"Attribute “hx-[a-z-]+” not allowed on element “\w+” at this point\.",
    # Characters that a person or a model wrote: they are shown as they are stored.
    r"Forbidden code point|Astral non-character|not a legal XML 1.0 character",
    # What a person typed wrongly is shown again to be mended.
    r"Bad value “.*” for attribute “value” on element “input”",
    # A reply's link is as the model wrote it; what becomes of an image names its host.
    r"URL includes credentials",
    # A line break in a title, which only the rows of a test have.
    r"is missing one or more of the following attributes: “multiple”, “type”",
    # A probe that failed at many places at once, which only the rows of a test do.
    r"“dt” name “Authentication”",
)
# Of a fragment: what it names, and the headings above its own, stand on the page it goes into.
FRAGMENT_FILTERS = (
    r"must point to an element in the same document",
    r"must refer to a (form|“datalist”) element",
    r"must be the ID of a non-hidden form control",
    r"The heading “h\d” .*follows|none of them has a computed heading level of 1",
)
# A row or an option stands only within its parent.
_FRAMES = {
    "tr": "<table><tbody>{}</tbody></table>",
    "td": "<table><tbody><tr>{}</tr></tbody></table>",
    "option": '<select aria-label="a">{}</select>',
    "li": "<ul>{}</ul>",
}
_SHELL = '<!doctype html>\n<html lang="en"><head>{}</head><body>{}</body></html>'


def missing() -> str:
    """What of it isn't on this machine; "" for nothing."""
    if not shutil.which("java"):
        return "Java"
    return "" if JAR.exists() else "vnu.jar (`make validator` fetches it)"


def is_whole(html: str) -> bool:
    """Whether it is a page, not a fragment of one."""
    return html.lstrip().lower().startswith("<!doctype")


def findings(pages: Mapping[str, str], folder: Path) -> dict[str, list[str]]:
    """What is wrong with which of these pages and fragments; `folder` is empty and is filled."""
    names = {}
    for number, (name, html) in enumerate(pages.items()):
        file = folder / f"{number}.html"
        file.write_text(html if is_whole(html) else _framed(html), encoding="utf-8")
        names[file.name] = name
    done = subprocess.run(
        ["java", "-jar", JAR, "--format", "json", "--stdout", "--no-langdetect", folder],
        capture_output=True,
        text=True,
        timeout=300,
    )
    try:
        messages = json.loads(done.stdout)["messages"]
    except ValueError:
        raise AssertionError(f"the checker doesn't run: {done.stdout} {done.stderr}") from None
    found: dict[str, list[str]] = {}
    for message in messages:
        name, said = names[Path(message["url"]).name], message["message"]
        filters = FILTERS if is_whole(pages[name]) else (*FILTERS, *FRAGMENT_FILTERS)
        if not any(re.search(one, said) for one in filters):
            where = " ".join(message.get("extract", "").split())[:160]
            found.setdefault(name, []).append(f"line {message.get('lastLine')}: {said} {where}")
    return found


def _framed(fragment: str) -> str:
    # htmx takes a title out of what it gets.
    title = re.search("<title>.*?</title>", fragment, re.DOTALL)
    body = fragment.replace(title[0], "", 1) if title else fragment
    first = re.match(r"\s*<(\w+)", body)
    frame = _FRAMES.get(first[1] if first else "", "{}")
    return _SHELL.format(title[0] if title else "<title>a</title>", frame.format(body))
