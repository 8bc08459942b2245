"""JSON Lines: an object a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from infercache.workload import log_lines
from infercache.workload.columns import Reading, batch_of
from infercache.workload.fields import Field, chosen
from infercache.workload.requests import Groups, LeftOut

if TYPE_CHECKING:
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
    for first, block in source.whole_lines():
        if not reading.fields:
            _, rows = _parsed(
                Reading(reading.where, {}, Groups(), LeftOut()), enumerate(block.split(b"\n")[:_LOOKED_AT])
            )
            if rows:
                names = dict.fromkeys(name for row in rows for name in row)
                reading.fields, reading.remarks = chosen(names, reading.given, reading.where)

        def rest(numbers: list[int], first: int = first, block: bytes = block) -> tuple[Batch, list[int]]:
            lines = block.split(b"\n")
            there, rows = _parsed(reading, ((number, lines[number - first]) for number in numbers))
            columns = {field: _column(rows, at) for field, at in reading.fields.items()}
            return batch_of(reading, columns, there)

        # A member within an object is looked for in Python, in each line.
        if reading.fields and not any("." in at.name for at in reading.fields.values()):
            yield log_lines.objects(reading, first, block, rest)
        elif reading.fields:
            yield rest(list(range(first, first + block.count(b"\n") + 1)))[0]
        else:
            _parsed(reading, enumerate(block.split(b"\n"), first))


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
    for first, lines in source.lines():
        yield _parsed(reading, enumerate(lines, first))


def _parsed(reading: Reading, lines: Iterable[tuple[int, bytes]]) -> Rows:
    numbers, rows = [], []
    for number, line in lines:
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            reading.bad(number, "not UTF-8 text")
            continue
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
    return numbers, rows
