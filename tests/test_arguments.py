"""The document of a call's arguments: parameter name to value, defaults applied; wrong calls as Python tells them."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from infercache import UnsupportedInput
from infercache._core import Arguments


def arguments(function: Callable[..., Any], *ignore: str) -> Arguments:
    """The compiled signature of a function."""
    return Arguments(inspect.signature(function), function.__qualname__, list(ignore))


def plain(a: Any, b: Any = 2) -> None: ...


def every(p: Any, /, q: Any, r: Any = 3, *rest: Any, s: Any, t: Any = "t", **named: Any) -> None: ...


def keyword_only(*, first: Any, second: Any = None) -> None: ...


def nothing() -> None: ...


def everything_else(*rest: Any, **named: Any) -> None: ...


def position_and_names(a: Any, /, **named: Any) -> None: ...


def odd_names(é: Any = 1, Ω: Any = 2, a: Any = 3, A: Any = 4, _x: Any = 5, 𐐷: Any = 6, ﬀ: Any = 7) -> None: ...  # noqa: N803, PLC2401


FUNCTIONS = (plain, every, keyword_only, nothing, everything_else, position_and_names, odd_names)


def slow(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The document by way of `inspect`."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return reference.document(dict(bound.arguments))


NAMES = st.sampled_from(["a", "b", "p", "q", "r", "s", "t", "first", "second", "other", "named", "é", "$x"])


@given(
    st.sampled_from(FUNCTIONS), st.lists(st.integers(), max_size=6), st.dictionaries(NAMES, st.integers(), max_size=5)
)
def test_any_call_binds_as_python_binds_it(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
) -> None:
    compiled = arguments(function)
    try:
        function(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(TypeError) as caught:
            compiled.document(*args, **kwargs)
        with pytest.raises(TypeError):
            compiled.bind(*args, **kwargs)
        assert str(caught.value).startswith(f"{function.__qualname__}()")
        # Word for word where only one thing is wrong with the call.
        if str(caught.value) != str(error):
            assert len(args) + len(kwargs) > 1
        return
    assert compiled.document(*args, **kwargs) == slow(function, tuple(args), kwargs)
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    assert compiled.bind(*args, **kwargs) == dict(bound.arguments)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (plain, (), {}),
        (plain, (1, 2, 3), {}),
        (plain, (1,), {"a": 1}),
        (plain, (1,), {"x": 1}),
        (nothing, (1,), {}),
        (keyword_only, (1,), {"first": 1}),
        (keyword_only, (), {}),
        (every, (), {"s": 1}),
        (every, (1, 2), {}),
        (position_and_names, (), {"a": 1}),
        (lambda a, b, c: None, (1,), {}),
        (lambda a, b, c: None, (), {}),
        (lambda a, /: None, (), {"a": 1}),
        (lambda a, b, /: None, (1,), {"b": 1}),
        (lambda *, x, y, z: None, (), {}),
    ],
)
def test_a_wrong_call_is_told_in_pythons_words(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError) as expected:
        function(*args, **kwargs)
    with pytest.raises(TypeError) as caught:
        arguments(function).document(*args, **kwargs)
    told = str(expected.value)
    if "keyword-only argument" in told and "given" in told:
        told = told.partition(" positional argument")[0]  # Python counts the keyword-only ones there too
        assert str(caught.value).startswith(told)
    else:
        assert str(caught.value) == told


def test_rest_and_named_stand_under_their_own_names() -> None:
    compiled = arguments(every)
    assert compiled.document(1, 2, s=0) == b'{"named":{},"p":1,"q":2,"r":3,"rest":[],"s":0,"t":"t"}'
    assert compiled.document(1, 2, 9, 8, 7, s=0, z=1, y=2, p=5) == (
        b'{"named":{"p":5,"y":2,"z":1},"p":1,"q":2,"r":9,"rest":[8,7],"s":0,"t":"t"}'
    )
    assert compiled.names == ["p", "q", "r", "rest", "s", "t", "named"]


def test_by_position_or_by_name_and_with_or_without_defaults_is_one_question() -> None:
    compiled = arguments(plain)
    assert compiled.document(1) == compiled.document(a=1) == compiled.document(1, 2) == compiled.document(b=2, a=1)


def test_names_stand_in_canonical_order() -> None:
    assert arguments(odd_names).document() == slow(odd_names, (), {})


def test_ignored_parameters_do_not_count_and_are_bound_all_the_same() -> None:
    compiled = arguments(every, "t", "rest", "trace")
    assert compiled.document(1, 2, 3, 4, s=0, t="x", trace=7, y=1) == b'{"named":{"y":1},"p":1,"q":2,"r":3,"s":0}'
    assert compiled.document(1, 2, s=0, trace=7) == compiled.document(1, 2, s=0)
    assert compiled.bind(1, 2, s=0, t="x", trace=7)["t"] == "x"
    assert compiled.bind(1, 2, s=0, t="x", trace=7)["named"] == {"trace": 7}
    assert arguments(plain, "a", "b").document(object()) == b"{}"
    with pytest.raises(ValueError, match=r"no parameter .c. to ignore"):
        arguments(plain, "c")


def test_a_default_is_read_at_each_call() -> None:
    held = [1]

    def function(a: Any, b: Any = held) -> None: ...

    compiled = arguments(function)
    before = compiled.document(1)
    held.append(2)
    assert before == b'{"a":1,"b":[1]}'
    assert compiled.document(1) == b'{"a":1,"b":[1,2]}'


def test_an_error_leads_to_the_argument() -> None:
    with pytest.raises(UnsupportedInput, match=r"^input\.b\[1\]\.x: object"):
        arguments(plain).document(1, [0, {"x": object()}])
    with pytest.raises(UnsupportedInput, match=r"^input\.rest\[0\]: object"):
        arguments(every).document(1, 2, 3, object(), s=1)


def test_the_arguments_object_counts_as_a_container() -> None:
    def nested(depth: int) -> Any:
        value: Any = 0
        for _ in range(depth):
            value = [value]
        return value

    arguments(plain).document(nested(255))
    with pytest.raises(UnsupportedInput, match="256 deep"):
        arguments(plain).document(nested(256))


def test_random_functions_bind_as_python_binds_them() -> None:
    pick = random.Random(11)
    kinds = list(inspect._ParameterKind)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for _ in range(300):
        chosen = sorted((pick.choice(kinds) for _ in range(pick.randrange(8))), key=int)
        chosen = [kind for at, kind in enumerate(chosen) if kind not in variable or kind not in chosen[:at]]
        first_default = pick.randrange(9)
        parameters = []
        for at, (name, kind) in enumerate(zip(pick.sample("abcdefghij", len(chosen)), chosen, strict=True)):
            default = at if kind not in variable and at >= first_default else inspect.Parameter.empty
            parameters.append(inspect.Parameter(name, kind, default=default))
        made: dict[str, Any] = {}
        exec(f"def made{inspect.Signature(parameters)}: return locals()", made)  # noqa: S102 (a function of each shape)
        compiled = arguments(made["made"])
        for _ in range(30):
            args = tuple(range(pick.randrange(5)))
            kwargs = {name: name for name in pick.sample("abcdefghijk", pick.randrange(4))}
            try:
                bound = made["made"](*args, **kwargs)
            except TypeError:
                with pytest.raises(TypeError):
                    compiled.document(*args, **kwargs)
            else:
                assert compiled.document(*args, **kwargs) == reference.document(bound)
                assert compiled.bind(*args, **kwargs) == bound
