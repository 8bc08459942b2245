"""The header of a GGUF file, read with distrust: which bytes are which metadata value and which tensor.

    magic "GGUF", version u32 (2 or 3), tensors u64, metadata values u64
    each value    key (u64 length, UTF-8), type u32, value
    each tensor   name (u64 length, UTF-8), axes u32, each axis u64, type u32, offset u64 into the data
    the data      from the next multiple of the alignment on

The values of `split.*` say how a model is cut into files and do not count. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from infercache.errors import InvalidModel, shown
from infercache.fingerprint.plans import Plan, Sheet, by_content

__all__ = ["TYPES", "plan"]

#: ggml's number of a tensor type: elements of a block, and bytes of one. Q8_1 (9), on whose size ggml and its own
#: Python package differ, is made while a model runs and stands in no file.
TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
#: Bytes of a metadata value by its type; 8 is text, 9 an array.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9
_INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_MOST_AXES = 8
_MOST_NAME = 65_535
_DEEPEST = 8
_MOST_ALIGNMENT = 1 << 20


class _Reader:
    """The file from its beginning, with a bound on everything that is read."""

    def __init__(self, path: str, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size = path, file, size
        self.at = 0

    def take(self, count: int) -> bytes:
        found = self._file.read(count) if count <= self._size - self.at else b""
        if len(found) != count:
            raise self.wrong(f"it ends within its header, at byte {self._size:,}")
        self.at += count
        return found

    def skip(self, count: int) -> None:
        if count > self._size - self.at:
            raise self.wrong(f"a value at byte {self.at:,} would have {count:,} bytes, beyond the end")
        self._file.seek(count, 1)
        self.at += count

    def number(self, form: str) -> int:
        found = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return int(found)

    def name(self) -> str:
        length = self.number("<Q")
        if length > _MOST_NAME:
            raise self.wrong(f"a name at byte {self.at:,} would have {length:,} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"the name before byte {self.at:,} is not UTF-8") from None

    def skip_value(self, kind: int, depth: int = 0) -> None:
        if kind in _SCALARS:
            self.skip(_SCALARS[kind])
        elif kind == _TEXT:
            self.skip(self.number("<Q"))
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _SCALARS:
                self.skip(_SCALARS[inner] * count)
                return
            # Each text or array takes at least its length: a count beyond that is refused before it is walked.
            if 8 * count > self._size - self.at:
                raise self.wrong(f"an array at byte {self.at:,} would have {count:,} items")
            for _ in range(count):
                self.skip_value(inner, depth + 1)
        else:
            raise self.wrong(f"a value at byte {self.at:,} has the type {kind}, which is not known")

    def wrong(self, reason: str) -> InvalidModel:
        return by_content(self._path, "GGUF", reason)


def plan(path: str, file: BinaryIO, size: int) -> Plan:
    """Which regions of the file are to be hashed, and what their digests come to.

    Raises:
        InvalidModel: the file is not what its name says.
    """
    reader = _Reader(path, file, size)
    if reader.take(4) != b"GGUF":
        raise reader.wrong("it does not begin with GGUF")
    version = reader.number("<I")
    if version not in (2, 3):
        big = version & 0xFFFF == 0
        raise reader.wrong("it is big-endian" if big else f"version {version} is not known")
    count, values = reader.number("<Q"), reader.number("<Q")
    # A tensor's entry takes at least 24 bytes, a value's 13: absurd counts end here.
    if 24 * count + 13 * values > size - reader.at:
        raise reader.wrong(f"{count:,} tensors and {values:,} metadata values do not fit into {size:,} bytes")
    metadata, numbers = _metadata(reader, values)
    alignment = numbers.get("general.alignment", 32)
    if not 1 <= alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
        raise reader.wrong(f"general.alignment is {alignment}, no power of two")
    tensors = _tensors(reader, count)
    data = -(-reader.at // alignment) * alignment
    regions = list(metadata.values())
    reached = 0
    for name, (_, _, offset, length) in sorted(tensors.items(), key=lambda found: found[1][2:]):
        if offset % alignment or offset < reached:
            raise reader.wrong(f"{shown(name)} at byte {offset:,} of the data overlaps another, or is not aligned")
        if length and length > size - data - offset:
            raise reader.wrong(f"{shown(name)} ends beyond the end of the file")
        reached = offset + length
    regions += [(data + offset, length) if length else (0, 0) for _, _, offset, length in tensors.values()]
    split = [numbers.get("split.no", 0), numbers.get("split.count", 0)]

    def sheet(digests: list[str]) -> Sheet:
        its = iter(digests)
        return {
            "split": split,
            "metadata": [[key, next(its)] for key in metadata],
            "tensors": [[name, kind, shape, next(its)] for name, (kind, shape, _, _) in tensors.items()],
        }

    return Plan(regions, sheet)


def _metadata(reader: _Reader, values: int) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Offset and length of each value that counts, its type included, and the numbers that say where things are."""
    regions: dict[str, tuple[int, int]] = {}
    numbers: dict[str, int] = {}
    seen = set()
    for _ in range(values):
        key = reader.name()
        if key in seen:
            raise reader.wrong(f"the metadata {shown(key)} stands there twice")
        seen.add(key)
        begin, kind = reader.at, reader.number("<I")
        if key in ("general.alignment", "split.no", "split.count"):
            if kind not in _INTEGERS:
                raise reader.wrong(f"{key} is no whole number")
            numbers[key] = reader.number(_INTEGERS[kind])
        else:
            reader.skip_value(kind)
        if not key.startswith("split."):
            regions[key] = (begin, reader.at - begin)
    return regions, numbers


def _tensors(reader: _Reader, count: int) -> dict[str, tuple[int, list[int], int, int]]:
    """Type, shape, offset and bytes of each tensor."""
    found: dict[str, tuple[int, list[int], int, int]] = {}
    for _ in range(count):
        name, axes = reader.name(), reader.number("<I")
        if name in found or axes > _MOST_AXES:
            raise reader.wrong(f"the tensor {shown(name)} stands there twice, or has {axes} axes")
        shape = [reader.number("<Q") for _ in range(axes)]
        kind, offset = reader.number("<I"), reader.number("<Q")
        if kind not in TYPES:
            raise reader.wrong(f"{shown(name)} has the type {kind}, which is not known")
        block, its_bytes = TYPES[kind]
        elements = 1
        for length in shape:
            elements *= length
        if (shape[0] if shape else 1) % block:
            raise reader.wrong(f"{shown(name)} of shape {shape} is not made of blocks of {block}")
        found[name] = (kind, shape, offset, elements // block * its_bytes)
    return found
