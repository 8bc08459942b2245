"""What launches blake3.cu, on a stand-in for CuPy (cupy_stand_in.py): its streams, its memory, its errors.

The launches themselves are tested where a GPU is: test_gpu.py.
"""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
from collections.abc import Sequence

import blake3
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cupy_stand_in
from cupy_stand_in import CompileException, CUDADriverError, CUDARuntimeError, Machine
from host_kernels import kernels
from infercache import DeviceError
from infercache.gpu import hashing, through_host
from infercache.gpu.hashing import Pending, enqueue, enqueue_strided, fallbacks, prefers_host
from infercache.gpu.plan import Strided

Buffer = npt.NDArray[np.uint8]
RANDOM = np.random.default_rng(11)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a GPU of a kind."""
    return fresh(monkeypatch)


def fresh(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The same; nothing is left of another one."""
    kernels()
    machine = Machine()
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in.module(machine))
    monkeypatch.setattr(hashing, "_workspaces", type(hashing._workspaces)())
    monkeypatch.setattr(hashing, "_compiled", {})
    return machine


def buffer(size: int) -> Buffer:
    """Device memory with something in it."""
    return RANDOM.integers(0, 256, size, np.uint8)


def begun(buffers: Sequence[Buffer], stream: int = 7) -> Pending:
    """Hashing of whole buffers."""
    return enqueue([(one.ctypes.data, one.nbytes) for one in buffers], device=0, stream=stream)


def digests(buffers: Sequence[Buffer]) -> list[bytes]:
    """What is expected."""
    return [blake3.blake3(np.ascontiguousarray(one)).digest() for one in buffers]


def test_a_batch_has_the_digests_of_its_buffers(machine: Machine) -> None:
    buffers = [buffer(size) for size in (0, 1, 1024, 70_000, 300_001, 2_000_000)]
    assert begun(buffers).join() == digests(buffers)
    assert enqueue([], device=0, stream=7).join() == []
    assert machine.compiled == 1


def test_enqueue_waits_for_nothing(machine: Machine) -> None:
    one = buffer(5000)
    pending = begun([one])
    assert not pending.done()
    assert len(machine.queue(7).operations) == 4  # the table, a kernel, the digests, the event
    assert pending.join() == digests([one])
    assert pending.done()


def test_a_batch_is_one_launch_a_level_and_one_copy_back(machine: Machine) -> None:
    begun([buffer(300_000) for _ in range(20)])
    assert len(machine.queue(7).operations) == 5  # the table, chunks, merge, the digests, the event


def test_a_tensor_overwritten_by_later_work_keeps_its_digest(machine: Machine) -> None:
    one = buffer(400_000)
    expected = digests([one])
    pending = begun([one])
    machine.queue(7).operations.append(lambda: one.fill(0))
    while machine.queue(7).step():
        pass
    assert not one.any()
    assert pending.join() == expected


