"""Processes of their own that run a cache, held at any step by the test, killed and paused.

A scenario is a function at the top of a test's file. It gets a `worker.Line` and returns its commands by their names:

    def scenario(line, url):
        cache = Cache("16MB", l2=url)

        def fill(key):
            found = cache.lookup(Key(key))
            line.hold("stamped")                    # the test goes on when this is reached, and says when to go on here
            cache.set(Key(key), 1, since=found.stamp)

        return {"fill": fill}

    with Worker(scenario, server.url) as worker:
        filling = worker.begin("fill", key)         # a call runs in a thread of the process; `call` waits for it
        worker.wait_for("stamped")
        worker.go("stamped")
        filling.result()

The product has no hook for this: a model holds itself, by calling `line.hold`; what lies between two calls of the
product is held by the proxy (`Hold(when="SET")`). What crosses is JSON. A process ends with its test, whatever it waits
for. It runs the imports of the scenario's file, so that one in a small file starts sooner.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from leash import HeldProcess, Leashed
from together import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The processes that are not closed: what they wrote is part of a failed test's report.
OPEN: set[Worker] = set()

_GONE = object()


class WorkerError(Exception):
    """What a command raised in the other process.

    Attributes:
        kinds: The names of the error's class and of the classes above it.
        trace: Its traceback there.
    """

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(f"{answer['kinds'][0]}: {answer['error']}\n{answer['trace']}")
        self.kinds: list[str] = answer["kinds"]
        self.trace: str = answer["trace"]


class WorkerGone(Exception):
    """The process ended before it answered."""


class Call:
    """A call under way in the other process."""

    def __init__(self, worker: Worker, what: str) -> None:
        self._worker, self._what = worker, what
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answered = threading.Event()

    def put(self, answer: Any) -> None:
        self._answers.put(answer)
        self.answered.set()

    def result(self, patience: float = PATIENCE) -> Any:
        """Waits for the answer; raises what the command raised, as `WorkerError`."""
        answer = self._worker.take(self._answers, f"an answer to {self._what}", patience)
        if "error" in answer:
            raise WorkerError(answer)
        return answer["result"]


class Worker(HeldProcess):
    """One process with a scenario. As a context manager it waits until the scenario is set up, and ends with the block.

    Args:
        scenario: A function at the top of its file.
        arguments: What it gets after the line, JSON.
        wall_clock: Seconds by which the process's wall clock goes ahead of this machine's (behind, where negative); its
            monotonic clocks stay right. Needs libfaketime, and skips the test without.
        environment: Variables beside this process's own.
        options: Named arguments of the scenario.
    """

    def __init__(
        self,
        scenario: Callable[..., Any],
        *arguments: Any,
        wall_clock: float = 0,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        assert scenario.__qualname__ == scenario.__name__, f"{scenario.__qualname__} is not at the top of its file"
        variables = {**os.environ, **(environment or {}), **(_faked(wall_clock) if wall_clock else {})}
        self.name = scenario.__name__
        self.log = tempfile.TemporaryFile()
        self._sock, theirs = socket.socketpair()
        given = json.dumps({"arguments": arguments, "options": options})
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(theirs.fileno())]
        with theirs:
            self.process = Leashed(
                [*command, inspect.getfile(scenario), scenario.__name__, given],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                pass_fds=[theirs.fileno()],
                env=variables,
            )
        self._calls: dict[int, Call] = {}
        self._steps: dict[str, queue.SimpleQueue[Any]] = defaultdict(queue.SimpleQueue)
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_gone = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        OPEN.add(self)

    def __repr__(self) -> str:
        return f"<process {self.process.pid} of {self.name}>"

    def ready(self) -> Self:
        """Waits until the scenario has set itself up."""
        self.take(self._ready, "ready")
        return self

    def close(self) -> None:
        self.process.kill()
        self._reader.join(PATIENCE)
        self._sock.close()
        self.log.close()
        OPEN.discard(self)

    # Speaking to it.

    def begin(self, command: str, *arguments: Any, **options: Any) -> Call:
        """Starts a command in a thread of the process."""
        with self._lock:
            number = len(self._calls)
            call = self._calls[number] = Call(self, command)
            if self._is_gone:
                call.put(_GONE)
                return call
        self._send(call=number, command=command, arguments=arguments, options=options)
        return call

    def call(self, command: str, *arguments: Any, **options: Any) -> Any:
        """Runs a command in the process, and returns its result."""
        return self.begin(command, *arguments, **options).result()

    def wait_for(self, step: str, patience: float = PATIENCE) -> Any:
        """Waits until the process has come to `step`, once for each time that it comes; returns the fact it told."""
        return self.take(self._step(step), f"at {step!r}", patience)["fact"]

    def has_reached(self, step: str) -> bool:
        """Whether the process has come to `step` and nobody has waited for that yet."""
        return not self._step(step).empty()

    def go(self, step: str, word: Any = None) -> None:
        """Lets one who is held at `step`, or comes to it next, go on; `hold` returns `word` there."""
        self._send(permit=step, word=word)

    def pass_by(self, step: str) -> Any:
        """Waits for `step` and lets it go on."""
        fact = self.wait_for(step)
        self.go(step)
        return fact

    # What a test does to it, besides stopping it.

    def kill(self) -> None:
        """SIGKILL: what it had under way is never finished."""
        self.process.kill()

    # Behind it.

    def _send(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        # A process that died meanwhile is noticed by whoever waits for its answer.
        with self._lock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._sock.sendall(line)

    def _step(self, step: str) -> queue.SimpleQueue[Any]:
        with self._lock:
            fresh = step not in self._steps
            steps = self._steps[step]
            if fresh and self._is_gone:
                steps.put(_GONE)
            return steps

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            for text in self._sock.makefile("rb"):
                message = json.loads(text)
                if "ready" in message:
                    self._ready.put(message)
                elif "reached" in message:
                    self._step(message["reached"]).put(message)
                else:
                    self._calls[message["answer"]].put(message)
        with self._lock:
            self._is_gone = True
            for waiting in (self._ready, *self._steps.values(), *self._calls.values()):
                waiting.put(_GONE)

    def take(self, waiting: queue.SimpleQueue[Any], what: str, patience: float = PATIENCE) -> Any:
        """The next message of that kind."""
        try:
            message = waiting.get(timeout=patience)
        except queue.Empty:
            raise AssertionError(f"{self} is not {what} after {patience:.0f} s; it wrote:\n{self.log_tail()}") from None
        if message is _GONE:
            waiting.put(_GONE)
            raise WorkerGone(f"{self} ended before it was {what}; it wrote:\n{self.log_tail()}")
        return message

    def log_tail(self, size: int = 8000) -> str:
        """The end of what it wrote to its standard output and error."""
        # Through a path of its own: the process appends at the offset that is shared with `self.log`.
        with contextlib.suppress(OSError, ValueError):
            return os.pread(self.log.fileno(), size, max(0, os.fstat(self.log.fileno()).st_size - size)).decode(
                errors="replace"
            )
        return ""


@contextlib.contextmanager
def workers(count: int, scenario: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[list[Worker]]:
    """Several processes of one scenario, started together; each is told its number, from 0, as the first argument."""
    with contextlib.ExitStack() as stack:
        started = [Worker(scenario, number, *arguments, **options) for number in range(count)]
        for worker in started:
            stack.callback(worker.close)
        yield [worker.ready() for worker in started]


def _faked(seconds: float) -> dict[str, str]:
    """The environment of a process whose wall clock is wrong by so much."""
    places = [
        *Path("/usr/lib").glob("*/faketime/libfaketime.so.1"),
        *Path("/usr/lib").glob("faketime/libfaketime.so.1"),
    ]
    if not places:
        pytest.skip("a wrong wall clock needs libfaketime (Debian's package libfaketime), which is not here")
    return {
        "LD_PRELOAD": str(places[0]),
        "FAKETIME": f"{seconds:+.3f}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }
