"""Batches: only what is missing reaches the function, and the answer is the uncached function's."""

from __future__ import annotations

import asyncio
import collections
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import KINDS, as_array, as_numbers, batched, same
from infercache import BatchResultError, Cache, InvalidArgument, UncacheableResult, UnsupportedInput
from together import PATIENCE, Gate, Started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def cache() -> Cache:
    return Cache("16MB")


@pytest.mark.parametrize("kind", KINDS)
@given(
    batches=st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=0, max_size=12).map(
            lambda letters: [letter * (1 + ord(letter) % 5) for letter in letters]
        ),
        min_size=1,
        max_size=6,
    ),
    max_batch=st.none() | st.integers(1, 4),
    container=st.sampled_from([list, tuple, np.array, iter]),
    purged=st.sets(st.integers(0, 5)),
)
def test_for_any_mixture_of_hits_and_misses_the_result_is_the_uncached_functions(
    kind: Callable[..., Any], batches: list[list[str]], max_batch: int | None, container: Any, purged: set[int]
) -> None:
    cache = Cache("4MB")
    embed, reached = batched(cache, kind, max_batch=max_batch, tags=["{items}"])
    known: set[str] = set()
    for number, batch in enumerate(batches):
        reached.clear()
        given_items = np.array(batch, dtype="U8") if container is np.array else container(batch)
        assert same(embed(given_items), kind(batch))
        if batch:
            new = [item for item in dict.fromkeys(batch) if item not in known]
            assert [item for chunk in reached for item in chunk] == new, "the missing ones, each once, in order"
            assert all(len(chunk) <= (max_batch or len(chunk)) for chunk in reached)
        else:
            assert reached == [[]], "as the uncached one would be"
        known.update(batch)
        if number in purged and batch:
            cache.invalidate(tags=batch[:1])
            known.discard(batch[0])
    assert len(cache.flights) == 0


