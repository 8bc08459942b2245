"""How a benchmark is measured, so that ours and each peer are measured alike.

A file is `bench_<concept>.py`, a benchmark a function `bench_<subject>_…(measure)` in a group; ours begin with
`bench_infercache`, every other one is a peer of the same group. `report.py` prints the ratios.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


class Wanted(NamedTuple):
    """What ours has to reach: one of the three."""

    peer: str | None = None
    at_most: float | None = None  # times the peer's time
    at_most_more: float | None = None  # seconds above the peer's
    under: float | None = None  # seconds, whoever else there is


class Measure:
    """Runs one benchmark."""

    def __init__(self, benchmark: BenchmarkFixture, *, short: bool) -> None:
        self._benchmark = benchmark
        self._short = short

    def __call__(
        self,
        loop: Callable[[], Any],
        *,
        operations: int = 1,
        rounds: int = 40,
        wanted: Wanted | Sequence[Wanted] = (),
        headline: str | None = None,
        setup: Callable[[], None] | None = None,
        percentile: int | None = None,
        note: str = "",
    ) -> None:
        """Times `loop`, which does `operations` operations of the same kind, `rounds` times, the collector off.

        A loop of many operations is what makes operations of some 50 ns measurable: the cost of calling `loop` and of
        reading the clock is divided by their number. What the loop itself costs is in ours and in every peer's alike.

        Args:
            loop: what is timed.
            operations: by which its time is divided.
            rounds: of which the median is taken; a fifth of them in a short run.
            wanted: what ours has to reach.
            headline: a line for the page that introduces the project.
            setup: done before each round, its time not counted.
            percentile: of the rounds, to be shown beside the median: 99.
            note: to be shown in the report.
        """
        info = self._benchmark.extra_info
        info["operations"] = operations
        info["wanted"] = [one._asdict() for one in ([wanted] if isinstance(wanted, Wanted) else wanted)]
        if headline is not None:
            info["headline"] = headline
        gc.collect()
        rounds = max(3, rounds // 5) if self._short else rounds
        self._benchmark.pedantic(loop, setup=setup, rounds=rounds, warmup_rounds=1)
        if percentile is not None:
            times = sorted(self._benchmark.stats.stats.data)
            at = times[min(len(times) - 1, len(times) * percentile // 100)] / operations
            note = f"p{percentile} of {len(times)}: {at * 1e3:.3g} ms" + (f"; {note}" if note else "")
        if note:
            info["note"] = note
