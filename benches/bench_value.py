"""Results to stored bytes and back, beside pickle and beside msgpack with `tobytes` and `frombuffer`.

infercache decodes from an entry as a hit does; the peers decode from a `bytes` object that they are handed. What pickle
gives is a fresh writable array, what the other two give a read-only one over the stored bytes.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from infercache._core import _encode_value, _Stored
from measure import Measure, Wanted

REPEATED = 2_000  # calls in one round
ROWS = 256

RESULTS: dict[str, Any] = {
    "a 384-float32 array": np.random.default_rng(1).random(384, dtype=np.float32),
    "a dict of 8 scalars": {
        "id": "item-42",
        "label": "shoes",
        "score": 0.25,
        "price": 19.5,
        "rank": 3,
        "stock": 1000,
        "new": True,
        "parent": None,
    },
    "a list of 384 floats": np.random.default_rng(2).random(384).tolist(),
    "64 bytes": bytes(64),
}
BATCH = np.random.default_rng(3).random((ROWS, 384), dtype=np.float32)


def packed(value: Any) -> bytes:
    """msgpack, an array as its dtype, shape and bytes."""

    def array(value: Any) -> Any:
        return {"dtype": value.dtype.str, "shape": value.shape, "data": value.tobytes()}

    return bytes(msgpack.packb(value, default=array))


def unpacked(stored: bytes) -> Any:
    """What `packed` stored."""

    def array(value: dict[str, Any]) -> Any:
        return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"]) if "dtype" in value else value

    return msgpack.unpackb(stored, object_hook=array)


def again(act: Callable[[], Any], times: int = REPEATED) -> Callable[[], None]:
    """A loop of that many calls."""

    def loop() -> None:
        for _ in range(times):
            act()

    return loop


@pytest.fixture(params=RESULTS, ids=str)
def result(request: pytest.FixtureRequest) -> Any:
    return RESULTS[request.param]


@pytest.fixture
def decoding(request: pytest.FixtureRequest, benchmark: Any, result: Any) -> Any:
    benchmark.group = "decode " + next(name for name, value in RESULTS.items() if value is result)
    return result


@pytest.fixture
def encoding(request: pytest.FixtureRequest, benchmark: Any, result: Any) -> Any:
    benchmark.group = "encode " + next(name for name, value in RESULTS.items() if value is result)
    return result


def bench_infercache_decode(measure: Measure, decoding: Any) -> None:
    stored = _Stored(decoding)
    assert np.array_equal(stored.value(), decoding)
    wanted = [Wanted("pickle_decode", at_most=0.2)] if isinstance(decoding, np.ndarray) else []
    measure(again(stored.value), operations=REPEATED, wanted=wanted)


def bench_pickle_decode(measure: Measure, decoding: Any) -> None:
    measure(again(functools.partial(pickle.loads, pickle.dumps(decoding, 5))), operations=REPEATED)


def bench_msgpack_decode(measure: Measure, decoding: Any) -> None:
    measure(again(functools.partial(unpacked, packed(decoding))), operations=REPEATED)


def bench_infercache_encode(measure: Measure, encoding: Any) -> None:
    measure(again(functools.partial(_encode_value, encoding)), operations=REPEATED)


def bench_pickle_encode(measure: Measure, encoding: Any) -> None:
    measure(again(functools.partial(pickle.dumps, encoding, 5)), operations=REPEATED)


def bench_msgpack_encode(measure: Measure, encoding: Any) -> None:
    measure(again(functools.partial(packed, encoding)), operations=REPEATED)


@pytest.fixture
def batch(benchmark: Any) -> np.ndarray[Any, Any]:
    benchmark.group = f"assemble {ROWS} rows of 384 float32 into one array, a row"
    return BATCH


def bench_infercache_assemble(measure: Measure, batch: np.ndarray[Any, Any]) -> None:
    rows = _Stored.rows(batch, len(batch))
    assert np.array_equal(_Stored.assemble(rows), batch)
    loop = again(functools.partial(_Stored.assemble, rows), 20)
    measure(loop, operations=20 * len(batch), wanted=[Wanted(under=100e-9)])


def bench_numpy_copy_of_the_whole(measure: Measure, batch: np.ndarray[Any, Any]) -> None:
    measure(again(batch.copy, 20), operations=20 * len(batch))


def bench_numpy_stack_of_pickled_rows(measure: Measure, batch: np.ndarray[Any, Any]) -> None:
    rows = [pickle.dumps(row, 5) for row in batch]
    loop = again(lambda: np.stack([pickle.loads(row) for row in rows]), 5)
    measure(loop, operations=5 * len(batch))


def bench_numpy_stack_of_views(measure: Measure, batch: np.ndarray[Any, Any]) -> None:
    rows = [row.tobytes() for row in batch]
    loop = again(lambda: np.stack([np.frombuffer(row, np.float32) for row in rows]), 5)
    measure(loop, operations=5 * len(batch))
