"""blake3.cu's arithmetic, on the host (host_cuda.h): bit for bit the CPU's BLAKE3, whatever length, alignment, order.

That a GPU does the same is tested where there is one: test_gpu.py.
"""

from __future__ import annotations

import json
import mmap
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import blake3
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_blake3
from host_kernels import AS_WRITTEN, SOURCE, execute, found_compiler, kernels, launch
from infercache.gpu import plan as planning
from infercache.gpu.plan import CHUNK, DIGEST, FAN, JOB, RELATIVE, ROOT, THREADS, TILE, Strided, contiguous, strided

ORDERS = [AS_WRITTEN, AS_WRITTEN[::-1], tuple(random.Random(1).sample(range(THREADS), THREADS))]
LENGTHS = sorted(
    {0, 1, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025}
    | {2**power * CHUNK + around for power in range(11) for around in (-CHUNK, -1, 0, 1, CHUNK)}
)
DATA = np.random.default_rng(7).integers(0, 256, (36 << 20) + 64, np.uint8)
FIRST = -DATA.ctypes.data % 16  # DATA[FIRST:] is aligned


def on_host(data: npt.NDArray[np.uint8]) -> bytes:
    """What every digest is compared with."""
    return blake3.blake3(np.ascontiguousarray(data)).digest()


def placed(length: int, alignment: int = 0) -> npt.NDArray[np.uint8]:
    """So many bytes of DATA, at an address that is `alignment` modulo 16."""
    part = DATA[FIRST + alignment :][:length]
    assert part.ctypes.data % 16 == alignment or not length
    return part


def hashed(data: npt.NDArray[np.uint8], order: tuple[int, ...] = AS_WRITTEN, *, late: bool = False) -> bytes:
    """By the kernels."""
    (found,) = execute(contiguous([(data.ctypes.data, data.nbytes)]), order=order, late=late)
    return found


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    kernels()


def test_the_reference_is_blake3() -> None:
    """What the inner chaining values below are compared with."""
    for length in (0, 1, 64, 65, 1023, 1024, 1025, 3000, 5 * CHUNK, 9 * CHUNK + 1):
        assert reference_blake3.digest(placed(length).tobytes()) == on_host(placed(length))


def test_own_vectors_hold() -> None:
    """`tests/vectors/blake3.json`: computed once, so that this needs no other implementation."""
    vectors = json.loads((Path(__file__).parent / "vectors" / "blake3.json").read_text())["digests"]
    pattern = np.resize(np.arange(251, dtype=np.uint8), max(map(int, vectors)))
    assert len(vectors) == 25
    for length, digest in vectors.items():
        assert hashed(pattern[: int(length)]).hex() == digest, length


@pytest.mark.shared
def test_official_vectors_hold(shared: Path) -> None:
    path = shared / "conformance" / "blake3" / "test_vectors" / "test_vectors.json"
    cases = json.loads(path.read_text())["cases"]
    pattern = np.resize(np.arange(251, dtype=np.uint8), max(case["input_len"] for case in cases))
    assert len(cases) > 30
    for case in cases:
        assert hashed(pattern[: case["input_len"]]).hex() == case["hash"][: 2 * DIGEST], case["input_len"]


@pytest.mark.parametrize("order", ORDERS, ids=["ascending", "descending", "shuffled"])
@pytest.mark.parametrize("late", [False, True], ids=["copies_at_once", "copies_when_waited_for"])
def test_digest_is_the_cpus_for_every_length(order: tuple[int, ...], late: bool) -> None:
    for length in LENGTHS:
        assert hashed(placed(length), order, late=late) == on_host(placed(length)), length


@pytest.mark.parametrize("alignment", range(16))
def test_digest_is_the_cpus_at_every_alignment(alignment: int) -> None:
    for length in (1, 15, 16, 17, 33, 63, 64, 65, 1000, 1023, 1024, 1025, 5000, TILE * CHUNK - 1, TILE * CHUNK + 900):
        data = placed(length, alignment)
        assert hashed(data, ORDERS[2], late=True) == on_host(data), length


@settings(max_examples=60)
@given(
    length=st.integers(0, 600_000), alignment=st.integers(0, 15), order=st.permutations(AS_WRITTEN), late=st.booleans()
)
def test_digest_is_the_cpus_for_any_length(length: int, alignment: int, order: list[int], late: bool) -> None:
    data = placed(length, alignment)
    assert hashed(data, tuple(order), late=late) == on_host(data)


