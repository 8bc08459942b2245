"""Batch functions of every kind of result, for tests: what they give, and which batches reach them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infercache import Cache


def vector(text: str) -> list[float]:
    return [float(len(text)), float(sum(map(ord, text)) % 97), 1.0]


def as_array(items: Sequence[str]) -> Any:
    return np.array([vector(item) for item in items], dtype=np.float32).reshape(len(items), 3)


def as_matrices(items: Sequence[str]) -> Any:
    return np.array([[vector(item), vector(item)] for item in items], dtype=">i4").reshape(len(items), 2, 3)


def as_numbers(items: Sequence[str]) -> Any:
    return np.array([len(item) for item in items], dtype=np.int64)


def as_list(items: Sequence[str]) -> Any:
    return [{"item": str(item), "vector": vector(item)} for item in items]


def as_tuple(items: Sequence[str]) -> Any:
    return tuple(len(item) or None for item in items)


def as_list_of_arrays(items: Sequence[str]) -> Any:
    return [np.arange(len(item), dtype=np.float16) for item in items]


KINDS = [as_array, as_matrices, as_numbers, as_list, as_tuple, as_list_of_arrays]


def same(one: Any, other: Any) -> bool:
    """The same value of the same type, bit by bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def batched(cache: Cache, kind: Callable[..., Any] = as_array, **options: Any) -> tuple[Any, list[list[str]]]:
    """A memoized batch function and the batches that reach it."""
    reached: list[list[str]] = []

    @cache.memoize_batch(model="m", version="1", operation=kind.__name__, over="items", **options)
    def embed(items: Any) -> Any:
        reached.append([str(item) for item in items])
        return kind(items)

    return embed, reached
