"""What may be decorated, told by what runs in the end; and what a decorated method shows of the one below it."""

from __future__ import annotations

import asyncio
import collections
import functools
import inspect
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from infercache import Cache

cache = Cache("1MB")


class Yields:
    def __call__(self, x: int) -> Iterator[int]:
        yield x


class YieldsAsync:
    async def __call__(self, x: int) -> AsyncIterator[int]:
        yield x


class Answers:
    async def __call__(self, x: int) -> int:
        return x + 1

    async def method(self, x: int) -> int:
        return x + 1


async def answer(x: int) -> int:
    return x + 1


def marked(x: int) -> Any:
    """Gives a coroutine, and says so where CPython can be told."""
    return answer(x)


class Service:
    @cache.memoize(model="m", version="1", ignore=["self"])
    def rank(self, user: str) -> str:
        """Ranks for a user."""
        return user

    @cache.memoize(model="m", version="1", ignore=["cls"])
    @classmethod
    def name(cls) -> str:
        """Names it."""
        return cls.__name__


@pytest.mark.parametrize(
    "function",
    [Yields(), YieldsAsync(), Yields().__call__, functools.partial(Yields()), functools.partial(YieldsAsync(), 1)],
    ids=["object", "async object", "call", "partial", "async partial"],
)
@pytest.mark.parametrize("batch", [False, True])
def test_whatever_gives_a_generator_is_refused_when_decorating(function: Any, batch: bool) -> None:
    options: dict[str, Any] = {"model": "m", "version": "1", "operation": "yields"}
    with pytest.raises(TypeError, match="generator function"):
        (cache.memoize_batch(over="x", **options) if batch else cache.memoize(**options))(function)


@pytest.mark.parametrize(
    "function",
    [
        Answers(),
        Answers().method,
        Answers().__call__,
        functools.partial(answer),
        functools.partial(functools.partial(answer)),
        functools.partial(Answers()),
        functools.partial(Answers().method),
        cache.memoize(model="m", version="1")(answer),
    ],
    ids=["object", "method", "call", "partial", "partial of partial", "partial of object", "of method", "memoized"],
)
def test_whatever_gives_a_coroutine_is_awaited(function: Any) -> None:
    decorated = Cache("1MB").memoize(model="m", version="1", operation="awaited")(function)
    assert inspect.iscoroutinefunction(decorated)
    assert asyncio.run(decorated(1)) == asyncio.run(decorated(1)) == 2
    assert asyncio.run(decorated.peek(1)) == 2


@pytest.mark.skipif(not hasattr(inspect, "markcoroutinefunction"), reason="CPython 3.12 and later")
@pytest.mark.parametrize("wrap", [lambda function: function, functools.partial], ids=["itself", "partial"])
def test_a_function_that_is_marked_as_a_coroutine_function_is_one(wrap: Any) -> None:
    function = wrap(inspect.markcoroutinefunction(marked))  # type: ignore[attr-defined,unused-ignore]
    decorated = Cache("1MB").memoize(model="m", version="1", operation="marked")(function)
    assert inspect.iscoroutinefunction(decorated)
    assert asyncio.run(decorated(1)) == 2


def test_a_parameter_may_be_called_self() -> None:
    @cache.memoize(model="m", version="1", operation="free")
    def free(self: int, x: int) -> int:
        return self + x

    assert free(self=1, x=2) == 3
    assert free.peek(self=1, x=2) == free.refresh(self=1, x=2) == 3
    assert free.key(self=1, x=2) == free.key(1, 2)
    free.invalidate(self=1, x=2)
    assert free.peek(self=1, x=2) is None

    @cache.memoize_batch(model="m", version="1", operation="batch", over="self")
    def batch(self: list[int]) -> list[int]:
        return self

    assert batch(self=[1]) == batch.peek(self=[1]) == batch.refresh(self=[1]) == [1]
    assert batch.key(self=[1]) == batch.key([1])
    batch.invalidate(self=[1])
    assert batch.peek(self=[1]) is None

    @cache.memoize(model="m", version="1", operation="async")
    async def task(self: int) -> int:
        return self

    @cache.memoize_batch(model="m", version="1", operation="async batch", over="self")
    async def tasks(self: list[int]) -> list[int]:
        return self

    async def main() -> None:
        assert await task(self=1) == await task.peek(self=1) == await task.refresh(self=1) == 1
        assert await tasks(self=[1]) == await tasks.peek(self=[1]) == await tasks.refresh(self=[1]) == [1]
        await task.invalidate(self=1)
        await tasks.invalidate(self=[1])
        assert await task.peek(self=1) is None
        assert await tasks.peek(self=[1]) is None

    asyncio.run(main())


def test_a_bound_method_shows_the_documentation_of_its_function() -> None:
    bound: Any = Service().rank
    assert bound.__doc__ == inspect.getdoc(bound) == "Ranks for a user."
    assert (bound.__name__, bound.__qualname__) == ("rank", "Service.rank")
    assert str(inspect.signature(bound)) == "(user: 'str') -> 'str'"
    assert Service.name.__doc__ == "Names it."


def test_bound_methods_are_pickled_like_methods() -> None:
    assert pickle.loads(pickle.dumps(Service.name))() == "Service"
    assert pickle.loads(pickle.dumps(Service().rank))("u") == "u"


@pytest.mark.parametrize("known", [[], [1], [1, 2, 3]], ids=repr)
@pytest.mark.parametrize(
    "make", [collections.deque, lambda items: range(items[0], items[-1] + 1), iter], ids=["deque", "range", "iter"]
)
def test_a_batch_gets_any_other_container_as_a_list_whatever_of_it_is_known(known: list[int], make: Any) -> None:
    seen: list[Any] = []
    mine = Cache("1MB")

    @mine.memoize_batch(model="m", version="1", operation="containers", over="items")
    def doubled(items: Any) -> list[int]:
        seen.append(items)
        return [2 * item for item in items]

    if known:
        doubled(known)
    del seen[:]
    assert doubled(make([1, 2, 3])) == [2, 4, 6]
    assert doubled.refresh(make([1, 2, 3])) == [2, 4, 6]
    missing = [item for item in (1, 2, 3) if item not in known]
    assert seen == [items for items in (missing, [1, 2, 3]) if items]
