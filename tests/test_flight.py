"""One computation per key, whatever the number of threads, event loops and tasks; and every wait ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import weakref
from collections import Counter
from typing import Any

import pytest

from infercache import Cache
from together import PATIENCE, Gate, Model, Started, Waits, held, is_quiet, together


@pytest.fixture
def cache() -> Cache:
    return Cache("16MB")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


class TestOneComputation:
    def test_one_computation_per_key_whatever_the_number_of_threads(self, cache: Cache, waits: Waits) -> None:
        model, ask = held(cache)
        started = Started(*[lambda: ask("q")] * 8)
        model.gate.wait_for(1)
        waits.wait_for(7)
        model.gate.open()
        assert started.results() == ["answer to q"] * 8
        assert model.runs == {"q": 1}
        stats = cache.stats()
        assert (stats.misses, stats.coalesced, stats.stores, stats.hits_l1) == (8, 7, 1, 0)
        assert is_quiet(cache)

    def test_one_computation_per_key_whatever_the_number_of_tasks(self, cache: Cache) -> None:
        runs = Counter[int]()

        @cache.memoize(model="m", version="1", operation="ask")
        async def ask(question: int) -> int:
            runs[question] += 1
            await asyncio.sleep(0)
            return question * 2

        async def main() -> list[int]:
            return await asyncio.gather(*[ask(n % 3) for n in range(30)])

        assert asyncio.run(main()) == [n % 3 * 2 for n in range(30)]
        assert runs == {0: 1, 1: 1, 2: 1}
        assert cache.stats().coalesced == 27
        assert is_quiet(cache)

    def test_one_computation_per_key_across_threads_and_two_event_loops(self, cache: Cache, waits: Waits) -> None:
        key = cache.key("q", model="m", version="1")
        model = Model()

        async def compute_async() -> str:
            return await asyncio.to_thread(model.run, "q")

        async def main() -> list[str]:
            return await asyncio.gather(*[cache.aget_or_compute(key, compute_async) for _ in range(3)])

        threads = [lambda: cache.get_or_compute(key, lambda: model.run("q"))] * 3
        started = Started(lambda: asyncio.run(main()), lambda: asyncio.run(main()), *threads)
        model.gate.wait_for(1)
        waits.wait_for(8)
        model.gate.open()
        first, second, *rest = started.results()
        assert [*first, *second, *rest] == ["answer to q"] * 9
        assert model.runs == {"q": 1}
        assert is_quiet(cache)

    def test_different_keys_run_at_the_same_time(self, cache: Cache) -> None:
        model, ask = held(cache)
        started = Started(*[lambda n=n: ask(n) for n in range(5)])
        model.gate.wait_for(5)  # all five are within the model
        model.gate.open()
        assert started.results() == [f"answer to {n}" for n in range(5)]

    def test_who_joins_after_the_value_was_stored_finds_it(self, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        # A look-up misses; before it joins, another has computed, stored and landed.
        runs = Counter[str]()

        @cache.memoize(model="m", version="1", operation="ask")
        def ask(question: str) -> str:
            runs[question] += 1
            return question.upper()

        original = type(ask)._miss
        inside = False

        def miss(function: Any, args: Any, kwargs: Any, key: Any) -> Any:
            nonlocal inside
            if not inside:
                inside = True
                together(lambda: ask("q"))
            return original(function, args, kwargs, key)

        monkeypatch.setattr(type(ask), "_miss", miss)
        assert ask("q") == "Q"
        assert runs == {"q": 1}


class TestErrors:
    def test_a_leader_that_raises_wakes_everyone_with_its_error_and_stores_nothing(
        self, cache: Cache, waits: Waits
    ) -> None:
        gate, runs = Gate(), Counter[str]()

        @cache.memoize(model="m", version="1", operation="ask")
        def ask(question: str) -> str:
            runs[question] += 1
            gate.pass_through()
            raise LookupError("no such thing")

        started = Started(*[lambda: ask("q")] * 4)
        gate.wait_for(1)
        waits.wait_for(3)
        gate.open()
        started.join()
        assert [type(error) for error in started.errors] == [LookupError] * 4
        assert len({id(error) for error in started.errors}) == 1, "the leader's own error"
        assert runs == {"q": 1}
        assert cache.stats().stores == 0
        with pytest.raises(LookupError):
            ask("q")
        assert runs == {"q": 2}
        assert is_quiet(cache)

    def test_an_error_shows_the_models_own_traceback(self, cache: Cache) -> None:
        @cache.memoize(model="m", version="1", operation="ask")
        def ask(question: str) -> str:
            raise LookupError(question)

        with pytest.raises(LookupError) as caught:
            ask("q")
        assert caught.traceback[-1].name == "ask"

    @pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
    def test_an_error_keeps_nothing_alive_once_it_is_handled(self, cache: Cache, asynchronous: bool) -> None:
        class Large:
            pass

        seen: list[weakref.ref[Large]] = []

        def fail() -> None:
            large = Large()
            seen.append(weakref.ref(large))
            raise LookupError("of a frame that holds something large")

        @cache.memoize(model="m", version="1", operation="fails")
        def ask(question: str) -> None:
            fail()

        @cache.memoize(model="m", version="1", operation="task")
        async def task(question: str) -> None:
            fail()

        gc.disable()
        try:
            with pytest.raises(LookupError) as caught:
                # By hand: a task of asyncio keeps its error until the collector comes, whoever raised it.
                task("q").send(None) if asynchronous else ask("q")
            del caught
            assert seen[0]() is None
        finally:
            gc.enable()

    @pytest.mark.parametrize("error", [StopIteration("s"), StopAsyncIteration("s"), RuntimeError("generator raised")])
    def test_an_error_that_means_something_to_generators_arrives_as_it_is(self, cache: Cache, error: Exception) -> None:
        @cache.memoize(model="m", version="1", operation="ask")
        def ask(question: str) -> str:
            raise error

        with pytest.raises(type(error)) as caught:
            ask("q")
        assert caught.value is error

    def test_a_leader_that_is_interrupted_leaves_the_lead_to_a_waiter(self, cache: Cache, waits: Waits) -> None:
        gate, runs = Gate(), Counter[str]()

        @cache.memoize(model="m", version="1", operation="ask")
        def ask(question: str) -> str:
            runs[question] += 1
            if runs[question] == 1:
                gate.pass_through()
                raise KeyboardInterrupt
            return "answer"

        leader = Started(lambda: ask("q"))
        gate.wait_for(1)
        others = Started(*[lambda: ask("q")] * 3)
        waits.wait_for(3)
        gate.open()
        leader.join()
        assert isinstance(leader.errors[0], KeyboardInterrupt)
        assert others.results() == ["answer"] * 3
        assert runs == {"q": 2}
        assert is_quiet(cache)


class TestCancelling:
    def test_a_cancelled_leader_harms_no_waiter(self, cache: Cache, waits: Waits) -> None:
        runs = Counter[str]()
        hold = asyncio.Event()

        @cache.memoize(model="m", version="1", operation="ask")
        async def ask(question: str) -> str:
            runs[question] += 1
            if runs[question] == 1:
                await hold.wait()
            return "answer"

        async def main() -> None:
            leader = asyncio.create_task(ask("q"))
            await asyncio.sleep(0)
            followers = [asyncio.create_task(ask("q")) for _ in range(3)]
            await asyncio.to_thread(waits.wait_for, 3)
            leader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leader
            assert await asyncio.gather(*followers) == ["answer"] * 3

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        assert runs == {"q": 2}
        assert is_quiet(cache)

    def test_a_cancelled_waiter_harms_no_other(self, cache: Cache, waits: Waits) -> None:
        runs = Counter[str]()
        hold = asyncio.Event()

        @cache.memoize(model="m", version="1", operation="ask")
        async def ask(question: str) -> str:
            runs[question] += 1
            await hold.wait()
            return "answer"

        async def main() -> None:
            nonlocal hold
            hold = asyncio.Event()
            leader = asyncio.create_task(ask("q"))
            await asyncio.sleep(0)
            followers = [asyncio.create_task(ask("q")) for _ in range(3)]
            await asyncio.to_thread(waits.wait_for, 3)
            followers[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await followers[1]
            hold.set()
            assert await asyncio.gather(leader, followers[0], followers[2]) == ["answer"] * 3

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        assert runs == {"q": 1}
        assert is_quiet(cache)

    def test_a_waiter_in_the_main_thread_can_be_interrupted(self, cache: Cache, waits: Waits) -> None:
        model, ask = held(cache)
        leader = Started(lambda: ask("q"))
        model.gate.wait_for(1)
        main, interrupted = threading.get_ident(), threading.Event()

        def on_signal(number: int, frame: Any) -> None:
            if not interrupted.is_set():
                interrupted.set()
                raise KeyboardInterrupt

        def interrupt() -> None:
            waits.wait_for(1)
            while not interrupted.is_set():  # a signal just before the thread falls asleep does not wake it
                signal.pthread_kill(main, signal.SIGINT)
                interrupted.wait(0.01)

        before = signal.signal(signal.SIGINT, on_signal)
        try:
            interrupter = Started(interrupt)
            with pytest.raises(KeyboardInterrupt):
                ask("q")
            interrupter.results()
        finally:
            signal.signal(signal.SIGINT, before)
        model.gate.open()
        assert leader.results() == ["answer to q"]
        assert is_quiet(cache)

    def test_a_coroutine_that_is_thrown_away_leaves_the_lead(self, cache: Cache) -> None:
        @cache.memoize(model="m", version="1", operation="ask")
        async def ask(question: str) -> str:
            await asyncio.sleep(0)
            return "answer"

        async def main() -> str:
            thrown_away = ask("q")
            thrown_away.send(None)
            assert len(cache.flights) == 1
            thrown_away.close()
            assert is_quiet(cache)
            return await ask("q")

        assert asyncio.run(main()) == "answer"

    def test_a_loop_that_is_closed_while_its_tasks_wait_harms_no_leader(self, cache: Cache, waits: Waits) -> None:
        model, ask = held(cache)
        leader = Started(lambda: ask("q"))
        model.gate.wait_for(1)
        key = ask.key("q")  # type: ignore[attr-defined]

        async def never() -> str:
            raise AssertionError("another computes")

        loop = asyncio.new_event_loop()
        task = loop.create_task(cache.aget_or_compute(key, never))
        loop.run_until_complete(asyncio.sleep(0))
        waits.wait_for(1)
        loop.close()
        model.gate.open()
        assert leader.results() == ["answer to q"]
        task.get_coro().close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]


class TestUnshared:
    @pytest.mark.parametrize("options", [{}, {"store_if": lambda result: False}])
    def test_waiters_for_what_is_not_stored_compute_at_the_same_time(
        self, cache: Cache, waits: Waits, options: dict[str, Any]
    ) -> None:
        gate, runs = Gate(), []
        everyone_else = threading.Barrier(4, timeout=PATIENCE)

        @cache.memoize(model="m", version="1", operation="ask", **options)
        def ask(question: str) -> Any:
            runs.append(question)
            if len(runs) == 1:
                gate.pass_through()
            else:
                everyone_else.wait()  # breaks unless all four are within the model at once
            return "answer" if options else object()

        leader = Started(lambda: ask("q"))
        gate.wait_for(1)
        others = Started(*[lambda: ask("q")] * 4)
        waits.wait_for(4)
        gate.open()
        if options:
            leader.results(), others.results()
        else:
            with pytest.warns(UserWarning, match="cannot be stored"):
                leader.results(), others.results()
        assert len(runs) == 5
        assert is_quiet(cache)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_has_no_flights_and_works(cache: Cache) -> None:
    model, ask = held(cache)
    leader = Started(lambda: ask("q"))
    model.gate.wait_for(1)
    child = os.fork()
    if child == 0:
        # Nobody here will ever land the parent's flight.
        try:
            model.gate.open()
            os._exit(0 if ask("q") == "answer to q" and cache.stats().stores == 1 else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    model.gate.open()
    assert leader.results() == ["answer to q"]
    assert os.waitstatus_to_exitcode(status) == 0
    assert model.runs == {"q": 1}
