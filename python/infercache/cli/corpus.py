"""Texts for the demo: what any machine with Python has, or a file of the caller's."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from infercache.cli import source
from infercache.errors import InvalidArgument

__all__ = ["lines_of", "standard_library_docstrings"]

# Packages of the standard library whose docstrings are test fixtures, or copies of another package's.
SKIPPED = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "__pycache__"}


def lines_of(path: Path) -> list[str]:
    """The non-empty lines of a UTF-8 text file (`-`: standard input), in their order and with their repeats.

    Raises:
        InvalidArgument: it cannot be read, is not UTF-8, or has no text.
    """
    lines = [line for line in (line.strip() for line in source.text(path).splitlines()) if line]
    if not lines:
        raise InvalidArgument(f"{path}: no text in it; one a line is expected")
    return lines


def standard_library_docstrings(limit: int, seed: int) -> list[str]:
    """At most `limit` distinct summaries (first paragraphs) of docstrings of the standard library's modules.

    The files are visited in an order that `seed` decides, so the texts come from all over the library, and the same
    Python gives the same texts for the same seed.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if not SKIPPED.intersection(path.relative_to(root).parts))
    shuffle = random.Random(seed)  # noqa: S311 (which docstrings a demo reads is no secret)
    shuffle.shuffle(files)
    texts: dict[str, None] = {}  # a set that keeps its order
    for path in files:
        texts.update(dict.fromkeys(summaries(path)))
        if len(texts) >= limit:
            break
    chosen = list(texts)[:limit]
    shuffle.shuffle(chosen)  # the popularity that a text gets has nothing to do with the file it stands in
    return chosen


def summaries(path: Path) -> Iterator[str]:
    """The first paragraph of each docstring of a Python file, on one line; nothing for a file that does not parse."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            if text:
                yield text
