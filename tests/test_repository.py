"""What is installed is locked by its hash and free of known holes; what is kept here and what is
served names no foreign host and no machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
ADVISORIES = json.loads((ROOT / "tests" / "advisories.json").read_text())

# -- what is installed -----------------------------------------------------------------------------


def entries(text: str) -> list[str]:
    """A requirements file's logical lines, without comments."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*$|\s#.*$", "", text)).splitlines()
    return [line.strip() for line in lines if line.strip()]


def pins(text: str) -> dict[str, Version]:
    """Package → version. Raises ValueError for a line that isn't `name==version --hash=…`."""
    found = {}
    for line in entries(text):
        requirement, *hashes = re.split(r"\s+--hash=", line)
        parsed = Requirement(requirement)
        specifiers = list(parsed.specifier)
        if parsed.url or len(specifiers) != 1 or specifiers[0].operator != "==":
            raise ValueError(f"not pinned: {line[:80]}")
        if not hashes or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes):
            raise ValueError(f"not locked by hash: {line[:80]}")
        found[canonicalize_name(parsed.name)] = Version(specifiers[0].version)
    return found


def known_holes(text: str) -> list[str]:
    locked = pins(text)
    return [
        f"{advisory['id']}: {name} {locked[name]}"
        for advisory in ADVISORIES
        if (name := canonicalize_name(advisory["package"])) in locked
        and any(locked[name] in SpecifierSet(range_) for range_ in advisory["vulnerable"])
    ]


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_locked_by_hash_and_without_a_known_hole(path):
    assert known_holes(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "httpx>=0.28 --hash=sha256:" + "0" * 64,
        "httpx==0.28.1",
        "httpx==0.28.1 --hash=md5:00",
        "httpx @ https://example.org/httpx.whl --hash=sha256:" + "0" * 64,
        "--extra-index-url https://example.org/simple",
    ],
)
def test_a_line_that_locks_nothing_is_refused(line):
    with pytest.raises(ValueError, match=r"."):
        pins(line)


def test_a_version_with_a_known_hole_is_found():
    seeded = "\n".join(
        f"{name}=={version} \\\n    --hash=sha256:{'0' * 64}\n    # via somebody"
        for name, version in {"Django": "5.0.7", "pillow": "10.0.0", "idna": "3.20"}.items()
    )
    found = known_holes(seeded)
    assert "CVE-2024-42005: django 5.0.7" in found
    assert "CVE-2023-4863: pillow 10.0.0" in found
    assert not any("idna" in line for line in found)


@pytest.mark.parametrize(("name", "groups"), [("run", []), ("dev", ["dev"])])
def test_the_lock_is_what_the_project_asks_for(name, groups):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"]]
    for group in groups:
        asked += project["dependency-groups"][group]
    locked = pins((ROOT / "requirements" / f"{name}.txt").read_text())
    for requirement in map(Requirement, asked):
        if requirement.marker and not requirement.marker.evaluate(default_environment()):
            continue
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement


# -- what is kept ----------------------------------------------------------------------------------

_FOREIGN = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|proxy\.golang\.org|crates\.io)\b"
    r"|(?<![\w.@/-])/(?:root|work|home/[a-z]+|Users/[A-Za-z]+)/"
)


def tracked() -> Iterator[Path]:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("no git checkout: what is tracked can't be told")
    command = ["git", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in names.decode().split("\0"):
        if name and (path := ROOT / name).is_file() and path != Path(__file__):
            yield path


def test_nothing_tracked_names_a_registry_or_a_place_on_one_machine():
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {match[0]}"
            for number, line in enumerate(text.splitlines(), start=1)
            if (match := _FOREIGN.search(line))
        ]
    assert found == [], "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line",
    ["url = https://files.pythonhosted.org/x", 'HOME = "/home/somebody/x"', "cd /Users/Me/x"],
)
def test_such_a_line_would_be_found(line):
    assert _FOREIGN.search(line)


# -- what is served --------------------------------------------------------------------------------

_LOADS = re.compile(
    r"""(?:\b(?:src|srcset|href|action|formaction|poster|data|hx-[a-z:-]+)\s*=\s*["']?\s*"""
    r"""|url\(\s*["']?|@import\s+["']|\b(?:fetch|import|EventSource|WebSocket)\(\s*["'`]"""
    r"""|\bfrom\s+["'])((?:https?:|wss?:)?//[^\s"'`)>]+)"""
)


def off_origin(text: str) -> list[str]:
    """Addresses elsewhere that a page would load, send to or connect to; a link that a person
    follows is none."""
    found = []
    for match in _LOADS.finditer(text):
        tag = text[text.rfind("<", 0, match.start()) + 1 : match.start()].split(None, 1)
        if not (match[0].startswith("href") and tag and tag[0] == "a"):
            found.append(match[1])
    return found


def test_no_page_loads_anything_from_elsewhere():
    found = [
        f"{path.relative_to(ROOT)}: {address}"
        for folder in ("templates", "static")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".html", ".css", ".js", ".svg"}
        for address in off_origin(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/htmx.js"></script>',
        "<link rel=stylesheet href=//fonts.example/css>",
        "@import 'https://fonts.example/css';",
        "a { background: url(https://img.example/x.png) }",
        'import x from "https://esm.example/x"',
        "new EventSource('https://elsewhere.example/')",
        '<form action="https://elsewhere.example/">',
    ],
)
def test_an_address_elsewhere_would_be_found(text):
    assert off_origin(text)


def test_a_link_that_a_person_follows_is_none():
    assert off_origin('<a class="x" href="https://docs.example/">how</a>') == []
