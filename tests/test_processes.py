"""Processes of the tests: they do as they are told, stop where they are held, and die with their test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from fills import STEPS, cache_process
from processes import Worker, WorkerError, WorkerGone, workers
from proxy import Hold, Proxy
from servers import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from servers import Server
    from worker import Line


def arithmetic(line: Line, base: int, *, step: int = 1) -> dict[str, Callable[..., Any]]:
    async def later(number: int) -> int:
        return base + step * number

    def fail(text: str) -> None:
        print("about to fail")
        raise LookupError(text)

    def held(name: str) -> Any:
        return line.hold(name, os.getpid())

    def spin() -> None:
        count = 0
        while True:
            count += 1
            line.tell("spun", count)
            time.sleep(0.005)

    return {
        "add": lambda *numbers: base + sum(numbers),
        "later": later,
        "fail": fail,
        "held": held,
        "spin": spin,
        "die": lambda: os._exit(3),
        "wall": time.time,
        "monotonic": time.monotonic,
    }


def broken(line: Line) -> dict[str, Callable[..., Any]]:
    raise ValueError("no scenario today")


def stores(line: Line, url: str) -> dict[str, Callable[..., Any]]:
    client = redis.from_url(url)

    def store(name: str, value: str) -> None:
        client.set(name, value)

    return {"store": store, "get": lambda name: (client.get(name) or b"").decode()}


def test_commands_run_in_another_process_and_their_errors_come_back() -> None:
    with Worker(arithmetic, 10, step=2) as worker:
        assert worker.call("add", 1, 2) == 13
        assert worker.call("later", 4) == 18
        with pytest.raises(WorkerError, match=r"KeyError|LookupError: no such word") as raised:
            worker.call("fail", "no such word")
        assert raised.value.kinds[:2] == ["LookupError", "Exception"]
        until(lambda: "about to fail" in worker.log_tail(), "its output is at hand")


def test_a_call_is_held_at_its_step_while_others_run() -> None:
    with Worker(arithmetic, 0) as worker:
        first, second = worker.begin("held", "here"), worker.begin("held", "there")
        pid = worker.wait_for("here")
        assert pid == worker.wait_for("there") == worker.process.pid != os.getpid()
        assert worker.call("add", 1) == 1
        assert not first.answered.is_set()
        worker.go("there", "you may")
        assert second.result() == "you may"
        assert not first.answered.is_set()
        worker.go("here", ["you", "too"])
        assert first.result() == ["you", "too"]


def test_a_killed_process_is_told_from_one_that_is_slow() -> None:
    with Worker(arithmetic, 0) as worker:
        call = worker.begin("held", "here")
        worker.wait_for("here")
        worker.kill()
        for wait in (call.result, lambda: worker.wait_for("there"), lambda: worker.call("add", 1)):
            with pytest.raises(WorkerGone, match="ended before"):
                wait()


def test_a_process_that_ends_by_itself_is_noticed() -> None:
    with Worker(arithmetic, 0) as worker, pytest.raises(WorkerGone, match="an answer to die"):
        worker.call("die")


def test_a_scenario_that_fails_says_why() -> None:
    with pytest.raises(WorkerGone, match=r"(?s)Traceback.*no scenario today"), Worker(broken):
        pass


def test_a_paused_process_does_nothing_until_it_is_resumed() -> None:
    with Worker(arithmetic, 0) as worker:
        worker.begin("spin")
        last = worker.wait_for("spun")
        with worker.paused():
            call = worker.begin("add", 1)
            assert not call.answered.wait(0.2)
            while worker.has_reached("spun"):  # what it had said before
                last = worker.wait_for("spun")
            assert not call.answered.wait(0.2)
            assert not worker.has_reached("spun")
        assert call.result() == 1
        assert worker.wait_for("spun") == last + 1


@pytest.mark.parametrize("wall_clock", [-900, 900])
def test_a_process_has_a_wall_clock_that_is_wrong_and_a_monotonic_one_that_is_right(wall_clock: int) -> None:
    with Worker(arithmetic, 0, wall_clock=wall_clock) as worker:
        assert abs(worker.call("wall") - time.time() - wall_clock) < 30
        before = time.monotonic()
        assert before <= worker.call("monotonic") <= time.monotonic()


def test_several_processes_start_together_and_know_their_number() -> None:
    with workers(3, arithmetic, step=5) as started:
        assert [worker.call("later", 1) for worker in started] == [5, 6, 7]
        pids = {worker.process.pid for worker in started}
        assert len(pids) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
@pytest.mark.parametrize("paused", [False, True])
def test_no_process_outlives_a_killed_pytest(paused: bool) -> None:
    code = (
        "import time, processes, test_processes\n"
        "worker = processes.Worker(test_processes.arithmetic, 0).ready()\n"
        "worker.begin('held', 'for ever')\n"
        "worker.wait_for('for ever')\n"
        f"{'worker.pause()' if paused else ''}\n"
        "print(worker.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    tests = Path(__file__).parent
    with subprocess.Popen([sys.executable, "-c", code], cwd=tests, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)

    def is_gone() -> bool:
        status = Path(f"/proc/{pid}/stat")  # a zombie is dead, whoever has yet to reap it
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    until(is_gone, f"the process {pid} is gone")


@pytest.mark.parametrize("place", range(len(STEPS)))
def test_a_fill_is_held_at_each_step_and_a_purge_before_its_store_wins(place: int) -> None:
    with Worker(cache_process) as worker:
        filling = worker.begin("fill", "q")
        for step in STEPS[:place]:
            worker.wait_for(step)
            worker.go(step, "old")
        worker.wait_for(STEPS[place])
        worker.call("purge", "q")
        for step in STEPS[place:]:
            worker.go(step, "old")
        assert filling.result() == "old"
        # A fill whose stamp was read after the purge is newer than it; one that was stamped before is hidden.
        assert worker.call("get", "q") == ("old" if place == 0 else None)


def test_a_memoized_call_is_held_in_its_model() -> None:
    with Worker(cache_process) as worker:
        asking = worker.begin("memoized", "q")
        assert worker.wait_for("model running") == "q"
        assert worker.call("peek", "q") is None
        worker.go("model running", [1, 2])
        worker.wait_for("model returned")
        worker.go("model returned")
        assert asking.result() == worker.call("peek", "q") == [1, 2]


@pytest.mark.network
def test_a_store_on_a_server_is_held_on_its_way(server: Server) -> None:
    with Proxy(server.address) as proxy, Worker(stores, proxy.url) as worker:
        proxy.set(requests=Hold(when="SET"))
        storing = worker.begin("store", "name", "value")
        proxy.wait_for("SET")
        assert not storing.answered.wait(0.1)
        assert server.admin.get("name") is None
        proxy.set()
        storing.result()
        assert worker.call("get", "name") == "value"
