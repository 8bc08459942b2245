"""The decorator on methods: cached by the instance's content, bound as methods are."""

from __future__ import annotations

import asyncio
import inspect
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from infercache import Cache, UnsupportedInput

cache = Cache("16MB")
calls: list[Any] = []


@pytest.fixture(autouse=True)
def _anew() -> None:
    cache.clear()
    calls.clear()


@dataclass
class Ranker:
    name: str

    @cache.memoize(model="ranker", version="1")
    def rank(self, query: str) -> str:
        calls.append((self.name, query))
        return f"{self.name}: {query}"

    @cache.memoize(model="ranker", version="1")
    async def arank(self, query: str) -> str:
        calls.append((self.name, query))
        return f"{self.name}: {query}"

    @classmethod
    @cache.memoize(model="ranker", version="1", ignore=["cls"])
    def of_class(cls, query: str) -> str:
        calls.append((cls.__name__, query))
        return query

    @cache.memoize(model="ranker", version="1", ignore=["cls"])
    @classmethod
    def of_class_too(cls, query: str) -> str:
        calls.append((cls.__name__, query))
        return query

    @staticmethod
    @cache.memoize(model="ranker", version="1")
    def of_nothing(query: str) -> str:
        calls.append(query)
        return query

    @cache.memoize(model="ranker", version="1")
    @staticmethod
    def of_nothing_too(query: str) -> str:
        calls.append(query)
        return query

    def plain(self) -> str:
        return self.name

    @cache.memoize(model="ranker", version="1")
    def says_super(self) -> str:
        return super().__repr__()[:0] + self.name


def test_a_method_is_cached_by_its_instances_content() -> None:
    assert Ranker("a").rank("q") == Ranker("a").rank("q") == "a: q"
    assert Ranker("b").rank("q") == "b: q"
    assert calls == [("a", "q"), ("b", "q")]


def test_the_surface_of_a_method_is_bound() -> None:
    ranker = Ranker("a")
    assert ranker.rank.peek("q") is None
    assert ranker.rank("q") == ranker.rank.peek("q") == ranker.rank.refresh("q") == "a: q"
    assert ranker.rank.key("q") == Ranker.rank.key(ranker, "q")
    ranker.rank.invalidate("q")
    assert ranker.rank.peek("q") is None
    assert ranker.rank.__self__ is ranker  # type: ignore[attr-defined]
    assert ranker.rank.__wrapped__("q") == "a: q"  # type: ignore[attr-defined]
    assert str(inspect.signature(ranker.rank)) == "(query: 'str') -> 'str'"
    assert ranker.rank == ranker.rank
    assert hash(ranker.rank) == hash(ranker.rank)
    assert ranker.rank != Ranker("a").rank


def test_an_async_method_is_cached() -> None:
    async def main() -> list[Any]:
        ranker = Ranker("a")
        answers = [await ranker.arank("q"), await asyncio.create_task(ranker.arank("q"))]
        return [*answers, await ranker.arank.peek("q")]

    assert asyncio.run(main()) == ["a: q"] * 3
    assert calls == [("a", "q")]


@pytest.mark.parametrize("function", [Ranker("a").arank, Ranker.arank], ids=["bound", "unbound"])
def test_an_async_method_stays_one(function: Any) -> None:
    assert inspect.iscoroutinefunction(function)
    assert asyncio.iscoroutinefunction(function)


@pytest.mark.parametrize("method", ["of_class", "of_class_too", "of_nothing", "of_nothing_too"])
def test_class_and_static_methods_are_cached_in_either_order(method: str) -> None:
    for owner in (Ranker, Ranker("a"), Ranker("b")):
        assert getattr(owner, method)("q") == "q"
    assert len(calls) == 1
    # From CPython 3.13 on, `classmethod` binds the call itself and hands attributes on as they are.
    if sys.version_info < (3, 13) or method != "of_class":
        assert getattr(Ranker, method).key("q") == getattr(Ranker("a"), method).key("q")


def test_a_method_that_calls_super_needs_no_operation() -> None:
    assert Ranker("a").says_super() == "a"


def test_an_instance_without_a_form_must_be_ignored_or_registered() -> None:
    class Plain:
        @cache.memoize(model="m", version="1", operation="one")
        def one(self) -> int:
            return 1

        @cache.memoize(model="m", version="1", operation="two", ignore=["self"])
        def two(self) -> int:
            return 2

    with pytest.raises(UnsupportedInput, match="self"):
        Plain().one()
    assert Plain().two() == 2


def test_the_operation_is_module_and_qualified_name() -> None:
    assert Ranker("a").rank.key("q") == cache.key(
        {"self": {"name": "a"}, "query": "q"}, model="ranker", version="1", operation=f"{__name__}.Ranker.rank"
    )
