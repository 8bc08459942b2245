"""One authority a deployment: the caches of a process with one prefix and secret hear of each other's purges."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infercache import Cache, InvalidArgument, Stamp
from infercache.testing import ManualClock

CAPACITY = "1MB"


def test_a_purge_on_one_cache_holds_for_every_cache_of_its_deployment() -> None:
    one, other, foreign = Cache(CAPACITY), Cache(CAPACITY), Cache(CAPACITY, l2_prefix="foreign")
    key = one.key("question", model="m", version="1")
    for cache in (one, other, foreign):
        cache.set(key, "answer", tags=["t"])
    token = one.invalidate(tags=["t"])
    assert one.get(key) is None
    assert other.get(key) is None
    assert other.get(key, min_token=token) is None
    assert foreign.get(key) == "answer"


def test_namespaces_of_one_deployment_keep_their_tags_apart() -> None:
    one, other = Cache(CAPACITY, namespace="one"), Cache(CAPACITY, namespace="other")
    key = other.key("question", model="m", version="1")
    other.set(key, "answer", tags=["t"])
    one.invalidate(tags=["t"])
    one.invalidate(model="m")
    assert other.get(key) == "answer"
    one.invalidate(all=True)
    assert other.get(key) is None


def test_clear_is_for_one_cache() -> None:
    one, other = Cache(CAPACITY), Cache(CAPACITY)
    key = one.key("question", model="m", version="1")
    stamp = one.lookup(key).stamp
    one.set(key, "answer")
    other.set(key, "answer")
    one.clear()
    assert one.get(key) is None
    assert not one.set(key, "computed before the clear", since=stamp)
    assert one.get(key) is None
    assert other.get(key) == "answer"


@pytest.mark.parametrize("prefix", ["ic", "elsewhere"])
def test_an_answer_computed_from_another_caches_answer_is_stored(prefix: str) -> None:
    outer, inner = Cache(CAPACITY), Cache(CAPACITY, l2_prefix=prefix)
    runs: list[int] = []

    @inner.memoize(model="inner", version="1", operation="inner")
    def part(question: str) -> str:
        return question.upper()

    @outer.memoize(model="outer", version="1", operation="outer", tags=["t"])
    def whole(question: str) -> str:
        runs.append(1)
        return part(question) + "!"

    part("a")
    outer.invalidate(tags=["t"])
    assert [whole("a") for _ in range(3)] == ["A!"] * 3
    assert len(runs) == 1


def test_a_stamp_from_the_future_is_refused() -> None:
    cache = Cache(CAPACITY)
    key = cache.key("question", model="m", version="1")
    ahead = Stamp(cache.lookup(key).stamp.word + 1)
    with pytest.raises(InvalidArgument, match="since"):
        cache.set(key, "answer", since=ahead)


@pytest.mark.parametrize("ttl", ["1000d", "3650d", "30000d"])
def test_lives_of_years_cost_nothing(ttl: str) -> None:
    clock = ManualClock(1_000_000.0)
    cache = Cache("300KB", ttl=ttl, clock=clock)
    keys = [cache.key(number, model="m", version="1") for number in range(3_000)]
    for key in keys:
        assert cache.set(key, b"x" * 200)
    assert cache.get(keys[-1]) == b"x" * 200


def test_a_capacity_below_64_kibibytes_is_refused() -> None:
    # "64KB" are 1,536 bytes too few, so an error that asks for "64KB" would ask for what was given.
    with pytest.raises(InvalidArgument, match=r"^capacity='64KB': 64,000 bytes; give at least 65,536, .*'64KiB'"):
        Cache("64KB")
    assert Cache("64KiB").capacity == Cache(65_536).capacity == 65_536


def test_a_batch_that_cannot_be_stored_runs_the_model_once() -> None:
    cache = Cache(CAPACITY)
    runs: list[int] = []

    @cache.memoize_batch(model="m", version="1", over="texts", operation="embed")
    def embed(texts: list[str]) -> np.ndarray:
        runs.append(len(texts))
        return np.array([object() for _ in texts])

    with pytest.warns(UserWarning, match="cannot be stored"):
        first = embed(["a", "b"])
    assert first.shape == (2,)
    assert runs == [2]


ENDS_WHILE_HASHING = """
import threading, time
import numpy as np
from infercache import Cache

cache = Cache("64MB")
array = np.zeros(200_000_000, dtype=np.uint8)
begun = threading.Event()

def hash_for_ever() -> None:
    while True:
        begun.set()
        cache.key(array, model="m", version="1")

for _ in range(3):
    threading.Thread(target=hash_for_ever, daemon=True).start()
begun.wait()
time.sleep(0.05)
"""


def test_the_process_ends_while_daemon_threads_hash(tmp_path: Path) -> None:
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", ENDS_WHILE_HASHING], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
