"""A CUDA device that is none, for machines without one: CuPy, torch and JAX as far as infercache calls them.

Device memory is the host's and kernels are blake3.cu compiled for the host (`host_kernels`). Streams are honest: work that
is given to one is done when something waits for it, in its order, and not before. So a key that were read too early, or
of what a tensor became later on the stream, would be a wrong key.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import types
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import host_kernels

__all__ = ["StandIn", "stand_in"]


class _Event:
    def __init__(self, device: StandIn) -> None:
        self._device = device
        self._stream: _Stream | None = None
        self._number = 0

    def record(self, stream: Any = None) -> None:
        self._stream = self._device.stream_of(stream)
        self._number = self._stream.given

    @property
    def done(self) -> bool:
        return self._stream is None or self._stream.done >= self._number

    def synchronize(self) -> None:
        self._device.count["waits"] += 1
        if self._stream is not None:
            self._stream.run(self._number)


class _Stream:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr
        self.given = 0
        self.done = 0
        self._work: deque[Callable[[], None]] = deque()

    def give(self, work: Callable[[], None]) -> None:
        self._work.append(work)
        self.given += 1

    def run(self, until: int) -> None:
        while self.done < until:
            self._work.popleft()()
            self.done += 1


class _Lane:
    """A stream as CuPy gives it to its callers; `with` makes it the current one."""

    def __init__(self, device: StandIn, ptr: int) -> None:
        self._device = device
        self.ptr = ptr

    def __enter__(self) -> _Lane:
        self._device.current.append(self.ptr)
        return self

    def __exit__(self, *error: object) -> None:
        self._device.current.pop()

    def synchronize(self) -> None:
        self._device.count["waits"] += 1
        stream = self._device.stream_of(self)
        stream.run(stream.given)

    def wait_event(self, event: _Event) -> None:
        if not event.done:
            self._device.stream_of(self).give(lambda: event._stream.run(event._number) if event._stream else None)


class _Memory:
    """Device memory, or pinned memory of the host."""

    def __init__(self, device: StandIn, base: np.ndarray, offset: int = 0) -> None:
        self._device, self._base, self._offset = device, base, offset
        self.ptr = base.ctypes.data + offset

    def __add__(self, offset: int) -> _Memory:
        return _Memory(self._device, self._base, self._offset + offset)

    def copy_from_host_async(self, source: int, size: int, stream: Any = None) -> None:
        self._device.copy(self.ptr, source, size, stream)

    def copy_to_host_async(self, target: int, size: int, stream: Any = None) -> None:
        self._device.count["copies back"] += 1
        self._device.copy(target, self.ptr, size, stream)


class StandIn:
    """The device, and what is counted on it."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.streams: dict[int, _Stream] = {}
        self.current: list[int] = [0]
        #: Bytes that may be allocated at once; None: any number.
        self.room: int | None = None
        #: What is raised instead of the next launch.
        self.fault: Exception | None = None
        self._handles = itertools.count(0x1000, 0x10)
        self.cupy = self._cupy()
        self.torch = self._torch()

    # -- streams and memory

    def new_stream(self) -> _Lane:
        return _Lane(self, next(self._handles))

    def stream_of(self, lane: Any = None) -> _Stream:
        ptr = self.current[-1] if lane is None else getattr(lane, "ptr", lane)
        return self.streams.setdefault(ptr, _Stream(ptr))

    def give(self, work: Callable[[], None]) -> None:
        """Gives work to the current stream."""
        self.stream_of().give(work)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        self.stream_of(stream).give(lambda: ctypes.memmove(target, source, size) and None)

    def allocate(self, size: int) -> _Memory:
        if self.room is not None and size > self.room:
            raise self.cupy.cuda.memory.OutOfMemoryError(f"out of memory allocating {size} bytes")
        # Filled, so that nothing relies on memory being zero.
        return _Memory(self, np.full(max(size, 1) + 256, 0xEE, np.uint8))

    def finish(self) -> None:
        """Does all that was given to any stream."""
        for stream in list(self.streams.values()):
            stream.run(stream.given)

    # -- CuPy

    def _cupy(self) -> Any:
        cupy = types.ModuleType("cupy")
        cuda = types.SimpleNamespace()
        cupy.cuda = cuda
        error = lambda name, base: type(name, (base,), {})  # noqa: E731
        cuda.runtime = types.SimpleNamespace(
            CUDARuntimeError=error("CUDARuntimeError", RuntimeError), memcpyAsync=self._memcpy
        )
        cuda.driver = types.SimpleNamespace(CUDADriverError=error("CUDADriverError", RuntimeError))
        cuda.compiler = types.SimpleNamespace(CompileException=error("CompileException", Exception))
        cuda.memory = types.SimpleNamespace(OutOfMemoryError=error("OutOfMemoryError", MemoryError))
        cuda.Device = lambda number: _Nothing(number)
        cuda.ExternalStream = lambda ptr, number=-1: _Lane(self, ptr)
        cuda.Event = lambda **options: _Event(self)
        cuda.get_current_stream = lambda: _Lane(self, self.current[-1])
        cuda.alloc = self.allocate
        cuda.alloc_pinned_memory = lambda size: _Memory(self, np.full(max(size, 1), 0xEE, np.uint8))
        cupy.RawModule = lambda code, options: types.SimpleNamespace(get_function=self._kernel)
        cupy.ndarray = _array_class("cupy", "ndarray", self)
        cupy.array = self._cupy_array
        cupy.asarray = self._cupy_array
        cupy.ascontiguousarray = lambda array: array.copied(cupy.ndarray)
        return cupy

    def _memcpy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        self.count["copies back"] += 1
        self.copy(target, source, size, stream)

    def _kernel(self, name: str) -> Callable[..., None]:
        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            if self.fault is not None:
                fault, self.fault = self.fault, None
                raise fault
            self.count["launches"] += 1
            self.count[name] += 1
            workspace, rest = arguments[0], [int(argument) for argument in arguments[1:]]
            self.give(lambda: host_kernels.launch(name, range(grid[0]), workspace.ptr, rest))

        return launch

    def _cupy_array(self, elements: Any, order: str = "C") -> Any:
        self.count["to device"] += 1
        return self.cupy.ndarray.of(np.array(elements, order=order))

    # -- torch

    def _torch(self) -> Any:
        torch = types.ModuleType("torch")
        torch.version = types.SimpleNamespace(hip=None)
        torch.strided = "torch.strided"
        torch.Tensor = _array_class("torch", "Tensor", self)
        torch.cuda = types.SimpleNamespace(
            current_stream=lambda device=None: types.SimpleNamespace(cuda_stream=self.current[-1])
        )
        for name in ("float32", "int16", "complex64", "bool"):
            setattr(torch, name, f"torch.{name}")
        torch.empty = lambda shape, dtype, device: torch.Tensor(
            np.empty(shape, dtype.removeprefix("torch.")), "cpu" if device == "cpu" else "cuda"
        )
        torch.float8_e8m0fnu = "torch.float8_e8m0fnu"
        return torch


