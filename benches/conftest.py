"""Fixtures of the benchmarks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from measure import Measure

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

# A peer that would fetch its price list at import uses the copy that it ships: nothing here needs a network.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.fixture
def short() -> bool:
    """Whether this is a short run: fewer rounds, coarse numbers."""
    return os.environ.get("INFERCACHE_BENCH_SHORT") == "1"


@pytest.fixture
def measure(benchmark: BenchmarkFixture, short: bool) -> Measure:
    """Measures one subject; see `Measure.__call__`."""
    return Measure(benchmark, short=short)
