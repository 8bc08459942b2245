"""When a computation began of which only its look-up and its store are seen: never later than it did."""

from __future__ import annotations

import os
import threading

import pytest

from infercache import Cache
from infercache.adapters.begun import KEPT, LONGEST, Begun


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache() -> Cache:
    return Cache("1MB")


@pytest.fixture
def begun(cache: Cache, clock: Clock) -> Begun:
    return Begun(cache, clock)


def is_hidden(cache: Cache, begun: Begun, key: object) -> bool:
    """Whether what is stored for the key now is hidden by a purge."""
    return not cache.set(key, "answer", since=begun.began(key))  # type: ignore[arg-type]


def test_an_answer_counts_as_begun_at_its_look_up(cache: Cache, begun: Begun) -> None:
    key = cache.key("question", model="m", version="1")
    begun.missed(key)
    cache.invalidate(model="m")
    assert is_hidden(cache, begun, key)
    begun.missed(key)
    assert not is_hidden(cache, begun, key)


def test_of_look_ups_at_once_the_oldest_counts_for_every_answer_but_the_last(cache: Cache, begun: Begun) -> None:
    key = cache.key("question", model="m", version="1")
    begun.missed(key)
    cache.invalidate(model="m")
    begun.missed(key)
    assert is_hidden(cache, begun, key), "it may be that of the first"
    assert is_hidden(cache, begun, key), "so may this"
    assert begun.began(key) is None


def test_a_computation_that_fails_is_forgotten_in_time(cache: Cache, begun: Begun, clock: Clock) -> None:
    key = cache.key("question", model="m", version="1")
    begun.missed(key)
    cache.invalidate(model="m")
    clock.now += LONGEST - 1
    begun.missed(key)
    assert is_hidden(cache, begun, key)
    begun.missed(key)
    clock.now += 2
    assert not is_hidden(cache, begun, key)


def test_a_computation_that_takes_long_counts_as_begun_when_it_was(cache: Cache, begun: Begun, clock: Clock) -> None:
    key = cache.key("question", model="m", version="1")
    begun.missed(key)
    cache.invalidate(model="m")
    clock.now += KEPT - 1
    begun.missed(cache.key("another", model="m", version="1"))
    assert is_hidden(cache, begun, key)


def test_what_is_never_answered_takes_no_memory_for_ever(cache: Cache, begun: Begun, clock: Clock) -> None:
    for number in range(1_000):
        begun.missed(cache.key(number, model="m", version="1"))
    assert len(begun._missed) == 1_000
    clock.now += KEPT
    key = cache.key("another", model="m", version="1")
    for _ in range(1_000):
        begun.missed(key)
    assert list(begun._missed) == [key]
    assert len(begun._missed[key]) < 100


def test_threads_may_ask_and_answer_at_once(cache: Cache, begun: Begun) -> None:
    keys = [cache.key(number, model="m", version="1") for number in range(8)]

    def ask() -> None:
        for _ in range(2_000):
            for key in keys:
                begun.missed(key)
                assert begun.began(key) is not None

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not begun._missed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_knows_nothing_of_its_parents_look_ups(cache: Cache, begun: Begun) -> None:
    key = cache.key("question", model="m", version="1")
    for _ in range(10):
        cache.invalidate(model="other")
    begun.missed(key)
    begun._lock.acquire()  # as another thread of the parent may just do
    try:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                stored = cache.set(key, "answer", since=begun.began(key))
                begun.missed(key)
                status = 0 if stored and cache.get(key) == "answer" and begun.began(key) is not None else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        begun._lock.release()
