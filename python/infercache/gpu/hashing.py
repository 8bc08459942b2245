"""Launches blake3.cu over CuPy, on the caller's stream: what hashes tensors where they lie. See docs/gpu.md.

`enqueue` only adds work to the stream: the table of jobs to the device, the kernels, the digests to pinned memory, an
event. Whatever the stream does later cannot change what was hashed. `Pending.join` waits for the event.

What that work needs belongs to a `_Workspace`, one for each stream, so that no two streams write to one place. On its
stream the next use comes after the one before it. Pinned memory is read and written by the host meanwhile: it goes
round in `_Slot`s, and one is used again when its event has passed and nobody will ask for its digests any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np

from infercache import _core
from infercache.errors import DeviceError
from infercache.gpu import plan as planning
from infercache.gpu import through_host
from infercache.gpu.plan import DIGEST, THREADS, Plan, Signs, Strided
from infercache.gpu.through_host import DEVICE_TO_HOST

__all__ = [
    "HOST_BELOW",
    "Pending",
    "enqueue",
    "enqueue_copies",
    "enqueue_strided",
    "fallbacks",
    "prefers_host",
]

# Bytes. To be measured (`make bench-gpu` prints the crossover); until then from known costs: a thread takes some 10 µs
# to hash a chunk's 16 blocks, whatever the rest of the GPU does, and two copies, two or three launches and an event add
# about 15. In those 25 µs a host copies and hashes some 90 KiB: 10 µs until the copy has begun, 1 µs for each 6 KiB.
HOST_BELOW = 96 << 10
SMALL_BLOCK = 2 * planning.TILE * planning.CHUNK  # of a strided input, where there is no memory for `planning.BLOCK`
MOST_WORKSPACES = 64  # streams; the least recently used ones are given back
OPTIONS = ("--std=c++17",)

_CUDA_MISMATCH = {
    "cudaErrorInsufficientDriver",
    "cudaErrorNoKernelImageForDevice",
    "cudaErrorUnsupportedPtxVersion",
    "cudaErrorSystemDriverMismatch",
    "cudaErrorCompatNotSupportedOnDevice",
}
_NO_MEMORY = {"cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY"}
_CLOSED = {
    "cudaErrorContextIsDestroyed",
    "cudaErrorCudartUnloading",
    "cudaErrorDeviceUninitialized",
    "cudaErrorIllegalAddress",
    "cudaErrorInvalidResourceHandle",
    "cudaErrorInvalidValue",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEINITIALIZED",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_INVALID_CONTEXT",
    "CUDA_ERROR_INVALID_HANDLE",
    "CUDA_ERROR_INVALID_VALUE",
}


def prefers_host(nbytes: int) -> bool:
    """Whether so many bytes are faster copied to the host and hashed there than hashed where they lie."""
    return nbytes < HOST_BELOW


def fallbacks() -> int:
    """How often, in this process, a device had no memory left for hashing and the bytes went to the host instead."""
    return _fallbacks


class _Slot:
    """Pinned memory, and the event after which the device does not touch it any more."""

    def __init__(self, cupy: Any, size: int) -> None:
        self.memory = cupy.cuda.alloc_pinned_memory(size)
        self.size = size
        self.event = cupy.cuda.Event(disable_timing=True)
        self.claimed = True  # by a `Pending` that may still be asked

    @property
    def free(self) -> bool:
        """Whether other work may have it."""
        return not self.claimed and bool(self.event.done)


class Pending:
    """Digests that a stream computes, or what it copies to pinned memory so that the host computes them there.

    May be joined by any thread, and by several.

    Args:
        device: the number of the device.
        slot: what the stream writes to; None: the digests are there.
        read: the digests from the address of what the stream has written.
        digests: those that are there.
    """

    def __init__(
        self,
        device: int,
        slot: _Slot | None = None,
        read: Callable[[int], list[bytes]] = lambda _: [],
        digests: Sequence[bytes] = (),
    ) -> None:
        self._device = device
        self._slot = slot  # until it is joined
        self._read = read
        self._digests = list(digests)
        self._lock = threading.Lock()

    def join(self) -> list[bytes]:
        """The digests, 32 bytes each, in the order of the buffers.

        Waits until the stream has come so far, the interpreter released.

        Raises:
            DeviceError: the device failed meanwhile.
        """
        with self._lock:
            slot = self._slot
            if slot is not None:
                with _explained(_cupy(), self._device):
                    slot.event.synchronize()  # CuPy releases the interpreter in it
                self._digests = self._read(slot.memory.ptr)
                self._slot, slot.claimed = None, False
            return list(self._digests)

    def done(self) -> bool:
        """Whether `join` would return at once."""
        slot = self._slot
        if slot is None:
            return True
        with _explained(_cupy(), self._device):
            # Joined meanwhile, it may be other work's slot by now.
            return bool(slot.event.done) or self._slot is None

    def __del__(self) -> None:
        slot = getattr(self, "_slot", None)
        if slot is not None:
            slot.claimed = False


class _Workspace:
    """What hashing on one stream needs, and its lock: whoever holds it adds a whole piece of work to the stream."""

    def __init__(self, cupy: Any, device: int) -> None:
        self.lock = threading.Lock()
        self.users = 0  # threads that have it or wait for its lock; counted under the registry's
        self._cupy = cupy
        self._device = device
        self._memory: Any = None
        self._size = 0
        self._slots: list[_Slot] = []
        self._last: _Slot | None = None

    def enqueue(self, plan: Plan, stream: Any) -> Pending:
        """Adds a plan's work to `stream`, which is current; the caller holds the lock.

        Raises:
            OutOfMemoryError: CuPy's; nothing was added.
        """
        kernels = _kernels(self._cupy, self._device)
        if self._last is not None:
            # The same stream as a rule, and then this costs nothing. But a stream that was destroyed may have left its
            # handle, and with it this workspace, to a new one while its work still runs.
            stream.wait_event(self._last.event)
        if self._size < plan.workspace:
            self._memory, self._size = None, 0  # goes back to CuPy's pool, which keeps it for this stream
            self._memory = self._cupy.cuda.alloc(plan.workspace)
            self._size = plan.workspace
        digests = plan.digests * DIGEST
        slot = self._slot(digests + len(plan.table))
        ctypes.memmove(slot.memory.ptr + digests, plan.table, len(plan.table))
        (self._memory + plan.table_at).copy_from_host_async(slot.memory.ptr + digests, len(plan.table), stream)
        for kernel, blocks, arguments in plan.launches:
            kernels[kernel]((blocks,), (THREADS,), (self._memory, *map(np.uint64, arguments)))
        self._memory.copy_to_host_async(slot.memory.ptr, digests, stream)
        slot.event.record(stream)
        self._last = slot
        return Pending(self._device, slot, lambda at: _parted(at, [DIGEST] * plan.digests))

    def copy(self, buffers: Sequence[tuple[int, int]], stream: Any) -> Pending:
        """Adds copies of buffers to pinned memory to `stream`; who joins hashes them. The caller holds the lock."""
        sizes = [nbytes for _, nbytes in buffers]
        slot = self._slot(sum(sizes))
        to = slot.memory.ptr
        try:
            for address, nbytes in buffers:
                if nbytes:
                    self._cupy.cuda.runtime.memcpyAsync(to, address, nbytes, DEVICE_TO_HOST, stream.ptr)
                to += nbytes
        finally:
            slot.event.record(stream)  # whatever was added writes to the slot
        return Pending(self._device, slot, lambda at: [_core._blake3(part) for part in _parted(at, sizes)])

    def _slot(self, size: int) -> _Slot:
        for slot in self._slots:
            if slot.size >= size and slot.free:
                slot.claimed = True
                return slot
        # Those that are too small for what is asked now go once they are free.
        self._slots = [slot for slot in self._slots if slot.size >= size or not slot.free]
        slot = _Slot(self._cupy, 1 << max(size - 1, 1023).bit_length())
        self._slots.append(slot)
        return slot

    def idle(self) -> bool:
        """Whether nothing that it has is still used."""
        return not self.users and all(slot.event.done for slot in self._slots)


_registry = threading.Lock()  # held for a few dictionary operations
_workspaces: OrderedDict[tuple[int, int, int], _Workspace] = OrderedDict()
_compiled: dict[int, dict[str, Any]] = {}
_fallbacks = 0
PER_THREAD_STREAM = 2  # the handle cudaStreamPerThread is another stream in each thread


def enqueue(buffers: Sequence[tuple[int, int]], *, device: int, stream: int) -> Pending:
    """Begins to hash contiguous buffers where they lie: all in one go, with one copy back.

    Args:
        buffers: (device address, bytes) of each.
        device: the number of the device that they lie on.
        stream: a `cudaStream_t` of it; what it was given before is done first.

    Returns:
        Plain BLAKE3 digests, one a buffer.

    Raises:
        DeviceError: CuPy is missing, or the device cannot be used; the text says why.
    """
    if not buffers:
        return Pending(device)

    def on_host(cupy: Any, lane: Any) -> list[bytes]:
        return through_host.contiguous(cupy, lane, buffers)

    return _run([lambda: planning.contiguous(buffers)], on_host, device, stream)


def enqueue_copies(buffers: Sequence[tuple[int, int]], *, device: int, stream: int) -> Pending:
    """Begins to copy contiguous buffers to the host, which hashes them when it is asked: as `enqueue`, for few bytes.

    Raises:
        DeviceError: as `enqueue`.
    """
    cupy = _cupy()
    with (
        _explained(cupy, device),
        cupy.cuda.Device(device),
        cupy.cuda.ExternalStream(stream, device) as lane,
        _workspace(cupy, device, stream) as workspace,
    ):
        return workspace.copy(buffers, lane)


def enqueue_strided(tensor: Strided, *, device: int, stream: int, signs: Signs | None = None) -> Pending:
    """Begins to hash a tensor of any layout: made contiguous on the device, in blocks of bounded size.

    Args:
        tensor: where it lies, and how.
        signs: those that are to be turned; the host does it where elements are not aligned.
        device: the number of the device that it lies on.
        stream: a `cudaStream_t` of it; what it was given before is done first.

    Returns:
        The plain BLAKE3 digest of its elements in C order.

    Raises:
        DeviceError: CuPy is missing, or the device cannot be used; the text says why.
    """

    def on_host(cupy: Any, lane: Any) -> list[bytes]:
        try:
            return [through_host.strided(cupy, lane, tensor, _kernels(cupy, device), signs)]
        except _cuda_errors(cupy) as error:
            if _name(error) not in _NO_MEMORY:
                raise
        return [through_host.strided(cupy, lane, tensor, None, signs)]  # not even for the kernels' code

    if signs is not None and not planning.turns(tensor):
        return _run([], on_host, device, stream)
    plans = [
        lambda: planning.strided(tensor, signs=signs),
        lambda: planning.strided(tensor, block=SMALL_BLOCK, signs=signs),
    ]
    return _run(plans, on_host, device, stream)


def _run(
    plans: Sequence[Callable[[], Plan]], on_host: Callable[[Any, Any], list[bytes]], device: int, stream: int
) -> Pending:
    """The first of the plans for which there is memory, or the host where there is for none."""
    global _fallbacks
    cupy = _cupy()
    with _explained(cupy, device), cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device) as lane:
        for plan in plans:
            try:
                with _workspace(cupy, device, stream) as workspace:
                    return workspace.enqueue(plan(), lane)
            except _cuda_errors(cupy) as error:
                if _name(error) not in _NO_MEMORY:
                    raise
            except cupy.cuda.memory.OutOfMemoryError:
                continue
        with _registry:
            _fallbacks += 1
        return Pending(device, digests=on_host(cupy, lane))


@contextlib.contextmanager
def _workspace(cupy: Any, device: int, stream: int) -> Iterator[_Workspace]:
    """The workspace of a stream, locked."""
    key = (device, stream, threading.get_ident() if stream == PER_THREAD_STREAM else 0)
    with _registry:
        workspace = _workspaces.get(key)
        if workspace is None:
            for other in list(_workspaces)[: max(len(_workspaces) + 1 - MOST_WORKSPACES, 0)]:
                if _workspaces[other].idle():
                    del _workspaces[other]
            workspace = _workspaces[key] = _Workspace(cupy, device)
        _workspaces.move_to_end(key)
        workspace.users += 1
    try:
        with workspace.lock:
            yield workspace
    finally:
        with _registry:
            workspace.users -= 1


def _forget(device: int) -> None:
    """Drops what belongs to a device's context, which is over."""
    with _registry:
        _compiled.pop(device, None)
        for key in [key for key in _workspaces if key[0] == device]:
            del _workspaces[key]


