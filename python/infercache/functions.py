"""What decorating a function checks and prepares, for `memoize` and `memoize_batch` alike."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from infercache import _core
from infercache.callables import is_async, is_generator
from infercache.durations import Duration, milliseconds, positive_milliseconds
from infercache.errors import InvalidArgument, is_encodable, shown
from infercache.flights import Policy
from infercache.tags import Tags, TagSource
from infercache.values import schema_of

if TYPE_CHECKING:
    from infercache.cache import Cache

__all__ = [
    "UNSET",
    "BatchOptions",
    "Definition",
    "Name",
    "Options",
    "check_encodable",
    "describe",
    "says_why",
    "takes",
]

P = ParamSpec("P")
R = TypeVar("R")
Owner = TypeVar("Owner")
Chosen = TypeVar("Chosen", bound="Options")

#: Text, or a callable of the bound arguments.
Name: TypeAlias = str | Callable[..., str]

#: Marks an option that the caller did not give.
UNSET: Any = type("Unset", (), {"__repr__": lambda self: "<the cache's>"})()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `Cache.memoize` takes, and explains."""

    model: Name
    version: Name
    operation: str | None = None
    ttl: Duration | None = UNSET
    tags: TagSource = ()
    stale_while_revalidate: Duration | None = None
    stale_if_error: Duration | None = None
    ignore: Iterable[str] = ()
    document: Callable[..., object] | None = None
    store_if: Callable[[Any], object] | None = None
    copy: bool = False

    def __post_init__(self) -> None:
        for name in ("ignore", "tags"):  # they may be read once only, while a decorator may decorate many functions
            given = getattr(self, name)
            if isinstance(given, Iterable) and not isinstance(given, str | bytes):
                object.__setattr__(self, name, tuple(given))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions(Options):
    """What `Cache.memoize_batch` takes, and explains."""

    over: str
    max_batch: int | None = None


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
        _check_given(method, kwargs)
        return method(*args, **kwargs)

    return checked


def takes(
    options: Callable[P, Chosen],
) -> Callable[[Callable[[Owner, Chosen], R]], Callable[Concatenate[Owner, P], R]]:
    """A method that is called with the fields of `options` as arguments, and given them as one."""

    def decorate(method: Callable[[Owner, Chosen], R]) -> Callable[Concatenate[Owner, P], R]:
        signature = inspect.signature(options)

        @functools.wraps(method)
        def taking(owner: Owner, /, *args: P.args, **kwargs: P.kwargs) -> R:
            _check_given(method, kwargs)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(
                    f"{method.__qualname__}: {error}; its options: {', '.join(signature.parameters)}"
                ) from None
            return method(owner, options(*args, **kwargs))

        owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        returns = method.__annotations__["return"]
        taking.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[owner, *signature.parameters.values()], return_annotation=returns
        )
        return taking

    return decorate


def _check_given(method: Callable[..., Any], kwargs: Mapping[str, object]) -> None:
    for what in ("model", "version"):
        if what not in kwargs:
            raise TypeError(
                f"{method.__qualname__}: {what} is missing and has no default, because it is part of every key: "
                f"two models, or two versions of one, must never share an answer; give {what}='…'"
            )


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
        raise TypeError(f"operation={shown(operation)}: the operation of {name} is text")
    check_encodable("operation", operation)
    signature = inspect.signature(function)
    ignore = _ignored(options.ignore, signature, name)
    arguments = _core.Arguments(signature, name, ignore)
    life = positive_milliseconds(cache.ttl if options.ttl is UNSET else options.ttl, "ttl")
    revalidate = _window(options.stale_while_revalidate, "stale_while_revalidate")
    rescue = _window(options.stale_if_error, "stale_if_error")
    terms = _core.Terms(life, max(revalidate or 0, rescue or 0), schema_of(function), bool(options.copy))
    for what in ("document", "store_if"):
        if (given := getattr(options, what)) is not None and not callable(given):
            raise TypeError(f"{what}={shown(given)}: give a function")
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
        revalidate=revalidate,
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
    if callable(given):
        return
    if not isinstance(given, str):
        advice = f"give text for {function}, or a function of its arguments that returns it"
        raise TypeError(f"{what}={shown(given)}: {advice}")
    check_encodable(what, given)


def check_encodable(name: str, given: str) -> None:
    """Refuses text that has no UTF-8.

    Raises:
        InvalidArgument: it contains a lone surrogate.
    """
    if not is_encodable(given):
        raise InvalidArgument(f"{name}={shown(given)}: it contains a lone surrogate, which has no UTF-8")


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
        raise InvalidArgument(f"ignore={shown(ignore)}: give a list of parameter names, such as [{shown(ignore)}]")
    if not isinstance(ignore, Iterable):
        raise InvalidArgument(f"ignore={shown(ignore)}: give a list of parameter names")
    ignored = list(ignore)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for parameter in ignored:
        if parameter not in signature.parameters and not takes_any:
            known = ", ".join(signature.parameters) or "none"
            raise InvalidArgument(f"ignore: {name} has no parameter {shown(parameter)}; its parameters: {known}")
    return ignored


def _window(value: Duration | None, name: str) -> int | None:
    return None if value is None else milliseconds(value, name) or None
