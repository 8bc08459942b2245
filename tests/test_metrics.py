"""A cache's figures for Prometheus and OpenTelemetry: all of them, and the very ones that `stats` tells."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Sum
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infercache import Cache, Stats
from infercache.errors import InvalidArgument
from infercache.metrics import FIGURES, opentelemetry_instruments, prometheus_collector


def used(cache: Cache) -> Cache:
    """The cache, of which hits, misses and a purge can be told apart."""
    key = cache.key("x", model="m", version="1")
    cache.get(key)
    cache.set(key, "y" * 1_000)
    for _ in range(3):
        cache.get(key)
    cache.invalidate(model="m")
    cache.get(key)
    return cache


def scraped(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Every sample as Prometheus reads it, by name and labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


def observed(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Every metric that an SDK of OpenTelemetry has collected, by name."""
    data = reader.get_metrics_data()
    return {
        metric.name: metric
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_every_figure_of_stats_is_told_of() -> None:
    assert [figure.name for figure in FIGURES] == [field.name for field in fields(Stats)]


def test_prometheus_reads_what_stats_tells(cache: Cache) -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(prometheus_collector(used(cache)))
    stats, found = cache.stats(), scraped(registry)
    assert (stats.hits_l1, stats.misses, stats.invalidated, stats.stores) == (3, 2, 1, 1)
    for figure in FIGURES:
        name = f"infercache_{figure.name}" + ("" if figure.is_gauge else "_total")
        assert found[name,] == getattr(stats, figure.name), name
    cache.get(cache.key("x", model="m", version="1"))
    assert scraped(registry)["infercache_misses_total",] == 3


def test_prometheus_tells_several_caches_apart(cache: Cache) -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(prometheus_collector({"answers": used(cache), "embeddings": Cache("1MB")}))
    found = scraped(registry)
    assert found["infercache_hits_l1_total", "answers"] == 3
    assert found["infercache_hits_l1_total", "embeddings"] == 0


def test_opentelemetry_reads_what_stats_tells(cache: Cache, reader: InMemoryMetricReader) -> None:
    opentelemetry_instruments(used(cache), MeterProvider([reader]))
    stats, found = cache.stats(), observed(reader)
    assert found.keys() == {f"infercache.{figure.name}" for figure in FIGURES}
    for figure in FIGURES:
        metric = found[f"infercache.{figure.name}"]
        (point,) = metric.data.data_points
        assert point.value == getattr(stats, figure.name), figure.name
        assert isinstance(metric.data, Sum) and metric.data.is_monotonic is not figure.is_gauge
    assert (found["infercache.bytes"].unit, found["infercache.saved_seconds"].unit) == ("By", "s")


def test_opentelemetry_tells_several_caches_apart(cache: Cache, reader: InMemoryMetricReader) -> None:
    other = Cache("1MB")
    opentelemetry_instruments({"answers": used(cache), "embeddings": other}, MeterProvider([reader]))
    points = observed(reader)["infercache.hits_l1"].data.data_points
    assert {point.attributes["infercache.cache"]: point.value for point in points} == {"answers": 3, "embeddings": 0}


def test_opentelemetry_holds_no_cache_that_nobody_else_does(reader: InMemoryMetricReader) -> None:
    cache = Cache("1MB")
    opentelemetry_instruments(cache, MeterProvider([reader]))
    assert observed(reader)["infercache.misses"].data.data_points
    del cache
    gc.collect()
    assert not any(metric.data.data_points for metric in observed(reader).values())


@pytest.mark.parametrize("made", [prometheus_collector, opentelemetry_instruments])
@pytest.mark.parametrize("given", [None, {}, {"a": None}, "cache"], ids=repr)
def test_what_is_no_cache_is_refused(made: Any, given: Any) -> None:
    with pytest.raises(InvalidArgument, match="give a Cache, or a dict of them by name"):
        made(given)


@pytest.mark.parametrize(
    ("missing", "asked", "extra"),
    [
        ("prometheus_client", "from infercache.metrics import prometheus_collector as f; f(Cache('1MB'))", "metrics"),
        ("opentelemetry", "from infercache.metrics import opentelemetry_instruments as f; f(Cache('1MB'))", "metrics"),
        ("langchain_core", "import infercache.adapters.langchain", "langchain"),
        ("litellm", "import infercache.adapters.litellm", "litellm"),
        ("soundfile", "from infercache.adapters.litellm import litellm_cache as f; f(Cache('1MB'))", "litellm"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(missing: str, asked: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from infercache import Cache, MissingExtra
try:
    {asked}
except MissingExtra as error:
    print(error)
"""
    # As the environment of the tests has it: LiteLLM asks nobody when it is imported.
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert missing in done.stdout
    assert f"pip install 'infercache[{extra}]'" in done.stdout
