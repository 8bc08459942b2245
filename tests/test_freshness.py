"""A miss is always legal; a wrong or stale answer never is. Random histories, and threads, against what is owed."""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache import Cache
from infercache.testing import ManualClock
from together import is_quiet, together

QUESTIONS = 4
TTL, WINDOW = 60, 30


class World:
    """A source of numbered versions, a cache of what a model says of it, and what a caller is owed."""

    def __init__(self, *, window: int | None = None) -> None:
        self.clock = ManualClock()
        self.now = 0
        self.cache = Cache("1MB", ttl=TTL, clock=self.clock)
        self.version = [0] * QUESTIONS
        self.owed = [0] * QUESTIONS
        self.read_at: dict[tuple[int, int, int], int] = {}
        self.runs = itertools.count()
        self.oldest = TTL + (window or 0)
        options: dict[str, Any] = {"model": "m", "version": "1", "stale_while_revalidate": window}

        @self.cache.memoize(operation="one", tags=["q:{question}"], **options)
        def one(question: int) -> tuple[int, int, int]:
            return self.read(question)

        @self.cache.memoize(operation="by result", tags=lambda result, question: [f"q:{result[0]}"], **options)
        def by_result(question: int) -> tuple[int, int, int]:
            return self.read(question)

        @self.cache.memoize(operation="outer", tags=["q:{question}"], **options)
        def outer(question: int) -> tuple[int, int, int]:
            return one(question)

        @self.cache.memoize_batch(operation="many", over="questions", tags=["q:{questions}"], max_batch=2, **options)
        def many(questions: list[int]) -> list[tuple[int, int, int]]:
            return [self.read(question) for question in questions]

        self.one, self.by_result, self.outer, self.many = one, by_result, outer, many

    def read(self, question: int) -> tuple[int, int, int]:
        answer = (question, self.version[question], next(self.runs))
        self.read_at[answer] = self.now
        return answer

    def check(self, question: int, answer: tuple[int, int, int], *, age: bool = True) -> None:
        assert answer[0] == question, "another question's answer"
        assert self.owed[question] <= answer[1] <= self.version[question], "older than the last purge"
        if age:
            assert self.now - self.read_at[answer] < self.oldest, "older than the time to live"

    def purge(self, question: int, how: int) -> None:
        self.version[question] += 1
        if how == 0:
            self.cache.invalidate(tags=[f"q:{question}"])
            self.owed[question] = self.version[question]
        elif how == 1:
            self.cache.invalidate(all=True)
            self.owed = self.version.copy()
        elif how == 2:
            self.cache.clear()
            self.owed = self.version.copy()
        elif how == 3:
            self.cache.invalidate(tags=[f"q:{question}"], soft=True)
        # else: the source changes and nobody tells the cache


question = st.integers(0, QUESTIONS - 1)
step = st.one_of(
    st.tuples(st.sampled_from(["one", "by_result", "outer", "refresh", "peek", "compute"]), question),
    st.tuples(st.just("many"), st.lists(question, min_size=1, max_size=6)),
    st.tuples(st.just("purge"), question, st.integers(0, 4)),
    st.tuples(st.just("wait"), st.integers(1, 70)),
    st.tuples(st.just("fill"), question, st.booleans()),
)


@given(st.lists(step, min_size=1, max_size=40))
def test_no_history_of_calls_purges_and_time_leads_to_a_wrong_or_stale_answer(steps: list[Any]) -> None:
    world = World()
    for name, *rest in steps:
        if name == "purge":
            world.purge(*rest)
        elif name == "wait":
            world.now += rest[0]
            world.clock.advance(rest[0])
        elif name == "many":
            for asked, answer in zip(rest[0], world.many(rest[0]), strict=True):
                world.check(asked, answer)
        elif name == "fill":
            # An explicit set, with or without a purge between look-up and set.
            asked, purged = rest
            key = world.cache.key(asked, model="m", version="1", operation="fill")
            found = world.cache.lookup(key)
            value = world.read(asked)
            if purged:
                world.purge(asked, 0)
            world.cache.set(key, value, tags=[f"q:{asked}"], since=found.stamp)
            if (kept := world.cache.get(key)) is not None:
                world.check(asked, kept)
        elif name == "compute":
            key = world.cache.key(rest[0], model="m", version="1", operation="fill")
            answer = world.cache.get_or_compute(key, functools.partial(world.read, rest[0]), tags=[f"q:{rest[0]}"])
            world.check(rest[0], answer)
        elif name == "refresh":
            world.check(rest[0], world.one.refresh(rest[0]))
        elif name == "peek":
            if (known := world.one.peek(rest[0])) is not None:
                world.check(rest[0], known)
        else:
            # An answer made of a cached one is fresh for a life of its own.
            world.check(rest[0], getattr(world, name)(rest[0]), age=name != "outer")
    assert is_quiet(world.cache)


class Source:
    """Versions that threads raise and ask for; whoever asks is owed what was purged before it asked."""

    def __init__(self) -> None:
        self.version = [0] * QUESTIONS
        self.owed = [0] * QUESTIONS
        self.lock = threading.Lock()

    def purge(self, question: int, invalidate: Callable[[], object]) -> None:
        with self.lock:
            self.version[question] += 1
            version = self.version[question]
            invalidate()
            self.owed[question] = version


@pytest.mark.parametrize(
    "tags", [["q:{question}"], lambda result, question: [f"q:{question}"]], ids=["known", "of the result"]
)
def test_threads_and_loops_that_ask_during_purges_get_what_they_are_owed(tags: Any) -> None:
    cache, source = Cache("4MB"), Source()

    @cache.memoize(model="m", version="1", operation="one", tags=tags)
    def one(question: int) -> int:
        return source.version[question]

    @cache.memoize(model="m", version="1", operation="outer", tags=tags)
    def outer(question: int) -> int:
        return one(question)

    @cache.memoize(model="m", version="1", operation="task", tags=tags)
    async def task(question: int) -> int:
        read = source.version[question]
        await asyncio.sleep(0)
        return read

    @cache.memoize_batch(model="m", version="1", operation="many", over="question", tags=tags)
    def many(question: list[int]) -> list[int]:
        return [source.version[one] for one in question]

    def asks(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(400):
            asked = [chosen.randrange(QUESTIONS) for _ in range(3)]
            owed = [source.owed[question] for question in asked]
            answers = many(asked) if seed % 2 else [one(asked[0]), outer(asked[1]), one(asked[2])]
            assert all(answer >= least for answer, least in zip(answers, owed, strict=True)), (answers, owed)

    def asks_in_a_loop(seed: int) -> None:
        chosen = random.Random(seed)

        async def ask() -> None:
            for _ in range(100):
                question = chosen.randrange(QUESTIONS)
                owed = source.owed[question]
                assert await task(question) >= owed

        async def main() -> None:
            await asyncio.gather(*[ask() for _ in range(4)])

        asyncio.run(main())

    def purges(seed: int) -> None:
        chosen = random.Random(seed)
        for number in range(400):
            question = chosen.randrange(QUESTIONS)
            target: dict[str, Any] = {"all": True} if number % 50 == 0 else {"tags": [f"q:{question}"]}
            source.purge(question, lambda target=target: cache.invalidate(**target))

    together(
        *[lambda seed=seed: asks(seed) for seed in range(4)],
        *[lambda seed=seed: asks_in_a_loop(seed) for seed in range(10, 12)],
        *[lambda seed=seed: purges(seed) for seed in range(20, 22)],
    )
    assert is_quiet(cache)
    for question in range(QUESTIONS):
        assert one(question) == outer(question) == source.version[question]
