"""What the tests share. A deadlock ends the run with a stack of every thread (`faulthandler_*` in pyproject.toml)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from infercache import Cache
from infercache.testing import ManualClock

ROOT = Path(__file__).resolve().parent.parent

# No deadlines: how long an example takes says nothing on a machine that does other things too.
settings.register_profile("default", deadline=None)
# The same examples at every run, so that a red run can be looked at; people's runs look for new ones.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
# INFERCACHE_HYPOTHESIS=thorough: for a night, or before a release.
settings.register_profile(
    "thorough", deadline=None, max_examples=10_000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("INFERCACHE_HYPOTHESIS") or ("ci" if os.environ.get("CI") else "default"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of optional material (conformance suites, vectors, traces), which no repository of ours holds."""
    folder = Path(os.environ.get("INFERCACHE_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"the optional test material is not here: no folder {folder} (INFERCACHE_SHARED names another)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def fingerprints_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What models were fingerprinted is written down in a folder of this run, and nowhere in a person's home."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("INFERCACHE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def clock() -> ManualClock:
    """A clock that the test moves."""
    return ManualClock()


@pytest.fixture
def cache(clock: ManualClock) -> Cache:
    """A cache on that clock; a file whose tests want another one has a fixture of this name."""
    return Cache("16MB", clock=clock)
