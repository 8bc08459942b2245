"""Which other files an ONNX model keeps its weights in: all that is read of the format.

An ONNX file counts by its bytes: its parameters cannot be told from the graph that uses them by name alone. But weights
of more than 2 GB lie in other files, which the tensors name (`external_data`), and those have to count too. They are
found by walking the protocol buffer down to the tensors, wherever the schema has any, without making objects of it.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from infercache.errors import InvalidModel, shown
from infercache.fingerprint.plans import by_content

__all__ = ["SCHEMA", "external"]

#: Message to field number to the message there, for every way that leads to a tensor (onnx.proto).
SCHEMA: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto", 22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}  # fmt: skip
_DATA_LOCATION, _EXTERNAL = 14, 1
_DEEPEST = 100  # as deep as the library parses
_LONGEST_LOCATION = 4096


class _Walk:
    """The file, field by field."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self.found: set[str] = set()

    def message(self, kind: str, end: int, depth: int = 0) -> None:
        """Everything in a message that ends at byte `end`."""
        if depth > _DEEPEST:
            raise self.wrong("it nests too deep")
        inside = SCHEMA[kind]
        locations: list[str] = []
        is_external = False
        while (at := self._file.tell()) < end:
            number, wire = divmod(self.varint(end), 8)
            if wire == 0:
                value = self.varint(end)
                if kind == "TensorProto" and number == _DATA_LOCATION:
                    is_external = value == _EXTERNAL
                continue
            length = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                length = self.varint(end)
            if length is None or number == 0 or length > end - self._file.tell():
                raise self.wrong(f"the field at byte {at:,} is malformed")
            stop = self._file.tell() + length
            below = inside.get(number) if wire == 2 else None
            if below == "StringStringEntryProto":
                locations += self.entry(stop)
            elif below is not None:
                self.message(below, stop, depth + 1)
            self._file.seek(stop)
        if is_external:
            self.found.update(locations)

    def entry(self, end: int) -> list[str]:
        """The location, if that is what this entry of external_data holds."""
        texts = {1: b"", 2: b""}
        while self._file.tell() < end:
            number, wire = divmod(self.varint(end), 8)
            length = self.varint(end) if wire == 2 else -1
            if not 0 <= length <= min(end - self._file.tell(), _LONGEST_LOCATION):
                raise self.wrong(f"the external data at byte {self._file.tell():,} is malformed")
            texts[number] = self._file.read(length)
        if texts[1] != b"location":
            return []
        try:
            return [texts[2].decode("utf-8")]
        except UnicodeDecodeError:
            raise self.wrong("a location of external data is not UTF-8") from None

    def varint(self, end: int) -> int:
        """A number of at most 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._file.read(1)
            if not byte or self._file.tell() > end:
                raise self.wrong("it ends within a field")
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value
        raise self.wrong(f"the number before byte {self._file.tell():,} is too long")

    def wrong(self, reason: str) -> InvalidModel:
        return by_content(self._path, "ONNX", reason)


def external(path: str, file: BinaryIO, size: int) -> list[str]:
    """The files, relative to the model's folder, that its tensors lie in, sorted.

    Raises:
        InvalidModel: the file is not what its name says, or names a file outside its folder.
    """
    walk = _Walk(path, file)
    walk.message("ModelProto", size)
    for name in walk.found:
        parts = name.replace("\\", "/").split("/")
        if not name or os.path.isabs(name) or ".." in parts or "\0" in name or os.path.splitdrive(name)[0]:
            raise walk.wrong(f"its external data {shown(name)} lies outside its folder, or its name says so")
    return sorted(walk.found)
