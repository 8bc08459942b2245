"""Arrays of CuPy, torch and others on a CUDA device that is none, for machines without one.

The device is that of `cupy_stand_in`: memory of the host, kernels compiled for it, and streams that do their work when
something waits for it, and not before. So a key of what a tensor was too early, or became later on the stream, would be
a wrong key.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cupy_stand_in
from cupy_stand_in import Machine
from host_kernels import kernels
from infercache.gpu import hashing
from infercache.gpu.tensors import _DLTensor

__all__ = ["Exporter", "StandIn", "fresh"]


class StandIn(Machine):
    """The device of `cupy_stand_in`, with arrays of CuPy, torch and others in its memory, and what is counted on it."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self._handles = itertools.count(0x1000, 0x10)
        self.cupy = self._cupy()
        self.torch = self._torch()

    def fault(self, operation: str) -> None:
        self.count["waits"] += operation == "synchronize"
        super().fault(operation)

    def launch(self, kernel: str, blocks: int, arguments: tuple[Any, ...]) -> Callable[[], None]:
        self.count["launches"] += 1
        self.count[kernel] += 1
        return super().launch(kernel, blocks, arguments)

    def new_stream(self) -> Any:
        """A stream of its own, as CuPy's users have them."""
        return self.cupy.cuda.ExternalStream(next(self._handles))

    def give(self, work: Callable[[], object], stream: Any = None) -> None:
        """Gives work to a stream, by default to the current one."""
        handle = self.current[-1] if stream is None else stream.ptr

        def operation() -> None:
            work()

        self.queue(handle).operations.append(operation)

    def finish(self) -> None:
        """Does all that was given to any stream."""
        for queue in list(self.queues.values()):
            while queue.step():
                pass

    # -- CuPy

    def _cupy(self) -> Any:
        cupy: Any = cupy_stand_in.module(self)
        cupy.cuda.get_current_stream = lambda: cupy.cuda.ExternalStream(self.current[-1])
        cupy.ndarray = _array_class("cupy", "ndarray", self)
        cupy.array = self._cupy_array
        cupy.ascontiguousarray = lambda array: array.copied()
        return cupy

    def _cupy_array(self, elements: Any, order: str = "C") -> Any:
        self.count["to device"] += 1
        return self.cupy.ndarray(np.array(elements, order=order))

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


