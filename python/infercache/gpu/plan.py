"""What is launched to hash buffers of a device, worked out without one: grids, levels of the tree, workspace.

BLAKE3 hashes chunks of 1,024 bytes and joins the chaining values of neighbours until one is left, the root. Pairing them
level by level, an odd last one moving up as it is, gives the specification's tree, whose left subtrees are the largest powers of
two: after k levels every node but the last stands for 2**k chunks. So a block may take any aligned 2**k nodes down to one.

The kernel `chunks` takes a tile of `TILE` chunks down to one chaining value, `merge` as many as `FAN` of them; the last
launch that touches a job writes its digest. All that they read and write besides the input is one workspace:

    digests, 32 bytes a job | the table of jobs | chaining values, level by level | a gathered block of a strided input

Offsets in it are in bytes from its beginning, and multiples of `ALIGNMENT`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["DIGEST", "FAN", "THREADS", "TILE", "Launch", "Plan", "Strided", "contiguous", "strided"]

CHUNK = 1024  # bytes; the specification's
DIGEST = 32  # bytes of a digest and of a chaining value
THREADS = 128  # of every block
TILE = THREADS  # chunks that a block takes down to one chaining value
FAN = 2 * THREADS  # chaining values that a block takes down to one
ALIGNMENT = 256  # bytes; what CUDA's own allocations have
UNITS_A_THREAD = 4  # of `gather`
# Of a strided input at a time. It stays in the L2 cache of a large GPU (40 MiB of an A100, 50 of an H100) between the kernel
# that gathers it and the one that hashes it, and gives each of 132 multiprocessors one tile.
BLOCK = 16 << 20

# blake3.cu's `Job`.
JOB = np.dtype(
    [
        ("input", "<u8"),  # an address, or an offset in the workspace
        ("length", "<u8"),  # `chunks`: bytes; `merge`: chaining values
        ("counter", "<u8"),  # `chunks`: the number of the first chunk
        ("first_block", "<u8"),  # of the grid
        ("output", "<u8"),  # an offset in the workspace: the first block's 32 bytes, the next block's behind them
        ("flags", "<u8"),
    ]
)
ROOT = 1  # the one block's chaining value is the digest
RELATIVE = 2  # `input` is an offset


class Launch(NamedTuple):
    """One kernel of blake3.cu on a grid of `blocks` times `THREADS`; the workspace's address goes before `arguments`."""

    kernel: str
    blocks: int
    arguments: tuple[int, ...]  # 64-bit unsigned


class Plan(NamedTuple):
    """Launches in order, over one workspace."""

    digests: int
    table: bytes  # goes to `table_at` before the first launch
    table_at: int
    workspace: int  # bytes
    launches: tuple[Launch, ...]


class Strided(NamedTuple):
    """A tensor that does not lie in one piece, in elements of a power of two bytes, at most 16."""

    pointer: int  # of the element [0, 0, …]
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes; may be zero or negative
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes of the elements without gaps: what is hashed."""
        return math.prod(self.shape) * self.itemsize

    def simplified(self) -> Strided:
        """The same elements in the same order, with as few dimensions and as wide elements as their layout allows."""
        dimensions: list[tuple[int, int]] = []
        for extent, stride in zip(self.shape, self.strides, strict=True):
            if extent == 1:
                continue
            if dimensions and dimensions[-1][1] == extent * stride:
                dimensions[-1] = (dimensions[-1][0] * extent, stride)
            else:
                dimensions.append((extent, stride))
        itemsize = self.itemsize
        while itemsize < 16 and dimensions and dimensions[-1][1] == itemsize and dimensions[-1][0] % 2 == 0:
            outer = dimensions[:-1]
            if any(part % (2 * itemsize) for part in (self.pointer, *(stride for _, stride in outer))):
                break
            itemsize *= 2
            inner = dimensions[-1][0] // 2
            dimensions = [*outer, (inner, itemsize)] if inner > 1 else outer
        return Strided(
            self.pointer, tuple(extent for extent, _ in dimensions), tuple(stride for _, stride in dimensions), itemsize
        )


class _Layout:
    """Places in a workspace, handed out one behind the other."""

    def __init__(self) -> None:
        self.end = 0

    def take(self, size: int) -> int:
        """The offset of `size` bytes."""
        begin = self.end
        self.end = -(-(begin + size) // ALIGNMENT) * ALIGNMENT
        return begin


class _Tables:
    """The jobs of the launches, launch after launch, in one table; each launch's offset in it."""

    def __init__(self) -> None:
        self.rows: list[npt.NDArray[Any]] = []
        self.launches: list[tuple[str, int, int, int]] = []
        self.count = 0

    def add(self, kernel: str, blocks: npt.NDArray[np.uint64], **columns: Any) -> None:
        """A launch of `blocks[i]` blocks for the i-th job."""
        rows = np.zeros(len(blocks), JOB)
        rows["first_block"] = np.cumsum(blocks) - blocks
        for name, column in columns.items():
            rows[name] = column
        self.rows.append(rows)
        self.launches.append((kernel, int(blocks.sum()), self.count, len(rows)))
        self.count += len(rows)

    def bytes(self) -> bytes:
        """The table as blake3.cu reads it."""
        return b"".join(rows.tobytes() for rows in self.rows)


