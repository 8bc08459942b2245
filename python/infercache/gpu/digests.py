"""Digests of device tensors, begun when a key is formed and joined when its bytes are asked for.

All tensors of a document, or of a batch call's documents, that lie on one device and stream go in one launch with one
copy back (`hashing.enqueue`). Strided ones are made contiguous before by their own library, on the stream; large ones,
and those for which there is no memory, are gathered block by block by the kernels (`hashing.enqueue_strided`). What is
so small that the host is faster is copied to pinned memory on the stream, and hashed by who asks.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from infercache.errors import DeviceError
from infercache.gpu import hashing
from infercache.gpu.plan import Strided
from infercache.gpu.tensors import is_out_of_memory

if TYPE_CHECKING:
    from infercache.gpu.hashing import Pending
    from infercache.gpu.tensors import DeviceTensor

__all__ = ["Digests", "begin"]

#: Bytes of a strided tensor up to which its library makes a contiguous copy, so that it goes in one launch with the
#: others. Above, a launch of its own costs nothing beside the work, and a copy too much memory.
COMPACT_UP_TO = 16 << 20

#: Of the time that a task has waited for digests, how much it waits until it asks again, and the most in seconds.
PAUSE = 1 / 8
LONGEST_PAUSE = 0.005


class Digests:
    """Digests that devices compute, 32 bytes each, in the order of the tensors. Any thread may join, and several."""

    __slots__ = ("_found", "_kept", "_lock", "_parts", "_process", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        #: Which tensors' digests each brings.
        self._parts: list[tuple[list[int], Pending]] = []
        #: What must live until the devices have read it.
        self._kept: list[DeviceTensor] = []
        self._found: list[bytes] | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    def add(self, indices: list[int], tensors: Sequence[DeviceTensor], pending: Pending) -> None:
        """Notes that `pending` brings the digests of these tensors."""
        self._kept += tensors
        self._parts.append((indices, pending))

    def join(self) -> list[bytes]:
        """The digests; waits, with the interpreter released, until the streams have come so far.

        Raises:
            DeviceError: a device failed meanwhile, or this is a child of the process that began.
        """
        return self._found if self._found is not None else self._wait()

    def done(self) -> bool:
        """Whether `join` would return, or raise, at once.

        Raises:
            DeviceError: a device failed meanwhile.
        """
        if self._found is not None or self._process != os.getpid():
            return True
        return all(pending.done() for _, pending in list(self._parts))

    async def arrived(self) -> None:
        """Waits until `join` would return at once, while the event loop goes on.

        It asks now and then, since a callback of CUDA's would hold the stream up. Where no loop of asyncio runs it
        returns at once, and `join` waits.

        Raises:
            DeviceError: a device failed meanwhile.
        """
        asyncio = sys.modules.get("asyncio")
        if asyncio is None or asyncio._get_running_loop() is None:
            return
        began = time.monotonic()
        while not self.done():
            await asyncio.sleep(min((time.monotonic() - began) * PAUSE, LONGEST_PAUSE))

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
            pending = hashing.enqueue_strided(strided, device=device, stream=stream, signs=tensor.signs)
            digests.add([index], [tensor], pending)
        if together:
            digests.add(list(together), list(together.values()), _enqueue(list(together.values()), device, stream))
    return digests


def _enqueue(tensors: list[DeviceTensor], device: int, stream: int) -> Pending:
    """One launch for all of them, or one copy each if that is faster."""
    buffers = [(tensor.pointer, tensor.nbytes) for tensor in tensors]
    if hashing.prefers_host(sum(nbytes for _, nbytes in buffers)):
        return hashing.enqueue_copies(buffers, device=device, stream=stream)
    return hashing.enqueue(buffers, device=device, stream=stream)


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
