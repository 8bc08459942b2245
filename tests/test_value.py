"""Results of functions to stored bytes and back: what comes back equals what went in, types and bits."""

from __future__ import annotations

import datetime
import decimal
import importlib.resources
import io
import math
import random
import struct
import uuid
import zoneinfo
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from infercache._core import _decode_value, _encode_value, _Stored
from infercache.errors import CorruptValue, InvalidArgument
from infercache.values import register_value
from same import BYTES, FALSE, FLOAT, INT, NONE, STR, TENSOR, TREE, TRUE, reason, restored, same
from value_strategies import hashable_leaves, values

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


def test_a_zone_that_is_not_the_databases_own_is_refused() -> None:
    assert "database's own" in reason(datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo.no_cache("Europe/Zurich")))
    data = importlib.resources.files("tzdata").joinpath("zoneinfo/Europe/Zurich").read_bytes()
    for key in (None, "Made/Up"):
        zone = zoneinfo.ZoneInfo.from_file(io.BytesIO(data), key=key)
        assert "database's own" in reason([datetime.time(1, tzinfo=zone)])


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
    with pytest.raises(CorruptValue, match="only the return annotation"):
        _decode_value(TREE, False, record)
