"""Tags: templates of the arguments, checked when decorating, and functions of the result."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from infercache import Cache, InvalidArgument
from infercache.tags import Tags, check_tags


@pytest.fixture
def cache() -> Cache:
    return Cache("4MB")


def test_a_template_takes_arguments_by_name() -> None:
    tags = Tags(["catalogue", "user:{user}", "{item.sku}", "{ids[0]:03d}", "{{literal}}"], ["user", "item", "ids"], "f")
    arguments = {"user": "u1", "item": SimpleNamespace(sku="s7"), "ids": [5]}
    assert tags.before(arguments) == ["catalogue", "{literal}", "user:u1", "s7", "005"]


def test_fixed_tags_need_no_arguments() -> None:
    tags = Tags(["catalogue"], ["user"], "f")
    assert not tags.needs_arguments
    assert tags.before({}) == ["catalogue"]


@pytest.mark.parametrize(
    ("template", "named"),
    [("user:{usr}", "usr"), ("{0}", "0"), ("{}", ""), ("{usr.name}", "usr"), ("{usr[0]}", "usr")],
)
def test_a_template_that_names_no_parameter_is_refused_when_decorating(cache: Cache, template: str, named: str) -> None:
    def rank(user: str, query: str) -> str:
        return user

    with pytest.raises(InvalidArgument, match=r"rank.*user, query") as refused:
        cache.memoize(model="m", version="1", tags=[template])(rank)
    assert f"takes the argument {named!r}," in str(refused.value)


@pytest.mark.parametrize("template", ["{user", "user}", "{user!x}"])
def test_a_malformed_template_is_refused_when_decorating(cache: Cache, template: str) -> None:
    def rank(user: str) -> str:
        return user

    with pytest.raises(InvalidArgument, match="tags"):
        cache.memoize(model="m", version="1", tags=[template])(rank)


@pytest.mark.parametrize("wrong", ["catalogue", b"catalogue", 7, [7], [b"a"], [None], ["\ud800"]], ids=ascii)
def test_tags_are_a_list_of_texts(wrong: Any) -> None:
    with pytest.raises(InvalidArgument):
        check_tags(wrong)


def test_tags_stand_once_and_in_order() -> None:
    assert check_tags(["b", "a", "b"]) == ["b", "a"]


def test_a_function_of_the_result_says_what_purges_it(cache: Cache) -> None:
    runs = []

    def products(result: list[int], user: str, limit: int) -> list[str]:
        assert (user, limit) == ("u1", 3)
        return [f"product:{product}" for product in result]

    @cache.memoize(model="m", version="1", tags=products, operation="recommend")
    def recommend(user: str, limit: int = 3) -> list[int]:
        runs.append(user)
        return [41, 42]

    recommend("u1")
    cache.invalidate(tags=["product:7"])
    recommend("u1")
    assert len(runs) == 1
    cache.invalidate(tags=["product:42"])
    recommend("u1")
    assert len(runs) == 2


def test_a_function_that_returns_no_tags_is_an_error_that_says_so(cache: Cache) -> None:
    @cache.memoize(model="m", version="1", tags=lambda result, user: "product:1", operation="wrong")
    def recommend(user: str) -> int:
        return 1

    with pytest.raises(InvalidArgument, match="returned"):
        recommend("u1")


def test_a_namespace_has_tags_of_its_own() -> None:
    one, other = Cache("1MB", namespace="one"), Cache("1MB", namespace="other")
    key = one.key("q", model="m", version="1")
    one.set(key, 1, tags=["t"])
    other.invalidate(tags=["t"])
    assert one.get(key) == 1


def test_a_function_of_tags_that_calls_the_result_as_an_argument_is_refused_when_decorating(cache: Cache) -> None:
    def rescore(result: int) -> int:
        return result + 1

    def clash(result: int, **arguments: object) -> list[str]:
        return ["score"]

    with pytest.raises(InvalidArgument, match=r"calls the result 'result', which is a parameter of .*rescore"):
        cache.memoize(model="m", version="1", tags=clash, operation="rescore")(rescore)

    def apart(answer: int, result: int) -> list[str]:
        return [f"score:{answer}:{result}"]

    scored = cache.memoize(model="m", version="1", tags=apart, operation="rescore")(rescore)
    assert scored(1) == 2
    cache.invalidate(tags=["score:2:1"])
    assert scored.peek(1) is None
