"""When the open block of a growing reply is drawn."""

from __future__ import annotations

from typing import Any

import pytest

from sessions.reply import BEGINNING, Reply, tool_html


class Said:
    """A writer that remembers the blocks."""

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []

    def add(self, chat_id: str, name: str, data: dict[str, Any], **options: Any) -> None:
        self.blocks.append(data)

    def add_text(self, *given: Any) -> None: ...

    def hurry(self) -> None: ...


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def reply(said) -> Reply:
    return Reply("chat", "message", said)


def grown(reply: Reply, said: Said, text: str) -> list[str]:
    """What is drawn when the text has come."""
    said.blocks.clear()
    reply.add_text(text)
    reply.render_open()
    return [block["h"] for block in said.blocks]


def test_the_beginning_of_a_block_is_drawn_as_it_grows(reply, said):
    assert grown(reply, said, "One") == ["<p>One</p>\n"]
    assert grown(reply, said, " word") == ["<p>One word</p>\n"]
    reply.render_open()
    assert len(said.blocks) == 1


def test_plain_words_are_left_to_the_page(reply, said):
    grown(reply, said, "word " * BEGINNING)
    assert grown(reply, said, "and, so on; another one. Is it?") == []


@pytest.mark.parametrize(
    "piece", ["**bold**", "`code`", "[a](https://b.example)", "one\ntwo", "~~x~~"]
)
def test_what_may_be_markup_is_drawn_with_all_before_it(reply, said, piece):
    grown(reply, said, "word " * BEGINNING)
    assert grown(reply, said, "and so on ") == []
    [html] = grown(reply, said, piece)
    assert "and so on" in html
    assert said.blocks[0]["o"] == len("word " * BEGINNING + "and so on " + piece)


def test_each_block_has_a_beginning_of_its_own(reply, said):
    grown(reply, said, "word " * BEGINNING)
    grown(reply, said, "\n\n")
    assert grown(reply, said, "Next") == ["<p>Next</p>\n"]


@pytest.mark.parametrize("value", [5, None, "abc", ["abc"], [["a", "b"]], {"a": 1}])
@pytest.mark.parametrize("name", ["items", "values", "keys"])
def test_an_argument_may_have_any_name(name: str, value: Any):
    html = tool_html({"name": "sum", "args": {name: value, "other": "zebra"}}, None)
    assert f"<dt>{name}</dt>" in html
    assert html.count("zebra") == 2
