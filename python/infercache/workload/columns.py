"""Columns of a log's lines to requests: each value checked, each line that is none told with its number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infercache.workload.fields import UNITS, Fields, of_our_days, seconds_of
from infercache.workload.requests import LARGEST_BYTES, LONGEST_COST, Batch, Groups, LeftOut, key_bytes, numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Reading", "batch_of", "requests_of"]

_NAN = float("nan")


@dataclass(slots=True)
class Reading:
    """One log that is being read.

    Attributes:
        where: its name, for messages.
        given: what the caller says of its fields.
        groups: numbers of models and workloads, shared by all logs.
        left_out: lines that are no requests, shared by all logs.
        workload: of lines that name none.
        fields: what was found to stand where, by the first lines.
        remarks: for the person who reads the report.
        hit_seconds: what a hit takes where this log was written; None: nobody knows.
        format: the name of its format.
        requests: how many there were in it.
    """

    where: str
    given: Fields
    groups: Groups
    left_out: LeftOut
    workload: str = ""
    fields: Fields = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    hit_seconds: float | None = None
    format: str = ""
    requests: int = 0

    def bad(self, line: int, why: str) -> None:
        """Notes a line that is no request."""
        self.left_out.add(self.where, line, why)


def batch_of(reading: Reading, columns: dict[str, list[Any]], lines: Sequence[int]) -> tuple[Batch, list[int]]:
    """The requests of some lines, and the numbers of those that are requests.

    Args:
        reading: the log.
        columns: by field, a value a line; None: the line has none.
        lines: the number of each line.
    """
    checks = _Checks(reading, lines)
    count = len(lines)
    none: list[Any] = [None] * count
    models = [_text(value) for value in columns.get("model", none)]
    versions = [_text(value) for value in columns.get("version", none)]
    workloads = [_text(value) or reading.workload for value in columns.get("workload", none)]
    which = "key" if "key" in columns else "input"
    keys = checks.keys(columns[which], models, versions, reading.fields[which].name)
    times = checks.times(columns["time"], reading.fields["time"].unit) if "time" in columns else None
    sizes = checks.amounts(columns.get("bytes"), "bytes", 1.0, LARGEST_BYTES)
    cost = reading.fields.get("cost")
    costs = checks.amounts(columns.get("cost"), "cost", UNITS[(cost and cost.unit) or "s"], LONGEST_COST)
    number = reading.groups.number
    keep = checks.kept()
    groups = np.fromiter(
        (
            number(workload, model)
            for workload, model, kept in zip(workloads, models, keep.tolist(), strict=True)
            if kept
        ),
        dtype=np.uint16,
    )
    kept_times = None if times is None else times[keep]
    batch = Batch(keys[keep], groups, kept_times, sizes[keep], costs[keep])
    return batch, [line for line, kept in zip(lines, keep.tolist(), strict=True) if kept]


def requests_of(reading: Reading, columns: dict[str, list[Any]], lines: Sequence[int]) -> Batch:
    """The requests of some lines."""
    return batch_of(reading, columns, lines)[0]


def _text(value: Any) -> str:
    """A name as text; "" where there is none."""
    return value if type(value) is str else "" if value is None else str(value)[:200]


class _Checks:
    """Values to arrays; the lines whose values do not do are left out."""

    def __init__(self, reading: Reading, lines: Sequence[int]) -> None:
        self._reading = reading
        self._lines = lines
        self._bad: set[int] = set()

    def kept(self) -> npt.NDArray[np.bool_]:
        """Which lines are requests."""
        keep = np.ones(len(self._lines), dtype=bool)
        keep[list(self._bad)] = False
        return keep

    def _leave_out(self, place: int, why: str) -> None:
        if place not in self._bad:  # one reason is enough
            self._bad.add(place)
            self._reading.bad(self._lines[place], why)

    def keys(self, values: list[Any], models: list[str], versions: list[str], name: str) -> npt.NDArray[np.uint8]:
        """(n, 32): what tells equal questions from different ones."""
        found = key_bytes(values, models, versions)
        for place, key in enumerate(found):
            value = values[place]
            if value is None or value == "":
                self._leave_out(place, f"no {name!r} in it, or an empty one")
            elif type(key) is not bytes:
                self._leave_out(place, f"{name!r} is nothing that a key can be made of")
            else:
                continue
            found[place] = bytes(32)
        return np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, 32)  # type: ignore[arg-type]

    def amounts(self, values: list[Any] | None, what: str, scale: float, most: float) -> npt.NDArray[np.float64]:
        """Sizes or costs; nan where a line has none."""
        if values is None:
            return np.full(len(self._lines), np.nan)
        found = numbers(values, scale, most)
        if found is not None:
            return found

        def one(value: Any) -> float:
            single = numbers([value], scale, most)
            if single is None:
                raise ValueError
            return float(single[0])

        return self._each(values, one, f"{what}: no number, negative, or more than {most:.0e}")

    def times(self, values: list[Any], unit: str | None) -> npt.NDArray[np.float64]:
        """Seconds since 1970, or since whenever the log counts from."""
        try:
            found = np.array(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            found = found * UNITS[unit] if unit is not None else of_our_days(found)
            if np.isfinite(found).all():
                return found
        return self._each(values, lambda value: seconds_of(value, unit), "its time is neither a number nor ISO 8601")

    def _each(self, values: list[Any], convert: Callable[[Any], float], why: str) -> npt.NDArray[np.float64]:
        found = np.zeros(len(values))
        for place, value in enumerate(values):
            try:
                found[place] = convert(value)
            except (ValueError, OverflowError, OSError):
                self._leave_out(place, why)
                continue
            if np.isinf(found[place]):
                self._leave_out(place, why)
        return found
