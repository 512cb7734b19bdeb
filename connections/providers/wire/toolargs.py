"""Arguments of tool calls, which models write and sometimes write wrongly."""

from __future__ import annotations

from typing import Any

from connections.providers.wire.lenient_json import clean, dumps, loads


def written(value: Any) -> str:
    """Arguments that came as an object where the format has text."""
    try:
        return dumps(value).decode()
    except ValueError:
        return "[nested too deeply]"


def parse(raw: str) -> tuple[dict[str, Any], str]:
    """`(args, "")`, or `({}, raw)` when `raw` is not a JSON object that can be stored and sent
    back. No arguments at all is an empty object."""
    if not raw.strip():
        return {}, ""
    try:
        # written and read again: numbers without bound become null, as JSON has none
        args = loads(dumps(loads(raw.encode("utf-8", "replace"))))
    except ValueError:
        args = None
    return (args, "") if isinstance(args, dict) else ({}, clean(raw))
