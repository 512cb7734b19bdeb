import random
import re
import time
from html import unescape

import pytest

from sessions.highlight import _LANGUAGES, CLASSES, highlight

PIECES = [*"()[]{}<>'\"`/*#\\$@&%|;:=,.!~-+_ \n\ta0é", "//", "/*", "*/", '"""', "'''", '\\"', "\\'"]
PIECES += [
    "<!--",
    "-->",
    "--",
    "a ",
    "a(",
    "a:",
    "a=",
    "</a",
    '="',
    "if",
    "0x",
    "\\\n",
    "a\n",
    " \n",
]


def text_of(html):
    assert set(re.findall(r'<span class="([^"]*)">', html)) <= CLASSES
    return unescape(re.sub(r'<span class="[a-z]+">|</span>', "", html))


@pytest.mark.parametrize("language", _LANGUAGES)
def test_no_character_is_lost(language):
    rng = random.Random(language)
    for _ in range(200):
        source = "".join(rng.choices(PIECES, k=60))
        assert text_of(highlight(source, language)) == source


@pytest.mark.parametrize("language", {value: name for name, value in _LANGUAGES.items()}.values())
def test_time_is_linear_whatever_the_code_is(language):
    """Going back at each character takes more than a second here, linear work some 20 ms."""
    for piece in PIECES:
        source = piece * (50_000 // len(piece))
        start = time.process_time()
        highlight(source, language)
        assert time.process_time() - start < 0.4, piece


@pytest.mark.parametrize(
    ("language", "source", "html"),
    [
        ("python", "if f(1): # x", "<k>if</k> <nf>f</nf>(<m>1</m>): <c># x</c>"),
        ("python", '"""a\n"b" """ + \'c', '<s>"""a\n"b" """</s> + <s>\'c</s>'),
        ("js", "const a = `x\n${b}`; // c", "<k>const</k> a = <s>`x\n${b}`</s>; <c>// c</c>"),
        ("rust", "fn f<'a>(x: &'a str) {}", "<k>fn</k> f<'a>(x: &'a <k>str</k>) {}"),
        ("sql", "SELECT 'it' -- x", "<k>SELECT</k> <s>'it'</s> <c>-- x</c>"),
        ("json", '{"a": "b", "c": 1.5}', '{<nt>"a"</nt>: <s>"b"</s>, <nt>"c"</nt>: <m>1.5</m>}'),
        ("yaml", "- a: true # x\n", "- <nt>a</nt>: <k>true</k> <c># x</c>\n"),
        ("css", "a{color:#fff}", "a{<na>color</na>:#fff}"),
        ("html", '<a b="c">d', '<nt><a</nt> <na>b</na>=<s>"c"</s><nt>></nt>d'),
        ("diff", "@@ 1\n-a\n+b\n c", "<gu>@@ 1</gu>\n<gd>-a</gd>\n<gi>+b</gi>\n c"),
        ("bash", "if [ $a ]; then # x", "<k>if</k> [ $a ]; <k>then</k> <c># x</c>"),
        ("unknown", "a < b", "a < b"),
    ],
)
def test_what_is_coloured(language, source, html):
    short = re.sub(r'<span class="([a-z]+)">(.*?)</span>', r"<\1>\2</\1>",
                   highlight(source, language), flags=re.DOTALL)  # fmt: skip
    assert unescape(short) == html
