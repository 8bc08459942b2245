"""However small a thread's stack is, a value that nests deeply gives an error or an answer, never a crash."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

KIB = 1024

# What each of the scripts below begins with. They are processes of their own, because the system hands a thread that
# asks for a small stack the larger one of a thread that has ended.
PREAMBLE = """
import sys, threading, warnings
import infercache
from infercache import Cache, UncacheableResult, UnsupportedInput, _core

SCOPE = {"model": "m", "version": "1"}


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def on_a_stack_of(kib, act):
    outcome = []

    def run():
        try:
            outcome.append(act())
        except Exception as error:
            outcome.append(error)

    before = threading.stack_size(kib * 1024)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    threading.stack_size(before)
    return outcome[0]
"""


def run(script: str) -> None:
    """Runs a script in a process of its own; its assertions are this one's."""
    code = PREAMBLE + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB])
def test_every_walk_at_every_depth_ends_in_an_error_or_an_answer_on_a_stack_of(size: int) -> None:
    before = threading.stack_size()
    try:
        threading.stack_size(size)
    except ValueError:
        pytest.skip(f"threads have more than {size} bytes of stack here")
    finally:
        threading.stack_size(before)
    script = Path(__file__).with_name("deep_walks.py")
    done = subprocess.run([sys.executable, script, str(size)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"died at: {done.stdout.splitlines()[-1:]}\n{done.stderr}"
    *walks, last = done.stdout.splitlines()
    assert last == "done", done.stderr
    answered = {name: int(count) for name, count in (line.rsplit(" ", 1) for line in walks)}
    assert answered.pop("key of a cycle") == 0
    # Something is answered of every kind, however small the stack, but what no stack gives an answer for.
    refused = {"key of refused inside", "key of surrogate inside"}
    refused |= {"set and get of dataclass", "set and get of model"}  # no annotation names their classes
    assert {name for name, count in answered.items() if count == 0} == refused


def test_the_deepest_value_has_the_same_key_on_the_usual_stacks_of_threads() -> None:
    run(
        """
        for depth in (1, 100, 256):
            value = nested(depth)
            expected = infercache.key(value, **SCOPE)
            for kib in (512, 8192):  # macOS, Linux
                assert on_a_stack_of(kib, lambda: infercache.key(value, **SCOPE)) == expected
        """
    )


def test_the_error_names_the_path_the_stack_and_what_to_do() -> None:
    run(
        """
        value = {"a": nested(255)}
        error = on_a_stack_of(64, lambda: infercache.key(value, **SCOPE))
        assert isinstance(error, UnsupportedInput)
        assert str(error).startswith("input.a[0][0]")
        for part in ("nests too deeply", "KiB stack of this thread", "threading.stack_size"):
            assert part in str(error), error
        """
    )


def test_raw_json_that_is_too_deep_for_the_stack_is_not_called_invalid() -> None:
    run(
        """
        text = b"[" * 256 + b"]" * 256
        error = on_a_stack_of(64, lambda: _core.key_from_json(text, **SCOPE))
        assert isinstance(error, UnsupportedInput)
        assert "nests too deeply" in str(error)
        """
    )


def test_a_cycle_is_called_one_on_a_small_stack_too() -> None:
    run(
        """
        endless = []
        endless.append(endless)
        error = on_a_stack_of(64, lambda: infercache.key(endless, **SCOPE))
        assert "contains itself" in str(error)
        """
    )


def test_a_result_that_is_too_deep_for_the_stack_is_returned_uncached() -> None:
    run(
        """
        cache = Cache(capacity="1MB")
        deep = nested(256)
        function = cache.memoize(operation="deep", **SCOPE)(lambda x: deep)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert on_a_stack_of(128, lambda: function(1)) is deep
            assert on_a_stack_of(128, lambda: cache.set(function.key(2), deep)) is False
        assert [warning.category for warning in caught] == 2 * [UncacheableResult]
        assert all("KiB stack of this thread" in str(warning.message) for warning in caught)
        assert cache.stats().uncacheable == 2
        """
    )


def test_what_a_larger_stack_stored_is_a_miss_where_the_stack_is_too_small() -> None:
    run(
        """
        cache = Cache(capacity="1MB")
        key = cache.key(1, **SCOPE)
        assert cache.set(key, nested(256))
        assert on_a_stack_of(64, lambda: cache.get(key, "missing")) == "missing"
        assert on_a_stack_of(64, lambda: cache.lookup(key).source) == "miss"
        assert cache.get(key) == nested(256)
        """
    )
