"""One computation per key, whatever the number of threads, event loops and tasks; and every wait ends."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache, RecursiveComputation
from infercache.flights import CURRENT
from together import PATIENCE, Gate, Started, Waits, together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@pytest.fixture
def cache() -> Cache:
    return Cache("16MB")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


def is_quiet(cache: Cache) -> bool:
    return len(cache.flights) == 0 and CURRENT.get() is None


class Model:
    """A model that counts its runs and can be held."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.runs: Counter[Any] = Counter()

    def run(self, question: Any) -> str:
        self.runs[question] += 1
        self.gate.pass_through()
        return f"answer to {question}"


def held(cache: Cache, **options: Any) -> tuple[Model, Callable[[Any], str]]:
    model = Model()

    @cache.memoize(model="m", version="1", operation="held", **options)
    def ask(question: Any) -> str:
        return model.run(question)

    return model, ask


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

        thrown_away = ask("q")
        thrown_away.send(None)
        assert len(cache.flights) == 1
        thrown_away.close()
        assert is_quiet(cache)
        assert asyncio.run(ask("q")) == "answer"

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


class TestPurges:
    def test_a_result_that_arrives_after_a_purge_is_not_served_to_later_callers(self, cache: Cache) -> None:
        source = ["old"]
        gate = Gate()

        @cache.memoize(model="m", version="1", operation="ask", tags=["t:{question}"])
        def ask(question: str) -> str:
            read = source[0]
            if read == "old":
                gate.pass_through()
            return read

        leader = Started(lambda: ask("q"))
        gate.wait_for(1)
        source[0] = "new"
        cache.invalidate(tags=["t:q"])
        # Who comes now does not even wait for the doomed flight.
        assert ask("q") == "new"
        gate.open()
        assert leader.results() == ["old"], "its question came before the purge"
        assert ask("q") == "new"
        assert is_quiet(cache)

    def test_who_came_before_the_model_began_may_have_its_result_whatever_was_purged(
        self, cache: Cache, waits: Waits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The flight is joined while the leader is between joining and running.
        before, gate = Gate(), Gate()
        runs = Counter[str]()

        def tags(result: str, question: str) -> list[str]:
            return ["t"]

        @cache.memoize(model="m", version="1", operation="ask", tags=tags)
        def ask(question: str) -> str:
            runs[question] += 1
            gate.pass_through()
            return "answer"

        original = type(ask)._request

        def request(function: Any, *args: Any) -> Any:
            made = original(function, *args)
            made.tags_before = lambda: before.pass_through() or []
            return made

        monkeypatch.setattr(type(ask), "_request", request)
        leader = Started(lambda: ask("q"))
        before.wait_for(1)
        follower = Started(lambda: ask("q"))
        waits.wait_for(1)
        before.open()
        gate.wait_for(1)
        cache.invalidate(tags=["t"])
        gate.open()
        assert leader.results() + follower.results() == ["answer"] * 2
        assert runs == {"q": 1}

    def test_joiners_re_check_tags_from_the_result_against_their_arrival(self, cache: Cache, waits: Waits) -> None:
        runs, gate = Counter[str](), Gate()

        @cache.memoize(model="m", version="1", operation="ask", tags=lambda result, question: [f"found:{result}"])
        def ask(question: str) -> str:
            runs[question] += 1
            if runs[question] == 1:
                gate.pass_through()
                return "old"
            return "new"

        leader = Started(lambda: ask("q"))
        gate.wait_for(1)
        cache.invalidate(tags=["found:old"])  # nobody can know yet that it concerns the flight
        follower = Started(lambda: ask("q"))
        waits.wait_for(1)
        gate.open()
        assert leader.results() == ["old"]
        assert follower.results() == ["new"]
        assert ask("q") == "new"
        assert runs == {"q": 2}

    def test_a_purge_of_something_else_dooms_no_flight(self, cache: Cache, waits: Waits) -> None:
        model, ask = held(cache, tags=["t"])
        leader = Started(lambda: ask("q"))
        model.gate.wait_for(1)
        cache.invalidate(tags=["other"])
        follower = Started(lambda: ask("q"))
        waits.wait_for(1)
        model.gate.open()
        assert leader.results() == follower.results() == ["answer to q"]
        assert model.runs == {"q": 1}


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


class TestContext:
    def test_a_model_runs_in_its_callers_context(self, cache: Cache) -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

        @cache.memoize(model="m", version="1", ignore=["question"], operation="context")
        def ask(question: str) -> str:
            return variable.get()

        variable.set("mine")
        assert ask("q") == "mine"

    def test_an_answer_computed_from_cached_answers_carries_the_smallest_stamp(self, cache: Cache) -> None:
        # `outer` is computed after the purge, but from what `inner` had said before it.
        gate = Gate()

        @cache.memoize(model="m", version="1", operation="inner")
        def inner(question: str) -> str:
            return "old"

        @cache.memoize(model="m", version="1", operation="outer", tags=["t"])
        def outer(question: str) -> str:
            answer = inner(question)
            gate.pass_through()
            return answer

        inner("q")
        started = Started(lambda: outer("q"))
        gate.wait_for(1)
        cache.invalidate(tags=["t"])
        gate.open()
        started.results()
        assert outer.peek("q") is None

    @pytest.mark.parametrize("read", ["call", "get", "get_many", "lookup", "batch", "get_or_compute"])
    def test_every_way_to_read_tells_the_computation_its_stamp(self, cache: Cache, read: str) -> None:
        @cache.memoize(model="m", version="1", operation="inner")
        def inner(question: str) -> str:
            return "old"

        @cache.memoize_batch(model="m", version="1", operation="batch", over="questions")
        def batch(questions: list[str]) -> list[str]:
            return ["old"] * len(questions)

        key = inner.key("q")
        reads: dict[str, Callable[[], object]] = {
            "call": lambda: inner("q"),
            "get": lambda: cache.get(key),
            "get_many": lambda: cache.get_many([key]),
            "lookup": lambda: cache.lookup(key).value,
            "batch": lambda: batch(["q"]),
            "get_or_compute": lambda: cache.get_or_compute(key, lambda: "new"),
        }
        inner("q"), batch(["q"])
        seen: list[Any] = []

        @cache.memoize(model="m", version="1", operation="outer", tags=["t"])
        def outer(question: str) -> str:
            seen.append(reads[read]())
            # A stamp read now would be above the purge; the one of what was read is not.
            return "made of old"

        stamp = cache.lookup(key).stamp
        outer("q")
        assert seen in (["old"], [["old"]])
        assert cache.lookup(outer.key("q")).stamp == stamp

    def test_no_computation_runs_when_all_is_done(self, cache: Cache) -> None:
        async def main() -> Awaitable[Any]:
            @cache.memoize(model="m", version="1", operation="ask")
            async def ask(question: str) -> object:
                return CURRENT.get()

            return await ask("q")

        with pytest.warns(UserWarning, match="cannot be stored"):
            assert asyncio.run(main()) is not None
        assert CURRENT.get() is None


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
