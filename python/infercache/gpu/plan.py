"""What is launched to hash buffers of a device, worked out without one: grids, levels of the tree, workspace.

BLAKE3 hashes chunks of 1,024 bytes and joins the chaining values of neighbours until one is left, the root. Pairing
them level by level, an odd last one moving up as it is, gives the specification's tree, whose left subtrees are the
largest powers of two: after k levels every node but the last stands for 2**k chunks. So a block may take any aligned
2**k nodes down to one.

The kernel `chunks` takes a tile of `TILE` chunks down to one chaining value, `merge` as many as `FAN` of them; the last
launch that touches a job writes its digest. All that they read and write besides the input is one workspace:

    digests, 32 bytes a job | chaining values, level by level | a gathered block of a strided input | the table of jobs

Offsets in it are in bytes from its beginning, and multiples of `ALIGNMENT`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infercache.errors import InvalidArgument

__all__ = [
    "DIGEST",
    "FAN",
    "THREADS",
    "TILE",
    "Gather",
    "Launch",
    "Plan",
    "Sheet",
    "Signs",
    "Strided",
    "contiguous",
    "gather_blocks",
    "gathering",
    "sheets",
    "strided",
    "turns",
]

CHUNK = 1024  # bytes; the specification's
DIGEST = 32  # bytes of a digest and of a chaining value
THREADS = 128  # of every block
TILE = THREADS  # chunks that a block takes down to one chaining value
FAN = 2 * THREADS  # chaining values that a block takes down to one
ALIGNMENT = 256  # bytes; what CUDA's own allocations have
UNITS_A_THREAD = 4  # of `gather`
# Bytes of a strided input at a time. They stay in the L2 cache of a large GPU (40 MiB of an A100, 50 of an H100) from
# the kernel that gathers them to the one that hashes them, and give each of 132 multiprocessors two tiles.
BLOCK = 32 << 20

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
MOST_PITCH = 2**31 - 1  # bytes from a row to the next in a copy of several rows; what every device takes
ROOT = 1  # the one block's chaining value is the digest
RELATIVE = 2  # `input` is an offset


class Launch(NamedTuple):
    """A kernel of blake3.cu on a grid of `blocks` times `THREADS`; the workspace's address goes before `arguments`."""

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


class Signs(NamedTuple):
    """Signs that a library has promised to turn and has not turned: the topmost bits of some bytes of each element."""

    first: int  # of the bytes
    step: int  # from one to the next; divides an element's bytes

    @classmethod
    def of(cls, itemsize: int, part: int, *, negated: bool, conjugated: bool) -> Signs | None:
        """Those of elements of `itemsize` bytes, complex ones with parts of `part` bytes; for others both are equal."""
        if negated:
            return cls(part - 1, itemsize if conjugated else part)
        return cls(itemsize - 1, itemsize) if conjugated else None

    @property
    def words(self) -> tuple[int, int]:
        """The bits that are turned in 16 bytes of elements: of the first eight bytes, and of the second."""
        turned = bytes(0x80 if at % self.step == self.first else 0 for at in range(16))
        return int.from_bytes(turned[:8], "little"), int.from_bytes(turned[8:], "little")


class Gather(NamedTuple):
    """What `gather` is told of a tensor."""

    unit: int  # bytes
    units: int


class Sheet(NamedTuple):
    """`height` rows of `width` bytes, `pitch` bytes from one to the next."""

    address: int
    width: int
    pitch: int
    height: int

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.width * self.height


