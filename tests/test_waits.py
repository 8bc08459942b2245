"""Every wait ends: recursion is told at once, and whoever would close a cycle of waits computes itself."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from infercache import Cache, RecursiveComputation
from together import PATIENCE, Started, Waits, is_quiet, together


@pytest.fixture
def cache() -> Cache:
    return Cache("16MB")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


class TestRecursion:
    def test_recursion_on_the_same_key_is_an_immediate_error(self, cache: Cache) -> None:
        @cache.memoize(model="m", version="1", operation="ask")
        def ask(question: str) -> str:
            return ask(question)

        with pytest.raises(RecursiveComputation):
            ask("q")
        assert is_quiet(cache)

    def test_recursion_through_another_function_is_an_immediate_error(self, cache: Cache) -> None:
        other = Cache("1MB")

        @cache.memoize(model="m", version="1", operation="first")
        def first(question: str) -> str:
            return second(question)

        @other.memoize(model="m", version="1", operation="second")
        def second(question: str) -> str:
            return first(question)

        with pytest.raises(RecursiveComputation):
            first("q")
        assert is_quiet(cache)
        assert is_quiet(other)

    def test_recursion_in_tasks_is_an_immediate_error(self, cache: Cache) -> None:
        @cache.memoize(model="m", version="1", operation="ask")
        async def ask(question: str) -> list[str]:
            return await asyncio.gather(ask(question))

        with pytest.raises(RecursiveComputation):
            asyncio.run(ask("q"))
        assert is_quiet(cache)

    def test_recursion_through_a_thread_of_the_pool_is_an_immediate_error(self, cache: Cache) -> None:
        @cache.memoize(model="m", version="1", operation="ask")
        async def ask(question: str) -> str:
            return await asyncio.to_thread(again, question)

        def again(question: str) -> str:
            return asyncio.run(ask(question))

        with pytest.raises(RecursiveComputation):
            asyncio.run(ask("q"))
        assert is_quiet(cache)

    def test_recursion_in_a_batch_is_an_immediate_error(self, cache: Cache) -> None:
        @cache.memoize_batch(model="m", version="1", operation="ask", over="items")
        def ask(items: list[str]) -> list[str]:
            return ask(items[:1])

        with pytest.raises(RecursiveComputation):
            ask(["a", "b"])
        assert is_quiet(cache)

    def test_a_smaller_question_from_within_is_no_recursion(self, cache: Cache) -> None:
        @cache.memoize(model="m", version="1", operation="factorial")
        def factorial(n: int) -> int:
            return n * factorial(n - 1) if n else 1

        assert factorial(20) == 2432902008176640000
        assert cache.stats().stores == 21

    def test_a_computation_that_lost_its_context_computes_itself(self, cache: Cache) -> None:
        depth = 0

        @cache.memoize(model="m", version="1", operation="ask")
        def ask(question: str) -> str:
            nonlocal depth
            depth += 1
            return contextvars.Context().run(ask, question) if depth < 3 else "answer"

        assert together(lambda: ask("q")) == ["answer"]
        assert depth == 3
        assert is_quiet(cache)

    def test_a_computation_that_waits_for_itself_in_a_thread_ends_when_its_own_patience_does(
        self, cache: Cache, waits: Waits
    ) -> None:
        # The thread starts without the context, so nobody can tell that it is part of what it waits for.
        with ThreadPoolExecutor(1) as pool:

            @cache.memoize(model="m", version="1", operation="ask")
            def ask(question: str) -> str:
                again = pool.submit(ask, question)
                waits.wait_for(1)
                return again.result(timeout=0)

            with pytest.raises(TimeoutError):
                ask("q")
        assert is_quiet(cache)


class TestCycles:
    """f(a) needs f(b) needs f(a): whoever would close the cycle computes itself; it needs nothing the second time."""

    def test_a_cycle_of_waits_across_threads(self, cache: Cache) -> None:
        runs, both = Counter[str](), threading.Barrier(2, timeout=PATIENCE)

        @cache.memoize(model="m", version="1", operation="ask")
        def ask(question: str) -> str:
            runs[question] += 1
            if runs[question] > 1:
                return question
            both.wait()
            return question + ask("b" if question == "a" else "a")

        first, second = together(lambda: ask("a"), lambda: ask("b"))
        # One computed the other's question itself, and the other waited for that one.
        assert {first, second} in ({"ab", "bab"}, {"ba", "aba"}, {"ab", "ba"})
        assert sum(runs.values()) == 3
        assert is_quiet(cache)

    def test_a_cycle_of_waits_across_three_threads(self, cache: Cache) -> None:
        runs, all_three = Counter[int](), threading.Barrier(3, timeout=PATIENCE)

        @cache.memoize(model="m", version="1", operation="ask")
        def ask(question: int) -> int:
            runs[question] += 1
            if runs[question] > 1:
                return 0
            all_three.wait()
            return 1 + ask((question + 1) % 3)

        assert sorted(together(*[lambda n=n: ask(n) for n in range(3)])) == [1, 2, 3]
        assert sum(runs.values()) == 4
        assert is_quiet(cache)

    def test_a_cycle_of_waits_across_tasks(self, cache: Cache) -> None:
        runs = Counter[str]()

        @cache.memoize(model="m", version="1", operation="ask")
        async def ask(question: str) -> str:
            runs[question] += 1
            if runs[question] > 1:
                return question
            while len(runs) < 2:
                await asyncio.sleep(0)
            return question + await ask("b" if question == "a" else "a")

        async def main() -> list[str]:
            return await asyncio.wait_for(asyncio.gather(ask("a"), ask("b")), PATIENCE)

        first, second = asyncio.run(main())
        assert (first, second) in (("aba", "ba"), ("ab", "bab"))
        assert sum(runs.values()) == 3
        assert is_quiet(cache)

    def test_a_cycle_of_waits_between_a_task_and_a_thread(self, cache: Cache) -> None:
        keys = {name: cache.key(name, model="m", version="1") for name in "ab"}
        runs, both = Counter[str](), threading.Barrier(2, timeout=PATIENCE)

        def in_thread() -> str:
            runs["a"] += 1
            both.wait()
            return "a" + cache.get_or_compute(keys["b"], lambda: "b!")

        async def in_task() -> str:
            runs["b"] += 1
            await asyncio.to_thread(both.wait)

            async def compute() -> str:
                return "a!"

            return "b" + await cache.aget_or_compute(keys["a"], compute)

        first, second = together(
            lambda: cache.get_or_compute(keys["a"], in_thread),
            lambda: asyncio.run(cache.aget_or_compute(keys["b"], in_task)),
        )
        assert (first, second) in (("ab!", "bab!"), ("aba!", "ba!"))
        assert runs == {"a": 1, "b": 1}
        assert is_quiet(cache)

    def test_a_blocking_wait_on_a_loops_thread_for_a_flight_of_that_loop_computes_itself(self, cache: Cache) -> None:
        key = cache.key("q", model="m", version="1")

        async def main() -> tuple[str, str]:
            hold = asyncio.Event()

            async def slow() -> str:
                await hold.wait()
                return "task"

            task = asyncio.create_task(cache.aget_or_compute(key, slow))
            await asyncio.sleep(0)
            assert len(cache.flights) == 1
            blocking = cache.get_or_compute(key, lambda: "blocking")
            hold.set()
            return blocking, await task

        assert together(lambda: asyncio.run(main())) == [("blocking", "task")]
        assert is_quiet(cache)

    def test_a_blocking_wait_on_a_loops_thread_holds_up_all_flights_of_that_loop(self, cache: Cache) -> None:
        # A task of the loop leads "a". A thread leads "b" and waits for "a". The loop's thread asks for "b", blocking:
        # waiting would hold up "a", which "b" waits for.
        keys = {name: cache.key(name, model="m", version="1") for name in "ab"}
        begun = threading.Event()

        async def main() -> str:
            hold = asyncio.Event()

            async def slow() -> str:
                await hold.wait()
                return "a"

            task = asyncio.create_task(cache.aget_or_compute(keys["a"], slow))
            await asyncio.sleep(0)

            def needs_a() -> str:
                begun.set()
                return "b" + cache.get_or_compute(keys["a"], lambda: "alone")

            thread = Started(lambda: cache.get_or_compute(keys["b"], needs_a))
            assert begun.wait(PATIENCE)
            blocking = cache.get_or_compute(keys["b"], lambda: "blocking")
            hold.set()
            await task
            await asyncio.to_thread(thread.join)
            assert thread.results() in (["ba"], ["balone"])
            return blocking

        assert together(lambda: asyncio.run(main())) == ["blocking"]
        assert is_quiet(cache)
