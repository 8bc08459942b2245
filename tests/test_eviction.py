"""Hit ratios of the real cache on real traces, beside libcachesim's S3-FIFO."""

from __future__ import annotations

import gzip
import lzma
import struct
from functools import cache
from pathlib import Path

import pytest

from infercache import Key
from infercache._core import ManualClock, Store

PAYLOAD = bytes(1000)

# In percent, by libcachesim 0.3.5's S3-FIFO (small 0.1, ghost 0.9, two uses to enter main) on the same traces, with 1,
# 10 and 25 % of the distinct keys. Where libcachesim is installed, it is asked again.
S3FIFO = {
    "cache2k_web07.trace.xz": {1: 43.75, 10: 58.22, 25: 63.92},
    "cache2k_web12.trace.xz": {1: 40.96, 10: 72.12, 25: 79.48},
    "lirs_loop.trace.gz": {1: 0.0, 10: 8.98, 25: 22.41},
}
CELLS = [(name, percent) for name, cells in S3FIFO.items() for percent in cells]


@cache
def trace_of(path: Path) -> list[int]:
    """The keys of a trace, as small integers in the order of their first use."""
    if path.suffix == ".xz":
        asked: list[object] = [number for (number,) in struct.iter_unpack("<i", lzma.open(path).read())]
    else:
        asked = list(gzip.open(path, "rt").read().split())
    known: dict[object, int] = {}
    return [known.setdefault(key, len(known)) for key in asked]


@cache
def keys_of(count: int) -> list[Key]:
    return [Key(number.to_bytes(16, "little") * 2) for number in range(count)]


def store_of(capacity: int) -> Store:
    store = Store()
    # One shard: the traces' caches hold a few hundred entries, fewer than a shard would in service.
    store._open(capacity, None, "default", seed=7, clock=ManualClock(), shards=1)
    return store


def store_for(entries: int) -> Store:
    """A cache in which so many entries of this size fit, found by filling some."""
    capacity = entries * (len(PAYLOAD) + 100)
    for _ in range(4):
        store = store_of(capacity)
        for key in keys_of(2 * entries):
            store._store(key, PAYLOAD, None)
        held = store._stats()["entries"]
        if held == entries:
            break
        capacity += (entries - held) * (len(PAYLOAD) + 72)
    return store_of(capacity)


def ours(trace: list[int], entries: int) -> float:
    store, keys, hits = store_for(entries), keys_of(max(trace) + 1), 0
    for number in trace:
        if store.get(keys[number]) is not None:
            hits += 1
        else:
            store._store(keys[number], PAYLOAD, None)
    assert abs(store._stats()["entries"] - entries) <= max(2, entries // 50), "the sizes compared are to be equal"
    return 100 * hits / len(trace)


def theirs(trace: list[int], entries: int) -> float:
    libcachesim = pytest.importorskip(
        "libcachesim", reason="pip install libcachesim: the yardstick, never a dependency"
    )
    policy = libcachesim.S3FIFO(cache_size=entries, hashpower=16)
    request = libcachesim.Request()
    request.obj_size = 1
    hits = 0
    for number in trace:
        request.obj_id = number
        hits += policy.get(request)
    return 100 * hits / len(trace)


@pytest.mark.parametrize(("name", "percent"), CELLS)
def test_hit_ratio_is_within_a_point_of_s3fifo(shared: Path, name: str, percent: int) -> None:
    trace = trace_of(shared / "data" / "traces" / name)
    entries = len(set(trace)) * percent // 100
    found, expected = ours(trace, entries), S3FIFO[name][percent]
    print(f"{name} at {percent} % ({entries} entries): {found:.2f} %, S3-FIFO {expected:.2f} %")
    assert abs(found - expected) <= 1.0


@pytest.mark.parametrize(("name", "percent"), CELLS)
def test_the_reference_ratios_are_libcachesims(shared: Path, name: str, percent: int) -> None:
    trace = trace_of(shared / "data" / "traces" / name)
    found = theirs(trace, len(set(trace)) * percent // 100)
    print(f"{name} at {percent} %: {found:.2f} %")
    assert found == pytest.approx(S3FIFO[name][percent], abs=0.02)
