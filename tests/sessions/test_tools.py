"""What the agent's tools make of what they are given, without a network."""

from __future__ import annotations

import time

import pytest

from sessions import tools


def test_a_page_is_read_as_lines_under_its_title():
    page = "<title>Prices &amp; plans</title><p>One  \t two</p>\n\n\n<p>three</p>"
    page += "<script>x()</script>"
    assert tools.readable_text(page) == "Prices & plans\n\nPrices & plans\nOne two\n\nthree"


def test_a_page_without_the_end_of_its_head_is_read():
    page = "<head><style>p{}</style><body><p>Read me</p> 1 < 2"
    assert tools.readable_text(page) == "Read me\n1 < 2"


@pytest.mark.parametrize(
    "piece", ["\u00a0", "<title", "\n \u2003", "<!--", "<svg>", "</", "&amp", "<script></script"]
)
def test_a_hostile_page_costs_no_more_than_its_length(piece):
    started = time.process_time()
    tools.readable_text(piece * (400_000 // len(piece)))
    assert time.process_time() - started < 5


async def test_a_tool_that_breaks_says_so(monkeypatch, caplog):
    def broken(args: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(tools, "_current_time", broken)
    assert await tools.run("current_time", {}) == ("The tool failed.", True)
    assert "RuntimeError" in caplog.text
    assert "a secret" not in caplog.text
