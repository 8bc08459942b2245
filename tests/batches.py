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


def as_text(items: Sequence[str]) -> Any:
    return np.array([str(item) for item in items], dtype=None if len(items) else "U1")


def as_bytes(items: Sequence[str]) -> Any:
    return np.array([str(item).encode() for item in items], dtype=None if len(items) else "S1")


def as_rows_of_text(items: Sequence[str]) -> Any:
    rows = [[str(item), str(item) * 2, ""] for item in items]
    return np.array(rows, dtype=None if rows else "U1").reshape(len(rows), 3)


def as_swapped_text(items: Sequence[str]) -> Any:
    text = as_rows_of_text(items)
    return np.asfortranarray(text.astype(text.dtype.newbyteorder(">")))


def as_wide_text(items: Sequence[str]) -> Any:
    return np.array([str(item) for item in items], dtype="U64")


def as_labels(items: Sequence[str]) -> Any:
    return np.array([str(item) for item in items], dtype="U4")  # cut there, as a label that is looked up never is


def as_label_bytes(items: Sequence[str]) -> Any:
    return np.array([str(item).encode()[:4] for item in items], dtype="S4")


def as_rows_of_labels(items: Sequence[str]) -> Any:
    return np.array([[str(item), str(item)[:2]] for item in items], dtype=">U4").reshape(len(items), 2)


def as_list(items: Sequence[str]) -> Any:
    return [{"item": str(item), "vector": vector(item)} for item in items]


def as_tuple(items: Sequence[str]) -> Any:
    return tuple(len(item) or None for item in items)


def as_list_of_arrays(items: Sequence[str]) -> Any:
    return [np.arange(len(item), dtype=np.float16) for item in items]


#: Arrays as wide as the longest element of the batch.
WIDTHS = [as_text, as_bytes, as_rows_of_text, as_swapped_text]
#: Arrays of one width, which some elements fill and some batches do not.
FIXED_WIDTHS = [as_labels, as_label_bytes, as_rows_of_labels]
KINDS = [as_array, as_matrices, as_numbers, *WIDTHS, as_wide_text, as_list, as_tuple, as_list_of_arrays]


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
