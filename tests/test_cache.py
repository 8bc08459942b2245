"""The cache object: its options, operations on keys, statistics, fork."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import infercache
from infercache import Cache, InvalidArgument, Key, Lookup, Token, UncacheableResult, UnsupportedInput
from together import Gate, Started, together

if TYPE_CHECKING:
    from infercache.testing import ManualClock


@pytest.fixture
def cache(clock: ManualClock) -> Cache:
    return Cache("16MB", ttl="1h", clock=clock)


@pytest.fixture
def key(cache: Cache) -> Key:
    return cache.key({"text": "hello"}, model="e5-small", version="1", operation="embed")


class TestOptions:
    def test_the_defaults_are_the_documented_ones(self) -> None:
        cache = Cache()
        assert cache.capacity == 512_000_000
        assert cache.ttl == timedelta(hours=1)
        assert cache.namespace == "default"
        assert cache.l2 is None
        assert cache.l2_prefix == "ic"
        assert cache.max_staleness == timedelta(seconds=2)
        assert cache.timeout == timedelta(milliseconds=250)
        assert cache.on_partition == {"untagged": "serve", "tagged": "bypass"}
        assert cache.lease is None
        assert cache.eviction == "s3-fifo"

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("capacity", "lots"),
            ("capacity", 0),
            ("ttl", "soon"),
            ("ttl", 0),
            ("ttl", -1),
            ("namespace", ""),
            ("namespace", None),
            ("l2", "ftp://localhost"),
            ("l2_prefix", "UPPER"),
            ("l2_prefix", ""),
            ("max_staleness", "now"),
            ("timeout", object()),
            ("lease", "x"),
            ("eviction", "s3_fifo"),
            ("on_partition", {"tagged": "panic"}),
            ("on_partition", {"some": "serve"}),
            ("on_partition", "serve"),
            ("secret", b"short"),
        ],
        ids=repr,
    )
    def test_a_wrong_option_is_an_error_that_names_it(self, option: str, value: Any) -> None:
        with pytest.raises(InvalidArgument, match=option):
            Cache(**{option: value})

    def test_an_unknown_option_is_a_type_error(self) -> None:
        with pytest.raises(TypeError, match="colour"):
            Cache(colour="red")  # type: ignore[call-arg]

    def test_every_option_of_the_shared_tier_is_checked_and_kept(self) -> None:
        cache = Cache(l2_prefix="a-b_1", max_staleness="0s", timeout=1, lease="30s", on_partition={"tagged": "serve"})
        assert cache.l2_prefix == "a-b_1"
        assert cache.max_staleness == timedelta(0)
        assert cache.lease == timedelta(seconds=30)
        assert cache.on_partition == {"untagged": "serve", "tagged": "serve"}


class TestKeys:
    def test_a_key_is_that_of_the_module_in_this_namespace(self) -> None:
        cache = Cache("1MB", namespace="tenant", secret=b"s" * 32)
        scope = {"model": "m", "version": "1", "operation": "embed"}
        assert cache.key([1, "a"], **scope) == infercache.key([1, "a"], namespace="tenant", secret=b"s" * 32, **scope)
        assert cache.key_from_json(b'[1,"a"]', **scope) == cache.key([1, "a"], **scope)
        assert cache.key("q", model="m", version="1") != Cache("1MB").key("q", model="m", version="1")

    @pytest.mark.parametrize("wrong", [None, "ic1:", b"0" * 32, 7], ids=repr)
    def test_what_is_no_key_is_an_error_that_says_what_one_is(self, cache: Cache, wrong: Any) -> None:
        for operation in (
            lambda: cache.get(wrong),
            lambda: cache.set(wrong, 1),
            lambda: cache.lookup(wrong),
            lambda: cache.get_or_compute(wrong, lambda: 1),
            lambda: cache.get_many([wrong]),
            lambda: wrong in cache,
            lambda: cache.delete(wrong),
        ):
            with pytest.raises(TypeError, match="Key"):
                operation()

    def test_a_key_from_its_text_finds_the_same_entry(self, cache: Cache, key: Key) -> None:
        cache.set(key, 1)
        assert cache.get(Key(str(key))) == 1


class TestOperations:
    def test_get_and_set(self, cache: Cache, key: Key) -> None:
        assert cache.get(key) is None
        assert cache.get(key, "default") == "default"
        assert cache.get(key, default=0) == 0
        assert cache.set(key, {"a": [1, 2]}) is True
        assert cache.get(key) == {"a": [1, 2]}
        assert key in cache
        cache.set(key, None)
        assert cache.get(key, "default") is None

    def test_delete(self, cache: Cache, key: Key) -> None:
        assert cache.delete(key) is False
        cache.set(key, 1)
        assert cache.delete(key) is True
        assert cache.get(key) is None
        assert key not in cache

    def test_many(self, cache: Cache) -> None:
        keys = [cache.key(n, model="m", version="1") for n in range(5)]
        assert cache.set_many({key: n for n, key in enumerate(keys[:2])}) == 2
        assert cache.set_many([(keys[2], 2)], ttl="1m", tags=["t"]) == 1
        assert cache.get_many(keys) == [0, 1, 2, None, None]
        assert cache.get_many(iter(keys), default=-1) == [0, 1, 2, -1, -1]
        assert cache.warm(keys) == 3
        cache.invalidate(tags=["t"])
        assert cache.get_many(keys) == [0, 1, None, None, None]

    def test_lookup_says_where_from_how_old_and_for_how_long(self, cache: Cache, key: Key, clock: ManualClock) -> None:
        miss = cache.lookup(key)
        assert (miss.value, miss.source, miss.age, miss.ttl) == (None, "miss", None, None)
        cache.set(key, 1, ttl="1m")
        clock.advance(20)
        assert cache.lookup(key) == Lookup(1, "l1", 20.0, 40.0, miss.stamp)
        cache.set(key, 2, ttl=None)
        assert cache.lookup(key) == Lookup(2, "l1", 0.0, None, miss.stamp)

    def test_an_entry_is_served_until_its_time_to_live_is_over(
        self, cache: Cache, key: Key, clock: ManualClock
    ) -> None:
        cache.set(key, 1)
        clock.advance(3_599)
        assert cache.get(key) == 1
        clock.advance(2)
        assert cache.get(key) is None
        assert key not in cache
        cache.set(key, 2, ttl=5)
        clock.advance(4)
        assert cache.get(key) == 2
        clock.advance(1)
        assert cache.get(key) is None
        cache.set(key, 3, ttl=None)
        clock.advance(10**9)
        assert cache.get(key) == 3

    @pytest.mark.parametrize("ttl", [0, -1, "soon", float("nan")])
    def test_a_wrong_time_to_live_of_an_entry_is_an_error(self, cache: Cache, key: Key, ttl: Any) -> None:
        with pytest.raises(InvalidArgument, match="ttl"):
            cache.set(key, 1, ttl=ttl)
        with pytest.raises(InvalidArgument, match="ttl"):
            cache.get_or_compute(key, lambda: 1, ttl=ttl)

    def test_a_value_that_cannot_be_stored_is_warned_of_once_and_counted(self, cache: Cache, key: Key) -> None:
        with pytest.warns(UncacheableResult) as warned:  # noqa: PT031
            assert cache.set(key, object()) is False
            assert cache.set(key, object()) is False
        assert len(warned) == 1
        assert cache.stats().uncacheable == 2

    def test_get_or_compute_computes_once(self, cache: Cache, key: Key, clock: ManualClock) -> None:
        runs = []

        def compute() -> str:
            runs.append(1)
            return "value"

        assert cache.get_or_compute(key, compute, ttl="1m", tags=["t"]) == cache.get_or_compute(key, compute) == "value"
        assert len(runs) == 1
        clock.advance(61)
        cache.get_or_compute(key, compute, tags=["t"])
        cache.invalidate(tags=["t"])
        cache.get_or_compute(key, compute)
        assert len(runs) == 3

    def test_get_or_compute_knows_a_stored_none(self, cache: Cache, key: Key) -> None:
        runs = []
        for _ in range(2):
            assert cache.get_or_compute(key, lambda: runs.append(1)) is None
        assert len(runs) == 1

    def test_every_operation_has_an_asynchronous_form(self, cache: Cache, key: Key) -> None:
        async def main() -> None:
            async def compute() -> int:
                return 3

            assert await cache.aget(key, "d") == "d"
            assert await cache.aset(key, 1, ttl="1m", tags=["t"]) is True
            assert await cache.aget(key) == 1
            assert (await cache.alookup(key)).value == 1
            assert await cache.aget_many([key]) == [1]
            assert await cache.awarm([key]) == 1
            token = await cache.ainvalidate(tags=["t"])
            assert await cache.aget(key, min_token=token) is None
            assert await cache.aset_many({key: 2}) == 1
            assert await cache.adelete(key) is True
            assert await cache.aget_or_compute(key, compute) == 3 == cache.get(key)
            await cache.aclear()
            assert await cache.aget(key) is None

        asyncio.run(main())

    def test_a_cache_is_a_context_manager(self, key: Key) -> None:
        with Cache("1MB") as cache:
            cache.set(key, 1)
        assert cache.get(key) is None
        assert cache.stats().entries == 0

        async def main() -> None:
            async with Cache("1MB") as cache:
                cache.set(key, 1)
            assert cache.get(key) is None

        asyncio.run(main())

    def test_arrays_stay_valid_after_the_cache_is_gone(self, key: Key) -> None:
        cache = Cache("1MB")
        cache.set(key, np.arange(1000))
        array = cache.get(key)
        gone = weakref.ref(cache)
        cache.close()
        del cache
        gc.collect()
        assert gone() is None, "nothing keeps a cache alive"
        assert array.sum() == 499_500
        assert not array.flags.writeable


class TestStats:
    def test_stats_are_exact_once_the_threads_have_stopped(self) -> None:
        cache = Cache("64MB")
        threads, rounds = 8, 300

        @cache.memoize(model="m", version="1", operation="exact")
        def ask(n: int) -> int:
            return n

        def work(thread: int) -> None:
            for n in range(rounds):
                ask(n % 50)
                cache.get(cache.key((thread, n), model="m", version="1"))

        together(*[lambda thread=thread: work(thread) for thread in range(threads)])
        stats = cache.stats()
        assert stats.stores == stats.entries == 50
        assert stats.hits_l1 + stats.misses == 2 * threads * rounds
        # Of the misses of `ask`, one a key ran it; the others took its result or found it when they joined.
        assert stats.misses >= threads * rounds + 50
        assert stats.coalesced <= stats.misses - threads * rounds - 50
        assert stats.hit_ratio == stats.hits_l1 / (2 * threads * rounds)

    def test_saved_seconds_adds_the_recorded_compute_time_of_each_hit(self) -> None:
        cache = Cache("1MB")
        gate = Gate()

        @cache.memoize(model="m", version="1", operation="cost")
        def ask(n: int) -> int:
            gate.pass_through()
            return n

        started = Started(lambda: ask(1))
        gate.wait_for(1)
        gate.open()
        started.results()
        assert cache.stats().saved_seconds == 0
        ask(1)
        once = cache.stats().saved_seconds
        ask(1), ask(1)
        assert once > 0
        assert cache.stats().saved_seconds == pytest.approx(3 * once)

    def test_a_new_cache_has_counted_nothing(self) -> None:
        stats = Cache("1MB").stats()
        assert stats.hit_ratio == 0.0
        assert stats.misses == stats.hits_l1 == stats.l2_errors == stats.hits_l2 == 0

    def test_pinned_bytes_are_those_that_callers_hold(self) -> None:
        cache = Cache("1MB")
        key = cache.key("q", model="m", version="1")
        cache.set(key, np.zeros(10_000))
        array = cache.get(key)
        cache.clear()
        assert cache.stats().pinned_bytes >= 80_000
        del array
        assert cache.stats().pinned_bytes == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
class TestFork:
    def test_the_child_of_a_fork_starts_cold_and_works(self, key: Key) -> None:
        code = """
