"""What looks like a secret in a file, and a copy of its JSON without it. Pure functions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

from django.utils.translation import gettext as _

from connections.schema.document import KNOWN, Refused

_SHOWN_FROM = 2_000  # characters of a text that are looked at before some of it is shown

# Every repetition before something that must follow is bounded: a hostile text costs linear time.
_SECRET_VALUE = re.compile(
    r"""(?ix)
    \b(sk|rk)-[a-z0-9_-]{12,}
    | \b(sk|rk)_(live|test)_[a-z0-9]{8,}
    | \b(gsk|r8|hf|gh[opsu]|fw|vck|tgp_v1)_[a-z0-9_-]{16,}
    | \b(xai|pplx|csk|nvapi|glpat)-[a-z0-9_-]{20,}
    | \bxox[abprs]-[a-z0-9-]{10,}
    | \bgithub_pat_[a-z0-9_]{12,}
    | \bya29\.[a-z0-9_-]{12,}
    | \b(?-i:AKIA|ASIA|ABSK)[a-z0-9+/=]{12,}
    | \b(?-i:AIza)[a-z0-9_-]{20,}
    | \b(?-i:eyJ)[a-z0-9_-]{8,120}\.[a-z0-9_-]{4,}
    | -----BEGIN\s
    | \b(bearer|basic)\s{1,20}(?=[a-z._~+/=-]{0,200}[0-9])[a-z0-9._~+/=-]{8,}
    | ://[^/\s@]{1,500}@
    """
)
_RANDOM = re.compile(r"[A-Za-z0-9+=]{24,}")
_SECRET_WORDS = frozenset(
    {
        "apikey",
        "authorization",
        "bearer",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "headers",
        "jwt",
        "passphrase",
        "passwd",
        "password",
        "pwd",
        "secret",
        "secrets",
        "token",
    }
)
_KEY_WORDS = frozenset(
    {"access", "account", "api", "auth", "encryption", "master", "private", "secret", "signing"}
)


def has_secret_form(text: str) -> bool:
    """Whether a text has a provider's key, a token or a password in an address in it."""
    return _SECRET_VALUE.search(text) is not None


def looks_secret(text: str) -> bool:
    """`has_secret_form`, or a long run of mixed letters and digits; not for addresses and names,
    which may have one by nature."""
    return has_secret_form(text) or any(
        re.search("[0-9]", run) and re.search("[A-Za-z]", run) and len(set(run)) >= 10
        for run in _RANDOM.findall(text)
    )


def shown(value: Any) -> str:
    """A text of the file as it may be shown: short, without control characters, and "…" for one
    that has a secret in it."""
    if not isinstance(value, str):
        return ""
    if has_secret_form(value[:_SHOWN_FROM]):
        return "…"
    text = "".join(c for c in value[:200] if c.isprintable()).strip()
    return text if len(text) <= 100 else f"{text[:99]}…"


def _names_secret(name: str) -> bool:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", spaced) if word]
    if _SECRET_WORDS.intersection(words) or words in (["key"], ["keys"]):
        return True
    return any(
        word in ("key", "keys") and before in _KEY_WORDS
        for before, word in itertools.pairwise(words)
    )


def _says_something(value: Any) -> bool:
    return value not in (None, "", [], {}) and not isinstance(value, bool)


def without_secrets(value: Any, left_out: list[str], *, path: str = "") -> Any:
    """A copy of a connection's JSON without what looks like a secret, by name or by form.
    `left_out` gets the paths.

    The connection's own texts at the top aren't left out but refused: without its address or its
    model it would be another connection. Raises `Refused`.
    """
    if isinstance(value, list):
        kept = []
        for number, inner in enumerate(value):
            where = f"{path}[{number}]"
            if isinstance(inner, str) and _check_of(where)(inner):
                left_out.append(shown(where))
            else:
                kept.append(without_secrets(inner, left_out, path=where))
        return kept
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, inner in value.items():
        where = f"{path}.{name}" if path else name
        own = where in _OWN_TEXTS
        if looks_secret(name):
            left_out.append(f"{path}.…" if path else "…")
        elif own and isinstance(inner, str) and _check_of(where)(inner):
            raise Refused(
                _("%(name)s: this looks like a secret. Remove it, and replace that secret.")
                % {"name": name}
            )
        elif (isinstance(inner, str) and _check_of(where)(inner)) or (
            not own and _names_secret(name) and _says_something(inner)
        ):
            left_out.append(shown(where))
        else:
            found[name] = without_secrets(inner, left_out, path=where)
    return found


def _check_of(path: str) -> Callable[[str], bool]:
    long_by_nature = path in _LONG_BY_NATURE or _MODEL_TEXT.fullmatch(path)
    return has_secret_form if long_by_nature else looks_secret


_OWN_TEXTS = KNOWN | {"piAuthProvider", "type"}
_LONG_BY_NATURE = {"baseUrl", "codexPath", "defaultModel", "name", "note", "slug"}
_MODEL_TEXT = re.compile(r"models\[[0-9]+\](\.(id|name|shortName))?")
