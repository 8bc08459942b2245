"""Leases of the items of batches: each is computed by one process, whatever the batches have in common."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import fills
import sharing
from infercache import Cache, RedisTier, background
from infercache.errors import UncacheableResult
from processes import Worker
from servers import until
from sharing import SCOPE

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network


def make(url: str, **options: Any) -> Cache:
    return sharing.make(url, **{"lease": "30s", "max_staleness": "1h", **options})


def leases_on(server: Server) -> int:
    return len(server.admin.keys("*:lease"))  # type: ignore[arg-type]


class Batches:
    """A batch function of one cache, whose calls are written down, and held while they are to be."""

    def __init__(self, cache: Cache, name: str, **options: Any) -> None:
        self.calls: list[list[str]] = []
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

        def run(items: list[str]) -> list[str]:
            self.calls.append(list(items))
            self.begun.set()
            assert self.may_end.wait(30.0)
            return [f"{item} of {name}" for item in items]

        @cache.memoize_batch(over="items", operation="batch", tags=["t"], **SCOPE, **options)
        def batch(items: list[str]) -> list[str]:
            return run(items)

        @cache.memoize_batch(over="items", operation="batch", tags=["t"], **SCOPE, **options)
        async def abatch(items: list[str]) -> list[str]:
            return await asyncio.to_thread(run, items)

        self.batch, self.abatch = batch, abatch


def test_of_overlapping_batches_of_two_processes_each_item_is_computed_once(server: Server) -> None:
    options = {"l2": server.url, "lease": "30s"}
    with Worker(fills.cache_process, **options) as first, Worker(fills.cache_process, **options) as second:
        one = first.begin("batch", "a", "b", "c")
        assert first.wait_for("batch running") == ["a", "b", "c"]
        other = second.begin("batch", "b", "d", "c", "e", "d")
        assert second.wait_for("batch running") == ["d", "e"], "it does not wait before it has done its own"
        second.go("batch running", "of the second")
        until(lambda: leases_on(server) == 3, "and gives the leases of these back before it waits")
        time.sleep(0.2)
        assert not other.answered.is_set()
        assert not second.has_reached("batch running")
        first.go("batch running", "of the first")
        assert one.result() == ["a: of the first", "b: of the first", "c: of the first"]
        assert other.result() == [
            *("b: of the first", "d: of the second", "c: of the first", "e: of the second", "d: of the second")
        ]
        assert not second.has_reached("batch running")
        until(lambda: leases_on(server) == 0, "they are given back")


def test_the_items_of_a_holder_that_is_killed_are_taken_over_in_one_call(server: Server) -> None:
    options = {"l2": server.url, "lease": "1s"}
    with Worker(fills.cache_process, **options) as first, Worker(fills.cache_process, **options) as second:
        first.begin("batch", "a", "b", "c")
        first.wait_for("batch running")
        other = second.begin("batch", "b", "c", "d")
        assert second.pass_by("batch running") == ["d"]
        time.sleep(0.2)
        assert not second.has_reached("batch running")
        first.kill()
        began = time.monotonic()
        assert second.wait_for("batch running") == ["b", "c"]
        assert time.monotonic() - began < 5.0
        second.go("batch running", "taken over")
        assert other.result() == ["b: taken over", "c: taken over", "d: None"]


def test_two_processes_that_need_what_the_other_computes_both_end(server: Server) -> None:
    options = {"l2": server.url, "lease": "30s"}
    with Worker(fills.cache_process, **options) as first, Worker(fills.cache_process, **options) as second:
        calls = [first.begin("batch", "x")]
        first.wait_for("batch running")
        calls.append(second.begin("batch", "y", "x"))
        assert second.wait_for("batch running") == ["y"]
        calls.append(first.begin("batch", "z", "y"))
        assert first.wait_for("batch running") == ["z"]
        for worker in (first, first, second):
            worker.go("batch running", "done")
        assert [call.result() for call in calls] == [["x: done"], ["y: done", "x: done"], ["z: done", "y: done"]]


def test_leases_are_taken_in_one_exchange_for_all_items(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    exchanged: list[list[str]] = []
    exchange = RedisTier.exchange

    def counted(tier: RedisTier, commands: Any, **named: Any) -> Any:
        exchanged.append([command.name for command in commands if "NX" in command.args])
        return exchange(tier, commands, **named)

    with make(server.url) as cache:
        one = Batches(cache, "one", max_batch=8)
        monkeypatch.setattr(RedisTier, "exchange", counted)
        one.batch([str(number % 50) for number in range(60)])
        assert [sent for sent in exchanged if sent] == [["SET"] * 50]
        assert len(one.calls) == 7
        until(lambda: leases_on(server) == 0, "they are given back")


@pytest.mark.parametrize("kind", ["raises", "cannot be stored"])
def test_leases_are_given_back_whatever_becomes_of_the_call(
    pair: tuple[Cache, Cache], server: Server, kind: str
) -> None:
    @pair[0].memoize_batch(over="items", operation="odd", **SCOPE)
    def odd(items: list[str]) -> list[Any]:
        if kind == "raises":
            raise LookupError(items)
        return [object() for _ in items]

    if kind == "raises":
        with pytest.raises(LookupError):
            odd(["a", "b"])
    else:
        with pytest.warns(UncacheableResult):
            assert len(odd(["a", "b"])) == 2
    until(lambda: leases_on(server) == 0, "nobody waits for what will not come")


def test_tasks_wait_for_the_items_of_another_process_and_can_be_cancelled(pair: tuple[Cache, Cache]) -> None:
    one, other = (Batches(cache, name) for cache, name in zip(pair, ("one", "other"), strict=True))

    async def main() -> None:
        one.may_end.clear()
        first = asyncio.create_task(one.abatch(["a", "b"]))
        await asyncio.to_thread(one.begun.wait, 10.0)
        cancelled, waiting = (asyncio.create_task(other.abatch([item, "a", "b"])) for item in ("c", "d"))
        await asyncio.sleep(0.3)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        one.may_end.set()
        assert await first == ["a of one", "b of one"]
        assert await waiting == ["d of other", "a of one", "b of one"]

    asyncio.run(main())
    assert one.calls == [["a", "b"]]
    assert sorted(other.calls) == [["c"], ["d"]]


def test_who_may_not_wait_computes_at_once(pair: tuple[Cache, Cache]) -> None:
    one, other = (Batches(cache, name) for cache, name in zip(pair, ("one", "other"), strict=True))
    one.may_end.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(one.batch, ["a", "b"])
        assert one.begun.wait(10.0)

        async def blocking() -> list[str]:
            return other.batch(["a", "c"])  # on an event loop's thread

        assert asyncio.run(blocking()) == ["a of other", "c of other"]
        within = pair[1].get_or_compute(sharing.key(pair[1], "outer"), lambda: other.batch(["b", "d"]))
        assert within == ["b of other", "d of other"]
        one.may_end.set()
        assert first.result(10.0) == ["a of one", "b of one"]
    assert other.calls == [["a", "c"], ["b", "d"]]


def test_a_refresh_leaves_to_another_process_the_items_that_it_computes(pair: tuple[Cache, Cache]) -> None:
    options: dict[str, Any] = {"ttl": 0.3, "stale_while_revalidate": "1h"}
    one, other = (Batches(cache, name, **options) for cache, name in zip(pair, ("one", "other"), strict=True))
    assert one.batch(["a", "b"]) == other.batch(["a", "b"]) == ["a of one", "b of one"]
    time.sleep(0.4)
    one.may_end.clear()
    one.begun.clear()
    assert one.batch(["a"]) == ["a of one"]
    assert one.begun.wait(10.0)
    assert other.batch(["a", "b"]) == ["a of one", "b of one"]
    until(lambda: other.calls == [["b"]], "only what nobody else computes is computed anew")
    one.may_end.set()
    until(lambda: not background._threads._names, "the refreshes have ended")
    assert other.calls == [["b"]]


def test_when_the_server_does_not_answer_the_model_runs(server: Server) -> None:
    with make(server.url, timeout="200ms") as cache:
        one = Batches(cache, "one")
        assert one.batch(["before"]) == ["before of one"]
        with server.paused():
            began = time.monotonic()
            assert one.batch(["a", "b"]) == ["a of one", "b of one"]
            assert time.monotonic() - began < 1.5