def test_work_before_it_on_the_stream_comes_first(machine: Machine) -> None:
    one = buffer(400_000)
    machine.queue(7).operations.append(lambda: one.fill(0))
    assert begun([one]).join() == digests([np.zeros(400_000, np.uint8)])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_streams_interleaved_in_any_way_do_not_touch_one_another(seed: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine, chance = fresh(monkeypatch), random.Random(seed)
        waiting: list[tuple[Pending, list[bytes]]] = []
        for _ in range(30):
            action = chance.random()
            stream = chance.choice([1, 2, 5, 9])
            if action < 0.5:
                buffers = [buffer(chance.choice([10, 5000, 200_000, 600_000])) for _ in range(chance.randrange(1, 4))]
                waiting.append((begun(buffers, stream), digests(buffers)))
                machine.queue(stream).operations.append(lambda buffers=buffers: [one.fill(1) for one in buffers])
            elif action < 0.8:
                for _ in range(chance.randrange(8)):
                    machine.queue(stream).step()
            elif action < 0.9 and waiting:
                pending, expected = waiting.pop(chance.randrange(len(waiting)))
                assert pending.join() == expected
            elif waiting:  # somebody lost interest
                waiting.pop(chance.randrange(len(waiting)))
        for pending, expected in waiting:
            assert pending.join() == expected


def test_a_workspace_is_used_again(machine: Machine) -> None:
    one = buffer(400_000)
    for _ in range(10):
        assert begun([one]).join() == digests([one])
    assert len(machine.allocated) == 1
    begun([one], stream=8).join()
    assert len(machine.allocated) == 2


def test_a_new_stream_with_an_old_ones_handle_waits_for_its_work(machine: Machine) -> None:
    first, second = buffer(400_000), buffer(400_000)
    old = begun([first])
    destroyed = machine.queues.pop(7)  # what it was given still runs
    new = begun([second])
    for _ in range(2):
        machine.queue(7).step()
    while destroyed.step():
        pass
    assert new.join() == digests([second])
    assert old.join() == digests([first])


def test_a_dropped_result_leaves_its_memory_alone_until_the_device_is_done(machine: Machine) -> None:
    first, second = buffer(100), buffer(200)
    begun([first])
    gc.collect()
    pending = begun([second])
    assert len(machine.pinned) == 2, "the first one's copies are still to come"
    assert pending.join() == digests([second])
    for one in (first, second, first):
        assert begun([one]).join() == digests([one])
    assert len(machine.pinned) == 2, "used again once the device is done"
    assert pending.join() == digests([second])


def test_any_number_of_threads_join(machine: Machine) -> None:
    one = buffer(300_000)
    pending = begun([one])
    found: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(pending.join())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [digests([one])] * 8


def test_what_a_caller_does_to_the_list_is_its_own_affair(machine: Machine) -> None:
    one = buffer(10)
    pending = begun([one])
    pending.join().clear()
    assert pending.join() == digests([one])


def test_idle_workspaces_of_many_streams_are_given_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "MOST_WORKSPACES", 4)
    one = buffer(10)
    kept = begun([one], stream=100)  # not done: stays
    for stream in range(200, 220):
        assert begun([one], stream=stream).join() == digests([one])
    assert len(hashing._workspaces) <= 5
    assert (0, 100, 0) in hashing._workspaces
    assert kept.join() == digests([one])


def test_the_per_thread_stream_is_another_one_in_each_thread(machine: Machine) -> None:
    one = buffer(10)
    begun([one], stream=hashing.PER_THREAD_STREAM).join()
    thread = threading.Thread(target=lambda: begun([one], stream=hashing.PER_THREAD_STREAM).join())
    thread.start()
    thread.join()
    assert len(hashing._workspaces) == 2


def test_a_strided_tensor_is_made_contiguous_on_the_device(machine: Machine) -> None:
    array = buffer(6 * 700 * 500).reshape(500, 700, 6)[::-1, ::2].transpose(1, 0, 2)
    pending = enqueue_strided(layout(array), device=0, stream=7)
    assert pending.join() == digests([array])
    assert not machine.to_host


def layout(array: Buffer) -> Strided:
    """Where an array lies, and how."""
    return Strided(array.ctypes.data, array.shape, array.strides, array.itemsize)


def test_without_device_memory_the_bytes_go_to_the_host_and_that_is_counted(machine: Machine) -> None:
    buffers = [buffer(0), buffer(5000), buffer((9 << 20) + 5)]
    expected, before = digests(buffers), fallbacks()
    machine.room = 0
    pending = begun(buffers)
    for one in buffers:
        one.fill(0)  # later than what was asked for
    assert pending.done()
    assert pending.join() == expected
    assert fallbacks() == before + 1
    assert max(machine.to_host) <= through_host.BLOCK
    assert sum(machine.to_host) == 5000 + (9 << 20) + 5


