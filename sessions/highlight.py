"""Colours for code, in time linear in its length whatever the code is.

The languages' lexers of Pygments backtrack: a model can write (or be made to write) twenty
kilobytes of quotes and backslashes that keep a lexer busy for seconds, with the interpreter
locked. Here each language is a single pattern whose branches, once begun, match or fail soon and
never go back; what no branch takes stays as it is, so no character can be lost. It knows
comments, strings, numbers, keywords, calls, keys and tags, not grammar. Class names are the short
ones of Pygments' themes.
"""

import re
from dataclasses import dataclass
from html import escape

__all__ = ["CLASSES", "highlight"]

CLASSES = frozenset({"c", "gd", "gi", "gu", "k", "m", "na", "nf", "nt", "s"})

_DOUBLE = r'"(?:[^"\\\n]++|\\.)*+"?'
_SINGLE = r"'(?:[^'\\\n]++|\\.)*+'?"
_BACKTICK = r"`(?:[^`\\]++|\\[\s\S])*+`?"
_CHARACTER = r"'(?:[^'\\\n]|\\[^\n]{1,8}?)'"  # where a single quote alone means something else
_TRIPLE = r'"""(?:[^"\\]++|\\[\s\S]|"(?!""))*+(?:""")?'
_TRIPLE_SINGLE = r"'''(?:[^'\\]++|\\[\s\S]|'(?!''))*+(?:''')?"
_SLASHES = r"//[^\n]*+"
_BLOCK = r"/\*(?:[^*]++|\*(?!/))*+(?:\*/)?"
_HASH = r"(?<!\S)\#[^\n]*+"
_DASHES = r"--[^\n]*+"
_SEMICOLON = r"(?<!\S);[^\n]*+"
_ANGLES = r"<!--(?:[^-]++|-(?!->))*+(?:-->)?"


@dataclass(frozen=True, slots=True)
class _Language:
    """One pattern whose named groups are class names; `word` is looked up in the keywords."""

    pattern: re.Pattern
    keywords: frozenset[str]
    any_case: bool = False


def _language(
    comments: tuple[str, ...],
    strings: tuple[str, ...],
    keywords: str = "",
    *,
    first: str = "",
    word: str = r"[^\W\d][\w]*+",
    any_case: bool = False,
) -> _Language:
    branches = [first] if first else []
    if comments:
        branches.append(f"(?P<c>{'|'.join(comments)})")
    if strings:
        branches.append(f"(?P<s>{'|'.join(strings)})")
    branches += [rf"(?P<word>{word})", r"(?P<m>\d[\w.]*+)"]
    return _Language(
        re.compile("|".join(branches), re.MULTILINE), frozenset(keywords.split()), any_case
    )


_C_WORDS = (
    "auto bool break case catch char class const continue default delete do double else enum "
    "extern false final float for goto if import int interface long namespace new null "
    "private protected public return short signed sizeof static struct super switch this "
    "throw throws true try typedef union unsigned using var virtual void volatile while "
)
_KEY = r"^[ \t]*+(?:-[ \t]++)?(?P<nt>[\w.\"'/-]++)(?=[ \t]{0,8}[:=])"

