"""The same questions with and without a cache: what a hit, a miss and the model take, and from which hit ratio it pays.

Every time is that of one call, seen by its caller. A miss takes what the model takes and `overhead` beside: forming
the key, the look-up, the store. With a hit ratio of `h` a request takes `h × hit + (1 - h) × (model + overhead)` on
average, which is less than `model` from

    h = overhead / (model + overhead - hit)

on: the break-even. If a hit takes as long as the model, there is none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infercache import Cache, UnsupportedInput, _core

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infercache.workload.subjects import Subject

__all__ = ["Comparison", "compare"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured, in seconds.

    Attributes:
        without: (n,): each call without the cache.
        hits: (h,): each call that the cache answered.
        misses: (m,): each call that ran the model.
        models: (m,): what the model took of each of these.
        elapsed: of all calls with the cache.
        uncacheable: calls whose result cannot be stored.
        repeats: whether the model gave the same answer to the same question; None: it could not be told.
    """

    without: F64
    hits: F64
    misses: F64
    models: F64
    elapsed: float
    uncacheable: int
    repeats: bool | None

    @property
    def hit_ratio(self) -> float:
        """The part of the calls that the cache answered."""
        return len(self.hits) / (len(self.hits) + len(self.misses))

    @property
    def model(self) -> float:
        """What the model takes: the median of all calls that ran it."""
        return float(np.median(np.concatenate([self.without, self.models])))

    @property
    def hit(self) -> float | None:
        """What a hit takes: the median; None: there was none."""
        return float(np.median(self.hits)) if len(self.hits) else None

    @property
    def overhead(self) -> float:
        """What a miss takes beside the model: the median."""
        return max(0.0, float(np.median(self.misses - self.models))) if len(self.misses) else 0.0

    @property
    def break_even(self) -> float | None:
        """The hit ratio from which caching is faster; None: it never is, for a look-up takes as long as the model."""
        hit = self.hit
        if hit is None:
            return None
        gained = self.model + self.overhead - hit
        if hit >= self.model or gained <= 0:
            return None
        return self.overhead / gained


def compare(
    subject: Subject,
    questions: Sequence[Any],
    *,
    capacity: str,
    seconds: float,
    called: Callable[[], None] = lambda: None,
) -> Comparison:
    """Asks without the cache for at most `seconds`, then with it: each question in its order, at most `seconds` long.

    Args:
        subject: what is asked.
        questions: at least one.
        capacity: the cache's.
        seconds: for each of the two.
        called: is called after each call.

    Raises:
        Exception: whatever the subject raises.
    """
    clock = time.perf_counter
    subject.ask(questions[0])  # what happens only once is nobody's time: imports, connections, compilation
    without, begun = [], clock()
    for question in questions:
        before = clock()
        subject.ask(question)
        without.append(clock() - before)
        called()
        if clock() - begun > seconds:
            break
    runs: list[float] = []

    def ask(question: Any) -> Any:
        before = clock()
        try:
            return subject.ask(question)
        finally:
            runs.append(clock() - before)

    hits: list[float] = []
    misses: list[float] = []
    with Cache(capacity, ttl=None) as cache:
        # What a first miss brings with it (modules that are loaded then) is nobody's time.
        cache.memoize(model=subject.name, version="bench", operation="infercache.bench.warm")(_itself)("")
        cached = cache.memoize(model=subject.name, version="bench", operation="infercache.bench")(ask)
        begun = clock()
        for question in questions:
            before, ran = clock(), len(runs)
            cached(question)
            (hits if len(runs) == ran else misses).append(clock() - before)
            called()
            if clock() - begun > seconds:
                break
        elapsed = clock() - begun
        uncacheable = cache.stats().uncacheable
    return Comparison(
        without=np.array(without),
        hits=np.array(hits),
        misses=np.array(misses),
        models=np.array(runs),
        elapsed=elapsed,
        uncacheable=uncacheable,
        repeats=_repeats(subject, questions[0]),
    )


def _itself(question: Any) -> Any:
    return question


def _repeats(subject: Subject, question: Any) -> bool | None:
    """Whether two answers to one question are equal; None: they have no form that can be compared."""
    try:
        first, second = (_core.canonical_json(subject.ask(question)) for _ in range(2))
    except UnsupportedInput:
        return None
    return first == second
