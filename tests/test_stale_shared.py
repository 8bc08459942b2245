"""Stale answers that only the shared tier has are served to a process that never had them, and computed anew."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

import sharing
from infercache import Cache, background
from proxy import Delay, Proxy
from servers import until
from together import Gate

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network

LIFE = 0.2


def make(url: str, **options: Any) -> Cache:
    """One whose follower may be late: who cannot prove what memory has joins the refresh, and waits for it."""
    return sharing.make(url, **{"max_staleness": "1h", **options})


class Source:
    """Functions of one cache, of each kind, whose answers say who gave them; a refresh is held until it may go on."""

    def __init__(self, cache: Cache, name: str, **options: Any) -> None:
        self.cache = cache
        self.name = name
        self.runs = 0
        self.gate: Gate | None = None
        scope = {"model": "m", "version": "1", "ttl": LIFE, "tags": ["t"], **options}

        def model() -> str:
            self.runs += 1
            if self.gate is not None:
                self.gate.pass_through()
            return self.name

        @cache.memoize(operation="one", **scope)
        def one(question: str) -> str:
            return model()

        @cache.memoize_batch(over="questions", operation="batch", **scope)
        def batch(questions: list[str]) -> list[str]:
            answer = model()
            return [answer for _ in questions]

        @cache.memoize(operation="one", **scope)
        async def aone(question: str) -> str:
            return model()

        @cache.memoize_batch(over="questions", operation="batch", **scope)
        async def abatch(questions: list[str]) -> list[str]:
            answer = model()
            return [answer for _ in questions]

        self.one, self.batch, self.aone, self.abatch = one, batch, aone, abatch

    def asked(self, way: str) -> str:
        """The answer, and for tasks the refresh, if one was begun."""
        if way == "one":
            return str(self.one("q"))
        if way == "batch":
            return str(self.batch(["q"])[0])

        async def ask() -> str:
            answer = await self.aone("q") if way == "aone" else (await self.abatch(["q"]))[0]
            while tasks := background._tasks.get(asyncio.get_running_loop()):
                await asyncio.gather(*tasks.values())
            return str(answer)

        return asyncio.run(ask())


WAYS = ("one", "batch", "aone", "abatch")


@pytest.mark.parametrize("soft", [False, True], ids=["past its life", "softly purged"])
@pytest.mark.parametrize("way", WAYS)
def test_a_stale_value_that_only_the_tier_has_is_served_while_it_is_computed_anew(
    pair: tuple[Cache, Cache], way: str, soft: bool
) -> None:
    options: dict[str, Any] = {"stale_while_revalidate": "1h", **({"ttl": "1h"} if soft else {})}
    one, other = Source(pair[0], "one", **options), Source(pair[1], "other", **options)
    assert one.asked(way) == "one"
    token = None
    if soft:
        token = one.cache.invalidate(tags=["t"], soft=True)
        other.cache.get(other.one.key("q"), min_token=token)  # so that it knows
    else:
        time.sleep(1.5 * LIFE)
    before = other.cache.stats()
    assert other.asked(way) == "one", "nobody waited for the model"
    stats = other.cache.stats()
    assert (stats.stale_hits - before.stale_hits, stats.misses - before.misses) == (1, 0)
    until(lambda: other.runs == 1, "it has been computed anew")
    if soft:
        until(lambda: other.asked(way) == "other", "and what was computed is served")


def test_the_caller_does_not_wait_for_the_refresh(pair: tuple[Cache, Cache]) -> None:
    one, other = (Source(cache, name, stale_while_revalidate="1h") for cache, name in zip(pair, "ab", strict=True))
    assert one.asked("one") == "a"
    time.sleep(1.5 * LIFE)
    other.gate = Gate()
    assert [other.asked("one") for _ in range(3)] == ["a"] * 3
    other.gate.wait_for(1)
    assert other.asked("one") == "a"
    other.gate.open()
    until(lambda: other.runs == 1 and not background._threads._names, "one refresh for all of them")


def test_only_the_stale_items_of_a_batch_are_computed_anew(pair: tuple[Cache, Cache]) -> None:
    one, other = (Source(cache, name, stale_while_revalidate="1h") for cache, name in zip(pair, "ab", strict=True))
    assert one.batch(["stale 1", "stale 2"]) == ["a", "a"]
    time.sleep(1.5 * LIFE)
    assert one.batch(["fresh"]) == ["a"]
    assert other.batch(["stale 1", "missing", "fresh", "stale 2", "stale 1"]) == ["a", "b", "a", "a", "a"]
    until(lambda: other.runs == 2, "the missing one, and the stale ones in one call")


def test_another_process_may_have_made_it_anew_already(pair: tuple[Cache, Cache]) -> None:
    one, other = (Source(cache, name, stale_while_revalidate="1h") for cache, name in zip(pair, "ab", strict=True))
    assert one.asked("one") == "a"
    time.sleep(1.5 * LIFE)
    assert other.asked("one") == "a"
    until(lambda: other.runs == 1 and not background._threads._names, "it was refreshed here")
    one.cache._empty()
    assert one.asked("one") == "b"
    assert one.runs == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "options", [{}, {"stale_while_revalidate": "1ms", "stale_if_error": "1h"}], ids=["none", "over"]
)
def test_without_a_window_the_model_runs(pair: tuple[Cache, Cache], way: str, options: dict[str, Any]) -> None:
    one, other = Source(pair[0], "one", **options), Source(pair[1], "other", **options)
    assert one.asked(way) == "one"
    time.sleep(1.5 * LIFE)
    assert other.asked(way) == "other"
    assert other.cache.stats().stale_hits == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_hard_purge_leaves_nothing_to_be_served_stale(pair: tuple[Cache, Cache], way: str) -> None:
    one, other = (Source(cache, name, stale_while_revalidate="1h") for cache, name in zip(pair, "ab", strict=True))
    assert one.asked(way) == "a"
    time.sleep(1.5 * LIFE)
    token = one.cache.invalidate(tags=["t"])
    other.cache.get(other.one.key("q"), min_token=token)
    assert other.asked(way) == "b"


def test_get_does_not_serve_it_and_lookup_says_that_it_is_stale(pair: tuple[Cache, Cache]) -> None:
    one, other = (Source(cache, name, stale_while_revalidate="1h") for cache, name in zip(pair, "ab", strict=True))
    assert one.asked("one") == "a"
    time.sleep(1.5 * LIFE)
    key = other.one.key("q")
    assert other.cache.get(key) is None
    assert other.cache.get_many([key]) == [None]
    other.cache._empty()
    found = other.cache.lookup(key)
    assert (found.value, found.source, found.ttl) == ("a", "stale", 0.0)
    assert other.cache.stats().stale_hits == 1


@pytest.mark.parametrize("way", WAYS)
def test_when_the_tier_is_slow_what_memory_has_is_served_stale(server: Server, way: str) -> None:
    with (
        Proxy(server.address) as proxy,
        make(proxy.url, max_staleness="50ms", timeout="200ms", on_partition={"tagged": "1h"}) as cache,
    ):
        source = Source(cache, "a", stale_while_revalidate="1h")
        assert source.asked(way) == "a"
        time.sleep(1.5 * LIFE)  # its life is over, and the proof that nobody has purged it is old
        proxy.set(replies=Delay(5))
        source.name = "b"
        assert source.asked(way) == "a"
        assert cache.stats().stale_hits >= 1
