"""Purges: by tag, key, model, version, all; soft and hard; at every step of a fill."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache, InvalidArgument, Key
from together import Gate, Started

if TYPE_CHECKING:
    from collections.abc import Callable


def entries(cache: Cache) -> dict[str, Key]:
    keys = {
        f"{model}-{version}-{n}": cache.key(n, model=model, version=version)
        for model in ("ranker", "embedder")
        for version in ("1", "2")
        for n in range(2)
    }
    for name, key in keys.items():
        cache.set(key, name, tags=[f"n:{name[-1]}", "catalogue"])
    return keys


def left(cache: Cache, keys: dict[str, Key]) -> set[str]:
    return {name for name, key in keys.items() if cache.get(key) is not None}


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "gone"),
        [
            ({"tags": ["n:1"]}, lambda name: name.endswith("-1")),
            ({"tags": ["n:1", "nobody's"]}, lambda name: name.endswith("-1")),
            ({"tags": ["catalogue"]}, lambda name: True),
            ({"tags": []}, lambda name: False),
            ({"model": "ranker"}, lambda name: name.startswith("ranker")),
            ({"model": "ranker", "version": "2"}, lambda name: name.startswith("ranker-2")),
            ({"model": "nobody's"}, lambda name: False),
            ({"all": True}, lambda name: True),
            ({"model": "ranker", "version": "2", "tags": ["n:0"]}, lambda n: n.startswith("ranker-2") or n[-1] == "0"),
        ],
        ids=repr,
    )
    def test_a_purge_hides_what_it_names_and_nothing_else(
        self, cache: Cache, target: dict[str, Any], gone: Callable[[str], bool]
    ) -> None:
        keys = entries(cache)
        cache.invalidate(**target)
        assert left(cache, keys) == {name for name in keys if not gone(name)}

    def test_a_purge_by_key(self, cache: Cache) -> None:
        keys = entries(cache)
        cache.invalidate(key=keys["ranker-1-0"])
        assert left(cache, keys) == set(keys) - {"ranker-1-0"}

    def test_what_is_stored_after_a_purge_is_found(self, cache: Cache) -> None:
        keys = entries(cache)
        cache.invalidate(all=True)
        cache.set(keys["ranker-1-0"], "new", tags=["catalogue"])
        assert left(cache, keys) == {"ranker-1-0"}

    def test_tags_of_any_kind_never_meet(self, cache: Cache) -> None:
        key = cache.key(1, model="m", version="1")
        cache.set(key, 1, tags=["t"])
        for tag in ("all", "model", "m", "default", str(key), ""):
            cache.invalidate(tags=[tag])
        assert cache.get(key) == 1

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [({}, "nothing"), ({"version": "1"}, "model"), ({"tags": "text"}, "list"), ({"tags": [1]}, "text")],
        ids=repr,
    )
    def test_a_purge_that_names_nothing_is_an_error(self, cache: Cache, wrong: dict[str, Any], says: str) -> None:
        with pytest.raises(InvalidArgument, match=says):
            cache.invalidate(**wrong)

    def test_tokens_grow(self, cache: Cache) -> None:
        first, second, last = (cache.invalidate(**what) for what in ({"tags": ["a"]}, {"tags": ["a"]}, {"all": True}))
        assert first.epoch == second.epoch == last.epoch
        assert first.lsn < second.lsn < last.lsn

    def test_purged_look_ups_are_counted(self, cache: Cache) -> None:
        keys = entries(cache)
        cache.invalidate(model="ranker")
        left(cache, keys)
        stats = cache.stats()
        assert (stats.invalidated, stats.misses, stats.hits_l1) == (4, 4, 4)


class TestSoft:
    def test_a_soft_purge_marks_stale_instead_of_hiding(self, cache: Cache) -> None:
        keys = entries(cache)
        cache.invalidate(tags=["n:1"], soft=True)
        stale, fresh = cache.lookup(keys["ranker-1-1"]), cache.lookup(keys["ranker-1-0"])
        assert (stale.source, stale.value, stale.ttl) == ("stale", "ranker-1-1", 0.0)
        assert fresh.source == "l1"
        assert cache.get(keys["ranker-1-1"]) is None
        cache.set(keys["ranker-1-1"], "new", tags=["n:1"], since=stale.stamp)
        assert cache.lookup(keys["ranker-1-1"]).source == "l1"

    def test_a_hard_purge_after_a_soft_one_hides(self, cache: Cache) -> None:
        keys = entries(cache)
        cache.invalidate(tags=["n:1"], soft=True)
        cache.invalidate(tags=["n:1"])
        assert cache.lookup(keys["ranker-1-1"]).source == "miss"


PURGES: list[dict[str, Any]] = [
    {"tags": ["t"]},
    {"model": "m"},
    {"model": "m", "version": "1"},
    {"all": True},
    {"tags": ["of the result"]},
]


class TestEveryStepOfAFill:
    """Later reads miss, whenever the purge came."""

    @pytest.mark.parametrize("purge", PURGES, ids=repr)
    @pytest.mark.parametrize("step", ["model", "tags of the result", "store_if"])
    @pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
    def test_a_purge_during_a_foreground_fill_wins(
        self, cache: Cache, purge: dict[str, Any], step: str, asynchronous: bool
    ) -> None:
        done = []

        def at(name: str) -> None:
            if name == step and not done:
                done.append(cache.invalidate(**purge))

        def tags_of_result(result: str, **_: object) -> list[str]:
            at("tags of the result")
            return ["t", "of the result"]

        def keep(result: str) -> bool:
            at("store_if")
            return True

        options: dict[str, Any] = {
            "model": "m",
            "version": "1",
            "operation": "fill",
            "tags": tags_of_result,
            "store_if": keep,
        }
        if asynchronous:

            @cache.memoize(**options)
            async def task(question: str) -> str:
                at("model")
                return "old"

            asyncio.run(task("q"))
            key = task.key("q")
        else:

            @cache.memoize(**options)
            def fill(question: str) -> str:
                at("model")
                return "old"

            fill("q")
            key = fill.key("q")
        assert done, "the purge came"
        assert cache.get(key) is None
        assert key not in cache

    def test_a_purge_between_look_up_and_explicit_set_wins(self, cache: Cache) -> None:
        key = cache.key("q", model="m", version="1")
        for purge in [*PURGES, {"key": key}]:
            found = cache.lookup(key)
            assert found.source == "miss"
            cache.invalidate(**purge)
            assert cache.set(key, "old", tags=["t", "of the result"], since=found.stamp) is False
            assert cache.get(key) is None
        cache.delete(key)
        assert cache.set(key, "of before the delete", since=found.stamp) is False
        assert cache.set(key, "new", since=cache.lookup(key).stamp) is True
        with pytest.raises(TypeError, match="since"):
            cache.set(key, "x", since=7)  # type: ignore[arg-type]

    def test_a_set_without_since_takes_its_stamp_at_the_call(self, cache: Cache) -> None:
        key = cache.key("q", model="m", version="1")
        cache.invalidate(tags=["t"])
        assert cache.set(key, "may be old", tags=["t"]) is True

    @pytest.mark.parametrize("purge", PURGES[:4], ids=repr)
    def test_a_purge_during_get_or_compute_wins(self, cache: Cache, purge: dict[str, Any]) -> None:
        key = cache.key("q", model="m", version="1")

        def compute() -> str:
            cache.invalidate(**purge)
            return "old"

        assert cache.get_or_compute(key, compute, tags=["t"]) == "old"
        assert cache.get(key) is None

    def test_a_purge_of_the_key_during_its_computation_wins(self, cache: Cache) -> None:
        gate = Gate()

        @cache.memoize(model="m", version="1", operation="key")
        def ask(question: str) -> str:
            gate.pass_through()
            return "old"

        started = Started(lambda: ask("q"))
        gate.wait_for(1)
        ask.invalidate("q")
        gate.open()
        assert started.results() == ["old"]
        assert ask.peek("q") is None

    def test_clear_and_delete_win_over_what_is_being_computed(self, cache: Cache) -> None:
        for purge in (lambda key: cache.clear(), lambda key: cache.delete(key)):  # noqa: PLW0108
            key = cache.key("q", model="m", version="1")
            cache.get_or_compute(key, lambda purge=purge, key=key: purge(key))
            assert key not in cache
