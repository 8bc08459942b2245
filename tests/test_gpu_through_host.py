"""Hashing where a device has no memory left for it: block by block through the host, on a stand-in for CuPy."""

from __future__ import annotations

import sys
import tracemalloc
from functools import partial
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infercache
from cupy_stand_in import CUDADriverError, Machine
from device_stand_in import StandIn
from device_stand_in import fresh as fresh_arrays
from infercache import DeviceError, _core
from infercache.gpu import through_host
from infercache.gpu.hashing import enqueue, enqueue_strided, fallbacks
from infercache.gpu.plan import Sheet, Strided, sheets
from test_gpu_hashing import buffer, fresh, layout

key = partial(infercache.key, model="m", version="1")
RNG = np.random.default_rng(29)
NO_CODE = CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A device without memory."""
    machine = fresh(monkeypatch)
    machine.room = 0
    return machine


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A device with arrays, of which `key` is asked."""
    return fresh_arrays(monkeypatch)


def digest(array: npt.NDArray[Any]) -> list[bytes]:
    """What is expected."""
    return [blake3.blake3(np.ascontiguousarray(array).tobytes()).digest()]


# ---- bounded memory --------------------------------------------------------------------------------------------------

LARGE: dict[str, Any] = {
    "contiguous": lambda held: held,
    "transposed": lambda held: held.view(np.float32).reshape(-1, 4000).T,
    "every second": lambda held: held.view(np.complex128).reshape(-1, 2000)[:, ::2],
    "reversed rows": lambda held: held.reshape(-1, 20_000)[::-1],
    "broadcast": lambda held: np.broadcast_to(held[:3000], (20_000, 3000)),
    "two columns": lambda held: held[:6_400_000].reshape(-1, 32)[:, ::16],  # a copy for each row
}


@pytest.mark.parametrize("of", LARGE)
@pytest.mark.parametrize("code", ["kernels loaded", "no memory for the kernels' code"])
def test_out_of_memory_the_host_needs_two_blocks_whatever_the_size(machine: Machine, of: str, code: str) -> None:
    held = buffer(64_000_000)
    array = LARGE[of](held)
    expected, before = digest(array), fallbacks()
    if code != "kernels loaded":
        machine.faults["compile"] = [NO_CODE] * 3
    tracemalloc.start()
    try:
        if of == "contiguous":
            pending = enqueue([(held.ctypes.data, held.nbytes)], device=0, stream=7)
        else:
            pending = enqueue_strided(layout(array), device=0, stream=7)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pending.join() == expected
    assert fallbacks() == before + 1
    assert sum(machine.pinned) <= 2 * through_host.BLOCK + 4096
    assert peak <= 2 * through_host.BLOCK + (4 << 20), "what is not pinned does not grow with the tensor"
    assert through_host.BLOCK <= 64 << 20


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_out_of_memory_any_layout_has_the_digest_of_its_elements(data: st.DataObject) -> None:
    base = RNG.integers(0, 256, 40_000, dtype=np.uint8)
    kind = data.draw(st.sampled_from(["u1", "i2", "f4", "c8", "c16"]))
    size = np.dtype(kind).itemsize
    axes = data.draw(st.integers(0, 4))
    shape = tuple(data.draw(st.integers(0, 5)) for _ in range(axes))
    steps = tuple(data.draw(st.integers(-20, 20)) * size for _ in range(axes))
    low = sum(min(0, (n - 1) * step) for n, step in zip(shape, steps, strict=True) if n)
    begin = -low + data.draw(st.integers(0, 3))
    array: Any = np.ndarray(shape, kind, base, begin, steps)
    with pytest.MonkeyPatch.context() as patch:
        machine = fresh(patch)
        machine.room = 0
        patch.setattr(through_host, "BLOCK", data.draw(st.sampled_from([16, 64, 1024, 1 << 20])))
        machine.faults["compile"] = [NO_CODE] * data.draw(st.sampled_from([0, 3]))
        assert enqueue_strided(layout(array), device=0, stream=7).join() == digest(array)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_copies_without_a_kernel_take_each_element_once_and_in_order(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(0, 4)) for _ in range(data.draw(st.integers(0, 4))))
    strides = tuple(data.draw(st.sampled_from([-64, -8, 0, 4, 8, 12, 64, 3 << 30])) for _ in shape)
    tensor = Strided(1 << 40, shape, strides, 4)
    most = data.draw(st.sampled_from([16, 32, 1024]))
    found: list[int] = []
    for sheet in sheets(tensor, most):
        assert 0 < sheet.nbytes <= most
        assert sheet.width % 4 == 0, "whole elements"
        assert sheet.height == 1 or sheet.width <= sheet.pitch < 2**31
        found += [sheet.address + row * sheet.pitch + at for row in range(sheet.height) for at in range(sheet.width)]
    expected = [
        tensor.pointer + sum(at * stride for at, stride in zip(index, strides, strict=True)) + byte
        for index in np.ndindex(*shape)
        for byte in range(4)
    ]
    assert found == expected


