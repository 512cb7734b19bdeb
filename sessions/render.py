"""Markdown of model output to safe HTML, whole or while it grows.

Model output is untrusted: raw HTML in it is shown as text, links keep http, https and mailto only,
images become links (nothing is loaded before a click), and everything that leaves this module has
passed nh3's allow-list last.

The text is cut into top-level blocks by looking at whole lines only, and each block is rendered on
its own, so a block that can no longer change is rendered once, however long the message grows.
`render` uses the same cutter, so a finished message looks as it did while it streamed. There is one
difference: a link such as `[text][1]` whose definition comes later in the text becomes a link in
`render` only, because the blocks before the definition were already closed. Footnotes
are small paragraphs where they stand, with raised numbers instead of links: a link's id would
collide between the messages of a page.

`render_document` is for texts of our own, the pages of the guide: links within it, pictures, and
headings with an id. They pass the same parser and an allow-list of their own.

Work is bounded by an estimate in microseconds that depends on nothing but the text, so the same
text always gives the same HTML. What is too expensive is shown as it was written.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from urllib.parse import urlsplit

import nh3
from django.utils.safestring import SafeString
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from sessions.highlight import CLASSES, highlight

__all__ = [
    "Blocks",
    "Closed",
    "Picture",
    "anchor",
    "clean",
    "render",
    "render_document",
    "utf16_len",
]

# A message may cost BASE + PER_CHAR * its length, in estimated microseconds: 100 ms for 100 kB.
# Ordinary prose costs less than half a microsecond a character and so never runs out.
_BASE = 60_000
_PER_CHAR = 0.4
_LINE = 2  # cutting: each line
_BLOCK = 25  # rendering: each block, then what it holds
_TEXT_LINE = 10
_CHAR = 0.05
_SPECIAL = 2
_DELIMITER = 6
_BRACKET = 20
_IMAGE = 70
_AUTOLINK = 25
_INDENT = 2  # each space: what is nested is looked at once a level
_CELL = 6
_HIGHLIGHT = 0.5  # each character
_HIGHLIGHT_SHARE = 0.75  # of the budget; the rest is kept for the text that follows

_MAX_BLOCK_NESTING = 40  # markdown-it drops what lies deeper: such a block is shown as plain text
_MAX_INLINE_NESTING = 100
_MAX_URL = 2_000
_MAX_GROWTH = 30  # HTML characters per source character, against reference definitions used often

_SPECIALS = b"!&<>[\\]`{}:#-|+"
_DELIMITERS = b"*_~"

_LANGUAGE_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9+#._-]{0,23}")
_LINK = re.compile(r"https?://[^/?#\\]|mailto:[^/?#\\]", re.IGNORECASE)
_UNPRINTABLE = re.compile("[\x00\ud800-\udfff]")
_INDENTATION = re.compile(r"\n([ \t]+)")
_DEFINITION = re.compile(r"^[ >]*\[[^\]\n]{1,999}\]:", re.MULTILINE)

_TAGS = (
    "a bdi blockquote br code div em h3 h4 h5 h6 hr li ol p pre s span strong sup table tbody td "
    "th thead tr ul"
)
_sanitiser = nh3.Cleaner(
    tags=set(_TAGS.split()),
    clean_content_tags={"script", "style"},
    attributes={"a": {"href"}, "div": {"data-copy", "data-lang"}, "ol": {"start"}},
    tag_attribute_values={
        "td": {"data-align": {"left", "center", "right"}},
        "th": {"data-align": {"left", "center", "right"}},
    },
    set_tag_attribute_values={"a": {"target": "_blank"}},
    allowed_classes={
        "a": {"image"},
        "div": {"code", "footnote", "table"},
        "li": {"task"},
        "pre": {"plain"},
        "span": CLASSES | {"image"},
    },
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
)
_document_sanitiser = nh3.Cleaner(
    tags={*_TAGS.split(), "h2", "img"},
    attributes={
        "a": {"href"},
        "div": {"data-copy", "data-lang"},
        "img": {"alt", "height", "src", "width"},
        "ol": {"start"},
        **{f"h{level}": {"id"} for level in range(2, 7)},
    },
    allowed_classes={"div": {"code", "table"}, "span": CLASSES},
    url_schemes={"http", "https", "mailto"},
    link_rel="noopener noreferrer",
)

# A link whose address the sanitiser has taken away.
_NOWHERE = re.compile(r'<a(?: class="image")? target=[^>]*>(.*?)</a>', re.DOTALL)


def clean(text: str) -> str:
    """Replace NUL and lone surrogates, one for one, so that offsets in the text stay the same.

    Providers can send both as valid JSON; neither databases nor UTF-8 take them.
    """
    if text.isascii() and "\0" not in text:
        return text
    return _UNPRINTABLE.sub("\ufffd", text)


def utf16_len(text: str) -> int:
    """Length in UTF-16 code units, the unit of a string's length and offsets in a browser."""
    if text.isascii():
        return len(text)
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def render(text: str) -> SafeString:
    """Return a whole text as safe HTML. Costs at most about a millisecond per kilobyte."""
    blocks = Blocks()
    if _DEFINITION.search(text):
        blocks._references = _definitions(text)
    closed = [*blocks.append(text), *blocks.finish()]
    return SafeString("".join(block.html for block in closed))


