"""`cache.get(key)` of a 64-byte value that is in memory, beside what else holds values in a Python process.

The peers hand out the one object that they hold; infercache makes a fresh `bytes`. Peers get the 32 bytes
of the key as a `bytes` object, whose hash Python keeps: their best case.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cachebox
import cachetools
import pytest

import infercache
from infercache import Cache, Key
from measure import Measure, Wanted

SIZES = {"1,000 keys": 1_000, "100,000 keys in random order": 100_000}
LOOKED_UP = 100_000  # look-ups in one round, whatever the number of keys


class Material(NamedTuple):
    """Keys in the order of their look-ups, as infercache and as others take them, and a value for each."""

    keys: list[Key]
    others: list[bytes]
    stored: dict[bytes, bytes]


@functools.cache
def material(count: int) -> Material:
    """`count` keys with 64-byte values; `LOOKED_UP` look-ups in random order."""
    keys = [infercache.key(number, model="bench", version="1") for number in range(count)]
    shuffled = random.Random(count)
    order = [number for _ in range(LOOKED_UP // count) for number in shuffled.sample(range(count), count)]
    raw = [bytes(key) for key in keys]
    return Material([keys[n] for n in order], [raw[n] for n in order], {key: key + key for key in raw})


def looking_up(get: Callable[[Any], Any], keys: Sequence[Any]) -> Callable[[], None]:
    """A loop of one look-up for each of `keys`."""

    def loop() -> None:
        for key in keys:
            get(key)

    return loop


@pytest.fixture(params=SIZES.values(), ids=SIZES.keys())
def given(request: pytest.FixtureRequest, benchmark: Any) -> Material:
    """The material of one size, which is the group."""
    label = next(name for name, count in SIZES.items() if count == request.param)
    benchmark.group = f"get of a 64-byte value, {label}"
    return material(request.param)


def bench_infercache_get(measure: Measure, given: Material) -> None:
    cache = Cache(capacity="256MB", ttl="1h")
    by_bytes = {bytes(key): key for key in given.keys}
    for raw, value in given.stored.items():
        cache.set(by_bytes[raw], value)
    assert all(cache.get(by_bytes[raw]) == value for raw, value in given.stored.items())
    many = len(given.stored) > 1_000
    wanted = [Wanted("cachebox_ttl_cache", at_most=1.2 if many else 2.0)]
    headline = None if many else "`cache.get(key)` of a 64-byte value"
    measure(looking_up(cache.get, given.keys), operations=LOOKED_UP, wanted=wanted, headline=headline)


def bench_cachebox_ttl_cache(measure: Measure, given: Material) -> None:
    cache: cachebox.TTLCache[bytes, bytes] = cachebox.TTLCache(len(given.stored), 3600)
    cache.update(given.stored)
    assert len(cache) == len(given.stored)
    measure(looking_up(cache.get, given.others), operations=LOOKED_UP)


def bench_cachebox_lru_cache(measure: Measure, given: Material) -> None:
    cache: cachebox.LRUCache[bytes, bytes] = cachebox.LRUCache(len(given.stored))
    cache.update(given.stored)
    assert len(cache) == len(given.stored)
    measure(looking_up(cache.get, given.others), operations=LOOKED_UP)


def bench_cachetools_ttl_cache(measure: Measure, given: Material) -> None:
    cache: cachetools.TTLCache[bytes, bytes] = cachetools.TTLCache(len(given.stored), 3600)
    cache.update(given.stored)
    measure(looking_up(cache.get, given.others), operations=LOOKED_UP, rounds=20)


def bench_functools_lru_cache(measure: Measure, given: Material) -> None:
    get = functools.lru_cache(maxsize=len(given.stored))(given.stored.__getitem__)
    for key in given.stored:
        get(key)
    measure(looking_up(get, given.others), operations=LOOKED_UP)


def bench_dict(measure: Measure, given: Material) -> None:
    measure(looking_up(given.stored.get, given.others), operations=LOOKED_UP)
