"""`Cache.memoize`: a function whose repeated calls are answered from the cache.

The look-up of a call is native (`_core.Memoized`); this module holds what a miss needs and the function's surface.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from infercache import _core
from infercache.background import refresh_in_task, refresh_in_thread
from infercache.callables import runs_code
from infercache.effects import Mode, arrived, drive, drive_async
from infercache.errors import CorruptValue
from infercache.flights import Request, compute, obtain, revalidate
from infercache.functions import Definition, Options, describe

if TYPE_CHECKING:
    from typing import Self

    from infercache._core import Key
    from infercache.bound import BoundAsyncMemoized, BoundMemoized
    from infercache.cache import Cache
    from infercache.lookup import Token

__all__ = ["AsyncMemoized", "MemoizeDecorator", "Memoized", "memoized"]

P = ParamSpec("P")
R = TypeVar("R")


class _Function(_core.Memoized):
    """What synchronous and asynchronous functions have in common."""

    __wrapped__: Callable[..., Any]
    __qualname__: str
    _cache: Cache
    _definition: Definition

    def _request(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Key) -> Request:
        definition = self._definition
        call = partial(definition.function, *args, **kwargs) if kwargs else partial(definition.function, *args)
        form = partial(self.key, *args, **kwargs) if kwargs else partial(self.key, *args)
        renamed = partial(self._renamed, args, kwargs, key) if definition.renamable else None
        refresh = partial(self._refresh_later, args, kwargs, key)
        return Request(definition, key, call, partial(self._bind, args, kwargs), form, renamed, refresh)

    def _refresh_later(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Key) -> None:
        """Has a stale answer computed anew in the background."""
        raise NotImplementedError

    def _again(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Key, mode: Mode) -> Any:
        """The steps of a refresh in the background."""
        request = self._request(args, kwargs, key)
        request.stale_if_error = None  # whoever asked has been served the stale entry already
        return revalidate(request, mode)

    def _steps(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        key: Key,
        mode: Mode,
        *,
        fresh: bool = False,
        waited: bool = False,
    ) -> Any:
        """The steps of a miss; `waited`: other tasks have run since the key was formed."""
        request = self._request(args, kwargs, key)
        if self._cache.disabled:
            return compute(request, request.flights.alone(key, None), None)
        return obtain(request, mode, fresh=fresh, waited=waited)

    def _value(self, key: Key) -> Any:
        entry = self._peek(key)
        if entry is None:
            return None
        try:
            return entry.value(self._definition.terms)
        except CorruptValue:
            return None

    def __reduce__(self) -> str:
        # By name, as functions are: another process finds its own.
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<memoized {self._definition.name}>"


class Memoized(_Function, Generic[P, R]):
    """A function whose repeated calls are answered from the cache."""

    if TYPE_CHECKING:
        __wrapped__: Callable[P, R]

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
            """The answer, from the cache or the function."""

        def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
            """The key of a call with these arguments."""

        # A class method, by what its first parameter is; then what is found on the class, and on an instance.
        @overload
        def __get__(
            self: Memoized[Concatenate[type[Any], ...], R], instance: Any, owner: type | None = None, /
        ) -> BoundMemoized[P, R]: ...
        @overload
        def __get__(self, instance: None, owner: type | None = None, /) -> Self: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> BoundMemoized[P, R]: ...
        def __get__(self, instance: Any, owner: Any = None, /) -> Any: ...

    def peek(self, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The answer if the cache has it, else None. Runs nothing, counts nothing."""
        found: R | None = self._value(self.key(*args, **kwargs))
        return found

    def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Computes the answer anew, whatever the cache holds, and stores it."""
        answer: R = drive(self._steps(args, kwargs, self.key(*args, **kwargs), Mode(blocking=True), fresh=True))
        return answer

    def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> Token:
        """Purges the answer: later calls compute it, and a computation that runs now is not stored."""
        return self._cache.invalidate(key=self.key(*args, **kwargs))

    def _miss(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Key) -> Any:
        return drive(self._steps(args, kwargs, key, Mode(blocking=True)))

    def _stale(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Key, answer: Any) -> Any:
        self._refresh_later(args, kwargs, key)
        return answer

    def _refresh_later(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Key) -> None:
        def refresh() -> None:
            drive(self._again(args, kwargs, key, Mode(blocking=True)))

        refresh_in_thread((self._cache.flights, key, self._definition.name), refresh)


class AsyncMemoized(_Function, Generic[P, R]):
    """An `async def` function whose repeated calls are answered from the cache."""

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """The answer, from the cache or the function."""
        key, answer, stale = self._look(args, kwargs)
        waited = stale is None
        if key is not None and waited:
            await arrived((key,))
            key, answer, stale = self._look_at(key)
        if key is not None:
            if stale:
                self._refresh_later(args, kwargs, key)
            else:
                answer = await drive_async(self._steps(args, kwargs, key, Mode(blocking=False), waited=waited))
        return answer  # type: ignore[no-any-return]

    if TYPE_CHECKING:
        __wrapped__: Callable[P, Coroutine[Any, Any, R]]

        def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
            """The key of a call with these arguments."""

        # A class method, by what its first parameter is; then what is found on the class, and on an instance.
        @overload
        def __get__(
            self: AsyncMemoized[Concatenate[type[Any], ...], R], instance: Any, owner: type | None = None, /
        ) -> BoundAsyncMemoized[P, R]: ...
        @overload
        def __get__(self, instance: None, owner: type | None = None, /) -> Self: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> BoundAsyncMemoized[P, R]: ...
        def __get__(self, instance: Any, owner: Any = None, /) -> Any: ...

    async def peek(self, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The answer if the cache has it, else None. Runs nothing, counts nothing."""
        key = self.key(*args, **kwargs)
        await arrived((key,))
        found: R | None = self._value(key)
        return found

    async def refresh(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Computes the answer anew, whatever the cache holds, and stores it."""
        key = self.key(*args, **kwargs)
        waited = _core._is_open(key)
        await arrived((key,))
        answer: R = await drive_async(self._steps(args, kwargs, key, Mode(blocking=False), fresh=True, waited=waited))
        return answer

    async def invalidate(self, /, *args: P.args, **kwargs: P.kwargs) -> Token:
        """Purges the answer: later calls compute it, and a computation that runs now is not stored."""
        return await self._cache.ainvalidate(key=self.key(*args, **kwargs))

    def _refresh_later(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Key) -> None:
        async def refresh() -> None:
            await drive_async(self._again(args, kwargs, key, Mode(blocking=False)))

        refresh_in_task((self._cache.flights, key, self._definition.name), refresh)


class MemoizeDecorator(Protocol):
    """What `Cache.memoize` returns: keeps the signature, and `async def` what it is."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncMemoized[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Memoized[P, R]: ...


def memoized(cache: Cache, options: Options) -> MemoizeDecorator:
    """The decorator of these options."""

    def decorate(function: Any) -> Any:
        definition = describe(cache, function, options)
        made: Any = (AsyncMemoized if definition.asynchronous else Memoized)(definition.parts)
        return dress(made, cache, definition)

    return decorate


def dress(made: Any, cache: Cache, definition: Definition) -> Any:
    """Gives a decorated function the looks of the one below it."""
    functools.update_wrapper(made, definition.function)
    made._definition = definition
    made._cache = cache
    if definition.asynchronous:
        # What inspect and asyncio look at to tell a coroutine function, which a partial and an object have below.
        inner = runs_code(definition.function)
        for name in ("__code__", "__defaults__", "__kwdefaults__", "__name__"):
            setattr(made, name, getattr(inner, name, None))
        if hasattr(inspect, "markcoroutinefunction"):  # CPython 3.12 and later
            inspect.markcoroutinefunction(made)
    return made