class TestItems:
    def test_only_missing_and_distinct_items_reach_the_function(self, cache: Cache) -> None:
        embed, reached = batched(cache)
        embed(["a", "bb"])
        assert same(embed(["a", "ccc", "ccc", "bb", "d", "ccc"]), as_array(["a", "ccc", "ccc", "bb", "d", "ccc"]))
        assert reached == [["a", "bb"], ["ccc", "d"]]

    def test_chunks_hold_at_most_max_batch_items(self, cache: Cache) -> None:
        embed, reached = batched(cache, max_batch=3)
        assert same(embed(list("abcdefgh")), as_array(list("abcdefgh")))
        assert reached == [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]

    @pytest.mark.parametrize("container", [list, tuple, np.array])
    def test_the_function_gets_items_in_the_container_that_the_caller_used(self, cache: Cache, container: Any) -> None:
        seen = []

        @cache.memoize_batch(model="m", version="1", operation="seen", over="items")
        def embed(items: Any) -> list[int]:
            seen.append(type(items))
            return [len(item) for item in items]

        embed(container(["a"])), embed(container(["a", "b"]))
        assert set(seen) == {np.ndarray if container is np.array else container}

    def test_rows_of_an_array_are_items(self, cache: Cache) -> None:
        seen = []

        @cache.memoize_batch(model="m", version="1", operation="rows", over="images")
        def classify(images: Any) -> Any:
            seen.append(images.shape)
            return images.sum(axis=(1, 2))

        images = np.arange(48, dtype=np.float32).reshape(3, 4, 4)
        assert same(classify(images), images.sum(axis=(1, 2)))
        assert same(classify(images[[2, 0]]), images[[2, 0]].sum(axis=(1, 2)))
        assert same(classify(images[::-1]), images[::-1].sum(axis=(1, 2)))
        assert seen == [(3, 4, 4)]

    def test_other_arguments_are_part_of_each_items_key(self, cache: Cache) -> None:
        calls = []

        @cache.memoize_batch(model="m", version="1", operation="scaled", over="items", ignore=["trace"])
        def scaled(factor: int, items: list[int], *, trace: object = None) -> list[int]:
            calls.append((factor, items))
            return [factor * item for item in items]

        assert scaled(2, [1, 2]) == [2, 4]
        assert scaled(factor=3, items=[1, 2], trace=object()) == [3, 6]
        assert scaled(2, items=[2, 5]) == [4, 10]
        assert calls == [(2, [1, 2]), (3, [1, 2]), (2, [5])]
        expected = cache.key({"factor": 2, "items": 5}, model="m", version="1", operation="scaled")
        assert scaled.key(2, [1, 5])[1] == expected

    def test_a_default_list_is_looked_up_too(self, cache: Cache) -> None:
        calls = []

        @cache.memoize_batch(model="m", version="1", operation="defaults", over="items")
        def doubled(items: tuple[int, ...] = (1, 2)) -> list[int]:
            calls.append(items)
            return [2 * item for item in items]

        assert doubled() == doubled() == doubled((1, 2)) == [2, 4]
        assert calls == [(1, 2)]

    def test_an_empty_batch_calls_the_function_as_the_uncached_would_be(self, cache: Cache) -> None:
        embed, reached = batched(cache)
        for empty in ([], (), np.array([], dtype="U1")):
            assert same(embed(empty), as_array([]))
        assert reached == [[]] * 3
        assert cache.stats().misses == 0

    def test_any_other_container_arrives_as_a_list_whatever_of_it_is_missing(self, cache: Cache) -> None:
        seen: list[type] = []

        @cache.memoize_batch(model="m", version="1", operation="containers", over="items")
        def doubled(items: Any) -> list[int]:
            seen.append(type(items))
            return [2 * item for item in items]

        assert doubled(collections.deque([1, 2])) == [2, 4]
        assert doubled(range(1, 5)) == [2, 4, 6, 8]
        assert doubled(iter([5])) == doubled({5}) == [10]
        assert doubled(collections.deque()) == []
        assert seen == [list, list, list, list]

    @pytest.mark.parametrize("wrong", ["text", b"bytes", {"a": 1}, 7, None, np.float32(1)], ids=repr)
    def test_what_is_no_list_of_items_is_refused(self, cache: Cache, wrong: Any) -> None:
        embed, _ = batched(cache)
        with pytest.raises(TypeError, match="items"):
            embed(wrong)

    def test_an_array_without_dimensions_has_no_items(self, cache: Cache) -> None:
        torch = pytest.importorskip("torch")
        embed, reached = batched(cache)
        for wrong in (np.array(7), np.array("text"), torch.tensor(7), np.float32(1)):
            with pytest.raises(TypeError, match=r"embed: items is a .*; it has no dimensions.*first axis is the items"):
                embed(wrong)
            with pytest.raises(TypeError, match="it has no dimensions"):
                embed.key(wrong)
        assert reached == []

    def test_an_item_that_cannot_enter_a_key_is_an_error_that_leads_to_it(self, cache: Cache) -> None:
        embed, reached = batched(cache)
        with pytest.raises(UnsupportedInput, match="items"):
            embed(["a", object()])
        assert reached == []

    def test_the_assembled_array_is_fresh_and_writable(self, cache: Cache) -> None:
        embed, _ = batched(cache)
        for _ in range(2):
            result = embed(["a", "bb"])
            result[:] = 7
        assert same(embed(["a", "bb"]), as_array(["a", "bb"]))

    def test_options_are_checked_when_decorating(self, cache: Cache) -> None:
        def embed(items: list[str], *rest: str, flag: bool = False, **more: str) -> list[str]:
            return items

        def decorate(**options: Any) -> Any:
            return cache.memoize_batch(**{"model": "m", "version": "1", "over": "items", **options})(embed)

        for wrong in ({"over": "texts"}, {"over": "rest"}, {"over": "more"}, {"ignore": ["items"]}):
            with pytest.raises(InvalidArgument, match=r"over|ignore"):
                decorate(**wrong)
        for wrong in (0, -1, 1.5, "8", True):
            with pytest.raises(InvalidArgument, match="max_batch"):
                decorate(max_batch=wrong)
        with pytest.raises(InvalidArgument, match="texts"):
            decorate(tags=["{texts}"])


