"""Tensors on a CUDA device, of whichever library: where they lie, what their elements are, on whose stream.

`locate` reads nothing and waits for nothing. The dtype is the owner library's word, the stream the one on which the
caller's next work goes: CuPy's and torch's current stream of the tensor's device. JAX, and any other owner, is told
CuPy's by DLPack's stream argument, and has that stream wait for its own. No library is imported that the tensor did not
bring, but for CuPy, which launches the kernels.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from infercache.errors import DeviceError, UnsupportedInput
from infercache.gpu.plan import Signs

__all__ = ["DeviceTensor", "is_out_of_memory", "locate"]

#: The key specification's dtypes and the bytes of an element.
_ITEMSIZES = {
    **dict.fromkeys(["bool", "int8", "uint8"], 1),
    **dict.fromkeys(["float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"], 1),
    **dict.fromkeys(["float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"], 1),
    **dict.fromkeys(["int16", "uint16", "float16", "bfloat16"], 2),
    **dict.fromkeys(["int32", "uint32", "float32"], 4),
    **dict.fromkeys(["int64", "uint64", "float64", "complex64"], 8),
    "complex128": 16,
}

# DLPack's device types that a CUDA device reads: its memory, and managed memory.
_CUDA_MEMORY = (2, 13)
# What libraries raise for a tensor that cannot be exported.
_UNREADABLE = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)


class DeviceTensor(NamedTuple):
    """A tensor in the memory of a CUDA device."""

    dtype: str
    """The key specification's name of the element type."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In bytes; may be zero or negative."""
    itemsize: int
    """Bytes of an element."""
    pointer: int
    """Address of the element [0, 0, …] on the device."""
    device: int
    """Number of the device."""
    stream: int
    """Handle of the stream on which the elements are, or will be, what is meant."""
    owner: Any
    """Keeps the memory alive."""
    compact: Callable[[], DeviceTensor | None] | None = None
    """The same elements one behind the other, made by the owner library on the stream; None if it has no way to."""
    signs: Signs | None = None
    """Signs that are turned in what is hashed: torch's conjugate and negative bits."""

    @property
    def nbytes(self) -> int:
        """Bytes of the elements without gaps: what is hashed."""
        return math.prod(self.shape) * self.itemsize

    @property
    def whole(self) -> bool:
        """Whether the elements lie one behind the other in C order, as they are to be hashed."""
        if self.signs is not None:
            return False
        expected = self.itemsize
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1 and stride != expected:
                return self.nbytes == 0
            expected *= extent
        return True


def locate(tensor: Any) -> DeviceTensor | None:
    """Where the elements of a tensor lie, if that is on a CUDA device.

    Returns:
        None for what is elsewhere: on the host, on a device of another kind, on several devices, nowhere at all.

    Raises:
        UnsupportedInput: elements of a type that the key specification has no row for.
        DeviceError: CuPy is needed to say where a tensor lies, and missing.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _of_torch(torch, tensor)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(tensor, cupy.ndarray):
        return _of_cupy(cupy, tensor)
    jax = sys.modules.get("jax")
    return _of_dlpack(tensor, jax is not None and isinstance(tensor, jax.Array))


def _itemsize(tensor: Any, dtype: str) -> int:
    try:
        return _ITEMSIZES[dtype]
    except KeyError:
        kind = type(tensor)
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise UnsupportedInput(f"{name}: a tensor of dtype {dtype} has no form") from None


def _unreadable(tensor: Any, reason: str) -> UnsupportedInput:
    name = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    return UnsupportedInput(f"{name}: its elements cannot be read ({reason}); pass a copy on the host")


def _of_torch(torch: Any, tensor: Any) -> DeviceTensor | None:
    # `cuda` is what ROCm's devices are called, too.
    if tensor.device.type != "cuda" or getattr(torch.version, "hip", None) is not None:
        return None
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        return None  # refused in the same words as on the host
    dtype = str(tensor.dtype).removeprefix("torch.")
    itemsize = _itemsize(tensor, dtype)
    try:
        plain, signs = _plain(tensor.detach())
        pointer = plain.data_ptr()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if is_out_of_memory(error):
            raise DeviceError(f"a tensor's elements are made when they are read, and {reason}") from error
        raise _unreadable(tensor, reason) from error
    if not pointer and plain.numel():
        raise _unreadable(tensor, "its storage was freed")  # a kernel that reads there ends the context
    device = plain.device.index
    return DeviceTensor(
        dtype,
        tuple(plain.shape),
        tuple(itemsize * stride for stride in plain.stride()),
        itemsize,
        pointer,
        device,
        torch.cuda.current_stream(device).cuda_stream,
        plain,
        None if signs else lambda: locate(plain.contiguous()),
        signs,
    )


def _plain(tensor: Any) -> tuple[Any, Signs | None]:
    """A torch tensor that has memory, and the signs in which its elements differ from that.

    Conjugate and negative bits are promises about elements. They are kept bit by bit while the elements are read, as on
    the host: torch's own negation changes the bits of what is no number, and needs memory for all elements.
    """
    if tensor._is_zerotensor():
        return tensor.clone(), None
    negated, conjugated = tensor.is_neg(), tensor.is_conj()
    if negated and not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.resolve_neg(), None  # an integer's sign is no bit
    itemsize = tensor.element_size()
    part = itemsize // 2 if tensor.is_complex() else itemsize
    return tensor, Signs.of(itemsize, part, negated=negated, conjugated=conjugated)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory left, in the words of CuPy, torch or JAX."""
    return type(error).__name__ == "OutOfMemoryError" or "RESOURCE_EXHAUSTED" in str(error)


