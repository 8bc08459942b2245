"""The shared tier of a cache: hits beside a bare GET and beside what people write by hand; a purge until it is seen.

The server is started here, on the loopback. An L2 hit is a look-up of a cache that has just lost the entry: its memory
is otherwise as that of a process which has run for a while.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis

from infercache import Cache, Key
from infercache.effects import drive
from measure import Measure, Wanted
from serving import serving

SCOPE = {"model": "m", "version": "1"}
VALUE = np.arange(384, dtype=np.float32)  # 1.5 KB
FLOATS = [random.Random(1).random() for _ in range(384)]
QUESTION = {"text": "What was the reason why the order was sent back? " * 3, "temperature": 0.2, "top": 5}
EXCHANGES = 200  # in one round
ITEMS = 256  # of a batch


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server's port."""
    with serving() as port:
        yield port


def make(port: int, **options: Any) -> Cache:
    """A cache whose operations have all the time that a busy machine needs."""
    return Cache("64MB", l2=f"redis://127.0.0.1:{port}", timeout="10s", **options)


@pytest.fixture
def cache(port: int) -> Iterator[Cache]:
    with make(port) as cache:
        yield cache


def stored(cache: Cache, count: int) -> list[Key]:
    """The keys of so many values, which memory has and the server."""
    keys = [cache.key(number, operation="bench", **SCOPE) for number in range(count)]
    assert cache.set_many([(key, VALUE) for key in keys]) == count
    return keys


def forgetting(cache: Cache, keys: list[Key]) -> Callable[[], None]:
    """Takes the entries of these keys out of memory."""
    return each(cache._remove, keys)


def each(call: Callable[[Any], Any], things: list[Any]) -> Callable[[], None]:
    def loop() -> None:
        for thing in things:
            call(thing)

    return loop


@pytest.fixture
def one(benchmark: Any) -> None:
    benchmark.group = "a value of 1.5 KB that the server has and memory has not"


@pytest.mark.usefixtures("one")
def bench_infercache_l2_hit(measure: Measure, cache: Cache) -> None:
    keys = stored(cache, EXCHANGES)
    cache._empty()
    assert (cache.get(keys[0]) == VALUE).all()
    assert cache.stats().hits_l2 == 1
    measure(
        each(cache.get, keys),
        setup=forgetting(cache, keys),
        operations=EXCHANGES,
        wanted=Wanted("redis_py_get", at_most=1.3),
    )
    assert cache.stats().misses == cache.stats().hits_l1 == 0


@pytest.mark.usefixtures("one")
def bench_redis_py_get(measure: Measure, cache: Cache, port: int) -> None:
    names = [cache.shared.name_of(key) for key in stored(cache, EXCHANGES)]  # type: ignore[union-attr]
    with redis.Redis(host="127.0.0.1", port=port) as client:
        assert len(client.get(names[0])) > VALUE.nbytes  # type: ignore[arg-type]
        measure(each(client.get, names), operations=EXCHANGES)


@pytest.fixture
def batch(benchmark: Any) -> None:
    benchmark.group = f"{ITEMS} values of 1.5 KB that the server has and memory has not, a value"


@pytest.mark.usefixtures("batch")
def bench_infercache_l2_get_many(measure: Measure, cache: Cache) -> None:
    keys = stored(cache, ITEMS)
    cache._empty()
    assert all((value == VALUE).all() for value in cache.get_many(keys))
    wanted = [Wanted("single_gets_of_infercache", at_most=0.05), Wanted("redis_py_single_gets", at_most=0.05)]
    measure(lambda: cache.get_many(keys), setup=forgetting(cache, keys), operations=ITEMS, wanted=wanted)


@pytest.mark.usefixtures("batch")
def bench_infercache_l2_memoize_batch(measure: Measure, cache: Cache) -> None:
    @cache.memoize_batch(over="numbers", operation="batch", **SCOPE)
    def values(numbers: list[int]) -> Any:
        return np.stack([VALUE for _ in numbers])

    numbers = list(range(ITEMS))
    assert (values(numbers)[-1] == VALUE).all()
    wanted = [Wanted("single_gets_of_infercache", at_most=0.05), Wanted("single_calls_of_infercache", at_most=0.05)]
    setup = forgetting(cache, values.key(numbers))
    measure(lambda: values(numbers), setup=setup, operations=ITEMS, wanted=wanted)
    assert cache.stats().misses == ITEMS


@pytest.mark.usefixtures("batch")
def bench_single_gets_of_infercache(measure: Measure, cache: Cache) -> None:
    keys = stored(cache, ITEMS)
    measure(each(cache.get, keys), setup=forgetting(cache, keys), operations=ITEMS)


@pytest.mark.usefixtures("batch")
def bench_single_calls_of_infercache(measure: Measure, cache: Cache) -> None:
    value = cache.memoize(operation="single", **SCOPE)(value_of)
    numbers = list(range(ITEMS))
    each(value, numbers)()
    setup = forgetting(cache, [value.key(number) for number in numbers])
    measure(each(value, numbers), setup=setup, operations=ITEMS)


