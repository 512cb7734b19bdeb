"""JSON Schema of a tool, as far as Gemini's own `Schema` has words for it.

Gemini refuses a whole request for one keyword that it doesn't know, and MCP servers send all of
them. What can't be said is left out: the schema tells the model what to write, it checks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from connections.providers.wire.lenient_json import clean

MAX_DEPTH = 12  # deeper, or pointing at itself: any object
MAX_SCHEMAS = 2_000  # in one tool's, with what they point at put in

_TYPES = {
    "array": "ARRAY",
    "boolean": "BOOLEAN",
    "integer": "INTEGER",
    "number": "NUMBER",
    "object": "OBJECT",
    "string": "STRING",
}
_FORMATS = {
    "STRING": ("date-time",),
    "NUMBER": ("float", "double"),
    "INTEGER": ("int32", "int64"),
}
_BOUNDS = {
    "STRING": ("minLength", "maxLength"),
    "ARRAY": ("minItems", "maxItems"),
    "INTEGER": ("minimum", "maximum"),
    "NUMBER": ("minimum", "maximum"),
    "OBJECT": ("minProperties", "maxProperties"),
}


def parameters(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters of a function; None for one that takes nothing, as an object without
    properties is refused there."""
    cleaned = _Cleaner(schema).schema(schema, 0)
    if cleaned.get("type") != "OBJECT" or not cleaned.get("properties"):
        return None
    return cleaned


class _Cleaner:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MAX_SCHEMAS

    def schema(self, given: Any, depth: int) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            return {"type": "STRING"}  # `true`, which allows all
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            return {"type": "OBJECT"}
        given = self._resolved(given)
        made: dict[str, Any] = {}
        for name in ("title", "description"):
            if isinstance(text := given.get(name), str) and text:
                made[name] = clean(text)
        variants, nullable = self._variants(given)
        if nullable:
            made["nullable"] = True
        if len(variants) == 1:
            made = {**self.schema(variants[0], depth + 1), **made}
        elif variants:
            made["anyOf"] = [self.schema(one, depth + 1) for one in variants]
        else:
            self._typed(given, made, depth)
        return made

    def _resolved(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """With what its `$ref` and `allOf` stand for put in."""
        for _ in range(MAX_DEPTH):
            pieces = [one for one in _list(given.get("allOf")) if isinstance(one, Mapping)]
            if isinstance(ref := given.get("$ref"), str):
                pieces.append(self._at(ref))
            if not pieces:
                return given
            own = {k: v for k, v in given.items() if k not in ("$ref", "allOf")}
            properties: dict[str, Any] = {}
            required: list[Any] = []
            merged: dict[str, Any] = {}
            for piece in [*pieces, own]:
                merged |= piece
                if isinstance(found := piece.get("properties"), Mapping):
                    properties |= found
                required += _list(piece.get("required"))
            if properties:
                merged |= {"properties": properties, "required": required}
            given = merged
        return {"type": "object"}

    def _at(self, ref: str) -> Mapping[str, Any]:
        found: Any = self._root
        if not ref.startswith("#/"):
            return {}
        for step in ref[2:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            found = found.get(step) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def _variants(self, given: Mapping[str, Any]) -> tuple[list[Any], bool]:
        """The alternatives, when there are such, and whether null is one of them."""
        nullable = given.get("nullable") is True
        if isinstance(given.get("properties"), Mapping):
            return [], nullable  # the alternatives only say which of them are required
        variants = [*_list(given.get("anyOf")), *_list(given.get("oneOf"))]
        if not variants and isinstance(given.get("type"), list):
            rest = {k: v for k, v in given.items() if k not in ("description", "title")}
            variants = [{**rest, "type": one} for one in given["type"]]
        kept = []
        for one in variants:
            if isinstance(one, Mapping) and one.get("type") == "null":
                nullable = True
            else:
                kept.append(one)
        return kept, nullable

    def _typed(self, given: Mapping[str, Any], made: dict[str, Any], depth: int) -> None:
        choices = [given["const"]] if "const" in given else _list(given.get("enum"))
        kind = _TYPES.get(str(given.get("type"))) or _inferred(given, choices)
        made["type"] = kind
        if choices and kind == "STRING" and all(isinstance(one, str) for one in choices):
            made["enum"] = [clean(one) for one in choices]
        elif choices:  # only texts can be listed
            listed = ", ".join(str(one) for one in choices if one is not None)
            words = f"{made.get('description', '')} One of: {listed}."
            made["description"] = clean(words).strip()
        if given.get("format") in _FORMATS.get(kind, ()):
            made["format"] = given["format"]
        if kind == "STRING" and isinstance(given.get("pattern"), str):
            made["pattern"] = clean(given["pattern"])
        for name in _BOUNDS.get(kind, ()):
            bound = given.get(name)
            if isinstance(bound, int | float) and not isinstance(bound, bool):
                made[name] = bound
        if kind == "ARRAY":
            made["items"] = self.schema(given.get("items", True), depth + 1)
        elif kind == "OBJECT" and isinstance(found := given.get("properties"), Mapping) and found:
            made["properties"] = {
                clean(str(name)): self.schema(value, depth + 1) for name, value in found.items()
            }
            required = [one for one in _list(given.get("required")) if isinstance(one, str)]
            if known := [one for one in dict.fromkeys(required) if one in made["properties"]]:
                made["required"] = known


def _inferred(given: Mapping[str, Any], choices: list[Any]) -> str:
    if isinstance(given.get("properties"), Mapping):
        return "OBJECT"
    if "items" in given:
        return "ARRAY"
    first = choices[0] if choices else ""
    for types, kind in ((bool, "BOOLEAN"), (int, "INTEGER"), (float, "NUMBER")):
        if isinstance(first, types):
            return kind
    return "STRING"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
