"""A replay is the cache itself: request by request it finds what a real cache finds that is asked the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import infercache
from infercache import Cache, InvalidArgument, Key, _core
from infercache.testing import ManualClock
from infercache.workload.log import Collector, Defaults, Log
from infercache.workload.requests import Batch, Groups
from infercache.workload.simulation import Options, simulate
from infercache.workload.trials import HIT, Setting, _opened, outcomes
from logs_of_requests import drawn, json_lines


def answered(log: Log, setting: Setting, seed: int, keys: dict[bytes, Key] | None = None) -> list[bool]:
    """For each request of the log whether a real cache has the answer; what it has not is computed and kept.

    `keys`: those of the log, with their models; without them they are all of one.
    """
    clock = ManualClock()
    assert setting.size is not None
    evicts = {} if setting.eviction is None else {"eviction": setting.eviction}
    cache = Cache(setting.size, ttl=setting.ttl, clock=clock, seed=seed, **evicts)
    of_log = [Key(bytes(key)) if keys is None else keys[bytes(key)] for key in log.keys]
    found, now = [], 0
    columns = (log.asked, log.times, log.sizes, log.costs)
    for number, time, size, cost in zip(*(column.tolist() for column in columns), strict=True):
        clock.advance((time - now) / 1_000)
        now = time
        value = cache.get(of_log[number])
        found.append(value is not None)
        if value is None:
            # As a memoized function's result is kept, whose run took so long.
            cache._store(of_log[number], bytes(size), setting.ttl, cost=cost)
    return found


def replayed(log: Log, setting: Setting, seed: int) -> list[bool]:
    store, clock = _opened(log, setting, seed)
    return (outcomes(log, store, clock) == HIT).tolist()


def log_of(numbers: list[int], times: list[int], sizes: list[int], costs: list[float] | None = None) -> Log:
    """A log of these keys, milliseconds, bytes and seconds."""
    groups = Groups()
    count = len(numbers)
    keys = np.frombuffer(b"".join(number.to_bytes(8, "little") * 4 for number in numbers), np.uint8).reshape(-1, 32)
    collector = Collector(groups, rate=1.0)
    number = groups.number("", "m")
    collector.add(
        Batch(
            keys,
            np.full(count, number, np.uint16),
            np.array(times) / 1_000,
            np.array(sizes, dtype=np.float64),
            np.full(count, 0.01) if costs is None else np.array(costs),
        ),
        0,
    )
    return collector.finish(Defaults({}, {}), ["a test"])


@pytest.mark.parametrize("size", [64 << 10, 300_000, 4_000_000])
@pytest.mark.parametrize("ttl", [None, 30.0, 120.0])
@pytest.mark.parametrize("eviction", [None, "cost", "s3-fifo"])
def test_each_request_is_answered_as_by_a_real_cache(
    size: int, ttl: float | None, eviction: str | None, tmp_path: Path
) -> None:
    setting = Setting(size, ttl, eviction)
    requests = drawn(6_000)
    log = simulate([str(json_lines(tmp_path / "log.jsonl", requests))], Options(sizes=[size], ttls=[ttl])).log
    keys = [infercache.key(each.key, model=each.model, version="-", operation="log") for each in requests]
    expected = answered(log, setting, 7, {bytes(key): key for key in keys})
    found = replayed(log, setting, 7)
    assert found == expected
    assert 0.1 < np.mean(found) < 0.99, "the log is to hit and to miss"


@given(st.data())
def test_whatever_is_asked_when_and_however_large_it_is_answered_as_by_a_real_cache(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 300), "requests")
    numbers = data.draw(st.lists(st.integers(0, 60), min_size=count, max_size=count), "keys")
    gaps = data.draw(st.lists(st.sampled_from([0, 0, 1, 40, 900]), min_size=count, max_size=count), "gaps")
    sizes = data.draw(
        st.lists(st.sampled_from([0, 1, 100, 3_000, 5_000, 70_000]), min_size=count, max_size=count), "sizes"
    )
    ttl = data.draw(st.sampled_from([None, 0.05, 1.0]), "ttl")
    costs = data.draw(st.lists(st.sampled_from([0.0, 1e-6, 0.005, 2.0]), min_size=count, max_size=count), "costs")
    log = log_of(numbers, np.cumsum(gaps).tolist(), sizes, costs)
    assert replayed(log, Setting(64 << 10, ttl), 3) == answered(log, Setting(64 << 10, ttl), 3)


def test_what_is_larger_than_the_cache_is_no_hit_and_told() -> None:
    log = log_of([1, 1, 2, 2], [0, 1, 2, 3], [100_000, 100_000, 10, 10])
    store, clock = _opened(log, Setting(64 << 10, None), 1)
    assert outcomes(log, store, clock).tolist() == [2, 2, 0, 1]


def test_an_entry_lives_until_its_last_millisecond() -> None:
    log = log_of([1, 1, 1], [0, 999, 1_000], [10, 10, 10])
    assert replayed(log, Setting(64 << 10, 1.0), 1) == [False, True, False]


def test_a_cache_that_holds_everything_holds_everything_without_its_bytes() -> None:
    log = log_of([1, 2, 1, 2], [0, 1, 2, 3], [1 << 30, 1 << 30, 1 << 30, 1 << 30])
    store, clock = _opened(log, Setting(None, None), 1)
    assert outcomes(log, store, clock, hollow=True).tolist() == [0, 0, 1, 1]


ARRAYS = {
    "keys": np.zeros((2, 32), np.uint8),
    "asked": np.array([0, 1], np.uint32),
    "times": np.array([0, 1], np.uint64),
    "sizes": np.array([8, 8], np.uint64),
    "costs": np.array([0, 0], np.float32),
    "models": np.array([0, 0], np.uint16),
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"asked": np.array([0, 2], np.uint32)}, "a key or a model that is not there"),
        ({"models": np.array([0, 1], np.uint16)}, "a key or a model that is not there"),
        ({"times": np.array([1, 0], np.uint64)}, "in the order of their times"),
        ({"costs": np.zeros(3, np.float32)}, "differ in length"),
        ({"asked": np.array([0, 1])}, "asked: give a contiguous array of uint32, not of int64"),
        ({"sizes": np.array([8, 0, 8], np.uint64)[::2]}, "sizes: give a contiguous array"),
        ({"keys": np.zeros(33, np.uint8)}, "32 bytes"),
        ({"times": np.frombuffer(bytes(17), np.uint8)[1:].view(np.uint64)}, "aligned"),
    ],
)
def test_arrays_that_are_no_log_are_refused(wrong: dict[str, np.ndarray], said: str) -> None:
    clock = ManualClock()
    cache = Cache("1MB", clock=clock)
    given = {**ARRAYS, **wrong}
    with pytest.raises(InvalidArgument, match=said):
        _core._replay(
            cache,
            clock,
            given["keys"],
            ["m"],
            given["asked"],
            given["times"],
            given["sizes"],
            given["costs"],
            given["models"],
        )
