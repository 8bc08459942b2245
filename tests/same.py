"""Whether two values are the same, types, bits and order; and the way of a value to stored bytes and back."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import struct
import uuid
from typing import Any

import numpy as np
import pytest

from infercache._core import _decode_value, _encode_value
from infercache.errors import CorruptValue

BYTES, STR, TENSOR, ROW, NONE, FALSE, TRUE, INT, FLOAT, TREE, TREE_WITH_TENSORS = range(11)


def restored(value: Any, schema: Any = None, *, copy: bool = False) -> Any:
    """What a hit gives for a result."""
    kind, aligned, payload = _encode_value(value, schema)
    assert 0 <= kind < 16
    return _decode_value(kind, aligned, payload, schema, copy)


def reason(value: Any, schema: Any = None) -> str:
    """Why a value cannot be stored."""
    with pytest.raises(TypeError) as caught:
        _encode_value(value, schema)
    return str(caught.value)


def decode_or_corrupt(kind: int, aligned: bool, payload: bytes) -> None:
    """Decodes and looks at everything; any error but CorruptValue is a failure."""
    try:
        value = _decode_value(kind, aligned, payload)
    except CorruptValue:
        return
    repr(value)
    with contextlib.suppress(TypeError):  # a value may hold what cannot be stored again, a float key made a list, say
        _encode_value(value)


def same(one: Any, other: Any) -> bool:
    """Whether nobody could tell two values apart, but by identity."""
    return form(one) == form(other)


def form(value: Any) -> Any:
    """A value as plain nested tuples that are equal exactly if the values are the same."""
    kind = type(value)
    if isinstance(value, np.ndarray):
        dtype = value.dtype
        order = (value.flags.c_contiguous, value.flags.f_contiguous)
        return (kind, dtype.str, dtype.name, dtype.type, value.shape, order, value.tobytes(order="A"))
    if isinstance(value, np.generic) or kind.__module__ == "ml_dtypes":
        if isinstance(value, (np.str_, np.bytes_)):
            return (kind, value[:], len(value))
        return (kind, np.asarray(value).dtype.str, np.asarray(value).tobytes())
    if kind in (float, complex):
        return (kind, struct.pack("<dd", value.real, value.imag))
    if kind in (list, tuple):
        return (kind, *map(form, value))
    if kind is dict:
        return (kind, *((form(name), form(item)) for name, item in value.items()))
    if kind in (set, frozenset):
        return (kind, *sorted(map(repr, map(form, value))))
    if kind in (datetime.datetime, datetime.time):
        return (kind, value.replace(tzinfo=None), value.fold, _zone(value.tzinfo))
    if kind is decimal.Decimal:
        return (kind, value.as_tuple())
    if kind is uuid.UUID:
        return (kind, value.int, value.is_safe)
    return (kind, value)


def _zone(zone: datetime.tzinfo | None) -> Any:
    if zone is None or zone is datetime.UTC:
        return id(zone)
    if isinstance(zone, datetime.timezone):
        return (type(zone), zone.__getinitargs__())
    return (type(zone), zone.key)
