"""Pydantic models as results: rebuilt from their state, without validation."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

import pytest

from infercache._core import _decode_value, _encode_value
from infercache.errors import CorruptValue
from infercache.values import schema_of, schema_of_annotation
from same import reason, restored

T = TypeVar("T")


def test_pydantic_models_come_back_by_state_without_validation() -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed: results that are models")

    class Inner(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        x: int

    class Outer(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        model_config = pydantic.ConfigDict(extra="allow", frozen=True)
        name: str
        inner: Inner | None = None
        many: tuple[Inner, ...] = ()
        hidden: int = pydantic.Field(default=1, exclude=True)
        _private: list[int] = pydantic.PrivateAttr(default_factory=list)
        checks: ClassVar[int] = 0

        @pydantic.field_validator("name")
        @classmethod
        def count(cls, name: str) -> str:
            Outer.checks += 1
            return name

    class Root(pydantic.RootModel[list[int]]):  # type: ignore[name-defined, misc]
        pass

    def function() -> Outer | Root: ...

    schema = schema_of(function)
    assert schema is not None
    assert set(schema.classes) == {Outer, Inner, Root}
    value = Outer(name="a", inner=Inner(x=1), many=(Inner(x=2),), extra={"free": 1})
    value._private.append(3)
    checks = Outer.checks
    back = restored([value], schema)[0]
    assert Outer.checks == checks
    assert back == value
    assert type(back.inner) is Inner
    assert (back.model_fields_set, back.model_extra, back._private) == (value.model_fields_set, value.model_extra, [3])
    assert back.model_dump() == value.model_dump()
    assert back.hidden == 1
    assert restored(Root([1, 2]), schema) == Root([1, 2])
    odd = Outer.model_construct(name=5)
    assert restored(odd, schema).name == 5
    assert "Pydantic model that the return annotation does not name" in reason(value)


def test_generic_pydantic_models_and_dataclasses_come_back() -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed: results that are models")
    pytest.importorskip("pydantic.dataclasses", reason="pydantic is not installed: results that are models")

    class Envelope(pydantic.BaseModel, Generic[T]):  # type: ignore[name-defined, misc]
        content: T

    class Content(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        x: int

    @pydantic.dataclasses.dataclass
    class Checked:
        x: int

    schema = schema_of_annotation(Envelope[Content] | Checked)
    assert schema is not None
    assert Content in schema.classes
    value = Envelope[Content](content=Content(x=1))
    assert restored(value, schema) == value
    assert type(restored(value, schema).content) is Content
    assert restored(Checked(x=1), schema) == Checked(x=1)


def test_a_pydantic_model_whose_fields_changed_is_corrupt() -> None:
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed: results that are models")
    one = pydantic.create_model("Made", a=(int, ...), __module__=__name__)
    two = pydantic.create_model("Made", a=(str, ...), __module__=__name__)
    stored = _encode_value(one(a=1), schema_of_annotation(one))
    assert _decode_value(*stored, schema_of_annotation(one)) == one(a=1)
    with pytest.raises(CorruptValue):
        _decode_value(*stored, schema_of_annotation(two))
