"""The steps of a miss, described once for synchronous and asynchronous callers.

Each path is a generator that yields what takes time, running a model or waiting for another's flight, as an *effect*,
and returns an answer. An effect is performed by blocking or by awaiting; `drive` and `drive_async` know nothing else.

    obtain:  join ─┬─ found: take it
                   ├─ lead: ask the shared tier ─┬─ it has it: land ── answer
                   │                             └─ run ── store ── land ── tell the tier ── answer
                   └─ follow: wait ─┬─ a value that passes the check: take it
                                    ├─ the leader's error: raise it
                                    ├─ a value nobody may share: run alone
                                    └─ abandoned, or purged meanwhile: join again

An error travels as a `Failure` and is raised by the driver: a generator cannot pass on `StopIteration`, and its frame
would lengthen the model's traceback.

A leader that is a task is carried on by its event loop. One whose loop was stopped in the middle, and perhaps never
runs again, never lands: whoever joins it, or waits for it on another thread or loop, looks at its loop now and then and
abandons the flight in its stead. Should it be carried on after all, its result is stored like any other.
"""

from __future__ import annotations

import _thread
import contextvars
import sys
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from infercache import _core
from infercache.errors import CorruptValue
from infercache.uncacheable import warn_uncacheable

if TYPE_CHECKING:
    import asyncio

    from infercache.entries import Entries
    from infercache.tags import Tags
    from infercache.tiers import Command

