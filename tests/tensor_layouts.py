"""Arrays of every layout and of every library, for the tests of tensors."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from hypothesis import strategies as st

# NumPy's element types of the key specification.
CODES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
FLOAT8 = (
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
RANDOM = st.randoms(use_true_random=False)


class OnlyDLPack:
    """A tensor of a library that offers DLPack and nothing else."""

    def __init__(self, held: Any, *, versioned: bool = True) -> None:
        self.held = held
        self.versioned = versioned

    def __dlpack__(self, **options: Any) -> Any:
        if not self.versioned and options:
            raise TypeError("__dlpack__() takes no keyword arguments")  # as libraries of before DLPack 1.0
        return self.held.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.held.__dlpack_device__()


def filled(shape: tuple[int, ...], code: str, random: random.Random) -> np.ndarray[Any, Any]:
    """An array of random bits."""
    dtype = np.dtype(code)
    raw = np.frombuffer(random.randbytes(math.prod(shape) * dtype.itemsize), "u1").copy()
    if code == "?":
        raw &= 1
    return raw.view(dtype).reshape(shape)


def scattered(
    plain: np.ndarray[Any, Any], random: random.Random, *, flips: bool = True, bytes_too: bool = True
) -> np.ndarray[Any, Any]:
    """The same elements in another layout: axes in another order, steps, gaps, and repeated ones only once.

    With `flips` also steps backwards, with `bytes_too` also another byte order and any alignment.
    """
    dtype = plain.dtype
    if bytes_too and random.random() < 0.5:
        dtype = dtype.newbyteorder(random.choice("<>"))
    once = []
    for axis, length in enumerate(plain.shape):
        repeated = np.broadcast_to(np.take(plain, [0], axis), plain.shape) if length else plain
        alike = length > 1 and repeated.tobytes() == plain.tobytes()
        once.append(slice(0, 1) if alike and random.random() < 0.5 else slice(None))
    part = plain[(..., *once)]
    order = random.sample(range(part.ndim), part.ndim)
    steps = [random.choice((1, 1, 2, 3)) for _ in order]
    gaps = [random.choice((0, 0, 1)) for _ in order]
    room = [part.shape[axis] * steps[axis] + gaps[axis] for axis in order]
    shift = random.choice((0, 1, 3)) if bytes_too else 0
    memory = np.zeros(math.prod(room) * dtype.itemsize + shift, "u1")
    base = np.ndarray(tuple(room), dtype, memory, shift).transpose(np.argsort(order))
    cuts = [slice(0, length * step, step) for length, step in zip(part.shape, steps, strict=True)]
    if flips:
        cuts = [cut if random.random() < 0.7 else backwards(cut, n) for cut, n in zip(cuts, part.shape, strict=True)]
    view = base[(..., *cuts)]
    view[...] = part
    return np.broadcast_to(view, plain.shape)


def backwards(cut: slice, length: int) -> slice:
    """The places of `cut`, from the last one on."""
    if length == 0:
        return cut
    return slice((length - 1) * cut.step, None, -cut.step)
