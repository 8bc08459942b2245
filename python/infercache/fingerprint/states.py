"""The document of a state dict, whose tensors are hashed many at a time: by all threads, or by a launch on a device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from infercache import _core
from infercache.errors import UnsupportedInput, is_encodable
from infercache.fingerprint.documents import members
from infercache.progress import Wish, told

if TYPE_CHECKING:
    from infercache.gpu.tensors import DeviceTensor

__all__ = ["document"]

#: Mappings that are walked here, entry by entry, so that progress shows; what nests deeper goes at once.
_WALKED = 4
#: Tensors, and bytes of them, that are hashed together: a mapping that reads its tensors when it is asked for them is
#: never in memory as a whole, and a launch needs 48 bytes of table and 32 of digest for each.
MOST_TENSORS = 4096
MOST_BYTES = 1 << 30

#: A value's document, or a mapping's path and the members of one.
_Node: TypeAlias = "bytearray | tuple[str, list[tuple[str, _Node]]]"


class _Hole(NamedTuple):
    """Where the digits of a tensor's digest are missing."""

    document: bytearray
    place: int


class _Opened:
    """Documents whose tensors are yet to be hashed."""

    def __init__(self, tell: Callable[[int], None], total: int) -> None:
        self._tell = tell
        self._total = total
        self._done = 0
        self._host: list[tuple[_Hole, np.ndarray[Any, Any]]] = []
        self._device: list[tuple[_Hole, DeviceTensor]] = []
        self._bytes = 0

    def add(self, value: Any, path: str) -> bytearray:
        """The document of a value, whole after `flush`."""
        try:
            document, holes = _core._open_document(value)
        except UnsupportedInput as error:
            reason = str(error)
            if reason.startswith("input"):
                raise UnsupportedInput(f"{path}{reason.removeprefix('input')}") from error.__cause__
            raise UnsupportedInput(f"{path}: {reason}") from error.__cause__
        for place, tensor in holes:
            hole = _Hole(document, place)
            if isinstance(tensor, np.ndarray):
                self._host.append((hole, tensor))
            else:
                self._device.append((hole, tensor))
            self._bytes += tensor.nbytes
        if not holes:
            self._count(bytes_of(value))
        if self._bytes >= MOST_BYTES or len(self._host) + len(self._device) >= MOST_TENSORS:
            self.flush()
        return document

    def flush(self) -> None:
        """Hashes what waits, and fills it in."""
        host, device, waiting = self._host, self._device, self._bytes
        self._host, self._device, self._bytes = [], [], 0
        begun = None
        if device:
            from infercache.gpu import digests

            begun = digests.begin([tensor for _, tensor in device])  # while the host hashes its own
        if host:
            _fill(host, _core._hash_arrays([array for _, array in host], self._report))
        if begun is not None:
            _fill(device, begun.join())
        self._count(waiting)

    def _report(self, done: int) -> None:
        self._tell(min(self._done + done, self._total))

    def _count(self, more: int) -> None:
        self._done += more
        self._report(0)


def _fill(holes: list[tuple[_Hole, Any]], digests: list[bytes]) -> None:
    for ((document, place), _), digest in zip(holes, digests, strict=True):
        document[place : place + 64] = digest.hex().encode()


def document(state: Mapping[Any, Any], progress: Wish) -> bytes:
    """The document of a state dict.

    Raises:
        UnsupportedInput: a value that has no canonical form; the text leads to it.
        DeviceError: a tensor lies on a device that cannot be used.
    """
    total = bytes_of(state)
    with told(progress, "fingerprint", total) as tell:
        opened = _Opened(tell, total)
        node = _walked(state, "state_dict", 1, opened)
        opened.flush()
        return b'{"parameters":' + _joined(node) + b"}"


def _walked(state: Mapping[Any, Any], path: str, depth: int, opened: _Opened) -> _Node:
    if not all(type(name) is str and is_encodable(name) for name in state):
        return opened.add(dict(state), path)  # `$map`, Enum members, lone surrogates: one place knows the rules
    found: list[tuple[str, _Node]] = []
    for name, value in state.items():
        inside = f"{path}[{name!r}]"
        if depth < _WALKED and type(value) in (dict, OrderedDict):
            found.append((name, _walked(value, inside, depth + 1, opened)))
        else:
            found.append((name, opened.add(value, inside)))
    return path, found


def _joined(node: _Node) -> bytes | bytearray:
    if isinstance(node, bytearray):
        return node
    path, found = node
    return members(((name, _joined(inside)) for name, inside in found), path)


def bytes_of(value: Any, depth: int = 0) -> int:
    """Bytes of the tensors of a state dict's value, as far as it says them: for progress alone."""
    if isinstance(value, Mapping):
        return sum(bytes_of(inside, depth + 1) for inside in value.values()) if depth < 2 * _WALKED else 0
    found = getattr(value, "nbytes", 0)
    return found if isinstance(found, int) else 0
