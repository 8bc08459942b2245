"""`Cache.memoize_batch`: a function of many items, each of which has an entry of its own.

    items ── keys ── look-up ─┬─ all known: assemble (native, `_core.MemoizedBatch`)
                              └─ some missing, each once:
                                   lead what nobody computes ── run them, in chunks ── store, land
                                   then wait for what others compute
                                   then assemble

What is led is computed and landed before anything is waited for, so two batches never hold each other up. A function
whose rows do not fit together (it pads to the longest of a batch, say) is answered by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

import numpy as np

from infercache import _core
from infercache.background import refresh_in_task, refresh_in_thread
from infercache.errors import BatchResultError, CorruptValue, InvalidArgument
from infercache.flights import CURRENT, Failure, Mode, Model, Plain, Steps, drive, drive_async, follow, warn_uncacheable
from infercache.functions import Definition, Options, describe
from infercache.memoize import dress

if TYPE_CHECKING:
    from typing import Self

    from infercache._core import Key
    from infercache.cache import Cache, Token

__all__ = [
    "AsyncMemoizedBatch",
    "BatchDecorator",
    "BoundAsyncMemoizedBatch",
    "BoundMemoizedBatch",
    "MemoizedBatch",
    "memoized_batch",
]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", contravariant=True)
Rest = ParamSpec("Rest")
Answer = TypeVar("Answer", covariant=True)

Args = tuple[Any, ...]
Kwargs = dict[str, Any] | None
#: What an item's answer is: an entry, or an object that cannot be stored, in a tuple of one.
Slot = _core.Entry | tuple[Any]
#: Results of a function whose items go back in place even where one cannot be stored.
_CONTAINERS = (list, tuple)


class _Whole(Exception):
    """The items' answers do not make the function's answer: it must be asked for the whole batch."""


class _Chunk:
    """Items that one call of the function computes: keys, runs and places in the batch."""

    __slots__ = ("keys", "places", "runs")

    def __init__(self, keys: list[Key], runs: list[_core.Run], places: list[int]) -> None:
        self.keys = keys
        self.runs = runs
        self.places = places


class _Batch:
    """One batch call that found something missing."""

    __slots__ = ("answers", "args", "container", "definition", "fresh", "function", "items", "keys", "kwargs", "mode")

    def __init__(
        self,
        function: _BatchFunction,
        args: Args,
        kwargs: Kwargs,
        items: Args,
        keys: Sequence[Key],
        mode: Mode,
        fresh: bool,
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
        self.container: type | None = None

    def steps(self, missing: Mapping[Key, int]) -> Steps:
        """Fills in what is missing, given with the place of its first item, and assembles."""
        try:
            failure = yield from self._fill(missing)
            if failure is not None:
                return failure
            return self._assemble()
        except _Whole:
            return (yield from self._whole())

    def _fill(self, missing: Mapping[Key, int]) -> Steps:
        flights = self.function._cache.flights
        within = CURRENT.get()
        arrived = flights.arrive()
        todo = list(missing)
        while todo:
            led: list[tuple[Key, _core.Run]] = []
            followed: list[tuple[Key, _core.Waiting]] = []
            try:
                for key in todo:
                    self._join(flights, key, arrived, within, led, followed)
                failure = yield from self._compute(led, missing, within)
                if failure is not None:
                    return failure
                todo, alone = [], []
                for key, waiting in followed:
                    what, found = yield from follow(waiting, within, self.mode, self.fresh)
                    if what == _core.FAILED:
                        if not isinstance(found, Exception) or not self._rescue([key]):
                            return Failure(found)
                    elif what == _core.VALUE:
                        self.answers[key] = found
                    else:
                        (alone if what == _core.UNSHARED else todo).append(key)
                failure = yield from self._compute([(key, flights.alone(key)) for key in alone], missing, within)
                if failure is not None:
                    return failure
            except _Whole:
                raise
            except Exception as error:  # recursion, the caller's own tags and store_if, too few results
                return Failure(error)
            finally:
                for _, run in led:
                    run.abandon()
                for _, waiting in followed:
                    waiting.close()
        return None

    def _join(
        self,
        flights: _core.Flights,
        key: Key,
        arrived: _core.Arrived,
        within: _core.Computation | None,
        led: list[tuple[Key, _core.Run]],
        followed: list[tuple[Key, _core.Waiting]],
    ) -> None:
        if self.function._cache.disabled:
            led.append((key, flights.alone(key)))
            return
        what, found = flights.join(key, arrived, within, self.mode.thread, self.mode.event_loop, self.fresh)
        if what == _core.LEAD:
            led.append((key, found))
        elif what == _core.FOLLOW:
            followed.append((key, found))
        else:
            self.answers[key] = found

    def _compute(
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
                if type(result) is not Failure:
                    self._settle(chunk, result, computation)
                    continue
                error = result.error
            except _Whole:
                raise
            except Exception as raised:
                error = raised
            if not isinstance(error, Exception):
                return Failure(error)  # cancelled or interrupted: waiters lead
            for run in chunk.runs:
                run.fail(error)
            if not self._rescue(chunk.keys):
                return Failure(error)
        return None

    def _settle(self, chunk: _Chunk, result: Any, computation: _core.Computation) -> None:
        """Stores and lands a chunk's results, item by item."""
        definition, cache = self.definition, self.function._cache
        rows = _core.encode_rows(result, len(chunk.keys), definition.terms)
        if isinstance(rows, int):
            raise BatchResultError(
                f"{definition.name} returned {rows} results for {len(chunk.keys)} items; "
                "it must return one for each, in their order. Nothing was stored"
            )
        if isinstance(rows, str):
            for run in chunk.runs:
                run.uncacheable()
            warn_uncacheable(definition.name, f"it is {rows}", cache.warned)
            raise _Whole
        self.container = type(result)
        split = None
        for index, (key, run, place, row) in enumerate(zip(chunk.keys, chunk.runs, chunk.places, rows, strict=True)):
            if isinstance(row, str):
                run.uncacheable()
                warn_uncacheable(definition.name, row, cache.warned)
                if self.container not in _CONTAINERS:
                    split = _Whole()
                self.answers[key] = (result[index],)
                continue
            share, tags = not cache.disabled, []
            if definition.store_if is not None and share:
                share = bool(definition.store_if(result[index]))
            if definition.tags.from_result and share:
                tags = definition.tags.after(result[index], self._arguments(place))
            self.answers[key] = run.land(row, definition.terms, tags, computation, len(rows), share)
        if split is not None:
            raise split

    def _rescue(self, keys: Iterable[Key]) -> bool:
        """Puts expired entries in place of an error, if that is allowed and every key has one."""
        most, flights = self.definition.stale_if_error, self.function._cache.flights
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
        if self.container is not None and self.container not in _CONTAINERS and isinstance(result, _CONTAINERS):
            raise _Whole  # rows of different shapes or dtypes
        if self.container is tuple and isinstance(result, list):
            return tuple(result)  # of objects none of which can be stored
        return result

    def _whole(self) -> Steps:
        cache = self.function._cache
        reason = "its results for single items do not make its result for all of them"
        warn_uncacheable(self.definition.name, reason, cache.warned)
        return (yield Plain(partial(self.definition.function, *self.args, **(self.kwargs or {}))))

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
        if len(places) == len(self.items):
            return self.definition.function(*self.args, **(self.kwargs or {}))
        given = function._given(self.args, self.kwargs)
        chosen: Any
        if isinstance(given, np.ndarray):
            chosen = given[places]
        else:
            chosen = [self.items[place] for place in places]
            if type(given) is tuple:
                chosen = tuple(chosen)
        args, kwargs = function._with(self.args, self.kwargs, chosen)
        return self.definition.function(*args, **kwargs)


