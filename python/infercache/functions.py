"""What decorating a function checks and prepares, for `memoize` and `memoize_batch` alike."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from infercache import _core
from infercache.callables import is_async, is_generator
from infercache.durations import Duration, milliseconds, positive_milliseconds
from infercache.errors import InvalidArgument
from infercache.flights import Policy
from infercache.tags import Tags, TagSource
from infercache.values import schema_of

if TYPE_CHECKING:
    from infercache.cache import Cache

__all__ = ["UNSET", "Definition", "Name", "Options", "describe", "says_why"]

P = ParamSpec("P")
R = TypeVar("R")

#: Text, or a callable of the bound arguments.
Name: TypeAlias = str | Callable[..., str]

#: Marks an option that the caller did not give.
UNSET: Any = type("Unset", (), {"__repr__": lambda self: "<the cache's>"})()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a decorator was given; `Cache.memoize` explains each."""

    model: Name
    version: Name
    operation: str | None
    ttl: Duration | None
    tags: TagSource
    stale_while_revalidate: Duration | None
    stale_if_error: Duration | None
    ignore: Iterable[str]
    document: Callable[..., object] | None
    store_if: Callable[[Any], object] | None
    copy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition(Policy):
    """A function, how it is called, and how its results are kept.

    Attributes:
        function: below `classmethod` or `staticmethod`.
        asynchronous: it is an `async def`.
        renamable: its model or version is asked for at each call.
        signature: its own.
        arguments: the same, compiled.
        parts: what the native part of a decorated function is made of.
    """

    function: Callable[..., Any]
    asynchronous: bool
    renamable: bool
    signature: inspect.Signature
    arguments: _core.Arguments
    parts: dict[str, Any]


def says_why(method: Callable[P, R]) -> Callable[P, R]:
    """A method whose `model` and `version` have no default, and that says why when one is left out."""

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for what in ("model", "version"):
            if what not in kwargs:
                raise TypeError(
                    f"{method.__qualname__}: {what} is missing and has no default, because it is part of every key: "
                    f"two models, or two versions of one, must never share an answer; give {what}='…'"
                )
        return method(*args, **kwargs)

    return checked


def describe(cache: Cache, decorated: Any, options: Options) -> Definition:
    """Checks a function and its options.

    Raises:
        TypeError: it is no function, a generator function, or one that must name its operation and does not; model or
            version is missing.
        InvalidArgument: an option's value is not acceptable.
    """
    binds, function = _unwrap(decorated)
    name = _check_function(function)
    for what in ("model", "version"):
        _check_name(what, getattr(options, what), name)
    operation = options.operation if options.operation is not None else _operation(function, name, cache.l2 is not None)
    if not isinstance(operation, str):
        raise TypeError(f"operation={operation!r}: the operation of {name} is text")
    signature = inspect.signature(function)
    ignore = _ignored(options.ignore, signature, name)
    arguments = _core.Arguments(signature, name, ignore)
    life = positive_milliseconds(cache.ttl if options.ttl is UNSET else options.ttl, "ttl")
    revalidate = _window(options.stale_while_revalidate, "stale_while_revalidate")
    rescue = _window(options.stale_if_error, "stale_if_error")
    terms = _core.Terms(life, max(revalidate or 0, rescue or 0), schema_of(function), bool(options.copy))
    for what in ("document", "store_if"):
        if (given := getattr(options, what)) is not None and not callable(given):
            raise TypeError(f"{what}={given!r}: give a function")
    return Definition(
        cache=cache,
        function=function,
        asynchronous=is_async(function),
        renamable=callable(options.model) or callable(options.version),
        name=name,
        signature=signature,
        arguments=arguments,
        tags=Tags(options.tags, list(signature.parameters), name),
        terms=terms,
        store_if=options.store_if,
        stale_if_error=rescue,
        parts={
            "store": cache,
            "arguments": arguments,
            "model": options.model,
            "version": options.version,
            "operation": operation,
            "document": options.document,
            "terms": terms,
            "revalidate": revalidate,
            "binds": binds,
        },
    )


def _unwrap(decorated: Any) -> tuple[int, Callable[..., Any]]:
    """The function below `classmethod` or `staticmethod`, and what attribute access binds it to."""
    if isinstance(decorated, classmethod):
        return _core.BINDS_CLASS, decorated.__func__
    if isinstance(decorated, staticmethod):
        return _core.BINDS_NOTHING, decorated.__func__
    return _core.BINDS_INSTANCE, decorated


def _check_function(function: Any) -> str:
    if not callable(function):
        raise TypeError(f"{function!r} cannot be memoized: it is no function")
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    if inspect.isclass(function):
        raise TypeError(f"{name} cannot be memoized: it is a class; decorate a function that makes its instances")
    if is_generator(function):
        raise TypeError(
            f"{name} cannot be memoized: it is a generator function, whose result is read once; return a list"
        )
    return name


def _check_name(what: str, given: Any, function: str) -> None:
    if not callable(given) and not isinstance(given, str):
        raise TypeError(f"{what}={given!r}: give text for {function}, or a function of its arguments that returns it")


def _operation(function: Any, name: str, shared: bool) -> str:
    """Module and qualified name, where those tell this function from every other."""
    advice = f"give operation='…', a name that tells {name} from every other function of this model"
    qualified = getattr(function, "__qualname__", None)
    if not isinstance(qualified, str):
        raise TypeError(f"{name} has no name of its own: {advice}")
    if "<lambda>" in qualified:
        raise TypeError(f"lambdas share one name: {advice}")
    # Methods that call super() have a cell for their class, which their qualified name tells already.
    cells = [cell for cell in getattr(getattr(function, "__code__", None), "co_freevars", ()) if cell != "__class__"]
    if cells:
        raise TypeError(f"{name} closes over {', '.join(cells)}, which is part of no key: {advice}")
    if shared and function.__module__ == "__main__":
        raise TypeError(f"every program has a module __main__, and they share this cache's L2: {advice}")
    return f"{function.__module__}.{qualified}"


def _ignored(ignore: Iterable[str], signature: inspect.Signature, name: str) -> list[str]:
    if isinstance(ignore, str):
        raise InvalidArgument(f"ignore={ignore!r}: give a list of parameter names, such as [{ignore!r}]")
    ignored = list(ignore)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for parameter in ignored:
        if parameter not in signature.parameters and not takes_any:
            known = ", ".join(signature.parameters) or "none"
            raise InvalidArgument(f"ignore: {name} has no parameter {parameter!r}; its parameters: {known}")
    return ignored


def _window(value: Duration | None, name: str) -> int | None:
    return milliseconds(value, name) or None if value is not None else None
