"""Bytes, arrays, buffers and images: docs/key-specification.md, sections 2 and 3."""

from __future__ import annotations

import array
import ctypes
import json
import mmap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import infercache
import reference
from infercache import Cache, UnsupportedInput, canonical_json

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 and float8 are not tested")
DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
ML = (
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
)


def tensor(value: Any) -> dict[str, Any]:
    """The inside of a tensor's form."""
    found = json.loads(canonical_json(value))["$tensor"]
    assert isinstance(found, dict)
    return found


def test_digests_are_plain_blake3(shared: Path) -> None:
    folder = shared / "conformance" / "blake3" / "test_vectors"
    cases = json.loads((folder / "test_vectors.json").read_text())["cases"]
    assert len(cases) == 35
    for case in cases:
        content = bytes(n % 251 for n in range(case["input_len"]))
        found = json.loads(canonical_json([content, np.frombuffer(content, "u1")]))
        assert found[0]["$bytes"] == case["hash"][:64]
        assert found[1]["$tensor"]["blake3"] == case["hash"][:64]


LENGTHS = st.lists(st.integers(0, 5), max_size=4)


@given(LENGTHS, st.sampled_from(DTYPES), st.randoms(use_true_random=False))
def test_layout_never_shows(shape: list[int], code: str, random: Any) -> None:
    dtype = np.dtype(code)
    count = int(np.prod(shape, dtype=int))
    plain = np.frombuffer(random.randbytes(count * dtype.itemsize), "u1").copy()
    if code == "?":
        plain &= 1
    plain = plain.view(dtype).reshape(shape)
    expected = canonical_json(plain)
    assert expected.decode() == reference.tensor(plain)
    strided = np.zeros([2 * length + 1 for length in shape], dtype)[(..., *(slice(1, None, 2) for _ in shape))]
    strided[...] = plain
    reversed_twice = np.asarray(np.flip(np.flip(plain).copy()))
    unaligned = np.frombuffer(b"\0" + plain.tobytes() + b"\0", np.uint8)[1:-1].view(dtype).reshape(shape)
    frozen = plain.copy()
    frozen.flags.writeable = False
    fortran = np.array(plain, order="F")
    layouts = [fortran, strided, reversed_twice, unaligned, frozen, plain.astype(dtype.newbyteorder(">"))]
    layouts += [plain.T.copy().T, fortran.astype(dtype.newbyteorder(">"))]
    for other in layouts:
        assert canonical_json(other) == expected


def test_zero_strides_are_read_as_often_as_they_say() -> None:
    spread = np.broadcast_to(np.arange(3, dtype="f4"), (1000, 3))
    assert canonical_json(spread) == canonical_json(spread.copy())
    assert canonical_json(np.broadcast_to(np.float32(1), (70, 70))) == canonical_json(np.ones((70, 70), "f4"))


def test_large_arrays_of_every_layout_have_the_references_digest() -> None:
    base = np.random.default_rng(1).integers(0, 255, (300, 70, 50), dtype="u1")
    for made in (
        base,
        base.T,
        base[::2, ::-1],
        base.transpose(1, 0, 2),
        base.transpose(2, 0, 1),
        base[:, :, 3],
        base.view("u2"),
    ):
        assert canonical_json(made).decode() == reference.tensor(made)
    wide = np.random.default_rng(2).random((700, 900))
    for other in (
        wide,
        wide.T,
        wide[:, ::3],
        wide.T[::-1],
        wide.astype(">f8"),
        wide.astype(">f8").T,
        wide.astype("c16").T,
    ):
        assert canonical_json(other).decode() == reference.tensor(other)


def test_bits_count_and_so_do_dtype_and_shape() -> None:
    zeros = [np.zeros(4, code) for code in DTYPES]
    assert len({canonical_json(made) for made in zeros}) == len(DTYPES)
    made = [
        np.zeros((2, 3)),
        np.zeros((3, 2)),
        np.zeros(6),
        np.zeros((1, 6)),
        np.zeros((2, 0)),
        np.zeros((0, 2)),
        np.zeros(0),
    ]
    assert len({canonical_json(shape) for shape in made}) == len(made)
    assert canonical_json(np.array([0.0])) != canonical_json(np.array([-0.0]))
    nans = np.array([0x7FF8000000000000, 0x7FF8000000000001], "u8").view("f8")
    assert canonical_json(nans[:1]) != canonical_json(nans[1:])