def test_two_levels_of_merges_and_odd_nodes() -> None:
    """More tiles than one block of `merge` takes, with an odd one at each level."""
    data = placed((FAN + 1) * TILE * CHUNK + 1)
    assert [launch.kernel for launch in contiguous([(0, data.nbytes)]).launches] == ["chunks", "merge", "merge"]
    assert hashed(data) == on_host(data)


@settings(max_examples=25)
@given(
    parts=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.one_of(st.integers(0, 5000), st.integers(0, 3 << 20))),
        min_size=1,
        max_size=12,
    )
)
def test_a_batch_has_the_digests_of_its_buffers(parts: list[tuple[int, int]]) -> None:
    buffers = [DATA[begin : begin + length] for begin, length in parts]
    found = execute(contiguous([(buffer.ctypes.data, buffer.nbytes) for buffer in buffers]), order=ORDERS[2])
    assert found == [on_host(buffer) for buffer in buffers]


def test_nothing_outside_the_input_is_read() -> None:
    """Between two pages that cannot be read, at every distance from either."""
    page = mmap.PAGESIZE
    room = mmap.mmap(-1, 4 * page)
    whole = np.frombuffer(room, np.uint8)
    whole[:] = np.resize(DATA, len(whole))
    expected = {}
    for at, length in bounds(page):
        expected[at, length] = on_host(whole[at : at + length])
    forbid(whole.ctypes.data, page)
    forbid(whole.ctypes.data + 3 * page, page)
    for (at, length), digest in expected.items():
        assert hashed(whole[at : at + length]) == digest, (at, length)


def bounds(page: int) -> Iterator[tuple[int, int]]:
    """(begin, length) within the two pages in the middle, that touch either end."""
    for length in (1, 3, 17, 63, 64, 100, 1024, 1027, 2 * page - 16, 2 * page - 1, 2 * page):
        for distance in range(17):
            if length + distance <= 2 * page:
                yield page + distance, length
                yield 3 * page - distance - length, length


def forbid(address: int, length: int) -> None:
    """Makes pages unreadable: reading one ends the process."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mprotect"):
        pytest.skip("this platform has no mprotect")
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), 0) == 0, ctypes.get_errno()


def test_no_byte_outside_inputs_and_workspaces_is_touched(tmp_path: Path) -> None:
    """Under AddressSanitizer, which sees bytes where the pages above see words."""
    program, source = tmp_path / "bounds", Path(__file__).with_name("host_bounds.cc")
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address", "-Wno-unknown-pragmas", "-I", str(source.parent)]
    built = subprocess.run(
        [found_compiler(), *flags, str(source), "-o", str(program)], check=False, capture_output=True, text=True
    )
    if "asan" in built.stderr and "cannot find" in built.stderr:
        pytest.skip("the C++ compiler has no AddressSanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def chaining_values(data: npt.NDArray[np.uint8], counter: int) -> bytes:
    """What `chunks` writes for a part of an input that begins with the chunk `counter`."""
    tiles = -(-data.nbytes // (TILE * CHUNK))
    room = np.zeros(JOB.itemsize + tiles * DIGEST, np.uint8)
    job = np.array([(data.ctypes.data, data.nbytes, counter, 0, JOB.itemsize, 0)], JOB)
    room[: JOB.itemsize] = job.view(np.uint8)
    launch("chunks", range(tiles), room.ctypes.data, (0, 1))
    return room[JOB.itemsize :].tobytes()


@pytest.mark.parametrize("counter", [0, 2**22 - TILE, 2**22, 2**32 - TILE, 2**32, 2**32 + 5 * TILE, 2**54 - 2 * TILE])
def test_counter_has_64_bits(counter: int) -> None:
    """A chunk's number enters its hash: 2**22 chunks are 4 GiB, 2**32 are 4 TiB."""
    data = placed(TILE * CHUNK + 1500)
    first, second = data[: TILE * CHUNK].tobytes(), data[TILE * CHUNK :].tobytes()
    expected = reference_blake3.chaining_value(first, counter) + reference_blake3.chaining_value(second, counter + TILE)
    assert chaining_values(data, counter) == expected


