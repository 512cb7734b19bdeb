"""What a worker says of a running turn, in the words of whoever reads it.

A worker knows no reader: one session may be open in several languages. So it publishes what it has
to say by name, and the process that serves a page words it (the events are in `sessions.bus`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from sessions.reply import thinking_html, tool_html
from sessions.tool_servers import sentence

# The name of what is said, and its values.
type Said = tuple[str, Mapping[str, Any]]

_SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "rate_limited": lambda v: _("The provider limits the rate."),
    "overloaded": lambda v: _("The provider is overloaded."),
    "connect": lambda v: _("The provider can't be reached."),
    "again": lambda v: (
        ngettext("Trying again in %(n)d second.", "Trying again in %(n)d seconds.", v["n"]) % v
    ),
    "window": lambda v: _("The model's window is full: it is sent older tool results shortened."),
    "codex": lambda v: _("Waiting for a free Codex process…"),
    "tools": lambda v: _("Some tools can't be used now."),
    "tool_server": lambda v: (
        _("“%(name)s”: %(why)s") % {"name": v["name"], "why": sentence(v["kind"])}
    ),
    "tool_schemas": lambda v: (
        ngettext(
            "“%(name)s”: %(n)d of its tools describes its arguments in a way that models aren't "
            "offered.",
            "“%(name)s”: %(n)d of its tools describe their arguments in a way that models aren't "
            "offered.",
            v["n"],
        )
        % v
    ),
    "tools_left_out": lambda v: (
        ngettext(
            "%(n)d tool is left out: there are too many for this model.",
            "%(n)d tools are left out: there are too many for this model.",
            v["n"],
        )
        % v
    ),
}


def notice(said: Sequence[Said]) -> str:
    """What a page shows above the composer; "" for nothing. What a newer worker says that this
    process doesn't know is left out."""
    known = [(_SENTENCES[name], values) for name, values in said if name in _SENTENCES]
    return " ".join(word(values) for word, values in known)


# An event of the log → the event of the page that it becomes.
BECOMES = {"say": "notice", "tool": "block", "thought": "block"}


def worded(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """What an event among `BECOMES` carries to a page, in the active language."""
    if name == "say":
        return {"t": notice(data["said"])}
    if name == "tool":
        html = tool_html(data["call"], data.get("result"))
    else:
        html = thinking_html(data["text"], is_open=False, ms=data.get("ms"))
    return {"m": data["m"], "b": data["b"], "c": 1, "h": html}
