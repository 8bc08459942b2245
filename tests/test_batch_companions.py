"""Batches whose items' dtype or shape depends on the items beside them: what is made right, and what is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batches import FIXED_WIDTHS, WIDTHS, as_labels, as_text, as_wide_text, batched, same
from infercache import Cache, UncacheableResult
from together import Gate, Started, Waits

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def cache() -> Cache:
    return Cache("16MB")


# NumPy itself drops zeros at an element's end.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@pytest.mark.parametrize("kind", [*WIDTHS, as_wide_text])
@given(batches=st.lists(st.lists(texts, min_size=1, max_size=6), min_size=1, max_size=6), most=st.none() | st.just(2))
def test_text_is_as_wide_as_the_uncached_functions_for_any_mixture_of_hits_and_misses(
    kind: Callable[..., Any], batches: list[list[str]], most: int | None
) -> None:
    cache = Cache("4MB")
    embed, reached = batched(cache, kind, max_batch=most)
    every = [item for batch in batches for item in batch]
    for batch in [*batches, every, *([item] for item in every)]:
        assert same(embed(batch), kind(batch))
    assert sorted(item for chunk in reached for item in chunk) == sorted(set(every)), "each item once"


def filled(array: Any) -> bool:
    """Whether the longest element of an array of text is as wide as the array."""
    return bool(np.array(array.ravel().tolist() or [""]).astype(array.dtype.kind).dtype.itemsize == array.itemsize)


@pytest.mark.parametrize("kind", FIXED_WIDTHS)
@given(batches=st.lists(st.lists(texts, min_size=1, max_size=6), min_size=1, max_size=6), most=st.none() | st.just(2))
def test_text_of_a_fixed_width_has_it_for_any_mixture_once_an_array_with_room_has_shown_it(
    kind: Callable[..., Any], batches: list[list[str]], most: int | None
) -> None:
    cache = Cache("4MB")
    embed, reached = batched(cache, kind, max_batch=most)
    every = [item for batch in batches for item in batch]
    shown = False
    for batch in [*batches, every, *([item] for item in every)]:
        asked = len(reached)
        got, expected = embed(batch), kind(batch)
        shown = shown or not all(filled(kind(chunk)) for chunk in reached[asked:])
        if shown or filled(expected):
            assert same(got, expected)
        else:
            # Every array so far was as wide as its longest element, as those are whose width the batch decides.
            assert len(reached) == asked, "and this one is made of known items"
            assert got.tolist() == expected.tolist()
            assert filled(got)
    assert sorted(item for chunk in reached for item in chunk) == sorted(set(every)), "each item once"


class TestFixedWidths:
    def test_a_width_that_one_array_shows_is_that_of_all_arrays_of_this_width(self, cache: Cache) -> None:
        embed, reached = batched(cache, as_labels)
        embed(["long", "a"])
        assert embed(["a"]).dtype == "U1", "it could as well be the width of the longest"
        embed(["b"])
        assert embed(["a"]).dtype == embed(["a", "b"]).dtype == embed.peek(["a"]).dtype == "U4"
        assert reached == [["long", "a"], ["b"]]

    def test_a_process_sees_it_in_an_entry_that_another_has_stored(self, cache: Cache) -> None:
        # Decorated functions of one name share their entries and nothing else, as processes do.
        one, other, third = (batched(cache, as_labels)[0] for _ in range(3))
        one(["long", "a"])
        assert other(["a"]).dtype == "U1"
        one(["b"])
        assert other(["b"]).dtype == "U4"
        assert other(["a"]).dtype == "U4"
        one(["more", "c"])
        assert third(["c"]).dtype == "U4", "what is stored once it is known says so by itself"
        assert third(["a"]).dtype == "U4"

    def test_arrays_of_different_widths_show_that_the_batch_decides(self, cache: Cache) -> None:
        embed, _ = batched(cache, lambda items: np.char.strip(np.array(items)))
        embed(["abcd", "c"]), embed(["xyz", "d"]), embed(["ab  "])
        assert embed(["c", "d"]).dtype == embed.__wrapped__(["c", "d"]).dtype == "U1", "though one of four had room"

    def test_a_function_of_many_widths_chooses_none(self, cache: Cache) -> None:
        embed, _ = batched(cache, lambda items: np.char.strip(np.array(items)))
        for width in range(2, 20):
            embed(["a" + " " * (width - 1)])
        embed(["abcd", "c"])
        assert embed(["c"]).dtype == embed.__wrapped__(["c"]).dtype == "U1"

    def test_other_arguments_may_choose_another_width(self, cache: Cache) -> None:
        labels = {"en": np.array(["short", "no", "yes"]), "de": np.array(["kurz und gut", "nein", "ja"])}

        @cache.memoize_batch(model="m", version="1", operation="labels", over="ids")
        def labelled(ids: list[int], language: str) -> Any:
            return labels[language][ids]

        for ids in ([0, 1], [2]):
            for language in labels:
                labelled(ids, language)
        for language, found in labels.items():
            assert labelled([1], language).dtype == found.dtype


class TestWidths:
    def test_a_hit_alone_is_no_wider_than_the_uncached_one(self, cache: Cache) -> None:
        embed, reached = batched(cache, as_text)
        embed(["", "aaaa"])
        assert embed([""]).dtype == "U1"
        assert embed.peek(["", "aaaa"]).dtype == "U4"
        assert len(reached) == 1

    def test_a_width_that_the_longest_does_not_fill_is_kept(self, cache: Cache) -> None:
        embed, _ = batched(cache, as_wide_text)
        embed(["a", "bb"])
        assert embed(["a"]).dtype == "U64"
        assert embed(["a", "c" * 64]).dtype == "U64", "of one row that fills it and one that does not"

    def test_narrow_rows_take_no_more_room_than_their_own_text(self, cache: Cache) -> None:
        embed, _ = batched(cache, as_text)
        items = [f"{n:02}" for n in range(50)]
        embed(items)
        before = cache.stats().bytes
        embed(["x" * 10_000, *(item + "x" for item in items)])
        assert cache.stats().bytes - before < 500_000, "and not 51 times the longest one's 40,000"

    def test_rows_without_elements_and_widths_of_one_are_kept(self, cache: Cache) -> None:
        for number, kind in enumerate(
            [
                lambda items: np.zeros((len(items), 0), dtype="U3"),
                lambda items: np.array(["" for _ in items]),
                lambda items: np.array([b"x" for _ in items]),
            ]
        ):
            embed, _ = batched(cache, kind, tags=[f"kind:{number}"])
            for batch in (["a", "b"], ["b"], ["b", "c"]):
                assert same(embed(batch), kind(batch))
            cache.invalidate(all=True)

    def test_bytes_that_end_with_zeros_keep_their_value(self, cache: Cache) -> None:
        embed, _ = batched(cache, lambda items: np.array([item.encode() + b"\0" for item in items]))
        embed(["a", "bbb"])
        assert embed(["a"]).tolist() == [b"a"], "as wide as before: nobody can tell these zeros from room"

    def test_rows_of_text_and_of_bytes_are_no_array(self, cache: Cache) -> None:
        def kind(items: Any) -> Any:
            made = np.array(items)
            return made if "é" in "".join(items) else made.astype("S")

        embed, _ = batched(cache, kind)
        with pytest.warns(UncacheableResult):  # noqa: PT031
            for batch in (["a", "bb"], ["é"], ["a", "é"]):
                assert same(embed(batch), kind(batch))


def numbers(items: Any) -> Any:
    """Integers, unless one of them is none."""
    return np.array([float(item) if "." in item else int(item) for item in items])


def padded(items: Any) -> Any:
    longest = max(map(len, items))
    return np.array([[*map(ord, item), *[0] * (longest - len(item))] for item in items])


class TestTheContract:
    @pytest.mark.parametrize(("kind", "other"), [(numbers, "2.5"), (padded, "12345")])
    def test_items_of_different_dtypes_or_shapes_are_asked_for_together_and_told_once(
        self, cache: Cache, kind: Callable[..., Any], other: str
    ) -> None:
        embed, reached = batched(cache, kind)
        embed(["1"]), embed([other])
        with pytest.warns(UncacheableResult, match="for single items do not make its result for all") as warned:  # noqa: PT031
            assert same(embed(["1", other]), kind(["1", other]))  # known ones
            assert same(embed(["1", other, "3"]), kind(["1", other, "3"]))  # and one that is not
        assert len(warned) == 1
        assert reached == [["1"], [other], ["1", other], ["3"], ["1", other, "3"]]

    @pytest.mark.parametrize(("kind", "other"), [(numbers, "2.5"), (padded, "12345")])
    def test_entries_that_served_nobody_are_counted_as_misses(
        self, cache: Cache, kind: Callable[..., Any], other: str
    ) -> None:
        embed, _ = batched(cache, kind)
        embed(["1"]), embed([other])
        with pytest.warns(UncacheableResult):
            embed(["1", other]), embed(["1", other, "3"])
        stats = cache.stats()
        assert (stats.hits_l1, stats.misses, stats.uncacheable) == (0, 2 + 2 + 3, 2 + 3)
        assert stats.saved_seconds == 0
        assert len(cache.flights) == 0

    @pytest.mark.parametrize(("kind", "other"), [(numbers, "2.5"), (padded, "12345")])
    def test_a_known_item_alone_is_what_the_batch_that_computed_it_made_of_it(
        self, cache: Cache, kind: Callable[..., Any], other: str
    ) -> None:
        embed, _ = batched(cache, kind)
        whole = embed(["1", other])
        assert same(embed(["1"]), whole[:1]), "the docstring of memoize_batch says what to do about it"
        assert not same(whole[:1], kind(["1"]))

    def test_peek_has_no_answer_where_only_the_function_has(self, cache: Cache) -> None:
        embed, reached = batched(cache, padded)
        embed(["1"]), embed(["22"])
        assert embed.peek(["1", "22"]) is None
        assert same(embed.peek(["22"]), padded(["22"]))
        assert len(reached) == 2

    def test_items_that_others_computed_are_asked_for_together_too(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits, gate = Waits(monkeypatch), Gate()

        def kind(items: Any) -> Any:
            if items == ["22"]:
                gate.pass_through()
            return padded(items)

        embed, _ = batched(cache, kind)
        embed(["1"])
        leader = Started(lambda: embed(["22"]))
        gate.wait_for(1)
        follower = Started(lambda: embed(["1", "22"]))  # computes nothing of its own
        waits.wait_for(1)
        with pytest.warns(UncacheableResult):  # noqa: PT031
            gate.open()
            leader.results()
            (answer,) = follower.results()
        assert same(answer, padded(["1", "22"]))
