"""What static checkers see of memoized methods. At run time `_core.BoundMemoized` is all of these."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.lookup import Token

__all__ = ["BoundAsyncMemoized", "BoundAsyncMemoizedBatch", "BoundMemoized", "BoundMemoizedBatch"]

Rest = ParamSpec("Rest")
Answer_co = TypeVar("Answer_co", covariant=True)


class BoundMemoized(Protocol[Rest, Answer_co]):
    """A memoized method of an instance or a class."""

    def __call__(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer_co: ...
    def key(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Key:
        """The key of a call with these arguments."""

    def peek(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer_co | None:
        """The answer if the cache has it, else None."""

    def refresh(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer_co:
        """Computes the answer anew and stores it."""

    def invalidate(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Token:
        """Purges the answer."""


class BoundAsyncMemoized(Protocol[Rest, Answer_co]):
    """A memoized `async def` method of an instance or a class."""

    def __call__(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Answer_co]: ...
    def key(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Key:
        """The key of a call with these arguments."""

    def peek(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Answer_co | None]:
        """The answer if the cache has it, else None."""

    def refresh(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Answer_co]:
        """Computes the answer anew and stores it."""

    def invalidate(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Token]:
        """Purges the answer."""


class BoundMemoizedBatch(Protocol[Rest, Answer_co]):
    """A memoized batch method of an instance or a class."""

    def __call__(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer_co: ...
    def key(self, *args: Rest.args, **kwargs: Rest.kwargs) -> list[Key]:
        """The keys of the items, in their order."""

    def peek(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer_co | None:
        """The answer if the cache has all of it, else None."""

    def refresh(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Answer_co:
        """Computes every item anew and stores them."""

    def invalidate(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Token | None:
        """Purges every item's answer."""


class BoundAsyncMemoizedBatch(Protocol[Rest, Answer_co]):
    """A memoized `async def` batch method of an instance or a class."""

    def __call__(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Answer_co]: ...
    def key(self, *args: Rest.args, **kwargs: Rest.kwargs) -> list[Key]:
        """The keys of the items, in their order."""

    def peek(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Answer_co | None]:
        """The answer if the cache has all of it, else None."""

    def refresh(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Answer_co]:
        """Computes every item anew and stores them."""

    def invalidate(self, *args: Rest.args, **kwargs: Rest.kwargs) -> Coroutine[Any, Any, Token | None]:
        """Purges every item's answer."""