class _BatchFunction(_core.MemoizedBatch):
    """What synchronous and asynchronous batch functions have in common."""

    __wrapped__: Callable[..., Any]
    __qualname__: str
    _binds: int
    _cache: Cache
    _definition: Definition
    _max_batch: int | None
    _over: str
    _position: int | None

    def _given(self, args: Args, kwargs: Kwargs) -> Any:
        """What the parameter of the items was given."""
        if self._position is not None and self._position < len(args):
            return args[self._position]
        if kwargs and self._over in kwargs:
            return kwargs[self._over]
        return self._bind(args, kwargs)[self._over]

    def _with(self, args: Args, kwargs: Kwargs, items: Any) -> tuple[Args, dict[str, Any]]:
        """The arguments with other items."""
        if self._position is not None and self._position < len(args):
            return (*args[: self._position], items, *args[self._position + 1 :]), kwargs or {}
        return args, {**(kwargs or {}), self._over: items}

    def _items(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs, Args]:
        """The arguments, re-iterable, and the items apart."""
        given = self._given(args, kwargs)
        if type(given) in _CONTAINERS or (isinstance(given, np.ndarray) and given.ndim > 0):
            return args, kwargs, tuple(given)
        if isinstance(given, str | bytes | bytearray | Mapping) or not isinstance(given, Iterable):
            kind = type(given).__name__
            raise TypeError(f"{self._definition.name}: {self._over} is a {kind}; give a list with the items")
        items = tuple(given)
        if not isinstance(given, Sequence):
            args, kwargs = self._with(args, kwargs, list(items))  # an iterator is read once
        return args, kwargs, items

    def key(self, *args: Any, **kwargs: Any) -> list[Key]:
        args, given, items = self._items(args, kwargs)
        return self._keys(args, given, items)

    def _miss_steps(
        self, args: Args, kwargs: Kwargs, items: Args, keys: Sequence[Key], entries: Sequence[Any], mode: Mode
    ) -> Steps:
        batch = _Batch(self, args, kwargs, items, keys, mode, False)
        missing: dict[Key, int] = {}
        for place, (key, entry) in enumerate(zip(keys, entries, strict=True)):
            if entry is None:
                missing.setdefault(key, place)
            else:
                batch.answers[key] = entry
        # A key that stands twice can be found the second time, if it was stored in between.
        return batch.steps({key: place for key, place in missing.items() if key not in batch.answers})

    def _fresh_steps(self, args: Args, kwargs: Kwargs, mode: Mode) -> Steps:
        args, kwargs, items = self._items(args, kwargs)
        keys = self._keys(args, kwargs, items)
        missing: dict[Key, int] = {}
        for place, key in enumerate(keys):
            missing.setdefault(key, place)
        return _Batch(self, args, kwargs, items, keys, mode, True).steps(missing)

    def _stale_steps(
        self, args: Args, kwargs: Kwargs, items: Args, keys: Sequence[Key], stale: list[int], mode: Mode
    ) -> Steps:
        """Computes stale items anew, those that nobody else computes and that are what they were."""
        flights = self._cache.flights
        arrived, now = flights.arrive(), self._keys(args, kwargs, items)
        batch = _Batch(self, args, kwargs, items, keys, mode, False)
        led: list[tuple[Key, _core.Run]] = []
        places = {keys[place]: place for place in stale if now[place] == keys[place]}
        try:
            for key in places:
                what, found = flights.join(key, arrived, None, mode.thread, mode.event_loop, False)
                if what == _core.LEAD:
                    led.append((key, found))
                elif what == _core.FOLLOW:
                    found.close()
            return (yield from batch._compute(led, places, None))
        except _Whole:
            return None
        finally:
            for _, run in led:
                run.abandon()

    def _known(self, args: Args, kwargs: Kwargs) -> Any:
        args, kwargs, items = self._items(args, kwargs)
        entries = [self._peek(key) for key in self._keys(args, kwargs, items)]
        if not entries or None in entries:
            return None
        try:
            return _core.assemble([entry for entry in entries if entry is not None], self._definition.terms)
        except CorruptValue:
            return None

    def _mode(self) -> Mode:
        raise NotImplementedError

    def _perform(self, steps: Steps) -> Any:
        """Performs the steps, or hands them to who can."""
        raise NotImplementedError

    def _refresh_stale(self, name: tuple[Any, ...], steps: Callable[[Mode], Steps]) -> None:
        """Performs steps in the background."""
        raise NotImplementedError

    def _unusual(self, args: Args, kwargs: Kwargs) -> Any:
        """A call whose items are none, or in neither a list nor a tuple."""
        args, kwargs, items = self._items(args, kwargs)
        if not items:
            return self._perform(_plain(partial(self._definition.function, *args, **(kwargs or {}))))
        return self._answer(args, kwargs, items)

    def _miss(self, args: Args, kwargs: Kwargs, items: Args, keys: list[Key], entries: list[Any], stale: list[int]) -> Any:
        if stale:
            self._revalidate(args, kwargs, items, keys, stale)
        return self._perform(self._miss_steps(args, kwargs, items, keys, entries, self._mode()))

    def _stale(self, args: Args, kwargs: Kwargs, items: Args, keys: list[Key], stale: list[int], answer: Any) -> Any:
        self._revalidate(args, kwargs, items, keys, stale)
        return answer

    def _unalike(self, args: Args, kwargs: Kwargs, items: Args) -> Any:
        return self._perform(_Batch(self, args, kwargs, items, (), self._mode(), False)._whole())

    def _revalidate(self, args: Args, kwargs: Kwargs, items: Args, keys: list[Key], stale: list[int]) -> None:
        name = (self._cache.flights, tuple(keys[place] for place in stale), self._definition.name)
        self._refresh_stale(name, partial(self._stale_steps, args, kwargs, items, keys, stale))

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<memoized batch {self._definition.name}>"


