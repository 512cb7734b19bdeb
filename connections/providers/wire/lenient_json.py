"""JSON as providers really send it.

orjson reads what is well formed; what it refuses but a person could still read (bytes that are not
UTF-8, half a surrogate pair, numbers without bound, NaN) is read a second, slower time. No text
from here holds a lone surrogate or a NUL: neither can be stored in a database nor sent on.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

MAX_ITEMS = 400_000  # values of one text: two bytes of it can be a hundred of memory
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # up to its end, or that of the text
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def loads(data: bytes) -> Any:
    """Raises ValueError if `data` is not JSON, or has more than `MAX_ITEMS` values."""
    if len(data) > MAX_ITEMS < _items(data) and _items(_STRING.sub(b"", data)) > MAX_ITEMS:
        raise ValueError("JSON of too many parts")
    try:
        value = orjson.loads(data)
        if b"\\u0000" not in data:
            return value
    except orjson.JSONDecodeError:
        value = None
    try:
        if value is None:
            value = json.loads(data.decode("utf-8", "replace"), parse_int=_integer)
        return _storable(value)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _items(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def dumps(value: Any) -> bytes:
    """Raises ValueError if `value` can't be written, which only too deep a nesting can cause in
    data that came from `loads`."""
    try:
        return orjson.dumps(value)
    except TypeError:
        pass
    try:
        return orjson.dumps(_storable(value))
    except (TypeError, RecursionError):
        raise ValueError("not writable as JSON") from None


def clean(text: str) -> str:
    """`text` with U+FFFD in place of lone surrogates and NUL."""
    return _UNSTORABLE.sub("\ufffd", text)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): _storable(item) for key, item in value.items()}
    return value