class _Array:
    """Elements in the memory of the device, which streams read and write: what the arrays of CuPy and torch share."""

    stand_in: Any

    def __init__(self, elements: np.ndarray, where: str = "cuda", dtype: str | None = None) -> None:
        self.elements = elements
        self.where = where
        self._dtype = dtype or elements.dtype.name
        self.conjugated = self.negated = self.zero = False

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
        found = self.elements[item]
        return type(self)(found if isinstance(found, np.ndarray) else self.elements[item, ...], self.where)

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("the stand-in's arrays are not read through DLPack")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0) if self.where == "cuda" else (1, 0)

    def copied(self) -> Any:
        """A contiguous copy, made on the current stream, in memory that is overwritten once it is freed."""
        self.stand_in.count["made contiguous"] += 1
        memory = self.stand_in.cupy.cuda.alloc(self.nbytes).mem
        to = (ctypes.c_uint8 * self.nbytes).from_address(memory.ptr)
        copy = np.frombuffer(to, self.elements.dtype).reshape(self.shape)
        source = self.elements
        self.stand_in.give(lambda: np.copyto(copy, source))
        made = type(self)(copy, self.where)
        made.memory = memory
        return made

    def fill_(self, value: Any) -> None:
        """Overwrites the elements, on the current stream."""
        self.stand_in.give(lambda: self.elements.__setitem__(..., value))

    # -- CuPy

    data = property(lambda self: types.SimpleNamespace(ptr=self.elements.ctypes.data))

    def get(self, order: str = "C") -> np.ndarray:
        self.stand_in.count["to host"] += 1
        self.stand_in.cupy.cuda.get_current_stream().synchronize()
        return np.array(self.elements, order=order)

    # -- torch

    layout = "torch.strided"
    is_quantized = is_nested = is_meta = requires_grad = False
    is_cpu = property(lambda self: self.where == "cpu")

    def detach(self) -> Any:
        return self

    def is_conj(self) -> bool:
        return self.conjugated

    def is_neg(self) -> bool:
        return self.negated

    def is_complex(self) -> bool:
        return bool(self.elements.dtype.kind == "c")

    def is_floating_point(self) -> bool:
        return bool(self.elements.dtype.kind == "f")

    def _is_zerotensor(self) -> bool:
        return self.zero

    def clone(self) -> Any:
        """Of a tensor of zeros without memory, one with memory."""
        return type(self)(np.zeros(self.shape, self.elements.dtype), self.where)

    def resolve_neg(self) -> Any:
        return self._resolved(np.negative) if self.negated else self

    def resolve_conj(self) -> Any:
        return self._resolved(np.conjugate) if self.conjugated else self

    def _resolved(self, function: Any) -> Any:
        """A copy, made on the current stream, in which a bit's promise is kept."""
        made, source = type(self)(np.zeros(self.shape, self.elements.dtype), self.where), self.elements
        self.stand_in.give(lambda: function(source, out=made.elements))
        return made

    def data_ptr(self) -> int:
        return 0 if self.zero else int(self.elements.ctypes.data)

    def storage_offset(self) -> int:
        return 0

    def untyped_storage(self) -> Any:
        """Reaches from the first element to the last, in whatever order they lie."""
        return types.SimpleNamespace(nbytes=lambda: self.elements.nbytes)

    def numel(self) -> int:
        return int(self.elements.size)

    def element_size(self) -> int:
        return int(self.elements.itemsize)

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.elements.itemsize for step in self.elements.strides)

    def contiguous(self) -> Any:
        return self if self.elements.flags.c_contiguous else self.copied()

    def cpu(self) -> Any:
        self.stand_in.count["to host"] += 1
        self.stand_in.cupy.cuda.get_current_stream().synchronize()
        return type(self)(np.ascontiguousarray(self.elements).copy().reshape(self.shape), "cpu")

    def pin_memory(self) -> Any:
        self.stand_in.count["pinned"] += 1
        return self

    def to(self, where: str, non_blocking: bool = False) -> Any:
        self.stand_in.count["to device"] += 1
        return type(self)(self.elements.copy(), where)


def _array_class(module: str, name: str, device: StandIn) -> Any:
    """`cupy.ndarray` or `torch.Tensor` of a device."""
    if module == "torch":
        members = {
            "dtype": property(lambda self: f"torch.{self._dtype}"),
            "device": property(lambda self: types.SimpleNamespace(type=self.where, index=0)),
        }
    else:
        members = {
            "dtype": property(lambda self: self.elements.dtype),
            "device": property(lambda self: types.SimpleNamespace(id=0)),
            "strides": property(lambda self: self.elements.strides),
        }
    return type(name, (_Array,), {**members, "__module__": module, "__qualname__": name, "stand_in": device})


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
        cuda = self._device.cupy.cuda
        event = cuda.Event(disable_timing=True)
        event.record(self.stream)
        cuda.ExternalStream(0 if stream == 1 else stream).wait_event(event)
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


def fresh(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A device, with its CuPy in the place of the real one; nothing is left of another."""
    kernels()
    device = StandIn()
    monkeypatch.setitem(sys.modules, "cupy", device.cupy)
    monkeypatch.setattr(hashing, "_workspaces", type(hashing._workspaces)())
    monkeypatch.setattr(hashing, "_compiled", {})
    back = cupy_stand_in.MemoryPointer.copy_to_host_async

    def counted(*arguments: Any) -> None:
        device.count["copies back"] += 1
        back(*arguments)

    monkeypatch.setattr(cupy_stand_in.MemoryPointer, "copy_to_host_async", counted)
    return device
