"""Stored records whose class is not what it was, or whose bytes are not: corrupt, never another value."""

from __future__ import annotations

import dataclasses
import enum
import sys
from typing import Any

import pytest

from infercache._core import Schema, _decode_value, _encode_value
from infercache.errors import CorruptValue
from infercache.values import schema_of_annotation
from same import decode_or_corrupt
from test_value_records import RECORDS, Access, Box, Colour, Frozen, Item, Level, Pair


def test_a_class_whose_fields_changed_is_corrupt_not_wrong() -> None:
    def variant(fields: list[tuple[str, Any]], name: str = "Thing") -> type:
        made = dataclasses.make_dataclass(name, fields)
        made.__module__ = __name__
        return made

    thing = variant([("a", int), ("b", str)])
    stored = _encode_value(thing(1, "x"), schema_of_annotation(thing))
    same_again = variant([("a", int), ("b", str)])
    back = _decode_value(*stored, schema_of_annotation(same_again))
    assert (type(back), back.a, back.b) == (same_again, 1, "x")
    others = [
        variant([("a", int), ("c", str)]),
        variant([("b", str), ("a", int)]),
        variant([("a", int), ("b", bytes)]),
        variant([("a", int), ("b", str), ("c", int)]),
        variant([("a", int), ("b", str)], "Other"),
        Level,
    ]
    for other in others:
        with pytest.raises(CorruptValue, match="not the one that the annotation names now"):
            _decode_value(*stored, schema_of_annotation(other))
    with pytest.raises(CorruptValue, match="only the return annotation"):
        _decode_value(*stored)


def test_an_enum_whose_members_changed_is_corrupt() -> None:
    stored = _encode_value(Level.LOW, schema_of_annotation(Level))
    for members in ({"LOW": 2, "HIGH": 1}, {"LOW": 1}, {"LOW": 1, "HIGH": 2, "MORE": 3}):
        other = enum.IntEnum("Level", members, module=__name__)  # type: ignore[misc]
        with pytest.raises(CorruptValue):
            _decode_value(*stored, schema_of_annotation(other))


def test_fingerprints_are_the_same_in_every_process() -> None:
    import subprocess

    code = "import test_value_fingerprints as t; print(t._encode_value(t.SAMPLE, t.RECORDS)[2].hex())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(path for path in sys.path if path)},
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert len(found) == 1


SAMPLE = [Item("a", next=Item("b")), Frozen(1), Pair(1, None), Colour.RED, Access.READ | Access.WRITE, Box(1)]


def test_no_changed_byte_of_a_record_does_more_than_change_or_corrupt_it() -> None:
    kind, aligned, payload = _encode_value(SAMPLE, RECORDS)
    for at in range(len(payload)):
        for flip in (0x01, 0x80, 0xFF, 0x10):
            changed = payload[:at] + bytes([payload[at] ^ flip]) + payload[at + 1 :]
            decode_or_corrupt(kind, aligned, changed)
            try:
                repr(_decode_value(kind, aligned, changed, RECORDS))
            except (CorruptValue, AttributeError):
                continue


def test_a_schema_says_what_is_wrong_with_it() -> None:
    with pytest.raises(TypeError, match="schema must be a Schema"):
        _encode_value(1, [Item])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown form"):
        Schema([(Item, "other", (), 0)])