@dataclass(frozen=True, slots=True)
class Picture:
    """A file of ours: its address, and its size in pixels."""

    src: str
    width: int
    height: int


def render_document(
    text: str, *, link: Callable[[str], str], picture: Callable[[str], Picture]
) -> SafeString:
    """Return a text of our own as safe HTML. `link` and `picture` are asked for what stands in the
    text: relative as in the files, or whole. Headings keep their level, from the second on, and
    have the id that a viewer of the repository gives them."""
    env = {"references": {}, "highlight": float("inf"), "spent": 0.0}
    html = _document.render(text, env | {"link": link, "picture": picture})
    return SafeString(_document_sanitiser.clean(html))


def anchor(heading: str) -> str:
    """The id of a heading: `Models, your own list` is `models-your-own-list`."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Closed:
    """A block that no longer changes: its number, its place in the text and its safe HTML.

    `start` and `end` count characters (code points) of the text appended so far; the blocks of a
    text follow each other without gaps. A block of definitions has empty HTML.
    """

    index: int
    start: int
    end: int
    html: SafeString


class Blocks:
    """The top-level Markdown blocks of a growing text.

    Append what arrives and get the blocks it closed. The rest, from `open_start` on, may still
    change and can be rendered as it stands now. The outcome doesn't depend on how the text was cut
    into pieces. A piece without a line break costs a list append, however long the text is.

    A fence is open until its closing line; a list until a line that can't belong to it; any other
    block until a blank line or a line that starts a fence, heading or list. Where that isn't
    certain, a block stays open: it then holds more than one element.
    """

    def __init__(self) -> None:
        self.open_start = 0
        self._position = 0  # where the line being received starts
        self._lines: list[str] = []  # whole lines of the open block
        self._partial: list[str] = []  # pieces of the line being received
        self._count = 0
        self._cutter = _Cutter()
        self._references: dict = {}
        self._spent = 0.0

    def append(self, text: str) -> list[Closed]:
        """Add text and return the blocks that it closed."""
        closed: list[Closed] = []
        if "\n" in text:
            first, *lines, rest = text.split("\n")
            line = "".join(self._partial) + first
            for following in (*lines, rest):
                self._add_line(line + "\n", closed)
                line = following
            self._partial = [rest] if rest else []
        elif text:
            self._partial.append(text)
        else:
            return closed
        # Letters after a blank line end a list at once, so the paragraph after it needn't be
        # waited for.
        if len(self._partial) == 1 and self._cutter.ends_before(self._partial[0]):
            self._cutter.reset()
            self._close(closed)
        return closed

    def finish(self) -> list[Closed]:
        """Close what is open, at the end of the text. Nothing is appended afterwards."""
        closed: list[Closed] = []
        if self._partial:
            self._add_line("".join(self._partial), closed)
            self._partial = []
        if self._lines:
            self._close(closed)
        return closed

    def render_open(self) -> SafeString:
        """Return the open block as it stands, code without colours."""
        source = "".join(self._lines) + "".join(self._partial)
        references = dict(self._references)
        budget = _BASE + _PER_CHAR * (self.open_start + len(source)) - self._spent
        html, _spent = _render_block(source, references, budget, highlight_budget=0)
        return SafeString(html)

    def _add_line(self, line: str, closed: list[Closed]) -> None:
        if self._spent > _BASE + _PER_CHAR * self._position:
            # Cutting alone has used up the budget: the rest stays one block.
            self._lines.append(line)
            self._position += len(line)
            return
        before, after = self._cutter.cut(line)
        if before:
            self._close(closed)
        self._lines.append(line)
        self._position += len(line)
        self._spent += _LINE
        if after:
            self._close(closed)

    def _close(self, closed: list[Closed]) -> None:
        allowance = _BASE + _PER_CHAR * self._position
        html, spent = _render_block(
            "".join(self._lines),
            self._references,
            allowance - self._spent,
            highlight_budget=allowance * _HIGHLIGHT_SHARE - self._spent,
        )
        self._spent += spent
        closed.append(Closed(self._count, self.open_start, self._position, SafeString(html)))
        self._count += 1
        self._lines = []
        self.open_start = self._position


# Cutting a text into top-level blocks. All patterns match a line without its indentation.

_FENCE = re.compile(r"(`{3,})[^`]*$|(~{3,})")
_RULE = re.compile(r"(?:(?:\*[ \t]*+){3,}+|(?:-[ \t]*+){3,}+|(?:_[ \t]*+){3,}+)$")
_HEADING = re.compile(r"#{1,6}(?:[ \t]|$)")
_MARKER = re.compile(r"(?:[-+*]|\d{1,9}[.)])(?:[ \t]+(?=\S)|$)")


class _Cutter:
    """Decides, line by line, where a top-level block certainly ends (CommonMark, tables)."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._kind = ""  # nothing yet, "text", "code" (indented), "fence" or "list"
        self._blank = False  # the line before was blank
        self._fence = ""  # what closes the open fence; in a list, the one inside an item
        self._after_fence = False  # the line before closed a fence in a list item
        self._bullet = ""  # the last character of the list's markers
        self._content = 0  # the column where the content of the list's last item starts

    def ends_before(self, beginning: str) -> bool:
        """Whether a line that starts like this can't belong to the list or code before it."""
        return self._blank and self._kind in ("list", "code") and beginning[0].isalpha()

    def cut(self, line: str) -> tuple[bool, bool]:
        """Take a line; return whether a block ends before it and whether one ends after it."""
        line = line.rstrip(" \t\r\n")
        body = line.lstrip(" \t")
        if not body:
            self._blank = True
            if self._kind == "text":
                self.reset()
                return False, True
            return False, False
        indent = _width(line[: len(line) - len(body)])
        if self._kind == "fence":
            if indent <= 3 and self._closes_fence(body):
                self.reset()
                return False, True
            return False, False
        before = False
        if self._kind in ("code", "list"):
            if indent >= 4 if self._kind == "code" else self._list_holds(body, indent):
                self._blank = False
                return False, False
            self.reset()
            before = True
        self._blank = False
        if indent >= 4:
            self._kind = self._kind or "code"
            return before, False
        if fence := _FENCE.match(body):
            before = before or self._kind != ""
            self.reset()
            self._kind, self._fence = "fence", fence[1] or fence[2]
            return before, False
        rule = _RULE.match(body)
        if _HEADING.match(body) or (rule and not self._kind):
            before = before or self._kind != ""
            self.reset()
            return before, True
        if not rule and (marker := _MARKER.match(body)) and self._starts_list(body, marker):
            before = before or self._kind != ""
            self.reset()
            self._kind = "list"
            self._start_item(body, indent, marker)
            return before, False
        self._kind = "text"
        return before, False

    def _starts_list(self, body: str, marker: re.Match) -> bool:
        """In the middle of a paragraph only a bullet with text or number 1 starts a list."""
        if not self._kind:
            return True
        has_text = len(body) > marker.end()
        return has_text and (body[0] in "-+*" or marker[0].rstrip()[:-1] == "1")

    def _start_item(self, body: str, indent: int, marker: re.Match) -> None:
        bullet = marker[0].rstrip(" \t")
        self._bullet = bullet[-1]
        column = indent + len(bullet)
        padding = _width(marker[0][len(bullet) :], column)
        self._content = column + (padding if 1 <= padding <= 4 else 1)
        self._fence = ""
        self._follow_fence(body[marker.end() :])

    def _list_holds(self, body: str, indent: int) -> bool:
        """Whether the line belongs to the open list; keeps track of its last item."""
        if indent >= self._content:
            self._follow_fence(body)
            return True
        if _RULE.match(body):
            return False
        if indent <= 3 and (marker := _MARKER.match(body)):
            if marker[0].rstrip(" \t")[-1] != self._bullet:
                return False
            self._start_item(body, indent, marker)
            return True
        # Only a paragraph goes on without being indented.
        if self._blank or self._fence or self._after_fence:
            return False
        return indent > 3 or not (body[0] == ">" or _FENCE.match(body) or _HEADING.match(body))

    def _follow_fence(self, body: str) -> None:
        self._after_fence = False
        if self._fence:
            if self._closes_fence(body):
                self._fence, self._after_fence = "", True
            return
        while marker := _MARKER.match(body):
            body = body[marker.end() :]
            if not body:
                return
        if fence := _FENCE.match(body):
            self._fence = fence[1] or fence[2]

    def _closes_fence(self, body: str) -> bool:
        return len(body) >= len(self._fence) and not body.strip(self._fence[0])


