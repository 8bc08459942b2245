"""What a decorator refuses, and what its options do with keys and results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

cache = Cache("16MB")
calls: list[Any] = []


@pytest.fixture(autouse=True)
def _anew() -> None:
    cache.clear()
    calls.clear()


class Plain:
    pass


def plain(name: str) -> str:
    return name


def test_leaving_out_model_or_version_is_a_type_error_that_says_why() -> None:
    for given, missing in [({"model": "m"}, "version"), ({"version": "1"}, "model"), ({}, "model")]:
        with pytest.raises(TypeError, match=f"{missing} is missing.*key"):
            cache.memoize(**given)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=f"{missing} is missing.*key"):
            cache.memoize_batch(over="x", **given)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=missing):
            cache.key("q", **given)  # type: ignore[call-arg]


def test_lambdas_closures_and_generators_are_refused() -> None:
    cell = 1

    def closure(x: int) -> int:
        return x + cell

    def generator(x: int) -> Iterator[int]:
        yield x

    async def async_generator(x: int) -> Any:
        yield x

    decorate, named = (cache.memoize(model="m", version="1", operation=name) for name in (None, "named"))
    with pytest.raises(TypeError, match="lambda"):
        decorate(lambda x: x)
    with pytest.raises(TypeError, match="cell"):
        decorate(closure)
    assert named(closure)(1) == 2
    assert cache.memoize(model="m", version="1", operation="lambda")(lambda x: x)(3) == 3
    for function in (generator, async_generator):
        for decorator in (decorate, named):
            with pytest.raises(TypeError, match="generator"):
                decorator(function)


@pytest.mark.parametrize("wrong", [7, None, "text", Plain])
def test_what_is_no_function_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="cannot be memoized"):
        cache.memoize(model="m", version="1", operation="x")(wrong)


def test_model_and_version_may_be_functions_of_the_arguments() -> None:
    @cache.memoize(
        model=lambda user, arm: f"ranker-{arm}",
        version=lambda user, arm: "2" if arm == "b" else "1",
        operation="ab",
    )
    def ask(user: str, arm: str = "a") -> str:
        calls.append((user, arm))
        return f"{user} in {arm}"

    assert [ask("u"), ask("u", "b"), ask("u", arm="b")] == ["u in a", "u in b", "u in b"]
    assert len(calls) == 2
    assert ask.key("u") == cache.key({"user": "u", "arm": "a"}, model="ranker-a", version="1", operation="ab")
    cache.invalidate(model="ranker-b", version="2")
    assert ask.peek("u", "b") is None
    assert ask.peek("u") == "u in a"


def test_many_models_of_one_function_stay_apart() -> None:
    @cache.memoize(model=lambda n: f"model-{n}", version="1", operation="many", document=lambda n: None)
    def ask(n: int) -> int:
        return n

    for _ in range(2):
        assert [ask(n) for n in range(600)] == list(range(600))


def test_a_model_that_is_no_text_is_an_error_that_says_so() -> None:
    @cache.memoize(model=lambda x: 7, version="1", operation="seven")  # type: ignore[arg-type, return-value]
    def ask(x: int) -> int:
        return x

    with pytest.raises(InvalidArgument, match="model returned 7"):
        ask(1)
    for wrong in (7, None, b"m"):
        with pytest.raises(TypeError, match="model="):
            cache.memoize(model=wrong, version="1")(plain)  # type: ignore[arg-type]


def test_ignored_parameters_do_not_count() -> None:
    @cache.memoize(model="m", version="1", operation="ask", ignore=["trace"])
    def ask(question: str, trace: object = None) -> str:
        calls.append(trace)
        return question

    assert ask("q", object()) == ask("q", trace=object()) == "q"
    assert len(calls) == 1
    with pytest.raises(InvalidArgument, match=r"'trce'.*question, trace"):
        cache.memoize(model="m", version="1", ignore=["trce"])(ask.__wrapped__)
    with pytest.raises(InvalidArgument, match="list"):
        cache.memoize(model="m", version="1", ignore="trace")(ask.__wrapped__)


def test_a_document_is_keyed_in_place_of_the_arguments() -> None:
    @cache.memoize(model="m", version="1", operation="doc", document=lambda user, query: query.strip().lower())
    def ask(user: object, query: str) -> str:
        calls.append(query)
        return query

    assert ask(object(), " Shoes ") == ask(object(), "shoes") == " Shoes "
    assert ask.key(None, "SHOES") == cache.key("shoes", model="m", version="1", operation="doc")


def test_store_if_decides_what_is_kept() -> None:
    @cache.memoize(model="m", version="1", operation="if", store_if=lambda result: result is not None)
    def ask(x: int) -> int | None:
        calls.append(x)
        return x or None

    assert [ask(0), ask(0), ask(1), ask(1)] == [None, None, 1, 1]
    assert calls == [0, 0, 1]
    assert cache.stats().uncacheable == 0


def test_an_option_that_is_no_function_is_refused() -> None:
    for option in ("store_if", "document"):
        with pytest.raises(TypeError, match=option):
            cache.memoize(model="m", version="1", **{option: 7})(plain)  # type: ignore[arg-type]


def test_arguments_of_every_kind_enter_the_key() -> None:
    @cache.memoize(model="m", version="1", operation="ask")
    def ask(a: int, /, b: int, *args: int, c: int = 3, **kwargs: int) -> list[Any]:
        return [a, b, list(args), c, kwargs]

    assert ask(1, 2, 3, 4, c=5, d=6) == [1, 2, [3, 4], 5, {"d": 6}]
    expected = {"a": 1, "b": 2, "args": [3, 4], "c": 5, "kwargs": {"d": 6}}
    assert ask.key(1, 2, 3, 4, c=5, d=6) == cache.key(expected, model="m", version="1", operation="ask")
