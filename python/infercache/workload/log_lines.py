"""The usual lines of a log, read by `_core` many at a time; whatever is unusual is left to the readers in Python.

Both give the same requests, which tests/test_simulate_formats.py holds them to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infercache import _core
from infercache.workload.fields import UNITS, of_our_days
from infercache.workload.requests import LARGEST_BYTES, LONGEST_COST, Batch

if TYPE_CHECKING:
    from infercache._core_replay import LogColumns
    from infercache.workload.columns import Reading

__all__ = ["objects", "rows"]

#: Reads lines that are left over, by their numbers: their requests, and which lines these are of.
Rest = Callable[[list[int]], tuple[Batch, Sequence[int]]]

#: Of the fields, in the order in which they are handed over; the question is the key or the input.
_ORDER = ("time", "model", "version", "workload", "question", "bytes", "cost")
_MOST = (float(LARGEST_BYTES), LONGEST_COST)


def objects(reading: Reading, first: int, block: bytes, rest: Rest) -> Batch:
    """The requests of lines of JSON, of which the first has the number `first`."""
    names = [_name_of(reading, field) for field in _ORDER]
    return _whole(reading, first, _core._log_objects(block, names, _units(reading), _MOST, reading.workload), rest)


def rows(reading: Reading, first: int, block: bytes, names: list[str], delimiter: str, rest: Rest) -> Batch:
    """The requests of lines of a table without quotes, whose columns have these names."""
    places = [None if name is None else names.index(name) for name in (_name_of(reading, field) for field in _ORDER)]
    found = _core._log_rows(block, places, len(names), ord(delimiter), _units(reading), _MOST, reading.workload)
    return _whole(reading, first, found, rest)


def _name_of(reading: Reading, field: str) -> str | None:
    if field == "question":
        field = "key" if "key" in reading.fields else "input"
    at = reading.fields.get(field)
    return None if at is None else at.name


def _units(reading: Reading) -> tuple[float, float]:
    time, cost = (reading.fields.get(field) for field in ("time", "cost"))
    return UNITS[(time and time.unit) or "s"], UNITS[(cost and cost.unit) or "s"]


def _whole(reading: Reading, first: int, found: LogColumns, rest: Rest) -> Batch:
    """What was understood, with what is read of the rest, in the order of the lines."""
    lines, keys, groups, times, sizes, costs, names, odd = found
    numbers = np.array([reading.groups.number(*pair) for pair in names], dtype=np.uint16)
    time = reading.fields.get("time")
    at: npt.NDArray[np.float64] | None = None
    if time is not None:
        at = np.frombuffer(times)
        at = of_our_days(at) if time.unit is None else at
    batch = Batch(
        keys=np.frombuffer(keys, np.uint8).reshape(-1, 32),
        groups=numbers[np.frombuffer(groups, np.uint32)] if len(numbers) else np.zeros(0, np.uint16),
        times=at,
        sizes=np.frombuffer(sizes),
        costs=np.frombuffer(costs),
    )
    if not odd:
        return batch
    others, places = rest([first + place for place in np.frombuffer(odd, np.uint32).tolist()])
    order = np.argsort(np.concatenate([np.frombuffer(lines, np.uint32) + first, np.array(places, np.int64)]))

    def both(one: npt.NDArray[np.generic], other: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return np.concatenate([one, other])[order]

    return Batch(
        keys=both(batch.keys, others.keys),  # type: ignore[arg-type]
        groups=both(batch.groups, others.groups),  # type: ignore[arg-type]
        times=None if batch.times is None or others.times is None else both(batch.times, others.times),  # type: ignore[arg-type]
        sizes=both(batch.sizes, others.sizes),  # type: ignore[arg-type]
        costs=both(batch.costs, others.costs),  # type: ignore[arg-type]
    )
