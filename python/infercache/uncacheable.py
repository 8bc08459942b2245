"""The warnings of results that cannot be stored, and of entries that cannot be read."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from typing import Any

from infercache.callables import code_of, unwrap_partials
from infercache.errors import UncacheableResult, UnreadableEntry

__all__ = ["callers_level", "warn_uncacheable", "warn_unreadable"]

#: What runs code that nobody in particular called: the line there says nothing.
_RUNNERS = frozenset({"asyncio", "concurrent", "threading"})


def warn_uncacheable(name: str, reason: str, warned: set[str], function: Any = None) -> None:
    """Warns, once a name, that results are not stored and why.

    The warning points at the line that called, or awaited, the cache. Where there is none (a task of its own, a refresh
    in the background) it points at `function`.
    """
    if name in warned:
        return
    warned.add(name)
    text = f"a result of {name} cannot be stored, so every such call runs the model: {reason}"
    level, code = callers_level(), code_of(function)
    # Where warnings are errors, this one must not take the answer's place.
    with suppress(UncacheableResult):
        if level is None and code is not None:
            module = getattr(unwrap_partials(function), "__module__", None)
            warnings.warn_explicit(text, UncacheableResult, code.co_filename, code.co_firstlineno, module)
        else:
            # One more: `warn` counts from the function that calls it.
            warnings.warn(text, UncacheableResult, stacklevel=(level or 1) + 1)


def warn_unreadable(reason: str, warned: set[str]) -> None:
    """Warns, once a cache, that an entry's value cannot be built by who knows its key only, and why."""
    if "Cache.get" in warned:
        return
    warned.add("Cache.get")
    reason = reason.removeprefix("stored value is corrupt: ")
    text = f"Cache.get, lookup and their kind cannot read an entry, so it is a miss for them: {reason}"
    with suppress(UnreadableEntry):
        warnings.warn(text, UnreadableEntry, stacklevel=(callers_level() or 1) + 1)


def callers_level() -> int | None:
    """How many frames above this function's caller the first one outside of this package is; None if nobody called."""
    frame, level = sys._getframe(1), 0
    while (package := _package(frame)) == "infercache":
        if frame.f_back is None:
            return None
        frame, level = frame.f_back, level + 1
    return None if package in _RUNNERS else level


def _package(frame: Any) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
