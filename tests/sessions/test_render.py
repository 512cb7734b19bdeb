import random
import re
import time
from html.parser import HTMLParser

import pytest

from sessions.render import Blocks, clean, render, utf16_len
from tests.sessions.hostile import load_hostile

HOSTILE = load_hostile()

ATTRIBUTES = {
    "a": {"href", "target", "rel", "class"},
    "div": {"class", "data-copy", "data-lang"},
    "li": {"class"},
    "ol": {"start"},
    "pre": {"class"},
    "span": {"class"},
    "td": {"data-align"},
    "th": {"data-align"},
}
PLAIN_TAGS = "bdi blockquote br code em h3 h4 h5 h6 hr p s strong sup table tbody thead tr ul"
TAGS = set(ATTRIBUTES) | set(PLAIN_TAGS.split())

TEXT = """# Plan

Here is *what* to do:
- first
- second

  ```python
  def f():

      return 1
  ```
- third
Then `run` it:
```sh
make run

make test
```
The end of it.

| a | b |
|:--|--:|
| 1 | [two](https://example.com/2) |

1. one

   more of one
2. two

    indented
after

> quote
goes on

***
Setext
---
- [x] done
- [ ] open

* other list

    code

    more code
\tand more

A [link][l] and ![an image](https://example.com/i.png).

~~~
never closed

- x
"""


