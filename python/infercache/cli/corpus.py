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


def lines_of(path: Path, column: int | None = None) -> tuple[list[str], int]:
    """The texts of a UTF-8 file, one a line (`-`: standard input), in their order and with their repeats.

    Args:
        path: the file.
        column: where tabs part a line: which part is its text, counted from 1; 0: the whole line; None: the last, if
            all lines have as many parts, as a log's do, else the whole line.

    Returns:
        The texts that are not empty, and the column that they stand in; 0: they are whole lines.

    Raises:
        InvalidArgument: it cannot be read, is not UTF-8, or has no text.
    """
    rows = [line.split("\t") for line in source.text(path).splitlines() if line.strip()]
    if column is None:
        sizes = {len(row) for row in rows}
        column = max(sizes) if len(sizes) == 1 and sizes != {1} else 0
    found = ("\t".join(row) if column == 0 else "".join(row[column - 1 : column]) for row in rows)
    lines = [text for text in (text.strip() for text in found) if text]
    if not lines:
        where = f" in column {column}" if column else ""
        raise InvalidArgument(f"{path}: no text in it{where}; one a line is expected")
    return lines, column


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
