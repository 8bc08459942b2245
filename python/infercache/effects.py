"""What takes time, performed by blocking or by awaiting: described once for synchronous and asynchronous callers.

Steps are a generator that yields *effects*, running a model, waiting for another's flight or asking the shared tier,
and returns an answer. `drive` performs them by blocking, `drive_async` by awaiting; neither knows anything else.

An error travels as a `Failure` and is raised by the driver: a generator cannot pass on `StopIteration`, and its frame
would lengthen the model's traceback.

A leader that is a task is carried on by its event loop. One whose loop was stopped in the middle, and perhaps never
runs again, never lands: whoever joins it, or waits for it on another thread or loop, looks at its loop now and then and
abandons the flight in its stead. Should it be carried on after all, its result is stored like any other.
"""

from __future__ import annotations

import _thread
import contextvars
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from infercache import _core
from infercache.callables import unwrap_partials
from infercache.errors import shown

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "CURRENT",
    "MISSING",
    "Arrival",
    "Effect",
    "Failure",
    "Landing",
    "Mode",
    "Model",
    "Plain",
    "Steps",
    "are_open",
    "arrived",
    "drive",
    "drive_async",
]

CURRENT: contextvars.ContextVar[_core.Computation | None] = _core.current_computation
Steps = Generator["Effect", Any, Any]

#: No answer, where None may be one.
MISSING: Any = object()
#: Seconds between two looks at the event loop that another's flight depends on.
GLANCE = 0.25
#: The event loops on which a task has asked for something, by their identity.
_LOOPS: weakref.WeakValueDictionary[int, asyncio.AbstractEventLoop] = weakref.WeakValueDictionary()


class Failure:
    """An error on its way to the driver that raises it."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Mode:
    """How a caller waits: by blocking its thread, and the event loop that may run there, or by awaiting on a loop."""

    __slots__ = ("_loop", "blocking", "event_loop", "thread")

    def __init__(self, *, blocking: bool) -> None:
        self.blocking = blocking
        self.thread = threading.get_ident() if blocking else 0
        # Without asyncio imported no loop can be running, and importing it would cost more than a miss.
        asyncio = sys.modules.get("asyncio")
        # Kept, so that no other loop gets the identity while somebody may look at it.
        self._loop = loop = asyncio._get_running_loop() if asyncio is not None else None
        self.event_loop = id(loop) if loop is not None else 0
        if not blocking and loop is not None:
            _LOOPS[self.event_loop] = loop

    @property
    def is_alone(self) -> bool:
        """Whether it awaits where no loop of asyncio runs.

        It cannot wait for others there, nor could they see whether it is carried on.
        """
        return not self.blocking and not self.event_loop

    def may_wait(self, within: _core.Computation | None) -> bool:
        """Whether it may wait for another process: nobody who might himself be waited for there may."""
        return within is None and not self.is_alone and not (self.blocking and self.event_loop)

    def depends(self, waiting: _core.Waiting) -> bool:
        """Whether a flight is led by a task of another event loop than the one that runs here."""
        return waiting.event_loop not in (0, self.event_loop)

    def is_stranded(self, waiting: _core.Waiting) -> bool:
        """Whether nobody carries a flight on: it is led by a task of a loop that does not run now."""
        if not self.depends(waiting):
            return False
        loop = _LOOPS.get(waiting.event_loop)
        return loop is None or not loop.is_running()


class Effect:
    """What takes time."""

    __slots__ = ()

    async def perform(self, blocking: bool) -> Any:
        """Does it, by awaiting, or by `blocking` and then without ever being suspended. A `Failure`, if it raised."""
        raise NotImplementedError


class Plain(Effect):
    """Calls a function outside any computation of ours."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    async def perform(self, blocking: bool) -> Any:
        """What the call returns."""
        try:
            return self.call() if blocking else await self.call()
        except BaseException as error:  # noqa: BLE001 - on its way to the steps
            return Failure(error)


class Model(Effect):
    """Runs a model within its computation, which ends with it."""

    __slots__ = ("call", "computation")

    def __init__(self, call: Callable[[], Any], computation: _core.Computation) -> None:
        self.call = call
        self.computation = computation

    async def perform(self, blocking: bool) -> Any:
        """What the model returns."""
        token = None
        try:
            token = CURRENT.set(self.computation)
            made = self.call()
            return made if blocking else await _awaitable(made, self.call)
        except BaseException as error:  # noqa: BLE001 - on its way to the steps
            return Failure(error)
        finally:
            # First: a signal may come between any two of these lines, and what has ended counts no longer.
            self.computation.end()
            # A coroutine that nobody awaits to its end is closed in another context than it ran in.
            with suppress(ValueError):
                if token is not None:
                    CURRENT.reset(token)


