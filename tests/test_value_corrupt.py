"""Stored bytes that are not what was written: CorruptValue or a value, never a crash, a hang or much memory."""

from __future__ import annotations

import datetime
import decimal
import struct
import subprocess
import sys
import threading
import uuid
import zoneinfo
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercache._core import _decode_value, _encode_value
from infercache.errors import CorruptValue
from same import BYTES, STR, TENSOR, TREE, TREE_WITH_TENSORS, decode_or_corrupt, restored
from value_strategies import values

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


def test_the_deepest_value_fits_the_small_stack_of_a_thread() -> None:
    value: Any = None
    for depth in range(256):
        value = (value,) if depth % 2 else {"a": value}
    found: list[Any] = []
    before = threading.stack_size(512 * 1024)  # what threads have on macOS
    try:
        thread = threading.Thread(target=lambda: found.append(restored(value)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert found == [value]
