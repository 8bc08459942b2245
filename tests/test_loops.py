"""A leader whose event loop stands still holds up nobody: who needs its answer elsewhere computes it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache, RecursiveComputation, background, effects, flights
from together import PATIENCE, Started, Waits, is_quiet, together

if TYPE_CHECKING:
    from infercache.testing import ManualClock


@pytest.fixture
def cache(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(effects, "GLANCE", 0.001)
    return Cache("16MB", clock=clock)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


class Source:
    """Answers are numbered; the runs that are named wait until they are let go."""

    def __init__(self, *held: int) -> None:
        self.runs = 0
        self.held = held
        self.hold: asyncio.Future[None] | None = None

    async def answer(self) -> int:
        self.runs += 1
        mine = self.runs
        if mine in self.held:
            self.hold = asyncio.get_running_loop().create_future()
            await self.hold
        return mine


class Stopping:
    """An event loop that a test stops in the middle of its tasks. They are let go of at the end."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self, coroutine: Coroutine[Any, Any, Any], until: Callable[[], bool]) -> asyncio.Task[Any]:
        """Runs a task until something is so, and stops."""
        task = self.loop.create_task(coroutine)
        self.tasks.append(task)
        self.run(until)
        return task

    def run(self, until: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not until():
                await asyncio.sleep(0)

        self.loop.run_until_complete(asyncio.wait_for(wait(), PATIENCE))

    def let_go(self) -> None:
        if not self.loop.is_closed():
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.run(lambda: all(task.done() for task in self.tasks))
            self.loop.close()


@pytest.fixture
def stopping() -> Iterator[Stopping]:
    made = Stopping()
    yield made
    made.let_go()


@pytest.fixture
def quiet_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    """Without asyncio's word about tasks that are destroyed while they are pending, which is what is wanted here."""
    caplog.set_level(logging.CRITICAL, "asyncio")


def asked(cache: Cache, source: Source, **options: Any) -> Any:
    @cache.memoize(model="m", version="1", operation="ask", **options)
    async def ask(question: str) -> int:
        return await source.answer()

    return ask


class TestNewcomers:
    def test_a_leader_on_a_loop_that_was_stopped_holds_up_nobody(self, cache: Cache, stopping: Stopping) -> None:
        source = Source(1)
        ask = asked(cache, source)
        stopping.start(ask("q"), lambda: source.hold is not None)
        assert together(lambda: asyncio.run(ask("q"))) == [2]
        assert asyncio.run(ask("q")) == 2
        assert len(cache.flights) == 0

    def test_a_leader_on_a_loop_that_was_closed_holds_up_nobody(
        self, cache: Cache, stopping: Stopping, quiet_asyncio: None
    ) -> None:
        source = Source(1)
        ask = asked(cache, source)
        stopping.start(ask("q"), lambda: source.hold is not None)
        stopping.loop.close()
        assert asyncio.run(ask("q")) == 2
        stopping.tasks.clear()
        source.hold = None
        gc.collect()
        assert is_quiet(cache)

    def test_a_blocking_caller_does_not_wait_for_a_loop_that_was_stopped(
        self, cache: Cache, stopping: Stopping
    ) -> None:
        source = Source(1)
        key = cache.key("q", model="m", version="1")
        stopping.start(cache.aget_or_compute(key, source.answer), lambda: source.hold is not None)
        assert cache.get_or_compute(key, lambda: -1) == -1

    def test_a_leader_whose_loop_runs_again_goes_on_and_harms_nobody(self, cache: Cache, stopping: Stopping) -> None:
        source = Source(1)
        ask = asked(cache, source)
        leader = stopping.start(ask("q"), lambda: source.hold is not None)
        assert asyncio.run(ask("q")) == 2
        assert source.hold is not None
        source.hold.set_result(None)
        stopping.run(leader.done)
        assert leader.result() == 1
        assert is_quiet(cache)
        assert cache.stats().stores == 2

    def test_its_own_loop_waits_for_a_leader_that_goes_on_with_it(self, cache: Cache, stopping: Stopping) -> None:
        source = Source(1)
        ask = asked(cache, source)
        leader = stopping.start(ask("q"), lambda: source.hold is not None)
        follower = stopping.start(ask("q"), lambda: True)
        stopping.loop.call_soon(lambda: source.hold and source.hold.set_result(None))
        stopping.run(follower.done)
        assert (leader.result(), follower.result(), source.runs) == (1, 1, 1)

    def test_items_on_a_loop_that_was_stopped_hold_up_no_batch(self, cache: Cache, stopping: Stopping) -> None:
        calls: list[list[str]] = []

        @cache.memoize_batch(model="m", version="1", operation="embed", over="items")
        async def embed(items: list[str]) -> list[str]:
            calls.append(items)
            if len(calls) == 1:
                await asyncio.get_running_loop().create_future()
            return [item.upper() for item in items]

        stopping.start(embed(["a", "b"]), lambda: bool(calls))
        assert asyncio.run(embed(["b", "c", "a"])) == ["B", "C", "A"]
        assert calls == [["a", "b"], ["b", "c", "a"]]


class TestWaiters:
    """They wait already when the leader's loop is stopped."""

    def stopped_while(self, cache: Cache, waits: Waits, *callers: Callable[[Any], Any]) -> tuple[Source, list[Any]]:
        """What those get who wait for a leader of a loop that is stopped meanwhile, of 'ask' or of its key."""
        source, stop = Source(1), threading.Event()
        ask = asked(cache, source)
        stopping = Stopping()
        leading = threading.Event()

        def lead() -> None:
            def until() -> bool:
                if source.hold is not None:
                    leading.set()
                return stop.is_set()

            stopping.start(ask("q"), until)

        leader = Started(lead)
        assert leading.wait(PATIENCE)
        waiting = Started(*[lambda caller=caller: caller(ask) for caller in callers])
        waits.wait_for(len(callers))
        stop.set()
        leader.join()
        results = waiting.results()
        stopping.let_go()
        assert is_quiet(cache)
        return source, results

    def test_a_task_of_another_loop_takes_over(self, cache: Cache, waits: Waits) -> None:
        source, results = self.stopped_while(cache, waits, lambda ask: asyncio.run(ask("q")))
        assert (source.runs, results) == (2, [2])

    def test_a_thread_takes_over(self, cache: Cache, waits: Waits) -> None:
        _, results = self.stopped_while(cache, waits, lambda ask: cache.get_or_compute(ask.key("q"), lambda: -1))
        assert results == [-1]

    def test_one_of_many_takes_over(self, cache: Cache, waits: Waits) -> None:
        def gathered(ask: Any) -> Any:
            async def main() -> list[int]:
                return await asyncio.gather(ask("q"), ask("q"))

            return asyncio.run(main())

        # The second of each loop is counted too.
        source, results = self.stopped_while(cache, waits, gathered, gathered, lambda ask: asyncio.run(ask("q")))
        assert (source.runs, results) == (2, [[2, 2], [2, 2], 2])

    def test_nobody_takes_over_from_a_loop_that_runs(self, cache: Cache, waits: Waits) -> None:
        source, release, looks = Source(1), threading.Event(), threading.Semaphore(0)
        ask = asked(cache, source)
        look = flights.Landing._look

        def counted(landing: flights.Landing) -> None:
            look(landing)
            looks.release()

        async def main() -> Any:
            task = asyncio.create_task(ask("q"))
            await asyncio.to_thread(release.wait, PATIENCE)
            assert source.hold is not None
            source.hold.set_result(None)
            return await task

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(flights.Landing, "_look", counted)
            leader = Started(lambda: asyncio.run(main()))
            while source.hold is None:
                threading.Event().wait(0.001)
            others = Started(lambda: asyncio.run(ask("q")), lambda: cache.get_or_compute(ask.key("q"), lambda: -1))
            waits.wait_for(2)
            for _ in range(20):
                assert looks.acquire(timeout=PATIENCE)
            release.set()
            assert (leader.results(), others.results(), source.runs) == ([1], [1, 1], 1)

    def test_a_leader_that_is_collected_leaves_the_lead(self, cache: Cache, waits: Waits) -> None:
        source = Source(1)
        ask = asked(cache, source)

        async def main() -> int:
            dropped = ask("q")
            contextvars.copy_context().run(dropped.send, None)  # started, and never awaited to its end
            following = asyncio.create_task(ask("q"))
            await asyncio.to_thread(waits.wait_for, 1)
            source.hold = None
            del dropped
            gc.collect()
            result: int = await following
            return result

        assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == 2
        assert is_quiet(cache)


class TestRefreshes:
    def test_a_refresh_on_a_loop_that_was_stopped_is_made_elsewhere(
        self, cache: Cache, clock: ManualClock, stopping: Stopping
    ) -> None:
        source = Source(2)
        ask = asked(cache, source, ttl="1m", stale_while_revalidate="1h")
        asyncio.run(ask("q"))
        clock.advance(61)
        stale = stopping.start(ask("q"), lambda: source.hold is not None)
        assert stale.result() == 1

        async def main() -> None:
            assert await ask("q") == 1
            while await ask("q") != 3:
                await asyncio.sleep(0)

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        assert source.runs == 3
        assert not background._tasks

    def test_a_refresh_on_a_loop_that_was_stopped_holds_up_nobody(
        self, cache: Cache, clock: ManualClock, stopping: Stopping
    ) -> None:
        source = Source(2)
        ask = asked(cache, source, ttl="1m", stale_while_revalidate="1m")
        asyncio.run(ask("q"))
        clock.advance(61)
        stopping.start(ask("q"), lambda: source.hold is not None)
        clock.advance(600)  # beyond the window: nothing stale is left to serve
        assert asyncio.run(ask("q")) == 3

    def test_a_batchs_refresh_on_a_loop_that_was_stopped_is_made_elsewhere(
        self, cache: Cache, clock: ManualClock, stopping: Stopping
    ) -> None:
        calls = 0

        @cache.memoize_batch(
            model="m", version="1", operation="embed", over="items", ttl="1m", stale_while_revalidate="1h"
        )
        async def embed(items: list[str]) -> list[int]:
            nonlocal calls
            calls += 1
            mine = calls
            if mine == 2:
                await asyncio.get_running_loop().create_future()
            return [mine] * len(items)

        asyncio.run(embed(["a", "b"]))
        clock.advance(61)
        stopping.start(embed(["a", "b"]), lambda: calls == 2)

        async def main() -> None:
            while await embed(["a", "b"]) != [3, 3]:
                await asyncio.sleep(0)

        asyncio.run(asyncio.wait_for(main(), PATIENCE))

    def test_the_tasks_of_a_loop_that_was_stopped_are_not_kept(
        self, cache: Cache, clock: ManualClock, quiet_asyncio: None
    ) -> None:
        source = Source(3)
        ask = asked(cache, source, ttl="1m", stale_while_revalidate="1h")
        asyncio.run(ask("a"))
        asyncio.run(ask("b"))
        clock.advance(61)
        stopping = Stopping()
        stopping.start(ask("a"), lambda: source.hold is not None)
        stopping.loop.close()
        del stopping
        source.hold = None
        assert len(cache.flights) == 1
        asyncio.run(ask("b"))  # asks for a refresh itself
        gc.collect()
        assert is_quiet(cache)
        assert not background._tasks


class TestOtherLoops:
    """Without asyncio nobody can tell whether a coroutine is carried on."""

    def by_hand(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        context = contextvars.copy_context()  # as any loop does
        try:
            while True:
                context.run(coroutine.send, None)
        except StopIteration as end:
            return end.value

    def test_a_caller_outside_asyncio_computes_itself_and_finds_what_is_there(self, cache: Cache) -> None:
        runs = 0

        @cache.memoize(model="m", version="1", operation="ask")
        async def ask(question: str) -> int:
            nonlocal runs
            runs += 1
            await asyncio.sleep(0)
            return runs

        suspended = ask("q")
        contextvars.copy_context().run(suspended.send, None)
        assert len(cache.flights) == 0
        assert self.by_hand(ask("q")) == 2
        assert self.by_hand(ask("q")) == asyncio.run(ask("q")) == 2
        suspended.close()
        assert is_quiet(cache)

    def test_recursion_outside_asyncio_is_an_immediate_error(self, cache: Cache) -> None:
        @cache.memoize(model="m", version="1", operation="ask")
        async def ask(question: str) -> int:
            return int(await ask(question))

        with pytest.raises(RecursiveComputation):
            self.by_hand(ask("q"))

    def test_a_stale_answer_is_served_outside_asyncio_and_not_refreshed(self, cache: Cache, clock: ManualClock) -> None:
        source = Source()
        ask = asked(cache, source, ttl="1m", stale_while_revalidate="1h")
        assert self.by_hand(ask("q")) == 1
        clock.advance(61)
        assert self.by_hand(ask("q")) == 1
        assert source.runs == 1

    def test_a_batch_outside_asyncio_computes_itself(self, cache: Cache) -> None:
        @cache.memoize_batch(model="m", version="1", operation="embed", over="items")
        async def embed(items: list[str]) -> list[str]:
            return [item.upper() for item in items]

        assert self.by_hand(embed(["a", "b"])) == ["A", "B"]
        assert self.by_hand(embed(["b", "c"])) == ["B", "C"]
        assert cache.stats().misses == 3
