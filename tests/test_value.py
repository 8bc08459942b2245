"""Results of functions to stored bytes and back: what comes back equals what went in, types and bits."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import math
import random
import struct
import subprocess
import sys
import uuid
import zoneinfo
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercache._core import _decode_value, _encode_value, _Stored
from infercache.errors import CorruptValue, InvalidArgument
from infercache.values import register_value
from same import restored, same

BYTES, STR, TENSOR, ROW, NONE, FALSE, TRUE, INT, FLOAT, TREE, TREE_WITH_TENSORS = range(11)


def reason(value: Any, schema: Any = None) -> str:
    """Why a value cannot be stored."""
    with pytest.raises(TypeError) as caught:
        _encode_value(value, schema)
    return str(caught.value)


# ---- what goes in

floats = st.one_of(
    st.floats(),
    st.binary(min_size=8, max_size=8).map(lambda bits: struct.unpack("<d", bits)[0]),
)
texts = st.one_of(st.text(), st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010)), st.text(min_size=200))
integers = st.one_of(
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.builds(
        lambda power, off: 2**power + off, st.sampled_from([7, 8, 15, 16, 31, 32, 63, 64, 1000]), st.integers(-2, 2)
    ),
)
zones = st.one_of(
    st.none(),
    st.just(datetime.UTC),
    st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23)).map(datetime.timezone),
    st.builds(
        datetime.timezone,
        st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23)),
        st.text(max_size=5),
    ),
    st.sampled_from(["Europe/Zurich", "America/New_York", "UTC", "Asia/Kathmandu"]).map(zoneinfo.ZoneInfo),
)
folds = st.sampled_from([0, 1])
moments = st.one_of(
    st.builds(lambda when, zone, fold: when.replace(tzinfo=zone, fold=fold), st.datetimes(), zones, folds),
    st.builds(lambda when, zone, fold: when.replace(tzinfo=zone, fold=fold), st.times(), zones, folds),
    st.dates(),
    st.timedeltas(),
)
numpy_scalars = st.one_of(
    st.sampled_from(
        ["?", "i1", "i2", "i4", "i8", "q", "u1", "u2", "u4", "u8", "Q", "f2", "f4", "f8", "c8", "c16"]
    ).flatmap(
        lambda code: st.binary(min_size=16, max_size=16).map(
            lambda bits: np.frombuffer(bits if code != "?" else bytes(b & 1 for b in bits), code)[0]
        )
    ),
    st.sampled_from(
        [np.True_, np.False_, np.datetime64("2026-11-23", "ns"), np.datetime64("NaT"), np.timedelta64(3, "25s")]
    ),
    texts.map(np.str_),
    st.binary().map(np.bytes_),
)
hashable_leaves = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    floats,
    texts,
    st.binary(),
    st.complex_numbers(),
    moments,
    st.decimals(allow_nan=False),
    st.uuids(),
    numpy_scalars,
)
leaves = st.one_of(
    hashable_leaves,
    st.binary().map(bytearray),
    st.sampled_from(["sNaN123", "-NaN", "NaN", "Infinity", "-0", "1E+5", "1.50E-100"]).map(decimal.Decimal),
    st.sampled_from([np.arange(3), np.zeros((2, 2), ">f4", order="F"), np.array("text"), np.array([])]),
)
hashables = st.recursive(
    hashable_leaves, lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)), max_leaves=4
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(hashables, inner, max_size=5),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
    ),
    max_leaves=12,
)


# ---- guarantees


@settings(max_examples=600)
@given(values)
def test_what_comes_back_equals_what_went_in_types_and_bits(value: Any) -> None:
    assert same(restored(value), value)
    assert same(restored(value, copy=True), value)


@given(hashable_leaves)
def test_a_single_leaf_comes_back_by_itself(value: Any) -> None:
    assert same(restored(value), value)


def test_same_tells_apart_what_equality_does_not() -> None:
    for one, other in [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ([1], (1,)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (np.zeros(2), np.zeros(2, ">f8")),
        (np.zeros((2, 2)), np.zeros((2, 2), order="F")),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    ]:
        assert not same(one, other)
    assert same(math.nan, math.nan)
    assert same({"a": [np.arange(3)]}, {"a": [np.arange(3)]})


@pytest.mark.parametrize(
    ("value", "kind", "payload"),
    [
        (b"\0raw", BYTES, b"\0raw"),
        ("grüezi", STR, "grüezi".encode()),
        (None, NONE, b""),
        (False, FALSE, b""),
        (True, TRUE, b""),
        (-2, INT, struct.pack("<q", -2)),
        (1.5, FLOAT, struct.pack("<d", 1.5)),
    ],
)
def test_what_models_return_most_is_stored_without_overhead(value: Any, kind: int, payload: bytes) -> None:
    assert _encode_value(value) == (kind, False, payload)


def test_one_array_costs_4_bytes_and_8_a_dimension() -> None:
    array = np.arange(384, dtype=np.float32)
    kind, aligned, payload = _encode_value(array)
    assert (kind, aligned, len(payload)) == (TENSOR, True, array.nbytes + 8 + 4)
    assert payload[: array.nbytes] == array.tobytes()


def test_the_order_of_a_dict_is_kept() -> None:
    names = list(range(1000))
    random.Random(1).shuffle(names)
    assert list(restored(dict.fromkeys(names))) == names


def test_keys_may_be_of_any_type_with_a_hash() -> None:
    value = {
        None: 1,
        True: 2,
        2**80: 3,
        -0.5: 4,
        b"b": 5,
        (1, "a"): 6,
        frozenset({1}): 7,
        datetime.date(1, 1, 1): 8,
        "": 9,
    }
    assert same(restored(value), value)


def test_nan_keys_stay_apart() -> None:
    back = restored({float("nan"): 1, float("nan"): 2})
    assert list(back.values()) == [1, 2]


def test_nothing_mutable_is_shared_between_callers() -> None:
    stored = _Stored({"list": [1], "array": bytearray(b"x")})
    first = stored.value()
    first["list"].append(2)
    first["array"] += b"y"
    assert stored.value() == {"list": [1], "array": bytearray(b"x")}


def test_a_uuid_keeps_how_safely_it_was_made() -> None:
    for safe in uuid.SafeUUID:
        value = uuid.UUID(int=5, is_safe=safe)
        assert restored(value).is_safe is safe


def test_a_fold_and_a_zone_come_back() -> None:
    zone = zoneinfo.ZoneInfo("Europe/Zurich")
    late = datetime.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zone)
    back = restored([late])[0]
    assert (back.fold, back.utcoffset(), back.tzinfo) == (1, datetime.timedelta(hours=1), zone)
    assert restored(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)).tzinfo is datetime.UTC


# ---- what cannot be stored


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Items(list):  # type: ignore[type-arg]
    pass


class Moment(datetime.datetime):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Text("a"),
        Number(1),
        Items([1]),
        OrderedDict(a=1),
        defaultdict(int),
        Moment(2026, 1, 1),
        memoryview(b"a"),
        range(3),
        int,
        len,
        np.dtype("f4"),
        np.longdouble(1),
        np.void(b"a"),
        NotImplemented,
    ],
    ids=repr,
)
def test_only_exact_types_are_stored(value: Any) -> None:
    assert "cannot be stored" in reason(value)


def test_the_reason_leads_to_the_part_that_cannot_be_stored() -> None:
    assert reason({"rows": [1, (2, {3: object()})]}).startswith(
        "result['rows'][1][1][3]: a value of type object cannot"
    )
    assert reason({object(): 1}).startswith("result[key a object]")
    assert reason([{"a" * 1000: object()}]).startswith("result[0]['" + "a" * 38 + "…]: ")
    assert reason({1, Number(2)}).startswith("result{")


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append({"again": (loop,)})
    assert reason(loop) == "result[0]['again'][0]: contains itself"
    shared = [1]
    assert restored([shared, shared]) == [[1], [1]]


def test_nesting_has_a_limit_and_no_crash() -> None:
    def nested(depth: int) -> Any:
        value: Any = None
        for _ in range(depth):
            value = [value]
        return value

    assert restored(nested(256)) == nested(256)
    assert "nests deeper than 256 levels" in reason(nested(257))
    assert "nests deeper than 256 levels" in reason(nested(10_000))


def test_a_structure_that_unfolds_without_end_is_refused() -> None:
    value: Any = ["x" * 1000]
    for _ in range(60):
        value = [value, value]
    assert "larger than 256 MiB" in reason(value)


def test_a_container_that_changes_while_it_is_stored_is_stored_as_it_was_or_refused() -> None:
    class Vandal:
        def __init__(self, act: Any) -> None:
            self.act = act

    def encode(vandal: Vandal) -> Any:
        vandal.act()
        return None

    register_value(Vandal, "test.Vandal", encode, lambda stored: Vandal(None))
    items: list[Any] = [1, 2, 3]
    items.insert(0, Vandal(items.clear))
    assert "changed while it was being stored" in reason(items)
    names: dict[Any, Any] = {i: i for i in range(100)}
    names["vandal"] = Vandal(names.clear)
    assert len(restored(names)) == 101
    members: set[Any] = set(range(100))
    members.add(Vandal(members.clear))
    assert len(restored(members)) == 101


def test_code_of_the_caller_that_raises_is_a_reason_and_an_interrupt_is_not() -> None:
    class Broken:
        pass

    def encode(value: Broken) -> Any:
        raise error

    register_value(Broken, "test.Broken", encode, lambda stored: Broken())
    error: BaseException = ZeroDivisionError("no")
    assert reason([Broken()]) == "result[0]: the registered encode of test.Broken raised ZeroDivisionError: no"
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        _encode_value([Broken()])


# ---- register_value


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __eq__(self, other: object) -> bool:
        return type(other) is Point and (self.x, self.y) == (other.x, other.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))


def test_a_registered_type_comes_back_as_that_type() -> None:
    register_value(Point, "test.Point", lambda point: (point.x, point.y), lambda stored: Point(*stored))
    value = {"one": Point(1, 2), Point(3, 4): [Point(5, 6), {Point(7, 8)}]}
    assert restored(value) == value
    assert restored(Point(1, 2)) == Point(1, 2)

    class Derived(Point):
        pass

    assert "cannot be stored" in reason(Derived(1, 2))


def test_registering_again_replaces_and_other_names_are_kept_apart() -> None:
    def again() -> type:
        class Cell:
            pass

        return Cell

    first, second = again(), again()
    register_value(first, "test.Cell", lambda value: 1, lambda stored: first())
    register_value(second, "test.Cell", lambda value: 2, lambda stored: second())
    assert type(restored(second())) is second
    assert "cannot be stored" in reason(first())
    with pytest.raises(InvalidArgument, match="stands for"):
        register_value(Point, "test.Cell", lambda value: 1, lambda stored: Point(1, 2))
    register_value(second, "test.Renamed", lambda value: 2, lambda stored: second())
    register_value(Text, "test.Cell", str.upper, Text)
    assert restored(Text("a")) == "A"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("Point", "name", str, str), TypeError, "type must be a class"),
        ((Point, 1, str, str), TypeError, "name must be text"),
        ((Point, "name", None, str), TypeError, "must be callable"),
        ((Point, "", str, str), InvalidArgument, "not empty"),
        ((Point, "\ud800", str, str), InvalidArgument, "surrogates"),
        ((dict, "dict", str, str), InvalidArgument, "stored already"),
        ((np.ndarray, "array", str, str), InvalidArgument, "stored already"),
        ((datetime.date, "date", str, str), InvalidArgument, "stored already"),
    ],
)
def test_register_value_says_what_is_wrong(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        register_value(*arguments)


def test_a_decode_that_fails_or_returns_another_type_is_corrupt() -> None:
    class Odd:
        pass

    register_value(Odd, "test.Odd", lambda value: 1, lambda stored: 1 / 0)
    stored = _encode_value(Odd())
    with pytest.raises(CorruptValue, match="division") as caught:
        _decode_value(*stored)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    register_value(Odd, "test.Odd", lambda value: 1, lambda stored: 1)
    with pytest.raises(CorruptValue, match=r"returned int, not .*Odd"):
        _decode_value(*stored)


def test_a_name_in_stored_bytes_leads_to_no_class() -> None:
    content = b"\x92\xabbuiltins.id\xc0"
    forged = b"\x01\xc7" + bytes([len(content)]) + b"\x11" + content
    with pytest.raises(CorruptValue, match="no type is registered"):
        _decode_value(TREE, False, forged)
    record = b"\x01\xc7\x04\x10\x93\x00\x00\xc0"
    with pytest.raises(CorruptValue, match="names no class"):
        _decode_value(TREE, False, record)


# ---- stored bytes that are not what was written


SAMPLES = [
    None,
    True,
    7,
    1.5,
    "text",
    b"bytes",
    [1, -300, 2**40, 2**63, 2**64, -(2**100), 0.5, "é\ud800", b"b", bytearray(b"c"), 1 + 2j, None, True],
    {"a": (1, [2, {3}]), 4: frozenset({5}), "long": "x" * 300},
    [
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
        datetime.date(1, 2, 3),
        datetime.time(1, tzinfo=None),
    ],
    [datetime.time(1, tzinfo=datetime.timezone(datetime.timedelta(hours=1), "x")), datetime.timedelta(1, 2, 3)],
    [datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Zurich"))],
    [
        decimal.Decimal("1.5"),
        uuid.UUID(int=3),
        np.float32(1),
        np.str_("a"),
        np.bytes_(b"b"),
        np.datetime64("2026", "s"),
    ],
    np.arange(6, dtype=np.int16).reshape(2, 3),
    np.array(["ab", "c"]),
    [np.arange(3, dtype=">f4"), {"b": np.zeros((2, 0))}, np.array(5), np.array([b"xy"])],
]


def decode_or_corrupt(kind: int, aligned: bool, payload: bytes) -> None:
    """Decodes and looks at everything; any error but CorruptValue is a failure."""
    try:
        value = _decode_value(kind, aligned, payload)
    except CorruptValue:
        return
    repr(value)
    with contextlib.suppress(TypeError):  # a value may hold what cannot be stored again, a float key made a list, say
        _encode_value(value)


@pytest.mark.parametrize("value", SAMPLES, ids=range(len(SAMPLES)))
def test_no_changed_byte_does_more_than_change_or_corrupt_a_value(value: Any) -> None:
    kind, aligned, payload = _encode_value(value)
    for at in range(len(payload)):
        for flip in (0x01, 0x80, 0xFF, 0x10):
            decode_or_corrupt(kind, aligned, payload[:at] + bytes([payload[at] ^ flip]) + payload[at + 1 :])


@pytest.mark.parametrize("value", SAMPLES, ids=range(len(SAMPLES)))
def test_truncated_bytes_are_noticed_wherever_they_end(value: Any) -> None:
    kind, aligned, payload = _encode_value(value)
    for end in range(len(payload)):
        decode_or_corrupt(kind, aligned, payload[:end])
        if kind not in (BYTES, STR, TENSOR, TREE_WITH_TENSORS):
            with pytest.raises(CorruptValue):
                _decode_value(kind, aligned, payload[:end])
    decode_or_corrupt(kind, aligned, payload + b"\0")


@settings(max_examples=1000)
@given(st.integers(0, 31), st.booleans(), st.binary(max_size=100))
def test_arbitrary_bytes_are_corrupt_or_a_value(kind: int, aligned: bool, payload: bytes) -> None:
    decode_or_corrupt(kind, aligned, payload)


@settings(max_examples=1000)
@given(st.binary(max_size=60), st.booleans())
def test_arbitrary_skeletons_are_corrupt_or_a_value(payload: bytes, tensors: bool) -> None:
    decode_or_corrupt(TREE, False, b"\x01" + payload)
    if tensors:
        decode_or_corrupt(TREE_WITH_TENSORS, True, bytes(64) + b"\x01" + payload + struct.pack("<Q", 64))


@given(values, st.data())
def test_a_value_decoded_as_another_kind_is_corrupt_or_a_value(value: Any, data: st.DataObject) -> None:
    _, aligned, payload = _encode_value(value)
    decode_or_corrupt(data.draw(st.integers(0, 31)), aligned, payload)


def test_announced_lengths_allocate_nothing() -> None:
    code = """
