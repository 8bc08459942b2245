"""`Cache.memoize_batch`: a function of many items, each of which has an entry of its own.

The look-up of a batch whose items are all known is native (`_core.MemoizedBatch`); `filling` describes the steps where
some are missing, and `batch_call` how the function is asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

import numpy as np

from infercache import _core
from infercache.background import refresh_in_task, refresh_in_thread
from infercache.batch_call import Args, BatchCall, Kwargs, is_tensor
from infercache.effects import Arrival, Failure, Mode, Plain, Steps, are_open, arrived, drive, drive_async
from infercache.errors import CorruptValue, InvalidArgument, shown
from infercache.filling import UNALIKE, Whole
from infercache.flights import join
from infercache.functions import BatchOptions, Definition, Options, describe
from infercache.memoize import dress
from infercache.shares import compute_leased

if TYPE_CHECKING:
    from typing import Self

    from infercache._core import Key
    from infercache.bound import BoundAsyncMemoizedBatch, BoundMemoizedBatch
    from infercache.cache import Cache
    from infercache.lookup import Token

__all__ = [
    "AsyncMemoizedBatch",
    "BatchDecorator",
    "MemoizedBatch",
    "memoized_batch",
]

P = ParamSpec("P")
R = TypeVar("R")


class BatchFunction(_core.MemoizedBatch):
    """What synchronous and asynchronous batch functions have in common."""

    __wrapped__: Callable[..., Any]
    __qualname__: str
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
        if type(given) in (list, tuple) or (isinstance(given, np.ndarray) and given.ndim > 0) or is_tensor(given):
            return args, kwargs, tuple(given)
        is_single = getattr(given, "ndim", None) == 0
        if is_single or isinstance(given, str | bytes | bytearray | Mapping) or not isinstance(given, Iterable):
            kind = type(given).__name__
            advice = "give a list with the items"
            if is_single:
                advice = "it has no dimensions, so no items; give an array whose first axis is the items, or a list"
            raise TypeError(f"{self._definition.name}: {self._over} is a {kind}; {advice}")
        # The function gets a list, whether all of it is missing or a part: an iterator is read once, and of any other
        # container nobody knows how to make one with fewer items.
        items = tuple(given)
        return *self._with(args, kwargs, list(items)), items

    def key(self, /, *args: Any, **kwargs: Any) -> list[Key]:
        args, given, items = self._items(args, kwargs)
        return self._keys(args, given, items)

    def _miss_steps(
        self,
        args: Args,
        kwargs: Kwargs,
        items: Args,
        keys: Sequence[Key],
        entries: Sequence[Any],
        stale: Sequence[int],
        mode: Mode,
        *,
        waited: bool,
    ) -> Steps:
        filling = BatchCall(self, args, kwargs, items, keys, mode, waited=waited)
        filling.found = entries, stale
        missing: dict[Key, int] = {}
        for place, (key, entry) in enumerate(zip(keys, entries, strict=True)):
            if entry is None:
                missing.setdefault(key, place)
            else:
                filling.answers[key] = entry
        # A key that stands twice can be found the second time, if it was stored in between.
        if filling.answers:
            missing = {key: place for key, place in missing.items() if key not in filling.answers}
        answer = yield from filling.steps(missing)
        if type(answer) is not Failure:
            # Each item that missed was counted; those that stand there again took the answer of the first.
            self._cache._count("coalesced", list(entries).count(None) - len(missing))
        return answer

    def _fresh_steps(self, args: Args, kwargs: Kwargs, mode: Mode) -> Steps:
        args, kwargs, items = self._items(args, kwargs)
        keys = self._keys(args, kwargs, items)
        waited = not mode.blocking and are_open(keys)
        if waited and (interrupted := (yield Arrival(keys))) is not None:
            return interrupted
        missing: dict[Key, int] = {}
        for place, key in enumerate(keys):
            missing.setdefault(key, place)
        filling = BatchCall(self, args, kwargs, items, keys, mode, fresh=True, waited=waited)
        return (yield from filling.steps(missing))

    def _stale_steps(
        self, args: Args, kwargs: Kwargs, items: Args, keys: Sequence[Key], stale: list[int], mode: Mode
    ) -> Steps:
        """Computes stale items anew, those that nobody else computes and that are what they were."""
        flights = self._cache.flights
        arrived, now = flights.arrive(), self._keys(args, kwargs, items)
        waited = not mode.blocking and are_open(now)
        if waited and (interrupted := (yield Arrival(now))) is not None:
            return interrupted
        filling = BatchCall(self, args, kwargs, items, keys, mode)
        filling.stale_if_error = None  # whoever asked has been served the stale entries already
        led: list[tuple[Key, _core.Run]] = []
        places = {keys[place]: place for place in stale if now[place] == keys[place]}
        try:
            for key in places:
                what, found = join(flights, key, arrived, None, mode)
                if what == _core.LEAD:
                    led.append((key, found))
                elif what == _core.FOLLOW:
                    found.close()
            if waited:
                filling.check_unchanged()
            # What another process computes is left to it.
            left = yield from compute_leased(filling, led, places, None, leaves=True)
            return left if type(left) is Failure else None
        except Whole:
            return None
        finally:
            for _, run in led:
                run.abandon()

    def _of_entries(self, keys: Sequence[Key]) -> Any:
        """The answer that the entries of all keys make; None if one is missing."""
        entries = [self._peek(key) for key in keys]
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
        return self._resolve(args, kwargs, items)

    def _resolve(self, args: Args, kwargs: Kwargs, items: Args, keys: Sequence[Key] | None = None) -> Any:
        """What the native call does, for items that Python had to take apart."""
        answer, method, arguments = self._next(args, kwargs, items, keys)
        return answer if method is None else method(*arguments or ())

    def _miss(
        self,
        args: Args,
        kwargs: Kwargs,
        items: Args,
        keys: list[Key],
        entries: list[Any],
        stale: list[int],
        waited: bool,
    ) -> Any:
        if stale:
            self._revalidate(args, kwargs, items, keys, stale)
        return self._perform(self._miss_steps(args, kwargs, items, keys, entries, stale, self._mode(), waited=waited))

    def _stale(self, args: Args, kwargs: Kwargs, items: Args, keys: list[Key], stale: list[int], answer: Any) -> Any:
        self._revalidate(args, kwargs, items, keys, stale)
        return answer

    def _unalike(self, args: Args, kwargs: Kwargs, items: Args) -> Any:
        return self._perform(BatchCall(self, args, kwargs, items, (), self._mode()).whole(UNALIKE))

    def _revalidate(self, args: Args, kwargs: Kwargs, items: Args, keys: list[Key], stale: list[int]) -> None:
        name = (self._cache.flights, tuple(keys[place] for place in stale), self._definition.name)
        self._refresh_stale(name, partial(self._stale_steps, args, kwargs, items, keys, stale))

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<memoized batch {self._definition.name}>"


class MemoizedBatch(BatchFunction, Generic[P, R]):
    """A batch function whose known items are answered from the cache."""

    if TYPE_CHECKING:
        __wrapped__: Callable[P, R]

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
            """The answer, from the cache or the function."""

        def key(self, *args: P.args, **kwargs: P.kwargs) -> list[Key]:
            """The keys of the items, in their order."""

        # A class method, by what its first parameter is; then what is found on the class, and on an instance.
        @overload
        def __get__(
            self: MemoizedBatch[Concatenate[type[Any], ...], R], instance: Any, owner: type | None = None, /
        ) -> BoundMemoizedBatch[P, R]: ...
        @overload
        def __get__(self, instance: None, owner: type | None = None, /) -> Self: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> BoundMemoizedBatch[P, R]: ...
        def __get__(self, instance: Any, owner: Any = None, /) -> Any: ...

    def peek(self, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The answer if the cache has all of it, else None. Runs nothing, counts nothing."""
        found: R | None = self._of_entries(self.key(*args, **kwargs))
        return found

    def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Computes every item anew, whatever the cache holds, and stores them."""
        answer: R = drive(self._fresh_steps(args, kwargs, Mode(blocking=True)))
        return answer

    def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> Token | None:
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


class AsyncMemoizedBatch(BatchFunction, Generic[P, R]):
    """An `async def` batch function whose known items are answered from the cache."""

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """The answer, from the cache or the function."""
        given, names, items = self._items(args, kwargs)
        if items:
            answer, method, arguments = self._next(given, names, items, None, False)
            if method is not None:
                answer = method(*arguments or ())
            elif arguments is not None:  # the keys, which a device has a part in
                await arrived(arguments)
                answer = self._resolve(given, names, items, arguments)
        else:
            answer = self._unusual(given, names)
        if type(answer) is _Pending:
            answer = await drive_async(answer.steps)
        return answer  # type: ignore[no-any-return]

    if TYPE_CHECKING:
        __wrapped__: Callable[P, Coroutine[Any, Any, R]]

        def key(self, *args: P.args, **kwargs: P.kwargs) -> list[Key]:
            """The keys of the items, in their order."""

        # A class method, by what its first parameter is; then what is found on the class, and on an instance.
        @overload
        def __get__(
            self: AsyncMemoizedBatch[Concatenate[type[Any], ...], R], instance: Any, owner: type | None = None, /
        ) -> BoundAsyncMemoizedBatch[P, R]: ...
        @overload
        def __get__(self, instance: None, owner: type | None = None, /) -> Self: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> BoundAsyncMemoizedBatch[P, R]: ...
        def __get__(self, instance: Any, owner: Any = None, /) -> Any: ...

    async def peek(self, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The answer if the cache has all of it, else None. Runs nothing, counts nothing."""
        keys = self.key(*args, **kwargs)
        await arrived(keys)
        found: R | None = self._of_entries(keys)
        return found

    async def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Computes every item anew, whatever the cache holds, and stores them."""
        answer: R = await drive_async(self._fresh_steps(args, kwargs, Mode(blocking=False)))
        return answer

    async def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> Token | None:
        """Purges every item's answer; None if there are no items."""
        return await self._cache._apurge(self.key(*args, **kwargs))

    def _mode(self) -> Mode:
        return Mode(blocking=False)

    def _perform(self, steps: Steps) -> Any:
        return _Pending(steps)

    def _refresh_stale(self, name: tuple[Any, ...], steps: Callable[[Mode], Steps]) -> None:
        refresh_in_task(name, lambda: drive_async(steps(Mode(blocking=False))))


class BatchDecorator(Protocol):
    """What `Cache.memoize_batch` returns: keeps the signature, and `async def` what it is."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncMemoizedBatch[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> MemoizedBatch[P, R]: ...


def memoized_batch(cache: Cache, options: BatchOptions) -> BatchDecorator:
    """The decorator of these options."""
    over, max_batch = options.over, options.max_batch
    most: object = max_batch
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise InvalidArgument(f"max_batch={shown(most)}: give a positive number of items, or None for no limit")

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
    if not isinstance(over, str) or over not in parameters:
        known = ", ".join(parameters) or "none"
        raise InvalidArgument(f"over: {definition.name} has no parameter {shown(over)}; its parameters: {known}")
    kind = parameters[over].kind
    if kind in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD):
        raise InvalidArgument(
            f"over: {over!r} of {definition.name} takes any number of arguments; it must take one list"
        )
    if over in options.ignore:
        raise InvalidArgument(f"ignore: {over!r} holds the items, which tell the answers apart; it cannot be ignored")
    return None if kind is kind.KEYWORD_ONLY else list(parameters).index(over)
