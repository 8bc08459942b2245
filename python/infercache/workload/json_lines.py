"""JSON Lines: an object a line."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from infercache.workload.columns import Reading, batch_of
from infercache.workload.fields import Field, chosen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infercache.workload.requests import Batch
    from infercache.workload.sources import Source

__all__ = ["objects", "read"]

#: As `raw_decode`, which calls it, without a frame of Python's for each line.
_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
#: Lines whose members say what there is.
_LOOKED_AT = 200

Rows = tuple[list[int], list[dict[str, Any]]]


def read(source: Source, reading: Reading) -> Iterator[Batch]:
    """The requests of a log of JSON Lines.

    Raises:
        InvalidArgument: nothing in it tells equal questions from different ones.
    """
    for lines, rows in objects(source, reading):
        if not rows:
            continue
        if not reading.fields:
            names = dict.fromkeys(name for row in islice(rows, _LOOKED_AT) for name in row)
            reading.fields, reading.remarks = chosen(names, reading.given, reading.where)
        columns = {field: _column(rows, at) for field, at in reading.fields.items()}
        yield batch_of(reading, columns, lines)


def _column(rows: list[dict[str, Any]], field: Field) -> list[Any]:
    name = field.name
    values = [row.get(name) for row in rows]
    if "." in name and all(value is None for value in values):
        steps = name.split(".")
        values = [_within(row, steps) for row in rows]
    return values


def _within(row: Any, steps: list[str]) -> Any:
    for step in steps:
        row = row.get(step) if isinstance(row, dict) else None
    return row


def objects(source: Source, reading: Reading) -> Iterator[Rows]:
    """The objects of the lines, many at a time, each with its line's number; empty lines are none."""
    for first, raw in source.lines():
        numbers, rows = [], []
        for number, line in enumerate(_texts(raw), first):
            if line is None:
                reading.bad(number, "not UTF-8 text")
                continue
            text = line.strip()
            if not text:
                continue
            try:
                row, end = _scan(text, 0)
            except (ValueError, StopIteration, RecursionError):
                reading.bad(number, "not JSON")
                continue
            if type(row) is not dict or end != len(text):
                reading.bad(number, "not one JSON object")
                continue
            numbers.append(number)
            rows.append(row)
        yield numbers, rows


def _texts(lines: list[bytes]) -> list[str] | list[str | None]:
    """The lines as text; None: one is none."""
    try:
        return b"\n".join(lines).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        return [_text(line) for line in lines]


def _text(line: bytes) -> str | None:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
