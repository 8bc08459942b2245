"""Requests for the demo: which texts are asked for, how often, from several threads, and how long each answer took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Batches", "Measurement", "drive", "in_order", "zipf"]

# A request asks for several texts at once: their numbers in the list of texts.
Batches = list[npt.NDArray[np.int64]]


def zipf(texts: int, requests: int, batch: int, exponent: float, seed: int) -> Batches:
    """`requests` batches of `batch` texts each, drawn with repetition: the k-th text in proportion to 1 / k^exponent.

    This is Zipf's law over a finite number of texts (G. K. Zipf, 1949); web requests follow it with exponents of about
    0.6 to 1 (Breslau et al., "Web caching and Zipf-like distributions", INFOCOM 1999).
    """
    weights = 1.0 / np.arange(1, texts + 1, dtype=np.float64) ** exponent
    drawn = np.random.default_rng(seed).choice(texts, size=(requests, batch), p=weights / weights.sum())
    return list(drawn)


def in_order(numbers: Sequence[int], requests: int | None, batch: int) -> Batches:
    """The texts as they come, cut into batches; at most `requests` of them."""
    every = [np.array(numbers[start : start + batch], dtype=np.int64) for start in range(0, len(numbers), batch)]
    return every[:requests]


@dataclass(frozen=True)
class Measurement:
    """What driving requests showed."""

    asked: npt.NDArray[np.int64]  # (requests answered,): how many texts each asked for, in the order of the requests
    seconds: npt.NDArray[np.float64]  # (requests answered,): how long each answer took
    computed: npt.NDArray[np.int64]  # (requests answered,): texts that its own thread ran through the model for it
    elapsed: float  # seconds from the first request to the last answer

    def where(self, chosen: npt.NDArray[np.bool_]) -> Measurement:
        """The part of it that is about these requests."""
        return Measurement(self.asked[chosen], self.seconds[chosen], self.computed[chosen], self.elapsed)

    def mean_of_text(self) -> float:
        """Seconds that a text took on average, as part of its request."""
        return float(self.seconds.sum()) / max(1, int(self.asked.sum()))

    def quantile(self, share: float) -> float:
        """The time within which `share` of the requests were answered, in seconds."""
        return float(np.quantile(self.seconds, share))


def drive(
    batches: Batches,
    answer: Callable[[npt.NDArray[np.int64]], int],
    *,
    threads: int,
    seconds: float | None = None,
    advance: Callable[[int], None],
) -> Measurement:
    """Asks for every batch, from `threads` threads, and measures each answer.

    Args:
        batches: the requests; thread t takes every `threads`-th, beginning with t.
        answer: answers one request and returns the nanoseconds that this took: it measures itself, since it may do work
            that must not count (checking what came back). What it computed is told through `count_computed`.
        threads: how many threads ask.
        seconds: begin no request after this time; None: all are asked.
        advance: told how many requests more were answered, from the calling thread.

    Raises:
        Exception: whatever `answer` raises; the other threads stop at their next request.
    """
    taken = np.full(len(batches), -1, dtype=np.int64)
    computed = np.zeros(len(batches), dtype=np.int64)
    stop = threading.Event()
    begun = time.perf_counter()

    def ask(first: int) -> None:
        try:
            for number in range(first, len(batches), threads):
                if stop.is_set() or (seconds is not None and time.perf_counter() - begun > seconds):
                    return
                before = computed_here()
                taken[number] = answer(batches[number])
                computed[number] = computed_here() - before
        except BaseException:
            stop.set()
            raise

    told = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="infercache-demo") as pool:
        running = [pool.submit(ask, first) for first in range(threads)]
        try:
            while not all(future.done() for future in running):
                time.sleep(0.05)
                done = int(np.count_nonzero(taken >= 0))
                advance(done - told)
                told = done
        finally:
            stop.set()  # an interrupted wait ends the threads too
        for future in running:
            future.result()
    elapsed = time.perf_counter() - begun
    answered = taken >= 0
    advance(int(np.count_nonzero(answered)) - told)
    asked = np.array([len(numbers) for numbers in batches], dtype=np.int64)
    return Measurement(asked[answered], taken[answered] / 1e9, computed[answered], elapsed)


_counts = threading.local()


def computed_here() -> int:
    """How many texts this thread has run through the model."""
    return getattr(_counts, "texts", 0)


def count_computed(texts: int) -> None:
    """Notes that this thread ran `texts` texts through the model."""
    _counts.texts = computed_here() + texts
