"""What a function's return annotation says about stored results.

A result is stored by exact type. Instances of classes of the caller's own (dataclasses, Pydantic models, named tuples,
members of an Enum) can be stored where the return annotation names their class, anywhere in it: ``list[Item]``,
``dict[str, Item] | None``, ``Annotated[Item, …]``, the annotations of a dataclass's own fields and of a TypedDict's
keys. The annotation is compiled once, when decorating, to the list of those classes. A stored record says which place
of the list it is of, and the fingerprint of the fields that the class had; a name read from stored bytes leads to no
class, ever.

An annotation that cannot be resolved is no error: it names no classes (and is tried again when such a value first
comes, since it may name what is defined further down).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import hashlib
import inspect
import re
import sys
import typing
from typing import Any

from infercache._core import Schema, register_value

__all__ = ["Schema", "register_value", "schema_of", "schema_of_annotation"]

#: One class of a schema: the class, how its instances are taken apart, the names of its fields, their fingerprint.
Row = tuple[type, str, tuple[str, ...], int]

# A class that is a tuple, a dict, an exception … in C has memory that object.__new__ does not set up.
_HEAP_TYPE = 1 << 9


def schema_of(function: collections.abc.Callable[..., Any]) -> Schema | None:
    """The classes that the return annotation of ``function`` names; None if it surely names none.

    Never raises for an annotation: one that cannot be resolved is tried again when a value of an unknown class is met.
    """
    names_now = _scope(function)

    def search() -> _Search:
        found = _Search(*names_now())
        annotations, failed = _attempt(lambda: getattr(function, "__annotations__", None) or {})
        found.unresolved |= failed  # where annotations are evaluated when they are asked for
        if not failed and "return" in annotations:
            found.look(annotations["return"])
        return found

    return _schema(search)


def schema_of_annotation(annotation: Any) -> Schema | None:
    """The classes that an annotation names, given as an object; None if it names none."""

    def search() -> _Search:
        found = _Search({}, {})
        found.look(annotation)
        return found

    return _schema(search)


def _schema(search: collections.abc.Callable[[], _Search]) -> Schema | None:
    found = search()
    if not found.unresolved:
        return Schema(found.rows) if found.rows else None
    # The schema asks again as long as that gives it more classes.
    return Schema(found.rows, lambda: search().rows)


#: The names that an annotation may use: those of a module, and those of the functions around.
Names = tuple[dict[str, Any], dict[str, Any]]


def _scope(function: collections.abc.Callable[..., Any]) -> collections.abc.Callable[[], Names]:
    """What gives the names that the annotations of a function may use now: more of them may be bound later."""
    plain = inspect.unwrap(function)
    plain = getattr(plain, "__func__", plain)
    scope = getattr(plain, "__globals__", None)
    if scope is None:
        module = sys.modules.get(getattr(plain, "__module__", None) or "")
        scope = vars(module) if module is not None else {}
    local: dict[str, Any] = {}
    # What is local to the function in which the decorator stands: the first frame outside this package. The frame is
    # not kept, since it holds everything else too: what is bound there later is found in the closure or not at all.
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "infercache":
        frame = frame.f_back
    if frame is not None and frame.f_globals is scope and frame.f_locals is not frame.f_globals:
        local.update((name, value) for name, value in frame.f_locals.items() if _names_types(value))
    local.update(_type_parameters(plain))
    free = getattr(getattr(plain, "__code__", None), "co_freevars", ())
    cells = getattr(plain, "__closure__", None) or ()

    def names_now() -> Names:
        names = dict(local)
        for name, cell in zip(free, cells, strict=False):
            try:
                names[name] = cell.cell_contents
            except ValueError:  # not bound yet
                continue
        return scope, names

    return names_now


def _names_types(value: Any) -> bool:
    """Whether an annotation may mean this object by a name: a class, an alias, a TypeVar, a NewType."""
    return isinstance(value, type) or type(value).__module__ in ("typing", "types", "typing_extensions")


def _type_parameters(owner: Any) -> dict[str, Any]:
    """The type parameters in the brackets of a `class C[T]` or `def f[T]`, by name."""
    parameters = getattr(owner, "__type_params__", ())
    return {parameter.__name__: parameter for parameter in parameters} if isinstance(parameters, tuple) else {}


class _Search:
    """Walks an annotation, depth first and in order, and lists the classes whose instances can be stored."""

    def __init__(self, scope: dict[str, Any], names: dict[str, Any]) -> None:
        self.rows: list[Row] = []
        self.unresolved = False
        self._scope = scope
        self._names = names
        self._seen: set[Any] = set()

    def look(self, annotation: Any) -> None:
        """Adds the classes that an annotation names. What it does when it is looked at is the caller's code."""
        _, failed = _attempt(functools.partial(self.visit, annotation))
        self.unresolved |= failed

    def visit(self, annotation: Any) -> None:
        """Adds the classes that an annotation names, directly or in its parts."""
        if isinstance(annotation, str):
            annotation = self._evaluate(annotation)
        elif isinstance(annotation, typing.ForwardRef):
            annotation = self._evaluate(annotation.__forward_arg__)
        elif isinstance(annotation, (list, tuple)):  # the arguments of a Callable
            for part in annotation:
                self.visit(part)
            return
        try:
            if annotation in self._seen:
                return
            self._seen.add(annotation)
        except TypeError:  # unhashable, so no annotation that names a class: Literal and Annotated may hold anything
            pass
        if isinstance(annotation, type):
            self._visit_class(annotation)
        else:
            self._visit_parts(annotation)

    def _visit_parts(self, annotation: Any) -> None:
        origin = typing.get_origin(annotation)
        if origin is typing.Literal:
            for value in typing.get_args(annotation):
                if isinstance(value, enum.Enum):
                    self.visit(type(value))
            return
        if origin is typing.Annotated:
            self.visit(typing.get_args(annotation)[0])
            return
        if origin is not None:
            self.visit(origin)
        for part in typing.get_args(annotation):
            self.visit(part)
        # NewType, `type X = …`, TypeVar
        for name in ("__supertype__", "__value__", "__bound__", "__default__"):
            inner, failed = _attempt(functools.partial(getattr, annotation, name, None))
            self.unresolved |= failed
            if inner is not None:
                self.visit(inner)
        constraints = getattr(annotation, "__constraints__", ())
        if isinstance(constraints, tuple):
            for part in constraints:
                self.visit(part)

    def _visit_class(self, cls: type) -> None:
        row = _row(cls)
        if row is not None:
            self.rows.append(row)
        if (row is not None and row[1] not in ("enum", "flag")) or typing.is_typeddict(cls):
            self._visit_fields(cls)
        for base in cls.__mro__:
            self._visit_arguments(base)

    def _visit_fields(self, cls: type) -> None:
        """Visits the annotations of a class and its bases, resolved where they can be."""
        # Pydantic resolves its own, maybe long after the class was made.
        for field in getattr(cls, "__pydantic_fields__", {}).values():
            self._visit_within(cls, getattr(field, "annotation", None))
        found, failed = _attempt(lambda: typing.get_type_hints(cls, localns=self._names or None, include_extras=True))
        if not failed:
            for hint in found.values():
                self.visit(hint)
            return
        # One that cannot be resolved spoils them all, so each by itself.
        for base in cls.__mro__:
            for hint in _annotations(base).values():
                self._visit_within(base, hint)

    def _visit_arguments(self, base: type) -> None:
        """Visits what a class gives its generic bases: Item in `class Items(Box[Item])`."""
        for original in base.__dict__.get("__orig_bases__", ()):
            for part in typing.get_args(original):
                self._visit_within(base, part)
            # A TypedDict is no subclass of the TypedDicts in its bases.
            origin = typing.get_origin(original) or original
            if typing.is_typeddict(origin):
                self.visit(origin)
        # Model[Item] of Pydantic is a class of its own, and has what it was made of here.
        metadata = base.__dict__.get("__pydantic_generic_metadata__")
        if isinstance(metadata, dict):
            for part in metadata.get("args") or ():
                self._visit_within(base, part)

    def _visit_within(self, cls: type, annotation: Any) -> None:
        """Visits an annotation that stands in the body or the bases of a class: names are those of its module."""
        scope, names = self._scope, self._names
        self._scope = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
        self._names = {**names, cls.__name__: cls, **_type_parameters(cls)}
        try:
            self.visit(annotation)
        finally:
            self._scope, self._names = scope, names

    def _evaluate(self, text: str) -> Any:
        """The annotation that a text stands for; None, and a note that it is not resolved, if it cannot be told."""

        def holder() -> None: ...

        holder.__annotations__ = {"return": text}
        hints, failed = _attempt(
            lambda: typing.get_type_hints(holder, globalns=self._scope, localns=self._names, include_extras=True)
        )
        self.unresolved |= failed
        return None if failed else hints["return"]


