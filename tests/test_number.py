"""ECMAScript's text of numbers, from Python; rust/core/src/number.rs compares two million more with ryu-js."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable

import infercache
import reference

STEP = 10_000


def check(values: list[float]) -> None:
    """Compares our texts with the reference's, many at once."""
    for start in range(0, len(values), STEP):
        part = values[start : start + STEP]
        assert infercache.canonical_json(part).decode()[1:-1].split(",") == [reference.number(value) for value in part]


def test_a_million_random_doubles_agree_with_the_reference() -> None:
    pick = random.Random(20261123)
    words = struct.unpack("<1000000d", pick.randbytes(8_000_000))  # every sign, exponent and fraction alike
    check([value for value in words if value - value == 0])


def test_boundaries_and_their_neighbours_agree_with_the_reference() -> None:
    centres = [float(f"1e{exponent}") for exponent in range(-323, 309)]
    centres += [2.0**exponent for exponent in range(-1074, 1024)]
    centres += [2.0**53 - 1, 2.0**53 + 2, 1e21, 1e-6, 1e-7, 123456789012345680.0, 5e-324, 2.2250738585072014e-308]
    near = []
    for centre in centres:
        (bits,) = struct.unpack("<q", struct.pack("<d", centre))
        for step in range(-3, 4):
            (value,) = struct.unpack("<d", struct.pack("<q", min(max(bits + step, 1), 0x7FEF_FFFF_FFFF_FFFF)))
            near += [value, -value]
    check(near)


def test_short_decimals_agree_with_the_reference() -> None:
    pick = random.Random(3)
    check([pick.randrange(10**9) / 10 ** pick.randrange(18) for _ in range(100_000)])


def test_the_text_reads_back_as_the_same_double() -> None:
    pick = random.Random(5)
    words = struct.unpack("<100000d", pick.randbytes(800_000))
    values = [value for value in words if value - value == 0]
    assert list(map(float, json.loads(infercache.canonical_json(values), parse_int=float))) == values


def test_integers_are_numbers_exactly_where_a_double_holds_them() -> None:
    pick = random.Random(7)
    values = [sign * ((1 << size) + step) for size in range(1030) for step in range(-3, 4) for sign in (1, -1)]
    values += [sign * pick.getrandbits(pick.randrange(1, 1100)) for _ in range(20_000) for sign in (1, -1)]
    values += [sign * 10**power for power in range(330) for sign in (1, -1)]
    for value in values:
        assert infercache.canonical_json(value).decode() == reference.integer(value)


def test_numbers_among_other_items_are_written_as_each_alone() -> None:
    pick = random.Random(11)
    kinds: list[Callable[[], object]] = [
        pick.random,
        lambda: pick.uniform(-1e6, 1e6),
        lambda: pick.randrange(-(10**6), 10**6),
        lambda: sign_of(pick) * 2 ** pick.randrange(50, 70) + pick.randrange(-2, 3),
        lambda: pick.choice([float("nan"), float("inf"), -0.0, None, True, "text", [1, 0.5], {"a": 0.1}, ()]),
    ]
    for length in [*range(12), 63, 64, 65, 127, 128, 129, 1000]:
        for several in (kinds[:3], kinds):
            items = [pick.choice(several)() for _ in range(length)]
            expected = "[" + ",".join(infercache.canonical_json(item).decode() for item in items) + "]"
            assert infercache.canonical_json(items).decode() == expected
            assert infercache.canonical_json(tuple(items)).decode() == expected


def sign_of(pick: random.Random) -> int:
    """Either sign."""
    return pick.choice([-1, 1])
