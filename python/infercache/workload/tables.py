"""CSV and its kin: a line of names, then a line of values for each request; parted by commas, semicolons or tabs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from infercache.errors import InvalidArgument
from infercache.workload import log_lines
from infercache.workload.columns import Reading, batch_of
from infercache.workload.fields import FIELDS, chosen
from infercache.workload.sources import LONGEST_LINE, Source

if TYPE_CHECKING:
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
    blocks = source.whole_lines()
    head, _, beginning = next(blocks)[1].partition(b"\n")
    header = names_of(head)
    if header is None:
        raise InvalidArgument(f"{reading.where}:1: a line with the columns' names is expected, each one different")
    names, delimiter = header
    reading.fields, reading.remarks = chosen(names, reading.given, reading.where)
    form = _Form(reading, names, delimiter)
    blocks = chain([(2, beginning)], blocks)
    for first, block in blocks:
        if b'"' in block:
            # A value in quotes may have a delimiter in it, or the end of a line: the rest is read line by line.
            yield from form.quoted(chain([(first, block)], blocks))
            return

        def rest(numbers: list[int], first: int = first, block: bytes = block) -> tuple[Batch, list[int]]:
            lines = block.split(b"\n")
            return form.unusual([(number, lines[number - first]) for number in numbers])

        yield log_lines.rows(reading, first, block, names, delimiter, rest)


class _Form:
    """The form of a table: what its columns are."""

    def __init__(self, reading: Reading, names: list[str], delimiter: str) -> None:
        self._reading = reading
        self._names = names
        self._delimiter = delimiter
        self._places = {field: names.index(at.name) for field, at in reading.fields.items()}

    def unusual(self, lines: list[tuple[int, bytes]]) -> tuple[Batch, list[int]]:
        """The requests of single lines."""
        rows = [(number, row) for number, line in lines for row in self._split(self._text(number, line))]
        return self._batch([(number, row) for number, row in rows if self._is_whole(number, row)])

    def quoted(self, blocks: Iterable[tuple[int, bytes]]) -> Iterator[Batch]:
        """The requests of all lines from here on."""
        first, block = next(iter(blocks))
        texts = (
            self._text(number, line)
            for at, lines in chain([(first, block)], blocks)
            for number, line in enumerate(lines.removesuffix(b"\n").split(b"\n"), at)
        )
        rows = csv.reader(texts, delimiter=self._delimiter)
        kept: list[tuple[int, list[str]]] = []
        while True:
            number = first + rows.line_num
            try:
                row = next(rows, None)
            except csv.Error as error:
                self._reading.bad(number, f"not CSV: {error}")
                continue
            if row is not None and self._is_whole(number, row):
                kept.append((number, row))
            if kept and (row is None or len(kept) == _ROWS):
                yield self._batch(kept)[0]
                kept = []
            if row is None:
                return

    def _split(self, text: str) -> Iterator[list[str]]:
        return csv.reader([text], delimiter=self._delimiter)

    def _text(self, number: int, line: bytes) -> str:
        """A line with its end, which a value in quotes may have within it."""
        try:
            return line.decode("utf-8") + "\n"
        except UnicodeDecodeError:
            self._reading.bad(number, "not UTF-8 text")
            return "\n"

    def _is_whole(self, number: int, row: list[str]) -> bool:
        if len(row) == len(self._names):
            return True
        if row:
            self._reading.bad(number, f"not {len(self._names)} columns, as the first line has")
        return False

    def _batch(self, rows: list[tuple[int, list[str]]]) -> tuple[Batch, list[int]]:
        columns = {field: [row[at] for _, row in rows] for field, at in self._places.items()}
        return batch_of(self._reading, columns, [number for number, _ in rows])
