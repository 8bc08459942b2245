"""The part of `infercache._core` that `fingerprint.rs` registers: a stub only."""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

def _hash_regions(
    paths: Sequence[str],
    regions: Sequence[tuple[int, int, int]],
    progress: Callable[[int], object] | None = None,
    threads: int | None = None,
) -> list[bytes]:
    """Plain BLAKE3 of regions of files: (place of the path, offset, length) in bytes. `progress` is called with the
    bytes done. EOFError with the path where a file is shorter than a region says.
    """

def _hash_arrays(
    arrays: Sequence[NDArray[Any]], progress: Callable[[int], object] | None = None, threads: int | None = None
) -> list[bytes]:
    """Plain BLAKE3 of the elements of contiguous arrays as they lie in memory, by several threads where that pays."""

def _fingerprint_of(document: bytes, /) -> str:
    """The text form of the fingerprint whose canonical document this is."""
