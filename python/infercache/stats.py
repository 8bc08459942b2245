"""Counters and gauges of a cache."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the cache was made, and gauges; exact once the threads have stopped.

    A look-up is a call of a memoized function, each item of a call of a batch function, each key given to `get`,
    `get_many`, `lookup` or `get_or_compute`. It is counted once, as one of `hits_l1`, `hits_l2`, `stale_hits` and
    `misses`. `in`, `peek`, `refresh` and refreshes in the background are no look-ups.

    A miss runs the model unless it is also counted as `coalesced`: where nothing but calls and batches happens and no
    model raises, it has run for `misses - coalesced` questions.

    Attributes:
        hits_l1: look-ups answered with a fresh entry from memory.
        hits_l2: look-ups answered from the shared tier.
        stale_hits: answers given out although expired or softly purged: look-ups, and misses whose model raised
            (`stale_if_error`), which count as both.
        misses: look-ups that found nothing to serve.
        coalesced: answers taken from another's computation instead of an own one: misses that waited for it or came
            just after it, items that stand in their batch again, and refreshes that somebody else was making.
        stores: entries stored.
        rejected: entries refused because they are larger than the cache.
        uncacheable: results that cannot be stored, or whose model was replaced while it ran, and those of a batch
            function that was asked for a whole batch since its items' results do not make one.
        evictions: live entries that had to go for others.
        expirations: expired entries whose bytes came back.
        invalidated: of the misses, those that found an entry which a purge hides.
        entries: entries held now.
        bytes: bytes held now: keys, values and overhead.
        pinned_bytes: bytes of entries that are gone from the cache but that callers still hold.
        saved_seconds: compute time that `hits_l1`, `hits_l2` and `stale_hits` saved; of an item, its share of the time
            of the batch that computed it. Not what `coalesced` saved.
        l2_errors: failures of the shared tier.
        hashed_on_host: how often tensors on a GPU were copied to the host to be hashed, because the GPU had no memory
            left. Of the whole process: a key belongs to no cache.
    """

    hits_l1: int
    hits_l2: int
    stale_hits: int
    misses: int
    coalesced: int
    stores: int
    rejected: int
    uncacheable: int
    evictions: int
    expirations: int
    invalidated: int
    entries: int
    bytes: int
    pinned_bytes: int
    saved_seconds: float
    l2_errors: int
    hashed_on_host: int = 0

    @property
    def hit_ratio(self) -> float:
        """The part of all look-ups that was answered from the cache, stale answers included; 0 before the first.

        A miss that took another's computation (`coalesced`) is a miss.
        """
        hits = self.hits_l1 + self.hits_l2 + self.stale_hits
        return hits / (hits + self.misses) if hits + self.misses else 0.0
