"""What the tests share. A deadlock ends the run with a stack of every thread (`faulthandler_*` in pyproject.toml)."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from infercache import Cache
from infercache.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from asking import Asker
    from servers import Binary, Server

ROOT = Path(__file__).resolve().parent.parent

# LiteLLM would fetch its price list when it is imported; the copy that it ships does.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

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


@pytest.fixture
def binary(request: pytest.FixtureRequest) -> Binary:
    """A server program: the best that is here; `parametrize("binary", servers.NAMES, indirect=True)` tries each."""
    import servers

    return servers.binary(getattr(request, "param", None))


@pytest.fixture
def server(binary: Binary) -> Iterator[Server]:
    """A server of the test's own, empty, of that program."""
    from servers import Server

    with Server(binary) as server:
        yield server


@pytest.fixture
def pair(server: Server, request: pytest.FixtureRequest) -> Iterator[tuple[Cache, Cache]]:
    """Two caches that the file's `make` makes, with flights and followers of their own, as in two processes.

    One by TCP and one by the server's socket: tiers of different addresses share nothing in a process.
    """
    make = request.module.make
    with make(server.url) as one, make(server.unix_url) as other:
        yield one, other


@pytest.fixture(params=["thread", "task"])
def ask(request: pytest.FixtureRequest) -> Iterator[Asker]:
    """A caller of a tier, of each kind."""
    from asking import asking

    with asking(request.param) as asker:
        yield asker


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is `async def` runs in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**given))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the logs of the servers and processes that it had."""
    report = yield
    if report.failed:
        for name in ("servers", "processes"):
            known = sys.modules[name].OPEN if name in sys.modules else ()
            report.sections += [(f"log of {each}", each.log_tail()) for each in known]
    return report