def _row(cls: type) -> Row | None:
    """How instances of a class are stored; None for a class that is none of those."""
    if issubclass(cls, enum.Enum):
        if not cls.__members__ and not issubclass(cls, enum.Flag):
            return None
        form = "flag" if issubclass(cls, enum.Flag) else "enum"
        return cls, form, (), _fingerprint(cls, form, [(name, _plain(m.value)) for name, m in cls.__members__.items()])
    if _is_model(cls):
        declared = dict(getattr(cls, "__pydantic_fields__", {}))
        names = tuple(declared)
        state = [(name, str(getattr(field, "annotation", ""))) for name, field in declared.items()]
        private = [(name, "private") for name in getattr(cls, "__private_attributes__", {})]
        return (cls, "model", names, _fingerprint(cls, "model", state + private)) if _is_plain(cls, object) else None
    if dataclasses.is_dataclass(cls):
        state = [(field.name, str(field.type)) for field in dataclasses.fields(cls)]
        names = tuple(name for name, _ in state)
        names += tuple(slot for slot in _slots(cls) if slot not in names)
        return (cls, "dataclass", names, _fingerprint(cls, "dataclass", state)) if _is_plain(cls, object) else None
    fields = getattr(cls, "_fields", None)
    if issubclass(cls, tuple) and isinstance(fields, tuple):
        names = tuple(map(str, fields))
        annotations = {name: hint for base in reversed(cls.__mro__) for name, hint in _annotations(base).items()}
        state = [(name, str(annotations.get(name, ""))) for name in names]
        return (cls, "namedtuple", names, _fingerprint(cls, "namedtuple", state)) if _is_plain(cls, tuple) else None
    return None


