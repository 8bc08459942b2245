"""Tensors of other libraries as NumPy arrays over their elements: what the key of one is formed from.

A tensor on the host is not copied, whatever its strides. Where NumPy lacks the dtype (bfloat16, float8) the array holds
unsigned integers of the same width, or ml_dtypes' elements: the same bits. Nothing is imported here that the caller has
not imported: a tensor brings its library along.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infercache.errors import UnsupportedInput

if TYPE_CHECKING:
    from infercache.gpu.tensors import DeviceTensor

__all__ = ["Described", "describe"]


class Described(NamedTuple):
    """A tensor's elements."""

    dtype: str
    """The key specification's name of the element type."""
    elements: npt.NDArray[Any] | DeviceTensor
    """An array of the tensor's shape whose elements have its bits, over its own memory if that is on the host; of a
    tensor on a CUDA device where that lies, so that it is hashed there."""
    negated: bool = False
    """Whether every element's sign has still to be turned (torch's negative bit)."""
    conjugated: bool = False
    """Whether the sign of every imaginary part has still to be turned (torch's conjugate bit)."""


def describe(tensor: Any) -> Described:
    """The dtype's name and the elements of a tensor that is no NumPy array.

    Args:
        tensor: a `torch.Tensor` or `Parameter`, a `jax.Array`, or an object that offers DLPack; on any device.

    Raises:
        UnsupportedInput: a layout or dtype that the specification has no row for, or elements that cannot be read.
    """
    library = _library(tensor)
    if not _on_host(library, tensor):
        return _from_device(library, tensor)
    return _HOST_READERS[library](tensor)


def _library(tensor: Any) -> str:
    """Whose tensor it is, of the libraries that are not read through DLPack."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return "torch"
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(tensor, jax.Array):
        return "jax"
    return ""


# ---- where a tensor is -----------------------------------------------------------------------------------------------

# DLPack's numbers of memory that the host reads: its own, and what CUDA and ROCm have pinned.
_HOST_DEVICES = (1, 3, 11)


def _on_host(library: str, tensor: Any) -> bool:
    """Whether the elements are in memory of the host (those of a torch tensor on the meta device are nowhere)."""
    if library == "torch":
        return bool(tensor.is_cpu or tensor.is_meta)
    try:
        if library == "jax":
            return all(device.platform == "cpu" for device in tensor.devices())
        return tensor.__dlpack_device__()[0] in _HOST_DEVICES
    except (AttributeError, *_UNREADABLE):
        return True  # it does not say: reading it will tell


def _from_device(library: str, tensor: Any) -> Described:
    """A tensor that is not on the host: where it lies if CUDA's, else by a copy. The one place that knows devices."""
    from infercache.gpu.tensors import locate

    if (located := locate(tensor)) is not None:
        return Described(located.dtype, located)
    if library == "torch":
        _torch_dtype(tensor)  # what has no form is not copied first
        return _of_torch(tensor.cpu())
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(tensor, cupy.ndarray):
        return _of_array(tensor.get())
    if hasattr(type(tensor), "__array__"):
        return _of_array(_as_array(tensor))
    return _of_dlpack(tensor, dl_device=(1, 0))


# ---- tensors on the host ---------------------------------------------------------------------------------------------

# What libraries raise for a tensor whose elements cannot be had.
_UNREADABLE = (BufferError, RuntimeError, TypeError, ValueError)

# torch's elements and NumPy's text for them; of what NumPy has no type for, unsigned integers carry the bits.
_TORCH = {
    "bool": "|b1", "int8": "|i1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
    "uint8": "|u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8",
    "float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8", "complex64": "<c8", "complex128": "<c16",
    "float8_e4m3fn": "|u1", "float8_e4m3fnuz": "|u1", "float8_e5m2": "|u1", "float8_e5m2fnuz": "|u1",
    "float8_e8m0fnu": "|u1",
}  # fmt: skip
if sys.byteorder == "big":
    _TORCH = {name: code.replace("<", ">") for name, code in _TORCH.items()}


