"""The metrics as Prometheus reads them: what `Metrics` and the cache have counted, written by prometheus-client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from infercache.edge.metrics import BOUNDS, Metrics
from infercache.metrics import families

if TYPE_CHECKING:
    from infercache import Cache

__all__ = ["EdgeCollector", "exposition"]

_COUNTERS = {
    "items": "Questions that the requests held, of a batch its items.",
    "hits": "Questions that were answered from the cache.",
    "stored": "Requests whose answer was stored.",
    "collapsed": "Requests that took the answer to another request's question.",
}


class EdgeCollector(Collector):
    """Reads the counters when it is asked."""

    def __init__(
        self, metrics: Metrics, cache: Cache | None, upstream: Callable[[], dict[str, int]] | None = None
    ) -> None:
        self._metrics = metrics
        self._cache = cache
        self._upstream = upstream

    def collect(self) -> Iterator[Metric]:
        """Every series."""
        yield from self._requests()
        flight = GaugeMetricFamily("infercache_edge_in_flight", "Requests under way.")
        flight.add_metric([], self._metrics.in_flight)
        yield flight
        faults = CounterMetricFamily(
            "infercache_edge_faults", "Faults of the cache; each request was passed through.", labels=["error"]
        )
        for name, count in self._metrics.faults.items():
            faults.add_metric([name], count)
        yield faults
        others = CounterMetricFamily(
            "infercache_edge_tokenizer_disagreements",
            "Answers whose tokens the model server counted otherwise than the tokenizer of its settings.",
            labels=["tokenizer"],
        )
        for name, count in self._metrics.disagreements.items():
            others.add_metric([name], count)
        yield others
        for name, value in (self._upstream() if self._upstream is not None else {}).items():
            gauge = GaugeMetricFamily(f"infercache_edge_upstream_{name}", "The gateway's connections to its upstream.")
            gauge.add_metric([], value)
            yield gauge
        if self._cache is not None:
            yield from families([([], self._cache.stats())], [])

    def _requests(self) -> Iterator[Metric]:
        named = ["route", "model", "kind"]
        requests = CounterMetricFamily("infercache_edge_requests", "Answers.", labels=[*named, "status"])
        counters = {
            name: CounterMetricFamily(f"infercache_edge_{name}", text, labels=named) for name, text in _COUNTERS.items()
        }
        saved = CounterMetricFamily("infercache_edge_saved_seconds", "Compute time that hits saved.", labels=named)
        seconds = HistogramMetricFamily(
            "infercache_edge_request_seconds", "From a head to the answer's end.", labels=named
        )
        together: dict[tuple[str, str, str], tuple[dict[str, int], float, float, list[int]]] = {}
        for (route, model, kind, status), series in self._metrics.series():
            requests.add_metric([route, model, kind, str(status)], series.requests)
            counts, had_saved, took, buckets = together.get(
                (route, model, kind), (dict.fromkeys(_COUNTERS, 0), 0.0, 0.0, [0] * len(series.buckets))
            )
            together[route, model, kind] = (
                {name: count + getattr(series, name) for name, count in counts.items()},
                had_saved + series.saved,
                took + series.seconds,
                [one + other for one, other in zip(buckets, series.buckets, strict=True)],
            )
        bounds = [*(repr(bound) for bound in BOUNDS), "+Inf"]
        for labels, (counts, had_saved, took, buckets) in together.items():
            for name, count in counts.items():
                counters[name].add_metric(labels, count)
            saved.add_metric(labels, had_saved)
            seconds.add_metric(labels, list(zip(bounds, accumulate(buckets), strict=True)), took)
        yield from (requests, *counters.values(), saved, seconds)


def exposition(source: Collector, accept: str) -> tuple[bytes, str]:
    """The text and its media type, in the format that `accept` prefers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(source)
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