def _awaitable(made: Any, call: Callable[[], Any]) -> Any:
    """What a call for a caller who awaits gave.

    Raises:
        TypeError: it is nothing that can be awaited.
    """
    if inspect.isawaitable(made):
        return made
    function = unwrap_partials(call)
    name = getattr(function, "__qualname__", None) or shown(function)
    raise TypeError(
        f"{name} returned a {type(made).__name__}, which cannot be awaited: give an `async def` function, or use "
        "get_or_compute, which calls an ordinary one"
    )


class Landing(Effect):
    """Waits until a flight lands. The flight's callback opens the gate from the thread that ends it."""

    __slots__ = ("mode", "waiting")

    def __init__(self, waiting: _core.Waiting, mode: Mode) -> None:
        self.waiting = waiting
        self.mode = mode

    async def perform(self, blocking: bool) -> Any:
        """None, or why the wait ended early."""
        try:
            if blocking:
                self._block()
            else:
                await self._await()
        except BaseException as error:  # noqa: BLE001 - on its way to the steps
            return Failure(error)

    def _block(self) -> None:
        # A lock and not a condition of the core's: the main thread's wait for it can be interrupted by a signal.
        gate = _thread.allocate_lock()
        gate.acquire()
        self.waiting.on_landing(gate.release)
        while not gate.acquire(timeout=GLANCE if self.mode.depends(self.waiting) else -1):
            self._look()

    async def _await(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        landed = loop.create_future()
        self.waiting.on_landing(partial(_wake, loop, landed))
        while self.mode.depends(self.waiting) and not landed.done():
            await asyncio.wait([landed], timeout=GLANCE)
            if not landed.done():
                self._look()
        await landed

    def _look(self) -> None:
        if self.mode.is_stranded(self.waiting):
            self.waiting.abandon()


def _wake(loop: asyncio.AbstractEventLoop, landed: asyncio.Future[None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_resolve, landed)


def _resolve(landed: asyncio.Future[None]) -> None:
    if not landed.done():
        landed.set_result(None)


class Arrival(Effect):
    """Waits until the keys of device tensors have their bytes; who blocks may wait for them when they are asked."""

    __slots__ = ("keys",)

    def __init__(self, keys: Iterable[_core.Key]) -> None:
        self.keys = keys

    async def perform(self, blocking: bool) -> Any:
        """None, or why the wait ended early."""
        try:
            if not blocking:
                await arrived(self.keys)
        except BaseException as error:  # noqa: BLE001 - on its way to the steps
            return Failure(error)


def are_open(keys: Iterable[object]) -> bool:
    """Whether a device has yet to compute what the bytes of some key are made from."""
    return any(map(_core._is_open, keys))


async def arrived(keys: Iterable[object]) -> None:
    """Waits, while the event loop goes on, until the bytes of these keys can be had at once.

    Raises:
        DeviceError: a device failed meanwhile.
    """
    for key in keys:
        digests = key._digests() if isinstance(key, _core.Key) else None
        if digests is not None:
            await digests.arrived()


def drive(steps: Steps) -> Any:
    """Performs the steps, blocking where they take time."""
    sent: Any = None
    try:
        while True:
            performing = steps.send(sent).perform(blocking=True)
            try:
                performing.send(None)
            except StopIteration as end:
                sent = end.value
    except StopIteration as end:
        sent = [end.value]
    return _taken_out(sent)


async def drive_async(steps: Steps) -> Any:
    """Performs the steps, awaiting where they take time."""
    sent: Any = None
    try:
        while True:
            sent = await steps.send(sent).perform(blocking=False)
    except StopIteration as end:
        sent = [end.value]
    return _taken_out(sent)


def _taken_out(returned: list[Any]) -> Any:
    """The answer of steps, or raises the error that they returned.

    An error's traceback holds the frames that it passes: were it to stay in one of them, both would wait for the
    collector. So it is taken out of the driver's list, and does not stay here.
    """
    answer = returned.pop()
    if type(answer) is not Failure:
        return answer
    try:
        raise answer.error
    finally:
        del answer