class _Memory:
    """Somebody's memory, as NumPy takes it over without a copy."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: object, interface: dict[str, Any]) -> None:
        self.owner = owner  # lives as long as the array
        self.__array_interface__ = interface


def _of_torch(tensor: Any) -> Described:
    """A torch tensor, by its address: `numpy()` would fix the size of its storage for ever, and knows fewer dtypes."""
    dtype, typestr = _torch_dtype(tensor)
    try:
        # Of its own, so that the memory stays if somebody gives the tensor another one meanwhile.
        alias = tensor.detach()
        negated, conjugated = alias.is_neg(), alias.is_conj()
        if negated and not (alias.is_floating_point() or alias.is_complex()):
            alias, negated = alias.resolve_neg(), False  # an integer's sign is no bit
        if alias._is_zerotensor():
            alias = alias.clone()  # one that has no memory
        itemsize = alias.element_size()
        _check_storage(alias, itemsize)
        interface = {
            "version": 3,
            "data": (alias.data_ptr(), True),
            "shape": tuple(alias.shape),
            "strides": tuple(itemsize * stride for stride in alias.stride()),
            "typestr": typestr,
        }
        return Described(dtype, np.asarray(_Memory(alias, interface)), negated, conjugated)
    except UnsupportedInput:
        raise
    except _UNREADABLE as error:
        raise _unreadable(tensor, error) from error


def _check_storage(tensor: Any, itemsize: int) -> None:
    """Whoever resizes a storage (FSDP does) leaves the tensors over it as they are, which then reach beyond it."""
    if not tensor.numel():
        return
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    wanted = (tensor.storage_offset() + last + 1) * itemsize
    there = tensor.untyped_storage().nbytes()
    if there < wanted:
        raise UnsupportedInput(
            f"torch.Tensor: its elements take {wanted:,} bytes and its storage has {there:,}: it was shrunk; "
            "gather the tensor first (FSDP: summon_full_params), or pass a copy that was made before"
        )


def _torch_dtype(tensor: Any) -> tuple[str, str]:
    """The name of a torch tensor's dtype, and NumPy's text for it, if the tensor has a form."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise UnsupportedInput(
            f"torch.Tensor: a tensor of layout {tensor.layout} and dtype {dtype} has no form; pass tensor.to_dense() "
            "or its dequantized values"
        )
    if tensor.is_meta:
        raise UnsupportedInput("torch.Tensor: a tensor on the meta device has no elements")
    typestr = _TORCH.get(dtype)
    if typestr is None:
        raise UnsupportedInput(f"torch.Tensor: a tensor of dtype {dtype} has no form")
    return dtype, typestr


def _of_jax(tensor: Any) -> Described:
    """A JAX array: waits until it is computed; of arrays that are spread over several devices this makes a whole."""
    return _of_array(_as_array(tensor))


def _of_other(tensor: Any) -> Described:
    """What another library offers: DLPack, or else `__array__`."""
    try:
        return _of_dlpack(tensor)
    except UnsupportedInput:
        if not hasattr(type(tensor), "__array__"):
            raise
        return _of_array(_as_array(tensor))


def _of_dlpack(tensor: Any, **options: Any) -> Described:
    from infercache._core import DLPackTensor  # which imports this module

    try:
        try:
            capsule = tensor.__dlpack__(max_version=(1, 1), **options)
        except TypeError:
            if options:
                raise
            capsule = tensor.__dlpack__()  # of a library from before version 1
        lent = DLPackTensor(capsule)
        return Described(lent.dtype, np.asarray(lent))
    except _UNREADABLE as error:
        raise _unreadable(tensor, error) from error


def _as_array(tensor: Any) -> npt.NDArray[Any]:
    """What `__array__` gives: elements that NumPy lacks are ml_dtypes'."""
    try:
        elements = np.asanyarray(tensor)
    except _UNREADABLE as error:
        raise _unreadable(tensor, error) from error
    if type(elements) is not np.ndarray:
        raise UnsupportedInput(
            f"{_name(tensor)}: its array is a {_name(elements)}, which may hold more than its elements; "
            "pass a NumPy array"
        )
    return elements


def _of_array(elements: npt.NDArray[Any]) -> Described:
    return Described(elements.dtype.name, elements)


def _name(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _unreadable(tensor: Any, error: Exception) -> UnsupportedInput:
    reason = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, UnsupportedInput):
        return UnsupportedInput(f"{_name(tensor)}: {reason}; convert it, or pass a NumPy array")
    return UnsupportedInput(f"{_name(tensor)}: its elements cannot be read ({reason}); pass a NumPy array")


_HOST_READERS = {"torch": _of_torch, "jax": _of_jax, "": _of_other}