def test_tiles_beyond_4_gib_are_read_where_they_lie() -> None:
    """Of an input of 5 GiB whose pages are never touched but for three: those at 4 GiB and the last one."""
    size, tile = (5 << 30) + 700, TILE * CHUNK
    try:
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    except OSError as error:
        pytest.skip(f"no address space of 5 GiB: {error}")
    whole = np.frombuffer(room, np.uint8)
    spots = {4 << 30: 300, (4 << 30) - 300: 300, size - 300: 300}
    for at, length in spots.items():
        whole[at : at + length] = DATA[:length]
    plan = contiguous([(whole.ctypes.data, size)])
    space = np.zeros(plan.workspace, np.uint8)
    space[plan.table_at :][: len(plan.table)] = np.frombuffer(plan.table, np.uint8)
    chunks = plan.launches[0]
    output = int(np.frombuffer(plan.table, JOB)[0]["output"])
    for number in ((4 << 30) // tile - 1, (4 << 30) // tile, chunks.blocks - 1):
        launch("chunks", range(number, number + 1), space.ctypes.data, chunks.arguments)
        data = whole[number * tile : (number + 1) * tile].tobytes()
        expected = reference_blake3.chaining_value(data, number * TILE)
        assert space[output + number * DIGEST :][:DIGEST].tobytes() == expected, number


@settings(max_examples=60)
@given(data=st.data())
def test_strided_input_has_the_digest_of_its_contiguous_copy(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["u1", "u2", "u4", "u8", "c16"])))
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    begin = data.draw(st.integers(0, 17))
    count = int(np.prod(shape))
    array = DATA[begin : begin + count * dtype.itemsize].view(dtype).reshape(shape)
    array = array.transpose(data.draw(st.permutations(range(len(shape)))))
    steps = st.sampled_from([1, 1, 2, 3, -1, -2])
    array = array[tuple(slice(None, None, data.draw(steps)) for _ in shape)]
    if data.draw(st.booleans()):
        array = np.broadcast_to(array[..., None, :], (*array.shape[:-1], 3, array.shape[-1]))
    tensor = Strided(array.ctypes.data, array.shape, array.strides, array.itemsize)
    assert execute(strided(tensor), order=ORDERS[2]) == [
        on_host(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    ]


@pytest.mark.parametrize("block", [TILE * CHUNK, 3 * TILE * CHUNK, planning.BLOCK])
def test_strided_input_is_hashed_by_blocks(block: int) -> None:
    """Of which one place holds one after the other."""
    array = DATA[: 4 * 300 * 700].view(np.float32).reshape(300, 700).T
    array = np.broadcast_to(array[None], (2, 700, 300))
    plan = strided(Strided(array.ctypes.data, array.shape, array.strides, 4), block=block)
    blocks = -(-array.nbytes // block)
    assert [launch.kernel for launch in plan.launches] == ["gather", "chunks"] * blocks + ["merge"]
    assert plan.workspace < min(block, array.nbytes) + 8192
    assert execute(plan) == [on_host(np.ascontiguousarray(array).reshape(-1).view(np.uint8))]


def test_elements_beyond_32_bits_are_found() -> None:
    """More units than a number of 32 bits counts, of which only the last ones are gathered."""
    shape, unit = (3, 2**31), 1
    backing = DATA[:4096]
    layout = np.array([backing.ctypes.data, unit, 2, 0, 0, *shape, 1024, 0], np.uint64)
    room = np.zeros(1024, np.uint8)
    room[: layout.nbytes] = layout.view(np.uint8)
    first = 2 * 2**31 - 50
    launch("gather", range(1), room.ctypes.data, (0, first, 100, 512))
    assert room[512:612].tolist() == [backing[1024]] * 50 + [backing[2048]] * 50


@pytest.mark.parametrize("options", [("-DPIECE=64",)], ids=str)
def test_variants_that_the_benchmark_compares_hash_the_same(options: tuple[str, ...]) -> None:
    for length in (0, 1, 1025, 200_000):
        for alignment in (0, 3):
            data = placed(length, alignment)
            assert execute(contiguous([(data.ctypes.data, length)]), options=options) == [on_host(data)]


def test_kernel_and_plan_have_the_same_numbers() -> None:
    text = SOURCE.read_text()
    assert f"#define THREADS {THREADS} " in text
    assert f"#define UNITS_A_THREAD {planning.UNITS_A_THREAD} " in text
    assert f"JOB_ROOT = {ROOT}, JOB_RELATIVE = {RELATIVE};" in text
    assert (TILE, FAN, JOB.itemsize) == (THREADS, 2 * THREADS, 48)