def test_a_matrix_is_copied_by_rows_and_columns_not_by_elements() -> None:
    matrix = Strided(4096, (1000, 300), (2048, 4), 4)  # a part of each row
    assert list(sheets(matrix, 1 << 20)) == [Sheet(4096, 1200, 2048, 873), Sheet(4096 + 873 * 2048, 1200, 2048, 127)]
    transposed = Strided(4096, (300, 1000), (4, 2048), 4)
    assert list(sheets(transposed, 1 << 20))[:2] == [Sheet(4096, 4, 2048, 1000), Sheet(4100, 4, 2048, 1000)]


# ---- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strided", [False, True])
def test_out_of_memory_later_work_on_the_stream_does_not_show(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, strided: bool
) -> None:
    monkeypatch.setattr(through_host, "BLOCK", 1 << 16)
    host = RNG.random((300, 200), np.float32)
    array = stand_in.cupy.ndarray(np.zeros((200, 300), np.float32).T if strided else np.zeros((300, 200), np.float32))
    array.fill_(host)  # work that comes before the key
    stand_in.room = 0
    lazy = key(array)
    array.fill_(1)
    stand_in.finish()
    assert lazy == key(host)


def test_out_of_memory_an_interruption_leaves_no_copy_on_its_way(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(through_host, "BLOCK", 1 << 16)
    held = buffer(1 << 20)

    class Interrupted:
        def update(self, _: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(_core, "_Blake3", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        enqueue([(held.ctypes.data, held.nbytes)], device=0, stream=7)
    assert not machine.queue(7).operations, "pinned memory that is given back is somebody else's"


def test_neither_pinned_nor_device_memory_is_an_error_that_says_so(machine: Machine) -> None:
    held = buffer(1 << 20)
    runtime = sys.modules["cupy"].cuda.runtime
    machine.faults["pinned"] = [runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")] * 2
    with pytest.raises(DeviceError, match="no memory is left, on the device or pinned on the host"):
        enqueue([(held.ctypes.data, held.nbytes)], device=0, stream=7)


# ---- tensors ---------------------------------------------------------------------------------------------------------


def test_a_small_key_that_is_dropped_leaves_its_pinned_memory_alone_until_the_device_is_done(
    stand_in: StandIn,
) -> None:
    first, second = RNG.random(100, np.float32), RNG.random(100, np.float32)
    del_me = key(stand_in.cupy.ndarray(first))
    del del_me
    other = key(stand_in.cupy.ndarray(second))
    assert len(stand_in.pinned) == 2, "the first one's copy is still to come"
    assert other == key(second)
    for host in (first, second, first):
        assert key(stand_in.cupy.ndarray(host)) == key(host)
    assert len(stand_in.pinned) == 2, "used again once the device is done"


# ---- the hash --------------------------------------------------------------------------------------------------------


def test_bytes_in_parts_have_the_digest_of_the_whole() -> None:
    data = RNG.integers(0, 256, 300_000, dtype=np.uint8)
    for length in (0, 1, 1024, 1025, 300_000):
        for part in (1000, 1024, 65_536):
            hasher = _core._Blake3()
            for begin in range(0, length, part):
                hasher.update(data[begin : min(begin + part, length)])
            assert hasher.digest() == blake3.blake3(data[:length]).digest()
    with pytest.raises(BufferError, match="one after another"):
        _core._Blake3().update(data[::2])


def test_once_there_is_memory_again_keys_are_made_on_the_device_again(stand_in: StandIn) -> None:
    small, large = np.ones(1 << 18, np.uint8), np.ones(64 << 20, np.uint8)
    expected = bytes(key(small))
    assert bytes(key(stand_in.cupy.ndarray(small))) == expected
    stand_in.finish()
    stand_in.room = 0
    assert bytes(key(stand_in.cupy.ndarray(large))) == bytes(key(large))  # through the host
    assert bytes(key(stand_in.cupy.ndarray(small))) == expected
    stand_in.finish()
    stand_in.room = 1 << 40
    before = fallbacks()
    assert bytes(key(stand_in.cupy.ndarray(small))) == expected
    assert fallbacks() == before


def test_a_context_that_is_gone_is_a_device_error_wherever_cuda_says_so(stand_in: StandIn) -> None:
    gone = stand_in.cupy.cuda.runtime.CUDARuntimeError("cudaErrorContextIsDestroyed: context is destroyed")
    for earlier in range(3):
        stand_in.faults["device"] = [gone]
        with pytest.raises(DeviceError, match="closed or reset"):
            bytes(key(stand_in.cupy.ndarray(np.ones((1 << 20) + earlier, np.uint8))))