def _width(space: str, column: int = 0) -> int:
    """Columns of white space that starts at a column, with tab stops of four."""
    if "\t" not in space:
        return len(space)
    return len((" " * (column % 4) + space).expandtabs(4)) - column % 4


# Rendering one block.


def _render_block(
    source: str, references: dict, budget: float, *, highlight_budget: float
) -> tuple[str, float]:
    """Return the safe HTML of one block and what it cost; learn its reference definitions."""
    source = clean(source).replace("\r\n", "\n").replace("\r", " ")
    cost = _cost(source)
    if cost > budget:
        return _plain(source), _BLOCK + _CHAR * len(source)
    env = {"references": references, "highlight": highlight_budget, "spent": cost}
    tokens = _markdown.parse(source, env)
    if _too_deep(tokens):
        return _plain(source), cost
    html = _markdown.renderer.render(tokens, _markdown.options, env)
    if len(html) > _MAX_GROWTH * len(source) + 2 * _MAX_URL:
        return _plain(source), cost
    html = _sanitiser.clean(html)
    if "<a target=" in html or '<a class="image" target=' in html:
        html = _NOWHERE.sub(r"\1", html)
    return html, env["spent"]


def _plain(source: str) -> str:
    return _sanitiser.clean(f'<pre class="plain">{escape(source, quote=False)}</pre>\n')


