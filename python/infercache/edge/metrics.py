"""Counters and histograms of the edge, by route and model, and an hour of samples for the page.

Counting one request is one look-up in a dict and a few additions: own code, since prometheus-client, which writes what
`GET /-/metrics` shows, takes several microseconds for the same series (docs/decisions). Nothing here has a lock: the
loop's thread counts.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from infercache import Cache
    from infercache.edge.exchange import Outcome

__all__ = ["BOUNDS", "KINDS", "Metrics", "collector"]

KINDS = ("hit", "partial", "miss", "stale", "bypass", "uncached", "error")
#: Upper bounds of the latency histogram, in seconds.
BOUNDS = (
    *(0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0),
)
#: Names that callers bring: more models than this are counted together, as are those of requests that failed.
_MOST_MODELS = 200
_LONGEST_MODEL = 200
_OTHER = "(other)"
#: Seconds between two samples, and how many are kept: an hour.
INTERVAL = 5.0
_SAMPLES = 720
#: Models of one sample.
_BUSIEST = 20


@dataclass(slots=True)
class Series:
    """What is counted of one route, model, kind and status."""

    requests: int
    items: int
    hits: int
    stored: int
    collapsed: int
    saved: float
    seconds: float
    buckets: list[int]


class Metrics:
    """What one process's edge has done.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._series: dict[tuple[str, str, str, int], Series] = {}
        self._models: set[str] = set()
        self._clock = clock
        self._samples: deque[dict[str, Any]] = deque(maxlen=_SAMPLES)
        self._before: dict[tuple[str, str, str, int], tuple[int, int, int, float, list[int]]] = {}
        self._next = clock() + INTERVAL
        #: Requests under way.
        self.in_flight = 0
        #: Faults of the cache that failed no request, by the exception's name.
        self.faults: dict[str, int] = {}
        #: Answers whose tokens a model server counted otherwise, by the name that the tokenizer has in the settings.
        self.disagreements: dict[str, int] = {}

    def count(self, outcome: Outcome, status: int, began: float, now: float) -> None:
        """One request was answered so, from its head (`began`) to the answer's end, by the clock."""
        if now >= self._next:
            self.tick(now)
        seconds = now - began
        key = (outcome.route, outcome.model, outcome.kind, status)
        series = self._series.get(key)
        if series is None:
            series = self._of(key)
        series.requests += 1
        series.items += outcome.items
        series.hits += outcome.hits
        series.stored += outcome.stored
        series.collapsed += outcome.collapsed
        series.saved += outcome.saved_seconds
        series.seconds += seconds
        series.buckets[bisect_left(BOUNDS, seconds)] += 1

    def fault(self, error: BaseException) -> None:
        """A fault of the cache, whose request was passed through."""
        name = type(error).__name__
        self.faults[name] = self.faults.get(name, 0) + 1

    def disagreement(self, tokenizer: str) -> int:
        """A model server counted tokens otherwise than this tokenizer; how often that was so by now."""
        self.disagreements[tokenizer] = times = self.disagreements.get(tokenizer, 0) + 1
        return times

    def _of(self, key: tuple[str, str, str, int]) -> Series:
        route, model, kind, status = key
        if model and model not in self._models:
            # A caller can name any model; only one that the upstream answers for has a series.
            if status >= 400 or len(self._models) >= _MOST_MODELS or len(model) > _LONGEST_MODEL:
                key = (route, _OTHER, kind, status)
            else:
                self._models.add(model)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = Series(0, 0, 0, 0, 0, 0.0, 0.0, [0] * (len(BOUNDS) + 1))
        return series

    def series(self) -> Iterator[tuple[tuple[str, str, str, int], Series]]:
        """Everything that is counted: (route, model, kind, status) and the counts."""
        yield from self._series.items()

    def tick(self, now: float) -> None:
        """Takes a sample if its time has come."""
        if now < self._next:
            return
        elapsed = INTERVAL + now - self._next
        self._next = now + INTERVAL
        self._samples.append(self._sample(elapsed))

    def samples(self) -> list[dict[str, Any]]:
        """The samples of the last hour, the oldest first; `at` is seconds of the wall clock."""
        self.tick(self._clock())
        return list(self._samples)

    def _sample(self, elapsed: float) -> dict[str, Any]:
        kinds = dict.fromkeys(KINDS, 0)
        items = hits = 0
        saved = 0.0
        buckets = [0] * (len(BOUNDS) + 1)
        models: dict[str, list[float]] = {}
        for key, series in self._series.items():
            _, model, kind, _ = key
            now = (series.requests, series.items, series.hits, series.saved, list(series.buckets))
            then = self._before.get(key, (0, 0, 0, 0.0, [0] * len(buckets)))
            if now[0] == then[0]:
                continue
            self._before[key] = now
            kinds[kind if kind in kinds else "uncached"] += now[0] - then[0]
            saved += now[3] - then[3]
            buckets = [total + after - before for total, after, before in zip(buckets, now[4], then[4], strict=True)]
            if kind not in ("hit", "partial", "miss", "stale"):
                continue
            items += now[1] - then[1]
            hits += now[2] - then[2]
            if model:
                counts = models.setdefault(model, [0, 0, 0, 0.0])
                for place, difference in enumerate(
                    (now[0] - then[0], now[1] - then[1], now[2] - then[2], now[3] - then[3])
                ):
                    counts[place] += difference
        busiest = sorted(models.items(), key=lambda each: -each[1][0])[:_BUSIEST]
        return {
            "at": round(time.time(), 1),
            "seconds": round(elapsed, 3),
            "kinds": kinds,
            "items": items,
            "hits": hits,
            "saved": round(saved, 6),
            "p50": quantile(buckets, 0.5),
            "p99": quantile(buckets, 0.99),
            "models": {name: [counts[0], counts[1], counts[2], round(counts[3], 6)] for name, counts in busiest},
        }


def quantile(buckets: list[int], part: float) -> float | None:
    """That quantile of a histogram, in seconds, in a straight line within its bucket; None: nothing was counted."""
    total = sum(buckets)
    if not total:
        return None
    wanted = part * total
    for place, upto in enumerate(accumulate(buckets)):
        if upto >= wanted and buckets[place]:
            low = BOUNDS[place - 1] if place else 0.0
            high = BOUNDS[place] if place < len(BOUNDS) else BOUNDS[-1]
            return round(low + (high - low) * (wanted - (upto - buckets[place])) / buckets[place], 7)
    return BOUNDS[-1]


def collector(metrics: Metrics, cache: Cache | None, upstream: Callable[[], dict[str, int]] | None = None) -> Collector:
    """What prometheus-client's registries take: `registry.register(collector(…))`.

    Raises:
        ImportError: prometheus-client is not installed; the extra `edge` brings it.
    """
    from infercache.edge.exposition import EdgeCollector

    return EdgeCollector(metrics, cache, upstream)