class TestResults:
    @pytest.mark.parametrize("kind", [list, tuple, np.array])
    @pytest.mark.parametrize("wrong", [-1, 1])
    def test_too_few_or_too_many_results_are_an_error_and_nothing_is_stored(
        self, cache: Cache, kind: Any, wrong: int
    ) -> None:
        @cache.memoize_batch(model="m", version="1", operation="wrong", over="items")
        def embed(items: list[str]) -> Any:
            return kind([1.0] * (len(items) + wrong))

        with pytest.raises(BatchResultError, match=rf"returned {3 + wrong} results for 3 items"):
            embed(["a", "b", "c"])
        assert cache.stats().stores == 0
        assert len(cache.flights) == 0

    @pytest.mark.parametrize("result", [None, 7, "text", {"a": 1}, np.float32(1)], ids=repr)
    def test_a_result_without_items_is_the_functions_answer_to_the_whole_batch(self, cache: Cache, result: Any) -> None:
        @cache.memoize_batch(model="m", version="1", operation="whole", over="items")
        def embed(items: list[str]) -> Any:
            return result

        with pytest.warns(UncacheableResult, match="embed"):
            assert embed(["a", "b"]) == result
        assert embed(["a"]) == result

    def test_rows_that_do_not_fit_together_are_asked_for_together(self, cache: Cache) -> None:
        # Padded to the longest of the batch: the rows of different batches are of different lengths.
        def padded(items: Any) -> Any:
            longest = max(len(item) for item in items)
            return np.array([[*map(ord, item), *[0] * (longest - len(item))] for item in items])

        embed, _ = batched(cache, padded)
        with pytest.warns(UncacheableResult):  # noqa: PT031
            for batch in (["a", "b"], ["ccc"], ["a", "ccc"], ["a", "b"], ["ccc", "dd", "a"], ["ccc", "a"]):
                assert same(embed(batch), padded(batch))

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_results_that_cannot_be_stored_are_returned_in_their_places(self, cache: Cache, kind: Any) -> None:
        marker, calls = object(), []

        @cache.memoize_batch(model="m", version="1", operation="marked", over="items")
        def embed(items: list[int]) -> Any:
            calls.append(items)
            return kind(marker if item % 2 else item for item in items)

        with pytest.warns(UncacheableResult, match="embed") as warned:  # noqa: PT031
            for batch in ([1, 2, 3], [2, 3], [1, 3], [4, 2]):
                got = embed(batch)
                assert type(got) is kind
                assert got == kind(marker if item % 2 else item for item in batch)
        assert len(warned) == 1
        assert calls == [[1, 2, 3], [3], [1, 3], [4]]
        assert cache.stats().uncacheable == 5

    def test_arrays_of_objects_are_returned_as_they_are(self, cache: Cache) -> None:
        def objects(items: Any) -> Any:
            result = np.empty(len(items), dtype=object)
            result[:] = [{item} for item in items]
            return result

        embed, _ = batched(cache, objects)
        with pytest.warns(UncacheableResult):  # noqa: PT031
            for batch in (["a"], ["a", "b"], ["b", "b"]):
                got = embed(batch)
                assert got.dtype == object
                assert got.tolist() == [{item} for item in batch]

    def test_store_if_and_tags_see_each_items_result(self, cache: Cache) -> None:
        embed, reached = batched(
            cache,
            as_numbers,
            store_if=lambda result: result > 1,
            tags=lambda result, items: [f"length:{result}", f"item:{items}"],
        )
        embed(["a", "bb", "ccc"]), embed(["a", "bb", "ccc"])
        assert reached == [["a", "bb", "ccc"], ["a"]]
        cache.invalidate(tags=["length:2"])
        embed(["bb", "ccc"])
        cache.invalidate(tags=["item:ccc"])
        embed(["bb", "ccc"])
        assert reached[2:] == [["bb"], ["ccc"]]

    def test_documents_and_models_of_batches(self, cache: Cache) -> None:
        calls = []

        @cache.memoize_batch(
            model=lambda items, arm: f"m-{arm}",
            version="1",
            operation="docs",
            over="items",
            document=lambda items, arm: items.lower(),
        )
        def embed(items: list[str], arm: str = "a") -> list[str]:
            calls.append(items)
            return [item.upper() for item in items]

        assert embed(["x", "Y"]) == embed(["X", "y"]) == ["X", "Y"]
        assert embed(["x"], "b") == ["X"]
        assert calls == [["x", "Y"], ["x"]]
        assert embed.key(["x"])[0] == cache.key("x", model="m-a", version="1", operation="docs")

    def test_the_cost_of_a_batch_is_shared_by_its_items(self, cache: Cache) -> None:
        gate = Gate()

        @cache.memoize_batch(model="m", version="1", operation="cost", over="items")
        def embed(items: list[str]) -> list[str]:
            gate.pass_through()
            return items

        started = Started(lambda: embed(["a", "b", "c", "d"]))
        gate.wait_for(1)
        gate.open()
        started.results()
        embed(["a", "b", "c", "d"])
        once = cache.stats().saved_seconds
        embed(["a"])
        assert once > 0
        assert cache.stats().saved_seconds - once == pytest.approx(once / 4, rel=0.01)