class Checker(HTMLParser):
    """Collects what a browser would see: elements, attributes and the text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS, tag
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        for name, value in attrs:
            assert name in ATTRIBUTES.get(tag, set()), (tag, name)
            if name == "href":
                assert re.match(r"https?://[^/?#\\]|mailto:.", value, re.IGNORECASE), value
                assert not re.search(r"[\x00-\x20]", value)
            if name == "data-lang":
                assert re.fullmatch(r"[a-z0-9][a-z0-9+#._-]*", value)
            if name == "class":
                assert re.fullmatch(
                    r"code|table|task|plain|image|footnote|[a-z][a-z0-9]{0,2}", value
                )
        if tag == "a":
            assert dict(attrs)["target"] == "_blank"
            assert dict(attrs)["rel"] == "noopener noreferrer nofollow"
            assert "a" not in self.open
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_comment(self, data):
        raise AssertionError("a comment")

    handle_decl = handle_pi = unknown_decl = handle_comment

    def handle_data(self, data):
        self.text += data


def check(html):
    """Assert that the HTML holds nothing but what is allowed; return its text."""
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    html.encode()
    assert "\0" not in html
    return checker.text


def stream(text, cuts=()):
    """Feed a text cut at the given places; return what was closed, as the page would see it."""
    blocks = Blocks()
    closed = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        closed += blocks.append(text[start:end])
        assert blocks.open_start == (closed[-1].end if closed else 0)
    return closed + blocks.finish()


def join(closed):
    return "".join(block.html for block in closed)


def test_the_corpus_is_large():
    assert len(HOSTILE) >= 300


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_only_allowed_elements_attributes_and_schemes_come_out(text):
    check(render(text))
    for around in ("- {}", "> {}", "| a |\n|---|\n| {} |", "[{}](https://example.com)", "*{}*"):
        check(render(around.replace("{}", text)))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_only_allowed_things_come_out_while_the_text_grows(text):
    half = len(text) // 2
    for cuts in ((half,), range(1, min(len(text), 60))):
        closed = stream(text, cuts)
        for block in closed:
            check(block.html)
        if "]:" not in text:
            assert join(closed) == render(text)
    blocks = Blocks()
    for piece in (text[:half], text[half:]):
        blocks.append(piece)
        check(blocks.render_open())


def test_raw_html_is_shown_as_text():
    assert check(render("a <b onclick=x>b</b> <!-- c -->")) == "a <b onclick=x>b</b> <!-- c -->\n"


def test_refused_links_are_shown_as_text():
    for url in ("javascript:x", "/admin/", "//evil.example", "data:text/html,x", "#id"):
        assert "<a" not in render(f"[x]({url})")
    assert '<a href="mailto:a@example.com"' in render("[x](mailto:a@example.com)")


def test_an_image_becomes_a_link_that_names_its_host():
    html = render('![a *b*](https://user@evil.example:8/i.png "title")')
    assert html.startswith('<p><a class="image" href="https://user@evil.example:8/i.png" ')
    assert check(html) == "a b (evil.example)\n"
    assert "<img" not in html
    assert render("[![a](https://b.example/i.png)](https://c.example)").count("<a ") == 1


@pytest.mark.parametrize("source", ["[a *b*](http://%5B)", "![a b](https://%5B/c.png)"])
def test_a_link_to_nowhere_stays_its_text(source: str):
    html = render(f"{source} [c](https://example.com)")
    assert html.count("<a ") == html.count("href=") == 1
    assert check(html).startswith("a b")


def test_a_fence_has_its_language_its_copy_hook_and_its_colours():
    assert render("```Python title=x\ndef f(): return '<'\n```") == (
        '<div class="code" data-copy="" data-lang="python"><pre><code>'
        '<span class="k">def</span> <span class="nf">f</span>(): '
        '<span class="k">return</span> <span class="s">\'&lt;\'</span>\n'
        "</code></pre></div>\n"
    )
    assert render("```nosuch\na < b\n```") == (
        '<div class="code" data-copy="" data-lang="nosuch"><pre><code>a &lt; b\n'
        "</code></pre></div>\n"
    )


@pytest.mark.parametrize("language", ["python", "js", "html", "yaml", "sql", "bash", "php", "rb"])
def test_highlighting_keeps_every_character(language):
    code = "\n\n  def f(a, b): return 'x' < \"y\"\r\n\té <b>&amp;</b> /* c */ -- d\n\n# e \u2028\n"
    text = check(render(f"```{language}\n{code}```"))
    assert text == code.replace("\r\n", "\n") + "\n"


def test_tables_task_lists_and_headings():
    html = render("# A\n\n|a|b|\n|:-:|-|\n|1|2|\n\n- [x] done\n- [ ] open ~~not~~\n")
    assert "<h3>A</h3>" in html
    assert '<th data-align="center">a</th>' in html
    assert '<li class="task">☑ done</li>' in html
    assert '<li class="task">☐ open <s>not</s></li>' in html


def test_the_outcome_does_not_depend_on_how_the_text_was_cut():
    rng = random.Random(1)
    lines = [*TEXT.split("\n"), "", "", "- a", "  b", "    c", "2. d", "```", "  ```", "+ e", "---"]
    lines += ["> f", "|a|", "|-|", "# g", "h\r", "\t- i", "1) j", "   k", "- ```", "é \U0001f600"]
    for _ in range(300):
        text = "\n".join(rng.choices(lines, k=rng.randrange(1, 30)))
        whole = stream(text)
        assert [block.start for block in whole[1:]] == [block.end for block in whole[:-1]]
        assert (whole[0].start, whole[-1].end) == (0, len(text)) if text else not whole
        assert [block.index for block in whole] == list(range(len(whole)))
        for _ in range(4):
            cuts = sorted(rng.sample(range(len(text)), rng.randrange(min(len(text), 40) or 1)))
            assert stream(text, cuts) == whole
        assert stream(text, range(1, len(text))) == whole
        assert join(whole) == render(text)


def test_blocks_close_as_soon_as_they_are_certain():
    blocks = Blocks()
    assert blocks.append("# Title") == []
    assert [block.html for block in blocks.append("\n")] == ["<h3>Title</h3>\n"]
    assert blocks.append("Text:\n") == []
    (text,) = blocks.append("```py\nx = 1\n\n")
    assert text.html == "<p>Text:</p>\n"
    (fence,) = blocks.append("```\n- a\n\n- b\n")
    assert 'data-lang="py"' in fence.html
    assert blocks.append("\n  more of b\n\n") == []
    (items,) = blocks.append("Next")
    assert items.html.count("<li>") == 2
    assert "more of b" in items.html
    assert blocks.render_open() == "<p>Next</p>\n"


def test_blocks_agree_with_markdown_read_as_a_whole():
    """The same elements come out as when the parser sees the whole text at once."""
    from sessions.render import _markdown, _sanitiser

    env = {"references": {}, "highlight": 100_000, "spent": 0}
    assert render(TEXT) == _sanitiser.clean(_markdown.render(TEXT, env))


def test_definitions_later_in_the_text_count_in_the_whole_text_only():
    later = "[a] b\n\n[a]: https://example.com\n"
    assert "<a " in render(later)
    assert "<a " not in join(stream(later))
    earlier = "[a]: https://example.com\n\n[a] b\n"
    assert join(stream(earlier)) == render(earlier)
    assert "<a " in render(earlier)


def test_what_is_nested_too_deeply_is_shown_as_it_was_written():
    text = "> " * 200 + "the words"
    assert check(render(text)) == text + "\n"


def test_nul_and_lone_surrogates_are_replaced_one_for_one():
    assert clean("a\0b\ud83dc\U0001f600") == "a\ufffdb\ufffdc\U0001f600"


def test_offsets_for_the_browser_count_utf16_units():
    assert utf16_len("abc") == 3
    assert utf16_len("é\U0001f600") == 3
    assert utf16_len("\ud83d") == 1


SLOW = {
    "blocks": "a\n\n" * 33_000,
    "blank lines": "\n" * 100_000,
    "brackets": "[" * 100_000,
    "images": "![a](https://b.example)" * 4_400,
    "code": "```python\n" + "def f(x): return [x, 'y', 1]  # z\n" * 3_000 + "```",
    "fences": ("```python\n" + "def f(x): return [x, 'y', 1]\n" * 30 + "```\n") * 110,
    "emphasis": "*a* **b** " * 10_000,
    "items": "- item with `code`\n" * 5_300,
    "table": "|a" * 100 + "|\n" + "|-" * 100 + "|\n" + "|\n" * 50_000,
    "nested lists": "\n".join(" " * (2 * (i % 18)) + "- x" for i in range(4_500)),
    "references": "".join(f"[{i}]: https://a.example\n" for i in range(3_500)) + "[1]" * 1_000,
    "prose": ("The quick **brown** fox jumps over the `lazy` dog. " * 12 + "\n\n") * 160,
}


@pytest.mark.parametrize("name", SLOW)
def test_a_hundred_kilobytes_of_anything_are_bounded(name):
    """Some 100 ms on the machine it was tuned on; the margin is for slow and busy ones."""
    start = time.process_time()
    html = render(SLOW[name])
    assert time.process_time() - start < 0.6
    check(html)


def test_ordinary_long_texts_are_rendered_to_their_end():
    assert "plain" not in render(SLOW["prose"] * 3)
    assert "plain" not in render(TEXT.replace("~~~", "") * 25)


def test_a_token_without_a_line_break_costs_the_same_in_a_long_text():
    blocks = Blocks()
    blocks.append("- item\n" * 20_000)
    start = time.process_time()
    for _ in range(20_000):
        blocks.append(" word")
    assert time.process_time() - start < 0.4


def test_footnotes_are_numbers_and_small_paragraphs():
    text = (
        "Tides vary.[^1] So do ferries[^2].\n\n"
        "[^1]: Twice *a day*,\nas a rule.\n[^2]: word\n\nThe end: `[^1]` and [^a-z].\n"
    )
    assert render(text) == (
        "<p>Tides vary.<sup>1</sup> So do ferries<sup>2</sup>.</p>\n"
        '<div class="footnote"><sup>1</sup> Twice <em>a day</em>,\nas a rule.</div>\n'
        '<div class="footnote"><sup>2</sup> word</div>\n'
        "<p>The end: <code>[^1]</code> and [^a-z].</p>\n"
    )
    assert render("Said.\n[^3]: Below a line.") == (
        '<p>Said.</p>\n<div class="footnote"><sup>3</sup> Below a line.</div>\n'
    )
    assert render("[^1]:\n\n[^1]") == "<p><sup>1</sup>:</p>\n<p><sup>1</sup></p>\n"
    assert render("[^1](https://example.com/)").startswith("<p><sup>1</sup>(")
    for at in range(len(text)):
        blocks = Blocks()
        closed = [*blocks.append(text[:at]), *blocks.append(text[at:]), *blocks.finish()]
        assert "".join(block.html for block in closed) == render(text)
