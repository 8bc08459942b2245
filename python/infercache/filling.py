"""The steps of a batch of which some items are missing: of a function's call (`batch_call`), of a request at the edge.

    missing, each once ── lead what nobody computes ── ask the shared tier (and take leases)
                       ── run what is still missing, in chunks ── store, land
                       ── then wait for what others compute
                       ── then assemble

What is led is computed and landed before anything is waited for, so two batches never hold each other up. Where the
rows of single items do not fit together (they are padded to the longest of a batch, say), all is asked for at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from infercache import _core
from infercache.effects import CURRENT, Arrival, Failure, Mode, Model, Plain, Steps, are_open
from infercache.errors import BatchResultError, CorruptValue
from infercache.flights import follow
from infercache.shares import compute_led
from infercache.uncacheable import warn_uncacheable

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.flights import Policy
    from infercache.tiers import Command

__all__ = ["UNALIKE", "Chunk", "Filling", "Whole"]

#: What an item's answer is: an entry, or an object that cannot be stored, in a tuple of one.
Slot: TypeAlias = _core.Entry | tuple[Any]
#: Results of a function whose items go back in place even where one cannot be stored.
_CONTAINERS = (list, tuple)
#: Why a function is asked for a whole batch, where that is worth a warning.
UNALIKE = "its results for single items do not make its result for all of them"


class Whole(Exception):
    """The items' answers do not make the function's answer: it must be asked for the whole batch.

    Attributes:
        reason: why, if that is worth a warning.
        result: what it has answered to the whole batch already, in a tuple of one; empty if it has not been asked.
    """

    def __init__(self, reason: str | None = None, *result: Any) -> None:
        super().__init__()
        self.reason = reason
        self.result = result


class Chunk:
    """Items that one call computes: keys, runs and places in the batch."""

    __slots__ = ("keys", "places", "runs")

    def __init__(self, keys: list[Key], runs: list[_core.Run], places: list[int]) -> None:
        self.keys = keys
        self.runs = runs
        self.places = places


class Filling(ABC):
    """One batch that found something missing. How an item is computed, a subclass says: `call`.

    Args:
        policy: how the items' results are kept.
        keys: of the items, in their order.
        mode: how waiting is done.
        fresh: every item is computed after this began, whatever the cache holds.
        max_batch: most items of one call; None: all.
        form: the keys of the items as they are now; None where they cannot change.
        waited: others have run since the keys were formed.
    """

    __slots__ = (
        *("answers", "budget", "cache", "container", "doubt", "form", "found", "fresh", "keys", "max_batch", "mode"),
        *("policy", "promoted", "stale_if_error", "waited"),
    )

    def __init__(
        self,
        policy: Policy,
        keys: Sequence[Key],
        mode: Mode,
        *,
        fresh: bool = False,
        max_batch: int | None = None,
        form: Callable[[], list[Key]] | None = None,
        waited: bool = False,
    ) -> None:
        self.policy = policy
        self.cache = policy.cache
        self.keys = keys
        self.mode = mode
        self.fresh = fresh
        self.max_batch = max_batch
        self.form = form
        self.answers: dict[Key, Slot] = {}
        #: What each place was counted as a hit for, and which of these places were stale.
        self.found: tuple[Sequence[_core.Entry | None], Sequence[int]] = (), ()
        #: Where answers that were fetched are from.
        self.promoted: dict[Key, str] = {}
        self.budget: Any = None if self.cache.shared is None else self.cache.shared.budget()
        self.container: type | None = None
        self.waited = waited
        self.doubt: list[Key] | None = None
        self.stale_if_error = policy.stale_if_error

    @abstractmethod
    def call(self, places: list[int]) -> Any:
        """Computes the items at these places: their results, in that order; where the caller awaits, an awaitable."""

    def arguments(self, place: int) -> dict[str, Any]:
        """What tags of the item at this place are made from, by name."""
        return {}

    def is_renamed(self, key: Key) -> bool:
        """Whether another model than this key's has been put in its place meanwhile."""
        return False

    def revalidate(self, places: list[int]) -> None:  # noqa: B027 - who refreshes nothing has nothing to do
        """Has the items at these places computed anew in the background: what the tier has of them is stale."""

    def whole(self, reason: str | None = None) -> Steps:
        """Asks for all items at once. `reason`: why, if that is worth a warning."""
        if reason is not None:
            self.warn(reason)
        return (yield Plain(partial(self.call, list(range(len(self.keys))))))

    def steps(self, missing: Mapping[Key, int]) -> Steps:
        """Fills in what is missing, given with the place of its first item, and assembles."""
        try:
            if self.waited:
                self.check_unchanged()
            failure = yield from self._fill(missing)
            if failure is not None:
                return failure
            try:
                return self._assemble()
            except CorruptValue:
                spoiled = self._take_out_unreadable()
            if not spoiled or not self.promoted.keys() >= spoiled.keys():
                raise Whole(UNALIKE)  # a `decode` of the caller's own that fails
            # What the shared tier had of these was in order, but not what it holds: they are computed.
            self.fresh = True
            failure = yield from self._fill(spoiled)
            if failure is not None:
                return failure
            try:
                return self._assemble()
            except CorruptValue:
                self._take_out_unreadable()
                raise Whole(UNALIKE) from None
        except Whole as whole:
            if whole.result:
                return whole.result[0]
            self.cache._unserved(*self.found)
            return (yield from self.whole(whole.reason))

    def _fill(self, missing: Mapping[Key, int]) -> Steps:
        """Gives every missing key an answer; a `Failure`, or None."""
        arrived = self.cache.flights.arrive()
        todo = list(missing)
        while todo:
            outcome = yield from self._round(todo, missing, arrived, CURRENT.get())
            if type(outcome) is Failure:
                return outcome
            todo = outcome
            if todo:
                self.check_unchanged()
        return None

    def _take_out_unreadable(self) -> dict[Key, int]:
        """Takes answers that do not decode out of memory, and out of the answers; with the place of the first item."""
        spoiled: dict[Key, int] = {}
        for place, key in enumerate(self.keys):
            slot = self.answers.get(key)
            if not isinstance(slot, _core.Entry):
                continue
            try:
                slot.value(self.policy.terms)
            except CorruptValue:
                self.cache._remove(key)
                del self.answers[key]
                spoiled[key] = place
                if key in self.promoted:
                    self.cache.shared.unreadable(slot, self.promoted[key])  # type: ignore[union-attr]
        return spoiled

    def check_unchanged(self) -> None:
        """While this call waited, its items or its model may have become others: then all is asked for as it is now.

        Where the caller awaits and a device would have to be waited for, nothing may run between this and the call:
        then there is a doubt, which is settled when the call is done.
        """
        if self.form is None:
            return
        now = self.form()
        if not self.mode.blocking and are_open(now):
            self.doubt = now
        elif now != list(self.keys):
            raise Whole

    def _settled(self, chunk: Chunk, result: Any) -> Steps:
        """Waits for a device to say whether the items were what their keys say; a `Failure` if that is interrupted."""
        doubt, self.doubt = self.doubt, None
        interrupted = yield Arrival(doubt or ())
        if interrupted is not None and not isinstance(interrupted.error, Exception):
            return interrupted
        if interrupted is not None or doubt != list(self.keys):
            raise self._whole(chunk, result)
        return None

    def _round(
        self, todo: list[Key], missing: Mapping[Key, int], arrived: _core.Arrived, within: _core.Computation | None
    ) -> Steps:
        """Computes what nobody else does, then waits for the rest; a `Failure`, or the keys to be joined again."""
        led: list[tuple[Key, _core.Run]] = []
        followed: list[tuple[Key, _core.Waiting]] = []
        try:
            self._join(todo, arrived, within, led, followed)
            failure = yield from self.ask_tier(led, missing)
            if failure is not None:
                return failure
            failure = yield from compute_led(self, led, missing, within)
            if failure is not None:
                return failure
            again: list[Key] = []
            alone: list[tuple[Key, _core.Run]] = []
            for key, waiting in followed:
                what, found = yield from follow(waiting, within, self.mode, self.fresh)
                if what == _core.VALUE:
                    self.answers[key] = found
                elif what == _core.UNSHARED:
                    alone.append((key, self.cache.flights.alone(key, within)))
                elif what == _core.AGAIN:
                    again.append(key)
                elif not isinstance(found, Exception) or not self._rescue([key]):
                    return Failure(found)
            if alone:
                self.check_unchanged()
            failure = yield from self.compute(alone, missing, within)
            return again if failure is None else failure
        except Whole:
            raise
        except Exception as error:  # noqa: BLE001 - recursion, too few results, the caller's own tags and store_if
            return Failure(error)
        finally:
            for _, run in led:
                run.abandon()
            for _, waiting in followed:
                waiting.close()

    def ask_tier(self, led: list[tuple[Key, _core.Run]], missing: Mapping[Key, int]) -> Steps:
        """Takes what the shared tier has out of what this call leads; a `Failure` if it was interrupted."""
        shared = self.cache.shared
        if shared is None or not led or self.cache.disabled:
            return None
        if self.fresh:
            return (yield from shared.know(self.budget))
        window = self.policy.revalidate
        found = yield from shared.fetch([key for key, _ in led], window=window, budget=self.budget)
        if type(found) is Failure:
            return found
        left, stale = _core.adopt_all(led, found, self.answers, self.promoted)
        if stale:
            places = [missing[led[place][0]] for place in stale]
            self.revalidate(places)
        led[:] = [led[place] for place in left]
        if left:
            self.check_unchanged()
        return None

    def _join(
        self,
        keys: Sequence[Key],
        arrived: _core.Arrived,
        within: _core.Computation | None,
        led: list[tuple[Key, _core.Run]],
        followed: list[tuple[Key, _core.Waiting]],
    ) -> None:
        """Leads each key, follows who does, or finds its answer."""
        cache, mode = self.cache, self.mode
        if cache.disabled or mode.is_alone:
            inner = None if cache.disabled else within
            led += [(key, cache.flights.alone(key, inner)) for key in keys]
            return
        again = keys
        while again:
            leading, following, found = cache.flights.join_all(
                again, arrived, within, mode.thread, mode.event_loop, self.fresh
            )
            led += leading
            self.answers.update(found)
            again = []
            for key, waiting in following:
                if mode.is_stranded(waiting):
                    waiting.abandon()
                    again.append(key)
                else:
                    followed.append((key, waiting))
        if len(leading) < len(led):
            # Those whose leaders' loops had stopped came last.
            places = {key: place for place, key in enumerate(keys)}
            led.sort(key=lambda one: places[one[0]])

    def compute(
        self, led: list[tuple[Key, _core.Run]], missing: Mapping[Key, int], within: _core.Computation | None
    ) -> Steps:
        """Computes what this call leads, chunk by chunk; what is landed stays so if a later one fails."""
        most = self.max_batch or len(led) or 1
        for start in range(0, len(led), most):
            part = led[start : start + most]
            chunk = Chunk([key for key, _ in part], [run for _, run in part], [missing[key] for key, _ in part])
            try:
                before = [self._tags_before(place) for place in chunk.places]
                flights = self.cache.flights
                computation = flights.take_off(chunk.runs, before, [run for _, run in led[start:]], within)
                result = yield Model(partial(self.call, chunk.places), computation)
                if self.doubt is not None and (interrupted := (yield from self._settled(chunk, result))) is not None:
                    return interrupted
                if type(result) is not Failure:
                    told, whole = self._settle(chunk, result, computation)
                    shared = self.cache.shared
                    if shared is not None:
                        interrupted = yield from shared.publish(told, self.budget)
                        if interrupted is not None:
                            return interrupted
                    if whole is not None:
                        raise whole
                    continue
                error = result.error
            except Whole:
                raise
            except Exception as raised:  # noqa: BLE001 - waiters and stale_if_error have a say first
                error = raised
            if not isinstance(error, Exception):
                return Failure(error)  # cancelled or interrupted: waiters lead
            self._fail(chunk, error)
            if not self._rescue(chunk.keys):
                return Failure(error)
        return None

    def _settle(self, chunk: Chunk, result: Any, computation: _core.Computation) -> tuple[list[Command], Whole | None]:
        """Stores and lands a chunk's results, item by item; what the shared tier is to be told.

        With it comes why the items do not make an answer, if so.
        """
        policy, cache = self.policy, self.cache
        if self.is_renamed(chunk.keys[0]):
            # Another model has been put in this one's place meanwhile: nobody knows whose results these are, and the
            # answers of two models must not stand in one batch.
            for run in chunk.runs:
                run.uncacheable()
            raise self._whole(chunk, result)
        rows = _core.encode_rows(result, len(chunk.keys), policy.terms)
        if isinstance(rows, int):
            raise BatchResultError(
                f"{policy.name} returned {rows} results for {len(chunk.keys)} items; "
                "it must return one for each, in their order. Nothing was stored"
            )
        told: list[Command] = []
        if isinstance(rows, str):
            for key, run in zip(chunk.keys, chunk.runs, strict=True):
                told += self._cannot_keep(key, run)
            self.warn(f"it is {rows}")
            return told, self._whole(chunk, result)
        self.container = type(result)
        split = None
        for index, (key, run, place, row) in enumerate(zip(chunk.keys, chunk.runs, chunk.places, rows, strict=True)):
            if isinstance(row, str):
                told += self._cannot_keep(key, run)
                self.warn(row)
                if self.container not in _CONTAINERS:
                    split = self._whole(chunk, result, UNALIKE)
                self.answers[key] = (result[index],)
                continue
            share, tags = not cache.disabled, []
            if policy.store_if is not None and share:
                share = bool(policy.store_if(result[index]))
            if policy.tags.from_result and share:
                tags = policy.tags.after(result[index], self.arguments(place))
            entry = self.answers[key] = run.land(row, policy.terms, tags, computation, len(rows), share)
            if share and cache.shared is not None:
                told += cache.shared.stored(key, entry, policy.terms)
        return told, split

    def _cannot_keep(self, key: Key, run: _core.Run) -> list[Command]:
        """Leaves nothing older in the place of what cannot be stored; what the shared tier is to be told."""
        run.uncacheable()
        cache = self.cache
        removed = cache._remove(key)
        return cache.shared.removal([key]) if removed and cache.shared is not None else []

    def _fail(self, chunk: Chunk, error: Exception) -> None:
        """Tells who waits for these items of the error; whose run is told of none leads."""
        for run in chunk.runs:
            run.fail(error)

    def _whole(self, chunk: Chunk, result: Any, reason: str | None = None) -> Whole:
        """Why the items are given up; with the result, if it is that of the very call that was made."""
        return Whole(reason, *((result,) if len(chunk.places) == len(self.keys) else ()))

    def _rescue(self, keys: Iterable[Key]) -> bool:
        """Puts expired entries in place of an error, if that is allowed and every key has one."""
        most, flights = self.stale_if_error, self.cache.flights
        if most is None:
            return False
        found = [(key, flights.stale(key, most)) for key in keys]
        kept = {key: entry for key, entry in found if entry is not None}
        if len(kept) < len(found):
            return False
        self.answers.update(kept)
        return True

    def _assemble(self) -> Any:
        slots = [self.answers[key] for key in self.keys]
        result = _core.assemble(slots, self.policy.terms)
        if result is None:
            raise Whole(UNALIKE)  # rows of different shapes or dtypes
        if self.container is not None and self.container not in _CONTAINERS and isinstance(result, _CONTAINERS):
            raise Whole(UNALIKE)  # now it returns an array, and returned a list before
        if self.container is tuple and isinstance(result, list):
            return tuple(result)  # of objects none of which can be stored
        return result

    def warn(self, reason: str) -> None:
        """Warns, once a cache and name, that results are not stored."""
        warn_uncacheable(self.policy.name, reason, self.cache.warned)

    def _tags_before(self, place: int) -> list[str]:
        tags = self.policy.tags
        return tags.before(self.arguments(place) if tags.needs_arguments else {})