def _kernels(cupy: Any, device: int) -> dict[str, Any]:
    """The kernels of blake3.cu by name, compiled for the current device; CuPy keeps the result on disk too."""
    found = _compiled.get(device)
    if found is None:
        source = resources.files("infercache.gpu").joinpath("blake3.cu").read_text("utf-8")
        module = cupy.RawModule(code=source, options=OPTIONS)
        found = _compiled[device] = {name: module.get_function(name) for name in ("chunks", "merge", "gather")}
    return found


def _parted(at: int, sizes: Sequence[int]) -> list[bytes]:
    """What lies at an address, in parts of these sizes."""
    parts = []
    for size in sizes:
        parts.append(ctypes.string_at(at, size))
        at += size
    return parts


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"hashing a tensor on a GPU needs CuPy, which cannot be imported ({error}): "
            "pip install 'infercache[gpu-cuda12]', or 'infercache[gpu-cuda13]' for CUDA 13"
        ) from error
    return cupy


def _cuda_errors(cupy: Any) -> tuple[type[Exception], ...]:
    return cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError


def _name(error: Exception) -> str:
    """CUDA's name of an error, with which CuPy's text begins."""
    return str(error).partition(":")[0]


@contextlib.contextmanager
def _explained(cupy: Any, device: int) -> Iterator[None]:
    """Turns what CUDA says into what is to be done."""
    try:
        yield
    except (*_cuda_errors(cupy), cupy.cuda.compiler.CompileException) as error:
        _forget(device)
        name = _name(error)
        if name in _CUDA_MISMATCH:
            advice = (
                "the driver and CuPy are of CUDA versions that do not go together; update the driver, or install "
                "'infercache[gpu-cuda12]' or 'infercache[gpu-cuda13]', whichever nvidia-smi's CUDA version allows"
            )
        elif name in _CLOSED:
            advice = "the tensor's memory or its stream was freed, or belongs to a context that was closed or reset"
        elif name in _NO_MEMORY:
            advice = "no memory is left, on the device or pinned on the host"
        elif isinstance(error, cupy.cuda.compiler.CompileException):
            advice = "blake3.cu does not compile with this CUDA version"
        else:
            advice = "the device failed"
        raise DeviceError(f"hashing on GPU {device}: {advice} ({error})") from error
