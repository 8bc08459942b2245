"""The decorator on functions and `async def`: what a call does, what it hands out, and the surface beside the call."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import inspect
import pickle
import subprocess
import sys
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import infercache
from infercache import Cache, UncacheableResult, UnsupportedInput

cache = Cache("16MB")
calls: list[Any] = []


@pytest.fixture(autouse=True)
def _anew() -> None:
    cache.clear()
    calls.clear()


@cache.memoize(model="ranker", version="1", tags=["user:{user}"])
def rank(user: str, query: str = "shoes", *, limit: int = 10) -> list[int]:
    """Ranks."""
    calls.append((user, query, limit))
    return [len(user), len(query), limit]


@cache.memoize(model="chat", version="1")
async def chat(prompt: str) -> str:
    """Chats."""
    calls.append(prompt)
    await asyncio.sleep(0)
    return prompt.upper()


class TestCalls:
    def test_a_repeated_call_does_not_run_the_function(self) -> None:
        assert rank("u1") == rank("u1") == [2, 5, 10]
        assert calls == [("u1", "shoes", 10)]

    def test_ways_to_pass_the_same_arguments_are_one_call(self) -> None:
        rank("u1", "shoes", limit=10)
        rank(query="shoes", user="u1")
        rank("u1")
        assert len(calls) == 1

    def test_different_arguments_are_different_calls(self) -> None:
        assert rank("u1", "a") != rank("u1", "bb") != rank("u1", "bb", limit=3)
        assert len(calls) == 3

    def test_nothing_mutable_is_shared_between_callers(self) -> None:
        first = rank("u1")
        first.append(99)
        assert rank("u1") == [2, 5, 10]

    def test_a_miss_gives_back_what_a_hit_would(self) -> None:
        @cache.memoize(model="m", version="1", operation="embed")
        def embed(text: str) -> np.ndarray[Any, Any]:
            return np.ones(4, dtype=np.float32)

        miss, hit = embed("a"), embed("a")
        assert miss.dtype == hit.dtype == np.float32
        assert not miss.flags.writeable
        assert not hit.flags.writeable
        assert np.array_equal(miss, hit)

    def test_copy_gives_writable_arrays(self) -> None:
        @cache.memoize(model="m", version="1", operation="embed", copy=True)
        def embed(text: str) -> np.ndarray[Any, Any]:
            return np.ones(4, dtype=np.float32)

        for array in (embed("a"), embed("a")):
            array[0] = 7
        assert embed("a")[0] == 1

    def test_wrong_arguments_are_pythons_own_error(self) -> None:
        for args, kwargs in [((), {}), (("a", "b", "c"), {}), (("a",), {"colour": 1}), (("a",), {"user": "b"})]:
            with pytest.raises(TypeError) as plain:
                rank.__wrapped__(*args, **kwargs)
            with pytest.raises(TypeError) as memoized:
                rank(*args, **kwargs)  # type: ignore[call-arg, arg-type]
            assert str(memoized.value).split("() ")[1] == str(plain.value).split("() ")[1]
        assert not calls

    def test_an_argument_that_cannot_enter_a_key_is_an_error_that_leads_to_it(self) -> None:
        with pytest.raises(UnsupportedInput, match="user"):
            rank(object())  # type: ignore[arg-type]

    def test_an_async_function_is_cached(self) -> None:
        async def main() -> list[str]:
            return [await chat("a"), await chat("a"), await asyncio.create_task(chat("a"))]

        assert asyncio.run(main()) == ["A"] * 3
        assert calls == ["a"]

    def test_an_error_is_not_stored(self) -> None:
        @cache.memoize(model="m", version="1", operation="fails")
        def fails(x: int) -> int:
            calls.append(x)
            raise LookupError

        for _ in range(2):
            with pytest.raises(LookupError):
                fails(1)
        assert calls == [1, 1]


class TestSurface:
    def test_it_looks_like_the_function(self) -> None:
        assert rank.__name__ == "rank"
        assert rank.__doc__ == "Ranks."
        assert rank.__module__ == __name__
        assert rank.__qualname__ == "rank"
        assert str(inspect.signature(rank)) == str(inspect.signature(rank.__wrapped__))
        assert rank.__wrapped__("u1", "a", limit=1) == [2, 1, 1]
        assert "rank" in repr(rank)

    def test_an_async_function_stays_one(self) -> None:
        assert inspect.iscoroutinefunction(chat)
        assert asyncio.iscoroutinefunction(chat)
        assert not inspect.iscoroutinefunction(rank)

    def test_key_is_the_arguments_key(self) -> None:
        expected = infercache.key(
            {"user": "u1", "query": "shoes", "limit": 10},
            model="ranker",
            version="1",
            operation=f"{__name__}.rank",
        )
        assert rank.key("u1") == expected
        assert not calls

    def test_peek_runs_and_counts_nothing(self) -> None:
        before = cache.stats()
        assert rank.peek("u1") is None
        rank("u1")
        counted = cache.stats()
        assert rank.peek("u1") == [2, 5, 10]
        assert calls == [("u1", "shoes", 10)]
        assert cache.stats() == counted
        assert counted.misses == before.misses + 1

    def test_refresh_computes_anew_and_stores(self) -> None:
        answers = iter("abc")

        @cache.memoize(model="m", version="1", operation="next")
        def following(x: int) -> str:
            return next(answers)

        assert following(1) == "a"
        assert following.refresh(1) == "b"
        assert following(1) == "b"

    def test_invalidate_purges_this_answer_only(self) -> None:
        rank("u1"), rank("u2")
        rank.invalidate("u1")
        assert rank.peek("u1") is None
        assert rank.peek("u2") == [2, 5, 10]

    def test_the_async_surface_is_awaitable(self) -> None:
        async def main() -> None:
            assert await chat.peek("a") is None
            assert await chat("a") == await chat.refresh("a") == "A"
            assert calls == ["a", "a"]
            assert await chat.peek("a") == "A"
            await chat.invalidate("a")
            assert await chat.peek("a") is None
            assert chat.key("a") == chat.key(prompt="a")

        asyncio.run(main())

    def test_it_is_pickled_and_copied_by_name(self) -> None:
        assert pickle.loads(pickle.dumps(rank)) is rank
        assert copy.copy(rank) is rank
        assert copy.deepcopy(rank) is rank

    def test_partial_and_other_wrappers_work(self) -> None:
        assert functools.partial(rank, "u1")(limit=3) == [2, 5, 3]

        @functools.wraps(rank)
        def outer(*args: Any, **kwargs: Any) -> Any:
            return rank(*args, **kwargs)

        assert str(inspect.signature(outer)) == str(inspect.signature(rank.__wrapped__))


class TestOtherCallables:
    def test_a_partial_and_an_object_with_an_operation_are_functions(self) -> None:
        class Scale:
            def __init__(self, factor: int) -> None:
                self.factor = factor

            def __call__(self, x: int) -> int:
                calls.append(x)
                return self.factor * x

        class AsyncScale(Scale):
            async def __call__(self, x: int) -> int:  # type: ignore[override]
                return super().__call__(x)

        def times(factor: int, x: int) -> int:
            calls.append(x)
            return factor * x

        for number, function in enumerate((Scale(3), functools.partial(times, 3), functools.partial(Scale(1), 9))):
            with pytest.raises(TypeError, match="operation"):
                cache.memoize(model="m", version="1")(function)
            scaled = cache.memoize(model="m", version="1", operation=f"scale {number}")(function)
            arguments = () if number == 2 else (3,)
            assert scaled(*arguments) == scaled(*arguments) == 9
        assert len(calls) == 3
        for number, function in enumerate((AsyncScale(3), functools.partial(AsyncScale(3)))):
            scaled = cache.memoize(model="m", version="1", operation=f"async {number}")(function)
            assert inspect.iscoroutinefunction(scaled)
            assert asyncio.run(scaled(3)) == asyncio.run(scaled(3)) == 9
        assert len(calls) == 5

    def test_a_coroutine_function_is_refused_where_nobody_awaits_it(self) -> None:
        async def compute() -> int:
            return 1

        with pytest.raises(TypeError, match="aget_or_compute"):
            cache.get_or_compute(cache.key("q", model="m", version="1"), compute)

    def test_an_ordinary_function_is_refused_where_it_would_be_awaited(self) -> None:
        def compute() -> int:
            return 1

        async def slowly() -> int:
            return 2

        key = cache.key("awaited", model="m", version="1")
        for wrong, name in ((compute, "compute"), (functools.partial(compute), "compute"), (int, "int")):
            with pytest.raises(TypeError, match=f"{name} returned a int, which cannot be awaited.*get_or_compute"):
                asyncio.run(cache.aget_or_compute(key, wrong))  # type: ignore[arg-type]
        assert cache.get(key) is None
        assert asyncio.run(cache.aget_or_compute(key, lambda: slowly())) == 2  # noqa: PLW0108 - no coroutine function

    def test_a_decorated_function_may_be_decorated_again(self) -> None:
        other = Cache("1MB")
        again = other.memoize(model="ranker", version="1", operation="again")(rank)
        assert again("u1") == again("u1") == [2, 5, 10]
        assert len(calls) == 1
        assert other.stats().hits_l1 == 1

    def test_recursion_that_is_too_deep_is_pythons_error_and_the_cache_works_on(self) -> None:
        @cache.memoize(model="m", version="1", operation="down")
        def down(n: int) -> int:
            return 0 if n == 0 else down(n - 1)

        with pytest.raises(RecursionError):
            down(100_000)
        assert down(10) == 0
        assert len(cache.flights) == 0

    def test_a_local_function_is_collected_with_what_it_closes_over(self) -> None:
        def make() -> Any:
            @cache.memoize(model="m", version="1", operation="local")
            def local(n: int) -> int:
                return local(n - 1) if n else 0

            assert local(3) == 0
            return weakref.ref(local)

        gone = make()
        gc.collect()
        assert gone() is None


class TestResults:
    def test_a_result_that_cannot_be_stored_is_returned_counted_and_warned_of_once(self) -> None:
        mine = Cache("1MB")

        @mine.memoize(model="m", version="1", operation="ask")
        def ask(x: int) -> Any:
            return object()

        with pytest.warns(UncacheableResult, match="ask") as warned:  # noqa: PT031
            assert type(ask(1)) is object
            assert ask(1) is not ask(1)
        assert len(warned) == 1
        assert mine.stats().uncacheable == 3
        assert mine.stats().stores == 0

    def test_a_result_larger_than_the_cache_is_returned_and_counted(self) -> None:
        mine = Cache("64KiB")

        @mine.memoize(model="m", version="1", operation="ask")
        def ask(x: int) -> bytes:
            return b"x" * 100_000

        assert len(ask(1)) == 100_000
        assert mine.stats().rejected == 1
        assert mine.stats().entries == 0

    def test_a_class_named_in_the_return_annotation_comes_back(self) -> None:
        assert make("a") == make("a") == Answer("a", 1)
        assert type(make("a")) is Answer
        assert calls == ["a"]
        assert cache.get(make.key("a"), "nothing") == "nothing", "without the annotation it is no answer"


@dataclass
class Answer:
    text: str
    score: int


@cache.memoize(model="m", version="1", operation="make")
def make(text: str) -> Answer:
    calls.append(text)
    return Answer(text, 1)


def test_threads_that_the_process_does_not_wait_for_do_not_break_its_end() -> None:
    # A daemon thread within a model, below native frames, when the interpreter goes down.
    code = """
import threading, time
from infercache import Cache
cache = Cache("1MB")
begun = threading.Event()

@cache.memoize(model="m", version="1", operation="slow")
def slow(x):
    begun.set()
    while True:
        time.sleep(0)  # gives the interpreter up and takes it again, until it is gone

for x in range(4):
    threading.Thread(target=slow, args=(x,), daemon=True).start()
begun.wait(30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
