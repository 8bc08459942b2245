"""Whole answers as they are kept: the headers worth replaying, the body, and where a stream's pieces ended.

    "icw1"  age (u32, seconds)  seconds (f64)  headers (u16)  pieces (u32)
    for each header:  length of its name (u16)  length of its value (u32)  name  value
    for each piece:   length (u32)
    the body

All numbers little-endian. Without pieces the body is no stream. Another magic is another format: what is not understood
is a miss.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from infercache.edge.exchange import Headers, Pair

__all__ = ["FORMAT", "Record", "Replay", "worth_replaying"]

#: Part of keys, so that gateways of two formats that share a tier do not give each other what they cannot read.
FORMAT = "icw1"
_MAGIC = FORMAT.encode()
_HEAD = struct.Struct("<4sIdHI")
_FIELD = struct.Struct("<HI")

#: Headers of an answer that say something about it, or to which origins it may be shown (the origin that asked is part
#: of the question). All others are of the exchange that it came by: who was asked, when, what the caller may still ask.
_WORTH = frozenset(
    {
        *(b"content-type", b"content-language", b"content-disposition", b"cache-control", b"vary"),
        *(b"surrogate-key", b"cache-tag", b"cache-groups", b"openai-model", b"openai-version"),
        *(b"access-control-allow-origin", b"access-control-allow-credentials", b"access-control-expose-headers"),
    }
)


def worth_replaying(headers: Iterable[Pair], also: Sequence[bytes] = ()) -> Headers:
    """Those of an answer's headers that a hit has, too. `also`: names beside the usual ones."""
    return Headers([pair for pair in headers if pair[0] in _WORTH or pair[0] in also])


@dataclass(frozen=True, slots=True)
class Record:
    """A whole answer of status 200.

    Attributes:
        headers: those that are replayed.
        body: all of it.
        sizes: of a stream, the lengths of its pieces in bytes; None: it is none.
        age: how many seconds old it came.
        seconds: how long the upstream took.
    """

    headers: Headers
    body: bytes
    sizes: Sequence[int] | None = None
    age: int = 0
    seconds: float = 0.0

    def encode(self) -> bytes:
        """Its bytes."""
        sizes = self.sizes or ()
        parts = [_HEAD.pack(_MAGIC, min(self.age, (1 << 32) - 1), self.seconds, len(self.headers), len(sizes))]
        for name, value in self.headers:
            parts += [_FIELD.pack(len(name), len(value)), name, value]
        parts += [struct.pack(f"<{len(sizes)}I", *sizes), self.body]
        return b"".join(parts)

    @classmethod
    def decode(cls, kept: object) -> Record | None:
        """Of bytes that `encode` made; None: they are something else."""
        if not isinstance(kept, bytes) or len(kept) < _HEAD.size:
            return None
        magic, age, seconds, fields, pieces = _HEAD.unpack_from(kept)
        if magic != _MAGIC:
            return None
        at, headers = _HEAD.size, []
        try:
            for _ in range(fields):
                name, value = _FIELD.unpack_from(kept, at)
                at += _FIELD.size
                headers.append((kept[at : at + name], kept[at + name : at + name + value]))
                at += name + value
            if at + 4 * pieces > len(kept):
                return None
            sizes = struct.unpack_from(f"<{pieces}I", kept, at)
        except struct.error:
            return None
        body = kept[at + 4 * pieces :]
        if pieces and sum(sizes) != len(body):
            return None
        return cls(Headers(headers), body, sizes or None, age, seconds)


class Replay:
    """Iterates over the pieces of a recorded stream."""

    __slots__ = ("_at", "_body", "_sizes")

    def __init__(self, record: Record) -> None:
        self._body = record.body
        self._sizes = iter(record.sizes or ())
        self._at = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        size = next(self._sizes, None)
        if size is None:
            raise StopAsyncIteration
        piece = self._body[self._at : self._at + size]
        self._at += size
        return piece
