"""The steps of a batch of which some items are missing.

    missing, each once ── lead what nobody computes ── ask the shared tier (and take leases)
                       ── run what is still missing, in chunks ── store, land
                       ── then wait for what others compute
                       ── then assemble

What is led is computed and landed before anything is waited for, so two batches never hold each other up. A function
whose rows do not fit together (it pads to the longest of a batch, say) is asked for the whole batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from infercache import _core
from infercache.effects import CURRENT, Arrival, Failure, Mode, Model, Plain, Steps, are_open
from infercache.errors import BatchResultError, CorruptValue
from infercache.flights import follow
from infercache.shares import compute_led
from infercache.uncacheable import warn_uncacheable

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.batch import BatchFunction
    from infercache.tiers import Command

__all__ = ["UNALIKE", "Filling", "Whole", "is_tensor"]

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any] | None
#: What an item's answer is: an entry, or an object that cannot be stored, in a tuple of one.
Slot: TypeAlias = _core.Entry | tuple[Any]
#: Results of a function whose items go back in place even where one cannot be stored.
_CONTAINERS = (list, tuple)
#: Why a function is asked for a whole batch, where that is worth a warning.
UNALIKE = "its results for single items do not make its result for all of them"


#: Libraries whose arrays have items as NumPy's have, and the class.
_ARRAYS = (("torch", "Tensor"), ("cupy", "ndarray"), ("jax", "Array"))


def is_tensor(value: object) -> bool:
    """Whether this is a tensor of torch, CuPy or JAX that has items."""
    for name, kind in _ARRAYS:
        library = sys.modules.get(name)
        if library is not None and isinstance(value, getattr(library, kind, ())):
            return bool(value.ndim > 0)  # type: ignore[attr-defined]
    return False


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


class _Chunk:
    """Items that one call of the function computes: keys, runs and places in the batch."""

    __slots__ = ("keys", "places", "runs")

    def __init__(self, keys: list[Key], runs: list[_core.Run], places: list[int]) -> None:
        self.keys = keys
        self.runs = runs
        self.places = places


class Filling:
    """One batch call that found something missing."""

    __slots__ = (
        "answers",
        "args",
        "budget",
        "container",
        "definition",
        "doubt",
        "found",
        "fresh",
        "function",
        "items",
        "keys",
        "kwargs",
        "mode",
        "promoted",
        "stale_if_error",
        "waited",
    )

    def __init__(
        self,
        function: BatchFunction,
        args: Args,
        kwargs: Kwargs,
        items: Args,
        keys: Sequence[Key],
        mode: Mode,
        fresh: bool,
        *,
        waited: bool = False,
    ) -> None:
        self.function = function
        self.definition = function._definition
        self.args = args
        self.kwargs = kwargs
        self.items = items
        self.keys = keys
        self.mode = mode
        self.fresh = fresh
        self.answers: dict[Key, Slot] = {}
        #: What each place was counted as a hit for, and which of these places were stale.
        self.found: tuple[Sequence[_core.Entry | None], Sequence[int]] = (), ()
        #: Where answers that were fetched are from.
        self.promoted: dict[Key, str] = {}
        self.budget: Any = None if function._cache.shared is None else function._cache.shared.budget()
        self.container: type | None = None
        self.waited = waited
        self.doubt: list[Key] | None = None
        self.stale_if_error = function._definition.stale_if_error

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
            self.function._cache._unserved(*self.found)
            return (yield from self.whole(whole.reason))

    def _fill(self, missing: Mapping[Key, int]) -> Steps:
        """Gives every missing key an answer; a `Failure`, or None."""
        arrived = self.function._cache.flights.arrive()
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
                slot.value(self.definition.terms)
            except CorruptValue:
                self.function._cache._remove(key)
                del self.answers[key]
                spoiled[key] = place
                if key in self.promoted:
                    self.function._cache.shared.unreadable(slot, self.promoted[key])  # type: ignore[union-attr]
        return spoiled

    def check_unchanged(self) -> None:
        """While this call waited, its items or its model may have become others: then only the function can answer.

        Where the caller awaits and a device would have to be waited for, nothing may run between this and the function:
        then there is a doubt, which is settled when the function is done.
        """
        now = self.function._keys(self.args, self.kwargs, self.items)
        if not self.mode.blocking and are_open(now):
            self.doubt = now
        elif now != list(self.keys):
            raise Whole

    def _settled(self, chunk: _Chunk, result: Any) -> Steps:
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
                    alone.append((key, self.function._cache.flights.alone(key, within)))
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
        shared = self.function._cache.shared
        if shared is None or not led or self.function._cache.disabled:
            return None
        if self.fresh:
            return (yield from shared.know(self.budget))
        window = self.definition.revalidate
        found = yield from shared.fetch([key for key, _ in led], window=window, budget=self.budget)
        if type(found) is Failure:
            return found
        left, stale = _core.adopt_all(led, found, self.answers, self.promoted)
        if stale:
            places = [missing[led[place][0]] for place in stale]
            self.function._revalidate(self.args, self.kwargs, self.items, list(self.keys), places)
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
        cache, mode = self.function._cache, self.mode
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
        """Runs the function for what this call leads, chunk by chunk; what is landed stays so if a later one fails."""
        most = self.function._max_batch or len(led) or 1
        for start in range(0, len(led), most):
            part = led[start : start + most]
            chunk = _Chunk([key for key, _ in part], [run for _, run in part], [missing[key] for key, _ in part])
            try:
                before = [self._tags_before(place) for place in chunk.places]
                flights = self.function._cache.flights
                computation = flights.take_off(chunk.runs, before, [run for _, run in led[start:]], within)
                result = yield Model(partial(self._call, chunk.places), computation)
                if self.doubt is not None and (interrupted := (yield from self._settled(chunk, result))) is not None:
                    return interrupted
                if type(result) is not Failure:
                    told, whole = self._settle(chunk, result, computation)
                    shared = self.function._cache.shared
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

    def _settle(
        self, chunk: _Chunk, result: Any, computation: _core.Computation
    ) -> tuple[list[Command], Whole | None]:
        """Stores and lands a chunk's results, item by item; what the shared tier is to be told.

        With it comes why the items do not make an answer, if so.
        """
        definition, cache = self.definition, self.function._cache
        if definition.renamable and self.function._renamed(self.args, self.kwargs, chunk.keys[0]):
            # Another model has been put in this one's place meanwhile: nobody knows whose results these are, and the
            # answers of two models must not stand in one batch.
            for run in chunk.runs:
                run.uncacheable()
            raise self._whole(chunk, result)
        rows = _core.encode_rows(result, len(chunk.keys), definition.terms)
        if isinstance(rows, int):
            raise BatchResultError(
                f"{definition.name} returned {rows} results for {len(chunk.keys)} items; "
                "it must return one for each, in their order. Nothing was stored"
            )
        told: list[Command] = []
        if isinstance(rows, str):
            for key, run in zip(chunk.keys, chunk.runs, strict=True):
                told += self._cannot_keep(key, run)
            self._warn(f"it is {rows}")
            return told, self._whole(chunk, result)
        self.container = type(result)
        split = None
        for index, (key, run, place, row) in enumerate(zip(chunk.keys, chunk.runs, chunk.places, rows, strict=True)):
            if isinstance(row, str):
                told += self._cannot_keep(key, run)
                self._warn(row)
                if self.container not in _CONTAINERS:
                    split = self._whole(chunk, result, UNALIKE)
                self.answers[key] = (result[index],)
                continue
            share, tags = not cache.disabled, []
            if definition.store_if is not None and share:
                share = bool(definition.store_if(result[index]))
            if definition.tags.from_result and share:
                tags = definition.tags.after(result[index], self._arguments(place))
            entry = self.answers[key] = run.land(row, definition.terms, tags, computation, len(rows), share)
            if share and cache.shared is not None:
                told += cache.shared.stored(key, entry, definition.terms)
        return told, split

    def _cannot_keep(self, key: Key, run: _core.Run) -> list[Command]:
        """An item's result cannot be stored, and leaves nothing older in its place; what the shared tier is to be told."""
        run.uncacheable()
        cache = self.function._cache
        removed = cache._remove(key)
        return cache.shared.removal([key]) if removed and cache.shared is not None else []

    def _fail(self, chunk: _Chunk, error: Exception) -> None:
        """Tells who waits for these items of the error; whose run is told of none leads."""
        for run in chunk.runs:
            run.fail(error)

    def _whole(self, chunk: _Chunk, result: Any, reason: str | None = None) -> Whole:
        """Why the items are given up; with the result, if it is that of the very call that was made."""
        return Whole(reason, *((result,) if len(chunk.places) == len(self.items) else ()))

    def _rescue(self, keys: Iterable[Key]) -> bool:
        """Puts expired entries in place of an error, if that is allowed and every key has one."""
        most, flights = self.stale_if_error, self.function._cache.flights
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
        result = _core.assemble(slots, self.definition.terms)
        if result is None:
            raise Whole(UNALIKE)  # rows of different shapes or dtypes
        if self.container is not None and self.container not in _CONTAINERS and isinstance(result, _CONTAINERS):
            raise Whole(UNALIKE)  # now it returns an array, and returned a list before
        if self.container is tuple and isinstance(result, list):
            return tuple(result)  # of objects none of which can be stored
        return result

    def whole(self, reason: str | None = None) -> Steps:
        """Asks the function itself for the whole batch."""
        if reason is not None:
            self._warn(reason)
        if reason is UNALIKE:
            self.function._cache._count("uncacheable", len(self.items))
        return (yield Plain(partial(self.definition.function, *self.args, **(self.kwargs or {}))))

    def _warn(self, reason: str) -> None:
        warn_uncacheable(self.definition.name, reason, self.function._cache.warned, self.definition.function)

    def _arguments(self, place: int) -> dict[str, Any]:
        """The call's arguments by name, with one item in place of all."""
        bound: dict[str, Any] = self.function._bind(self.args, self.kwargs)
        bound[self.function._over] = self.items[place]
        return bound

    def _tags_before(self, place: int) -> list[str]:
        tags = self.definition.tags
        return tags.before(self._arguments(place) if tags.needs_arguments else {})

    def _call(self, places: list[int]) -> Any:
        """Calls the function with these items only, in a container of the kind that the caller gave."""
        function = self.function
        given = function._given(self.args, self.kwargs)
        chosen: Any
        # A list is copied even where all of it is asked for: somebody may have changed it since the keys were formed.
        if len(places) == len(self.items) and type(given) is not list:
            return self.definition.function(*self.args, **(self.kwargs or {}))
        if isinstance(given, np.ndarray):
            chosen = given[places]
        elif is_tensor(given):
            # JAX takes no lists for indices, CuPy no arrays of NumPy's.
            jax = sys.modules.get("jax")
            of_jax = jax is not None and isinstance(given, jax.Array)
            chosen = given[np.asarray(places)] if of_jax else given[places]
        else:
            chosen = [self.items[place] for place in places]
            if type(given) is tuple:
                chosen = tuple(chosen)
        args, kwargs = function._with(self.args, self.kwargs, chosen)
        return self.definition.function(*args, **kwargs)
