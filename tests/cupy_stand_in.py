"""A stand-in for CuPy, for machines without a GPU: no mock of what hashing.py says to it, but a device of a kind.

Device memory is the host's. A stream is a queue of operations, of which none is done before somebody waits for it,
the latest that a GPU may do them; `Queue.step` does one, so that tests interleave streams as they like. Kernels are
blake3.cu compiled for the host. What is freed is overwritten: device memory in the order of the stream that allocated
it, as CuPy's pool gives it to others, pinned memory at once. It has what hashing.py calls, under CuPy's names, and no
more; `test_stand_in_has_cupys_names` compares them where CuPy is installed.
"""

from __future__ import annotations

import ctypes
import random
from collections import deque
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from host_kernels import launch
from infercache.gpu.plan import THREADS

POISON = 0xDB


class CUDARuntimeError(RuntimeError):
    """As CuPy's: the text begins with CUDA's name of the error."""


class CUDADriverError(RuntimeError):
    """The same for the driver's."""


class CompileException(Exception):
    """A source that does not compile."""


class OutOfMemoryError(MemoryError):
    """No device memory."""


class Queue:
    """What a stream's handle stands for."""

    def __init__(self) -> None:
        self.operations: deque[Callable[[], None]] = deque()

    def step(self) -> bool:
        """Does the oldest operation; False where there is none."""
        if not self.operations:
            return False
        self.operations.popleft()()
        return True


class Machine:
    """All that the stand-in has in one test."""

    def __init__(self) -> None:
        self.queues: dict[int, Queue] = {}
        self.current: list[int] = [0]
        self.room = 1 << 40  # bytes of device memory that are left
        self.allocated: list[int] = []  # sizes, in order
        self.pinned: list[int] = []  # sizes, in order
        self.to_host: list[int] = []  # sizes of copies by memcpyAsync
        self.faults: dict[str, list[Exception]] = {}  # what the next calls of an operation raise
        self.compiled = 0
        self.order = random.Random(3)

    def queue(self, handle: int) -> Queue:
        """Of a stream."""
        return self.queues.setdefault(handle, Queue())

    def fault(self, operation: str) -> None:
        """Raises what a test asked for."""
        if waiting := self.faults.get(operation):
            raise waiting.pop(0)

    def launch(self, kernel: str, blocks: int, arguments: tuple[Any, ...]) -> Callable[[], None]:
        """A kernel as an operation, its threads in some order."""
        memory, *numbers = arguments
        assert all(type(number) is np.uint64 for number in numbers), "CuPy passes a Python int as 64 signed bits"
        order = tuple(self.order.sample(range(THREADS), THREADS))
        late = self.order.random() < 0.5
        # Not the memory itself: a launch keeps nothing alive. Pinned memory is given by its address.
        address = int(memory) if isinstance(memory, np.uint64) else memory.ptr
        return lambda: launch(
            kernel, range(blocks), address, [int(number) for number in numbers], order=order, late=late
        )


def moved(to: int, source: int, size: int) -> Callable[[], None]:
    """A copy as an operation."""
    return lambda: ctypes.memmove(to, source, size) and None


def module(machine: Machine) -> ModuleType:
    """The module `cupy` of a machine."""
    cupy = ModuleType("cupy")
    cupy.RawModule = lambda **given: RawModule(machine, **given)  # type: ignore[attr-defined]
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        Device=lambda number: Device(machine, number),
        ExternalStream=lambda handle, device=-1: ExternalStream(machine, handle),
        Event=lambda **given: Event(machine, **given),
        alloc=lambda size: MemoryPointer(machine, Memory(machine, size)),
        alloc_pinned_memory=lambda size: Pinned(machine, size),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            memcpyAsync=lambda to, source, size, kind, stream: copy_to_host(machine, to, source, size, kind, stream),
            memcpy2DAsync=lambda *arguments: copy_rows_to_host(machine, *arguments),
        ),
        driver=SimpleNamespace(CUDADriverError=CUDADriverError),
        compiler=SimpleNamespace(CompileException=CompileException),
    )
    return cupy


def copy_to_host(machine: Machine, to: int, source: int, size: int, kind: int, stream: int) -> None:
    """cudaMemcpyAsync; 2 is cudaMemcpyDeviceToHost."""
    assert kind == 2
    machine.to_host.append(size)
    machine.queue(stream).operations.append(moved(to, source, size))


