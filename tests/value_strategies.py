"""Values of every kind that can be stored, for property tests."""

from __future__ import annotations

import datetime
import decimal
import struct
import zoneinfo

import numpy as np
from hypothesis import strategies as st

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
        [np.True_, np.False_, np.datetime64("2026-11-23", "ns"), np.datetime64("NaT", "s"), np.timedelta64(3, "25s")]
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
