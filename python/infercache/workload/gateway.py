"""The access log of a gateway or a middleware: what was asked, by digest, and what answering it took.

A line of a batch is a request for each of its items, as the cache has an entry for each. Lines of requests that are not
to be cached, and of other events, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

from infercache.workload.columns import Reading, batch_of
from infercache.workload.fields import Field
from infercache.workload.json_lines import objects
from infercache.workload.requests import Batch
from infercache.workload.sources import Source

__all__ = ["is_line", "read"]

_MESSAGE = "answered"
#: Outcomes of questions that a cache was asked.
_ASKED = frozenset({"hit", "partial", "miss", "stale"})
#: What stands between a request and a hit in the gateway: its data path is Python.
_HIT_SECONDS = 100e-6


def is_line(row: dict[str, Any]) -> bool:
    """Whether this is a line of such a log."""
    return {"time", "level", "logger", "message"} <= row.keys()


def read(source: Source, reading: Reading) -> Iterator[Batch]:
    """The requests of an access log."""
    reading.fields = {
        "time": Field("time"),
        "model": Field("model"),
        "workload": Field("route"),
        "key": Field("keys"),
        "bytes": Field("bytes"),
        "cost": Field("model_ms", "ms"),
    }
    reading.hit_seconds = _HIT_SECONDS
    for numbers, rows in objects(source, reading):
        good = [(number, row) for number, row in zip(numbers, rows, strict=True) if _is_question(reading, number, row)]
        if good:
            counts = [len(row["keys"]) for _, row in good]

            def each(name: str, good: Any = good, counts: Any = counts) -> list[Any]:
                return list(chain.from_iterable(repeat(row.get(name), count) for (_, row), count in zip(good, counts)))

            def share(name: str, good: Any = good, counts: Any = counts) -> list[Any]:
                of = (_share(row.get(name), count) for (_, row), count in zip(good, counts))
                return list(chain.from_iterable(map(repeat, of, counts)))

            columns = {
                "time": each("time"),
                "model": each("model"),
                "workload": each("route"),
                "key": list(chain.from_iterable(row["keys"] for _, row in good)),
                "bytes": share("bytes"),
                "cost": share("model_ms"),
            }
            lines = list(chain.from_iterable(repeat(number, count) for (number, _), count in zip(good, counts)))
            yield batch_of(reading, columns, lines)


def _share(value: Any, count: int) -> Any:
    """An item's part of what its batch took."""
    return value / count if isinstance(value, int | float) else value


def _is_question(reading: Reading, number: int, row: dict[str, Any]) -> bool:
    if row.get("message") != _MESSAGE or row.get("logger") != "infercache.edge":
        return False  # another event, not a request
    kind, keys = row.get("kind"), row.get("keys")
    if kind not in _ASKED:
        detail = row.get("detail")
        reading.bad(number, f"not to be cached: {kind}" + (f", {detail}" if detail else ""))
        return False
    if not isinstance(keys, list) or not keys:
        reading.bad(number, "no 'keys' in it: was it written by a gateway of before, or without access_log?")
        return False
    return True