class MemoizedBatch(_BatchFunction, Generic[P, R]):
    """A batch function whose known items are answered from the cache."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...  # type: ignore[override]
        def key(self, *args: P.args, **kwargs: P.kwargs) -> list[Key]:
            """The keys of the items, in their order."""

        @overload
        def __get__(self, instance: None, owner: type | None = None, /) -> Self: ...
        @overload
        def __get__(
            self: MemoizedBatch[Concatenate[S, Rest], R], instance: S, owner: type | None = None, /
        ) -> BoundMemoizedBatch[Rest, R]: ...
        def __get__(self, instance: Any, owner: Any = None, /) -> Any: ...

    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The answer if the cache has all of it, else None. Runs nothing, counts nothing."""
        found: R | None = self._known(args, kwargs)
        return found

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Computes every item anew, whatever the cache holds, and stores them."""
        answer: R = drive(self._fresh_steps(args, kwargs, Mode(blocking=True)))
        return answer

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Token | None:
        """Purges every item's answer; None if there are no items."""
        return self._cache._purge(self.key(*args, **kwargs))

    def _mode(self) -> Mode:
        return Mode(blocking=True)

    def _perform(self, steps: Steps) -> Any:
        return drive(steps)

    def _refresh_stale(self, name: tuple[Any, ...], steps: Callable[[Mode], Steps]) -> None:
        refresh_in_thread(name, lambda: drive(steps(Mode(blocking=True))))


