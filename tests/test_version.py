"""A model that is replaced while it runs: no answer is stored under, or shared as, another version's."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache, background
from together import PATIENCE, Gate, Started, Waits, is_quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from infercache.testing import ManualClock


class Deployed:
    """A model and its version, replaced together, and while it runs if that is asked for."""

    def __init__(self) -> None:
        self.version = "1"
        self.replace_before: str | None = None
        self.replace_after: str | None = None
        self.runs: list[Any] = []

    def run(self, question: Any) -> str:
        if self.replace_before is not None:
            self.version, self.replace_before = self.replace_before, None
        answer = f"{question} by {self.version}"
        self.runs.append(answer)
        if self.replace_after is not None:
            self.version, self.replace_after = self.replace_after, None
        return answer


@pytest.fixture
def deployed() -> Deployed:
    return Deployed()


@pytest.fixture(params=["version", "model"])
def names(request: pytest.FixtureRequest, deployed: Deployed) -> dict[str, Any]:
    """Options that take a key's version, or its model, from what is deployed."""
    changing = {request.param: lambda **arguments: deployed.version}
    return {"model": "m", "version": "1", "operation": "ask", **changing}


def function(cache: Cache, deployed: Deployed, kind: str, **options: Any) -> Callable[[str], str]:
    """A memoized function of one question, of whatever kind."""
    if kind == "sync":
        return cache.memoize(**options)(deployed.run)
    if kind == "batch":
        batch = cache.memoize_batch(over="questions", **options)(
            lambda questions: [deployed.run(question) for question in questions]
        )
        return lambda question: batch([question])[0]

    async def run(question: str) -> str:
        await asyncio.sleep(0)
        return deployed.run(question)

    async def run_all(questions: list[str]) -> list[str]:
        return [await run(question) for question in questions]

    if kind == "async":
        asynchronous = cache.memoize(**options)(run)
        return lambda question: asyncio.run(asynchronous(question))
    all_of_them = cache.memoize_batch(over="questions", **options)(run_all)
    return lambda question: asyncio.run(all_of_them([question]))[0]


KINDS = ["sync", "async", "batch", "async batch"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["replace_before", "replace_after"])
def test_an_answer_is_not_stored_if_the_version_changed_while_the_model_ran(
    cache: Cache, deployed: Deployed, names: dict[str, Any], kind: str, when: str
) -> None:
    ask = function(cache, deployed, kind, **names)
    setattr(deployed, when, "2")
    first = ask("q")
    assert first == ("q by 2" if when == "replace_before" else "q by 1"), "returned to its caller all the same"
    stats = cache.stats()
    assert (stats.uncacheable, stats.stores, stats.entries) == (1, 0, 0)
    assert ask("q") == ask("q") == "q by 2"
    deployed.version = "1"
    assert ask("q") == ask("q") == "q by 1"
    assert len(deployed.runs) == 3
    assert cache.stats().uncacheable == 1
    assert is_quiet(cache)


@pytest.mark.parametrize("kind", KINDS)
def test_a_background_refresh_is_not_stored_if_the_version_changed_while_it_ran(
    cache: Cache, clock: ManualClock, deployed: Deployed, names: dict[str, Any], kind: str
) -> None:
    ask = function(cache, deployed, kind, ttl="1m", stale_while_revalidate="1h", **names)
    ask("q")
    clock.advance(61)
    deployed.replace_before = "2"
    if "async" in kind:
        # Its loop must live until the refresh is done, and that of `function` does not.
        done = Started(lambda: asyncio.run(_served_and_refreshed(cache, deployed, kind, names)))
        assert done.results() == ["q by 1"]
    else:
        assert ask("q") == "q by 1"
        while background._threads._names:
            threading.Event().wait(0.001)
    assert deployed.runs[1:] == ["q by 2"]
    assert cache.stats().uncacheable == 1
    deployed.version = "1"
    assert ask("q") == "q by 1"
    deployed.version = "2"
    assert ask("q") == "q by 2"
    assert deployed.runs[1:].count("q by 2") == 2, "the first was not stored"


