"""The header of a safetensors file, read with distrust: which bytes are which tensor.

    8 bytes   N, little-endian
    N bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, …, "__metadata__": {…}}
    the rest  the tensors' elements, little-endian, in C order, without gaps

As strict as the library: tensors cover the rest of the file exactly, so no byte that a loader would see goes unhashed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, TypeGuard

from infercache.errors import InvalidModel, shown
from infercache.fingerprint.plans import Plan, Sheet, by_content

__all__ = ["BITS", "DTYPES", "index", "plan"]

#: The most that the library accepts.
MOST_HEADER_BYTES = 100_000_000
#: The key specification's dtype; what it has no row for stays as the file names it, in capitals.
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "F4", "F6_E2M3": "F6_E2M3", "F6_E3M2": "F6_E3M2",
}  # fmt: skip
#: Bits of an element.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "F16": 16,
    "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def plan(path: str, file: BinaryIO, size: int) -> Plan:
    """Which regions of the file are to be hashed, and what their digests come to.

    Raises:
        InvalidModel: the file is not what its name says.
    """
    header = _header(path, file, size)
    start, rest = file.tell(), size - file.tell()
    tensors = [_tensor(path, name, entry) for name, entry in header.items() if name != "__metadata__"]
    reached = 0
    for name, _, _, begin, end in sorted(tensors, key=lambda found: found[3:]):
        if begin != reached:
            raise _wrong(path, f"{shown(name)} begins at byte {begin} of the data, where {reached} was expected")
        reached = end
    if reached != rest:
        raise _wrong(path, f"its tensors end at byte {reached} of the data, which has {rest}")

    def sheet(digests: list[str]) -> Sheet:
        return {
            "parameters": [
                [name, dtype, shape, digest]
                for (name, dtype, shape, _, _), digest in zip(tensors, digests, strict=True)
            ]
        }

    return Plan([(start + begin, end - begin) for _, _, _, begin, end in tensors], sheet)


def index(path: str) -> dict[str, str]:
    """Parameter name to file name, as an index file (`….safetensors.index.json`) lists them.

    Raises:
        InvalidModel: it is no such index, or names files outside its folder.
    """
    if os.path.getsize(path) > MOST_HEADER_BYTES:
        raise _wrong(path, f"an index of more than {MOST_HEADER_BYTES:,} bytes is not read")
    with open(path, "rb") as file:
        found = _json(path, file.read(MOST_HEADER_BYTES))
    listed = found.get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise _wrong(path, "an index has a member weight_map of parameter name to file name")
    for name in set(listed.values()):
        if not name.endswith(".safetensors") or os.path.basename(name) != name or "\\" in name or "\0" in name:
            raise _wrong(path, f"it names {shown(name)}, which is no safetensors file beside it")
    return listed


def _header(path: str, file: BinaryIO, size: int) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise _wrong(path, f"its header would have {length:,} bytes, the file has {size:,}")
    if length > MOST_HEADER_BYTES:
        raise _wrong(path, f"its header has {length:,} bytes, of which {MOST_HEADER_BYTES:,} are accepted")
    return _json(path, file.read(length))


def _json(path: str, text: bytes) -> dict[str, Any]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands there twice")
        return found

    try:
        if text[:1] != b"{":
            raise ValueError("it does not begin with {")
        found = json.loads(text.decode("utf-8"), object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"its JSON cannot be read ({error})") from None
    assert isinstance(found, dict)  # noqa: S101 - it begins with {
    return found


def _tensor(path: str, name: str, entry: Any) -> tuple[str, str, list[int], int, int]:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _wrong(path, f"{shown(name)} has the dtype {shown(dtype)}, which is not known")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _wrong(path, f"{shown(name)} has no shape and data_offsets of whole numbers")
    elements = 1
    for length in shape:
        elements *= length
        if elements >= 1 << 64 and 0 not in shape:
            raise _wrong(path, f"{shown(name)} has more elements than a file can hold")
    begin, end = offsets
    if 8 * (end - begin) != elements * BITS[dtype]:
        raise _wrong(path, f"{shown(name)} of {dtype} and shape {shape} does not take the {end - begin} bytes it says")
    return name, DTYPES[dtype], shape, begin, end


def _are_sizes(found: object) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(one) is int and 0 <= one < 1 << 64 for one in found)


def _wrong(path: str, reason: str) -> InvalidModel:
    return by_content(path, "safetensors", reason)
