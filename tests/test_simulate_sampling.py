"""A sample tells of the whole: estimates within the bound that is shown with them, whatever the log and the sample."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache.workload import formats
from infercache.workload.columns import Reading
from infercache.workload.log import Collector, Defaults, Log
from infercache.workload.requests import Batch, Groups, LeftOut
from infercache.workload.sampling import PARTS, hashes, threshold
from infercache.workload.sources import Source
from infercache.workload.trials import Setting, Trial, tried

NOTHING = Defaults({}, {})


def batch_of(numbers: np.ndarray, groups: Groups, costs: np.ndarray | None = None) -> Batch:
    """Requests for keys of these numbers, a second apart."""
    count = len(numbers)
    words = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    keys = np.ascontiguousarray(np.repeat(words[:, None], 4, axis=1)).view(np.uint8)
    return Batch(
        keys,
        np.full(count, groups.number("", "m"), np.uint16),
        np.arange(count, dtype=np.float64),
        np.full(count, 1000.0),
        np.full(count, 0.01) if costs is None else costs,
    )


def zipf(count: int, keys: int, seed: int) -> np.ndarray:
    weights = 1.0 / np.arange(1, keys + 1) ** 0.8
    return np.random.default_rng(seed).choice(keys, count, p=weights / weights.sum())


def log_of(batches: list[Batch], groups: Groups, rate: float | None, seed: int = 0, most: int = 1 << 40) -> Log:
    collector = Collector(groups, rate=rate, seed=seed, most=most)
    number = 0
    for batch in batches:
        collector.add(batch, number)
        number += len(batch)
    return collector.finish(NOTHING, ["a test"])


def estimated(log: Log, size: int | None, ttl: float | None = None) -> Trial:
    return tried(log, Setting(size, ttl), seed=1, parts=log.parts(9) if log.rate < 1 else ())


@cache
def trace(path: Path, format: str) -> tuple[Groups, list[Batch]]:
    """A public trace, with costs that differ a thousandfold by key."""
    groups = Groups()
    reading = Reading(str(path), {}, groups, LeftOut())
    with Source(str(path)) as source:
        batches = list(formats.FORMATS[format](source, reading))
    for batch in batches:
        batch.costs[:] = 0.005 * 1000.0 ** (batch.keys[:, 9] / 255)
    return groups, batches


TRACES = [
    ("cache2k_web07.trace.xz", "cache2k", (1_700_000, 3_300_000, 17_000_000)),
    ("cache2k_web12.trace.xz", "cache2k", (1_100_000, 4_400_000, 11_000_000)),
    ("mooncake_synthetic_trace.jsonl", "mooncake-blocks", (7_100_000, 14_000_000, 35_000_000)),
]


@pytest.mark.shared
@pytest.mark.parametrize("rate", [0.1, 0.3])
@pytest.mark.parametrize(("name", "format", "sizes"), TRACES, ids=[name for name, _, _ in TRACES])
def test_exact_runs_of_real_traces_lie_within_the_bound(
    shared: Path, name: str, format: str, sizes: tuple[int, ...], rate: float
) -> None:
    groups, batches = trace(shared / "data" / "traces" / name, format)
    whole = log_of(batches, groups, 1.0)
    count, worked = float(whole.requests.sum()), float(whole.seconds.sum())
    within, off, bounds = [], [], []
    for size in sizes:
        exact = estimated(whole, size)
        for seed in range(12):
            found = estimated(log_of(batches, groups, rate, seed), size)
            for estimate, truth, bound, scale in (
                (found.hits.sum(), exact.hits.sum(), found.hits_bound, count),
                (found.saved.sum(), exact.saved.sum(), found.saved_bound, worked),
            ):
                within.append(abs(estimate - truth) <= bound)
                off.append((estimate - truth) / scale)
                bounds.append(bound / scale)
    print(
        f"{name} at {rate:g}: {np.mean(within):.1%} within; off by {np.std(off):.2%} (mean {np.mean(off):+.2%}), "
        f"bound {np.mean(bounds):.2%}"
    )
    # 95 % is what the bound says; these are 72 of twelve samples, so one sample that is off is six.
    assert np.mean(within) >= 0.85
    assert np.mean(bounds) < 4 * np.std(off), "a bound that is never reached tells nothing"
    assert abs(np.mean(off)) < 0.01


def test_an_estimate_of_a_drawn_log_lies_within_the_bound_with_lives_as_well() -> None:
    groups = Groups()
    batches = [batch_of(zipf(120_000, 30_000, 1), groups)]
    whole = log_of(batches, groups, 1.0)
    within = []
    for ttl in (None, 20_000.0):
        exact = estimated(whole, 6_000_000, ttl)
        for seed in range(10):
            found = estimated(log_of(batches, groups, 0.1, seed), 6_000_000, ttl)
            within.append(abs(found.hits.sum() - exact.hits.sum()) <= found.hits_bound)
    assert np.mean(within) >= 0.85


def test_a_key_that_is_asked_for_all_the_time_hardly_matters_in_or_out_of_the_sample() -> None:
    """What SHARDS corrects: a third of the requests is for one key, which is in one sample of ten."""
    groups = Groups()
    numbers = zipf(60_000, 20_000, 2) + 1
    numbers[::3] = 0
    batches = [batch_of(numbers, groups)]
    exact = float(estimated(log_of(batches, groups, 1.0), 4_000_000).hits.sum()) / len(numbers)
    corrected, plain = [], []
    for seed in range(20):
        log = log_of(batches, groups, 0.1, seed)
        trial = estimated(log, 4_000_000)
        corrected.append(float(trial.hits.sum()) / len(numbers) - exact)
        missed = (len(numbers) - float(trial.hits.sum())) * log.rate
        plain.append(1 - missed / len(log.asked) - exact)
    assert np.std(corrected) < 0.02
    assert np.std(plain) > 4 * np.std(corrected)


def test_a_whole_log_has_no_bound() -> None:
    groups = Groups()
    trial = estimated(log_of([batch_of(zipf(1_000, 300, 3), groups)], groups, 1.0), 100_000)
    assert (trial.hits_bound, trial.saved_bound) == (0, 0)


def test_a_key_is_in_the_sample_with_all_of_its_requests_or_none() -> None:
    groups = Groups()
    numbers = zipf(20_000, 3_000, 4)
    whole, sample = (log_of([batch_of(numbers, groups)], groups, rate) for rate in (1.0, 0.2))
    counts = {bytes(key): count for key, count in zip(whole.keys, np.bincount(whole.asked), strict=True)}
    for key, count in zip(sample.keys, np.bincount(sample.asked), strict=True):
        assert counts[bytes(key)] == count
    assert len(sample.keys) == pytest.approx(0.2 * len(whole.keys), rel=0.15)
    assert sample.requests.sum() == whole.requests.sum()


@given(st.integers(1, 2_000), st.integers(50, 500), st.integers(0, 5))
def test_a_sample_of_bounded_size_does_not_depend_on_how_the_log_comes(piece: int, most: int, seed: int) -> None:
    groups = Groups()
    numbers = zipf(2_000, 700, 5)
    whole = log_of([batch_of(numbers, groups)], groups, None, seed, most)
    batch = batch_of(numbers, groups)
    pieces = [
        Batch(*(None if column is None else column[start : start + piece] for column in columns(batch)))  # type: ignore[arg-type]
        for start in range(0, len(numbers), piece)
    ]
    found = log_of(pieces, groups, None, seed, most)
    assert len(found.asked) <= most
    assert found.rate == whole.rate
    for name in ("asked", "times", "keys", "costs", "requests", "without"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def columns(batch: Batch) -> list[np.ndarray | None]:
    return [getattr(batch, each.name) for each in dataclasses.fields(batch)]


def test_the_parts_of_a_sample_are_all_of_it_and_share_no_key() -> None:
    groups = Groups()
    log = log_of([batch_of(zipf(20_000, 3_000, 6), groups)], groups, 0.5)
    parts = log.parts(3)
    assert len(parts) == PARTS
    assert sum(len(part.asked) for part in parts) == len(log.asked)
    keys = [bytes(key) for part in parts for key in part.keys]
    assert len(keys) == len(set(keys)) == len(log.keys)
    for part in parts:
        assert part.rate == 0.5 / PARTS
        np.testing.assert_array_equal(np.sort(np.unique(part.asked)), np.arange(len(part.keys)))
        assert (np.diff(part.times.astype(np.int64)) >= 0).all()


@given(st.integers(0, 1 << 60), st.floats(0.01, 0.9))
def test_samples_of_another_seed_are_other_samples(seed: int, rate: float) -> None:
    keys = np.random.default_rng(1).integers(0, 256, (4_000, 32), dtype=np.uint8)
    one, other = (hashes(keys, each) < threshold(rate) for each in (seed, seed + 1))
    assert one.mean() == pytest.approx(rate, abs=0.05)
    assert (one & other).mean() == pytest.approx(rate * rate, abs=0.05)


def test_costs_without_a_cache_are_taken_evenly_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from infercache.workload import log as module

    monkeypatch.setattr(module, "_COSTS_KEPT", 50)
    groups = Groups()
    batches = [
        batch_of(np.arange(count), groups, np.arange(count) / 100 + start) for start, count in ((0, 170), (9, 333))
    ]
    found = log_of(batches, groups, 1.0).without
    every = np.concatenate([batch.costs for batch in batches])
    np.testing.assert_array_equal(found, every[::4])