@pytest.mark.parametrize("name", ML)
def test_the_dtypes_of_ml_dtypes_are_tensors_and_their_scalars_numbers(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    values = np.arange(1, 13).astype(dtype).reshape(3, 4)
    found = tensor(values)
    assert found["dtype"] == name
    assert found["shape"] == [3, 4]
    assert found["blake3"] == reference.digest(values.tobytes())
    assert canonical_json(values.T) == canonical_json(values.T.copy())
    assert canonical_json(values[1, 1]) == canonical_json(float(values[1, 1]))


@pytest.mark.parametrize("name", ["int4", "uint4", "float4_e2m1fn", "float6_e2m3fn"])
def test_sub_byte_dtypes_are_refused(name: str) -> None:
    if not hasattr(ml_dtypes, name):
        pytest.skip(f"this ml_dtypes has no {name}")
    with pytest.raises(UnsupportedInput, match="dtype"):
        canonical_json(np.zeros(3, getattr(ml_dtypes, name)))


class Doubled(np.ndarray[Any, Any]):
    """A subclass that might mean something else."""


@pytest.mark.parametrize(
    "value",
    [
        np.array([None]),
        np.zeros(2, np.longdouble),
        np.zeros(2, np.clongdouble),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "m8[s]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, "V4"),
        np.ma.masked_array([1.0], [True]),
        np.zeros(2).view(np.recarray),
        np.zeros(2).view(Doubled),
        np.longdouble(1),
        np.complex128(1),
        np.datetime64(1, "s"),
        np.timedelta64(1, "s"),
        np.zeros(1, "V4")[0],
        np.empty((2, 0), "U3"),
        np.empty((0,), "S3"),
        np.zeros(1, [("a", "f4")])[0],
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_arrays_and_scalars_without_a_row_are_refused(value: Any) -> None:
    with pytest.raises(UnsupportedInput):
        canonical_json(value)


def test_variable_length_strings_are_refused() -> None:
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("NumPy 1 has no StringDType")
    with pytest.raises(UnsupportedInput):
        canonical_json(np.array(["a", "bc"], np.dtypes.StringDType()))


def test_memmap_and_matrix_are_plain_arrays(tmp_path: Path) -> None:
    plain = np.arange(12, dtype="f4").reshape(3, 4)
    mapped = np.memmap(tmp_path / "m", "f4", "w+", shape=(3, 4))
    mapped[...] = plain
    matrix: Any = plain.view(np.matrix)
    assert canonical_json(mapped) == canonical_json(plain) == canonical_json(matrix)


def test_text_arrays_are_their_lists() -> None:
    for made in (
        np.array([["a", "bc"], ["", "é😀"]]),
        np.array("x"),
        np.array([b"a", b"\xff"]),
        np.array(["a"] * 3).astype(">U4"),
    ):
        assert canonical_json(made) == canonical_json(made.tolist())


def test_numpy_scalars_are_their_items() -> None:
    for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"):
        scalar = np.array([3], code)[0]
        assert canonical_json(scalar) == canonical_json(scalar.item())
    assert canonical_json(np.float32(0.1)) == b"0.10000000149011612"
    assert canonical_json({np.str_("a"): np.bytes_(b"x")}) == canonical_json({"a": b"x"})
    assert canonical_json({np.int64(1): 2}) == b'{"$map":[[1,2]]}'
    assert canonical_json(np.longlong(5)) == b"5"


def test_bytes_are_bytes_whatever_holds_them(tmp_path: Path) -> None:
    content = bytes(range(100))
    path = tmp_path / "content"
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        holders = [
            bytearray(content),
            memoryview(content),
            memoryview(bytearray(content)),
            array.array("B", content),
            mapped,
        ]
        holders.append(memoryview(content).cast("c"))
        for holder in holders:
            assert canonical_json(holder) == canonical_json(content), type(holder)
    assert canonical_json(b"") == canonical_json(bytearray()) == f'{{"$bytes":"{reference.digest(b"")}"}}'.encode()


def test_other_buffers_are_tensors() -> None:
    for code, dtype in zip(
        "bBhHiIlLqQfd", ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "i8", "u8", "f4", "f8"), strict=True
    ):
        made = array.array(code, [1, 2, 3])
        expected = np.array([1, 2, 3], dtype)
        if made.itemsize == expected.itemsize and code != "B":
            assert canonical_json(made) == canonical_json(expected), code
    grid = memoryview(bytes(range(24)))
    assert canonical_json(grid.cast("B", (2, 3, 4))) == canonical_json(np.arange(24, dtype="u1").reshape(2, 3, 4))
    assert canonical_json(grid[::2]) == canonical_json(np.arange(0, 24, 2, dtype="u1"))
    assert canonical_json(grid.cast("H")[::-1]) == canonical_json(np.frombuffer(grid, "<u2")[::-1])
    assert canonical_json(memoryview(b"\1").cast("B", ())) == canonical_json(np.array(1, "u1"))
    assert canonical_json(memoryview(np.arange(4, dtype=">i4"))) == canonical_json(np.arange(4, dtype="i4"))
    assert canonical_json((ctypes.c_double * 3)(1, 2, 3)) == canonical_json(np.array([1.0, 2.0, 3.0]))
    assert tensor(memoryview(b"\0\1").cast("?"))["dtype"] == "bool"
    assert tensor(memoryview(np.zeros(2, "c8")))["dtype"] == "complex64"
    for refused in (
        array.array("u", "ab"),
        memoryview(np.zeros(2, [("a", "f4"), ("b", "i2")])),
        memoryview(b"ab").cast("c", (1, 2)),
    ):
        with pytest.raises(UnsupportedInput):
            canonical_json(refused)
    released = memoryview(b"x")
    released.release()
    with pytest.raises((UnsupportedInput, ValueError)):
        canonical_json(released)


def test_one_dimensional_uint8_arrays_are_tensors_and_not_bytes() -> None:
    """An array keeps its kind whatever its strides or the library that made it; see the page on open points."""
    plain = np.arange(9, dtype="u1")
    assert tensor(plain) == tensor(np.repeat(plain, 2)[::2])
    assert tensor(plain)["dtype"] == "uint8"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"])
def test_images_are_mode_size_and_pixels(mode: str) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    bands = {"1": 1, "L": 1, "LA": 2, "RGBA": 4, "CMYK": 4, "I": 4, "F": 4, "I;16": 2}.get(mode, 3)
    pixels = bytes(n * 7 % 256 for n in range(6 * 5 * bands)) if mode != "1" else bytes(range(5))
    image = image_module.frombytes(mode, (6, 5), pixels)
    image.info["comment"] = "metadata does not count"
    expected = f'{{"$image":{{"blake3":"{reference.digest(image.tobytes())}","mode":"{mode}","size":[6,5]}}}}'
    assert canonical_json(image).decode() == expected


@pytest.mark.parametrize("mode", ["RGB", "P"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_an_image_that_cannot_be_read_is_an_error_that_leads_to_it(tmp_path: Path, mode: str, kind: str) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    path = tmp_path / f"photo.{kind.lower()}"
    noise = np.random.default_rng(7).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image_module.fromarray(noise).convert(mode).save(path)

    @Cache("1MB").memoize(model="m", version="1", operation="embed")
    def embed(image: Any) -> int:
        raise AssertionError

    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with image_module.open(path) as image:
        leads = rf'^input\.photos\[1\]: PIL\..*its pixels in "{path.name}" cannot be read \(.*; pass an image whose'
        with pytest.raises(UnsupportedInput, match=leads):
            canonical_json({"photos": [1, image]})
        with pytest.raises(UnsupportedInput, match=r"^input\.image: PIL\."):
            embed(image)
    with pytest.raises(UnsupportedInput, match=r"its pixels in .* cannot be read"):
        canonical_json(image)  # of a file that is closed


def test_palette_images_are_their_colours_and_other_modes_are_refused(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image = image_module.new("RGB", (4, 3), (10, 20, 30))
    palette = image.convert("P")
    assert canonical_json(palette) == canonical_json(palette.convert("RGBA"))
    reordered = palette.copy()
    reordered.putpalette([255 - colour for colour in palette.getpalette()])
    assert canonical_json(reordered) != canonical_json(palette)  # the same indices, other colours
    for transparent in (0, bytes([0, 128, 255])):
        clear = palette.copy()
        clear.info["transparency"] = transparent
        assert canonical_json(clear) == canonical_json(clear.convert("RGBA"))
        assert canonical_json(clear) != canonical_json(palette)
    alpha = palette.convert("PA")
    alpha.putalpha(7)
    assert alpha.mode == "PA"
    assert canonical_json(alpha) == canonical_json(alpha.convert("RGBA")) != canonical_json(palette)
    image.save(tmp_path / "x.png")
    with image_module.open(tmp_path / "x.png") as opened:
        assert canonical_json(opened) == canonical_json(image)
    with pytest.raises(UnsupportedInput, match="mode"):
        canonical_json(image_module.new("RGBX", (2, 2)))


def test_large_buffers_are_hashed_with_the_gil_released() -> None:
    content = np.zeros(1 << 28, "u1")
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    begun = time.perf_counter()
    canonical_json(content)
    ended = time.perf_counter()
    stop.set()
    thread.join()
    assert sum(begun < moment < ended for moment in ticks) >= 2  # another thread ran meanwhile


def test_a_bytearray_cannot_be_resized_while_it_is_hashed() -> None:
    content = bytearray(1 << 27)
    outcomes: list[str] = []
    done = threading.Event()

    def resize() -> None:
        while not done.is_set():
            try:
                content.append(1)
                content.pop()
            except BufferError:
                outcomes.append("refused")

    thread = threading.Thread(target=resize)
    thread.start()
    found = canonical_json(content)
    done.set()
    thread.join()
    assert found.startswith(b'{"$bytes":')
    assert outcomes


def test_a_gibibyte_is_hashed_where_it_lies() -> None:
    large = np.zeros(1 << 30, "u1")
    assert tensor(large)["shape"] == [1 << 30]
    assert canonical_json(large.reshape(1 << 15, 1 << 15).T) == canonical_json(large.reshape(1 << 15, 1 << 15))


def test_keys_of_arrays_are_made_by_many_threads_at_once() -> None:
    made = [np.full(100_000, n, "f4") for n in range(8)]
    expected = [canonical_json(one) for one in made]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(20):
            for n, one in enumerate(made):
                if infercache.canonical_json(one) != expected[n]:
                    wrong.append(n)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
