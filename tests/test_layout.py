"""Who may know whom: sessions → connections → workspaces, and nothing but Django knows config.

Imports, foreign keys named in a string and migrations are read from the source, so that a line that
breaks the rule is named even when nothing runs it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# An app may know itself and what stands below it.
LAYERS = ("workspaces", "connections", "sessions")
LABELS = {"workspaces": "workspaces", "connections": "connections", "agent_sessions": "sessions"}
OPEN_TO_ALL = "config.env"
PURE = "connections/providers"  # takes dataclasses and a client; knows no models and no Django


def broken(path: Path, app: str) -> Iterator[str]:
    """`file:line: sentence` for each line of the module that reaches where it mustn't."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in ast.walk(tree):
        for name in _modules(node, path, app):
            if sentence := _refused(name, app, path):
                yield f"{path}:{node.lineno}: {sentence}"
        if (label := _model_label(node)) and _above(LABELS[label], app):
            yield f"{path}:{node.lineno}: {app} points at a model of {LABELS[label]}"
        for label in _migration_labels(node):
            if _above(LABELS[label], app):
                yield f"{path}:{node.lineno}: a migration of {app} depends on {LABELS[label]}"


def _modules(node: ast.AST, path: Path, app: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level:
        return []  # within its own app
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if (
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        return [str(node.args[0].value)]
    return []


def _refused(name: str, app: str, path: Path) -> str:
    top = name.partition(".")[0]
    if top == "tests":
        return f"{app} imports {name}"
    if top == "config" and not f"{name}.".startswith(f"{OPEN_TO_ALL}."):
        return f"{app} imports {name}"
    if top in LAYERS and _above(top, app):
        return f"{app} imports {name}, which stands above it"
    if PURE in path.as_posix() and (
        name.startswith("django.db") or (".models" in f".{name}" and top in LAYERS)
    ):
        return f"a provider imports {name}"
    return ""


def _above(other: str, app: str) -> bool:
    return LAYERS.index(other) > LAYERS.index(app)


def _model_label(node: ast.AST) -> str:
    """The app's label in `ForeignKey("label.Model")` and its like."""
    if isinstance(node, ast.Call) and getattr(node.func, "attr", "").endswith(
        ("ForeignKey", "OneToOneField", "ManyToManyField", "get_model")
    ):
        for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                label = value.value.partition(".")[0].lower()
                if label in LABELS:
                    return label
    return ""


def _migration_labels(node: ast.AST) -> list[str]:
    if not isinstance(node, ast.Assign) or getattr(node.targets[0], "id", "") != "dependencies":
        return []
    pairs = [entry.elts for entry in ast.walk(node.value) if isinstance(entry, ast.Tuple)]
    first = [pair[0].value for pair in pairs if pair and isinstance(pair[0], ast.Constant)]
    return [label for label in first if label in LABELS]


def test_no_module_reaches_above_itself_or_into_config():
    found = [
        line
        for app in LAYERS
        for path in sorted((ROOT / app).rglob("*.py"))
        for line in broken(path.relative_to(ROOT), app)
    ]
    assert found == [], "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("app", "line"),
    [
        ("workspaces", "from connections.models import Connection"),
        ("workspaces", "import sessions"),
        ("connections", "    from sessions import turns"),
        ("connections", 'import_module("sessions.turns")'),
        ("sessions", "from config import celery_app"),
        ("sessions", "from config.settings import DATA_DIR"),
        ("workspaces", "from tests.builders import make_user"),
        ("workspaces", 'owner = models.ForeignKey("connections.Connection", models.CASCADE)'),
        ("connections", 'chat = models.ForeignKey(to="agent_sessions.ChatSession")'),
        ("connections", 'apps.get_model("agent_sessions", "ChatSession")'),
        ("workspaces", 'dependencies = [("connections", "0001_initial")]'),
    ],
)
def test_a_line_that_breaks_the_rule_is_named(tmp_path, app, line):
    path = tmp_path / "module.py"
    path.write_text("def late():\n    pass\n" + ("if True:\n" if line[0] == " " else "") + line)
    assert [entry.split(": ")[0] for entry in broken(path, app)] == [
        f"{path}:{4 if line[0] == ' ' else 3}"
    ]


@pytest.mark.parametrize(
    ("app", "line"),
    [
        ("sessions", "from connections.models import Connection"),
        ("connections", "from workspaces import vault"),
        ("connections", "from config import env"),
        ("connections", "from config.env import BadEnv"),
        ("sessions", "from django.contrib.sessions.models import Session"),
        ("sessions", 'connection = models.ForeignKey("connections.Connection", models.PROTECT)'),
    ],
)
def test_a_line_that_keeps_it_is_not(tmp_path, app, line):
    path = tmp_path / "module.py"
    path.write_text(line)
    assert list(broken(path, app)) == []
