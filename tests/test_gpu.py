"""On a GPU: that it computes what the host does, and keeps to its streams. `make test-gpu` runs it, under
compute-sanitizer too where that is installed. What needs no GPU is in test_gpu_kernels.py and test_gpu_hashing.py.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercache import DeviceError
from infercache.gpu import hashing, through_host
from infercache.gpu.hashing import Pending, enqueue, enqueue_strided, fallbacks
from infercache.gpu.plan import CHUNK, FAN, TILE, Signs, Strided

cupy = pytest.importorskip("cupy", reason="CuPy is not installed: pip install 'infercache[gpu-cuda12]', or -cuda13")


def unusable() -> str | None:
    """Why there is no GPU here."""
    try:
        return None if cupy.cuda.runtime.getDeviceCount() else "CUDA finds no device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return str(error)


pytestmark = pytest.mark.skipif(unusable() is not None, reason=f"no GPU that can be used: {unusable()}")

LENGTHS = sorted(
    {0, 1, 63, 64, 65, 1023, 1024, 1025}
    | {2**power * CHUNK + around for power in range(1, 12) for around in (-CHUNK, -1, 0, 1, CHUNK)}
    | {(FAN + 1) * TILE * CHUNK + 1}
)


@pytest.fixture(autouse=True)
def _no_fallback() -> Iterator[None]:
    """What is tested here was done by the device, unless a test says otherwise."""
    before = fallbacks()
    yield
    assert fallbacks() == before


@pytest.fixture(scope="module")
def data() -> Any:
    """40 MiB on the device, at an address that is a multiple of 16."""
    return cupy.asarray(np.random.default_rng(5).integers(0, 256, 40 << 20, np.uint8))


@pytest.fixture(scope="module")
def host(data: Any) -> npt.NDArray[np.uint8]:
    """The same on the host."""
    return cupy.asnumpy(data)


def begun(*arrays: Any, stream: Any = None) -> Pending:
    """Hashing of contiguous arrays."""
    stream = cupy.cuda.get_current_stream() if stream is None else stream
    return enqueue([(array.data.ptr, array.nbytes) for array in arrays], device=0, stream=stream.ptr)


def on_host(array: npt.NDArray[Any]) -> bytes:
    """What is expected."""
    return blake3.blake3(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).digest()


def test_every_length(data: Any, host: npt.NDArray[np.uint8]) -> None:
    for length in LENGTHS:
        assert begun(data[:length]).join() == [on_host(host[:length])], length


@pytest.mark.parametrize("alignment", range(16))
def test_every_alignment(data: Any, host: npt.NDArray[np.uint8], alignment: int) -> None:
    for length in (1, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, TILE * CHUNK - 1, TILE * CHUNK, 3 * TILE * CHUNK + 5):
        part = slice(alignment, alignment + length)
        assert begun(data[part]).join() == [on_host(host[part])], length


@settings(max_examples=100, deadline=None)
@given(begin=st.integers(0, 1 << 20), length=st.integers(0, 32 << 20))
def test_any_part(data: Any, host: npt.NDArray[np.uint8], begin: int, length: int) -> None:
    part = slice(begin, begin + length)
    assert begun(data[part]).join() == [on_host(host[part])]


def test_the_ends_of_an_allocation(host: npt.NDArray[np.uint8]) -> None:
    """Of its own, so that compute-sanitizer sees a byte too many."""
    for length in (1, 15, 17, 100, 1000, 1027, 5000, TILE * CHUNK + 77):
        memory = cupy.cuda.Memory(length)
        memory_pointer = cupy.cuda.MemoryPointer(memory, 0)
        array = cupy.ndarray(length, np.uint8, memory_pointer)
        array.set(host[:length])
        for begin in (0, 1) if length > 1 else (0,):
            assert begun(array[begin:]).join() == [on_host(host[begin:length])], (length, begin)


def test_batches(data: Any, host: npt.NDArray[np.uint8]) -> None:
    chance = random.Random(2)
    for count in (1, 2, 1000):
        parts = []
        for _ in range(count):
            begin = chance.randrange(1 << 20)
            parts.append(slice(begin, begin + chance.choice([0, 1, 1000, 5000, 200_000, 1_000_003])))
        assert begun(*(data[part] for part in parts)).join() == [on_host(host[part]) for part in parts]


def test_a_tensor_overwritten_by_later_work_keeps_its_digest() -> None:
    for _ in range(20):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            array = cupy.arange(8 << 20, dtype=cupy.int32)
            pending = begun(array, stream=stream)
            array.fill(0)
            assert pending.join() == [on_host(np.arange(8 << 20, dtype=np.int32))]


def test_work_before_it_on_the_stream_comes_first() -> None:
    for number in range(20):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            array = cupy.zeros(8 << 20, cupy.int32)
            for _ in range(10):
                array += number
            assert begun(array, stream=stream).join() == [on_host(np.full(8 << 20, 10 * number, np.int32))]


def test_streams_side_by_side_do_not_touch_one_another(data: Any, host: npt.NDArray[np.uint8]) -> None:
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(6)]
    chance = random.Random(4)
    waiting = []
    for _ in range(300):
        part = slice(begin := chance.randrange(1 << 20), begin + chance.randrange(4 << 20))
        waiting.append((part, begun(data[part], stream=chance.choice(streams))))
    for part, pending in waiting:
        assert pending.join() == [on_host(host[part])]


def test_threads_side_by_side(data: Any, host: npt.NDArray[np.uint8]) -> None:
    found: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        with cupy.cuda.Device(0), cupy.cuda.Stream(non_blocking=True) as stream:
            for _ in range(20):
                found[number] = begun(data[number : 3_000_000 + number], stream=stream).join()

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [on_host(host[number : 3_000_000 + number])] for number in range(8)}


def test_strided_input(data: Any, host: npt.NDArray[np.uint8]) -> None:
    chance = random.Random(9)
    for dtype in ("u1", "f2", "f4", "f8", "c16"):
        for begin in (0, 16, 3 * np.dtype(dtype).itemsize):
            size = 60 * 70 * 80
            views = []
            for array in (data, host):
                cube = array[begin : begin + size * np.dtype(dtype).itemsize].view(dtype).reshape(60, 70, 80)
                views.append(
                    [cube.T, cube[::2], cube[:, ::-3], cube[..., 5:], cube.transpose(1, 0, 2), cube[:1, :1, ::7]]
                )
            chance.shuffle(order := list(range(len(views[0]))))
            for at in order:
                there, here = views[0][at], views[1][at]
                tensor = Strided(there.data.ptr, there.shape, there.strides, there.itemsize)
                stream = cupy.cuda.get_current_stream().ptr
                assert enqueue_strided(tensor, device=0, stream=stream).join() == [on_host(here)], (dtype, begin, at)


def test_a_strided_input_of_several_blocks() -> None:
    array = cupy.arange(60 << 20, dtype=cupy.int32).reshape(-1, 1024).T
    tensor = Strided(array.data.ptr, array.shape, array.strides, 4)
    pending = enqueue_strided(tensor, device=0, stream=cupy.cuda.get_current_stream().ptr)
    assert pending.join() == [on_host(np.arange(60 << 20, dtype=np.int32).reshape(-1, 1024).T)]


def test_more_than_4_gib() -> None:
    size = (4 << 30) + TILE * CHUNK + 1000
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < size + (1 << 30):
        pytest.skip(f"{free >> 20} MiB free on the device, and this takes {(size >> 20) + 1024}")
    array = cupy.empty(size, cupy.uint8)
    array[: size // 4 * 4].view(cupy.uint32)[...] = cupy.arange(size // 4, dtype=cupy.uint32)
    array[size // 4 * 4 :] = 7
    assert begun(array).join() == [blake3.blake3(cupy.asnumpy(array)).digest()]


def test_without_device_memory_the_bytes_go_to_the_host_and_that_is_counted(
    data: Any, host: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = cupy.get_default_memory_pool()
    before, limit = fallbacks(), pool.get_limit()
    monkeypatch.setattr(hashing, "_workspaces", type(hashing._workspaces)())
    pool.free_all_blocks()
    pool.set_limit(max(pool.used_bytes(), 1))
    try:
        found = begun(data).join()
    finally:
        pool.set_limit(limit)
    assert found == [on_host(host)]
    assert fallbacks() == before + 1
    monkeypatch.setattr(hashing, "_fallbacks", before)  # the one that was wanted


@pytest.mark.parametrize("code", ["kernels loaded", "no memory for the kernels' code"])
def test_strided_input_goes_through_pinned_blocks_as_well(
    data: Any, host: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(through_host, "BLOCK", 1 << 16)
    kernels = hashing._kernels(cupy, 0) if code == "kernels loaded" else None
    lane = cupy.cuda.get_current_stream()
    for cut in (lambda cube: cube.T, lambda cube: cube[::2, ::-3], lambda cube: cube[..., 5:], lambda cube: cube[:0]):
        there, here = (cut(array[: 60 * 70 * 80 * 8].view(np.complex64).reshape(60, 70, 80)) for array in (data, host))
        tensor = Strided(there.data.ptr, there.shape, there.strides, there.itemsize)
        assert through_host.strided(cupy, lane, tensor, kernels) == on_host(here)
        signs = Signs.of(8, 4, negated=True, conjugated=False)
        turned = here.copy()
        turned.view(np.uint8)[..., 3::4] ^= 0x80
        assert through_host.strided(cupy, lane, tensor, kernels, signs) == on_host(turned)
        pending = enqueue_strided(tensor, device=0, stream=lane.ptr, signs=signs)
        assert pending.join() == [on_host(turned)]


def test_a_device_that_is_none_is_an_error_that_names_it(data: Any) -> None:
    with pytest.raises(DeviceError, match="GPU 99"):
        enqueue([(data.data.ptr, 1_000_000)], device=99, stream=0)