class _Pending:
    """Steps that an asynchronous call has yet to perform."""

    __slots__ = ("steps",)

    def __init__(self, steps: Steps) -> None:
        self.steps = steps


def _plain(call: Callable[[], Any]) -> Steps:
    """A call of the function as it is, part of no computation but its caller's."""
    return (yield Plain(call))


class AsyncMemoizedBatch(_BatchFunction, Generic[P, R]):
    """An `async def` batch function whose known items are answered from the cache."""

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:  # type: ignore[override]
        given, names, items = self._items(args, kwargs)
        answer = self._answer(given, names, items) if items else self._unusual(given, names)
        if type(answer) is _Pending:
            answer = await drive_async(answer.steps)
        return answer  # type: ignore[no-any-return]

    if TYPE_CHECKING:

        def key(self, *args: P.args, **kwargs: P.kwargs) -> list[Key]:
            """The keys of the items, in their order."""

        @overload
        def __get__(self, instance: None, owner: type | None = None, /) -> Self: ...
        @overload
        def __get__(
            self: AsyncMemoizedBatch[Concatenate[S, Rest], R], instance: S, owner: type | None = None, /
        ) -> BoundAsyncMemoizedBatch[Rest, R]: ...
        def __get__(self, instance: Any, owner: Any = None, /) -> Any: ...

    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The answer if the cache has all of it, else None. Runs nothing, counts nothing."""
        found: R | None = self._known(args, kwargs)
        return found

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Computes every item anew, whatever the cache holds, and stores them."""
        answer: R = await drive_async(self._fresh_steps(args, kwargs, Mode(blocking=False)))
        return answer

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Token | None:
        """Purges every item's answer; None if there are no items."""
        return self._cache._purge(self.key(*args, **kwargs))

    def _mode(self) -> Mode:
        return Mode(blocking=False)

    def _perform(self, steps: Steps) -> Any:
        return _Pending(steps)

    def _refresh_stale(self, name: tuple[Any, ...], steps: Callable[[Mode], Steps]) -> None:
        refresh_in_task(name, lambda: drive_async(steps(Mode(blocking=False))))


