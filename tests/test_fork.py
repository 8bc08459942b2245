"""A process that forks while another of its threads uses something for the first time has a child that works."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# Everything that is used for the first time by some call. Another thread gets the interpreter only where the one that
# runs gives it up by itself, as it does while something is made that is made once; and then it forks.
SCRIPT = """
import array, datetime, decimal, enum, faulthandler, fractions, os, sys, threading, time, types, uuid, warnings
from dataclasses import dataclass
import numpy as np
import infercache
from infercache import Cache, _core

warnings.simplefilter("ignore")
SCOPE = {"model": "m", "version": "1"}
cache = Cache("64MB")


class Color(enum.Enum):
    RED = 1


@dataclass
class Point:
    x: object


class Plain:
    pass


class Dlpack:
    def __dlpack__(self):
        raise BufferError

    def __dlpack_device__(self):
        return (1, 0)


class Methods:
    @cache.memoize(**SCOPE)
    def method(self, x: int) -> int:
        return x


infercache.register_form(Methods, "methods", lambda methods: 1)


def refused(value):
    try:
        infercache.key(value, **SCOPE)
    except (TypeError, BufferError):
        return
    raise AssertionError


def key(value):
    infercache.key(value, **SCOPE)


def keep(value):
    k = cache.key(repr(type(value)), **SCOPE)
    cache.set(k, value)
    cache.get(k)


def single():
    function = cache.memoize(operation="single", **SCOPE)(lambda x: Point(x))
    function(1), function(1), function.invalidate(1)


def batch():
    function = cache.memoize_batch(operation="batch", over="items", **SCOPE)(lambda items: np.ones((len(items), 3)))
    function([1, 2]), function([1, 2]), function((2, 3))


def annotated():
    def point(x: int) -> Point:
        return Point(x)

    function = cache.memoize(operation="annotated", **SCOPE)(point)
    function(1), function(1)


now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1), "zone"))
VALUES = [
    Color.RED, 10**30, b"a", bytearray(b"a"), memoryview(b"ab"), array.array("d", [1]), np.ones(3), np.float32(1),
    np.array(["a"]), np.str_("a"), {1: 2}, {1}, types.MappingProxyType({"a": 1}), now,
    now.date(), now.timetz(), decimal.Decimal(1), uuid.UUID(int=1), Point(1), Methods(), np.ones(1 << 18), ["a", {}],
]
MORE_VALUES = [1j, np.array(["2026"], "M8[D]"), "\\ud800", Plain(), float, None, True]
USES = {
    "keys": lambda: [key(value) for value in VALUES],
    "refusals": lambda: [refused(value) for value in (Plain(), Plain, "\\ud800", [object()], Dlpack(), 1j)],
    "raw JSON": lambda: [_core.key_from_json(text, **SCOPE) for text in ('{"a":1}', b"1", bytearray(b"[]"))],
    "values": lambda: [keep(value) for value in VALUES + MORE_VALUES],
    "functions": lambda: (single(), annotated()),
    "batches": batch,
    "methods": lambda: Methods().method(1),
    "invalidation": lambda: (cache.invalidate(all=True), cache.stats(), cache.lookup(cache.key(1, **SCOPE))),
}


def everything():
    for use in USES.values():
        use()


sys.setswitchinterval(1_000)
thread = threading.Thread(target=USES[sys.argv[1]])
thread.start()
for _ in range(8):
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(60, exit=True)
        everything()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    time.sleep(0)
thread.join()
"""
USES = ["keys", "refusals", "raw JSON", "values", "functions", "batches", "methods", "invalidation"]


@pytest.mark.parametrize("use", USES)
def test_while_a_thread_makes_its_first(use: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, use], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
