"""The steps of a miss, described once for synchronous and asynchronous callers.

Each path is a generator of effects (`effects`) that returns an answer.

    obtain:  join ─┬─ found: take it
                   ├─ lead: ask the shared tier ─┬─ it has it: land ── answer
                   │    (└ wait for the lease)   └─ run ── store ── land ── tell the tier ── answer
                   └─ follow: wait ─┬─ a value that passes the check: take it
                                    ├─ the leader's error: raise it
                                    ├─ a value nobody may share: run alone
                                    └─ abandoned, or purged meanwhile: join again
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infercache import _core
from infercache.effects import CURRENT, MISSING, Arrival, Effect, Failure, Landing, Mode, Model, Steps
from infercache.errors import CorruptValue
from infercache.uncacheable import warn_uncacheable

if TYPE_CHECKING:
    from infercache.entries import Entries
    from infercache.leases import Lease
    from infercache.tags import Tags
    from infercache.tiers import Command

__all__ = ["Policy", "Request", "compute", "follow", "join", "obtain", "revalidate"]


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
        revalidate: for how many it is served while it is computed anew in the background.
    """

    cache: Entries
    name: str
    terms: _core.Terms
    tags: Tags
    store_if: Callable[[Any], object] | None = None
    stale_if_error: int | None = None
    revalidate: int | None = None


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
        refresh: has it computed anew in the background; asked only where the policy says `revalidate`.
        shared: the cache's shared tier, if it has one.
        budget: what may be spent waiting for it.
        lease: of the key among processes, while this process has it.
        doubt: the key of the arguments as the model was given them, where a device has yet to compute it.
        stale_if_error: the policy's; None for a refresh in the background.
    """

    __slots__ = (
        *("arguments", "budget", "call", "doubt", "flights", "form", "key", "lease", "policy", "refresh", "renamed"),
        "shared",
        "stale_if_error",
    )

    def __init__(
        self,
        policy: Policy,
        key: _core.Key,
        call: Callable[[], Any],
        arguments: Callable[[], dict[str, Any]],
        form: Callable[[], _core.Key] | None = None,
        renamed: Callable[[], bool] | None = None,
        refresh: Callable[[], object] = lambda: None,
    ) -> None:
        self.policy = policy
        self.flights = policy.cache.flights
        self.key = key
        self.call = call
        self.arguments = arguments
        self.form = form
        self.renamed = renamed
        self.refresh = refresh
        self.shared = None if policy.cache.disabled else policy.cache.shared
        self.budget: Any = None if self.shared is None else self.shared.budget()
        self.lease: Lease | None = None
        self.doubt: _core.Key | None = None
        self.stale_if_error = policy.stale_if_error

    def give_back(self) -> None:
        """Gives the lease back, if there is one."""
        lease, self.lease = self.lease, None
        if lease is not None and self.shared is not None and self.shared.leases is not None:
            self.shared.leases.give_back(lease)

    def changed(self, mode: Mode) -> bool:
        """Whether the arguments are no longer those of the key: somebody changed a list or a dict that was passed.

        Where the caller awaits and a device would have to be waited for, nothing may run between the answer and the
        model. So the answer is no, and a doubt, which `compute` settles when the model is done.
        """
        if self.form is None:
            return False
        now = self.form()
        if not mode.blocking and _core._is_open(now):
            self.doubt = now
            return False
        return now != self.key

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


def obtain(request: Request, mode: Mode, *, fresh: bool = False, waited: bool = False) -> Steps:
    """The value of a key: found, taken from who computes it, or computed.

    `fresh`: computed after this call began. `waited`: others have run since the key was formed.
    """
    flights, key = request.flights, request.key
    arrived = flights.arrive()
    within = CURRENT.get()
    while True:
        what, found = join(flights, key, arrived, within, mode, fresh)
        if what == _core.FOLLOW:
            what, found = yield from follow(found, within, mode, fresh)
            waited = True
        if what == _core.UNSHARED:
            what, found = _core.LEAD, flights.alone(key, within)
        if what == _core.LEAD:
            if request.shared is not None:
                answer = yield from (
                    _know(request, found) if fresh else ask_tier(request, found, window=request.policy.revalidate)
                )
                if answer is not MISSING:
                    return answer
                waited = True
                if request.shared.leases is not None and not fresh:
                    answer = yield from take_lease(request, found, may_wait=mode.may_wait(within))
                    if answer is not MISSING and not _is_elsewhere(answer):
                        return answer
            try:
                # While this call waited, its arguments may have become another question's.
                share = not (waited and _changed(request, found, mode))
                return (yield from compute(request, found, within, share=share))
            finally:
                request.give_back()
        if what in (_core.FOUND, _core.VALUE):
            value = _value(request, found)
            if type(value) is not Failure:
                return value
            fresh = True  # it does not decode: compute it
        if what == _core.FAILED:
            return rescue(request, found) if isinstance(found, Exception) else Failure(found)


def _know(request: Request, run: _core.Run) -> Steps:
    """Before a run that asks the shared tier for nothing: without an epoch its result could not be stored."""
    interrupted = yield from request.shared.know(request.budget)  # type: ignore[union-attr]
    if interrupted is None:
        return MISSING
    run.abandon()
    return interrupted


def ask_tier(request: Request, run: _core.Run, *, window: int | None = None, counted: bool = True) -> Steps:
    """What the shared tier has for a key that `run` leads; `MISSING`, if the model is to run.

    `window`: for how many milliseconds after its life one will do that is computed anew in the background.
    """
    assert request.shared is not None  # noqa: S101 - only asked where there is one
    try:
        found = yield from request.shared.fetch([request.key], window=window, counted=counted, budget=request.budget)
    except BaseException:
        run.abandon()
        raise
    if type(found) is Failure:
        run.abandon()
        return found
    if found[0] is None:
        return MISSING
    entry, source = found[0]
    value = _value(request, entry)
    if type(value) is Failure:
        if counted:
            request.shared.unreadable(entry, source)
        return MISSING
    if source == "stale":
        run.abandon()  # who waits for it asks for itself: it may take what is stale, or not
        request.refresh()
    else:
        run.adopt(entry)
    return value


def take_lease(request: Request, run: _core.Run, *, may_wait: bool) -> Steps:
    """Waits until this process has the lease, or cannot have it: `MISSING`; or what another one has stored meanwhile.

    `ELSEWHERE`: another process computes it, and this one may not wait, or has waited for long enough.
    """
    from infercache.leases import ELSEWHERE, Waiting, pauses

    shared = request.shared
    assert shared is not None  # noqa: S101 - only asked where there are leases
    assert shared.leases is not None  # noqa: S101
    leases, name = shared.leases, shared.lease_of(request.key)
    given_up = time.monotonic() + leases.longest
    try:
        for pause in pauses():
            if shared.tier.is_out:
                return MISSING
            taken = yield from leases.acquire([name], request.budget)
            if type(taken) is Failure:
                run.abandon()
                return taken
            if taken[0] is not ELSEWHERE:
                request.lease = taken[0]
                return MISSING
            if not may_wait or time.monotonic() >= given_up:
                return ELSEWHERE
            interrupted = yield Waiting(leases, pause)
            if interrupted is not None:
                run.abandon()
                return interrupted
            request.budget = shared.budget()  # what was waited for is another's model, not the tier
            answer = yield from ask_tier(request, run)
            if answer is not MISSING:
                return answer
    except BaseException:
        run.abandon()
        raise
    return MISSING


def _is_elsewhere(answer: Any) -> bool:
    """Whether `take_lease` found another process to compute it."""
    from infercache.leases import ELSEWHERE

    return answer is ELSEWHERE


def _changed(request: Request, run: _core.Run, mode: Mode) -> bool:
    try:
        changed = request.changed(mode)
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
            if request.doubt is not None:
                same = yield from _settled(request)
                if type(same) is Failure:
                    return same
                if not same:
                    run.abandon()
                    share = False
            if type(result) is not Failure:
                answer, stored = settle(request, run, computation, result, share=share)
                if stored:
                    interrupted = yield from request.shared.publish(stored, request.budget)  # type: ignore[union-attr]
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


def _settled(request: Request) -> Steps:
    """Whether the model was given the arguments of the key; a `Failure` if the wait for a device was interrupted."""
    doubt, request.doubt = request.doubt, None
    assert doubt is not None  # noqa: S101 - only asked where there is one
    interrupted = yield Arrival((doubt,))
    if interrupted is None:
        return doubt == request.key
    # Of a device that failed nobody knows what the model was given.
    return False if isinstance(interrupted.error, Exception) else interrupted


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
        # What a refresh cannot keep leaves nothing older in its place.
        removed = policy.cache._remove(request.key) and request.shared is not None
        return result, request.shared.removal([request.key]) if removed else []  # type: ignore[union-attr]
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
    if what != _core.LEAD or _changed(request, found, mode):
        return None
    if request.shared is not None:
        # Another process may have made it anew already.
        answer = yield from ask_tier(request, found, counted=False)
        if answer is not MISSING or _changed(request, found, mode):
            return None
    if request.shared is not None and request.shared.leases is not None:
        answer = yield from take_lease(request, found, may_wait=False)
        if _is_elsewhere(answer):
            found.abandon()
            return None
        if answer is not MISSING:
            return answer
    try:
        return (yield from compute(request, found, None))
    finally:
        request.give_back()