def _cost(source: str) -> float:
    """Estimate the microseconds to render a block, from the characters that make work."""
    body = source.lstrip()
    lines = source.count("\n") + 1
    if body.startswith(("```", "~~~")) and _FENCE.match(body[: body.find("\n")]):
        return _BLOCK + lines + _CHAR * len(source)
    data = source.encode()
    cost = _BLOCK + _CHAR * len(data) + _TEXT_LINE * lines
    cost += _SPECIAL * _count(data, _SPECIALS)
    cost += _DELIMITER * (_count(data, _DELIMITERS) - source.count("**") / 2)
    cost += _BRACKET * source.count("[") + _IMAGE * source.count("![")
    cost += _AUTOLINK * min(source.count("<"), source.count(">"))
    cost += _INDENT * sum(map(len, _INDENTATION.findall(source)))
    if lines > 1 and "|" in source:  # short rows are filled up to the width of the table
        cost += _CELL * lines * max(line.count("|") for line in source.split("\n"))
    return cost


def _count(data: bytes, characters: bytes) -> int:
    return len(data) - len(data.translate(None, characters))


def _too_deep(tokens: list) -> bool:
    if max((token.level for token in tokens), default=0) >= _MAX_BLOCK_NESTING - 2:
        return True
    return any(
        max(accumulate(child.nesting for child in token.children)) > _MAX_INLINE_NESTING
        for token in tokens
        if token.children and len(token.children) > _MAX_INLINE_NESTING
    )