@pytest.mark.parametrize("error", [CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")], ids=str)
def test_no_memory_for_the_kernels_code_is_no_memory(machine: Machine, error: Exception) -> None:
    one, before = buffer(5000), fallbacks()
    machine.faults["compile"] = [error]
    assert begun([one]).join() == digests([one])
    assert fallbacks() == before + 1
    assert begun([one]).join() == digests([one])  # and the next time on the device
    assert fallbacks() == before + 1


def test_a_strided_tensor_takes_a_small_block_before_it_goes_to_the_host(machine: Machine) -> None:
    array = buffer(2_000_000).reshape(1000, 2000).T
    before = fallbacks()
    machine.room = 1_000_000
    assert enqueue_strided(layout(array), device=0, stream=7).join() == digests([array])
    assert fallbacks() == before
    hashing._workspaces.clear()
    machine.room = 0
    assert enqueue_strided(layout(array[::-1]), device=0, stream=7).join() == digests([array[::-1]])
    assert fallbacks() == before + 1


def test_without_cupy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"infercache\[gpu-cuda12\].*infercache\[gpu-cuda13\]"):
        enqueue([(0, 0)], device=0, stream=0)


@pytest.mark.parametrize(
    ("operation", "error", "says"),
    [
        (
            "device",
            CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient"),
            "update the driver",
        ),
        ("launch", CUDADriverError("CUDA_ERROR_INVALID_HANDLE: invalid resource handle"), "context that was closed"),
        ("launch", CUDADriverError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"), "the device failed"),
        ("compile", CompileException("error: no such thing"), "does not compile"),
        ("pinned", CUDARuntimeError("cudaErrorContextIsDestroyed: context is destroyed"), "context that was closed"),
    ],
)
def test_errors_of_cuda_say_what_to_do(machine: Machine, operation: str, error: Exception, says: str) -> None:
    one = buffer(5000)
    machine.faults[operation] = [error]
    with pytest.raises(DeviceError, match=says) as raised:
        begun([one])
    assert str(error) in str(raised.value)
    assert raised.value.__cause__ is error
    assert begun([one], stream=8).join() == digests([one]), "what is made anew afterwards works"


def test_a_device_that_fails_later_says_so_at_the_join(machine: Machine) -> None:
    pending = begun([buffer(10)])
    machine.faults["synchronize"] = [CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")]
    with pytest.raises(DeviceError, match="was freed"):
        pending.join()
    assert hashing._workspaces == {}


def test_small_tensors_go_to_the_host() -> None:
    assert prefers_host(0)
    assert prefers_host(hashing.HOST_BELOW - 1)
    assert not prefers_host(hashing.HOST_BELOW)


def test_nothing_is_imported_before_a_tensor_on_a_device_is_met() -> None:
    code = "import sys, infercache; infercache.key([1.0], model='m', version='1'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"cupy", "infercache.gpu.hashing", "infercache.gpu.plan"} & set(loaded)


def test_stand_in_has_cupys_names(machine: Machine) -> None:
    """Where CuPy is installed, which needs no GPU."""
    installed = subprocess.run(
        [sys.executable, "-c", NAMES],
        check=False,
        capture_output=True,
        text=True,
        input="\n".join(sorted(used(machine))),
    )
    if "No module named 'cupy'" in installed.stderr:
        pytest.skip("CuPy is not installed: pip install 'infercache[gpu-cuda12]'")
    assert installed.returncode == 0, installed.stderr
    assert installed.stdout == ""


NAMES = """
import sys, cupy
for line in sys.stdin.read().split():
    place = cupy
    for name in line.split("."):
        place = getattr(place, name, None)
    if place is None:
        print(line)
"""


def used(machine: Machine) -> set[str]:
    """The names that the stand-in has, dotted, below `cupy`."""
    cuda = cupy_stand_in.module(machine).cuda
    names = {"RawModule", "RawModule.get_function"}
    for name, value in vars(cuda).items():
        names |= {f"cuda.{name}.{inner}" for inner in getattr(value, "__dict__", {})} | {f"cuda.{name}"}
    names |= {f"cuda.Event.{name}" for name in ("record", "done", "synchronize")}
    names |= {f"cuda.ExternalStream.{name}" for name in ("wait_event", "synchronize", "__enter__", "__exit__")}
    names |= {f"cuda.MemoryPointer.{name}" for name in ("copy_from_host_async", "copy_to_host_async", "__add__", "ptr")}
    return names | {"cuda.PinnedMemoryPointer.ptr"}
