"""The warning of a result that cannot be stored points at whoever can do something about it."""

from __future__ import annotations

import asyncio
import inspect
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache, UncacheableResult, background
from together import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infercache.testing import ManualClock


@pytest.fixture
def cache(clock: ManualClock) -> Cache:
    return Cache("1MB", clock=clock)


@pytest.fixture
def places() -> Iterator[Callable[[], tuple[str, int]]]:
    """File and line of the only warning there was."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def only() -> tuple[str, int]:
            (warning,) = caught
            assert warning.category is UncacheableResult
            return warning.filename, warning.lineno

        yield only


def this_line() -> tuple[str, int]:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return __file__, frame.f_back.f_lineno


def first_line(function: Any) -> tuple[str, int]:
    return __file__, function.__wrapped__.__code__.co_firstlineno


def memoized(cache: Cache, batch: bool, **options: Any) -> Any:
    """A function of one list whose results cannot be stored."""
    options = {"model": "m", "version": "1", "operation": "ask", **options}

    def ask(items: list[int]) -> Any:
        return [object() for _ in items]

    return cache.memoize_batch(over="items", **options)(ask) if batch else cache.memoize(**options)(ask)


def memoized_async(cache: Cache, batch: bool) -> Any:
    async def ask(items: list[int]) -> Any:
        await asyncio.sleep(0)
        return [object() for _ in items]

    options: dict[str, Any] = {"model": "m", "version": "1", "operation": "ask"}
    return cache.memoize_batch(over="items", **options)(ask) if batch else cache.memoize(**options)(ask)


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
class TestPlaces:
    def test_the_callers_line(self, cache: Cache, batch: bool, places: Callable[[], tuple[str, int]]) -> None:
        ask = memoized(cache, batch)
        _, here = ask([1]), this_line()
        assert places() == here

    def test_the_callers_line_of_a_refresh(
        self, cache: Cache, batch: bool, places: Callable[[], tuple[str, int]]
    ) -> None:
        ask = memoized(cache, batch)
        _, here = ask.refresh([1]), this_line()
        assert places() == here

    def test_the_callers_line_of_a_method(
        self, cache: Cache, batch: bool, places: Callable[[], tuple[str, int]]
    ) -> None:
        class Service:
            def ask(self, items: list[int]) -> Any:
                return [object() for _ in items]

        options: dict[str, Any] = {"model": "m", "version": "1", "operation": "ask", "ignore": ["self"]}
        decorator: Any = cache.memoize_batch(over="items", **options) if batch else cache.memoize(**options)
        Service.ask = decorator(Service.ask)  # type: ignore[method-assign]
        _, here = Service().ask([1]), this_line()
        assert places() == here

    def test_the_awaiting_line(self, cache: Cache, batch: bool, places: Callable[[], tuple[str, int]]) -> None:
        ask = memoized_async(cache, batch)

        async def main() -> tuple[str, int]:
            _, here = await ask([1]), this_line()
            return here

        assert asyncio.run(main()) == places()

    def test_the_functions_definition_where_a_task_awaits_it(
        self, cache: Cache, batch: bool, places: Callable[[], tuple[str, int]]
    ) -> None:
        ask = memoized_async(cache, batch)

        async def main() -> None:
            await asyncio.gather(ask([1]), ask([2]))

        asyncio.run(main())
        assert places() == first_line(ask)

    def test_the_functions_definition_where_a_pool_calls_it(
        self, cache: Cache, batch: bool, places: Callable[[], tuple[str, int]]
    ) -> None:
        ask = memoized(cache, batch)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(ask, [1]).result(PATIENCE)
        assert places() == first_line(ask)

    def test_the_functions_definition_where_it_is_refreshed_in_the_background(
        self, cache: Cache, clock: ManualClock, batch: bool, places: Callable[[], tuple[str, int]]
    ) -> None:
        answers: list[Any] = [1]
        refreshed = threading.Event()

        def ask(items: list[int]) -> Any:
            if answers == [1]:
                return [answers.pop()]
            refreshed.set()
            return [object()]

        options: dict[str, Any] = {"model": "m", "version": "1", "operation": "ask"}
        options.update(ttl="1m", stale_while_revalidate="1h")
        decorator: Any = cache.memoize_batch(over="items", **options) if batch else cache.memoize(**options)
        decorated = decorator(ask)
        decorated([1])
        clock.advance(61)
        decorated([1])
        assert refreshed.wait(PATIENCE)
        while background._threads._names:
            threading.Event().wait(0.001)
        assert places() == first_line(decorated)


def test_set_and_get_or_compute_warn_at_the_callers_line(cache: Cache) -> None:
    key = cache.key("q", model="m", version="1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache.set(key, object())
        first = this_line()
        _, second = cache.get_or_compute(key, object), this_line()
    assert [(warning.filename, warning.lineno) for warning in caught] == [(first[0], first[1] - 1), second]


def test_a_warning_that_is_an_error_does_not_take_the_answers_place(cache: Cache) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(memoized(cache, False)([1])) == 1
        with ThreadPoolExecutor(1) as pool:
            assert len(pool.submit(memoized(cache, True, operation="pool"), [1]).result(PATIENCE)) == 1
