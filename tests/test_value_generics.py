"""Classes that an annotation names by inheritance, by their arguments, or before they are defined."""

from __future__ import annotations

import collections.abc
import dataclasses
import sys
import textwrap
import types
import typing
from typing import Any, Generic, NamedTuple, NewType, TypedDict, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache import Cache
from infercache.values import schema_of, schema_of_annotation
from same import reason, restored

T = TypeVar("T")
U = TypeVar("U")


@dataclasses.dataclass(frozen=True)
class A:
    x: int


@dataclasses.dataclass(frozen=True)
class B:
    y: str


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@dataclasses.dataclass
class ABox(Box[A]):
    """Names A in its base alone."""


@dataclasses.dataclass
class Deep(ABox):
    """Names nothing itself: its base's base does."""


@dataclasses.dataclass
class Nested(Box[dict[str, list[A | None]]]):
    pass


@dataclasses.dataclass
class Two(Generic[T, U]):
    first: T
    second: U


@dataclasses.dataclass
class Half(Two[A, U]):
    """Fills one parameter and leaves the other."""


@dataclasses.dataclass
class Whole(Half[B]):
    pass


@dataclasses.dataclass
class Text(Box["A"]):
    """A base's argument that is text."""


@dataclasses.dataclass
class Listed(Box[list["A"]]):
    pass


class GenericPair(NamedTuple, Generic[T]):
    left: T
    right: T | None = None


class APair(GenericPair[A]):
    pass


class GenericRow(TypedDict, Generic[T]):
    cell: T


class ARow(GenericRow[A]):
    other: B


@dataclasses.dataclass
class OfRows(Box[ARow]):
    pass


@dataclasses.dataclass
class OfPairs(Box[APair]):
    pass


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same classes all the way down."""
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        return all(alike(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if hasattr(one, "__pydantic_fields__"):
        return alike(one.__dict__, other.__dict__) and bool(one == other)
    return bool(one == other)


def kept(value: Any, annotation: Any) -> bool:
    """Whether a value comes back as it was."""
    return alike(restored(value, schema_of_annotation(annotation)), value)


a = st.builds(A, st.integers())
b = st.builds(B, st.text())
GENERICS = {
    ABox: st.builds(ABox, a),
    Deep: st.builds(Deep, a),
    Nested: st.builds(Nested, st.dictionaries(st.text(), st.lists(a | st.none()))),
    Whole: st.builds(Whole, a, b),
    Half[B]: st.builds(Half, a, b),
    Text: st.builds(Text, a),
    Listed: st.builds(Listed, st.lists(a)),
    APair: st.builds(APair, a, a | st.none()),
    ARow: st.fixed_dictionaries({"cell": a, "other": b}),
    OfRows: st.builds(OfRows, st.fixed_dictionaries({"cell": a, "other": b})),
    OfPairs: st.builds(OfPairs, st.builds(APair, a, a)),
    Box[ABox]: st.builds(Box, st.builds(ABox, a)),
}


@pytest.mark.parametrize(
    "annotation", GENERICS, ids=lambda annotation: getattr(annotation, "__name__", str(annotation))
)
@given(data=st.data())
def test_classes_bound_by_inheritance_come_back_equal_and_of_their_types(annotation: Any, data: Any) -> None:
    value = data.draw(GENERICS[annotation])
    assert kept(value, annotation)
    assert kept([value, {"again": value}], list[annotation])


@given(
    st.recursive(
        st.builds(A, st.integers()),
        lambda inner: st.one_of(st.builds(Box, inner), st.builds(Two, inner, st.builds(B, st.text())), st.lists(inner)),
    )
)
def test_generic_classes_nest_in_one_another(value: Any) -> None:
    assert kept(value, Box[Two[A, B]] | list[A])


def test_a_base_brings_in_its_arguments_and_not_itself() -> None:
    schema = schema_of_annotation(ABox)
    assert schema is not None
    assert set(schema.classes) == {ABox, A}
    assert "Box is a dataclass that the return annotation does not name" in reason(Box(A(1)), schema)


def test_what_a_type_variable_is_bound_to_or_defaults_to_is_found() -> None:
    bound = TypeVar("bound", bound=A)
    assert schema_of_annotation(collections.abc.Sequence[bound]).classes == (A,)  # type: ignore[union-attr, valid-type]
    extensions = pytest.importorskip("typing_extensions", reason="typing_extensions is not installed: defaults")
    default = extensions.TypeVar("default", default=A)
    assert schema_of_annotation(list[default]).classes == (A,)  # type: ignore[union-attr, valid-type]


def test_a_typed_dict_below_another_names_what_the_first_is_given() -> None:
    class More(ARow):
        third: int

    schema = schema_of_annotation(More)
    assert schema is not None
    assert B in schema.classes
    if sys.version_info >= (3, 12):  # before, a TypedDict does not know what it is made of
        assert A in schema.classes


# ---- Pydantic


def test_pydantic_models_bound_by_inheritance_come_back_equal_and_of_their_types() -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed: results that are models")

    class M(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        x: int

    class GM(pydantic.BaseModel, Generic[T]):  # type: ignore[name-defined, misc]
        content: T

    class RM(pydantic.RootModel[list[M]]):  # type: ignore[name-defined, misc]
        pass

    class SubRM(RM):
        pass

    class SubGM(GM[M]):
        pass

    class MoreGM(SubGM):
        more: A

    class Deep(GM[dict[str, GM[M]]]):
        pass

    @dataclasses.dataclass
    class MBox(Box[SubGM]):
        pass

    class Row(GenericRow[M]):
        pass

    def function() -> RM | SubRM | SubGM | MoreGM | Deep | MBox | Row: ...

    schema = schema_of(function)
    for value in (
        RM([M(x=1), M(x=2)]),
        SubRM([M(x=1)]),
        SubGM(content=M(x=3)),
        MoreGM(content=M(x=3), more=A(1)),
        Deep(content={"a": GM[M](content=M(x=1))}),
        MBox(SubGM(content=M(x=4))),
        {"cell": M(x=5)},
    ):
        assert alike(restored(value, schema), value)
    for cls, value in ((RM, RM([M(x=1)])), (SubRM, SubRM([M(x=1)])), (SubGM, SubGM(content=M(x=3)))):
        assert kept(value, cls)


def test_pydantic_dataclasses_bound_by_inheritance_come_back() -> None:
    pydantic = pytest.importorskip("pydantic.dataclasses", reason="pydantic is not installed: its dataclasses")

    @pydantic.dataclass
    class PydanticBox(Generic[T]):
        content: T

    @pydantic.dataclass
    class Filled(PydanticBox[A]):
        pass

    value = Filled(content=A(1))
    assert kept(value, Filled)


def test_a_model_whose_field_is_defined_later_comes_back() -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed: results that are models")

    class Outer(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        inner: Later | None = None  # type: ignore[name-defined]

    class Later(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        x: int

    Outer.model_rebuild()
    assert kept(Outer(inner=Later(x=1)), Outer)


# ---- the syntax of Python 3.12

PEP_695 = """
    from dataclasses import dataclass
    from typing import NamedTuple, TypedDict

    @dataclass
    class A:
        x: int

    @dataclass
    class Box[T]:
        content: T

    @dataclass
    class ABox(Box[A]):
        pass

    @dataclass
    class Bound[T: A]:
        content: T

    class Pair[T](NamedTuple):
        left: T

    class APair(Pair[A]):
        pass

    class Row[T](TypedDict):
        cell: T

    class ARow(Row[A]):
        pass

    type Boxes[T] = dict[str, Box[T]]
    VALUES = [
        (ABox, ABox(A(1))),
        (Bound, Bound(A(1))),
        (Box[list[A]], Box([A(1)])),
        (APair, APair(A(1))),
        (Pair[A], Pair(A(1))),
        (ARow, {"cell": A(1)}),
        (Boxes[A], {"b": Box(A(1))}),
    ]

    def generic[T: A](x: T) -> list[T]:
        return [x]
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs Python 3.12: the syntax of type parameters")
@pytest.mark.parametrize("postponed", ["", "from __future__ import annotations\n"])
def test_classes_with_type_parameters_in_brackets_come_back(postponed: str) -> None:
    module = types.ModuleType(f"infercache_pep695_{len(postponed)}")
    sys.modules[module.__name__] = module
    try:
        exec(postponed + textwrap.dedent(PEP_695), vars(module))  # noqa: S102 - older Pythons cannot read it
        for annotation, value in module.VALUES:
            assert kept(value, annotation), annotation
        assert alike(restored([module.A(1)], schema_of(module.generic)), [module.A(1)])
    finally:
        del sys.modules[module.__name__]


