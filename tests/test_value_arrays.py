"""Arrays and tensors as results: bits, dtype, order; read-only over the cache's own buffer; batches, row by row."""

from __future__ import annotations

import ctypes
import gc
import itertools
import sys
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercache import canonical_json
from infercache._core import SharedBuffer, _decode_value, _encode_value, _Stored
from infercache.errors import CorruptValue
from same import decode_or_corrupt, reason, restored, same

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 and the float8 family")

NUMBERS = ["?", "i1", "i2", "i4", "i8", "q", "u1", "u2", "u4", "u8", "Q", "f2", "f4", "f8", "c8", "c16"]
OTHERS = ["U1", "U7", "S1", "S9", "M8[ns]", "M8[3D]", "M8", "m8[us]", "m8", "M8[25s]"]
FOREIGN = [
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]
DTYPES = [
    *(np.dtype(code) for code in NUMBERS + OTHERS),
    *(np.dtype(code).newbyteorder(">") for code in NUMBERS + OTHERS if np.dtype(code).itemsize > 1 and code[0] != "S"),
    *(np.dtype(getattr(ml_dtypes, name)) for name in FOREIGN),
]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (5,), (2, 3), (0, 3), (3, 0), (2, 3, 4), (1, 1, 1, 2), (2,) * 12]


