"""Tensors of other libraries as (dtype, elements): what the key of one is formed from.

`describe` gives the specification's name of the dtype and a NumPy array over the elements, contiguous or not.
Where NumPy lacks the dtype (bfloat16, float8) the array holds unsigned integers of the same width: the same bits.
Nothing is imported here that the caller has not imported: a tensor brings its library along.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from infercache.errors import UnsupportedInput

if TYPE_CHECKING:
    from infercache.gpu.tensors import DeviceTensor

__all__ = ["describe"]

# NumPy has no such element; unsigned integers of the same width carry the same bits.
_CARRIERS = {
    "bfloat16": "uint16",
    "float8_e3m4": "uint8",
    "float8_e4m3": "uint8",
    "float8_e4m3b11fnuz": "uint8",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
    "float8_e8m0fnu": "uint8",
}


def describe(tensor: Any) -> tuple[str, npt.NDArray[Any] | DeviceTensor]:
    """The dtype's name and the elements of a tensor that is no NumPy array.

    Args:
        tensor: a `torch.Tensor` or `Parameter`, or an object that offers DLPack; on any device.

    Returns:
        The key specification's dtype name, and an array of the tensor's shape whose elements have its bits; of a tensor
        on a CUDA device where that lies, so that it is hashed there.

    Raises:
        UnsupportedInput: a layout or dtype that the specification has no row for.
    """
    if not _on_host(tensor):
        from infercache.gpu.tensors import locate

        if (located := locate(tensor)) is not None:
            return located.dtype, located
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _of_torch(torch, tensor)
    return _of_dlpack(tensor)


# DLPack's numbers of memory that the host reads: its own, and what CUDA and ROCm have pinned.
_HOST_DEVICES = (1, 3, 11)


def _on_host(tensor: Any) -> bool:
    """Whether the elements are in memory of the host (those of a torch tensor on the meta device are nowhere)."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return bool(tensor.is_cpu or tensor.is_meta)
    try:
        return tensor.__dlpack_device__()[0] in _HOST_DEVICES
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return True  # it does not say: reading it will tell


def _of_torch(torch: Any, tensor: Any) -> tuple[str, npt.NDArray[Any]]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_nested:
        raise UnsupportedInput(
            f"torch.Tensor: a tensor of layout {tensor.layout} and dtype {dtype} has no form; pass tensor.to_dense() "
            "or its dequantized values"
        )
    if tensor.device.type == "meta":
        raise UnsupportedInput("torch.Tensor: a tensor on the meta device has no elements")
    # Conjugate and negative bits are promises about elements: keep them before the bits are read.
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    carrier = _CARRIERS.get(dtype)
    if carrier is not None:
        plain = plain.view(getattr(torch, "int16" if carrier == "uint16" else "uint8"))
    try:
        return dtype, np.asarray(plain.numpy())
    except TypeError as error:
        raise UnsupportedInput(f"torch.Tensor: a tensor of dtype {dtype} has no form ({error})") from error


def _of_dlpack(tensor: Any) -> tuple[str, npt.NDArray[Any]]:
    elements = _elements(tensor)
    name = elements.dtype.name
    carrier = _CARRIERS.get(name)
    if carrier is not None:
        # As one-byte or two-byte integers: the bits stay, strides too.
        elements = elements.view(carrier)
    return name, np.asarray(elements)


def _elements(tensor: Any) -> npt.NDArray[Any]:
    """The elements on the host: of the object itself where it says how, else by DLPack."""
    kind = type(tensor)
    name = f"{kind.__module__}.{kind.__qualname__}"
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(tensor, cupy.ndarray):
        return np.asarray(tensor.get())
    try:
        if hasattr(kind, "__array__"):
            # JAX: gives ml_dtypes' types for what NumPy lacks, and copies from a device.
            return np.asarray(tensor)
        return np.asarray(np.from_dlpack(tensor))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedInput(f"{name}: its elements cannot be read ({error}); pass a NumPy array") from error
