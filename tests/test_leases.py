"""A lease saves work across processes, and nothing more: one computation of a key, whoever is killed or stopped."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import fills
import servers
from infercache import Cache, InvalidArgument, leases
from processes import Worker
from servers import until
from sharing import SCOPE, key

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network


def make(url: str, **options: Any) -> Cache:
    return Cache("8MB", l2=url, **{"lease": "30s", "timeout": "1s", **options})


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Model:
    """A model that is held, and counts."""

    def __init__(self, answer: object = "answer") -> None:
        self.answer = answer
        self.runs = 0
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> Any:
        self.runs += 1
        self.begun.set()
        assert self.may_end.wait(30.0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def never() -> Any:
    raise AssertionError("another process was computing this")


def lease_of(server: Server) -> tuple[bytes, bytes] | None:
    """Name and token of the lease that stands on the server."""
    names = server.admin.keys("ic:*:lease")
    return (names[0], server.admin.get(names[0])) if names else None


@pytest.mark.parametrize("binary", servers.NAMES, indirect=True)
def test_one_process_computes_and_the_others_get_its_answer(
    pair: tuple[Cache, Cache], pool: ThreadPoolExecutor, server: Server
) -> None:
    one, other = pair
    model = Model()
    first = pool.submit(one.get_or_compute, key(one), model)
    assert model.begun.wait(10.0)
    waiting = [pool.submit(other.get_or_compute, key(other), never) for _ in range(3)]
    time.sleep(0.3)
    assert not any(each.done() for each in waiting)
    model.may_end.set()
    assert [each.result(10.0) for each in (first, *waiting)] == ["answer"] * 4
    assert model.runs == 1
    until(lambda: lease_of(server) is None, "it is given back")


def test_the_bell_wakes_those_who_wait(
    pair: tuple[Cache, Cache], pool: ThreadPoolExecutor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "PAUSES", (20.0, 20.0))
    one, other = pair
    model = Model()
    pool.submit(one.get_or_compute, key(one), model)
    assert model.begun.wait(10.0)
    waiting = pool.submit(other.get_or_compute, key(other), never)
    until(lambda: server.admin.pubsub_numsub("ic:leases")[0][1] == 1, "it listens")
    model.may_end.set()
    assert waiting.result(5.0) == "answer"


def test_a_bell_that_never_rings_only_makes_it_slower(server: Server, pool: ThreadPoolExecutor) -> None:
    server.admin.execute_command("ACL", "SETUSER", "default", "resetchannels")
    with make(server.url) as one, make(server.unix_url) as other:
        model = Model()
        pool.submit(one.get_or_compute, key(one), model)
        assert model.begun.wait(10.0)
        waiting = pool.submit(other.get_or_compute, key(other), never)
        model.may_end.set()
        assert waiting.result(5.0) == "answer"


def test_a_holder_that_is_killed_is_taken_over(server: Server) -> None:
    options = {"l2": server.url, "lease": "1s"}
    with Worker(fills.cache_process, **options) as first, Worker(fills.cache_process, **options) as second:
        first.begin("memoized", "q")
        first.wait_for("model running")
        waiting = second.begin("memoized", "q")
        time.sleep(0.2)
        assert not second.has_reached("model running")
        first.kill()
        began = time.monotonic()
        second.wait_for("model running")
        assert time.monotonic() - began < 5.0
        second.go("model running", "of the second")
        second.pass_by("model returned")
        assert waiting.result() == "of the second"


def test_a_holder_that_is_stopped_past_its_lease_is_taken_over_and_takes_nothing_back(server: Server) -> None:
    options = {"l2": server.url, "lease": "500ms"}
    with Worker(fills.cache_process, **options) as first, Worker(fills.cache_process, **options) as second:
        slow = first.begin("memoized", "q")
        first.wait_for("model running")
        own = lease_of(server)
        waiting = second.begin("memoized", "q")
        with first.paused():
            second.wait_for("model running")
        taken = lease_of(server)
        assert taken is not None
        assert own is not None
        assert taken[0] == own[0]
        assert taken[1] != own[1]
        first.go("model running", "of the first")
        first.pass_by("model returned")
        assert slow.result() == "of the first"
        time.sleep(0.3)
        assert lease_of(server) == taken, "the first gives back what is its own, and nothing else"
        second.go("model running", "of the second")
        second.pass_by("model returned")
        assert waiting.result() == "of the second"


def test_a_lease_is_renewed_while_the_model_runs(server: Server, pool: ThreadPoolExecutor) -> None:
    with make(server.url, lease="300ms") as one, make(server.unix_url, lease="300ms") as other:
        model = Model()
        pool.submit(one.get_or_compute, key(one), model)
        assert model.begun.wait(10.0)
        waiting = pool.submit(other.get_or_compute, key(other), never)
        time.sleep(1.2)
        assert not waiting.done()
        model.may_end.set()
        assert waiting.result(5.0) == "answer"


def test_a_model_that_hangs_holds_up_others_for_ten_leases_at_most(server: Server, pool: ThreadPoolExecutor) -> None:
    with make(server.url, lease="100ms") as one, make(server.unix_url, lease="100ms") as other:
        model = Model()
        first = pool.submit(one.get_or_compute, key(one), model)
        assert model.begun.wait(10.0)
        began = time.monotonic()
        assert other.get_or_compute(key(other), lambda: "own") == "own"
        assert 0.8 <= time.monotonic() - began < 4.0
        model.may_end.set()
        assert first.result(5.0) == "answer"


@pytest.mark.parametrize("kind", ["error", "refused", "unstorable"])
def test_what_others_cannot_have_leaves_the_lease_to_them(
    pair: tuple[Cache, Cache], pool: ThreadPoolExecutor, kind: str
) -> None:
    one, other = pair
    model = Model({"error": ValueError("no"), "refused": "refused", "unstorable": "kept to itself"}[kind])

    @one.memoize(operation="f", store_if=lambda result: kind == "error", **SCOPE)
    def first() -> Any:
        return model()

    @other.memoize(operation="f", **SCOPE)
    def second() -> str:
        return "own"

    leading = pool.submit(first)
    assert model.begun.wait(10.0)
    waiting = pool.submit(second)
    time.sleep(0.2)
    assert not waiting.done()
    model.may_end.set()
    assert waiting.result(10.0) == "own"
    if kind == "error":
        with pytest.raises(ValueError, match="no"):
            leading.result(10.0)


def test_a_server_that_stops_answering_costs_the_budget_and_no_more(server: Server) -> None:
    with make(server.url, timeout="200ms") as cache:
        assert cache.get_or_compute(key(cache, "before"), lambda: 1) == 1
        with server.paused():
            began = time.monotonic()
            assert cache.get_or_compute(key(cache), lambda: "answer") == "answer"
            # To look, to take the lease and to store, each at most once; and retries are within.
            assert time.monotonic() - began < 1.5


def test_with_the_server_gone_everything_goes_on(server: Server) -> None:
    with make(server.url, timeout="200ms") as cache:
        server.kill()
        for number in range(20):
            assert cache.get_or_compute(key(cache, number), lambda: "answer") == "answer"


def test_computations_that_need_one_another_across_processes_end(
    pair: tuple[Cache, Cache], pool: ThreadPoolExecutor
) -> None:
    one, other = pair
    together = threading.Barrier(2, timeout=10.0)
    runs: list[str] = []

    def both(cache: Cache, name: str, needs: str) -> Any:
        def inner() -> str:
            runs.append(f"{needs} within {name}")
            return needs

        def outer() -> str:
            together.wait()
            return f"{name} of {cache.get_or_compute(key(cache, needs), inner)}"

        return pool.submit(cache.get_or_compute, key(cache, name), outer)

    ends = [both(one, "a", "b"), both(other, "b", "a")]
    assert [each.result(10.0) for each in ends] == ["a of b", "b of a"]
    assert sorted(runs) == ["a within b", "b within a"]


def test_a_blocking_call_on_an_event_loop_does_not_wait(pair: tuple[Cache, Cache], pool: ThreadPoolExecutor) -> None:
    one, other = pair
    model = Model()
    first = pool.submit(one.get_or_compute, key(one), model)
    assert model.begun.wait(10.0)

    async def main() -> Any:
        return other.get_or_compute(key(other), lambda: "own")

    assert asyncio.run(main()) == "own"
    model.may_end.set()
    assert first.result(10.0) == "answer"


def test_tasks_wait_as_threads_do_and_a_cancelled_one_harms_nobody(pair: tuple[Cache, Cache]) -> None:
    one, other = pair

    async def main() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()
        runs: list[int] = []

        async def model() -> str:
            runs.append(1)
            begun.set()
            await may_end.wait()
            return "answer"

        async def unneeded() -> str:
            raise AssertionError("another process was computing this")

        first = asyncio.create_task(one.aget_or_compute(key(one), model))
        await begun.wait()
        cancelled = asyncio.create_task(other.aget_or_compute(key(other), unneeded))
        waiting = [asyncio.create_task(other.aget_or_compute(key(other), unneeded)) for _ in range(2)]
        await asyncio.sleep(0.2)
        cancelled.cancel()
        await asyncio.sleep(0.1)
        may_end.set()
        assert await asyncio.gather(first, *waiting) == ["answer"] * 3
        assert cancelled.cancelled()
        assert len(runs) == 1

    asyncio.run(main())


def test_a_holder_that_is_cancelled_gives_the_lease_back(pair: tuple[Cache, Cache], server: Server) -> None:
    one, other = pair

    async def main() -> None:
        begun = asyncio.Event()

        async def model() -> str:
            begun.set()
            await asyncio.sleep(60.0)
            return "never"

        async def own() -> str:
            return "own"

        first = asyncio.create_task(one.aget_or_compute(key(one), model))
        await begun.wait()
        first.cancel()
        assert await asyncio.wait_for(other.aget_or_compute(key(other), own), 10.0) == "own"

    asyncio.run(main())
    until(lambda: lease_of(server) is None, "it is given back")


def test_a_refresh_in_the_background_is_left_to_the_process_that_does_it(pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    models = [Model("fresh"), Model("fresh")]
    for model in models:
        model.may_end.set()

    def decorated(cache: Cache, model: Model) -> Any:
        @cache.memoize(operation="f", stale_while_revalidate="1h", tags=["t"], **SCOPE)
        def f() -> Any:
            return model()

        return f

    first, second = (decorated(cache, model) for cache, model in zip(pair, models, strict=True))
    assert [first(), second()] == ["fresh", "fresh"]
    token = one.invalidate(tags=["t"], soft=True)
    until(lambda: other.lookup(second.key(), min_token=token).source == "stale", "both know")
    models[0].begun.clear()
    models[0].may_end.clear()
    assert first() == "fresh"
    assert models[0].begun.wait(10.0)
    assert second() == "fresh"
    time.sleep(0.3)
    assert models[1].runs == 0, "the other process is computing it anew"
    models[0].may_end.set()


def test_without_a_lease_nothing_is_asked_for(server: Server) -> None:
    with Cache("8MB", l2=server.url) as cache:
        assert cache.lease is None
        assert cache.get_or_compute(key(cache), lambda: lease_of(server)) is None


def test_a_purge_while_another_process_computes_wins(pair: tuple[Cache, Cache], pool: ThreadPoolExecutor) -> None:
    one, other = pair
    model = Model("old")
    first = pool.submit(lambda: one.get_or_compute(key(one), model, tags=["t"]))
    assert model.begun.wait(10.0)
    token = other.invalidate(tags=["t"])
    waiting = pool.submit(lambda: other.get_or_compute(key(other), lambda: "new", tags=["t"]))
    model.may_end.set()
    assert first.result(10.0) == "old"
    assert waiting.result(10.0) == "new"
    assert one.get(key(one), min_token=token) in (None, "new")


def test_a_lease_of_no_length_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^lease="):
        Cache(lease="0s")