__all__ = [
    "MISSING",
    "Effect",
    "Failure",
    "Landing",
    "Mode",
    "Model",
    "Plain",
    "Policy",
    "Request",
    "Steps",
    "drive",
    "drive_async",
    "join",
    "obtain",
    "revalidate",
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
            return self.call() if blocking else await self.call()
        except BaseException as error:  # noqa: BLE001 - on its way to the steps
            return Failure(error)
        finally:
            # First: a signal may come between any two of these lines, and what has ended counts no longer.
            self.computation.end()
            # A coroutine that nobody awaits to its end is closed in another context than it ran in.
            with suppress(ValueError):
                if token is not None:
                    CURRENT.reset(token)


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


def drive(steps: Steps) -> Any:
    """Performs the steps, blocking where they take time."""
    sent: Any = None
    answer: Any = None
    try:
        while True:
            performing = steps.send(sent).perform(blocking=True)
            try:
                performing.send(None)
            except StopIteration as end:
                sent = end.value
    except StopIteration as end:
        answer = end.value
    if type(answer) is not Failure:
        return answer
    try:
        raise answer.error
    finally:
        # The error's traceback holds this frame: were the error to stay here, both would wait for the collector.
        del answer, sent


async def drive_async(steps: Steps) -> Any:
    """Performs the steps, awaiting where they take time."""
    sent: Any = None
    answer: Any = None
    try:
        while True:
            sent = await steps.send(sent).perform(blocking=False)
    except StopIteration as end:
        answer = end.value
    if type(answer) is not Failure:
        return answer
    try:
        raise answer.error
    finally:
        del answer, sent  # as above


@dataclass(frozen=True, slots=True)
class Policy:
    """How the results of one function, or of one call, are kept.

    Attributes:
        cache: where.
        name: what is computed, for warnings.
        terms: how results are stored and handed out.
        tags: what a purge may name.
        store_if: whether a result is kept and shared.
        stale_if_error: for how many milliseconds after its life an entry stands in for an error.
    """

    cache: Entries
    name: str
    terms: _core.Terms
    tags: Tags
    store_if: Callable[[Any], object] | None = None
    stale_if_error: int | None = None


class Request:
    """One miss.

    Attributes:
        policy: how the result is kept.
        flights: the cache's.
        key: the key that missed.
        call: runs the model; for asynchronous callers, makes an awaitable that does.
        arguments: the call's arguments by name.
        form: the key of the arguments as they are now; None where they cannot change.
        renamed: whether model or version are no longer the key's; None where they cannot change.
        shared: the cache's shared tier, if it has one.
        stale_if_error: the policy's; None for a refresh in the background.
    """

    __slots__ = ("arguments", "call", "flights", "form", "key", "policy", "renamed", "shared", "stale_if_error")

    def __init__(
        self,
        policy: Policy,
        key: _core.Key,
        call: Callable[[], Any],
        arguments: Callable[[], dict[str, Any]],
        form: Callable[[], _core.Key] | None = None,
        renamed: Callable[[], bool] | None = None,
    ) -> None:
        self.policy = policy
        self.flights = policy.cache.flights
        self.key = key
        self.call = call
        self.arguments = arguments
        self.form = form
        self.renamed = renamed
        self.shared = None if policy.cache.disabled else policy.cache.shared
        self.stale_if_error = policy.stale_if_error

    def changed(self) -> bool:
        """Whether the arguments are no longer those of the key: somebody changed a list or a dict that was passed."""
        return self.form is not None and self.form() != self.key

    def tags_before(self) -> list[str]:
        """Tags that are known before the model runs."""
        tags = self.policy.tags
        return tags.before(self.arguments() if tags.needs_arguments else {})

    def tags_after(self, result: object) -> list[str]:
        """Tags that the result decides."""
        tags = self.policy.tags
        return tags.after(result, self.arguments()) if tags.from_result else []


def join(
    flights: _core.Flights,
    key: _core.Key,
    arrived: _core.Arrived,
    within: _core.Computation | None,
    mode: Mode,
    fresh: bool = False,
) -> tuple[int, Any]:
    """What `Flights.join` says, once no flight is left that nobody carries on."""
    if mode.is_alone:
        return _core.LEAD, flights.alone(key, within)
    while True:
        what, found = flights.join(key, arrived, within, mode.thread, mode.event_loop, fresh)
        if what != _core.FOLLOW or not mode.is_stranded(found):
            return what, found
        found.abandon()


def obtain(request: Request, mode: Mode, *, fresh: bool = False) -> Steps:
    """The value of a key: found, taken from who computes it, or computed. `fresh`: computed after this call began."""
    flights, key = request.flights, request.key
    arrived = flights.arrive()
    within = CURRENT.get()
    waited = False
    while True:
        what, found = join(flights, key, arrived, within, mode, fresh)
        if what == _core.FOLLOW:
            what, found = yield from follow(found, within, mode, fresh)
            waited = True
        if what == _core.UNSHARED:
            what, found = _core.LEAD, flights.alone(key, within)
        if what == _core.LEAD:
            if request.shared is not None:
                answer = yield from (_know(request, found) if fresh else ask_tier(request, found))
                if answer is not MISSING:
                    return answer
                waited = True
            # While this call waited, its arguments may have become another question's.
            return (yield from compute(request, found, within, share=not (waited and _changed(request, found))))
        if what in (_core.FOUND, _core.VALUE):
            value = _value(request, found)
            if type(value) is not Failure:
                return value
            fresh = True  # it does not decode: compute it
        if what == _core.FAILED:
            return rescue(request, found) if isinstance(found, Exception) else Failure(found)


def _know(request: Request, run: _core.Run) -> Steps:
    """Before a run that asks the shared tier for nothing: without an epoch its result could not be stored."""
    interrupted = yield from request.shared.know()  # type: ignore[union-attr]
    if interrupted is None:
        return MISSING
    run.abandon()
    return interrupted


def ask_tier(request: Request, run: _core.Run, *, counted: bool = True) -> Steps:
    """What the shared tier has for a key that `run` leads; `MISSING`, if the model is to run."""
    assert request.shared is not None  # noqa: S101 - only asked where there is one
    try:
        found = yield from request.shared.fetch([request.key], counted=counted)
    except BaseException:
        run.abandon()
        raise
    if type(found) is Failure:
        run.abandon()
        return found
    if found[0] is None or not found[0][1]:
        return MISSING
    entry = found[0][0]
    value = _value(request, entry)
    if type(value) is Failure:
        return MISSING  # it does not decode
    run.adopt(entry)
    return value


def _changed(request: Request, run: _core.Run) -> bool:
    try:
        changed = request.changed()
    except BaseException:
        run.abandon()
        raise
    if changed:
        run.abandon()
    return changed


def follow(
    waiting: _core.Waiting, within: _core.Computation | None, mode: Mode, fresh: bool
) -> Generator[Effect, Any, tuple[int, Any]]:
    """Waits for another's flight; what `Waiting.take` says of it. A wait that would never end is `UNSHARED`."""
    try:
        if not waiting.begin(within, mode.thread, mode.event_loop):
            return _core.UNSHARED, None
        interrupted = yield Landing(waiting, mode)
        if interrupted is not None:
            # Cancelled while it waited. The driver raises what this request failed with, whatever it is.
            return _core.FAILED, interrupted.error
        return waiting.take(fresh)
    finally:
        waiting.close()


def _value(request: Request, entry: _core.Entry) -> Any:
    try:
        return entry.value(request.policy.terms)
    except CorruptValue as error:
        return Failure(error)


def compute(request: Request, run: _core.Run, within: _core.Computation | None, *, share: bool = True) -> Steps:
    """Runs the model, stores its result and lands. Without `share` the result is its caller's alone."""
    try:
        try:
            computation = request.flights.take_off([run], [request.tags_before()], [run], within)
            result = yield Model(request.call, computation)
            if type(result) is not Failure:
                answer, stored = settle(request, run, computation, result, share=share)
                if stored:
                    interrupted = yield from request.shared.publish(stored)  # type: ignore[union-attr]
                    if interrupted is not None:
                        return interrupted
                return answer
            error = result.error
        except Exception as raised:  # noqa: BLE001 - waiters and stale_if_error have a say first
            error = raised  # a tag that cannot be formed, store_if: the caller's own code
        if not isinstance(error, Exception):
            return Failure(error)  # cancelled or interrupted: a waiter leads
        run.fail(error)
        return rescue(request, error)
    finally:
        run.abandon()


def settle(
    request: Request, run: _core.Run, computation: _core.Computation, result: Any, *, share: bool
) -> tuple[Any, list[Command]]:
    """Stores a result: what a hit would give back, and what the shared tier is to be told."""
    policy = request.policy
    if request.renamed is not None and request.renamed():
        # Another model has been put in this one's place meanwhile, so nobody knows whose result this is.
        share = False
        policy.cache._count("uncacheable", 1)
    share = share and not policy.cache.disabled and (policy.store_if is None or bool(policy.store_if(result)))
    encoded = _core.encode(result, policy.terms)
    if isinstance(encoded, str):
        run.uncacheable()
        warn_uncacheable(policy.name, encoded, policy.cache.warned, request.call)
        return result, []
    tags = request.tags_after(result) if share else []
    entry = run.land(encoded, policy.terms, tags, computation, 1, share)
    try:
        value = entry.value(policy.terms)
        told = share and request.shared is not None
        return value, request.shared.stored(request.key, entry, policy.terms) if told else []  # type: ignore[union-attr]
    except CorruptValue as error:
        # A `decode` of the caller's own that fails: no hit will ever come of this entry.
        policy.cache._remove(request.key)
        policy.cache._count("uncacheable", 1)
        reason = f"it does not come back: {error}"
        warn_uncacheable(policy.name, reason, policy.cache.warned, request.call)
        return result, []


def rescue(request: Request, error: Exception) -> Any:
    """The answer to an error: an entry that has expired, where that is allowed, or the error."""
    if request.stale_if_error is not None:
        entry = request.flights.stale(request.key, request.stale_if_error)
        if entry is not None:
            value = _value(request, entry)
            if type(value) is not Failure:
                return value
    return Failure(error)


def revalidate(request: Request, mode: Mode) -> Steps:
    """Computes a stale entry anew, unless somebody does or has done so, or its arguments are not what they were."""
    what, found = join(request.flights, request.key, request.flights.arrive(), None, mode)
    if what == _core.FOLLOW:
        found.close()
    if what != _core.LEAD or _changed(request, found):
        return None
    if request.shared is not None:
        # Another process may have made it anew already.
        answer = yield from ask_tier(request, found, counted=False)
        if answer is not MISSING or _changed(request, found):
            return None
    return (yield from compute(request, found, None))
