"""JSON Schemas of tools in Gemini's words, which know few of theirs."""

from __future__ import annotations

import json

import pytest

from connections.providers.wire.gemini_schema import MAX_SCHEMAS, parameters
from tests.fakes.vertex import check_schema

SCHEMAS = {
    "types and bounds": (
        {
            "n": {"type": "integer", "minimum": 1, "exclusiveMinimum": 0, "format": "uint8"},
            "s": {"type": "string", "minLength": 1, "pattern": "^a", "format": "uri"},
            "d": {"type": "string", "format": "date-time", "default": "x", "examples": ["y"]},
            "b": {"type": "boolean", "title": "B", "description": "Whether."},
        },
        {
            "n": {"type": "INTEGER", "minimum": 1},
            "s": {"type": "STRING", "minLength": 1, "pattern": "^a"},
            "d": {"type": "STRING", "format": "date-time"},
            "b": {"type": "BOOLEAN", "title": "B", "description": "Whether."},
        },
    ),
    "lists": (
        {
            "a": {"type": "array", "items": {"type": "number"}, "uniqueItems": True},
            "b": {"type": "array"},
        },
        {
            "a": {"type": "ARRAY", "items": {"type": "NUMBER"}},
            "b": {"type": "ARRAY", "items": {"type": "STRING"}},
        },
    ),
    "choices": (
        {
            "a": {"enum": ["x", "y"]},
            "b": {"const": "z"},
            "c": {"type": "integer", "enum": [1, 2], "description": "How many."},
        },
        {
            "a": {"type": "STRING", "enum": ["x", "y"]},
            "b": {"type": "STRING", "enum": ["z"]},
            "c": {"type": "INTEGER", "description": "How many. One of: 1, 2."},
        },
    ),
    "null": (
        {
            "a": {"type": ["string", "null"], "description": "Maybe."},
            "b": {"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "B"},
            "c": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        },
        {
            "a": {"type": "STRING", "nullable": True, "description": "Maybe."},
            "b": {"type": "INTEGER", "nullable": True, "title": "B"},
            "c": {"anyOf": [{"type": "INTEGER"}, {"type": "STRING"}]},
        },
    ),
    "objects": (
        {
            "o": {
                "type": "object",
                "properties": {"x": {"type": "string"}},
                "required": ["x", "gone", "x"],
                "additionalProperties": False,
                "anyOf": [{"required": ["x"]}],
            },
            "p": {"type": "object"},
            "q": {"properties": {"x": True}},
        },
        {
            "o": {"type": "OBJECT", "properties": {"x": {"type": "STRING"}}, "required": ["x"]},
            "p": {"type": "OBJECT"},
            "q": {"type": "OBJECT", "properties": {"x": {"type": "STRING"}}},
        },
    ),
    "what stands elsewhere": (
        {
            "a": {"$ref": "#/$defs/Place", "description": "Where."},
            "b": {"allOf": [{"$ref": "#/$defs/Place"}, {"properties": {"z": {"type": "number"}}}]},
            "c": {"$ref": "https://elsewhere.example/schema"},
        },
        {
            "a": {
                "type": "OBJECT",
                "properties": {"y": {"type": "STRING"}},
                "required": ["y"],
                "description": "Where.",
            },
            "b": {
                "type": "OBJECT",
                "properties": {"y": {"type": "STRING"}, "z": {"type": "NUMBER"}},
                "required": ["y"],
            },
            "c": {"type": "STRING"},
        },
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_in_geminis_words(name):
    given, expected = SCHEMAS[name]
    place = {"type": "object", "properties": {"y": {"type": "string"}}, "required": ["y"]}
    cleaned = parameters(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": given,
            "$defs": {"Place": place},
        }
    )
    assert cleaned == {"type": "OBJECT", "properties": expected}
    check_schema(cleaned, "x")


@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"type": "object", "properties": {}}, {"type": "string"}]
)
def test_a_tool_that_takes_nothing_has_no_parameters(schema):
    assert parameters(schema) is None


def test_a_schema_that_points_at_itself_ends():
    node = {"type": "object", "properties": {c: {"$ref": "#/$defs/N"} for c in "abcdefgh"}}
    for root in (
        {"$defs": {"N": node}, **node},
        {"$defs": {"N": {"$ref": "#/$defs/N"}}, "properties": {"a": {"$ref": "#/$defs/N"}}},
        {"$defs": {"N": {"allOf": [{"$ref": "#/$defs/N"}] * 9}}, "allOf": [{"$ref": "#/$defs/N"}]},
    ):
        cleaned = parameters(root)
        assert len(json.dumps(cleaned)) < MAX_SCHEMAS * 100
        if cleaned:
            check_schema(cleaned, "x")


@pytest.mark.parametrize(
    "odd",
    [
        {"type": 5, "enum": 5, "required": 5, "items": 5},
        {"anyOf": 5, "allOf": [5], "$ref": 5},
        {"anyOf": [5, True]},
        {"properties": 5},
        {"properties": {"x": None}, "required": [{}, 5, "x"]},
        {"enum": [None, {}, "x"], "minimum": True, "maxLength": "5"},
        {"$ref": "#/properties/x"},
        5,
        None,
    ],
)
def test_an_odd_schema_is_still_a_valid_one(odd):
    cleaned = parameters({"properties": {"x": odd, "y": {"type": "string"}}})
    check_schema(cleaned, "x")
    assert cleaned["properties"]["y"] == {"type": "STRING"}
