"""One call of a decorated batch function that found something missing: the function is called with that alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from infercache.effects import Mode, Plain, Steps
from infercache.filling import UNALIKE, Filling
from infercache.uncacheable import warn_uncacheable

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.batch import BatchFunction

__all__ = ["BatchCall", "is_tensor"]

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any] | None

#: Libraries whose arrays have items as NumPy's have, and the class.
_ARRAYS = (("torch", "Tensor"), ("cupy", "ndarray"), ("jax", "Array"))


def is_tensor(value: object) -> bool:
    """Whether this is a tensor of torch, CuPy or JAX that has items."""
    for name, kind in _ARRAYS:
        library = sys.modules.get(name)
        if library is not None and isinstance(value, getattr(library, kind, ())):
            return bool(value.ndim > 0)  # type: ignore[attr-defined]
    return False


class BatchCall(Filling):
    """One call of a batch function.

    Args:
        function: the decorated one.
        args: its positional arguments, re-iterable.
        kwargs: the others.
        items: what the parameter of the items holds.
        keys: theirs.
        mode: how waiting is done.
        fresh: every item is computed after this began.
        waited: others have run since the keys were formed.
    """

    __slots__ = ("args", "definition", "function", "items", "kwargs")

    def __init__(
        self,
        function: BatchFunction,
        args: Args,
        kwargs: Kwargs,
        items: Args,
        keys: Sequence[Key],
        mode: Mode,
        *,
        fresh: bool = False,
        waited: bool = False,
    ) -> None:
        self.function = function
        self.definition = function._definition
        self.args = args
        self.kwargs = kwargs
        self.items = items
        form = partial(function._keys, args, kwargs, items)
        super().__init__(
            self.definition, keys, mode, fresh=fresh, max_batch=function._max_batch, form=form, waited=waited
        )

    def call(self, places: list[int]) -> Any:
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

    def arguments(self, place: int) -> dict[str, Any]:
        """The call's arguments by name, with one item in place of all."""
        bound: dict[str, Any] = self.function._bind(self.args, self.kwargs)
        bound[self.function._over] = self.items[place]
        return bound

    def is_renamed(self, key: Key) -> bool:
        """Whether another model has been put in this one's place meanwhile."""
        return self.definition.renamable and self.function._renamed(self.args, self.kwargs, key)

    def revalidate(self, places: list[int]) -> None:
        """Has these items computed anew in the background."""
        self.function._revalidate(self.args, self.kwargs, self.items, list(self.keys), places)

    def whole(self, reason: str | None = None) -> Steps:
        """Asks the function itself for the whole batch."""
        if reason is not None:
            self.warn(reason)
        if reason is UNALIKE:
            self.cache._count("uncacheable", len(self.items))
        return (yield Plain(partial(self.definition.function, *self.args, **(self.kwargs or {}))))

    def warn(self, reason: str) -> None:
        """Warns, once a cache and function, that results are not stored; at the function, where nobody called."""
        warn_uncacheable(self.policy.name, reason, self.cache.warned, self.definition.function)