import os, sys
from infercache import Cache
cache = Cache("1MB")
key = cache.key("q", model="m", version="1")
stamp = cache.lookup(key).stamp
cache.set(key, "parent")
child = os.fork()
if child == 0:
    ok = cache.get(key) is None and cache.stats().entries == 0
    ok = ok and not cache.set(key, "computed before the fork", since=stamp)
    ok = ok and cache.get_or_compute(key, lambda: "child") == cache.get(key) == "child"
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
assert cache.get(key) == "parent"
sys.exit(os.waitstatus_to_exitcode(status))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_tokens_read_your_own_writes(cache: Cache, key: Key) -> None:
    cache.set(key, 1)
    token = cache.invalidate(key=key)
    assert isinstance(token, Token)
    assert cache.get(key, min_token=token) is None
    assert cache.get_many([key], min_token=token) == [None]
    assert cache.lookup(key, min_token=token).source == "miss"
    with pytest.raises(TypeError, match="min_token"):
        cache.get(key, min_token=7)  # type: ignore[arg-type]
    assert Cache("1MB").get(key, min_token=token) is None, "caches of one deployment share an authority"
    with pytest.raises(InvalidArgument, match="another deployment"):
        Cache("1MB", l2_prefix="another").get(key, min_token=token)


def test_unsupported_input_is_an_error_of_the_key(cache: Cache) -> None:
    with pytest.raises(UnsupportedInput):
        cache.key(object(), model="m", version="1")


def test_a_cache_may_be_used_from_many_threads_while_it_is_cleared() -> None:
    cache = Cache("1MB")
    keys = [cache.key(n, model="m", version="1") for n in range(64)]
    stop = threading.Event()

    def clear() -> None:
        for _ in range(200):
            cache.clear()
        stop.set()

    def work() -> None:
        while not stop.is_set():
            for n, key in enumerate(keys):
                cache.set(key, n)
                assert cache.get(key, n) == n

    together(clear, work, work)
