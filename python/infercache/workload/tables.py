"""CSV and its kin: a line of names, then a line of values for each request; parted by commas, semicolons or tabs."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from infercache.errors import InvalidArgument
from infercache.workload.columns import Reading, batch_of
from infercache.workload.fields import FIELDS, chosen
from infercache.workload.sources import LONGEST_LINE, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infercache.workload.requests import Batch

__all__ = ["names_of", "read"]

_DELIMITERS = ",;\t|"
_ROWS = 50_000


def names_of(line: bytes) -> tuple[list[str], str] | None:
    """The names of the columns and what parts them; None: this is no line of names that are known."""
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    delimiter = max(_DELIMITERS, key=text.count)
    names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])]
    if not names or not all(names) or len(set(names)) != len(names):
        return None
    return names, delimiter


def is_known(names: list[str]) -> bool:
    """Whether one of the names is that of a field."""
    lower = {name.lower() for name in names}
    return any(lower.intersection(recognised) for recognised in FIELDS.values())


def read(source: Source, reading: Reading) -> Iterator[Batch]:
    """The requests of a table with named columns.

    Raises:
        InvalidArgument: its first line names no columns, or none that tells equal questions from different ones.
    """
    csv.field_size_limit(LONGEST_LINE)
    texts = _texts(source, reading)
    header = names_of(next(texts, "").encode())
    if header is None:
        raise InvalidArgument(f"{reading.where}:1: a line with the columns' names is expected, each one different")
    names, delimiter = header
    reading.fields, reading.remarks = chosen(names, reading.given, reading.where)
    places = {field: names.index(at.name) for field, at in reading.fields.items()}
    rows = csv.reader(texts, delimiter=delimiter)
    numbers: list[int] = []
    kept: list[list[str]] = []
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            reading.bad(rows.line_num + 1, f"not CSV: {error}")
            continue
        if row is not None:
            if len(row) == len(names):
                numbers.append(rows.line_num + 1)
                kept.append(row)
            elif row:
                reading.bad(rows.line_num + 1, f"not {len(names)} columns, as the first line has")
        if kept and (row is None or len(kept) == _ROWS):
            yield batch_of(reading, {field: [each[at] for each in kept] for field, at in places.items()}, numbers)
            numbers, kept = [], []
        if row is None:
            return


def _texts(source: Source, reading: Reading) -> Iterator[str]:
    """The lines as text, with their ends: a value in quotes may have several."""
    for first, lines in source.lines():
        for number, line in enumerate(lines, first):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8") + "\n"
            except UnicodeDecodeError:
                reading.bad(number, "not UTF-8 text")
                yield "\n"
