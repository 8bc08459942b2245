"""The child of a fork has a tier that works, with sockets of its own, whatever the parent's threads were doing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from infercache.tiers import Command, RedisTier
from together import PATIENCE

if TYPE_CHECKING:
    from servers import Server

pytestmark = [pytest.mark.network, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")]

# Run apart: a process full of threads and event loops, which a test's own process is better without.
SCRIPT = """
import asyncio, os, signal, sys, threading, warnings
from infercache.tiers import Command, RedisTier

warnings.simplefilter("ignore")  # that a process with threads forks
tier = RedisTier(sys.argv[1], timeout="20s", write_behind=10_000, connections=4)
done = False
wrong = []


def work(number):
    turn = 0
    while not done:
        turn += 1
        expected = f"{os.getpid()}-{number}-{turn}".encode()
        (reply,) = tier.exchange([Command("ECHO", expected)])
        if reply != expected:
            wrong.append((expected, reply))
        tier.behind([Command("INCR", "behind")])
        tier.stats()


def child():
    signal.alarm(30)  # a child that hangs is a child that fails
    for turn in range(5):
        expected = f"child-{os.getpid()}-{turn}".encode()
        assert tier.exchange([Command("ECHO", expected)]) == [expected]
        assert asyncio.run(tier.aexchange([Command("ECHO", expected)])) == [expected]
    assert tier.behind([Command("INCR", "children")]) and tier.flush("20s")
    assert not tier.is_out and not [name for name in tier.stats() if name.startswith("errors")]
    bell = tier.listen("bell")
    assert not bell.wait(0.01)
    bell.close()
    tier.close()


async def parent():
    for turn in range(20):
        expected = f"parent-{turn}".encode()
        assert await tier.aexchange([Command("ECHO", expected)]) == [expected]
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                # The loop that runs here is the parent's; a child begins one of its own.
                asyncio._set_running_loop(None)
                child()
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            os._exit(code)
        while True:
            waited, status = os.waitpid(pid, os.WNOHANG)
            if waited:
                break
            assert await tier.aexchange([Command("ECHO", expected)]) == [expected]
        assert status == 0, status
    await tier.aclose()


threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
for thread in threads:
    thread.start()
try:
    asyncio.run(parent())
except Exception:
    import traceback
    traceback.print_exc()
    os._exit(3)
assert not wrong, wrong[:3]
print("well")
os._exit(0)
"""


def test_children_work_while_threads_and_tasks_of_the_parent_are_in_mid_exchange(server: Server) -> None:
    command = [sys.executable, "-c", SCRIPT, server.url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
    assert server.admin.get("children") == b"20"


def test_a_child_s_sockets_are_its_own_and_the_parent_s_go_on(server: Server) -> None:
    tier = RedisTier(server.url, timeout="20s")
    tier.exchange([Command("PING")])
    (mine,) = tier.exchange([Command("CLIENT", "ID")])
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            theirs = [tier.exchange([Command("CLIENT", "ID")])[0] for _ in range(2)]
            tier.close()
            os.write(writing, repr(theirs).encode())
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    theirs = os.read(reading, 100).decode()
    os.close(reading)
    os.close(writing)
    assert str(mine) not in theirs
    assert tier.exchange([Command("CLIENT", "ID")]) == [mine]
    tier.close()


def test_a_closed_tier_stays_closed_in_the_child(server: Server) -> None:
    tier = RedisTier(server.url, timeout="20s", write_behind=5)
    tier.close()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            tier.exchange([Command("PING")])
        except ConnectionError:
            code = 0 if not tier.behind([Command("PING")]) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_nothing_is_forgotten_in_the_parent(server: Server) -> None:
    tier = RedisTier(server.url, timeout="20s")

    async def work() -> None:
        assert await tier.aexchange([Command("PING")]) == [b"PONG"]
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222 - it ends at once
        assert await tier.aexchange([Command("PING")]) == [b"PONG"]
        assert server.info("clients")["connected_clients"] == 2
        await tier.aclose()

    asyncio.run(work())
    assert threading.active_count() >= 1


FIRST_USE = """
import asyncio, sys
from infercache import Cache, PurgeFailed

cache = Cache("1MB", l2=sys.argv[1], timeout="5s")
known = set(sys.modules)
one = cache.memoize(operation="one", model="m", version="1")(lambda x: x)
many = cache.memoize_batch(over="x", operation="many", model="m", version="1")(lambda x: x)

@cache.memoize(operation="awaited", model="m", version="1")
async def awaited(x):
    return x

one(1), many([1, 2]), cache.get(one.key(2)), cache.invalidate(all=True)
asyncio.run(awaited(1))
print(sorted(set(sys.modules) - known))
"""


def test_the_first_use_imports_nothing_so_that_a_fork_meets_no_import_half_done(server: Server) -> None:
    """In the child the lock of a module that another thread was importing is held for ever."""
    url = f"redis://localhost:{server.port}/0"  # a name: Python has an encoding for those
    command = [sys.executable, "-c", FIRST_USE, url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