_C = _language((_SLASHES, _BLOCK), (_DOUBLE, _CHARACTER), _C_WORDS + (
    "abstract as async await base boolean byte constexpr decimal delegate event explicit extends "
    "finally fixed foreach friend get implements implicit in inline instanceof internal is lock "
    "mutable noexcept nullptr object operator out override package params readonly record ref "
    "sealed set string synchronized template transient typename where yield include define"
))  # fmt: skip
_JAVASCRIPT = _language((_SLASHES, _BLOCK), (_DOUBLE, _SINGLE, _BACKTICK), (
    "abstract any as async await boolean break case catch class const continue debugger declare "
    "default delete do else enum export extends false finally for from function get if implements "
    "import in instanceof interface keyof let namespace never new null number of private protected "
    "public readonly return satisfies set static string super switch this throw true try type "
    "typeof undefined unknown var void while with yield"
), word=r"[^\W\d][\w$]*+|\$[\w$]*+")  # fmt: skip
_PYTHON = _language((_HASH,), (_TRIPLE, _TRIPLE_SINGLE, _DOUBLE, _SINGLE), (
    "False None True and as assert async await break case class continue def del elif else except "
    "finally for from global if import in is lambda match nonlocal not or pass raise return self "
    "try type while with yield"
))  # fmt: skip
_GO = _language((_SLASHES, _BLOCK), (_DOUBLE, _CHARACTER, _BACKTICK), (
    "any bool break byte case chan const continue default defer else error fallthrough false "
    "float64 for func go goto if import int int64 interface map nil package range return rune "
    "select string struct switch true type uint64 var"
))  # fmt: skip
_RUST = _language((_SLASHES, _BLOCK), (_DOUBLE, _CHARACTER), (
    "as async await bool break const continue crate dyn else enum extern false fn for i32 i64 if "
    "impl in let loop match mod move mut pub ref return self Self static str String struct super "
    "trait true type u8 u32 u64 unsafe use usize where while"
))  # fmt: skip
_KOTLIN = _language((_SLASHES, _BLOCK), (_TRIPLE, _DOUBLE, _CHARACTER), (
    "abstract actor as async await break by case catch class companion const continue data def "
    "default defer do else enum extends extension false final finally for fun func given guard if "
    "implicit import in init inline inout interface internal is lateinit lazy let match mutating "
    "new nil null object open operator override package private protected protocol public repeat "
    "return sealed self static struct super suspend switch this throw throws trait true try type "
    "typealias val var when where while with yield"
))  # fmt: skip
_PHP = _language((_SLASHES, _BLOCK, _HASH), (_DOUBLE, _SINGLE), _C_WORDS + (
    "abstract and array as echo elseif empty endforeach endif extends fn foreach function global "
    "implements include instanceof isset list match or print readonly require trait unset use yield"
), word=r"\$?[^\W\d]\w*+")  # fmt: skip
_RUBY = _language((_HASH,), (_DOUBLE, _SINGLE), (
    "BEGIN END alias and begin break case class def do else elsif end ensure false for if "
    "in module my next nil not or our package print private protected public redo require rescue "
    "retry return self sub super then true undef unless until use when while yield function"
))  # fmt: skip
_SHELL = _language((_HASH,), (_DOUBLE, r"'[^']*+'?"), (
    "break case cd continue do done echo elif else esac eval exec exit export fi for function if "
    "in local read return select set shift source sudo then trap unset until while "
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN USER VOLUME WORKDIR "
    "begin catch finally foreach param process throw try"
), word=r"\$?[^\W\d][\w-]*+")  # fmt: skip
_SQL = _language((_DASHES, _BLOCK), (_DOUBLE, r"'[^']*+'?"), (
    "add all alter and as asc begin between by case cascade check column commit constraint create "
    "cross database default delete desc distinct drop else end exists false foreign from full "
    "group having if in index inner insert intersect into is join key left like limit not null "
    "offset on or order outer primary references returning right rollback select set table then "
    "true union unique update using values view when where with"
), any_case=True)  # fmt: skip
_LUA = _language((_DASHES,), (_DOUBLE, _SINGLE), (
    "and break do else elseif end false for function goto if in local nil not or repeat return "
    "then true until while"
))  # fmt: skip
_JSON = _language(
    (_SLASHES, _BLOCK),
    (_DOUBLE,),
    "true false null",
    first=r'(?P<nt>"(?:[^"\\\n]++|\\.)*+"(?=[ \t]{0,8}:))',
)
_CONFIG = _language(
    (_HASH, _SEMICOLON),
    (_TRIPLE, _DOUBLE, _SINGLE),
    "true false null yes no on off",
    first=_KEY,
)
_GRAPHQL = _language((_HASH,), (_TRIPLE, _DOUBLE), (
    "directive enum extend false fragment implements input interface mutation null on query scalar "
    "schema subscription true type union"
))  # fmt: skip
_CSS = _language(
    (_BLOCK,),
    (_DOUBLE, _SINGLE),
    first=r"(?P<k>@[\w-]++|![a-z]++)|(?P<na>(?<![\w-])[\w-]++(?=:))",
    word=r"[.\#]?-{0,2}+[^\W\d][\w-]*+",
)
_MARKUP = _language(
    (_ANGLES,),
    (),
    first=(
        r"(?P<nt></?[^\W\d][\w:.-]*+|/?>)"
        r"|(?P<na>(?<![\w:@.-])[\w:@.-]++(?==[\"']))"
        r"|(?P<s>(?<==)(?:\"[^\"]*+\"?|'[^']*+'?))"
    ),
)
_DIFF = _Language(
    re.compile(r"^(?:(?P<gu>@@[^\n]*+)|(?P<gi>\+[^\n]*+)|(?P<gd>-[^\n]*+))", re.MULTILINE),
    frozenset(),
)

_LANGUAGES = {
    name: language
    for names, language in (
        ("c c++ cpp c# cs csharp h hpp java", _C),
        ("javascript js jsx mjs ts tsx typescript", _JAVASCRIPT),
        ("py py3 python python3", _PYTHON),
        ("go golang", _GO),
        ("rs rust", _RUST),
        ("kotlin kt scala swift", _KOTLIN),
        ("php", _PHP),
        ("perl pl r rb ruby elixir", _RUBY),
        ("bash console docker dockerfile make makefile powershell ps1 sh shell zsh", _SHELL),
        ("mysql postgres postgresql psql sql sqlite", _SQL),
        ("lua", _LUA),
        ("json json5 jsonc", _JSON),
        ("conf env ini nginx properties toml yaml yml", _CONFIG),
        ("gql graphql", _GRAPHQL),
        ("css less scss", _CSS),
        ("htm html svg vue xml", _MARKUP),
        ("diff patch", _DIFF),
    )
    for name in names.split()
}


def highlight(source: str, name: str) -> str:
    """Return code as escaped HTML, with spans if the language (in lower case) is known."""
    language = _LANGUAGES.get(name)
    if language is None:
        return escape(source, quote=False)
    parts = []
    end = 0
    for match in language.pattern.finditer(source):
        kind, text = match.lastgroup, match[match.lastgroup]
        if kind == "word":
            if (text.lower() if language.any_case else text) in language.keywords:
                kind = "k"
            elif source.startswith("(", match.end()):
                kind = "nf"
            else:
                continue
        start = match.start(match.lastgroup)
        parts.append(escape(source[end:start], quote=False))
        parts.append(f'<span class="{kind}">{escape(text, quote=False)}</span>')
        end = match.end(match.lastgroup)
    parts.append(escape(source[end:], quote=False))
    return "".join(parts)
