"""Refreshes in the background: what is served stale meanwhile is computed anew, once a key.

Refreshes of synchronous functions run on a few daemon threads that live only while there is work; those of `async def`
functions are tasks of the loop that asked, held here while it runs so that nobody collects them. Neither holds up the
end of the process. A queued refresh is not yet a flight: nobody waits for what no thread has begun.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from typing import TYPE_CHECKING, Any

from infercache import _core

if TYPE_CHECKING:
    import asyncio

__all__ = ["refresh_in_task", "refresh_in_thread"]

#: Threads at once. A refresh is a model run, and models bring their own parallelism.
MOST_THREADS = 4
#: Refreshes that may wait for a thread; beyond it they are left to the next stale hit.
MOST_WAITING = 1_024


class _Threads:
    """The threads of a process, and what they have to do: jobs by name, each name once at a time."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """There are no threads and nothing to do."""
        # Reentrant: the collector may run within, and with it a finalizer that asks for a refresh.
        self._lock = threading.RLock()
        self._jobs: deque[tuple[Hashable, contextvars.Context, Callable[[], object]]] = deque()
        self._names: set[Hashable] = set()
        self._running = 0

    def submit(self, name: Hashable, job: Callable[[], object]) -> None:
        context = _outside()
        with self._lock:
            if name in self._names or len(self._jobs) >= MOST_WAITING:
                return
            self._names.add(name)
            self._jobs.append((name, context, job))
            if self._running >= MOST_THREADS:
                return
            self._running += 1
        try:
            threading.Thread(target=self._work, name="infercache-refresh", daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter is going down: the next stale hit asks again
            with self._lock:
                self._running -= 1
                self._jobs.clear()
                self._names.clear()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._running -= 1
                    return
                name, context, job = self._jobs.popleft()
            try:
                context.run(job)
            except BaseException:  # noqa: BLE001 - there is nobody to raise it to, and the thread has more to do
                _report(name)
            finally:
                with self._lock:
                    self._names.discard(name)
                del context, job


_threads = _Threads()
_tasks: dict[asyncio.AbstractEventLoop, dict[Hashable, asyncio.Task[object]]] = {}


def refresh_in_thread(name: Hashable, job: Callable[[], object]) -> None:
    """Has `job` done on another thread, unless one of this name waits or runs. An error of its is logged."""
    _threads.submit(name, job)


def refresh_in_task(name: Hashable, job: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Has `job` done as a task of the running loop, unless one of this name is there already. An error is logged.

    Where another kind of loop drives the caller nothing is done: the stale entry stays until its window is over.
    """
    import asyncio

    loop = asyncio._get_running_loop()
    if loop is None:
        return
    for other, tasks in list(_tasks.items()):
        if not other.is_running():
            # Perhaps it never runs again, so nobody may wait for its tasks. If it does, they go on.
            _tasks.pop(other, None)
        elif name in tasks:
            return
    task = loop.create_task(job(), context=_outside())
    _tasks.setdefault(loop, {})[name] = task

    def done(task: asyncio.Task[object]) -> None:
        tasks = _tasks.get(loop, {})
        if tasks.get(name) is task:
            del tasks[name]
            if not tasks:
                del _tasks[loop]
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            _report(name, error)

    task.add_done_callback(done)


def _outside() -> contextvars.Context:
    """The caller's context, but part of no computation: nobody there waits for the refresh."""
    context = contextvars.copy_context()
    context.run(_core.current_computation.set, None)
    return context


def _report(name: Hashable, error: BaseException | None = None) -> None:
    import logging

    described = name[-1] if isinstance(name, tuple) else name
    logging.getLogger("infercache").warning(
        "refreshing %s in the background failed; the stale entry stays", described, exc_info=error or True
    )


def _forget() -> None:
    """The child of a fork has neither the threads nor the loops."""
    _threads.begin()
    _tasks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