@pytest.mark.usefixtures("batch")
def bench_redis_py_single_gets(measure: Measure, cache: Cache, port: int) -> None:
    names = [cache.shared.name_of(key) for key in stored(cache, ITEMS)]  # type: ignore[union-attr]
    with redis.Redis(host="127.0.0.1", port=port) as client:
        measure(each(client.get, names), operations=ITEMS)


@pytest.mark.usefixtures("batch")
def bench_redis_py_mget(measure: Measure, cache: Cache, port: int) -> None:
    names = [cache.shared.name_of(key) for key in stored(cache, ITEMS)]  # type: ignore[union-attr]
    with redis.Redis(host="127.0.0.1", port=port) as client:
        measure(lambda: client.mget(names), operations=ITEMS)


@pytest.fixture
def recipe(benchmark: Any) -> None:
    benchmark.group = "a known question, answered by 384 floats"


@pytest.fixture
def questions() -> list[dict[str, Any]]:
    return [{**QUESTION, "number": number} for number in range(EXCHANGES)]


@pytest.mark.usefixtures("recipe")
def bench_infercache_l1_hit(measure: Measure, cache: Cache, questions: list[Any]) -> None:
    answer = cache.memoize(operation="recipe", **SCOPE)(answer_to)
    each(answer, questions)()
    wanted = Wanted("json_sha256_get_json", at_most=0.1)
    measure(each(answer, questions), operations=EXCHANGES, wanted=wanted)


@pytest.mark.usefixtures("recipe")
def bench_infercache_l2_hit_memoized(measure: Measure, cache: Cache, questions: list[Any]) -> None:
    answer = cache.memoize(operation="recipe", **SCOPE)(answer_to)
    each(answer, questions)()
    wanted = Wanted("json_sha256_get_json", at_most=1.0)
    measure(each(answer, questions), setup=cache._empty, operations=EXCHANGES, wanted=wanted)


@pytest.mark.usefixtures("recipe")
def bench_json_sha256_get_json(measure: Measure, port: int, questions: list[Any]) -> None:
    with redis.Redis(host="127.0.0.1", port=port) as client:

        def answer(question: dict[str, Any]) -> list[float]:
            name = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
            found = client.get(name)
            if found is not None:
                return json.loads(found)  # type: ignore[no-any-return, arg-type]
            result = answer_to(question)
            client.set(name, json.dumps(result), px=3_600_000)
            return result

        each(answer, questions)()
        measure(each(answer, questions), operations=EXCHANGES)


def value_of(number: int) -> Any:
    return VALUE


def answer_to(question: dict[str, Any]) -> list[float]:
    return FLOATS


READER = """
import sys, time
from infercache import Cache
cache = Cache("16MB", l2=sys.argv[1], timeout="10s")
key = cache.key("purged", operation="bench", model="m", version="1")
for line in sys.stdin:
    while cache.get(key) is None:
        time.sleep(0.001)
    print("seen", flush=True)
    while cache.get(key) is not None:
        time.sleep(0.00005)
    print("gone", flush=True)
"""
#: With a follower that has nothing to do, and without one.
IDLER = """
import sys, time
from infercache import Cache
cache = Cache("16MB", **({"l2": sys.argv[1], "timeout": "10s"} if sys.argv[1] else {}))
cache.get(cache.key(1, model="m", version="1"))
time.sleep(1)
began = time.process_time()
time.sleep(float(sys.argv[2]))
print(time.process_time() - began)
"""


def bench_infercache_purge_to_visible(measure: Measure, benchmark: Any, port: int) -> None:
    benchmark.group = "a purge until another process sees it, the purge itself included"
    url = f"redis://127.0.0.1:{port}"
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with make(port) as cache, reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        key = cache.key("purged", operation="bench", **SCOPE)
        told, heard = reader.stdin, reader.stdout

        def setup() -> None:
            cache.set(key, "value", tags=["purged"])
            told.write("go\n")
            told.flush()
            assert heard.readline() == "seen\n"
            time.sleep(0.02)  # so that the last purge's ring is not taken for this one's

        def purge() -> None:
            cache.invalidate(tags=["purged"])
            assert heard.readline() == "gone\n"

        measure(purge, setup=setup, rounds=400, percentile=99)
        told.close()


def bench_infercache_poll(measure: Measure, benchmark: Any, short: bool, port: int) -> None:
    """What a follower does when nothing happens, three times in each `max_staleness`, here of 2 s."""
    benchmark.group = "a follower's question when nothing has changed"
    seconds = 6 if short else 30
    url = f"redis://127.0.0.1:{port}"
    spent = [
        float(subprocess.check_output([sys.executable, "-c", IDLER, each_url, str(seconds)], text=True))
        for each_url in (url, "")
    ]
    a_minute = [60 * used / seconds for used in spent]
    note = f"idle follower: {a_minute[0]:.3f} s of CPU a minute, {a_minute[1]:.3f} s without one"
    with make(port) as cache:
        assert cache.shared is not None
        coherence, tier = cache.shared.coherence, cache.shared.tier
        assert drive(coherence.poll(10.0, tier)) is True
        measure(each(lambda _: drive(coherence.poll(10.0, tier)), list(range(50))), operations=50, note=note)
