"""What look-ups and purges return: values with what is known of them, and moments of the logical clock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from infercache.errors import InvalidArgument, shown

__all__ = ["Lookup", "Stamp", "Token"]

T = TypeVar("T")


_TOKEN = re.compile(r"ict1:([0-9a-f]{32}):(0|[1-9][0-9]{0,14})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """A moment of a deployment's logical clock, which every process of it understands: what `invalidate` returns.

    Reads with `min_token=token` know of every purge up to it, in whatever process they are. `str(token)` is its text
    form, `Token.parse` the way back.

    Attributes:
        epoch: 16 bytes that name the authority's epoch.
        lsn: the number of the purge within it.
    """

    epoch: bytes
    lsn: int

    def __str__(self) -> str:
        return f"ict1:{self.epoch.hex()}:{self.lsn}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """The token of a text form.

        Raises:
            InvalidArgument: it is none.
        """
        found = _TOKEN.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidArgument(
                f"{shown(text)} is no token: its form is 'ict1:', 32 hexadecimal digits, ':', a number"
            )
        return cls(bytes.fromhex(found[1]), int(found[2]))


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