def _definitions(text: str) -> dict:
    """Collect the link definitions of a whole text, wherever they stand."""
    env: dict = {"references": {}}
    budget = _BASE / 2
    for source in re.split(r"\n[ \t]*\n", clean(text)):
        if _DEFINITION.search(source) and (cost := _cost(source)) < budget:
            budget -= cost
            _markdown.block.parse(source + "\n", _markdown, env, [])
    return env["references"]


class _Renderer(RendererHTML):
    """The elements that differ from markdown-it's own."""

    def fence(self, tokens, idx, options, env):
        token = tokens[idx]
        return _code(token.content, token.info.strip().partition(" ")[0], env)

    def code_block(self, tokens, idx, options, env):
        return _code(tokens[idx].content, "", env)

    def link_open(self, tokens, idx, options, env):
        env["in_link"] = True
        return f'<a href="{escape(tokens[idx].attrs["href"])}">'

    def link_close(self, tokens, idx, options, env):
        env["in_link"] = False
        return "</a>"

    def image(self, tokens, idx, options, env):
        """An image as a link to it: nothing is fetched from elsewhere before a click."""
        token = tokens[idx]
        href = token.attrs["src"]
        alt = self.renderInlineAsText(token.children or [], options, env)
        # No word of ours: a worker renders this for readers of every language.
        host = escape(_host(href))
        label = f"<bdi>{escape(alt)}</bdi> ({host})" if alt else host
        if env.get("in_link"):
            return f'<span class="image">{label}</span>'
        return f'<a class="image" href="{escape(href)}">{label}</a>'

    def heading_open(self, tokens, idx, options, env):
        return f"<{_heading(tokens[idx].tag)}>"

    def heading_close(self, tokens, idx, options, env):
        return f"</{_heading(tokens[idx].tag)}>\n"

    def list_item_open(self, tokens, idx, options, env):
        checked = tokens[idx].meta.get("checked")
        if checked is None:
            return "<li>"
        return f'<li class="task">{"☑" if checked else "☐"} '

    def footnote_mark(self, tokens, idx, options, env):
        return f"<sup>{tokens[idx].content}</sup>"

    def footnote_open(self, tokens, idx, options, env):
        return f'<div class="footnote"><sup>{tokens[idx].content}</sup> '

    def footnote_close(self, tokens, idx, options, env):
        return "</div>\n"

    def table_open(self, tokens, idx, options, env):
        return '<div class="table"><table>\n'

    def table_close(self, tokens, idx, options, env):
        return "</table></div>\n"

    def th_open(self, tokens, idx, options, env):
        return _cell(tokens[idx])

    td_open = th_open


class _DocumentRenderer(_Renderer):
    """What a text of our own may have besides."""

    def link_open(self, tokens, idx, options, env):
        return f'<a href="{escape(env["link"](tokens[idx].attrs["href"]))}">'

    def link_close(self, tokens, idx, options, env):
        return "</a>"

    def image(self, tokens, idx, options, env):
        token = tokens[idx]
        picture = env["picture"](token.attrs["src"])
        alt = self.renderInlineAsText(token.children or [], options, env)
        size = f'width="{picture.width}" height="{picture.height}"'
        return f'<img src="{escape(picture.src)}" alt="{escape(alt)}" {size}>'

    def heading_open(self, tokens, idx, options, env):
        text = self.renderInlineAsText(tokens[idx + 1].children or [], options, env)
        return f'<{tokens[idx].tag} id="{escape(anchor(text))}">'

    def heading_close(self, tokens, idx, options, env):
        return f"</{tokens[idx].tag}>\n"