class _Nothing:
    def __init__(self, number: int) -> None:
        self.id = number

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _array_class(module: str, name: str, device: StandIn) -> Any:
    """`cupy.ndarray` or `torch.Tensor`: elements in the memory of the device, which streams read and write."""

    class Array:
        def __init__(self, elements: np.ndarray, where: str = "cuda", dtype: str | None = None) -> None:
            self.elements = elements
            self.where = where
            self._dtype = dtype or elements.dtype.name
            self.conjugated = False

        # -- both

        @classmethod
        def of(cls, elements: Any) -> Any:
            """One whose elements are there already."""
            return cls(np.array(elements, copy=True, order="K"))

        shape = property(lambda self: self.elements.shape)
        ndim = property(lambda self: self.elements.ndim)
        nbytes = property(lambda self: self.elements.nbytes)
        itemsize = property(lambda self: self.elements.itemsize)

        def __len__(self) -> int:
            return len(self.elements)

        def __iter__(self) -> Any:
            return (self[at] for at in range(len(self)))

        def __getitem__(self, item: Any) -> Any:
            if isinstance(item, list):
                return type(self).of(self.elements[item])
            found = self.elements[item] if not isinstance(item, tuple) else self.elements[item]
            base = found if isinstance(found, np.ndarray) else self.elements[item, ...]
            return type(self)(base, self.where)

        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("the stand-in's arrays are not read through DLPack")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0) if self.where == "cuda" else (1, 0)

        def copied(self, cls: Any) -> Any:
            """A contiguous copy, made on the current stream."""
            device.count["made contiguous"] += 1
            if device.room is not None and self.nbytes > device.room:
                raise device.cupy.cuda.memory.OutOfMemoryError("no room for a copy")
            copy = np.full(self.shape, 0, self.elements.dtype)
            source = self.elements
            device.give(lambda: np.copyto(copy, source))
            return cls(copy, self.where)

        def fill_(self, value: Any) -> None:
            """Overwrites the elements, on the current stream."""
            device.give(lambda: self.elements.__setitem__(..., value))

        # -- CuPy

        data = property(lambda self: types.SimpleNamespace(ptr=self.elements.ctypes.data))

        def get(self, order: str = "C") -> np.ndarray:
            device.count["to host"] += 1
            device.cupy.cuda.get_current_stream().synchronize()
            return np.array(self.elements, order=order)

        # -- torch

        layout = "torch.strided"
        is_quantized = is_nested = is_meta = requires_grad = False
        is_cpu = property(lambda self: self.where == "cpu")

        def detach(self) -> Any:
            return self

        def resolve_neg(self) -> Any:
            return self

        def resolve_conj(self) -> Any:
            if not self.conjugated:
                return self
            made, source = np.zeros(self.shape, self.elements.dtype), self.elements
            device.give(lambda: np.conjugate(source, out=made) is None)
            return type(self)(made, self.where)

        def data_ptr(self) -> int:
            return int(self.elements.ctypes.data)

        def numel(self) -> int:
            return int(self.elements.size)

        def element_size(self) -> int:
            return int(self.elements.itemsize)

        def stride(self) -> tuple[int, ...]:
            return tuple(step // self.elements.itemsize for step in self.elements.strides)

        def contiguous(self) -> Any:
            return self if self.elements.flags.c_contiguous else self.copied(type(self))

        def cpu(self) -> Any:
            device.count["to host"] += 1
            device.cupy.cuda.get_current_stream().synchronize()
            return type(self)(np.ascontiguousarray(self.elements).copy().reshape(self.shape), "cpu")

        def pin_memory(self) -> Any:
            device.count["pinned"] += 1
            return self

        def to(self, where: str, non_blocking: bool = False) -> Any:
            device.count["to device"] += 1
            return type(self)(self.elements.copy(), where)

        if module == "torch":
            dtype = property(lambda self: f"torch.{self._dtype}")
            device = property(lambda self: types.SimpleNamespace(type=self.where, index=0))
        else:
            dtype = property(lambda self: self.elements.dtype)
            device = property(lambda self: types.SimpleNamespace(id=0))
            strides = property(lambda self: self.elements.strides)

    Array.__name__, Array.__qualname__, Array.__module__ = name, name, module
    return Array


# ---- DLPack ----------------------------------------------------------------------------------------------------------


class Exporter:
    """Somebody's array on the device, to be had through DLPack only; it has a stream of its own."""

    def __init__(self, device: StandIn, elements: np.ndarray, code: int, kind: int = 2) -> None:
        self._device, self.elements, self._code, self._kind = device, elements, code, kind
        self.stream = device.new_stream()
        self.consumers: list[Any] = []
        self.exports = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self._kind, 0)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.consumers.append(stream)
        # The consumer's stream waits for ours, as the protocol wants.
        event = _Event(self._device)
        event.record(self.stream)
        _Lane(self._device, 0 if stream == 1 else stream).wait_event(event)
        return _capsule(self)


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_ALIVE: dict[int, Any] = {}


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy(capsule: int) -> None:
    """What every exporter's capsule does when nobody has taken it over."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
    exporter = _ALIVE.pop(get(capsule, b"dltensor"))[0]
    exporter.exports -= 1


def _capsule(exporter: Exporter) -> Any:
    from infercache.gpu.tensors import _DLTensor

    elements = exporter.elements
    axes, itemsize = elements.ndim, elements.itemsize
    shape = (ctypes.c_int64 * axes)(*elements.shape)
    strides = (ctypes.c_int64 * axes)(*(step // itemsize for step in elements.strides))
    tensor = _DLTensor()
    tensor.data, tensor.byte_offset, tensor.ndim = elements.ctypes.data - 64, 64, axes
    tensor.device.type, tensor.device.number = exporter._kind, 0
    tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = exporter._code, 8 * itemsize, 1
    tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
    address = ctypes.addressof(tensor)
    _ALIVE[address] = (exporter, tensor, shape, strides)
    exporter.exports += 1
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new(address, b"dltensor", ctypes.cast(_destroy, ctypes.c_void_p))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The device, with its CuPy in the place of the real one."""
    from infercache.gpu import hashing

    host_kernels.kernels()
    device = StandIn()
    monkeypatch.setitem(sys.modules, "cupy", device.cupy)
    hashing._forget(0)
    yield device
    hashing._forget(0)