def copy_rows_to_host(
    machine: Machine, to: int, to_pitch: int, source: int, pitch: int, width: int, height: int, kind: int, stream: int
) -> None:
    """cudaMemcpy2DAsync."""
    assert kind == 2
    assert width <= to_pitch
    assert width <= pitch < 2**31, "cudaErrorInvalidPitchValue"
    machine.to_host.append(width * height)

    def rows(address: int, pitch: int) -> np.ndarray[Any, Any]:
        held = (ctypes.c_uint8 * (pitch * (height - 1) + width)).from_address(address)
        return np.ndarray((height, width), np.uint8, held, 0, (pitch, 1))

    machine.queue(stream).operations.append(lambda: np.copyto(rows(to, to_pitch), rows(source, pitch)))


class Device:
    """A device that is current within the block."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine, self.number = machine, number

    def __enter__(self) -> Device:
        self.machine.fault("device")
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ExternalStream:
    """A caller's stream; current within the block."""

    def __init__(self, machine: Machine, handle: int) -> None:
        self.machine, self.ptr = machine, handle

    def __enter__(self) -> ExternalStream:
        self.machine.current.append(self.ptr)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.machine.current.pop() == self.ptr

    def wait_event(self, event: Event) -> None:
        waited = event.recording
        self.machine.queue(self.ptr).operations.append(lambda: event.finish(waited))

    def synchronize(self) -> None:
        queue = self.machine.queue(self.ptr)
        while queue.step():
            pass


class Event:
    """Passed when the operations before it on its stream are done."""

    def __init__(self, machine: Machine, *, disable_timing: bool) -> None:
        self.machine = machine
        self.recording = self.passed = 0
        self.queue = Queue()

    def record(self, stream: ExternalStream) -> None:
        self.recording += 1
        mark = self.recording
        self.queue = self.machine.queue(stream.ptr)
        self.queue.operations.append(lambda: setattr(self, "passed", max(self.passed, mark)))

    @property
    def done(self) -> bool:
        return self.passed >= self.recording

    def synchronize(self) -> None:
        self.machine.fault("synchronize")
        self.finish(self.recording)

    def finish(self, recording: int) -> None:
        """Does the stream's operations up to a recording of this."""
        while self.passed < recording:
            assert self.queue.step(), "waits for an event that nothing brings about"


class Memory:
    """Device memory; what it held is overwritten when its stream comes to where it was freed."""

    def __init__(self, machine: Machine, size: int) -> None:
        if size > machine.room:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")
        machine.room -= size
        machine.allocated.append(size)
        self.machine, self.size = machine, size
        self.held = np.full(size + 512, POISON, np.uint8)
        self.ptr = self.held.ctypes.data + -self.held.ctypes.data % 512
        self.queue = machine.queue(machine.current[-1])

    def __del__(self) -> None:
        if hasattr(self, "held"):
            held = self.held
            self.machine.room += self.size
            self.queue.operations.append(lambda: held.fill(POISON))


class MemoryPointer:
    """A place in device memory."""

    def __init__(self, machine: Machine, memory: Memory, offset: int = 0) -> None:
        self.machine, self.mem, self.offset = machine, memory, offset

    @property
    def ptr(self) -> int:
        return self.mem.ptr + self.offset

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.machine, self.mem, self.offset + offset)

    def copy_from_host_async(self, source: int, size: int, stream: ExternalStream) -> None:
        assert self.offset + size <= self.mem.size
        self.machine.queue(stream.ptr).operations.append(moved(self.ptr, source, size))

    def copy_to_host_async(self, to: int, size: int, stream: ExternalStream) -> None:
        assert self.offset + size <= self.mem.size
        self.machine.queue(stream.ptr).operations.append(moved(to, self.ptr, size))


class Pinned:
    """Pinned memory of the host. Kept for ever, since a queued copy may still write to it; poisoned once freed."""

    kept: list[np.ndarray[Any, Any]] = []  # noqa: RUF012

    def __init__(self, machine: Machine, size: int) -> None:
        machine.fault("pinned")
        machine.pinned.append(size)
        self.held = np.full(size, POISON, np.uint8)
        self.ptr = self.held.ctypes.data
        self.kept.append(self.held)

    def __del__(self) -> None:
        if hasattr(self, "held"):
            self.held.fill(POISON)


class RawModule:
    """blake3.cu, compiled by the host's compiler whatever text is given; the text must be the file's."""

    def __init__(self, machine: Machine, *, code: str, options: tuple[str, ...]) -> None:
        machine.fault("compile")
        assert code.startswith("// Plain BLAKE3")
        assert options == ("--std=c++17",)
        machine.compiled += 1
        self.machine = machine

    def get_function(self, name: str) -> Callable[[tuple[int], tuple[int], tuple[Any, ...]], None]:
        def kernel(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            assert block == (THREADS,)
            self.machine.fault("launch")
            queue = self.machine.queue(self.machine.current[-1])
            queue.operations.append(self.machine.launch(name, grid[0], arguments))

        return kernel