def _cell(token) -> str:
    """A table cell whose alignment is an attribute: the pages allow no inline style."""
    align = str(token.attrs.get("style", "")).removeprefix("text-align:")
    return f'<{token.tag} data-align="{align}">' if align else f"<{token.tag}>"


def _heading(tag: str) -> str:
    """The page has headings of its own: those of a message start at the third level."""
    return f"h{min(int(tag[1]) + 2, 6)}"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or url
    except ValueError:
        return url


def _code(source: str, info: str, env: dict) -> str:
    language = info.lower() if _LANGUAGE_LABEL.fullmatch(info) else ""
    label = f' data-lang="{language}"' if language else ""
    cost = _HIGHLIGHT * len(source)
    if language and cost <= env["highlight"]:
        html = highlight(source, language)
        env["spent"] += cost
        env["highlight"] -= cost
    else:
        html = escape(source, quote=False)
    return f'<div class="code" data-copy=""{label}><pre><code>{html}</code></pre></div>\n'


# A footnote's mark is a number: `[^a-z]` in a text is rather a class of characters.
_FOOTNOTE = re.compile(r"\[\^([0-9]{1,3})\]")
_FOOTNOTE_TEXT = re.compile(r" {0,3}\[\^([0-9]{1,3})\]:[ \t]+(?=\S)")


def _footnote_mark(state: StateInline, silent: bool) -> bool:
    """`[^1]` in a text."""
    match = _FOOTNOTE.match(state.src, state.pos)
    if match is None or match.end() > state.posMax:
        return False
    if not silent:
        state.push("footnote_mark", "sup", 0).content = match[1]
    state.pos = match.end()
    return True


def _footnote(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """`[^1]: …`, up to a blank line or to the next footnote."""

    def line(number: int) -> str:
        return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]

    match = _FOOTNOTE_TEXT.match(line(start))
    if match is None or state.is_code_block(start):
        return False
    if silent:
        return True
    after = start + 1
    while after < end and not state.isEmpty(after) and not _FOOTNOTE_TEXT.match(line(after)):
        after += 1
    state.push("footnote_open", "div", 1).content = match[1]
    text = [line(start)[match.end() :], *(line(number) for number in range(start + 1, after))]
    inline = state.push("inline", "", 0)
    inline.content, inline.children, inline.map = "\n".join(text).strip(), [], [start, after]
    state.push("footnote_close", "div", -1)
    state.line = after
    return True


def _valid_link(url: str) -> bool:
    return len(url) <= _MAX_URL and _LINK.match(url) is not None


def _make_markdown(renderer: type[RendererHTML], valid_link: Callable[[str], bool]) -> MarkdownIt:
    markdown = MarkdownIt(
        "commonmark",
        {"html": False, "maxNesting": _MAX_BLOCK_NESTING, "tasklists": True},
        renderer_cls=renderer,
    )
    markdown.enable(["table", "strikethrough"]).disable(["html_block", "html_inline"])
    markdown.inline.ruler.before("link", "footnote_mark", _footnote_mark)
    others = {"alt": ["paragraph", "reference", "blockquote"]}
    markdown.block.ruler.before("reference", "footnote", _footnote, others)
    markdown.validateLink = valid_link
    # Its rules are compiled on first use, which isn't safe when several threads come first.
    markdown.render("- warm *up*\n\n|a|\n|-|\n", {"references": {}, "highlight": 0, "spent": 0})
    return markdown


_markdown = _make_markdown(_Renderer, _valid_link)
_document = _make_markdown(_DocumentRenderer, lambda url: True)
