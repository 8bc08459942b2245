"""Digests of device tensors, begun when a key is formed and joined when its bytes are asked for.

All tensors of a document, or of a batch call's documents, that lie on one device and stream go in one launch with one
copy back (`hashing.enqueue`). Strided ones are made contiguous before by their own library, on the stream; large ones,
and those for which there is no memory, are gathered block by block by the kernels (`hashing.enqueue_strided`). What is
so small that the host is faster is copied to pinned memory on the stream, and hashed by who asks.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from infercache import _core
from infercache.errors import DeviceError
from infercache.gpu import hashing
from infercache.gpu.plan import Strided

if TYPE_CHECKING:
    from infercache.gpu.tensors import DeviceTensor

__all__ = ["Digests", "begin"]

#: Bytes of a strided tensor up to which its library makes a contiguous copy, so that it goes in one launch with the
#: others. Above, a launch of its own costs nothing beside the work, and a copy too much memory.
COMPACT_UP_TO = 16 << 20

_DEVICE_TO_HOST = 2  # cudaMemcpyKind


class _Joinable(Protocol):
    def join(self) -> list[bytes]: ...


class Digests:
    """Digests that devices compute, 32 bytes each, in the order of the tensors. Any thread may join, and several."""

    __slots__ = ("_found", "_kept", "_lock", "_parts", "_process", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        #: Which tensors' digests each brings.
        self._parts: list[tuple[list[int], _Joinable]] = []
        #: What must live until the devices have read it.
        self._kept: list[DeviceTensor] = []
        self._found: list[bytes] | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    def add(self, indices: list[int], tensors: Sequence[DeviceTensor], pending: _Joinable) -> None:
        """Notes that `pending` brings the digests of these tensors."""
        self._kept += tensors
        self._parts.append((indices, pending))

    def join(self) -> list[bytes]:
        """The digests; waits, with the interpreter released, until the streams have come so far.

        Raises:
            DeviceError: a device failed meanwhile, or this is a child of the process that began.
        """
        return self._found if self._found is not None else self._wait()

    def _wait(self) -> list[bytes]:
        if self._process != os.getpid():
            raise DeviceError(
                "the key of a tensor on a GPU cannot be made in the child of a fork, where CUDA does not work: ask for "
                "its bytes before the fork, or start processes by 'spawn'"
            )
        with self._lock:
            if self._found is None:
                found = [b""] * self._size
                for indices, pending in self._parts:
                    for index, digest in zip(indices, pending.join(), strict=True):
                        found[index] = digest
                self._parts, self._kept, self._found = [], [], found
            return self._found


class _Copies:
    """Small tensors on their way to the host, by one copy each into one piece of pinned memory."""

    def __init__(self, tensors: Sequence[DeviceTensor], device: int, stream: int) -> None:
        cupy = self._cupy = hashing._cupy()
        self._sizes = [tensor.nbytes for tensor in tensors]
        self._device = device
        with (
            hashing._explained(cupy, device),
            cupy.cuda.Device(device),
            cupy.cuda.ExternalStream(stream, device) as lane,
        ):
            self._memory = cupy.cuda.alloc_pinned_memory(max(sum(self._sizes), 1))
            self._event = cupy.cuda.Event(disable_timing=True)
            to = self._memory.ptr
            for tensor, size in zip(tensors, self._sizes, strict=True):
                if size:
                    cupy.cuda.runtime.memcpyAsync(to, tensor.pointer, size, _DEVICE_TO_HOST, lane.ptr)
                to += size
            self._event.record(lane)

    def join(self) -> list[bytes]:
        with hashing._explained(self._cupy, self._device):
            self._event.synchronize()  # CuPy releases the interpreter in it
        at, found = self._memory.ptr, []
        for size in self._sizes:
            found.append(_core._blake3(ctypes.string_at(at, size)))
            at += size
        return found


def begin(tensors: Sequence[DeviceTensor]) -> Digests:
    """Begins to hash tensors where they lie; whatever their streams are given from now on comes after.

    Raises:
        DeviceError: CuPy is missing, or a device cannot be used; the text says why.
    """
    digests = Digests(len(tensors))
    lanes: dict[tuple[int, int], list[int]] = {}
    for index, tensor in enumerate(tensors):
        lanes.setdefault((tensor.device, tensor.stream), []).append(index)
    for (device, stream), indices in lanes.items():
        together: dict[int, DeviceTensor] = {}
        for index in indices:
            tensor = tensors[index]
            compact = tensor if tensor.whole else _compacted(tensor)
            if compact is not None:
                together[index] = compact
                continue
            strided = Strided(tensor.pointer, tensor.shape, tensor.strides, tensor.itemsize)
            digests.add([index], [tensor], hashing.enqueue_strided(strided, device=device, stream=stream))
        if together:
            digests.add(list(together), list(together.values()), _enqueue(list(together.values()), device, stream))
    return digests


def _enqueue(tensors: list[DeviceTensor], device: int, stream: int) -> _Joinable:
    """One launch for all of them, or one copy each if that is faster."""
    if hashing.prefers_host(sum(tensor.nbytes for tensor in tensors)):
        return _Copies(tensors, device, stream)
    return hashing.enqueue([(tensor.pointer, tensor.nbytes) for tensor in tensors], device=device, stream=stream)


def _compacted(tensor: DeviceTensor) -> DeviceTensor | None:
    """A contiguous copy on the tensor's stream; None if it is too large, or there is no memory for it."""
    if tensor.compact is None or tensor.nbytes > COMPACT_UP_TO:
        return None
    try:
        copy = tensor.compact()
    except Exception as error:
        if is_out_of_memory(error):
            return None
        raise
    # A stream that became current since is not the one on which the elements are what is meant.
    return copy if copy is not None and copy.stream == tensor.stream and copy.whole else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory left, in the words of CuPy, torch or JAX."""
    return type(error).__name__ == "OutOfMemoryError" or "RESOURCE_EXHAUSTED" in str(error)
