"""Layouts and properties of tensors' keys: docs/key-specification.md, section 3; docs/tensors.md."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import infercache
import reference
from infercache import canonical_json
from infercache._core import _hash_threads
from tensor_layouts import CODES, RANDOM, SHAPES, OnlyDLPack, filled, scattered

# Shapes and element types of 48 bytes: many of them hold the same bytes.
ALIKE = st.sampled_from(
    [
        (code, shape)
        for code in CODES
        if code != "?"
        for shape in [(48,), (6, 8), (8, 6), (4, 12), (24,), (4, 6), (6, 4), (2, 3, 4), (12,), (3, 4), (4, 3), (1, 12)]
        + [(6,), (2, 3), (3, 2), (6, 1), (3,), (1, 3)]
        if np.dtype(code).itemsize * math.prod(shape) == 48
    ]
)
CONTENTS = st.sampled_from([bytes(48), bytes(range(48)), bytes([1, 0] * 24), bytes(47) + b"\x80"])


def key(value: Any) -> infercache.Key:
    return infercache.key(value, model="m", version="1")


@given(ALIKE, CONTENTS, ALIKE, CONTENTS)
def test_keys_are_equal_if_and_only_if_dtype_shape_and_bits_are(
    one: tuple[str, tuple[int, ...]], its: bytes, other: tuple[str, tuple[int, ...]], others: bytes
) -> None:
    made = np.frombuffer(its, one[0]).reshape(one[1])
    beside = np.frombuffer(others, other[0]).reshape(other[1])
    same = (one, its) == (other, others)
    assert (key(made) == key(beside)) is same
    assert (key([made]) == key([beside])) is same


@given(SHAPES, st.sampled_from(CODES), RANDOM)
def test_a_reshape_another_dtype_and_a_transpose_are_other_questions(
    shape: tuple[int, ...], code: str, random: Any
) -> None:
    made = filled(shape, code, random)
    found = key(made)
    for reshaped in (made.reshape(-1), made.reshape(*shape, 1), made.reshape(1, *shape), made.reshape(shape[::-1])):
        assert (key(reshaped) == found) is (reshaped.shape == shape)
    for dtype in CODES:
        if np.dtype(dtype).itemsize == made.dtype.itemsize and dtype != "?":
            assert (key(made.view(dtype)) == found) is (dtype == code)
    turned = made.T
    assert (key(turned) == found) is (turned.shape == shape and turned.tobytes() == made.tobytes())


@given(SHAPES, st.sampled_from(CODES), RANDOM)
def test_a_layout_never_shows_whoever_reads_it(shape: tuple[int, ...], code: str, random: Any) -> None:
    plain = filled(shape, code, random)
    if random.random() < 0.3 and plain.size:
        plain = np.broadcast_to(plain[..., :1], shape).copy() if shape else plain  # what may be stored once
    expected = reference.tensor(plain)
    assert canonical_json(plain).decode() == expected
    spread = scattered(plain, random)
    assert spread.tobytes() == plain.astype(spread.dtype).tobytes()
    assert canonical_json(spread).decode() == expected
    frozen = scattered(plain, random)
    frozen.flags.writeable = False
    assert canonical_json(frozen).decode() == expected
    native = scattered(plain, random, bytes_too=False)
    for versioned in (True, False):
        lent = native if versioned else native.copy()[...]  # (before version 1 only writable arrays were lent)
        assert canonical_json(OnlyDLPack(lent, versioned=versioned)).decode() == expected
    if not (code == "u1" and len(shape) == 1):  # a buffer of bytes is bytes
        assert canonical_json(memoryview(spread)).decode() == expected


@given(st.sampled_from(CODES), RANDOM, st.integers(1, 3), st.sampled_from([1_000, 40_000, 300_000]))
def test_large_layouts_agree_with_the_reference_however_many_threads_hash(
    code: str, random: Any, axes: int, size: int
) -> None:
    side = max(1, round((size / np.dtype(code).itemsize) ** (1 / axes)))
    shape = tuple(max(1, side + random.randint(-3, 3)) for _ in range(axes))
    plain = filled(shape, code, random)
    spread = scattered(plain, random)
    expected = reference.tensor(plain)
    before = _hash_threads(random.choice((0, 1, 2, 5)))
    try:
        assert canonical_json(spread).decode() == expected
        assert canonical_json(plain).decode() == expected
    finally:
        _hash_threads(before)


@given(SHAPES.filter(lambda shape: math.prod(shape) > 0), st.sampled_from(CODES), RANDOM)
def test_a_tensor_that_is_mutated_afterwards_does_not_change_its_key(
    shape: tuple[int, ...], code: str, random: Any
) -> None:
    made = filled(shape, code, random)
    as_it_was = made.copy()
    found = key(made)
    content = bytes(found)
    made.reshape(-1).view("u1")[random.randrange(made.nbytes)] ^= 1
    assert bytes(found) == content
    assert found == key(as_it_was)
    assert key(made) != found


def test_the_number_of_hashing_threads_is_told_and_set_back() -> None:
    assert _hash_threads(2) == 0
    assert _hash_threads(0) == 2


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1)])
def test_scalars_empty_and_single_elements_are_tensors_of_their_shape(shape: tuple[int, ...]) -> None:
    for made in (np.zeros(shape, "f4"), OnlyDLPack(np.zeros(shape, "f4")), memoryview(np.zeros(shape, "f4"))):
        assert canonical_json(made).decode() == reference.tensor(np.zeros(shape, "f4"))