def filled(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    """An array of arbitrary bits, or of arbitrary text."""
    count = int(np.prod(shape))
    random = np.random.default_rng(seed)
    if dtype.kind == "U":
        points = random.integers(0, 0x110000, (count, dtype.itemsize // 4)).astype(
            "<u4" if dtype.str[0] == "<" else ">u4"
        )
        return points.view(dtype).reshape(shape)
    bits = random.integers(0, 2 if dtype.kind == "b" else 256, count * dtype.itemsize).astype(np.uint8)
    return bits.view(dtype).reshape(shape)


def layouts(array: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The same elements as they may lie in memory."""
    doubled = tuple(slice(None, 2 * n, 2) for n in array.shape[:-1])
    padded = np.empty((*(2 * n for n in array.shape[:-1]), 3 * array.shape[-1]) if array.ndim else (1,), array.dtype)
    strided = padded[(*doubled, slice(None, None, 3))] if array.ndim else padded[0:1].reshape(())
    strided[...] = array
    return {
        "C": np.ascontiguousarray(array).reshape(array.shape),
        "Fortran": np.asfortranarray(array).reshape(array.shape, order="F"),
        "strided": strided,
        "reversed": array[tuple(slice(None, None, -1) for _ in array.shape)],
        "transposed": array.T,
    }


# ---- what comes back


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: f"{dtype.str}-{dtype.name}-{dtype.char}")
def test_every_dtype_and_layout_comes_back_with_the_same_bits(dtype: np.dtype[Any]) -> None:
    for shape in SHAPES:
        for layout, array in layouts(filled(dtype, shape)).items():
            kept = array if array.flags.c_contiguous or array.flags.f_contiguous else np.ascontiguousarray(array)
            for copy in (False, True):
                assert same(restored(array, copy=copy), kept), (shape, layout, copy)
                one, two = restored([array, {"a": array}], copy=copy)
                assert same(one, kept), (shape, layout, copy)
                assert same(two["a"], kept), (shape, layout, copy)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: f"{dtype.str}-{dtype.name}-{dtype.char}")
def test_the_c_type_of_a_dtype_comes_back(dtype: np.dtype[Any]) -> None:
    assert restored(filled(dtype, (3,))).dtype.char == dtype.char
    assert restored(filled(dtype, (3,))).dtype.isnative == dtype.isnative


@pytest.mark.parametrize("name", FOREIGN)
def test_scalars_of_ml_dtypes_come_back(name: str) -> None:
    for value in filled(np.dtype(getattr(ml_dtypes, name)), (20,)):
        assert same(restored(value), value)
        assert same(restored({"score": [value]}), {"score": [value]})


@settings(max_examples=200)
@given(st.data())
def test_arbitrary_views_come_back_in_c_order_or_their_own(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4)))
    array = filled(dtype, shape, data.draw(st.integers(0, 9)))
    array = array.transpose(data.draw(st.permutations(range(array.ndim))))
    index = tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in array.shape)
    array = array[index]
    back = restored(array)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert back.flags.f_contiguous >= array.flags.f_contiguous
    assert same(restored((array,))[0], back)


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.zeros(2, np.longdouble),
        np.zeros(2, np.clongdouble),
        np.zeros(2, [("a", "i4")]),
        np.zeros(2, "V3"),
        np.zeros(2, ml_dtypes.int4),
        np.zeros(2, ml_dtypes.float4_e2m1fn),
        np.ma.masked_array([1, 2], [True, False]),
        np.zeros(2).view(np.recarray),
        *([np.array(["a"], np.dtypes.StringDType())] if hasattr(np.dtypes, "StringDType") else []),
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype}",
)
def test_other_dtypes_and_subclasses_are_refused(array: Any) -> None:
    assert "cannot be stored" in reason(array)
    assert "result['a'][0]: " in reason({"a": [array]})


def test_a_memory_map_is_a_subclass_and_refused(tmp_path: Any) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    assert "memmap" in reason(np.load(tmp_path / "a.npy", mmap_mode="r"))


# ---- over the cache's own buffer


def addresses(value: Any) -> list[int]:
    return [array.ctypes.data for array in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("sizes", [[384], [1, 2, 3], [7, 64, 65, 0, 5]])
def test_arrays_lie_in_the_entry_at_multiples_of_64_bytes_without_a_copy(sizes: list[int]) -> None:
    value: Any = [np.arange(n, dtype=np.uint8) for n in sizes]
    stored = _Stored(value if len(value) > 1 else value[0])
    first, second = stored.value(), stored.value()
    assert addresses(first) == addresses(second)
    assert all(address % 64 == 0 for address, n in zip(addresses(first), sizes, strict=True) if n)


def test_arrays_of_one_value_share_one_owner() -> None:
    one, two = _Stored([np.arange(3), np.arange(4)]).value()
    assert one.base is two.base
    assert type(one.base) is SharedBuffer
    assert one.base.nbytes > one.nbytes + two.nbytes


def test_nothing_makes_a_shared_array_writable() -> None:
    stored = _Stored(np.arange(8, dtype=np.float32))
    array = stored.value()
    assert not array.flags.writeable
    views = [array, np.asarray(array), array[2:], array.reshape(2, 4), array.T, array.view(np.uint8), array.view()]
    views += [np.frombuffer(array, np.uint8), np.asarray(memoryview(array)), np.lib.stride_tricks.as_strided(array)]
    for view in views:
        with pytest.raises(ValueError, match=r"WRITEABLE|writeable|read-only|not writable"):
            view.flags.writeable = True
        with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
            view.setflags(write=True)
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    for act in (array.sort, lambda: array.fill(1), lambda: array.byteswap(inplace=True), lambda: array.resize(2)):
        with pytest.raises(ValueError, match=r"read-only|resize|own"):
            act()
    with pytest.raises(TypeError):
        memoryview(array.base)
    with pytest.raises((TypeError, BufferError)):
        (ctypes.c_char * 4).from_buffer(array)
    with pytest.raises(TypeError):
        SharedBuffer()  # type: ignore[call-arg]
    assert memoryview(array).readonly
    assert np.array_equal(stored.value(), np.arange(8))


def test_arrays_stay_valid_after_the_entry_is_gone() -> None:
    stored = _Stored({"a": np.arange(100_000), "b": [np.arange(50_000) * 2.0]})
    kept = stored.value()
    part = kept["b"][0][::7]
    del stored
    churn = [_Stored(np.full(100_000, 7)) for _ in range(50)]
    gc.collect()
    assert np.array_equal(kept["a"], np.arange(100_000))
    del kept
    gc.collect()
    churn += [_Stored(np.full(100_000, 8)) for _ in range(50)]
    assert np.array_equal(part, (np.arange(50_000) * 2.0)[::7])


def test_the_buffer_goes_when_its_last_array_goes() -> None:
    array = _Stored(np.arange(10)).value()
    base = array.base
    held = sys.getrefcount(base)
    view = array[2:]
    assert view.base is array or view.base is base
    other = array.view()
    del array, view, other
    gc.collect()
    assert sys.getrefcount(base) == held - 1


def test_copies_are_fresh_and_writable() -> None:
    stored = _Stored([np.arange(4), np.asfortranarray(np.ones((2, 2)))])
    one = stored.value(copy=True)
    for array in one:
        assert array.flags.writeable
        assert array.flags.owndata
        array[...] = 9
    assert np.array_equal(stored.value()[0], np.arange(4))
    assert one[1].flags.f_contiguous


def test_an_entry_that_does_not_lie_aligned_is_copied_and_read_only_all_the_same() -> None:
    kind, _, payload = _encode_value(np.arange(4.0))
    for _ in range(20):
        array = _decode_value(kind, False, payload)
        assert array.flags.aligned
        assert not array.flags.writeable
        assert np.array_equal(array, np.arange(4.0))


def test_an_array_can_be_weakly_referenced_pickled_and_copied() -> None:
    import copy
    import pickle

    array = _Stored(np.arange(4)).value()
    assert weakref.ref(array)() is array
    assert np.array_equal(pickle.loads(pickle.dumps(array)), np.arange(4))
    assert copy.deepcopy(array).flags.writeable


# ---- stored bytes that are not what was written


def test_every_byte_of_a_descriptor_is_checked() -> None:
    for array in (
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.array(["ab"]),
        np.array([1], "M8[s]"),
        np.zeros((0, 3)),
    ):
        kind, aligned, payload = _encode_value(array)
        for at, byte in itertools.product(range(len(payload)), range(0, 256, 5)):
            decode_or_corrupt(kind, aligned, payload[:at] + bytes([byte]) + payload[at + 1 :])


def test_text_that_is_no_text_is_corrupt() -> None:
    for dtype, bits in (("<U1", b"\0\0\x11\0"), (">U1", b"\0\x11\0\0")):
        kind, aligned, payload = _encode_value(np.array(["a"], dtype))
        for value in ((kind, aligned, bits + payload[4:]), (3, aligned, bits + payload[4:])):
            with pytest.raises(CorruptValue, match="code point"):
                _decode_value(*value)


def test_a_text_width_of_0_is_corrupt_and_never_stored() -> None:
    tail = (1000).to_bytes(8, "little")
    for code in (24, 25):
        with pytest.raises(CorruptValue, match="parameter 0"):
            _decode_value(2, True, tail + bytes(8) + bytes([1, code, 0, 1]))
    empty = np.zeros(3, [("a", "U0"), ("b", "i4")])["a"]
    if empty.dtype.itemsize == 0:
        assert "cannot be stored" in reason(empty)


def test_more_dimensions_than_numpy_has_are_corrupt() -> None:
    dims = (1).to_bytes(8, "little")
    decode_or_corrupt(2, True, bytes(4) + dims * 64 + bytes([1, 12, 0, 64]))
    with pytest.raises(CorruptValue):
        _decode_value(2, True, bytes(4) + dims * 65 + bytes([1, 12, 0, 65]))


# ---- batches


def assembled(result: Any, n: int, *, copy: bool = False) -> Any:
    return _Stored.assemble(_Stored.rows(result, n), None, copy)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: f"{dtype.str}-{dtype.name}-{dtype.char}")
def test_the_rows_of_an_array_become_one_fresh_writable_array_again(dtype: np.dtype[Any]) -> None:
    for shape in [(4,), (4, 3), (4, 2, 3), (4, 0), (1, 5)]:
        array = filled(dtype, shape)
        for layout in (array, np.asfortranarray(array), np.repeat(array, 2, axis=0)[::2]):
            back = assembled(layout, shape[0])
            assert same(back, np.ascontiguousarray(array))
            assert back.flags.writeable
            assert back.flags.owndata


def test_rows_may_stand_in_any_order_and_several_times() -> None:
    rows = _Stored.rows(np.arange(12.0).reshape(4, 3), 4)
    back = _Stored.assemble([rows[2], rows[0], rows[2]])
    assert np.array_equal(back, [[6, 7, 8], [0, 1, 2], [6, 7, 8]])


def test_a_row_by_itself_is_what_indexing_gives() -> None:
    for array in (np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(3, dtype=">i2"), np.array(["a", "bc"])):
        for row, expected in zip(_Stored.rows(array, len(array)), array, strict=True):
            assert same(row.value(), expected)  # type: ignore[union-attr]
            assert type(row.value()) is type(expected)  # type: ignore[union-attr]
    assert not _Stored.rows(np.ones((1, 3)), 1)[0].value().flags.writeable  # type: ignore[union-attr]


def test_a_list_stays_a_list_and_a_tuple_a_tuple() -> None:
    items = [1, "a", None, np.arange(3), {"b": [2]}, b"c", 2.5]
    assert same(assembled(items, 7), items)
    assert same(assembled(tuple(items), 7), tuple(items))
    assert assembled([np.float32(1), np.float32(2)], 2) == [1, 2]
    assert type(assembled([np.arange(3), np.arange(3)], 2)) is list
    assert assembled([], 0) == []


def test_rows_that_do_not_fit_together_become_a_list_of_arrays() -> None:
    wide, narrow = np.ones((1, 3), np.float32), np.ones((1, 2), np.float32)
    double, listed = np.ones((1, 3)), [np.ones(3, np.float32)]
    for other in (narrow, double, listed):
        mixed = _Stored.assemble(_Stored.rows(wide, 1) + _Stored.rows(other, 1))
        assert type(mixed) is list
        assert same(mixed, [wide[0], other[0]])
    mixed = _Stored.assemble(_Stored.rows((1,), 1) + _Stored.rows([2], 1))
    assert mixed == [1, 2]


def test_what_cannot_be_stored_stands_in_the_result_itself() -> None:
    thing = object()
    rows = _Stored.rows([1, thing], 2)
    assert rows[1].endswith("a value of type object cannot be stored; register_value(object, …) can say how")  # type: ignore[union-attr]
    assert _Stored.assemble([rows[0], thing]) == [1, thing]
    rows = _Stored.rows((1, thing), 2)
    assert _Stored.assemble([rows[0], thing]) == (1, thing)
    assert all("cannot be stored" in row for row in _Stored.rows(np.array([thing, thing]), 2))  # type: ignore[operator]


@pytest.mark.parametrize(
    "result", [[1, 2], (1, 2), np.arange(2), np.array([object(), object()])], ids=["list", "tuple", "array", "objects"]
)
def test_another_number_of_results_is_counted(result: Any) -> None:
    with pytest.raises(TypeError, match="2 results for 3 items"):
        _Stored.rows(result, 3)


@pytest.mark.parametrize(
    "result", [None, {1: 2}, {1, 2}, "ab", b"ab", iter([1]), np.array(5), np.array(object()), range(2)], ids=repr
)
def test_what_has_no_items_is_no_batch_result(result: Any) -> None:
    with pytest.raises(TypeError, match=r"where a list|without dimensions"):
        _Stored.rows(result, 2)


def test_a_corrupt_row_is_corrupt() -> None:
    rows = _Stored.rows(np.array(["ab", "cd"]), 2)
    assert np.array_equal(_Stored.assemble(rows), ["ab", "cd"])


def test_nuls_at_the_end_of_text_are_kept_until_numpy_hands_an_element_out() -> None:
    for array in (np.array(["a\0", "b"]), np.array([b"a\0\0", b"b"]), np.array([["\0", "a\0b\0"]])):
        assert same(restored(array), array)
        assert same(assembled(array, len(array)), array)
        assert restored(array).tobytes() == array.tobytes()
    (row,) = _Stored.rows(np.array(["a\0"]), 1)
    assert row.value() == np.array(["a\0"])[0] == "a"  # type: ignore[union-attr]
    for value in ("a\0", b"a\0", np.str_("a\0"), np.bytes_(b"a\0")):
        assert same(restored(value), value)
        assert len(restored(value)) == 2
        assert same(assembled([value], 1), [value])
    # As an argument it is what `.item()` and `.tolist()` give, as the key specification says.
    assert canonical_json(np.str_("a\0")) == canonical_json(np.array(["a\0"])[0]) == canonical_json("a")
    assert canonical_json(np.array(["a\0"])) == canonical_json(["a"])
    assert canonical_json("a\0") != canonical_json("a")


# ---- torch


def test_cpu_tensors_of_torch_come_back_fresh() -> None:
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: CPU tensors (pip install infercache[dev-torch])"
    )
    names = ["bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16"]
    names += ["float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"]
    names += ["float8_e5m2fnuz", "float8_e8m0fnu"]
    generator = torch.Generator().manual_seed(1)

    def bits(tensor: Any) -> bytes:
        flat = tensor.contiguous().reshape(-1)
        return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""

    for name in names:
        dtype = getattr(torch, name)
        size = torch.empty(0, dtype=dtype).element_size()
        for shape in [(), (0,), (5,), (2, 3), (3, 0), (2, 3, 4)]:
            count = int(np.prod(shape))
            raw = torch.randint(0, 2 if name == "bool" else 256, (count * size,), generator=generator).to(torch.uint8)
            tensor = raw.view(dtype).reshape(shape)
            for value in (tensor, tensor.T if tensor.dim() == 2 else tensor):
                back = restored(value)
                nested = restored({"a": [value, np.arange(3)]})["a"][0]
                for found in (back, nested):
                    assert type(found) is torch.Tensor
                    assert (found.dtype, found.shape, bits(found)) == (value.dtype, value.shape, bits(value))
            if tensor.dim():
                again = assembled(tensor, shape[0])
                if shape[0]:
                    assert type(again) is torch.Tensor
                    assert (again.dtype, again.shape, bits(again)) == (dtype, tensor.shape, bits(tensor))
                row = _Stored.rows(tensor, shape[0])[:1]
                assert all(bits(r.value()) == bits(tensor[0]) for r in row)
    stored = _Stored(torch.arange(3))
    stored.value()[0] = 9
    assert stored.value().tolist() == [0, 1, 2]


def test_tensors_of_torch_that_a_hit_could_not_give_back_are_refused() -> None:
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: CPU tensors (pip install infercache[dev-torch])"
    )
    assert "requires grad" in reason(torch.ones(2, requires_grad=True))
    assert "Parameter cannot be stored" in reason(torch.nn.Parameter(torch.ones(2), requires_grad=False))
    assert "device meta" in reason(torch.ones(2, device="meta"))
    assert "layout" in reason(torch.eye(2).to_sparse())
    shrunk = torch.ones(100)
    shrunk.untyped_storage().resize_(16)
    assert "storage was shrunk" in reason(shrunk)
    with warnings.catch_warnings(action="ignore"):
        quantized = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    assert "result[0]: a tensor of dtype" in reason([quantized])
    conjugate = torch.tensor([1 + 2j]).conj()
    assert restored(conjugate).tolist() == [1 - 2j]
    with pytest.raises(TypeError, match="2 results for 3"):
        _Stored.rows(torch.ones(2), 3)
    with pytest.raises(TypeError, match="without dimensions"):
        _Stored.rows(torch.tensor(1), 1)
    assert "requires grad" in str(_Stored.rows(torch.ones(2, requires_grad=True), 2)[0])
    kind, aligned, payload = _encode_value(torch.arange(6).reshape(2, 3))
    for at, byte in itertools.product(range(48, len(payload)), range(0, 256, 5)):
        decode_or_corrupt(kind, aligned, payload[:at] + bytes([byte]) + payload[at + 1 :])
