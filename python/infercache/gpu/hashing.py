"""Launches blake3.cu over CuPy on the caller's stream; see docs/gpu.md."""

from __future__ import annotations

from collections.abc import Sequence

from infercache.gpu.plan import Strided

__all__ = ["HOST_BELOW", "Pending", "enqueue", "enqueue_strided", "fallbacks", "prefers_host"]

# Bytes. Not measured yet.
HOST_BELOW = 256 << 10


def prefers_host(nbytes: int) -> bool:
    """Whether so many bytes are better copied to the host and hashed there."""
    return nbytes < HOST_BELOW


class Pending:
    """Digests that a stream computes."""

    def join(self) -> list[bytes]:
        """The digests, 32 bytes each, in the order of the buffers; waits for the stream, with the interpreter released."""
        raise NotImplementedError

    def done(self) -> bool:
        """Whether `join` would return at once."""
        raise NotImplementedError


def enqueue(buffers: Sequence[tuple[int, int]], *, device: int, stream: int) -> Pending:
    """Begins to hash contiguous buffers (device address, bytes) of `device` on `stream`, a `cudaStream_t`."""
    raise NotImplementedError


def enqueue_strided(tensor: Strided, *, device: int, stream: int) -> Pending:
    """Begins to hash one tensor that does not lie in one piece."""
    raise NotImplementedError


def fallbacks() -> int:
    """How often a device had no memory left for a workspace and the bytes went to the host."""
    raise NotImplementedError
