"""The access log of a gateway or a middleware: what was asked, by digest, and what answering it took.

A line of a batch is a request for each of its items, as the cache has an entry for each. Lines of requests that are not
to be cached, and of other events, are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infercache.workload.columns import Reading, requests_of
from infercache.workload.fields import Field
from infercache.workload.json_lines import objects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infercache.workload.requests import Batch
    from infercache.workload.sources import Source

__all__ = ["is_line", "read"]

_MESSAGE = "answered"
#: Fields that a line says of each of its items, and of all of them together.
_SAID, _SHARED = ("time", "model", "workload"), ("bytes", "cost")
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
        items = [(number, row, key) for number, row in good for key in row["keys"]]
        if items:
            columns = {
                **{field: [row.get(reading.fields[field].name) for _, row, _ in items] for field in _SAID},
                **{field: [_share(row, reading.fields[field].name) for _, row, _ in items] for field in _SHARED},
                "key": [key for _, _, key in items],
            }
            yield requests_of(reading, columns, [number for number, _, _ in items])


def _share(row: dict[str, Any], name: str) -> Any:
    """An item's part of what its batch took."""
    value = row.get(name)
    return value / len(row["keys"]) if isinstance(value, int | float) else value


def _is_question(reading: Reading, number: int, row: dict[str, Any]) -> bool:
    if row.get("message") != _MESSAGE or row.get("logger") != "infercache.edge":
        return False  # another event, not a request
    kind, keys = row.get("kind"), row.get("keys")
    if kind not in _ASKED:
        detail = row.get("detail")
        reading.bad(number, f"not to be cached: {kind}" + (f", {detail}" if detail else ""))
        return False
    if kind != "hit" and kind != "stale" and not row.get("stored"):
        reading.bad(number, f"not kept: {row.get('detail') or 'larger than the cache, or purged meanwhile'}")
        return False
    if not isinstance(keys, list) or not keys:
        reading.bad(number, "no 'keys' in it: was it written by a gateway of before, or without access_log?")
        return False
    return True