async def _served_and_refreshed(cache: Cache, deployed: Deployed, kind: str, names: dict[str, Any]) -> str:
    async def run(question: str) -> str:
        return deployed.run(question)

    async def run_all(questions: list[str]) -> list[str]:
        return [deployed.run(question) for question in questions]

    options: dict[str, Any] = {**names, "ttl": "1m", "stale_while_revalidate": "1h"}
    if kind == "async":
        served = await cache.memoize(**options)(run)("q")
    else:
        served = (await cache.memoize_batch(over="questions", **options)(run_all)(["q"]))[0]
    while background._tasks:
        await asyncio.sleep(0)
    return served


def test_a_refresh_is_not_stored_if_the_version_changed_while_the_model_ran(
    cache: Cache, deployed: Deployed, names: dict[str, Any]
) -> None:
    ask: Any = function(cache, deployed, "sync", **names)
    deployed.replace_before = "2"
    assert ask.refresh("q") == "q by 2"
    assert ask.peek("q") is None
    deployed.version = "1"
    assert ask.peek("q") is None


def test_who_waits_for_a_run_during_which_the_version_changed_computes_itself(
    cache: Cache, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, gate = Waits(monkeypatch), Gate()

    @cache.memoize(model="m", version=lambda question: deployed.version, operation="ask")
    def ask(question: str) -> str:
        gate.pass_through()
        return deployed.run(question)

    callers = Started(*[lambda: ask("q")] * 3)
    gate.wait_for(1)
    waits.wait_for(2)
    deployed.replace_after = "2"
    gate.open()
    # The leader's answer is nobody else's: who asked under version 1 asks the model that is there now.
    assert sorted(callers.results()) == ["q by 1", "q by 2", "q by 2"]
    stats = cache.stats()
    assert (stats.uncacheable, stats.stores, stats.coalesced) == (3, 0, 0)
    deployed.version = "1"
    assert ask.peek("q") is None
    assert is_quiet(cache)


def test_a_batch_never_holds_answers_of_two_versions(cache: Cache, deployed: Deployed) -> None:
    @cache.memoize_batch(
        model="m", version=lambda questions: deployed.version, operation="ask", over="questions", max_batch=2
    )
    def ask(questions: list[str]) -> list[str]:
        return [deployed.run(question) for question in questions]

    ask(["a", "b"])
    deployed.replace_before = "2"
    # "a" is known to version 1, and the second chunk is computed by version 2.
    assert ask(["a", "c", "d", "e"]) == ["a by 2", "c by 2", "d by 2", "e by 2"]
    deployed.replace_after = "3"
    assert ask(["a", "b", "c"]) == ["a by 3", "b by 3", "c by 3"]
    deployed.version = "1"
    assert ask.peek(["a", "b"]) == ["a by 1", "b by 1"]
    assert ask.peek(["c"]) is None
    assert is_quiet(cache)


def test_a_leader_that_comes_after_the_version_changed_stores_nothing(
    cache: Cache, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        hold = asyncio.Event()

        @cache.memoize(model="m", version=lambda question: deployed.version, operation="ask")
        async def ask(question: str) -> str:
            await hold.wait()
            return deployed.run(question)

        leader = asyncio.create_task(ask("q"))
        await asyncio.sleep(0)
        waiter = asyncio.create_task(ask("q"))
        await asyncio.sleep(0)
        deployed.version = "2"
        leader.cancel()
        hold.set()
        assert await waiter == "q by 2"
        assert await ask.peek("q") is None
        deployed.version = "1"
        assert await ask.peek("q") is None

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert is_quiet(cache)


def test_a_version_that_cannot_be_read_after_the_run_is_an_error_and_stores_nothing(cache: Cache) -> None:
    reads = 0

    def version(question: str) -> str:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise LookupError("no version")
        return "1"

    @cache.memoize(model="m", version=version, operation="ask")
    def ask(question: str) -> str:
        return question

    with pytest.raises(LookupError, match="no version"):
        ask("q")
    assert ask.peek("q") is None
    assert is_quiet(cache)
