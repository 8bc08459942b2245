"""Stale answers: served while one refresh runs in the background, or in place of an error; never after a hard purge."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache, background
from together import PATIENCE, Gate, together

if TYPE_CHECKING:
    from collections.abc import Callable

    from infercache.testing import ManualClock


@pytest.fixture
def refreshes() -> Callable[[], None]:
    """Waits until every refresh that was asked for in a thread has ended."""

    def wait() -> None:
        patience = time.monotonic() + PATIENCE
        while background._threads._names:
            assert time.monotonic() < patience, "a refresh hangs"
            time.sleep(0.001)

    return wait


class Source:
    """A model whose answers are numbered."""

    def __init__(self) -> None:
        self.runs = 0
        self.fails = False
        self.hold: Gate | None = None

    def answer(self) -> int:
        self.runs += 1
        if self.hold is not None:
            self.hold.pass_through()
        if self.fails:
            raise LookupError(self.runs)
        return self.runs


def memoized(cache: Cache, **options: Any) -> tuple[Source, Any]:
    source = Source()

    @cache.memoize(model="m", version="1", operation="stale", ttl="1m", tags=["t"], **options)
    def ask(question: Any) -> int:
        return source.answer()

    return source, ask


def stale(cache: Cache, clock: ManualClock, **options: Any) -> tuple[Source, Any]:
    """The same, with an answer to "q" whose life has just been over."""
    source, ask = memoized(cache, **options)
    assert ask("q") == 1
    clock.advance(61)
    return source, ask


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """The refreshes that were asked for; the test runs them."""
    jobs: list[Callable[[], object]] = []
    monkeypatch.setattr("infercache.memoize.refresh_in_thread", lambda name, job: jobs.append(job))
    return jobs


class TestRevalidation:
    def test_a_stale_answer_is_served_while_it_is_computed_anew(
        self, cache: Cache, clock: ManualClock, refreshes: Callable[[], None]
    ) -> None:
        source, ask = memoized(cache, stale_while_revalidate="30s")
        assert ask("q") == 1
        clock.advance(59)
        assert ask("q") == 1
        assert source.runs == 1
        clock.advance(20)
        assert ask("q") == 1
        refreshes()
        assert source.runs == 2
        assert ask("q") == 2
        assert cache.stats().stale_hits == 1

    def test_beyond_its_window_an_answer_is_computed_in_the_foreground(self, cache: Cache, clock: ManualClock) -> None:
        _, ask = memoized(cache, stale_while_revalidate="30s")
        ask("q")
        clock.advance(91)
        assert ask("q") == 2
        assert cache.stats().stale_hits == 0

    def test_one_background_refresh_per_key(
        self, cache: Cache, clock: ManualClock, refreshes: Callable[[], None]
    ) -> None:
        source, ask = stale(cache, clock, stale_while_revalidate="30s")
        source.hold = Gate()
        assert together(*[lambda: [ask("q") for _ in range(50)]] * 6) == [[1] * 50] * 6
        source.hold.wait_for(1)
        assert ask("q") == 1
        source.hold.open()
        refreshes()
        assert source.runs == 2
        assert ask("q") == 2
        refreshes()
        assert source.runs == 2

    def test_every_stale_key_is_refreshed_a_few_at_once(
        self, cache: Cache, clock: ManualClock, refreshes: Callable[[], None]
    ) -> None:
        source, ask = memoized(cache, stale_while_revalidate="30s")
        for n in range(40):
            ask(n)
        clock.advance(61)
        source.hold = Gate()
        for n in range(40):
            ask(n)
        source.hold.wait_for(background.MOST_THREADS)
        assert not source.hold.wait_for_another(0.2), "no more at once, for each is a model run"
        source.hold.open()
        refreshes()
        assert source.runs == 80

    def test_who_needs_the_answer_while_it_is_refreshed_waits_for_it(
        self, cache: Cache, clock: ManualClock, refreshes: Callable[[], None]
    ) -> None:
        source, ask = stale(cache, clock, stale_while_revalidate="30s")
        source.hold = Gate()
        ask("q")
        source.hold.wait_for(1)
        clock.advance(60)  # beyond the window now: the refresh leads, this call follows
        opener = threading.Timer(0, source.hold.open)
        opener.start()
        assert ask("q") == 2
        opener.join()
        refreshes()
        assert source.runs == 2

    def test_a_refresh_whose_arguments_were_changed_does_not_run(
        self, cache: Cache, clock: ManualClock, submitted: list[Callable[[], object]]
    ) -> None:
        source, ask = memoized(cache, stale_while_revalidate="30s")
        question = ["q"]
        ask(question)
        clock.advance(61)
        assert ask(question) == 1
        question.append("changed since")
        submitted[0]()
        assert source.runs == 1
        question.pop()
        submitted[0]()
        assert source.runs == 2
        assert len(cache.flights) == 0

    def test_a_refresh_that_comes_when_another_is_done_does_not_run(
        self, cache: Cache, clock: ManualClock, submitted: list[Callable[[], object]]
    ) -> None:
        source, ask = stale(cache, clock, stale_while_revalidate="30s")
        ask("q"), ask("q")
        for job in submitted:
            job()
        assert len(submitted) == 2
        assert source.runs == 2

    def test_a_refresh_that_fails_is_logged_and_the_stale_answer_stays(
        self, cache: Cache, clock: ManualClock, refreshes: Callable[[], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        source, ask = stale(cache, clock, stale_while_revalidate="30s", stale_if_error="1h")
        source.fails = True
        with caplog.at_level(logging.WARNING, "infercache"):
            assert ask("q") == 1
            refreshes()
        assert "LookupError" in caplog.text
        assert ask("q") == 1
        refreshes()
        assert source.runs == 3

    def test_a_refresh_runs_in_its_callers_context_but_in_no_computation(
        self, cache: Cache, clock: ManualClock, refreshes: Callable[[], None]
    ) -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
        seen = []

        @cache.memoize(model="m", version="1", operation="inner", ttl="1m", stale_while_revalidate="30s")
        def inner(question: str) -> int:
            seen.append((variable.get(None), background._core.current_computation.get() is not None))
            return len(seen)

        @cache.memoize(model="m", version="1", operation="outer", ttl="1s")
        def outer(question: str) -> int:
            return inner(question)

        inner("q")
        clock.advance(61)
        variable.set("mine")
        assert outer("q") == 1
        refreshes()
        assert seen == [(None, True), ("mine", True)]

    def test_an_async_function_refreshes_as_a_task(self, cache: Cache, clock: ManualClock) -> None:
        runs = []

        async def main() -> None:
            hold = asyncio.Event()

            @cache.memoize(model="m", version="1", operation="async", ttl="1m", stale_while_revalidate="30s")
            async def ask(question: str) -> int:
                runs.append(question)
                if len(runs) == 2:
                    await hold.wait()
                return len(runs)

            assert await ask("q") == 1
            clock.advance(61)
            assert await asyncio.gather(*[ask("q") for _ in range(20)]) == [1] * 20
            while len(runs) < 2:
                await asyncio.sleep(0)
            assert await ask("q") == 1
            hold.set()
            while await ask("q") != 2:
                await asyncio.sleep(0)
            assert len(runs) == 2

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        assert not background._tasks

    def test_a_loop_that_ends_during_a_refresh_does_not_stop_later_ones(self, cache: Cache, clock: ManualClock) -> None:
        runs = []

        @cache.memoize(model="m", version="1", operation="loops", ttl="1m", stale_while_revalidate="30s")
        async def ask(question: str) -> int:
            runs.append(question)
            if len(runs) == 2:
                await asyncio.Event().wait()  # until the loop ends
            return len(runs)

        async def until(count: int) -> None:
            await ask("q")
            while len(runs) < count:
                await asyncio.sleep(0)

        asyncio.run(until(1))
        clock.advance(61)
        asyncio.run(until(2))  # the refresh is cancelled with its loop
        asyncio.run(until(3))
        assert len(cache.flights) == 0

    def test_a_batch_refreshes_its_stale_items_together(
        self, cache: Cache, clock: ManualClock, refreshes: Callable[[], None]
    ) -> None:
        calls: list[list[str]] = []

        @cache.memoize_batch(
            model="m", version="1", operation="batch", over="items", ttl="1m", stale_while_revalidate="30s", max_batch=2
        )
        def embed(items: list[str]) -> list[str]:
            calls.append(items)
            return [f"{item} {len(calls)}" for item in items]

        embed(["a", "b"])
        clock.advance(40)
        embed(["c"])
        clock.advance(30)
        assert embed(["a", "b", "c"]) == ["a 1", "b 1", "c 2"]
        refreshes()
        assert embed(["a", "b", "c"]) == ["a 3", "b 3", "c 2"]
        clock.advance(50)
        assert embed(["c", "d", "c"]) == ["c 2", "d 5", "c 2"] or calls[3:] == [["c"], ["d"]]
        refreshes()
        assert sorted(calls[3:]) == [["c"], ["d"]]
        assert len(cache.flights) == 0


class TestErrors:
    def test_a_stale_answer_stands_in_for_an_error(self, cache: Cache, clock: ManualClock) -> None:
        source, ask = memoized(cache, stale_if_error="1h")
        ask("q")
        clock.advance(120)
        source.fails = True
        assert ask("q") == 1
        stats = cache.stats()
        assert (stats.misses, stats.stale_hits) == (2, 1)
        clock.advance(3_700)
        with pytest.raises(LookupError):
            ask("q")

    def test_without_the_option_an_error_is_an_error(self, cache: Cache, clock: ManualClock) -> None:
        source, ask = memoized(cache, stale_while_revalidate="1h")
        ask("q")
        clock.advance(3_661)
        source.fails = True
        with pytest.raises(LookupError):
            ask("q")

    def test_the_two_windows_are_apart(self, cache: Cache, clock: ManualClock, refreshes: Callable[[], None]) -> None:
        source, ask = memoized(cache, stale_while_revalidate="10s", stale_if_error="1h")
        ask("q")
        clock.advance(65)
        assert ask("q") == 1  # revalidated
        refreshes()
        clock.advance(75)
        source.fails = True
        assert ask("q") == 2  # in place of the error
        assert source.runs == 3

    @pytest.mark.parametrize("purge", [{"tags": ["t"]}, {"all": True}, {"model": "m"}], ids=repr)
    def test_a_hard_purge_is_never_answered_with_a_stale_entry(
        self, cache: Cache, clock: ManualClock, purge: dict[str, Any]
    ) -> None:
        source, ask = stale(cache, clock, stale_while_revalidate="1h", stale_if_error="1h")
        cache.invalidate(**purge)
        source.fails = True
        with pytest.raises(LookupError):
            ask("q")
        assert cache.stats().stale_hits == 0

    def test_a_softly_purged_entry_is_served_stale(self, cache: Cache, refreshes: Callable[[], None]) -> None:
        source, ask = memoized(cache, stale_while_revalidate="1m", stale_if_error="1h")
        ask("q")
        cache.invalidate(tags=["t"], soft=True)
        assert ask("q") == 1
        refreshes()
        assert ask("q") == 2
        assert source.runs == 2
        cache.invalidate(tags=["t"], soft=True)
        source.fails = True
        assert ask("q") == 2
        refreshes()

    def test_a_softly_purged_entry_stands_in_for_an_error(self, cache: Cache) -> None:
        source, ask = memoized(cache, stale_if_error="1h")
        ask("q")
        cache.invalidate(tags=["t"], soft=True)
        source.fails = True
        assert ask("q") == 1
        cache.invalidate(tags=["t"])
        with pytest.raises(LookupError):
            ask("q")

    def test_a_soft_purge_without_windows_is_a_miss(self, cache: Cache) -> None:
        _, ask = memoized(cache)
        ask("q")
        cache.invalidate(tags=["t"], soft=True)
        assert ask("q") == 2

    def test_waiters_are_rescued_like_their_leader(self, cache: Cache, clock: ManualClock) -> None:
        source, ask = memoized(cache, stale_if_error="1h")
        ask("q")
        clock.advance(120)
        source.fails = True
        source.hold = Gate()
        opener = threading.Timer(0, source.hold.open)
        opener.start()
        assert together(*[lambda: ask("q")] * 4) == [1] * 4
        opener.join()

    def test_a_batch_whose_failed_items_are_all_known_is_rescued(self, cache: Cache, clock: ManualClock) -> None:
        fails = []

        @cache.memoize_batch(
            model="m", version="1", operation="rescued", over="items", ttl="1m", stale_if_error="1h", max_batch=2
        )
        def embed(items: list[str]) -> list[str]:
            if fails:
                raise LookupError
            return [item.upper() for item in items]

        embed(["a", "b", "c"])
        clock.advance(120)
        fails.append(True)
        assert embed(["a", "b", "c", "a"]) == ["A", "B", "C", "A"]
        with pytest.raises(LookupError):
            embed(["a", "new"])

    def test_a_purge_during_a_background_refresh_wins(
        self, cache: Cache, clock: ManualClock, refreshes: Callable[[], None]
    ) -> None:
        source, ask = stale(cache, clock, stale_while_revalidate="30s")
        source.hold = Gate()
        assert ask("q") == 1
        source.hold.wait_for(1)
        cache.invalidate(tags=["t"])
        assert ask.peek("q") is None
        source.hold.open()
        refreshes()
        assert ask.peek("q") is None, "computed before the purge"
        assert ask("q") == 3


def test_refreshes_never_hold_up_the_end_of_the_process() -> None:
    code = """
