"""docs/must-hold.md names, for every statement, tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "must-hold.md").read_text()
ROWS = re.findall(r"^\| ([A-Z]\d+) \| ([^|]+) \| ([^|]+) \|$", TEXT, re.MULTILINE)
LAST = {"S": 8, "E": 7, "A": 6, "B": 4, "U": 2, "L": 4, "Q": 12, "D": 2, "O": 5}


def named_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
    }


def missing(cell: str) -> list[str]:
    """What a row names and nobody finds; `path::name` in backticks, with commas."""
    named = re.findall(r"`([^`]+)`", cell)
    found = []
    for one in named:
        path, _, name = one.partition("::")
        file = ROOT / "tests" / path
        if not file.is_file() or (name not in named_in(file)):
            found.append(one)
    return found or ([] if named else ["no test is named"])


def test_every_statement_has_a_row_and_every_row_an_existing_test():
    assert [number for number, _, _ in ROWS] == [
        f"{letter}{n}" for letter, last in LAST.items() for n in range(1, last + 1)
    ]
    assert {number: gone for number, _, cell in ROWS if (gone := missing(cell))} == {}


def test_a_test_that_is_gone_would_be_found():
    assert missing("`test_must_hold.py::test_that_is_gone`, `gone.py::test_x`") == [
        "test_must_hold.py::test_that_is_gone",
        "gone.py::test_x",
    ]
    assert missing("none") == ["no test is named"]
    assert missing("`test_must_hold.py::test_a_test_that_is_gone_would_be_found`") == []
