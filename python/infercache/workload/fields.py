"""Which member of a log's lines says what, and in what unit: recognised by its name, or as the caller says.

    field      what it is                                             recognised names
    time       when it was asked: seconds since 1970, or ISO 8601     time, timestamp, ts, …
    model      whose answer it is                                     model, model_name, …
    version    the model's: a new one begins without answers          version, model_version
    workload   what it is part of, for the report                     workload, route, operation, …
    key        equal for equal questions, such as a hash              key, cache_key, prompt_hash, …
    input      the question itself                                    input, prompt, query, messages, …
    bytes      size of the answer as it is stored                     bytes, size, …
    cost       seconds that the model takes for it                    cost, seconds, cost_ms, …

A name that does not say its unit (`latency`) is not taken for a cost: a factor of a thousand is too much to guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infercache.errors import InvalidArgument, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["FIELDS", "Field", "Fields", "chosen", "of_our_days", "parse", "seconds_of"]

#: Seconds of a unit of time.
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_STEMS = ("cost", "seconds", "compute", "upstream", "model", "inference", "duration", "latency", "elapsed", "took")
_SUFFIXES = (
    *(("_s", "s"), ("_sec", "s"), ("_secs", "s"), ("_seconds", "s")),
    *(("_ms", "ms"), ("_millis", "ms"), ("_milliseconds", "ms"), ("_us", "us"), ("_microseconds", "us"), ("_ns", "ns")),
)
#: Names of costs, and their units.
_COSTS = {
    "cost": "s",
    "seconds": "s",
    "cost_seconds": "s",
    **{f"{stem}{suffix}": unit for stem in _STEMS for suffix, unit in _SUFFIXES},
}
#: Names that may be a cost, in a unit that they do not say.
_UNCLEAR = ("latency", "duration", "elapsed", "took", "response_time", "request_time")

FIELDS: dict[str, tuple[str, ...]] = {
    "time": ("time", "timestamp", "ts", "@timestamp", "datetime", "date", "created", "created_at", "started_at"),
    "model": ("model", "model_name", "model_id"),
    "version": ("version", "model_version"),
    "workload": ("workload", "route", "operation", "endpoint"),
    "key": ("key", "cache_key", "key_hash", "prompt_hash", "input_hash", "query_hash", "hash", "digest"),
    "input": ("input", "prompt", "query", "question", "text", "messages", "inputs", "body"),
    "bytes": ("bytes", "size", "value_bytes", "response_bytes", "output_bytes", "answer_bytes", "bytes_out"),
    "cost": tuple(_COSTS),
}


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field stands, and its unit if it is a time: "s", "ms", "us", "ns"; None: as its values look."""

    name: str
    unit: str | None = None


Fields = dict[str, Field]


def parse(texts: Iterable[str]) -> Fields:
    """What `--field` says: "key=prompt_hash", "cost=latency:ms".

    Raises:
        InvalidArgument: a field that does not exist, or no name.
    """
    fields: Fields = {}
    for text in texts:
        field, parted, name = text.partition("=")
        if field not in FIELDS or not parted or not name:
            raise InvalidArgument(
                f"--field {shown(text)}: give FIELD=NAME, such as key=prompt_hash or cost=latency:ms; the fields are "
                + ", ".join(FIELDS)
            )
        unit = None
        if field in ("time", "cost") and ":" in name:
            name, _, unit = name.rpartition(":")
            if unit not in UNITS:
                raise InvalidArgument(f"--field {shown(text)}: the unit is one of {', '.join(UNITS)}")
        if field == "cost" and unit is None:
            unit = _COSTS.get(name.lower(), "s")
        fields[field] = Field(name, unit)
    return fields


def chosen(names: Iterable[str], given: Fields, where: str) -> tuple[Fields, list[str]]:
    """The fields of a log whose lines have members of these names, and remarks for the person who reads.

    Args:
        names: the members', or the columns'; they are recognised in upper case, too.
        given: what the caller says, which comes first.
        where: the log, for messages.

    Raises:
        InvalidArgument: nothing in the lines tells equal questions from different ones, or what was given is not there.
    """
    there = dict.fromkeys(names)
    known = {name.lower(): name for name in reversed(there)}
    for field, one in given.items():
        if one.name not in there and one.name.partition(".")[0] not in there:
            raise InvalidArgument(f"{where}: no {one.name!r} in it for --field {field}; there is {_listed(there)}")
    fields = dict(given)
    for field, recognised in FIELDS.items():
        if field in given or (field == "input" and "key" in fields):
            continue
        found = next((name for name in recognised if name in known), None)
        if found is not None:
            fields[field] = Field(known[found], _COSTS[found] if field == "cost" else None)
    if "input" in given and "key" not in given:
        fields.pop("key", None)
    if "key" not in fields and "input" not in fields:
        raise InvalidArgument(
            f"{where}: nothing in it tells which requests ask the same: there is {_listed(there)}. Name the member "
            "that does: --field key=NAME for a hash, --field input=NAME for the question itself"
        )
    remarks = []
    unclear = next((known[name] for name in _UNCLEAR if name in known), None)
    if "cost" not in fields and unclear is not None:
        remarks.append(
            f"{unclear!r} may be what the model takes, in a unit that it does not say: --field cost={unclear}:ms"
        )
    return fields, remarks


def _listed(names: Mapping[str, None]) -> str:
    shown_names = [shown(name) for name in list(names)[:12]]
    return ", ".join(shown_names) + (", …" if len(names) > len(shown_names) else "") if names else "nothing"


def seconds_of(value: object, unit: str | None) -> float:
    """A time as seconds since 1970: a number of the unit (by default the one that makes it a time of our days), or
    ISO 8601 text; without an offset it is UTC.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text)
        except ValueError:
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(value)} is no time")
    if unit is not None:
        return value * UNITS[unit]
    return float(of_our_days(np.array([value], dtype=np.float64))[0])


def of_our_days(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Seconds, milli-, micro- or nanoseconds as seconds, whichever makes them a time of our days, or small."""
    # 1e11 seconds are the year 5138, 1e11 milliseconds are 1973: the next units likewise.
    size = np.abs(numbers)
    found: npt.NDArray[np.float64] = numbers * np.select(
        [size < 1e11, size < 1e14, size < 1e17], [1.0, 1e-3, 1e-6], 1e-9
    )
    return found
