"""The counters of caches in your own process, for Prometheus and for OpenTelemetry (the extra `metrics`).

Both read `cache.stats()` when they are asked, so a look-up costs nothing more. What they show has the names that
`infercache serve` has on `/-/metrics`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from infercache.errors import InvalidArgument, MissingExtra, shown

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

    from infercache.cache import Cache
    from infercache.stats import Stats

__all__ = ["FIGURES", "Figure", "families", "opentelemetry_instruments", "prometheus_collector"]

#: One cache, or several by names that tell them apart.
Caches: TypeAlias = "Cache | Mapping[str, Cache]"


class Figure(NamedTuple):
    """A figure of `Stats`, which explains it in full.

    Attributes:
        name: the field's.
        explained: in a sentence.
        unit: of UCUM, as OpenTelemetry has units.
        is_gauge: it goes down as well as up.
    """

    name: str
    explained: str
    unit: str = "1"
    is_gauge: bool = False


FIGURES = (
    Figure("hits_l1", "Look-ups answered with a fresh entry from memory."),
    Figure("hits_l2", "Look-ups answered from the shared tier."),
    Figure("stale_hits", "Answers given out although expired or softly purged."),
    Figure("misses", "Look-ups that found nothing to serve."),
    Figure("coalesced", "Answers taken from another's computation instead of an own one."),
    Figure("stores", "Entries stored."),
    Figure("rejected", "Entries refused because they are larger than the cache."),
    Figure("uncacheable", "Results that cannot be stored, or whose model was replaced while it ran."),
    Figure("evictions", "Live entries that had to go for others."),
    Figure("expirations", "Expired entries whose bytes came back."),
    Figure("invalidated", "Of the misses, those that found an entry which a purge hides."),
    Figure("entries", "Entries held now.", is_gauge=True),
    Figure("bytes", "Bytes held now: keys, values and overhead.", "By", is_gauge=True),
    Figure("pinned_bytes", "Bytes of entries that are gone but that callers still hold.", "By", is_gauge=True),
    Figure("saved_seconds", "Compute time that hits saved.", "s"),
    Figure("l2_errors", "Failures of the shared tier."),
    Figure("hashed_on_host", "Tensors on a GPU that were copied to the host to be hashed; of the whole process."),
)


def families(stats: Iterable[tuple[list[str], Stats]], labels: list[str]) -> Iterator[Metric]:
    """The figures of caches as prometheus-client has metrics, a family each: `infercache_hits_l1_total`, ….

    Args:
        stats: of each cache, with the values of its labels.
        labels: their names.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    known = list(stats)
    for figure in FIGURES:
        kind = GaugeMetricFamily if figure.is_gauge else CounterMetricFamily
        family = kind(f"infercache_{figure.name}", figure.explained, labels=labels)
        for values, figures in known:
            family.add_metric(values, getattr(figures, figure.name))
        yield family


class _CacheCollector:
    """What a registry of prometheus-client asks; it derives from nothing, so that it need not be installed."""

    def __init__(self, caches: Caches) -> None:
        self._named = dict(caches) if isinstance(caches, Mapping) else None
        self._only = None if isinstance(caches, Mapping) else caches

    def collect(self) -> Iterator[Metric]:
        """Every series."""
        if self._only is not None:
            return families([([], self._only.stats())], [])
        named = self._named or {}
        return families([([name], cache.stats()) for name, cache in named.items()], ["cache"])


def prometheus_collector(caches: Caches) -> Collector:
    """What a registry of prometheus-client takes: `REGISTRY.register(prometheus_collector(cache))`.

    Args:
        caches: one cache, or several by name, `{"embeddings": …, "answers": …}`, which then have the label `cache`.
            A registry takes one such collector, as it takes each name once.

    Raises:
        MissingExtra: prometheus-client is not installed.
    """
    try:
        import prometheus_client.core  # noqa: F401 - whether it is there
    except ImportError as error:
        raise MissingExtra(
            f"figures for Prometheus need prometheus-client ({error}): pip install 'infercache[metrics]'"
        ) from None
    _check(caches)
    return cast("Collector", _CacheCollector(caches))


def opentelemetry_instruments(caches: Caches, meter_provider: MeterProvider | None = None) -> None:
    """Makes the figures observable instruments of OpenTelemetry: `infercache.hits_l1`, `infercache.bytes`, ….

    Where they go is for the SDK to say. A cache that nobody holds any more is observed no more.

    Args:
        caches: one cache, or several by name, which then have the attribute `infercache.cache`.
        meter_provider: by default the process's.

    Raises:
        MissingExtra: opentelemetry-api is not installed.
    """
    try:
        from opentelemetry import metrics
    except ImportError as error:
        raise MissingExtra(
            f"figures for OpenTelemetry need opentelemetry-api ({error}): pip install 'infercache[metrics]'"
        ) from None
    _check(caches)
    from infercache import __version__

    meter = metrics.get_meter("infercache", __version__, meter_provider)
    held = [
        (attributes, weakref.ref(cache))
        for attributes, cache in (
            [({"infercache.cache": name}, cache) for name, cache in caches.items()]
            if isinstance(caches, Mapping)
            else [(dict[str, str](), caches)]
        )
    ]
    for figure in FIGURES:
        create = meter.create_observable_up_down_counter if figure.is_gauge else meter.create_observable_counter
        create(f"infercache.{figure.name}", [_observer(figure.name, held)], figure.unit, figure.explained)


def _observer(name: str, held: list[tuple[dict[str, str], weakref.ref[Cache]]]) -> Any:
    """What OpenTelemetry calls for a figure."""
    from opentelemetry.metrics import Observation

    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for attributes, reference in held:
            if (cache := reference()) is not None:
                yield Observation(getattr(cache.stats(), name), attributes)

    return observe


def _check(caches: object) -> None:
    from infercache.cache import Cache

    given = list(caches.values()) if isinstance(caches, Mapping) else [caches]
    if not given or not all(isinstance(cache, Cache) for cache in given):
        raise InvalidArgument(f"caches={shown(caches)}: give a Cache, or a dict of them by name")