class BoundMemoizedBatch(Protocol[Rest, Answer]):
    """A memoized batch method of an instance or a class."""

    def __call__(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer: ...
    def key(self, *args: Rest.args, **kwargs: Rest.kwargs) -> list[Key]:
        """The keys of the items, in their order."""
    def peek(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer | None:
        """The answer if the cache has all of it, else None."""
    def refresh(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer:
        """Computes every item anew and stores them."""
    def invalidate(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Token | None:
        """Purges every item's answer."""


class BoundAsyncMemoizedBatch(Protocol[Rest, Answer]):
    """A memoized `async def` batch method of an instance or a class."""

    def __call__(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Answer]: ...
    def key(self, *args: Rest.args, **kwargs: Rest.kwargs) -> list[Key]:
        """The keys of the items, in their order."""
    def peek(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Answer | None]:
        """The answer if the cache has all of it, else None."""
    def refresh(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Answer]:
        """Computes every item anew and stores them."""
    def invalidate(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Token | None]:
        """Purges every item's answer."""


class BatchDecorator(Protocol):
    """What `Cache.memoize_batch` returns: keeps the signature, and `async def` what it is."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncMemoizedBatch[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> MemoizedBatch[P, R]: ...


def memoized_batch(cache: Cache, options: Options, over: str, max_batch: int | None) -> BatchDecorator:
    """The decorator of these options."""
    if max_batch is not None and (not isinstance(max_batch, int) or isinstance(max_batch, bool) or max_batch < 1):
        raise InvalidArgument(f"max_batch={max_batch!r}: give a positive number of items, or None for no limit")

    def decorate(function: Any) -> Any:
        definition = describe(cache, function, options)
        position = _check_over(definition, over, options)
        made: Any = (AsyncMemoizedBatch if definition.asynchronous else MemoizedBatch)(definition.parts, over, position)
        made._over, made._position, made._max_batch = over, position, max_batch
        return dress(made, cache, definition)

    return decorate


def _check_over(definition: Definition, over: str, options: Options) -> int | None:
    """Where the parameter of the items stands among the positional ones; None if it goes by name only."""
    parameters = definition.signature.parameters
    if over not in parameters:
        known = ", ".join(parameters) or "none"
        raise InvalidArgument(f"over: {definition.name} has no parameter {over!r}; its parameters: {known}")
    kind = parameters[over].kind
    if kind in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD):
        raise InvalidArgument(f"over: {over!r} of {definition.name} takes any number of arguments; it must take one list")
    if over in options.ignore:
        raise InvalidArgument(f"ignore: {over!r} holds the items, which tell the answers apart; it cannot be ignored")
    return None if kind is kind.KEYWORD_ONLY else list(parameters).index(over)
