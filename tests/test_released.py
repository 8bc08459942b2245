"""Long work is done without the interpreter, and a process that ends or forks meanwhile is none the worse for it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import infercache
from infercache import Cache, Key, _core

LARGE = 64 << 20
SCOPE = {"model": "m", "version": "1"}


@contextmanager
def progress() -> Iterator[Callable[[], int]]:
    """How far another thread has come. It goes on only while whoever runs gives the interpreter up by itself."""
    count = 0
    stop = False

    def run() -> None:
        nonlocal count
        while not stop:
            count += 1
            time.sleep(0)  # gives it up, and asks for it again

    before = sys.getswitchinterval()
    sys.setswitchinterval(1_000)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: count
    finally:
        stop = True
        sys.setswitchinterval(before)
        thread.join()


def gives_way(act: Callable[[], object], times: int = 50) -> bool:
    """Whether another thread can make progress during the call. It is given several, for it may not get a processor."""
    act()  # the first call of its kind may look something up
    with progress() as count:
        for _ in range(times):
            before = count()
            act()
            if count() > before:
                return True
    return False


@pytest.fixture
def cache() -> Cache:
    return Cache(capacity="1GB")


@pytest.fixture
def key(cache: Cache) -> Key:
    return cache.key("question", **SCOPE)


LONG: dict[str, Any] = {
    "text": "x" * LARGE,
    "bytes": bytes(LARGE),
    "bytearray": bytearray(LARGE),
    "array": np.zeros(LARGE // 4, np.float32),
    "a list of texts": ["x" * LARGE, "y"],
}


class TestOthersRunMeanwhile:
    @pytest.mark.parametrize("value", LONG.values(), ids=LONG)
    def test_while_a_long_value_is_keyed(self, value: Any) -> None:
        assert gives_way(lambda: infercache.key(value, **SCOPE))

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda text: text.decode()])
    def test_while_long_raw_json_is_keyed(self, kind: Callable[[bytes], Any]) -> None:
        text = kind(b'["' + b"x" * LARGE + b'"]')
        assert gives_way(lambda: _core.key_from_json(text, **SCOPE))

    @pytest.mark.parametrize(
        "value",
        [np.zeros(LARGE, np.uint8), bytes(LARGE), "x" * LARGE, {"nested": np.zeros(LARGE, np.uint8)}],
        ids=["array", "bytes", "text", "an array in a dict"],
    )
    def test_while_a_large_value_is_set(self, cache: Cache, key: Key, value: Any) -> None:
        assert gives_way(lambda: cache.set(key, value))

    def test_while_a_large_result_is_memoized(self, cache: Cache) -> None:
        result = np.zeros(LARGE, np.uint8)
        function = cache.memoize(operation="large", **SCOPE)(lambda x: result)
        assert gives_way(lambda: function.refresh(1))

    def test_and_not_for_what_is_short(self, cache: Cache, key: Key) -> None:
        assert not gives_way(lambda: infercache.key({"a": ["short"]}, **SCOPE))
        assert not gives_way(lambda: cache.set(key, np.zeros(100)))


class TestAnswersAreTheSame:
    @pytest.mark.parametrize("length", [(256 << 10) - 3, (256 << 10) - 2, 256 << 10, 1 << 20])
    @pytest.mark.parametrize("letter", ["x", "ä", '"'])
    def test_for_text_around_the_length_from_which_it_is_copied_apart(self, length: int, letter: str) -> None:
        text = letter * length
        document = infercache.canonical_json([text, {text: 1}])
        escaped = text.replace('"', '\\"')
        assert document == f'["{escaped}",{{"{escaped}":1}}]'.encode()
        assert infercache.key([text], **SCOPE) == _core.key_from_json(f'["{escaped}"]', **SCOPE)

    @pytest.mark.parametrize("size", [(256 << 10) - 60, (256 << 10) - 1, 256 << 10, 1 << 20])
    def test_for_values_around_the_size_from_which_they_are_copied_apart(
        self, cache: Cache, key: Key, size: int
    ) -> None:
        array = np.arange(size, dtype=np.uint8)
        for value in (array.tobytes(), "x" * size, array.reshape(2, -1, order="F") if size % 2 == 0 else array):
            assert cache.set(key, value, ttl=60, tags=["a"])
            found = cache.get(key)
            assert type(found) is type(value)
            assert np.array_equal(found, value)
            assert cache.lookup(key).source == "l1"
            cache.invalidate(tags=["a"])
            assert cache.get(key) is None

    def test_a_large_value_is_replaced_fenced_and_refused_like_a_small_one(self, key: Key) -> None:
        cache = Cache(capacity="4MB")
        large = bytes(1 << 20)
        stamp = cache.lookup(key).stamp
        cache.invalidate(all=True)
        assert not cache.set(key, large, since=stamp)
        assert cache.set(key, large)
        assert cache.set(key, large[:-1])
        assert cache.get(key) == large[:-1]
        assert not cache.set(key, bytes(8 << 20))
        # What is too large leaves nothing older in its place.
        assert (cache.stats().stores, cache.stats().rejected, cache.stats().entries) == (2, 1, 0)

    def test_a_raw_text_that_is_written_to_meanwhile_is_read_as_it_was(self) -> None:
        text = bytearray(b'["' + b"x" * (1 << 20) + b'"]')
        view = memoryview(text)
        expected = _core.key_from_json(bytes(text), **SCOPE)
        assert _core.key_from_json(text, **SCOPE) == _core.key_from_json(view, **SCOPE) == expected
        view.release()
        text.clear()  # nothing holds its buffer any more


def run(script: str) -> None:
    """Runs a script in a process of its own."""
    imports = "import os, sys, threading, time\nimport infercache, numpy as np\nfrom infercache import Cache, _core\n"
    code = imports + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Four threads that key and store large values until the process ends.
BUSY = """
cache = Cache("256MB")
SCOPE = {"model": "m", "version": "1"}
array, text = np.zeros(4 << 20, np.uint8), "x" * (4 << 20)
raw = '["' + text + '"]'
ready = threading.Barrier(5)

def work(number):
    key = cache.key(number, **SCOPE)
    ready.wait()
    while True:
        infercache.key(text, **SCOPE)
        _core.key_from_json(raw, **SCOPE)
        cache.set(key, array)
        cache.get(key)

for number in range(4):
    threading.Thread(target=work, args=(number,), daemon=True).start()
ready.wait()
"""


def test_the_process_ends_while_daemon_threads_key_and_store() -> None:
    run(BUSY + "time.sleep(0.2)\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_works_and_ends_while_its_parents_threads_key_and_store() -> None:
    run(
        BUSY
        + textwrap.dedent(
            """
            for _ in range(20):
                child = os.fork()
                if child == 0:
                    key = cache.key("child", **SCOPE)
                    assert cache.get(cache.key(0, **SCOPE)) is None
                    assert cache.set(key, array)
                    assert cache.get(key).nbytes == array.nbytes
                    assert cache.stats().entries == 1
                    infercache.key(array, **SCOPE)
                    sys.exit(0)  # by way of atexit
                _, status = os.waitpid(child, 0)
                assert status == 0, status
            """
        )
    )
