"""What each counter counts: look-ups once each, batches item by item, and what ran is what missed and joined nobody."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercache import Cache, Stats
from infercache.testing import ManualClock


def counts(cache: Cache) -> tuple[int, int, int, int]:
    """Hits, stale hits, misses and what was coalesced."""
    stats = cache.stats()
    return stats.hits_l1, stats.stale_hits, stats.misses, stats.coalesced


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=8), st.integers(1, 4))
def test_each_item_of_a_batch_is_one_look_up_and_what_ran_is_what_missed_and_was_not_coalesced(
    batches: list[list[int]], most: int
) -> None:
    cache = Cache(capacity="4MB")
    ran: list[int] = []

    @cache.memoize_batch(model="m", version="1", operation="double", over="items", max_batch=most)
    def double(items: list[int]) -> list[int]:
        ran.extend(items)
        return [2 * item for item in items]

    for batch in batches:
        assert double(batch) == [2 * item for item in batch]
    asked = sum(map(len, batches))
    hits, stale, misses, coalesced = counts(cache)
    assert (hits + misses, stale) == (asked, 0)
    assert misses - coalesced == len(ran) == cache.stats().stores
    assert cache.stats().hit_ratio == (hits / asked if asked else 0.0)


def test_repeated_items_of_a_batch_that_fails_took_no_answer() -> None:
    cache = Cache(capacity="1MB")

    @cache.memoize_batch(model="m", version="1", operation="fails", over="items")
    def fails(items: list[int]) -> list[int]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fails([1, 1])
    assert counts(cache) == (0, 0, 2, 0)


def test_what_ran_is_what_missed_and_was_not_coalesced_from_many_threads() -> None:
    cache = Cache(capacity="4MB")
    ran: list[int] = []
    gate = threading.Barrier(6)

    @cache.memoize_batch(model="m", version="1", operation="batch", over="items", max_batch=3)
    def batch(items: list[int]) -> list[int]:
        ran.extend(items)
        return items

    @cache.memoize(model="m", version="1", operation="single")
    def single(item: int) -> int:
        ran.append(item)
        return item

    def ask(first: int) -> None:
        gate.wait()
        for number in range(200):
            batch([(first + number) % 37, number % 31, number % 31])
            single(number % 53)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hits, stale, misses, coalesced = counts(cache)
    assert hits + misses == 6 * 200 * 4
    assert misses - coalesced == len(ran) == cache.stats().stores
    assert stale == 0


def test_peek_contains_and_refresh_are_no_look_ups() -> None:
    cache = Cache(capacity="1MB")

    @cache.memoize(model="m", version="1", operation="f")
    def f(x: int) -> int:
        return x

    @cache.memoize_batch(model="m", version="1", operation="g", over="xs")
    def g(xs: list[int]) -> list[int]:
        return xs

    def look() -> None:
        f.peek(1)
        g.peek([1, 1])
        assert (f.key(1) in cache) == (cache.warm(g.key([1])) == 1)

    look()
    f.refresh(1)
    g.refresh([1, 1])
    look()
    assert counts(cache) == (0, 0, 0, 0)
    assert cache.stats().stores == 2


def test_each_key_of_get_many_lookup_and_get_or_compute_is_one_look_up() -> None:
    cache = Cache(capacity="1MB")
    known, unknown = (cache.key(n, model="m", version="1") for n in range(2))
    cache.set(known, 1)
    cache.get(known)
    cache.get(unknown)
    cache.get_many([known, known, unknown])
    cache.lookup(known)
    cache.lookup(unknown)
    assert counts(cache) == (4, 0, 3, 0)
    cache.get_or_compute(known, lambda: 2)
    cache.get_or_compute(unknown, lambda: 2)
    assert counts(cache) == (5, 0, 4, 0)


def test_stale_answers_count_as_stale_hits_and_save_what_they_cost() -> None:
    clock = ManualClock()
    cache = Cache(capacity="1MB", ttl="10s", clock=clock)
    fails = False

    @cache.memoize(model="m", version="1", operation="rescued", stale_if_error="1h")
    def rescued(x: int) -> int:
        if fails:
            raise RuntimeError("no")
        return x

    rescued(1)
    fails = True
    clock.advance(20)
    assert rescued(1) == 1
    # The miss that led to the error, and the answer in its place.
    assert counts(cache) == (0, 1, 2, 0)
    key = rescued.key(1)
    assert cache.lookup(key).source == "stale"
    assert counts(cache) == (0, 2, 2, 0)
    assert cache.get(key) is None
    assert counts(cache) == (0, 2, 3, 0)


def test_a_look_up_of_what_a_purge_hides_is_a_miss_and_invalidated() -> None:
    cache = Cache(capacity="1MB")
    key = cache.key(1, model="m", version="1")
    cache.set(key, 1, tags=["t"])
    cache.invalidate(tags=["t"])
    cache.get(key)
    assert (cache.stats().misses, cache.stats().invalidated) == (1, 1)


def test_hit_ratio_is_the_hits_part_of_the_look_ups() -> None:
    fields: dict[str, Any] = dict.fromkeys(Stats.__slots__, 0)
    assert Stats(**fields).hit_ratio == 0.0
    assert Stats(**{**fields, "hits_l1": 1, "hits_l2": 1, "stale_hits": 1, "misses": 1}).hit_ratio == 0.75
    assert Stats(**{**fields, "misses": 4, "coalesced": 4}).hit_ratio == 0.0
