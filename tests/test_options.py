"""Options of caches, decorators and operations: checked before anything else happens, with errors that name them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import infercache
from infercache import Cache, InvalidArgument
from infercache.functions import BatchOptions, Options
from infercache.testing import ManualClock

LONE = "\ud800"


def f(x: int) -> int:
    return x


def g(xs: list[int]) -> list[int]:
    return xs


@pytest.fixture
def cache() -> Cache:
    return Cache(capacity="1MB")


def places(cache: Cache) -> dict[str, Callable[[Any], object]]:
    """Every place that takes a time to live."""
    key = cache.key(1, model="m", version="1")
    cache.set(key, 1)
    return {
        "Cache": lambda ttl: Cache(capacity="1MB", ttl=ttl),
        "set": lambda ttl: cache.set(key, 1, ttl=ttl),
        "set_many": lambda ttl: cache.set_many({}, ttl=ttl),
        "get_or_compute of what is known": lambda ttl: cache.get_or_compute(key, lambda: 1, ttl=ttl),
        "memoize": lambda ttl: cache.memoize(model="m", version="1", ttl=ttl)(f),
        "memoize_batch": lambda ttl: cache.memoize_batch(model="m", version="1", over="xs", ttl=ttl)(g),
    }


WRONG_LIVES = [float("nan"), float("inf"), -float("inf"), -1, -0.5, 0, 0.0, "0s", "-1s", timedelta(0), timedelta(-1)]
WRONG_LIVES += [10**400, "9" * 5000 + "s", "soon", True, b"1s", []]


@pytest.mark.parametrize("wrong", WRONG_LIVES, ids=lambda wrong: repr(wrong)[:20])
def test_a_wrong_time_to_live_is_refused_wherever_one_is_taken(cache: Cache, wrong: Any) -> None:
    for take in places(cache).values():
        with pytest.raises(InvalidArgument, match=r"^ttl="):
            take(wrong)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1, "-1s", 10**400, "9" * 5000 + "s", timedelta(-1), []])
def test_a_wrong_duration_is_refused_by_the_name_of_its_option(cache: Cache, wrong: Any) -> None:
    for name in ("stale_while_revalidate", "stale_if_error"):
        options: dict[str, Any] = {name: wrong}
        with pytest.raises(InvalidArgument, match=f"^{name}="):
            cache.memoize(model="m", version="1", **options)(f)
    for name in ("max_staleness", "timeout", "lease"):
        options = {name: wrong}
        with pytest.raises(InvalidArgument, match=f"^{name}="):
            Cache(capacity="1MB", **options)


def test_async_forms_check_first_too(cache: Cache) -> None:
    key = cache.key(1, model="m", version="1")
    cache.set(key, 1)

    async def compute() -> int:
        return 1

    with pytest.raises(InvalidArgument, match=r"^ttl="):
        asyncio.run(cache.aget_or_compute(key, compute, ttl=-1))
    with pytest.raises(InvalidArgument, match=r"^tags="):
        asyncio.run(cache.aget_or_compute(key, compute, tags="one"))


def test_text_without_utf8_is_refused_by_the_name_of_its_option(cache: Cache) -> None:
    key = cache.key(1, model="m", version="1")
    wrong: dict[str, Callable[[], object]] = {
        "namespace=": lambda: Cache(capacity="1MB", namespace=LONE),
        "l2_prefix=": lambda: Cache(capacity="1MB", l2_prefix=LONE),
        "model=": lambda: cache.memoize(model=LONE, version="1")(f),
        "version=": lambda: cache.memoize_batch(model="m", version=LONE, over="xs")(g),
        "operation=": lambda: cache.memoize(model="m", version="1", operation=LONE)(f),
        "tags: ": lambda: cache.memoize(model="m", version="1", tags=[LONE])(f),
        "model ": lambda: cache.key(1, model=LONE, version="1"),
        "version ": lambda: infercache.key(1, model="m", version=LONE),
        "operation ": lambda: cache.key(1, model="m", version="1", operation=LONE),
        "namespace ": lambda: infercache.key(1, model="m", version="1", namespace=LONE),
        "model='": lambda: cache.invalidate(model=LONE),
        "version='": lambda: cache.invalidate(model="m", version=LONE),
        "tags: '": lambda: cache.invalidate(tags=[LONE]),
        "tags: '\\\\ud800": lambda: cache.set(key, 1, tags=[LONE]),
        "tags: '\\\\ud800'": lambda: cache.get_or_compute(key, lambda: 1, tags=[LONE]),
        "the callable given as model": lambda: cache.memoize(model=lambda x: LONE, version="1")(f)(1),
        "the callable given as version": lambda: cache.memoize(model="m", version=lambda x: LONE)(f)(1),
    }
    for beginning, act in wrong.items():
        with pytest.raises(InvalidArgument, match=f"^{beginning}.*(lone surrogate|lower-case)"):
            act()


@pytest.mark.parametrize("wrong", [-1, 2**64, "one", 1.0])
def test_a_seed_is_64_bits(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^seed="):
        Cache(capacity="1MB", seed=wrong)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_clock_moves_forwards(wrong: float) -> None:
    with pytest.raises(InvalidArgument, match=r"^seconds="):
        ManualClock(wrong)
    with pytest.raises(InvalidArgument, match=r"^seconds="):
        ManualClock().advance(wrong)


def test_what_is_purged_is_text(cache: Cache) -> None:
    number: Any = 5
    with pytest.raises(InvalidArgument, match=r"^model=5: give text"):
        cache.invalidate(model=number)
    with pytest.raises(InvalidArgument, match=r"^version=5: give text"):
        cache.invalidate(model="m", version=number)


@pytest.mark.parametrize("wrong", [5, None, ["x"], LONE])
def test_over_names_a_parameter(cache: Cache, wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^over: .*has no parameter"):
        cache.memoize_batch(model="m", version="1", over=wrong)(g)


@pytest.mark.parametrize("wrong", [5, None])
def test_ignore_is_a_list_of_names(cache: Cache, wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^ignore="):
        cache.memoize(model="m", version="1", ignore=wrong)(f)


@pytest.mark.parametrize(("method", "options"), [("memoize", Options), ("memoize_batch", BatchOptions)])
def test_a_decorator_shows_and_takes_its_options_and_no_others(cache: Cache, method: str, options: type) -> None:
    shown = inspect.signature(getattr(Cache, method))
    own = inspect.signature(options).parameters
    assert list(shown.parameters) == ["self", *own]
    assert shown.parameters["copy"].default is False
    assert {parameter.kind for parameter in own.values()} == {inspect.Parameter.KEYWORD_ONLY}
    for name in own:
        assert f" {name}: " in getattr(Cache, method).__doc__
    with pytest.raises(TypeError, match=rf"Cache\.{method}: .*unexpected keyword argument 'tll'.*its options: .*ttl"):
        getattr(cache, method)(model="m", version="1", tll=5, **({"over": "xs"} if "over" in own else {}))


def test_over_has_no_default(cache: Cache) -> None:
    batch: Any = cache.memoize_batch
    with pytest.raises(TypeError, match=r"Cache\.memoize_batch: missing a required .*'over'"):
        batch(model="m", version="1")


def test_one_decorator_decorates_many_functions_with_the_same_options(cache: Cache) -> None:
    decorator = cache.memoize(model="m", version="1", ignore=(name for name in ["y"]), tags=(tag for tag in ["t"]))

    def first(x: int, y: int) -> int:
        return x

    def second(x: int, y: int) -> int:
        return -x

    for function in (decorator(first), decorator(second)):
        assert function(1, 1) == function(1, 2)
    assert cache.stats().hits_l1 == 2
    cache.invalidate(tags=["t"])
    assert cache.stats().entries == 2
    assert decorator(second).peek(1, 1) is None


def test_long_ways_to_what_cannot_be_stored_are_cut() -> None:
    value: Any = object()
    for _ in range(100):
        value = {"name": [value]}
    with pytest.raises(TypeError) as caught:
        infercache._core._encode_value(value)
    assert "…" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_class_is_told_by_its_name() -> None:
    with pytest.raises(infercache.UnsupportedInput, match=r"input\[0\]: dict: it is a class"):
        infercache.key([dict], model="m", version="1")
    with pytest.raises(TypeError, match=r"result\[0\]: a class, dict, cannot be stored; return its name"):
        infercache._core._encode_value([dict])
