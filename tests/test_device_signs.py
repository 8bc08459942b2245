"""torch's promises about elements on a device: conjugate and negative bits, zeros without memory, none at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

import infercache
from device_stand_in import StandIn, fresh
from infercache import Cache
from infercache.gpu import through_host

key = partial(infercache.key, model="m", version="1")
RNG = np.random.default_rng(23)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A device of a kind."""
    return fresh(monkeypatch)


SIGNS = [
    *((kind, *bits) for kind in ("complex64", "complex128") for bits in ((True, False), (False, True), (True, True))),
    *((kind, False, True) for kind in ("float16", "float32", "float64")),
]
SIGNED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda host: host,
    "transposed": lambda host: host.T,
    "sliced": lambda host: host[::-2, 1::3],
    "0-d": lambda host: host[3, 4, ...],
    "empty": lambda host: host[:0],
    "unaligned": lambda host: np.frombuffer(b"x" + host.tobytes(), np.uint8)[1:].view(host.dtype).reshape(host.shape),
}


@pytest.mark.parametrize(("kind", "conjugated", "negated"), SIGNS)
@pytest.mark.parametrize("layout", SIGNED)
@pytest.mark.parametrize("memory", ["memory", "no memory", "no memory for the kernels' code"])
def test_conjugate_and_negative_bits_are_turned_bit_by_bit_where_the_tensor_lies(
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    conjugated: bool,
    negated: bool,
    layout: str,
    memory: str,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    monkeypatch.setattr(through_host, "BLOCK", 1 << 14)
    dtype = np.dtype(kind)
    bits = RNG.integers(0, 256, (90, 110, dtype.itemsize), np.uint8)  # what is no number keeps its bits, too
    host = SIGNED[layout](bits.view(dtype)[..., 0])
    turned = np.frombuffer(host.tobytes(), np.uint8).copy()
    part = dtype.itemsize // (2 if kind.startswith("complex") else 1)
    if negated:
        turned[part - 1 :: part] ^= 0x80
    if conjugated:
        turned[dtype.itemsize - 1 :: dtype.itemsize] ^= 0x80
    tensor = stand_in.torch.Tensor(host)
    tensor.conjugated, tensor.negated = conjugated, negated
    before = Cache("1MB").stats().hashed_on_host
    if memory != "memory":
        stand_in.room = 0
    if memory == "no memory for the kernels' code":
        stand_in.faults["compile"] = [stand_in.cupy.cuda.driver.CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: …")] * 3
    assert key(tensor) == key(turned.view(dtype).reshape(host.shape))
    assert stand_in.count["to host"] == 0
    if layout != "empty":
        hashed_on_host = memory != "memory" or (layout == "unaligned" and part > 1)
        assert Cache("1MB").stats().hashed_on_host == before + hashed_on_host


def test_an_integer_with_a_negative_bit_is_negated(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    host = RNG.integers(-100, 100, (300, 200), np.int32)
    tensor = stand_in.torch.Tensor(host)
    tensor.negated = True
    assert key(tensor) == key(-host)


def test_a_tensor_of_zeros_without_memory_has_the_key_of_zeros(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    tensor = stand_in.torch.Tensor(np.zeros((300, 200), np.float32))
    tensor.zero = True
    assert key(tensor) == key(np.zeros((300, 200), np.float32))


@pytest.mark.parametrize("why", ["freed", "wrapped", "no memory"])
def test_a_tensor_that_cannot_be_read_never_comes_to_a_kernel(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A kernel that reads where nothing is ends the process's use of the device."""
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    tensor = stand_in.torch.Tensor(np.ones((300, 200), np.float32))
    error: type[Exception] = infercache.UnsupportedInput
    if why == "freed":
        monkeypatch.setattr(tensor, "data_ptr", lambda: 0)
        says = r"^input\.image: .*Tensor: its elements cannot be read \(its storage was freed\)"
    elif why == "wrapped":

        def no_storage() -> int:
            raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage\nException …")

        monkeypatch.setattr(tensor, "data_ptr", no_storage)
        says = r"^input\.image: .*Tensor: its elements cannot be read \(Cannot access data pointer .* storage\)"
    else:
        tensor.zero = True

        def full() -> object:
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 1 GiB")

        monkeypatch.setattr(tensor, "clone", full)
        error, says = infercache.DeviceError, "made when they are read, and CUDA out of memory"
    with pytest.raises(error, match=says):
        key({"image": tensor})
    assert stand_in.count["launches"] == 0