import resource, struct
from infercache._core import _decode_value
from infercache.errors import CorruptValue
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
heads = [b"\\xdd", b"\\xdf", b"\\xdb", b"\\xc6", b"\\xc9"]
for head in heads:
    try: _decode_value(9, False, b"\\x01" + head + b"\\xff\\xff\\xff\\xff" + b"\\x01" * 20)
    except CorruptValue: continue
    raise SystemExit("decoded")
for dims in [(1 << 40,), (1 << 62, 1 << 62), (0, 1 << 62, 1 << 62)]:
    tail = b"".join(struct.pack("<Q", dim) for dim in dims) + bytes([1, 13, 0, len(dims)])
    for copy in (False, True):
        try: _decode_value(2, True, tail, None, copy)
        except CorruptValue: continue
        raise SystemExit("decoded")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_deeply_nested_bytes_do_not_exhaust_the_stack() -> None:
    for opening in (b"\x91", b"\x81\xc0", b"\xc7\xff\x01\x91", b"\xc7\xff\x11\x92\xa0", b"\xc7\xff\x10\x93"):
        with pytest.raises(CorruptValue):
            _decode_value(TREE, False, b"\x01" + opening * 200_000)


def test_keys_without_a_hash_and_equal_keys_are_corrupt() -> None:
    for payload in (b"\x01\x81\x90\xc0", b"\x01\x82\x01\xc0\x01\xc0", b"\x01\xc7\x02\x02\x91\x90"):
        with pytest.raises(CorruptValue):
            _decode_value(TREE, False, payload)
