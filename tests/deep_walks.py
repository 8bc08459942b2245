"""Every walk over values of every depth, in a thread with a stack of the given size: `deep_walks.py BYTES`.

Prints the walk that it begins, so that whoever finds the process dead knows where, and at the end of each how many
depths had an answer. A key is compared with the one that a thread with an ordinary stack gives.
"""

from __future__ import annotations

import datetime
import decimal
import sys
import threading
import types
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic

import infercache
from infercache import Cache, CorruptValue, UncacheableResult, UnsupportedInput, _core
from infercache.values import schema_of_annotation

DEPTHS = [*range(1, 256, 3), 255, 256]
SCOPE = {"model": "m", "version": "1"}
Wrap = Callable[[Any], Any]


@dataclass
class Node:
    """A dataclass."""

    next: Any


class Model(pydantic.BaseModel):
    """A Pydantic model."""

    next: Any = None


class Custom:
    """A type of the caller's own."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside


class Alone(Custom):
    """One whose form has no container around it."""


infercache.register_form(Custom, "custom", lambda custom: [custom.inside])
infercache.register_form(Alone, "alone", lambda alone: alone.inside)
infercache.register_value(Custom, "custom", lambda custom: custom.inside, Custom)

PLAIN: dict[str, Wrap] = {
    "list": lambda inside: [inside],
    "tuple": lambda inside: (inside,),
    "dict": lambda inside: {"a": inside},
    "set": lambda inside: frozenset([inside]),
    "custom": Custom,
    "dataclass": Node,
    "model": lambda inside: Model(next=inside),
}
WRAPS: dict[str, Wrap] = PLAIN | {
    "$map": lambda inside: {1: inside},
    "$map of bytes": lambda inside: {b"a": 1, b"b": inside},
    "mappingproxy": lambda inside: types.MappingProxyType({"a": inside}),
    "form of a form": Alone,
}
# What takes most of the stack behind the last container: long content, sorting, Python code, the text of an error.
LEAVES: dict[str, Any] = {
    "bytes": bytes(2 << 20),
    "text": "x" * (2 << 20),
    "array": np.zeros(1 << 18),
    "strided": np.zeros((600, 600), order="F"),
    "members": {f"{number:04}{'x' * (number % 9)}": number for number in range(999, 0, -1)},
    "map": {number: number for number in range(999, 0, -1)},
    "floats": [1.1 * number for number in range(999)],
    "integer": 10**4_200,
    "datetime": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "decimal": decimal.Decimal("1.5e3"),
    "uuid": uuid.UUID(int=1),
    "texts": np.array(["a", "b"]),
    "refused": object(),
    "surrogate": "\ud800",
}


def nested(wrap: Wrap, depth: int, inside: Any = 1) -> Any:
    """A value of so many containers."""
    for _ in range(depth):
        inside = wrap(inside)
    return inside


def form_key(value: Any) -> bytes | None:
    """The key, or nothing where there is an error."""
    try:
        return bytes(infercache.key(value, **SCOPE))
    except UnsupportedInput:
        return None


def raw_key(text: bytes) -> bytes | None:
    """The key of raw JSON text, or nothing where there is an error."""
    try:
        return bytes(_core.key_from_json(text, **SCOPE))
    except UnsupportedInput:
        return None


class Walks:
    """Walks by name: what is walked, made beforehand, and what is done with it."""

    def __init__(self) -> None:
        self.cache = Cache(capacity="64MB")
        self.named: dict[str, tuple[list[Any], Callable[[Any], bytes | bool | None]]] = {}
        for name, wrap in WRAPS.items():
            self.named[f"key of {name}"] = [nested(wrap, depth) for depth in DEPTHS], form_key
        for name, leaf in LEAVES.items():
            self.named[f"key of {name} inside"] = [nested(PLAIN["list"], depth - 1, leaf) for depth in DEPTHS], form_key
        endless: list[Any] = []
        endless.append(endless)
        self.named["key of a cycle"] = [endless], form_key
        self.named["raw arrays"] = [b"[" * depth + b"]" * depth for depth in DEPTHS], raw_key
        unsorted = [b'{"b":1,"a":' * depth + b"1" + b"}" * depth for depth in DEPTHS]
        self.named["raw unsorted objects"] = unsorted, raw_key
        for name, wrap in PLAIN.items():
            self.values(name, [nested(wrap, depth) for depth in DEPTHS])

    def values(self, name: str, values: list[Any]) -> None:
        """Storing, finding, memoizing and batches of these."""
        annotation = {"dataclass": Node, "model": Model}.get(name)
        schema = None if annotation is None else schema_of_annotation(annotation)
        key = self.cache.key(name, **SCOPE)

        def store(value: Any) -> bool:
            stored = self.cache.set(key, value)
            found = self.cache.get(key, self)
            self.cache.lookup(key)
            self.cache.delete(key)
            return stored and found is not self

        def find(entry: _core._Stored) -> bool:
            try:
                entry.value()
            except CorruptValue as error:
                assert "nests too deeply" in str(error)
                return False
            return True

        # What is compared is whether there was an answer: comparing values this deep would need a stack itself.
        self.named[f"set and get of {name}"] = values, store
        self.named[f"get of {name}"] = [_core._Stored(value, schema) for value in values[:-2]], find
        self.named[f"memoize of {name}"] = values, self.memoized(annotation)
        self.named[f"memoize_batch of {name}"] = values, self.batched(annotation)

    def memoized(self, annotation: Any) -> Callable[[Any], bool]:
        """A decorated function that gives its argument back."""

        def call(value: Any) -> bool:
            def function() -> Any:
                return value

            function.__annotations__["return"] = annotation
            memoized = self.cache.memoize(operation="single", **SCOPE)(function)
            answers = [memoized(), memoized()]
            memoized.invalidate()
            return None not in answers

        return call

    def batched(self, annotation: Any) -> Callable[[Any], bool]:
        """A decorated batch function that gives the value for each item."""

        def call(value: Any) -> bool:
            def function(items: list[int]) -> Any:
                return [value for _ in items]

            function.__annotations__["return"] = list[annotation]
            batched = self.cache.memoize_batch(operation="batch", over="items", **SCOPE)(function)
            answers = [*batched([1, 2]), *batched([2, 3]), *batched([1, 2])]
            self.cache.clear()
            return None not in answers

        return call


def main() -> None:
    """Runs every walk in a thread with the stack that the command line says."""
    warnings.simplefilter("ignore", UncacheableResult)
    size = int(sys.argv[1])
    walks = Walks().named
    reference = {name: [act(value) for value in values] for name, (values, act) in walks.items() if act is form_key}

    def run() -> None:
        for name, (values, act) in walks.items():
            print(name, end=" ", flush=True)
            answers = [act(value) for value in values]
            for answer, expected in zip(answers, reference.get(name, answers), strict=True):
                assert answer in (None, expected), name
            print(sum(answer is not None and answer is not False for answer in answers), flush=True)

    threading.stack_size(size)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    print("done")


if __name__ == "__main__":
    main()
