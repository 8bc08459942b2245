"""Counters and gauges of a cache."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the cache was made, and gauges; exact once the threads have stopped.

    Attributes:
        hits_l1: look-ups answered with a fresh entry from memory.
        hits_l2: look-ups answered from the shared tier.
        stale_hits: answers given out although expired or softly purged.
        misses: look-ups that found nothing to serve.
        coalesced: callers that took another's computation instead of their own.
        stores: entries stored.
        rejected: entries refused because they are larger than the cache.
        uncacheable: results that cannot be stored, or whose model was replaced while it ran.
        evictions: live entries that had to go for others.
        expirations: expired entries whose bytes came back.
        invalidated: of the misses, those that found an entry which a purge hides.
        entries: entries held now.
        bytes: bytes held now: keys, values and overhead.
        pinned_bytes: bytes of entries that are gone from the cache but that callers still hold.
        saved_seconds: compute time that hits saved.
        l2_errors: failures of the shared tier.
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

    @property
    def hit_ratio(self) -> float:
        """The part of all look-ups that was answered from the cache, stale answers included; 0 before the first."""
        hits = self.hits_l1 + self.hits_l2 + self.stale_hits
        return hits / (hits + self.misses) if hits + self.misses else 0.0
