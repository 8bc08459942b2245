"""Hashes what lies on a device on the host, block by block: where the device has no memory left for hashing.

Two blocks of pinned memory take turns: while the host hashes one, the stream fills the other. So the host needs their
`2 * BLOCK` bytes, whatever the size of a tensor. All of it waits for the stream, so that later work on it is later.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np

from infercache import _core
from infercache.gpu import plan as planning
from infercache.gpu.plan import THREADS, Gather, Sheet, Signs, Strided

__all__ = ["BLOCK", "contiguous", "strided"]

BLOCK = 8 << 20  # bytes, of which two are pinned; a whole number of elements of any size
DEVICE_TO_HOST = 2  # cudaMemcpyKind

#: Has the stream write the next `BLOCK` bytes at most to an address of pinned memory; how many, and 0 at the end.
_Fill: TypeAlias = Callable[[int], int]


class _Turns:
    """Two blocks of pinned memory, after a head of a few bytes that kernels read."""

    def __init__(self, cupy: Any, lane: Any, nbytes: int, head: bytes = b"") -> None:
        self._lane = lane
        self._at = -(-len(head) // planning.ALIGNMENT) * planning.ALIGNMENT
        self._size = -(-min(nbytes, BLOCK) // planning.ALIGNMENT) * planning.ALIGNMENT
        self._memory = cupy.cuda.alloc_pinned_memory(max(self._at + 2 * self._size, 1))
        self._events = [cupy.cuda.Event(disable_timing=True) for _ in range(2)]
        self.address = self._memory.ptr
        ctypes.memmove(self.address, head, len(head))

    def digest(self, fill: _Fill, signs: Signs | None = None) -> bytes:
        """Plain BLAKE3 of what `fill` brings, block after block."""
        hasher = _core._Blake3()
        waiting, turn = 0, 0
        try:
            while size := fill(self._block(turn)):
                self._events[turn].record(self._lane)
                self._add(hasher, 1 - turn, waiting, signs)
                waiting, turn = size, 1 - turn
            self._add(hasher, 1 - turn, waiting, signs)
        except BaseException:
            with suppress(Exception):
                self._lane.synchronize()  # the pinned memory is about to be somebody else's
            raise
        return hasher.digest()

    def _block(self, turn: int) -> int:
        return int(self.address) + self._at + turn * self._size

    def _add(self, hasher: _core._Blake3, turn: int, size: int, signs: Signs | None) -> None:
        if not size:
            return
        self._events[turn].synchronize()  # CuPy releases the interpreter in it
        block = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._block(turn)))
        if signs is not None:
            block[signs.first :: signs.step] ^= 0x80
        hasher.update(block.data)


def contiguous(cupy: Any, lane: Any, buffers: Sequence[tuple[int, int]]) -> list[bytes]:
    """The digests of buffers (device address, bytes), by copies on the stream `lane`, which is current."""
    turns = _Turns(cupy, lane, max(nbytes for _, nbytes in buffers))
    return [
        turns.digest(_copying(cupy, lane, (Sheet(address + at, size, size, 1) for at, size in _cut(nbytes, BLOCK))))
        for address, nbytes in buffers
    ]


def strided(
    cupy: Any, lane: Any, tensor: Strided, kernels: Mapping[str, Any] | None, signs: Signs | None = None
) -> bytes:
    """The digest of a tensor of any layout, through the stream `lane`, which is current.

    Args:
        cupy: the module.
        lane: the stream.
        tensor: where it lies, and how.
        kernels: those of blake3.cu, of which `gather` then writes to pinned memory, which is the device's to write to
            wherever it is the host's; None where there was no memory for their code: then rows are copied one by one.
        signs: those that are to be turned.
    """
    if kernels is None or (signs is not None and not planning.turns(tensor)):
        turns = _Turns(cupy, lane, tensor.nbytes)
        return turns.digest(_copying(cupy, lane, planning.sheets(tensor, BLOCK)), signs)
    gather, head = planning.gathering(tensor, signs)
    turns = _Turns(cupy, lane, tensor.nbytes, head)
    return turns.digest(_gathering(kernels["gather"], turns.address, gather))


def _cut(count: int, most: int) -> Iterator[tuple[int, int]]:
    """Where each part of at most `most` begins, and how many it has."""
    return ((begin, min(most, count - begin)) for begin in range(0, count, most))


def _gathering(kernel: Any, base: int, gather: Gather) -> _Fill:
    """Blocks as `gather` writes them; the layout that it reads stands at `base`."""
    parts = _cut(gather.units, BLOCK // gather.unit)

    def fill(to: int) -> int:
        first, units = next(parts, (0, 0))
        if units:
            arguments = (base, 0, first, units, to - base)
            kernel((planning.gather_blocks(units),), (THREADS,), tuple(map(np.uint64, arguments)))
        return units * gather.unit

    return fill


def _copying(cupy: Any, lane: Any, sheets: Iterator[Sheet]) -> _Fill:
    """Blocks of as many sheets as they have room for, in order."""
    ahead = next(sheets, None)

    def fill(to: int) -> int:
        nonlocal ahead
        filled = 0
        while ahead is not None and filled + ahead.nbytes <= BLOCK:
            _copy(cupy.cuda.runtime, lane.ptr, to + filled, ahead)
            filled += ahead.nbytes
            ahead = next(sheets, None)
        return filled

    return fill


def _copy(runtime: Any, stream: int, to: int, sheet: Sheet) -> None:
    address, width, pitch, height = sheet
    if height == 1:
        runtime.memcpyAsync(to, address, width, DEVICE_TO_HOST, stream)
    else:
        runtime.memcpy2DAsync(to, width, address, pitch, width, height, DEVICE_TO_HOST, stream)