# ---- before they are defined


def test_a_class_defined_later_in_the_enclosing_function_is_found_at_the_first_store() -> None:
    cache = Cache(capacity="1MB")

    @cache.memoize(model="m", version="1", operation="later")
    def make(x: int) -> list[Later]:
        return [Later(x, Last(x))]

    @dataclasses.dataclass
    class Later:
        x: int
        last: Last

    @dataclasses.dataclass
    class Last:
        x: int

    assert make(1) == make(1) == [Later(1, Last(1))]
    assert type(make(1)[0].last) is Last
    assert (cache.stats().hits_l1, cache.stats().uncacheable) == (2, 0)


def annotated(annotation: Any) -> tuple[Any, Any]:
    """An empty module, and the schema of a function in it with this return annotation."""
    module = types.ModuleType("test_value_generics_later")
    function = types.FunctionType(schema_of.__code__, vars(module))
    function.__annotations__ = {"return": annotation}
    return module, schema_of(function)


def test_an_annotation_in_one_text_is_found_when_all_of_it_is_defined() -> None:
    module, schema = annotated("dict[str, First] | list[Second] | Never")
    for name in ("First", "Second"):
        cls = dataclasses.make_dataclass(name, [("x", int)])
        setattr(module, name, cls)
        assert "does not name" in reason(cls(1), schema)  # a text of which a part is unknown names nothing yet
    module.Never = int
    value = [module.First(1), module.Second(2)]
    assert restored(value, schema) == value


def test_parts_of_an_annotation_are_found_as_they_come_to_be_defined() -> None:
    module, schema = annotated(typing.Union["First", "Second", "Never"])  # noqa: F821
    for name in ("First", "Second"):
        cls = dataclasses.make_dataclass(name, [("x", int)])
        assert "does not name" in reason(cls(1), schema)
        setattr(module, name, cls)
        assert restored([cls(1)], schema) == [cls(1)]
    first = module.First
    assert restored([first(1)], schema) == [first(1)]


def test_aliases_and_new_types_that_are_local_are_resolved() -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    alias = list[Local]
    either = Local | None
    new = NewType("new", Local)

    def of_alias() -> alias: ...

    def of_either() -> dict[str, either]: ...

    def of_new() -> new: ...

    for function in (of_alias, of_either, of_new):
        assert schema_of(function).classes == (Local,)  # type: ignore[union-attr]