def _of_cupy(cupy: Any, array: Any) -> DeviceTensor | None:
    if not array.dtype.isnative:
        return None  # the host swaps the bytes
    dtype = array.dtype.name
    itemsize = _itemsize(array, dtype)
    device = array.device.id
    return DeviceTensor(
        dtype,
        tuple(array.shape),
        tuple(array.strides),
        itemsize,
        array.data.ptr,
        device,
        _current_stream(cupy, device),
        array,
        lambda: locate(cupy.ascontiguousarray(array)),
    )


def _current_stream(cupy: Any, device: int) -> int:
    from infercache.gpu import hashing

    with hashing._explained(cupy, device), cupy.cuda.Device(device):
        return int(cupy.cuda.get_current_stream().ptr)


# ---- DLPack ----------------------------------------------------------------------------------------------------------


class _DLDevice(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("number", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    """`DLTensor` of dlpack.h, with which a `DLManagedTensor` begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


#: By the codes of dlpack.h; those of several widths with a place for it.
_DLPACK_DTYPES = {
    0: "int{}",
    1: "uint{}",
    2: "float{}",
    4: "bfloat16",
    5: "complex{}",
    6: "bool",
    7: "float8_e3m4",
    8: "float8_e4m3",
    9: "float8_e4m3b11fnuz",
    10: "float8_e4m3fn",
    11: "float8_e4m3fnuz",
    12: "float8_e5m2",
    13: "float8_e5m2fnuz",
    14: "float8_e8m0fnu",
}


def _of_dlpack(tensor: Any, is_jax: bool) -> DeviceTensor | None:
    try:
        kind, device = tensor.__dlpack_device__()
    except _UNREADABLE:
        return None  # it does not say, or is on several devices: reading it will tell
    if int(kind) not in _CUDA_MEMORY:
        return None
    dtype = tensor.dtype.name if is_jax else None
    if dtype is not None:
        _itemsize(tensor, dtype)
    from infercache.gpu import hashing

    stream = _current_stream(hashing._cupy(), device)
    try:
        # 0 would be ambiguous: the legacy default stream is 1, the per-thread one 2, as in CUDA itself.
        capsule = tensor.__dlpack__(stream=stream or 1)
    except _UNREADABLE as error:
        if is_jax:
            return _of_jax_buffer(tensor, device, stream)
        raise _unreadable(tensor, str(error)) from error
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    found = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    if dtype is None:
        dtype = _DLPACK_DTYPES.get(found.dtype.code, f"of DLPack's code {found.dtype.code}").format(found.dtype.bits)
        if found.dtype.lanes != 1 or (dtype == "bool" and found.dtype.bits != 8):
            dtype = f"{dtype} of {found.dtype.bits} bits in {found.dtype.lanes} lanes"
    itemsize = _itemsize(tensor, dtype)
    shape = tuple(found.shape[: found.ndim])
    strides = (
        tuple(itemsize * stride for stride in found.strides[: found.ndim])
        if found.strides
        else _packed(shape, itemsize)
    )
    # Nobody takes the capsule over, so it gives the tensor back when it goes.
    return DeviceTensor(dtype, shape, strides, itemsize, (found.data or 0) + found.byte_offset, device, stream, capsule)


def _of_jax_buffer(tensor: Any, device: int, stream: int) -> DeviceTensor:
    """A JAX array of a dtype that its DLPack cannot name (float8 in most versions): by address, once it is computed."""
    dtype = tensor.dtype.name
    itemsize = _itemsize(tensor, dtype)
    tensor.block_until_ready()
    shape = tuple(tensor.shape)
    pointer = tensor.unsafe_buffer_pointer()
    return DeviceTensor(dtype, shape, _packed(shape, itemsize), itemsize, pointer, device, stream, tensor)


def _packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides of elements that lie one behind the other in C order."""
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
