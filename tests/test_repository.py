"""The repository keeps its own rules: small files, short functions, nothing left undone, nothing of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Written by tools, or a licence that is what it is.
GENERATED = {"Cargo.lock", "constraints.txt", "LICENSE"}
BYTES = {".bin"}  # golden files: no text, and no person writes them
LONGEST_FILE = 500  # the unit tests that a Rust module ends with do not count
UNIT_TESTS = re.compile(r"^#\[cfg\((?:all\()?test\b.*\)\]\nmod tests\b", re.MULTILINE)
LONGEST_FUNCTION = 70

FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.$)}<-])/(?:home|root|work|Users|tmp)/\w"),
    "an address of a private network": re.compile(r"\b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+\b"),
    "something left undone": re.compile(r"\b(?:[T]ODO|[F]IXME|[X]XX|[H]ACK)\b"),
}


@pytest.fixture(scope="module")
def sources(root: Path) -> list[Path]:
    """Every text file of the repository that a person writes."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        check=False,
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    files = [root / name for name in listed.stdout.splitlines()]
    return [path for path in files if path.is_file() and path.name not in GENERATED and path.suffix not in BYTES]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length in lines, decorators and docstring aside, of each function of a Python file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            yield node.name, node.end_lineno - first.lineno + 1


def length(path: Path) -> int:
    """The lines of a file."""
    text = path.read_text()
    return len((UNIT_TESTS.split(text)[0] if path.suffix == ".rs" else text).splitlines())


def test_files_are_short(sources: list[Path]) -> None:
    assert not {path.name: length(path) for path in sources if length(path) > LONGEST_FILE}


def test_functions_are_short(sources: list[Path]) -> None:
    """Python's; clippy.toml bounds Rust's."""
    python = [path for path in sources if path.suffix == ".py"]
    long = {
        f"{path.name}: {name}": lines for path in python for name, lines in functions(path) if lines > LONGEST_FUNCTION
    }
    assert python
    assert not long


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str, sources: list[Path]) -> None:
    found = {
        f"{path.name}:{number}: {line.strip()}"
        for path in sources
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FORBIDDEN[what].search(line)
    }
    assert not found


def test_no_file_is_a_drawer(sources: list[Path]) -> None:
    """No drawers: a file is named after the one concept that it holds."""
    drawers = {"utils", "util", "helpers", "helper", "misc", "common", "stuff"}
    assert not [path.name for path in sources if path.stem in drawers or path.stem.removeprefix("test_") in drawers]
