"""Counters: exact, bounded whatever callers name, and cheap."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from infercache.edge.exchange import Outcome
from infercache.edge.metrics import BOUNDS, INTERVAL, Metrics, quantile


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_models_that_callers_make_up_have_no_series_of_their_own() -> None:
    metrics = Metrics()
    for number in range(1_000):
        metrics.count(Outcome("error", model=f"made-up-{number}"), 404, 0.0, 0.1)
    assert [key for key, _ in metrics.series()] == [("", "(other)", "error", 404)]
    for number in range(1_000):
        metrics.count(Outcome("miss", model=f"there-{number}"), 200, 0.0, 0.1)
    assert len(list(metrics.series())) < 210
    assert sum(series.requests for _, series in metrics.series()) == 2_000
    metrics.count(Outcome("error", model="there-0"), 500, 0.0, 0.1)
    assert ("", "there-0", "error", 500) in dict(metrics.series()), "a model that is known has its errors"


def test_a_sample_is_what_was_counted_since_the_one_before() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    metrics.count(Outcome("hit", items=3, hits=3, model="m", saved_seconds=0.3), 200, clock.now, clock.now + 0.001)
    metrics.count(Outcome("partial", items=4, hits=1, model="m", saved_seconds=0.1), 200, clock.now, clock.now + 0.03)
    metrics.count(Outcome("uncached"), 200, clock.now, clock.now + 0.03)
    assert metrics.samples() == []
    clock.now += INTERVAL
    (first,) = metrics.samples()
    assert (first["kinds"]["hit"], first["kinds"]["partial"], first["kinds"]["uncached"]) == (1, 1, 1)
    assert (first["items"], first["hits"], first["saved"]) == (7, 4, 0.4), "what no handler understood has no items"
    assert first["models"] == {"m": [2, 7, 4, 0.4]}
    clock.now += 3 * INTERVAL
    metrics.count(Outcome("miss", model="n"), 200, clock.now - 0.002, clock.now)
    second, third = (*metrics.samples(), None)[1:3]
    assert second is not None and third is None
    assert (sum(second["kinds"].values()), second["seconds"]) == (0, 3 * INTERVAL), "it was counted after the sample"
    clock.now += INTERVAL
    assert sum(metrics.samples()[2]["kinds"].values()) == 1


def test_samples_are_kept_for_an_hour() -> None:
    clock = Clock()
    metrics = Metrics(clock)
    for _ in range(1_000):
        clock.now += INTERVAL
        metrics.tick(clock.now)
    assert len(metrics.samples()) == 720


@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(times: list[float], part: float) -> None:
    from bisect import bisect_left
    from math import ceil

    buckets = [0] * (len(BOUNDS) + 1)
    for each in times:
        buckets[bisect_left(BOUNDS, each)] += 1
    exact = sorted(times)[max(0, ceil(part * len(times)) - 1)]
    found = quantile(buckets, part)
    assert found is not None
    place = bisect_left(BOUNDS, exact)
    assert (BOUNDS[place - 1] if place else 0) <= found <= BOUNDS[place] + 1e-6


def test_counting_a_request_costs_microseconds_at_most() -> None:
    """The bound is wide, for machines that do other things too; a quiet one takes about half a microsecond."""
    metrics = Metrics()
    outcome = Outcome("hit", hits=1, model="m", route="/v1/embeddings")
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(1_000):
            metrics.count(outcome, 200, 1.0, 1.0004)
        best = min(best, (time.perf_counter() - began) / 1_000)
    assert best < 10e-6
