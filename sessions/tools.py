"""The tools the agent has: what they are called, and one function that runs them.

A tool never raises: what goes wrong is its result, for the model to read.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import html
import logging
import re
import zoneinfo
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

import httpx

from connections.providers.base import ToolSpec
from workspaces.egress import (
    EgressBlocked,
    URLRefused,
    bounded_bytes,
    check_url,
    client_for,
    tool_policy,
)

logger = logging.getLogger(__name__)

MAX_RESULT = 50_000  # characters of a result
MAX_PAGE = 5_000_000  # bytes of a fetched page
TIMEOUT = 30.0  # seconds a tool may take

TOOLS: tuple[ToolSpec, ...] = (
    ToolSpec(
        "current_time",
        "The current date and time, in UTC or in a given time zone.",
        {
            "type": "object",
            "properties": {
                "timezone": {"type": "string", "description": "IANA name, e.g. Europe/Berlin"}
            },
            "additionalProperties": False,
        },
    ),
    ToolSpec(
        "fetch_url",
        "Fetches a public web page or text file by GET and returns its text. Redirects aren't "
        "followed: the answer then names the new address.",
        {
            "type": "object",
            "properties": {"url": {"type": "string", "description": "An http or https address"}},
            "required": ["url"],
            "additionalProperties": False,
        },
    ),
)


async def run(name: str, args: Mapping[str, Any]) -> tuple[str, bool]:
    """The text of a call's result, and whether it is an error."""
    try:
        async with asyncio.timeout(TIMEOUT):
            if name == "current_time":
                return _current_time(args)
            if name == "fetch_url":
                return await _fetch_url(args)
    except TimeoutError:
        return f"The tool took longer than {TIMEOUT:.0f} seconds.", True
    except Exception as error:
        # By its type alone: the text may quote what was fetched.
        logger.error("the tool %s failed: %s", name, type(error).__name__)
        return "The tool failed.", True
    return f"There is no tool named {name[:60]!r}.", True


def _current_time(args: Mapping[str, Any]) -> tuple[str, bool]:
    name = args.get("timezone") or "UTC"
    try:
        zone = zoneinfo.ZoneInfo(str(name))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return f"Unknown time zone {str(name)[:60]!r}.", True
    return dt.datetime.now(zone).strftime("%A, %Y-%m-%d %H:%M:%S %Z (UTC%z)"), False


async def _fetch_url(args: Mapping[str, Any]) -> tuple[str, bool]:
    url = args.get("url")
    if not isinstance(url, str):
        return "The argument `url` is missing.", True
    policy = tool_policy()
    try:
        # Names are resolved, checked and pinned when the connection is made.
        check_url(url, policy, resolve=False)
        request = client_for(policy).stream(
            "GET", url, headers={"accept": "text/html, text/plain, application/json, */*;q=0.5"}
        )
        async with request as response:
            if response.is_redirect:
                target = response.headers.get("location", "")[:2000]
                return f"HTTP {response.status_code}: redirects to {target}", False
            body = await bounded_bytes(response, MAX_PAGE)
    except (URLRefused, EgressBlocked) as error:
        return f"This address can't be fetched: {error}", True
    except httpx.InvalidURL:
        return "This isn't an http or https address.", True
    except httpx.HTTPError as error:
        return f"The address didn't answer ({type(error).__name__}).", True
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not (kind.startswith("text/") or kind.endswith(("json", "xml"))):
        return f"HTTP {response.status_code}: {kind}, {len(body)} bytes, not a text.", True
    text = body.decode(_charset(response), "replace").replace("\x00", "\ufffd")
    if kind in {"text/html", "application/xhtml+xml"}:
        text = await asyncio.to_thread(readable_text, text)
    return f"HTTP {response.status_code}\n\n{cut(text)}", response.status_code >= 400


def cut(text: str) -> str:
    """A result as long as one may be, with a mark where more was."""
    if len(text) <= MAX_RESULT:
        return text
    return f"{text[:MAX_RESULT]}\n[cut: {len(text)} characters in all]"


def _charset(response: httpx.Response) -> str:
    name = response.charset_encoding or "utf-8"
    try:
        "".encode(name)
    except (LookupError, UnicodeError):
        return "utf-8"
    return name


_DROPPED = frozenset({"script", "style", "noscript", "template", "svg", "head", "iframe"})
_BREAKING = frozenset(
    "p div section article li tr h1 h2 h3 h4 h5 h6 br pre blockquote "  # noqa: SIM905
    "table ul ol header footer main".split()
)


class _Text(HTMLParser):
    """The readable text of a page, a line a block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._inside = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _DROPPED:
            self._inside += 1
        elif tag == "body":
            self._inside = 0  # `</head>` may be left out
        elif tag in _BREAKING:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in _DROPPED:
            self._inside = max(0, self._inside - 1)
        elif tag in _BREAKING:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.pieces.append(data)


def readable_text(page: str) -> str:
    """What a person would read of an HTML page, its title first.

    Takes time in proportion to the page, whatever stands in it: an expression that backtracks over
    megabytes would hold up every turn of the process, and its heartbeat.
    """
    title = re.search(r"<title[^<>]*>([^<]{1,500})", page, re.IGNORECASE)
    parser = _Text()
    # Not closed: that would look at every tag left open once more, each time to the page's end.
    parser.feed(page)
    lines = [" ".join(line.split()) for line in "".join(parser.pieces).split("\n")]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    heading = html.unescape(title.group(1)).strip() if title else ""
    return f"{heading}\n\n{text}" if heading else text
