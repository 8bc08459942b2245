"""The key of a question, beside what people key inferences with: `json` or orjson with SHA-256, `joblib.hash`, BLAKE3.

Ours takes model and version as well and gives a `Key`; each peer gives 32 bytes of digest (joblib a hexadecimal text).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

import blake3
import joblib
import numpy as np
import orjson
import pytest

import infercache
from measure import Measure, Wanted

# 160 bytes as JSON.
QUESTION: dict[str, Any] = {
    "user": "u-482",
    "query": "red shoes",
    "filters": {"size": [42, 43], "brand": "acme", "in_stock": True},
    "limit": 20,
    "price": {"min": 10.5, "max": 120},
    "page": 1,
    "lang": "en-GB",
}
NUMBERS: list[float] = [random.Random(n).random() for n in range(256)] + [
    random.Random(n).randrange(100_000) for n in range(128)
]
ARRAY = np.random.default_rng(1).random((384, 390), dtype=np.float32)  # 599,040 bytes
RAW = orjson.dumps(QUESTION)
assert len(RAW) == len(infercache.canonical_json(QUESTION)) == 160
REPEATED = 1_000
LISTS, ARRAYS = 100, 10


def repeated(times: int, make: Callable[[], Any]) -> Callable[[], None]:
    """A loop of calls."""

    def loop() -> None:
        for _ in range(times):
            make()

    return loop


def ours(value: Any) -> Callable[[], Any]:
    """The key of a value."""
    key = infercache.key
    return lambda: key(value, model="bench", version="1")


def json_sha256(value: Any) -> Callable[[], bytes]:
    """What the standard library offers."""
    return lambda: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def orjson_sha256(value: Any) -> Callable[[], bytes]:
    """The fastest JSON writer with sorted names."""
    return lambda: hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).digest()


@pytest.mark.benchmark(group="key of a 160-byte nested dict")
def bench_infercache_dict(measure: Measure) -> None:
    wanted = Wanted("json_sha256_dict", at_most=1 / 5)
    measure(
        repeated(REPEATED, ours(QUESTION)), operations=REPEATED, wanted=wanted, headline="the key of a 160-byte dict"
    )


@pytest.mark.benchmark(group="key of a 160-byte nested dict")
def bench_infercache_dict_no_slower_than_orjson(measure: Measure) -> None:
    wanted = Wanted("orjson_sha256_dict", at_most=1.0)
    measure(repeated(REPEATED, ours(QUESTION)), operations=REPEATED, wanted=wanted)


@pytest.mark.benchmark(group="key of a 160-byte nested dict")
def bench_json_sha256_dict(measure: Measure) -> None:
    measure(repeated(REPEATED, json_sha256(QUESTION)), operations=REPEATED)


@pytest.mark.benchmark(group="key of a 160-byte nested dict")
def bench_orjson_sha256_dict(measure: Measure) -> None:
    measure(repeated(REPEATED, orjson_sha256(QUESTION)), operations=REPEATED)


@pytest.mark.benchmark(group="key of a 160-byte nested dict")
def bench_infercache_raw_json(measure: Measure) -> None:
    key = infercache.key_from_json
    measure(repeated(REPEATED, lambda: key(RAW, model="bench", version="1")), operations=REPEATED)


@pytest.mark.benchmark(group="key of 256 floats and 128 integers")
def bench_infercache_numbers(measure: Measure) -> None:
    wanted = Wanted("orjson_sha256_numbers", at_most=0.8)
    measure(repeated(LISTS, ours(NUMBERS)), operations=LISTS, wanted=wanted)


@pytest.mark.benchmark(group="key of 256 floats and 128 integers")
def bench_json_sha256_numbers(measure: Measure) -> None:
    measure(repeated(LISTS, json_sha256(NUMBERS)), operations=LISTS)


@pytest.mark.benchmark(group="key of 256 floats and 128 integers")
def bench_orjson_sha256_numbers(measure: Measure) -> None:
    measure(repeated(LISTS, orjson_sha256(NUMBERS)), operations=LISTS)


@pytest.mark.benchmark(group="key of a 600 KB array")
def bench_infercache_array(measure: Measure) -> None:
    wanted = Wanted("joblib_hash_array", at_most=1 / 8)
    measure(repeated(ARRAYS, ours(ARRAY)), operations=ARRAYS, wanted=wanted, headline="the key of a 600 KB array")


@pytest.mark.benchmark(group="key of a 600 KB array")
def bench_joblib_hash_array(measure: Measure) -> None:
    measure(repeated(ARRAYS, lambda: joblib.hash(ARRAY)), operations=ARRAYS)


@pytest.mark.benchmark(group="key of a 600 KB array")
def bench_blake3_array(measure: Measure) -> None:
    flat = ARRAY.reshape(-1).view("u1")
    measure(repeated(ARRAYS, lambda: blake3.blake3(flat).digest()), operations=ARRAYS)
