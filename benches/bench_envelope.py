"""Envelopes of a shared tier to bytes and back, beside msgpack with SHA-256 and a plain copy.

The peers do less: the msgpack one packs key, stamp, durations and value and puts a SHA-256 before them, as one would by
hand, and checks it when reading; `copy` only copies the bytes once.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from infercache import Cache, Key, key
from infercache._core import Finds, envelope_decode, envelope_encode, tier_take
from measure import Measure, Wanted

SECRET = bytes(range(32))
EPOCH = bytes(16)
KEY = key("a question", model="m", version="1")
VALUES = {
    "1.5 KB": np.random.default_rng(1).random(384, dtype=np.float32).tobytes(),
    "100 KB": np.random.default_rng(1).random(25_000, dtype=np.float32).tobytes(),
    "1.5 KB of JSON": (b'{"id": "product-42", "score": 0.25, "title": "red shoes"}, ' * 26)[:1_500],
}
FIELDS: dict[str, Any] = {"epoch": EPOCH, "lsn": 7, "life": 60_000, "total": 60_000, "tags": [1, 2], "cost": 0.25}


def again(act: Callable[[], Any], times: int) -> Callable[[], None]:
    """A loop of that many calls."""

    def loop() -> None:
        for _ in range(times):
            act()

    return loop


def times_of(value: bytes) -> int:
    """Calls in one round."""
    return 1_000 if len(value) < 10_000 else 100


def packed(value: bytes) -> bytes:
    """The peer's envelope."""
    body = msgpack.packb([bytes(KEY), EPOCH, 7, 60_000, [1, 2], 0.25, value])
    return hashlib.sha256(body).digest() + bytes(body)


def unpacked(data: bytes) -> bytes:
    """Its value, checked."""
    body = memoryview(data)[32:]
    assert hashlib.sha256(body).digest() == data[:32]
    fields = msgpack.unpackb(body)
    assert fields[0] == bytes(KEY)
    return bytes(fields[-1])


@pytest.fixture(params=VALUES, ids=str)
def written(request: pytest.FixtureRequest, benchmark: Any) -> bytes:
    benchmark.group = f"an envelope of {request.param}, written"
    return VALUES[request.param]


@pytest.fixture(params=VALUES, ids=str)
def read(request: pytest.FixtureRequest, benchmark: Any) -> bytes:
    benchmark.group = f"an envelope of {request.param}, read"
    return VALUES[request.param]


def bench_infercache_encode(measure: Measure, written: bytes) -> None:
    act = functools.partial(envelope_encode, KEY, written, **FIELDS)
    times = times_of(written)
    measure(again(act, times), operations=times, wanted=Wanted("msgpack_sha256_encode", at_most=1))


def bench_infercache_encode_with_mac(measure: Measure, written: bytes) -> None:
    act = functools.partial(envelope_encode, KEY, written, **FIELDS, secret=SECRET)
    times = times_of(written)
    measure(again(act, times), operations=times)


def bench_msgpack_sha256_encode(measure: Measure, written: bytes) -> None:
    times = times_of(written)
    measure(again(functools.partial(packed, written), times), operations=times)


def bench_copy_encode(measure: Measure, written: bytes) -> None:
    times = times_of(written)
    measure(again(functools.partial(bytearray, written), times), operations=times)


def decoding(value: bytes, secret: bytes | None) -> Callable[[], Any]:
    """Reads an envelope of this value."""
    data = envelope_encode(KEY, value, **FIELDS, secret=secret)
    act = functools.partial(envelope_decode, data, KEY, secret=secret)
    assert act()["payload"] == value  # type: ignore[index]
    return act


def bench_infercache_decode(measure: Measure, read: bytes) -> None:
    times = times_of(read)
    measure(again(decoding(read, None), times), operations=times)


def bench_infercache_decode_with_mac(measure: Measure, read: bytes) -> None:
    times = times_of(read)
    measure(again(decoding(read, SECRET), times), operations=times)


def bench_infercache_promote(measure: Measure, read: bytes) -> None:
    """Into a cache, which is what a tier does; nothing of Python's is made of the fields."""
    cache = Cache("64MB")
    position = cache._position(cache._stamp())
    assert position is not None
    data = envelope_encode(KEY, read, **{**FIELDS, "epoch": position[0], "lsn": 0})
    keys = [Key(KEY)]

    def act() -> Finds:
        finds = Finds(keys, counted=False)
        tier_take(cache, finds, 0, 1, [data], [59_000], 0, None)
        return finds

    assert act()[0][1] == "l2"  # type: ignore[index]
    times = times_of(read)
    measure(again(act, times), operations=times, wanted=Wanted("msgpack_sha256_decode", at_most=1.25))


def bench_msgpack_sha256_decode(measure: Measure, read: bytes) -> None:
    times = times_of(read)
    measure(again(functools.partial(unpacked, packed(read)), times), operations=times)


def bench_copy_decode(measure: Measure, read: bytes) -> None:
    times = times_of(read)
    measure(again(functools.partial(bytearray, read), times), operations=times)
