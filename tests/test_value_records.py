"""Classes that a return annotation names: found, stored by place and fingerprint, rebuilt without their own code."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import sys
import threading
import types
import typing
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache._core import Schema, _decode_value, _encode_value
from infercache.values import schema_of, schema_of_annotation
from same import reason, restored, same

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "r"
    GREEN = 2
    ALSO_RED = "r"  # noqa: PIE796 - an alias


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Item:
    name: str
    score: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)
    next: Item | None = None
    colour: Colour = Colour.RED


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: int
    y: np.ndarray[Any, Any] | None = None


@dataclasses.dataclass
class Base:
    a: int


@dataclasses.dataclass
class Derived(Base):
    b: int = dataclasses.field(init=False)
    shared: ClassVar[int] = 5
    start: dataclasses.InitVar[int] = 3

    def __post_init__(self, start: int) -> None:
        self.b = start
        self.seen = ["post_init"]


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


class Pair(NamedTuple):
    left: int
    right: Item | None


OldPair = collections.namedtuple("OldPair", "left right")


class Row(TypedDict, total=False):
    item: typing.Required[Item]
    level: Level


Identifier = NewType("Identifier", Item)


def classes(annotation: Any) -> list[type]:
    schema = schema_of_annotation(annotation)
    return [] if schema is None else list(schema.classes)


# ---- what an annotation names


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Colour, [Colour]),
        (list[Level], [Level]),
        (dict[str, Pair | None], [Pair, Item, Colour]),
        (typing.Optional[Frozen], [Frozen]),  # noqa: UP045
        (typing.Union[int, OldPair], [OldPair]),  # noqa: UP007
        (Annotated[list[Frozen], "text", object()], [Frozen]),
        (tuple[Frozen, ...], [Frozen]),
        (collections.abc.Sequence[Level], [Level]),
        (Literal[Colour.RED, "x"], [Colour]),
        (Box[Level], [Box, Level]),
        (Row, [Item, Colour, Level]),
        (list[Row], [Item, Colour, Level]),
        (Identifier, [Item, Colour]),
        (list["int"], []),
        (int, []),
        (None, []),
        (np.ndarray[Any, np.dtype[np.float32]], []),
        (collections.abc.Callable[[Level], Colour], [Level, Colour]),
        (3, []),
        ([Level], [Level]),
    ],
    ids=str,
)
def test_classes_are_found_anywhere_in_an_annotation(annotation: Any, expected: list[type]) -> None:
    assert classes(annotation) == expected


def test_aliases_are_looked_through() -> None:
    bound = TypeVar("bound", bound=Frozen)
    either = TypeVar("either", Level, Colour)
    assert classes(list[bound]) == [Frozen]  # type: ignore[valid-type]
    assert classes(list[either]) == [Level, Colour]  # type: ignore[valid-type]
    if sys.version_info >= (3, 12):
        alias = typing.TypeAliasType("alias", list[Level])
        assert classes(dict[str, alias]) == [Level]  # type: ignore[valid-type]


def test_annotations_that_are_text_are_resolved_where_the_function_stands() -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    def function() -> list[Local]: ...

    def of_a_module() -> dict[str, Pair]: ...

    assert schema_of(function).classes == (Local,)  # type: ignore[union-attr]
    assert schema_of(of_a_module).classes == (Pair, Item, Colour)  # type: ignore[union-attr]
    assert same(restored([Local(1)], schema_of(function)), [Local(1)])


def test_methods_partial_and_wrapped_functions_have_annotations_too() -> None:
    class Model:
        def method(self) -> Level: ...

        async def later(self) -> Level: ...

    @functools.wraps(Model.method)
    def wrapped(*args: Any) -> Any: ...

    for function in (Model.method, Model().method, Model.later, wrapped):
        assert schema_of(function).classes == (Level,)  # type: ignore[union-attr]
    assert schema_of(len) is None
    assert schema_of(lambda: 0) is None


def test_what_is_defined_further_down_is_found_when_it_is_first_met() -> None:
    module = types.ModuleType("test_value_records_later")

    def template() -> list[Later]: ...  # type: ignore[name-defined]  # noqa: F821

    schema = schema_of(types.FunctionType(template.__code__, module.__dict__))
    assert schema is None
    function = types.FunctionType(template.__code__, module.__dict__)
    function.__annotations__ = dict(template.__annotations__)
    schema = schema_of(function)
    assert schema is not None
    assert schema.classes == ()
    later = dataclasses.make_dataclass("Later", [("x", int)])
    assert "dataclass that the return annotation does not name" in reason([later(1)], schema)
    module.Later = later  # type: ignore[attr-defined]
    assert restored([later(1)], schema) == [later(1)]
    assert schema.classes == (later,)
    fresh = Schema([], schema_of_rows(later))
    assert _decode_value(*_encode_value([later(2)], schema), fresh) == [later(2)]


def schema_of_rows(cls: type) -> Any:
    from infercache.values import _row

    return lambda: [_row(cls)]


def test_an_annotation_that_cannot_be_resolved_is_no_error() -> None:
    def function() -> Nowhere | Level: ...  # type: ignore[name-defined]  # noqa: F821

    def broken() -> 1 / 0: ...  # type: ignore[valid-type]

    @dataclasses.dataclass
    class Half:
        good: Level
        bad: Nowhere  # type: ignore[name-defined]  # noqa: F821

    def half() -> Half: ...

    assert schema_of(function).classes == ()  # type: ignore[union-attr]
    assert "cannot be stored" in reason(object(), schema_of(function))
    assert schema_of(broken) is not None
    assert set(schema_of(half).classes) == {Half, Level}  # type: ignore[union-attr]
    value = Half(Level.LOW, 3)
    for _ in range(20):
        assert restored(value, schema_of(half)) == value


def test_annotations_that_are_evaluated_late_are_asked_for_again() -> None:
    class Late:
        ready = False

        @property
        def __annotations__(self) -> dict[str, Any]:  # as Python 3.14 has it, before the names are bound
            if not self.ready:
                raise NameError("Level")
            return {"return": Level}

    late = Late()
    schema = schema_of(late)  # type: ignore[arg-type]
    assert schema is not None
    assert schema.classes == ()
    late.ready = True
    assert restored(Level.LOW, schema) is Level.LOW


def test_whatever_an_annotation_does_decorating_goes_on() -> None:
    class Hostile:
        def __hash__(self) -> int:
            raise RuntimeError("no")

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no")

    assert classes(Hostile()) == []
    assert classes(Annotated[Level, np.arange(3), np.arange(3)]) == [Level]
    nested: Any = Level
    for _ in range(5000):
        nested = [nested]
    assert classes(nested) == []


def test_a_class_that_is_not_named_is_refused_with_advice() -> None:
    schema = schema_of_annotation(Item)
    for value, kind in [(Frozen(1), "dataclass"), (Pair(1, None), "named tuple"), (Level.LOW, "Enum")]:
        assert f"is a {kind} that the return annotation does not name" in reason({"a": [value]}, schema)
    assert "result.tags[0]: " in reason(Item("a", tags=[Frozen(1)]), schema)  # type: ignore[list-item]


def test_an_instance_of_a_subclass_is_refused() -> None:
    class More(Item):
        pass

    class MorePair(Pair):
        pass

    assert "does not name" in reason(More("a"), schema_of_annotation(Item))
    assert "does not name" in reason(MorePair(1, None), schema_of_annotation(Pair))


# ---- what comes back

items = st.recursive(
    st.builds(Item, st.text(), st.floats(allow_nan=False), st.lists(st.text()), st.none(), st.sampled_from(Colour)),
    lambda inner: st.builds(Item, st.text(), st.floats(allow_nan=False), st.lists(st.text()), inner),
    max_leaves=3,
)
records = st.one_of(
    items,
    st.builds(Frozen, st.integers()),
    st.builds(Pair, st.integers(), items | st.none()),
    st.builds(OldPair, st.integers(), st.text()),
    st.sampled_from([*Colour, *Level]),
    st.sampled_from([Access.READ, Access.READ | Access.WRITE, Access(0)]),
    st.builds(Box, st.integers()),
)
RECORDS = schema_of_annotation(Item | Frozen | Pair | OldPair | Colour | Level | Access | Box)


@given(st.recursive(records, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6))
def test_records_come_back_equal_and_of_their_class(value: Any) -> None:
    back = restored(value, RECORDS)
    assert back == value
    assert repr(back) == repr(value)


def test_dataclasses_are_rebuilt_without_their_code() -> None:
    schema = schema_of_annotation(Derived)
    value = Derived(1)
    value.b = 7
    value.seen.append("changed")
    back = restored(value, schema)
    assert type(back) is Derived
    assert (back.a, back.b, back.seen) == (1, 7, ["post_init", "changed"])
    assert vars(back) == vars(value)


def test_a_field_without_a_value_stays_without_one() -> None:
    value = Derived(1)
    del value.b
    back = restored(value, schema_of_annotation(Derived))
    assert not hasattr(back, "b")
    assert back.a == 1


def test_frozen_slotted_dataclasses_come_back_with_their_arrays_in_place() -> None:
    schema = schema_of_annotation(Frozen)
    back = restored(Frozen(1, np.arange(3)), schema)
    assert back.x == 1
    assert np.array_equal(back.y, np.arange(3))
    assert not back.y.flags.writeable
    assert restored(Frozen(1, np.arange(3)), schema, copy=True).y.flags.writeable
    assert {restored(Frozen(2), schema): 1} == {Frozen(2): 1}
    assert restored({Frozen(2): Frozen(3)}, schema) == {Frozen(2): Frozen(3)}


def test_slots_that_are_no_fields_come_back() -> None:
    class Slotted:
        __slots__ = ("__private", "extra")

        def set(self) -> None:
            self.extra, self.__private = 1, 2

        def get(self) -> Any:
            return (self.extra, self.__private)

    @dataclasses.dataclass(slots=True)
    class Holder(Slotted):
        x: int

    value = Holder(1)
    schema = schema_of_annotation(Holder)
    assert restored(value, schema) == value
    assert not hasattr(restored(value, schema), "extra")
    value.set()
    assert restored(value, schema).get() == (1, 2)


def test_attributes_past_getattr_and_setattr() -> None:
    @dataclasses.dataclass
    class Guarded:
        x: int

        def __getattribute__(self, name: str) -> Any:
            value = object.__getattribute__(self, name)
            return value * 2 if name == "x" else value

        def __setattr__(self, name: str, value: Any) -> None:
            object.__setattr__(self, name, value + 1)

    value = Guarded(1)
    back = restored(value, schema_of_annotation(Guarded))
    assert object.__getattribute__(back, "x") == 2


def test_members_of_an_enum_are_the_members_themselves() -> None:
    schema = schema_of_annotation(Colour | Level | Access)
    for member in [*Colour, Colour.ALSO_RED, *Level, Access.READ | Access.WRITE, Access(0)]:
        assert restored([member], schema)[0] is member


def test_a_named_tuple_with_attributes_of_its_own_keeps_them() -> None:
    class Named(OldPair):  # type: ignore[misc, valid-type]
        pass

    value = Named(1, 2)
    value.note = "x"
    back = restored(value, schema_of_annotation(Named))
    assert (type(back), back, back.note) == (Named, (1, 2), "x")


def test_a_typed_dict_is_a_dict_whose_values_are_found() -> None:
    value: Row = {"item": Item("a"), "level": Level.HIGH}
    assert restored(value, schema_of_annotation(Row)) == value
    assert restored([value], schema_of_annotation(list[Row])) == [value]


def test_a_record_that_contains_itself_is_refused() -> None:
    value = Item("a")
    value.next = value
    assert reason(value, schema_of_annotation(Item)) == "result.next: contains itself"


def test_the_deepest_record_fits_the_small_stack_of_a_thread() -> None:
    def chain(depth: int) -> Item | None:
        item = None
        for _ in range(depth):
            item = Item("a", next=item, tags=None)  # type: ignore[arg-type]
        return item

    schema = schema_of_annotation(Item)
    found: list[Any] = []
    before = threading.stack_size(512 * 1024)  # what threads have on macOS
    try:
        # 255 records, and the member of an Enum in the last of them.
        thread = threading.Thread(target=lambda: found.append(restored(chain(255), schema)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    depth = 0
    item = found[0]
    while item is not None:
        item, depth = item.next, depth + 1
    assert depth == 255
    assert "nests deeper than 256 levels" in reason(chain(256), schema)


def test_a_class_with_memory_of_its_own_is_not_stored() -> None:
    @dataclasses.dataclass
    class Table(dict):  # type: ignore[type-arg]
        x: int

    @dataclasses.dataclass
    class Problem(Exception):
        x: int

    for cls in (Table, Problem):
        assert classes(cls) == []
        assert "does not name" in reason(cls(1), schema_of_annotation(cls | Level))