def _attempt(act: collections.abc.Callable[[], Any]) -> tuple[Any, bool]:
    """What looking at an annotation gives, and whether it failed: annotations are the caller's code and may raise."""
    try:
        return act(), False
    except Exception:  # noqa: BLE001 - whatever it raises, decorating goes on
        return None, True


def _annotations(cls: type) -> dict[str, Any]:
    """The annotations of a class's own body, as they stand there."""
    annotations, failed = _attempt(lambda: inspect.get_annotations(cls))
    return {} if failed else annotations


def _is_model(cls: type) -> bool:
    """Whether a class is a Pydantic (version 2) model, without importing Pydantic."""
    pydantic = sys.modules.get("pydantic")
    base = getattr(pydantic, "BaseModel", None)
    return isinstance(base, type) and cls is not base and issubclass(cls, base) and hasattr(cls, "__pydantic_fields__")


def _is_plain(cls: type, base: type) -> bool:
    """Whether ``base.__new__(cls)`` sets up all of an instance: no other base of it is written in C."""
    foreign = (b for b in cls.__mro__ if not b.__flags__ & _HEAP_TYPE and b not in (object, base))
    return not any(b.__module__ != "typing" for b in foreign)


def _slots(cls: type) -> list[str]:
    """Names of the slots of a class and its bases, as its instances know them."""
    names = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            if slot in ("__dict__", "__weakref__"):
                continue
            private = slot.startswith("__") and not slot.endswith("__")
            names.append(f"_{base.__name__.lstrip('_')}{slot}" if private else slot)
    return names


def _plain(value: Any) -> str:
    """A value as text that is the same in every process."""
    plain = (bool, int, float, complex, str, bytes, type(None))
    if type(value) in plain:
        return repr(value)
    if type(value) is tuple:
        return "(" + ",".join(_plain(part) for part in value) + ")"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _fingerprint(cls: type, form: str, state: list[tuple[str, str]]) -> int:
    """64 bits of what a class looked like: form, name, and the names and annotations of its fields or members."""
    parts = [form, cls.__module__, cls.__qualname__]
    for name, hint in state:
        parts += [name, re.sub(r" at 0x[0-9A-Fa-f]+", "", hint)]
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
