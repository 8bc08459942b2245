"""A process that forks whatever its other threads do has a child that works.

They use something for the first time, they end after they used everything, or native threads come and go.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import infercache

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# Everything that is used for the first time by some call.
USING = """
import array, datetime, decimal, enum, faulthandler, os, signal, sys, tempfile, threading, time, types, uuid, warnings
from dataclasses import dataclass, make_dataclass
import numpy as np
import infercache
from infercache import Cache, _core

warnings.simplefilter("ignore")
faulthandler.enable()
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


def forked(use):
    child = os.fork()
    if child == 0:
        use()
        os._exit(0)
    return child


def answered(child):
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGABRT)  # faulthandler, which it has inherited, says where it stands
            os.waitpid(child, 0)
            os._exit(1)
        time.sleep(0.001)
    assert ended[1] == 0, ended
"""

# Another thread gets the interpreter only where the one that runs gives it up by itself, as it does while something is
# made that is made once; and then it forks.
FIRST_USES = """
sys.setswitchinterval(1_000)
thread = threading.Thread(target=USES[sys.argv[1]])
thread.start()
for _ in range(8):
    answered(forked(everything))
    time.sleep(0)
thread.join()
"""

# What a thread remembers of Python's goes when it ends, and that is after it gave the interpreter up for good: many
# threads that have met many types end together, while the process forks.
ENDS = """
POINTS = [make_dataclass(f"Point{n}", ["x"])(1) for n in range(900)]
everything()
for _ in range(40):
    ready, gate = threading.Semaphore(0), threading.Event()

    def use():
        everything_small(), ready.release(), gate.wait()

    def everything_small():
        key(POINTS), USES["raw JSON"](), USES["functions"](), USES["refusals"]()

    threads = [threading.Thread(target=use) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        ready.acquire()
    gate.set()
    children = [forked(lambda: (key(POINTS[:3]), everything_small())) for _ in range(3)]
    for child in children:
        answered(child)
    for thread in threads:
        thread.join()
"""

# Native threads that hash a model's files, a thread that hashes what is long, and one that does everything; the child
# starts a thread, whose first allocation is what a lock of the allocator would hold up.
NATIVE = """
stop = False
with tempfile.NamedTemporaryFile() as file:
    file.write(bytes(64)), file.flush()

    def hash_files():
        while not stop:
            _core._hash_regions([file.name], [(0, n, 1) for n in range(8)], None, 8)

    def hash_arrays():
        elements = np.ones(1 << 18)
        while not stop:
            key(elements)

    def use():
        while not stop:
            everything()

    threads = [threading.Thread(target=work) for work in (hash_files, hash_files, hash_arrays, use)]
    for thread in threads:
        thread.start()

    def answer():
        thread = threading.Thread(target=key, args=(["text", now],))
        thread.start(), thread.join()

    for n in range(150):
        answered(forked(everything if n % 10 == 0 else answer))
    stop = True
    for thread in threads:
        thread.join()
"""
USES = ["keys", "refusals", "raw JSON", "values", "functions", "batches", "methods", "invalidation"]


def answers(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USING + script, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("use", USES)
def test_while_a_thread_makes_its_first(use: str) -> None:
    answers(FIRST_USES, use)


def test_while_threads_end_that_have_used_everything() -> None:
    answers(ENDS)


def test_while_native_threads_come_and_go_and_others_use_everything() -> None:
    answers(NATIVE)


def test_the_extension_drops_nothing_without_the_interpreter() -> None:
    # "leak", or "abort" in the build of `make attached`: what PyO3 does by itself needs a lock that a fork may catch.
    assert infercache._core.DETACHED_DROPS in {"leak", "abort"}, "built without .cargo/config.toml"
