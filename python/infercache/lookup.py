"""What look-ups and purges return: values with what is known of them, and moments of the logical clock."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from infercache.errors import UnreadableEntry

__all__ = ["Lookup", "Stamp", "Token", "warn_unreadable"]

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


def warn_unreadable(reason: str, warned: set[str]) -> None:
    """Warns, once a cache, that an entry's value cannot be built by who knows its key only."""
    reason = reason.removeprefix("stored value is corrupt: ")
    if "Cache.get" not in warned:
        warned.add("Cache.get")
        text = f"Cache.get, lookup and their kind cannot read an entry, so it is a miss for them: {reason}"
        # Where warnings are errors, this one must not take the answer's place.
        with suppress(UnreadableEntry):
            warnings.warn(text, UnreadableEntry, stacklevel=3)