import threading
from infercache import Cache
from infercache.testing import ManualClock
clock, begun = ManualClock(), threading.Event()
cache = Cache("1MB", clock=clock)
runs = []

@cache.memoize(model="m", version="1", ttl="1m", stale_while_revalidate="1m")
def ask(question):
    runs.append(question)
    if len(runs) > 1:
        begun.set()
        threading.Event().wait()
    return question

ask("q")
clock.advance(61)
ask("q")
begun.wait(30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_has_refreshes_of_its_own() -> None:
    code = """
import os, threading
from infercache import Cache
from infercache.testing import ManualClock
clock, hold, begun = ManualClock(), threading.Event(), threading.Event()
cache = Cache("1MB", clock=clock)
runs, fresh = [], threading.Event()

@cache.memoize(model="m", version="1", ttl="1m", stale_while_revalidate="1m")
def ask(question):
    runs.append(question)
    if len(runs) == 2:
        begun.set()
        hold.wait(30)
    if len(runs) > 3:
        fresh.set()
    return len(runs)

ask("q"); clock.advance(61); ask("q"); begun.wait(30)
child = os.fork()
if child == 0:
    ok = ask("q") == 3  # cold, and the parent's refresh is nobody's here
    clock.advance(61)
    ok = ok and ask("q") == 3 and fresh.wait(30)
    os._exit(0 if ok else 1)
hold.set()
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
