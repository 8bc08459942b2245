"""What look-ups and purges return: values with what is known of them, and moments of the logical clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

__all__ = ["Lookup", "Stamp", "Token"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Token:
    """What `invalidate` returns: reads with `min_token=token` know of that purge."""

    stamp: int


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """A moment of the cache's logical clock. A value stored with it is hidden by every purge that came after it."""

    word: int


@dataclass(frozen=True, slots=True)
class Lookup(Generic[T]):
    """What `Cache.lookup` found.

    Attributes:
        value: the value; None on a miss.
        source: "l1", "l2", "stale" (expired, or purged softly) or "miss".
        age: seconds since it was stored; None on a miss.
        ttl: seconds that it stays fresh; None: until evicted, or a miss.
        stamp: for `set(…, since=…)`: a purge after this look-up then wins over what is stored.
    """

    value: T | None
    source: Literal["l1", "l2", "stale", "miss"]
    age: float | None
    ttl: float | None
    stamp: Stamp
