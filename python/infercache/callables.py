"""What is below a callable: the function that runs in the end, and whether its result must be awaited."""

from __future__ import annotations

import functools
import inspect
from types import CodeType
from typing import Any

__all__ = ["code_of", "is_async", "is_generator", "runs_code", "unwrap_partials"]


def unwrap_partials(function: Any) -> Any:
    """What the partials around a function call in the end."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def runs_code(function: Any) -> Any:
    """Whose code a call runs: the function below partials; of an object, its class's `__call__`."""
    function = unwrap_partials(function)
    return function if hasattr(function, "__code__") else type(function).__call__


def code_of(function: Any) -> CodeType | None:
    """The code that a call runs; None if it is not written in Python."""
    code = getattr(runs_code(function), "__code__", None)
    return code if isinstance(code, CodeType) else None


def is_async(function: Any) -> bool:
    """Whether a call gives a coroutine; of an object, whether calling it does."""
    function = unwrap_partials(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def is_generator(function: Any) -> bool:
    """Whether a call gives a generator, asynchronous or not; of an object, whether calling it does."""
    function = unwrap_partials(function)
    return any(
        inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called)
        for called in (function, type(function).__call__)
    )
