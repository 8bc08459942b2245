"""Caches that share a server: what most tests of the shared tier begin with. The fixture `pair` makes two of them."""

from __future__ import annotations

from typing import Any

from infercache import Cache, Key

SCOPE = {"model": "m", "version": "1"}
STALENESS = 0.5


def make(url: str, **options: Any) -> Cache:
    """A cache that shares the server at this URL."""
    return Cache("8MB", l2=url, **{"max_staleness": STALENESS, "timeout": "2s", **options})


def key(cache: Cache, question: object = "q") -> Key:
    """A question's key."""
    return cache.key(question, operation="test", **SCOPE)