def _up(value: Any, divisor: int) -> Any:
    return -(-value // divisor)


def tiles_of(lengths: npt.NDArray[np.int64], tile: int = TILE) -> npt.NDArray[np.int64]:
    """Tiles of inputs of so many bytes; an empty one has one chunk too."""
    counts: npt.NDArray[np.int64] = np.maximum(_up(_up(lengths, CHUNK), tile), 1)
    return counts


def _merges(tables: _Tables, layout: _Layout, nodes: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> None:
    """Adds the launches that take each job's `nodes[i]` chaining values at `places[i]` to its digest."""
    while True:
        left = np.flatnonzero(nodes > 1)
        if not len(left):
            return
        blocks = _up(nodes[left], FAN)
        last = blocks == 1
        ends = np.cumsum(blocks * DIGEST)
        begin = 0 if last.all() else layout.take(int(ends[-1]))
        outputs = np.where(last, left * DIGEST, begin + ends - blocks * DIGEST)
        tables.add(
            "merge",
            blocks.astype(np.uint64),
            input=places[left],
            length=nodes[left],
            output=outputs,
            flags=np.where(last, ROOT, 0) | RELATIVE,
        )
        nodes, places = nodes.copy(), places.copy()
        nodes[left], places[left] = blocks, outputs


def _planned(tables: _Tables, layout: _Layout, digests: int, table_at: int, extra: bytes = b"") -> Plan:
    launches = tuple(
        Launch(kernel, blocks, (table_at + first * JOB.itemsize, count))
        for kernel, blocks, first, count in tables.launches
    )
    return Plan(digests, tables.bytes() + extra, table_at, layout.end, launches)


def levels_of(tiles: int) -> int:
    """Launches of `merge` that take `tiles` chaining values to one."""
    levels = 0
    while tiles > 1:
        tiles, levels = _up(tiles, FAN), levels + 1
    return levels


def contiguous(buffers: Sequence[tuple[int, int]], tile: int = TILE) -> Plan:
    """The launches that hash buffers (address, bytes), all of them side by side at every level.

    Args:
        buffers: at least one; an address may be anything where there are no bytes.
        tile: chunks of a block of `chunks`, as blake3.cu was compiled.
    """
    addresses = np.array([address for address, _ in buffers], np.uint64)
    lengths = np.array([length for _, length in buffers], np.int64)
    tiles = tiles_of(lengths, tile)
    single = tiles == 1
    layout, tables = _Layout(), _Tables()
    layout.take(len(buffers) * DIGEST)
    rows = sum(int(np.count_nonzero([levels_of(int(t)) > n for t in tiles])) for n in range(levels_of(int(tiles.max()))))
    table_at = layout.take((len(buffers) + rows) * JOB.itemsize)
    ends = np.cumsum(np.where(single, 0, tiles * DIGEST))
    begin = layout.take(int(ends[-1]))
    places = np.where(single, np.arange(len(buffers)) * DIGEST, begin + ends - tiles * DIGEST)
    tables.add(
        "chunks",
        tiles.astype(np.uint64),
        input=addresses,
        length=lengths,
        output=places,
        flags=np.where(single, ROOT, 0),
    )
    _merges(tables, layout, tiles, places)
    return _planned(tables, layout, len(buffers), table_at)
