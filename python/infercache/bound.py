"""Memoized methods: `Bound` at run time, and what static checkers see of each kind.

`P` of those is all that the function takes, the instance or the class included; each member leaves out the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.lookup import Token

__all__ = ["Bound", "BoundAsyncMemoized", "BoundAsyncMemoizedBatch", "BoundMemoized", "BoundMemoizedBatch"]

P = ParamSpec("P")
Rest = ParamSpec("Rest")
Answer_co = TypeVar("Answer_co", covariant=True)


class Bound(functools.partial[Any]):
    """What attribute access on an instance gives: a call, a key, … with the instance in front of the arguments."""

    __slots__ = ()

    # The function's, which `__getattr__` would not be asked for. (Of `__module__` there can be but the class's.)
    __doc__ = property(lambda self: self.func.__doc__)

    @property
    def __func__(self) -> Callable[..., Any]:
        """The decorated function."""
        return self.func

    @property
    def __self__(self) -> Any:
        """What it is bound to."""
        return self.args[0]

    @property
    def __wrapped__(self) -> MethodType:
        """The method that was decorated, bound."""
        return MethodType(self.func.__wrapped__, self.args[0])  # type: ignore[attr-defined]

    @property
    def key(self) -> functools.partial[Any]:
        """The key of a call with these arguments."""
        return functools.partial(self.func.key, *self.args)  # type: ignore[attr-defined]

    @property
    def peek(self) -> functools.partial[Any]:
        """The answer if the cache has it, else None."""
        return functools.partial(self.func.peek, *self.args)  # type: ignore[attr-defined]

    @property
    def refresh(self) -> functools.partial[Any]:
        """Computes the answer anew and stores it."""
        return functools.partial(self.func.refresh, *self.args)  # type: ignore[attr-defined]

    @property
    def invalidate(self) -> functools.partial[Any]:
        """Purges the answer."""
        return functools.partial(self.func.invalidate, *self.args)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        # Everything else is the decorated function's: its name, its code, …
        return getattr(self.func, name)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # As methods are pickled; by its own name a class method would be found bound.
        return getattr, (self.args[0], self.func.__name__)

    def __repr__(self) -> str:
        return f"<{self.func!r} bound to {self.args[0]!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self.func is other.func and self.args[0] is other.args[0]

    def __hash__(self) -> int:
        return hash((id(self.func), id(self.args[0])))


class BoundMemoized(Protocol[P, Answer_co]):
    """A memoized method of an instance or a class."""

    @property
    def __wrapped__(self: BoundMemoized[Concatenate[Any, Rest], Answer_co]) -> Callable[Rest, Answer_co]:
        """The method that was decorated, bound."""
        ...

    def __call__(
        self: BoundMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Answer_co:
        """The answer, from the cache or the function."""
        ...

    def key(self: BoundMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs) -> Key:
        """The key of a call with these arguments."""

    def peek(
        self: BoundMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Answer_co | None:
        """The answer if the cache has it, else None."""

    def refresh(
        self: BoundMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Answer_co:
        """Computes the answer anew and stores it."""

    def invalidate(
        self: BoundMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Token:
        """Purges the answer."""


class BoundAsyncMemoized(Protocol[P, Answer_co]):
    """A memoized `async def` method of an instance or a class."""

    @property
    def __wrapped__(
        self: BoundAsyncMemoized[Concatenate[Any, Rest], Answer_co],
    ) -> Callable[Rest, Coroutine[Any, Any, Answer_co]]:
        """The method that was decorated, bound."""
        ...

    def __call__(
        self: BoundAsyncMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Coroutine[Any, Any, Answer_co]:
        """The answer, from the cache or the function."""
        ...

    def key(
        self: BoundAsyncMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Key:
        """The key of a call with these arguments."""

    def peek(
        self: BoundAsyncMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Coroutine[Any, Any, Answer_co | None]:
        """The answer if the cache has it, else None."""

    def refresh(
        self: BoundAsyncMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Coroutine[Any, Any, Answer_co]:
        """Computes the answer anew and stores it."""

    def invalidate(
        self: BoundAsyncMemoized[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Coroutine[Any, Any, Token]:
        """Purges the answer."""


class BoundMemoizedBatch(Protocol[P, Answer_co]):
    """A memoized batch method of an instance or a class."""

    @property
    def __wrapped__(self: BoundMemoizedBatch[Concatenate[Any, Rest], Answer_co]) -> Callable[Rest, Answer_co]:
        """The method that was decorated, bound."""
        ...

    def __call__(
        self: BoundMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Answer_co:
        """The answer, from the cache or the function."""
        ...

    def key(
        self: BoundMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> list[Key]:
        """The keys of the items, in their order."""

    def peek(
        self: BoundMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Answer_co | None:
        """The answer if the cache has all of it, else None."""

    def refresh(
        self: BoundMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Answer_co:
        """Computes every item anew and stores them."""

    def invalidate(
        self: BoundMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Token | None:
        """Purges every item's answer."""


class BoundAsyncMemoizedBatch(Protocol[P, Answer_co]):
    """A memoized `async def` batch method of an instance or a class."""

    @property
    def __wrapped__(
        self: BoundAsyncMemoizedBatch[Concatenate[Any, Rest], Answer_co],
    ) -> Callable[Rest, Coroutine[Any, Any, Answer_co]]:
        """The method that was decorated, bound."""
        ...

    def __call__(
        self: BoundAsyncMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Coroutine[Any, Any, Answer_co]:
        """The answer, from the cache or the function."""
        ...

    def key(
        self: BoundAsyncMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> list[Key]:
        """The keys of the items, in their order."""

    def peek(
        self: BoundAsyncMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Coroutine[Any, Any, Answer_co | None]:
        """The answer if the cache has all of it, else None."""

    def refresh(
        self: BoundAsyncMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Coroutine[Any, Any, Answer_co]:
        """Computes every item anew and stores them."""

    def invalidate(
        self: BoundAsyncMemoizedBatch[Concatenate[Any, Rest], Answer_co], *args: Rest.args, **kwargs: Rest.kwargs
    ) -> Coroutine[Any, Any, Token | None]:
        """Purges every item's answer."""
