"""Values for comparing with the reference: many of them, fast, and the same for the same seed."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import random
import struct
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np


class Colour(enum.Enum):
    """Values of several kinds."""

    RED = "red"
    TWO = 2
    HALF = 0.5
    PAIR = (1, "x")


class Level(enum.IntEnum):
    """A member that is an int as well."""

    LOW = 1
    HIGH = 2**60


@dataclasses.dataclass
class Point:
    """A dataclass with a default, and a name that sorts before the other."""

    y: Any
    x: Any = 0.25


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A dataclass without fields."""


ALPHABETS = (
    "abcdefghij",
    'ab$"\\/\n\t\x00\x1f\x7f',
    "aé\u0301ß€\u2028\ud7ff\ue000\ufb33\uffff\U00010000\U0001f600\U0010ffff",
)
NAMES = (
    "id",
    "text",
    "user",
    "$ref",
    "$$",
    "",
    "é",
    "\ue000",
    "\U0001f600",
    "a",
    "b",
    "aa",
    "longer_than_eight",
    "longer_than_nine",
)
BOUNDARIES = (
    *(2.0**53 + n for n in (-2, -1, 0, 2)),
    *(
        float(f"{m}e{e}")
        for e in (-324, -308, -7, -6, -5, -1, 15, 16, 17, 20, 21, 22, 308)
        for m in ("1", "9.5", "1.2345678901234567")
    ),
    *(5e-324, 0.0, -0.0, float("inf"), -float("inf"), float("nan"), 0.1, 1 / 3, 1e23, 2.0**-1074, 2.0**-1022),
)
DTYPES = ("?", "i1", "<i2", ">i4", "<i8", "u1", ">u2", "<u4", ">u8", "<f2", ">f4", "<f8", "<c8", ">c16")
ZONE = datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))


class Generator:
    """Random values; `rich` ones may hold anything that has a row, others only what JSON holds."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        """Text of up to forty characters, mostly short."""
        pick = self.random
        alphabet = pick.choice(ALPHABETS)
        return "".join(pick.choices(alphabet, k=pick.choice((0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 33, 40))))

    def integer(self) -> int:
        """Of any size, boundaries of 53 and 64 bits more often."""
        pick = self.random
        size = pick.choice((1, 8, 16, 53, 54, 63, 64, 65, 200, 1030))
        near = pick.choice((0, pick.getrandbits(3), pick.getrandbits(size)))
        return pick.choice((1, -1)) * (2**size - 4 + near)

    def real(self) -> float:
        """A boundary, any bits, or something of ordinary size."""
        pick = self.random
        choice = pick.random()
        if choice < 0.2:
            return pick.choice(BOUNDARIES)
        if choice < 0.6:
            return float(struct.unpack("<d", pick.randbytes(8))[0])
        return round(pick.uniform(-1000, 1000), pick.choice((0, 1, 2, 6, 17)))

    def leaf(self) -> Any:
        """What JSON holds without nesting."""
        choice = self.random.randrange(12)
        if choice < 3:
            return self.text()
        if choice < 5:
            return self.random.randrange(-10, 1000)
        if choice < 6:
            return self.integer()
        if choice < 9:
            return self.real()
        return self.random.choice((None, True, False))

    def value(self, depth: int = 3, rich: bool = False) -> Any:
        """A value that nests up to `depth` deep."""
        pick = self.random
        if depth == 0 or pick.random() < 0.3:
            return self.rare() if rich and pick.random() < 0.5 else self.leaf()
        count = pick.choice((0, 1, 2, 2, 3, 5, 9))
        choice = pick.random()
        if choice < 0.45:
            items = [self.value(depth - 1, rich) for _ in range(count)]
            return tuple(items) if pick.random() < 0.2 else items
        if choice < 0.9 or not rich:
            names = [pick.choice(NAMES) if pick.random() < 0.6 else self.text() for _ in range(count)]
            return {name: self.value(depth - 1, rich) for name in names}
        if choice < 0.95:
            return {self.hashable(): self.value(depth - 1, rich) for _ in range(count)}
        return Point(self.value(depth - 1, rich), self.value(depth - 1, rich))

    def hashable(self) -> Any:
        """Something that may be the name of a mapping or the member of a set."""
        pick = self.random
        return pick.choice(
            (
                self.text,
                self.integer,
                self.real,
                lambda: None,
                lambda: pick.choice(list(Colour)),
                lambda: (1, self.text()),
            )
        )()

    def array(self) -> np.ndarray[Any, Any]:
        """A small array of any dtype and layout."""
        pick = self.random
        shape = tuple(pick.choice((0, 1, 2, 3, 5)) for _ in range(pick.randrange(4)))
        dtype = np.dtype(pick.choice(DTYPES))
        wide = tuple(2 * length for length in shape)
        count = int(np.prod(wide)) if wide else 1
        array = np.frombuffer(pick.randbytes(count * dtype.itemsize), dtype="u1").copy()
        array = (array & 1 if dtype.kind == "b" else array).view(dtype).reshape(wide)
        choice = pick.randrange(4)
        array = array[tuple(slice(None, None, 2) if choice % 2 else slice(length) for length in shape)]
        if choice > 1:
            array = array.T[::-1] if array.ndim else array
        return array

    def rare(self) -> Any:
        """Something of the table's other rows."""
        pick = self.random
        made = (
            lambda: {self.hashable() for _ in range(3)},
            lambda: frozenset({self.text(), 1, (2, "x")}),
            lambda: pick.randbytes(pick.choice((0, 1, 63, 64, 65, 1023, 1024, 1025, 3000))),
            lambda: bytearray(pick.randbytes(5)),
            lambda: memoryview(pick.randbytes(12)).cast("B", (3, 4)),
            self.array,
            lambda: np.array([self.text().replace("\x00", "z") or "q" for _ in range(3)]),
            lambda: np.float32(pick.random()),
            lambda: np.int64(self.random.getrandbits(63)),
            lambda: np.bool_(True),
            lambda: np.str_(self.text().rstrip("\x00")),
            lambda: pick.choice(list(Colour)),
            lambda: pick.choice(list(Level)),
            lambda: Decimal(pick.randrange(10**6)).scaleb(pick.randrange(-20, 20)),
            lambda: pick.choice((Decimal("NaN"), Decimal("-Infinity"), Decimal("0E+7"), Decimal("-0"))),
            lambda: UUID(int=pick.getrandbits(128)),
            lambda: datetime.datetime(
                2026, 1, pick.randrange(1, 28), 3, 4, 5, pick.choice((0, 6)), tzinfo=pick.choice((None, ZONE))
            ),
            lambda: datetime.date(pick.randrange(1, 9999), 12, 31),
            lambda: datetime.time(pick.randrange(24), 2, 3, pick.choice((0, 7)), tzinfo=pick.choice((None, ZONE))),
            Nothing,
        )
        return pick.choice(made)()