class Strided(NamedTuple):
    """A tensor of any layout."""

    pointer: int  # of the element [0, 0, …]
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes; may be zero or negative
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes of the elements without gaps: what is hashed."""
        return math.prod(self.shape) * self.itemsize

    @property
    def whole(self) -> bool:
        """Whether the elements lie one behind the other; asked of a simplified one."""
        return not self.shape or (len(self.shape) == 1 and self.strides[0] == self.itemsize)

    def simplified(self) -> Strided:
        """The same bytes in the same order: few dimensions, elements as wide as layout and alignment allow."""
        if not self.nbytes:
            return Strided(self.pointer, (0,), (1,), 1)
        dimensions: list[tuple[int, int]] = []
        for extent, stride in zip((*self.shape, self.itemsize), (*self.strides, 1), strict=True):
            if extent == 1:
                continue
            if dimensions and dimensions[-1][1] == extent * stride:
                dimensions[-1] = (dimensions[-1][0] * extent, stride)
            else:
                dimensions.append((extent, stride))
        unit = 1
        while unit < 16 and dimensions and dimensions[-1][1] == unit and dimensions[-1][0] % 2 == 0:
            *outer, (inner, _) = dimensions
            if any(part % (2 * unit) for part in (self.pointer, *(stride for _, stride in outer))):
                break
            unit *= 2
            dimensions = [*outer, (inner // 2, unit)] if inner > 2 else outer
        extents, strides = tuple(extent for extent, _ in dimensions), tuple(stride for _, stride in dimensions)
        return Strided(self.pointer, extents, strides, unit)


class _Drawing:
    """A plan while it is made: places in the workspace, launches, and the table of their jobs."""

    def __init__(self, digests: int) -> None:
        self.digests = digests
        self.end = 0
        self.rows: list[npt.NDArray[Any]] = []
        self.count = 0
        # The first argument is a row of the table until that has a place.
        self.launches: list[tuple[str, int, tuple[int, ...]]] = []
        self.take(digests * DIGEST)

    def take(self, size: int) -> int:
        """The offset of `size` bytes of the workspace."""
        begin = self.end
        self.end = _up(begin + size, ALIGNMENT) * ALIGNMENT
        return begin

    def launch(self, kernel: str, blocks: npt.NDArray[np.int64], **columns: Any) -> None:
        """A launch of `blocks[i]` blocks for the i-th job."""
        rows = np.zeros(len(blocks), JOB)
        rows["first_block"] = np.cumsum(blocks) - blocks
        for name, column in columns.items():
            rows[name] = column
        self.rows.append(rows)
        self.launches.append((kernel, int(blocks.sum()), (self.count, len(rows))))
        self.count += len(rows)

    def merges(self, nodes: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> None:
        """The launches that take each job's `nodes[i]` chaining values at `places[i]` to its digest."""
        while len(left := np.flatnonzero(nodes > 1)):
            blocks = _up(nodes[left], FAN)
            outputs = self.outputs(left, blocks)
            flags = np.where(blocks == 1, ROOT, 0) | RELATIVE
            self.launch("merge", blocks, input=places[left], length=nodes[left], output=outputs, flags=flags)
            nodes, places = nodes.copy(), places.copy()
            nodes[left], places[left] = blocks, outputs

    def outputs(self, jobs: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where jobs' blocks write: the only one of a job its digest, others one behind the other."""
        sizes = np.where(blocks == 1, 0, blocks * DIGEST)
        ends = np.cumsum(sizes)
        places: npt.NDArray[np.int64] = np.where(blocks == 1, jobs * DIGEST, self.take(int(ends[-1])) + ends - sizes)
        return places

    def finished(self, layout: bytes = b"") -> Plan:
        """The plan; `layout` is what `gather` reads."""
        table = b"".join(rows.tobytes() for rows in self.rows)
        at = self.take(len(table) + len(layout))
        launches = []
        for kernel, blocks, (first, *others) in self.launches:
            place = at + len(table) if kernel == "gather" else at + first * JOB.itemsize
            launches.append(Launch(kernel, blocks, (place, *others)))
        return Plan(self.digests, table + layout, at, self.end, tuple(launches))


def _up(value: Any, divisor: int) -> Any:
    return -(-value // divisor)


def tiles_of(lengths: npt.NDArray[np.int64], tile: int = TILE) -> npt.NDArray[np.int64]:
    """Tiles of inputs of so many bytes; an empty one has one chunk too."""
    counts: npt.NDArray[np.int64] = np.maximum(_up(lengths, CHUNK * tile), 1)
    return counts


def contiguous(buffers: Sequence[tuple[int, int]]) -> Plan:
    """The launches that hash buffers (address, bytes), all of them side by side at every level of their trees.

    Args:
        buffers: at least one; an address may be anything where there are no bytes.

    Raises:
        InvalidArgument: a negative length.
    """
    lengths = np.array([length for _, length in buffers], np.int64)
    if lengths.min() < 0:
        raise InvalidArgument(f"the buffer {int(lengths.argmin())} has {lengths.min()} bytes")
    tiles = tiles_of(lengths)
    drawing = _Drawing(len(buffers))
    outputs = drawing.outputs(np.arange(len(buffers)), tiles)
    addresses = np.array([address for address, _ in buffers], np.uint64)
    flags = np.where(tiles == 1, ROOT, 0)
    drawing.launch("chunks", tiles, input=addresses, length=lengths, output=outputs, flags=flags)
    drawing.merges(tiles, outputs)
    return drawing.finished()


def strided(tensor: Strided, *, block: int = BLOCK, signs: Signs | None = None) -> Plan:
    """The launches that gather a strided tensor, `block` bytes at a time in one place, and hash each block.

    Args:
        tensor: of any layout; one without gaps is hashed where it lies, unless its signs are turned.
        block: a multiple of a tile's bytes.
        signs: those that are turned, of a tensor of which `gather` takes whole elements; see `turns`.
    """
    simple = tensor.simplified()
    if simple.whole and (signs is None or not simple.nbytes):
        return contiguous([(simple.pointer, simple.nbytes)])
    nbytes = simple.nbytes
    tiles = tiles_of(np.array([nbytes], np.int64))
    drawing = _Drawing(1)
    outputs = drawing.outputs(np.arange(1), tiles)
    gathered = drawing.take(min(nbytes, block))
    flags = RELATIVE | (ROOT if tiles[0] == 1 else 0)
    for begin in range(0, nbytes, block):
        size = min(block, nbytes - begin)
        units = size // simple.itemsize
        arguments = (0, begin // simple.itemsize, units, gathered)
        drawing.launches.append(("gather", gather_blocks(units), arguments))
        drawing.launch(
            "chunks",
            tiles_of(np.array([size], np.int64)),
            input=gathered,
            length=size,
            counter=begin // CHUNK,
            output=outputs + begin // (CHUNK * TILE) * DIGEST,
            flags=flags,
        )
    drawing.merges(tiles, outputs)
    return drawing.finished(_layout(simple, signs))


def turns(tensor: Strided) -> bool:
    """Whether `gather` takes whole elements together, whose signs it can turn: all are, but unaligned ones."""
    return tensor.simplified().itemsize >= tensor.itemsize


def _layout(simple: Strided, signs: Signs | None) -> bytes:
    """What `gather` reads of a simplified tensor: blake3.cu's `Layout`, extents and strides."""
    turned = signs.words if signs is not None else (0, 0)
    words = (simple.pointer, simple.itemsize, len(simple.shape), *turned, *simple.shape, *simple.strides)
    return b"".join((word % 2**64).to_bytes(8, "little") for word in words)


def gathering(tensor: Strided, signs: Signs | None = None) -> tuple[Gather, bytes]:
    """How `gather` alone takes a tensor together, and the layout that it reads; `signs` as for `strided`."""
    simple = tensor.simplified()
    return Gather(simple.itemsize, simple.nbytes // simple.itemsize), _layout(simple, signs)


def gather_blocks(units: int) -> int:
    """The grid that gathers so many units."""
    blocks: int = _up(units, THREADS * UNITS_A_THREAD)
    return blocks


def sheets(tensor: Strided, most: int) -> Iterator[Sheet]:
    """What copies without a kernel take together: a tensor's elements in C order, whole ones, `most` bytes at a time.

    Where neighbouring rows lie in no order that a copy of several rows knows, each row is one by itself, and where
    elements do not lie side by side, each element is a row: that many copies are slow.
    """
    simple = tensor.simplified()
    if not simple.nbytes:
        return
    width, axes = simple.itemsize, [*zip(simple.shape, simple.strides, strict=True)]
    if axes and axes[-1][1] == width:
        width *= axes.pop()[0]
    rows, pitch = axes.pop() if axes else (1, width)
    together = most // width if width <= pitch <= MOST_PITCH else 0
    for index in np.ndindex(*(extent for extent, _ in axes)):
        begin = simple.pointer + sum(at * stride for at, (_, stride) in zip(index, axes, strict=True))
        if together:
            for row in range(0, rows, together):
                yield Sheet(begin + row * pitch, width, pitch, min(together, rows - row))
            continue
        for row in range(rows):
            for at in range(0, width, most):
                part = min(most, width - at)
                yield Sheet(begin + row * pitch + at, part, part, 1)