class TestSurface:
    def test_keys_peek_refresh_and_invalidate_speak_of_all_items(self, cache: Cache) -> None:
        embed, reached = batched(cache)
        assert embed.peek(["a", "b"]) is None
        embed(["a"])
        assert embed.peek(["a", "b"]) is None
        embed(["a", "b"])
        assert same(embed.peek(["b", "a"]), as_array(["b", "a"]))
        assert same(embed.refresh(["a", "b", "a"]), as_array(["a", "b", "a"]))
        assert reached == [["a"], ["b"], ["a", "b"]]
        assert len(embed.key(["a", "b", "a"])) == 3
        assert len(set(embed.key(["a", "b", "a"]))) == 2
        embed.invalidate(["a"])
        assert embed.peek(["a"]) is None
        assert embed.peek(["b"]) is not None
        assert embed.peek([]) is None
        assert embed.key([]) == []

    def test_an_async_batch_function(self, cache: Cache) -> None:
        reached = []

        @cache.memoize_batch(model="m", version="1", operation="async", over="items", max_batch=2)
        async def embed(items: list[str]) -> Any:
            reached.append(list(items))
            await asyncio.sleep(0)
            return as_array(items)

        async def main() -> None:
            assert same(await embed(["a", "b", "c", "a"]), as_array(["a", "b", "c", "a"]))
            assert same(await embed(["c", "d"]), as_array(["c", "d"]))
            assert same(await embed(iter(["d"])), as_array(["d"]))  # type: ignore[arg-type]
            assert same(await embed([]), as_array([]))
            assert reached == [["a", "b"], ["c"], ["d"], []]
            several = await asyncio.gather(*[embed(["x", f"y{n}"]) for n in range(5)])
            assert all(same(got, as_array(["x", f"y{n}"])) for n, got in enumerate(several))
            assert [item for chunk in reached for item in chunk].count("x") == 1
            assert same(await embed.peek(["a"]), as_array(["a"]))
            assert same(await embed.refresh(["a"]), as_array(["a"]))
            await embed.invalidate(["a"])
            assert await embed.peek(["a"]) is None

        assert inspect.iscoroutinefunction(embed)
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        assert len(cache.flights) == 0

    def test_batch_methods(self, cache: Cache) -> None:
        calls = []

        @dataclass
        class Model:
            factor: int

            @cache.memoize_batch(model="m", version="1", operation="method", over="items")
            def scale(self, items: list[int]) -> list[int]:
                calls.append((self.factor, items))
                return [self.factor * item for item in items]

        assert Model(2).scale([1, 2]) == Model(2).scale([1, 2]) == [2, 4]
        assert Model(3).scale([1, 2]) == [3, 6]
        assert Model(2).scale.peek([2]) == [4]
        assert Model(2).scale.key([2])[0] == Model.scale.key(Model(2), [2])[0]
        assert calls == [(2, [1, 2]), (3, [1, 2])]

    def test_generators_are_refused(self, cache: Cache) -> None:
        def embed(items: list[int]) -> Iterator[int]:
            yield from items

        with pytest.raises(TypeError, match="generator"):
            cache.memoize_batch(model="m", version="1", over="items")(embed)

    def test_stats_count_items(self, cache: Cache) -> None:
        embed, _ = batched(cache)
        embed(["a", "b", "a"])
        embed(["a", "c"])
        stats = cache.stats()
        assert (stats.misses, stats.hits_l1, stats.stores) == (4, 1, 3)
