"""Results that live on a device: to the host to be stored, and back to the device and stream of the call that hits.

An entry holds the elements as any array's, and whose tensor they were. What comes back is of the same library, on its
current device and, for CuPy and torch, its current stream. Where there is no such device now, the entry is a miss.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from infercache.errors import CorruptValue, UnreadableEntry
from infercache.gpu.tensors import is_out_of_memory
from infercache.uncacheable import callers_level

__all__ = ["cupy_array", "elements_of_cupy", "elements_of_jax", "jax_array", "torch_tensor"]

#: Bytes up to which a tensor goes to the device from pinned memory, whose copy waits for nothing that the stream does.
PINNED_UP_TO = 4 << 20

_warned: set[str] = set()


def elements_of_cupy(array: Any) -> npt.NDArray[Any]:
    """The elements of a CuPy array on the host, in its order; waits for the current stream."""
    return np.asarray(array.get(order="A"))


def elements_of_jax(array: Any) -> npt.NDArray[Any]:
    """The elements of a JAX array on the host.

    Raises:
        TypeError: a hit could not give it back as it is; the text says why.
    """
    if array.weak_type:
        raise TypeError(
            "a JAX array of weak type cannot be stored, since a hit would not promote as it does; give it a dtype"
        )
    if not isinstance(array.dtype, np.dtype):
        raise TypeError(f"a JAX array of dtype {array.dtype} cannot be stored")
    return np.asarray(sys.modules["jax"].device_get(array))


def cupy_array(elements: npt.NDArray[Any]) -> Any:
    """A CuPy array of these elements, on the current device and stream, in their order.

    Raises:
        CorruptValue: there is no such device here.
    """
    order = "F" if elements.flags.f_contiguous and not elements.flags.c_contiguous else "C"
    return _restored("CuPy", elements.nbytes, lambda: _import("cupy").array(elements, order=order))


def torch_tensor(tensor: Any) -> Any:
    """A torch tensor on the CPU, fresh, as one on the current CUDA device, by one copy on the current stream.

    Raises:
        CorruptValue: there is no such device here.
    """

    def to_device() -> Any:
        small = tensor.nbytes <= PINNED_UP_TO and tensor.numel() > 0
        return (tensor.pin_memory() if small else tensor).to("cuda", non_blocking=small)

    return _restored("torch", tensor.nbytes, to_device)


def jax_array(elements: npt.NDArray[Any]) -> Any:
    """A JAX array of these elements, on JAX's default device.

    Raises:
        CorruptValue: JAX is not here, or has not that dtype (64 bits are an option of its).
    """
    made = _restored("JAX", elements.nbytes, lambda: _import("jax").device_put(elements))
    if made.dtype != elements.dtype:
        raise CorruptValue(f"stored value is corrupt: JAX makes {made.dtype} of {elements.dtype} here (jax_enable_x64)")
    return made


def _import(name: str) -> Any:
    """A library whose tensors were stored, imported if need be: it was where they were stored."""
    return sys.modules.get(name) or __import__(name)


def _restored(library: str, nbytes: int, make: Callable[[], Any]) -> Any:
    """What `make` makes; whatever is in its way is a miss, since the model can still be asked. Warned of once."""
    try:
        return make()
    except Exception as error:
        if is_out_of_memory(error):
            reason = f"the device has no memory for the {nbytes} bytes of a stored result of {library}"
        else:
            reason = f"it is a result of {library} on a device, which it cannot go back to here ({error})"
        if library not in _warned:
            _warned.add(library)
            # Where warnings are errors, this one must not take the answer's place.
            with suppress(UnreadableEntry):
                text = f"an entry cannot be read, so it is a miss: {reason}"
                warnings.warn(text, UnreadableEntry, stacklevel=(callers_level() or 1) + 1)
        raise CorruptValue(f"stored value is corrupt: {reason}") from error
