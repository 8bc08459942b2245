"""Results in a cache: a hit gives what the function gave, and what it gave outlives the entry and the cache."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercache import Cache, UnreadableEntry, register_value
from infercache.testing import ManualClock
from same import same
from value_strategies import values


@dataclasses.dataclass(frozen=True)
class Answer:
    label: str
    vector: np.ndarray[Any, Any]


def test_arrays_of_a_hit_stay_valid_after_the_entry_is_evicted_and_the_cache_is_gone() -> None:
    cache = Cache(capacity="4MB")

    @cache.memoize(model="m", version="1", operation="vector")
    def vector(seed: int) -> np.ndarray[Any, Any]:
        return np.full(50_000, seed, np.float32)

    vector(1)
    kept = vector(1)
    part = vector(2)[100:200]
    address = kept.ctypes.data
    assert vector(1).ctypes.data == address
    seeds = iter(range(3, 5_000))
    while vector.peek(1) is not None:  # a hot entry goes round some times before it goes
        vector(next(seeds))
    assert cache.stats().evictions > 0
    assert cache.stats().pinned_bytes >= kept.nbytes
    del cache, vector
    gc.collect()
    churn = [bytearray(200_000) for _ in range(100)]
    assert (kept == 1).all()
    assert kept.ctypes.data == address
    assert (part == 2).all()
    assert len(churn) == 100


def test_a_miss_gives_what_a_hit_gives() -> None:
    cache = Cache(capacity="4MB")
    given_out = {"array": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "n": np.float32(1)}

    @cache.memoize(model="m", version="1", operation="shared")
    def shared(question: int) -> Any:
        return given_out

    @cache.memoize(model="m", version="1", operation="copied", copy=True)
    def copied(question: int) -> Any:
        return given_out

    for function, writeable in ((shared, False), (copied, True)):
        for _ in range(3):
            found = function(1)
            assert same(found, given_out)
            assert found is not given_out
            assert found["array"].flags.writeable == writeable
            found["n"] = "changed by its caller"


@settings(max_examples=100, deadline=None)
@given(st.lists(values, max_size=4))
def test_whatever_was_set_is_found_again(results: list[Any]) -> None:
    cache = Cache(capacity="16MB")
    for number, result in enumerate(results):
        cache.set(cache.key(number, model="m", version="1"), result)
    for number, result in enumerate(results):
        assert same(cache.get(cache.key(number, model="m", version="1"), default=cache), result)


def test_dataclasses_named_in_the_annotation_come_back_from_memory() -> None:
    cache = Cache(capacity="4MB")
    runs: list[str] = []

    @cache.memoize(model="m", version="1", operation="answers")
    def answers(question: str) -> dict[str, list[Answer]]:
        runs.append(question)
        return {question: [Answer("a", np.arange(3))]}

    for _ in range(3):
        [answer] = answers("q")["q"]
        assert type(answer) is Answer
        assert answer.label == "a"
        assert np.array_equal(answer.vector, np.arange(3))
        assert not answer.vector.flags.writeable
    assert runs == ["q"]


def test_what_cannot_be_stored_is_returned_counted_and_warned_of_once() -> None:
    cache = Cache(capacity="4MB")

    class Odd:
        pass

    @cache.memoize(model="m", version="1", operation="odd")
    def odd(question: int) -> Any:
        return [Odd()]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert type(odd(1)[0]) is Odd
        assert type(odd(2)[0]) is Odd
    assert len(caught) == 1
    assert "result[0]: a value of type" in str(caught[0].message)
    assert cache.stats().uncacheable == 2
    register_value(Odd, "test.Odd.cached", lambda value: None, lambda stored: Odd())
    odd(3)
    assert cache.stats().uncacheable == 2


@pytest.mark.parametrize(
    "shape", [list, tuple, np.array, lambda rows: np.array(rows)[:, 0]], ids=["list", "tuple", "array", "scalars"]
)
def test_a_batch_is_of_its_functions_kind_whatever_is_known(shape: Any) -> None:
    cache = Cache(capacity="4MB")

    def plain(items: list[int]) -> Any:
        return shape([np.array([item, 2 * item], np.float32) for item in items])

    batch = cache.memoize_batch(model="m", version="1", operation="batch", over="items")(plain)
    for items in ([1, 2], [1, 2], [2, 3, 2, 1], [4], [4, 1, 5]):
        found, expected = batch(items), plain(items)
        assert type(found) is type(expected)
        assert np.array_equal(found, expected)
        if isinstance(expected, np.ndarray):
            assert found.flags.writeable
            assert found.dtype == expected.dtype


def test_a_batch_of_torch_tensors_is_one_tensor_again() -> None:
    torch = pytest.importorskip(
        "torch", reason="torch is not installed: CPU tensors (pip install infercache[dev-torch])"
    )
    cache = Cache(capacity="4MB")

    def plain(items: list[int]) -> Any:
        return torch.tensor([[item, 2 * item] for item in items], dtype=torch.bfloat16)

    batch = cache.memoize_batch(model="m", version="1", operation="batch", over="items")(plain)
    for items in ([1, 2], [1, 2], [2, 3, 2, 1], [4], [4, 1, 5]):
        found = batch(items)
        assert type(found) is torch.Tensor
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, plain(items))
        found[0] = 9  # nobody else sees it


class Fragile:
    """A type whose `decode` fails."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_a_decode_that_fails_never_fails_the_call() -> None:
    register_value(Fragile, "fragile", lambda value: value.number, lambda number: 1 // 0)  # type: ignore[arg-type, return-value]
    cache = Cache("1MB")

    @cache.memoize(model="m", version="1", operation="fragile")
    def one(number: int) -> Fragile:
        return Fragile(number)

    @cache.memoize_batch(model="m", version="1", over="numbers", operation="fragile batch")
    def many(numbers: list[int]) -> list[Fragile]:
        return [Fragile(number) for number in numbers]

    with pytest.warns(UserWarning, match="does not come back"):
        assert one(7).number == 7
    assert one(7).number == 7
    with pytest.warns(UserWarning, match="cannot be stored"):
        assert [value.number for value in many([1, 2])] == [1, 2]
    assert cache.stats().uncacheable == 4  # each answer that no hit will ever give


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_stored_leaves_nothing_older_in_its_place() -> None:
    cache = Cache("1MB")
    key = cache.key("k", model="m", version="1")
    for unstorable in (object(), b"x" * 2_000_000):
        assert cache.set(key, "old")
        assert not cache.set(key, unstorable)
        assert cache.get(key) is None
    state: list[object] = ["old"]

    @cache.memoize(model="m", version="1", operation="of the state")
    def of_the_state() -> object:
        return state[0]

    for unstorable in (object(), b"x" * 2_000_000):
        state[0] = "old"
        assert of_the_state() == "old"
        state[0] = unstorable
        assert of_the_state.refresh() == unstorable
        assert of_the_state.peek() is None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (["new", object()], ["new"]),
        (["new", b"x" * 2_000_000], ["new"]),
        ({"no": "items"}, None),
        (np.array([object(), object()]), None),
    ],
    ids=["an item that cannot", "an item that is too large", "no items", "an array that cannot"],
)
def test_what_cannot_be_stored_of_a_batch_leaves_nothing_older_in_its_place(result: Any, kept: Any) -> None:
    cache, state = Cache("1MB"), [["old", "old"]]

    @cache.memoize_batch(model="m", version="1", operation="of the state", over="items")
    def of_the_state(items: list[int]) -> Any:
        return state[0]

    assert of_the_state([1, 2]) == of_the_state.peek([1, 2]) == ["old", "old"]
    state[0] = result
    answer = of_the_state.refresh([1, 2])
    assert answer is result or answer == result
    assert of_the_state.peek([1]) == kept
    assert of_the_state.peek([2]) is None


def test_where_warnings_are_errors_the_answer_still_comes() -> None:
    cache = Cache("1MB")

    @cache.memoize(model="m", version="1", operation="lambda")
    def made(number: int) -> object:
        return object()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(made(1)) is object


def test_an_entry_of_records_is_read_through_the_function_that_stored_it() -> None:
    cache = Cache(capacity="1MB", ttl="1h")

    @cache.memoize(model="m", version="1", operation="answer")
    def answer(label: str) -> list[Answer]:
        return [Answer(label, np.arange(3))]

    answer("a")
    key = answer.key("a")
    before = cache.stats()
    with pytest.warns(UnreadableEntry, match=r"the return annotation of the function.*call that function") as caught:
        assert cache.get(key, "default") == "default"
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        assert cache.get_many([key, key]) == [None, None]
        assert cache.lookup(key).source == "miss"
        assert key in cache  # there is an entry, which the function can read
        assert answer.peek("a") is not None
        assert answer("a")[0].label == "a"
        assert cache.warm([key]) == 1
    after = cache.stats()
    assert (after.misses - before.misses, after.hits_l1 - before.hits_l1, after.stores - before.stores) == (4, 1, 0)
    assert cache.get_or_compute(key, lambda: "computed") == "computed"
    assert cache.get(key) == "computed"


def test_a_stale_entry_of_records_is_a_miss_for_lookup_and_saves_no_time() -> None:
    clock = ManualClock(0.0)
    cache = Cache(capacity="1MB", ttl="10s", clock=clock)

    @cache.memoize(model="m", version="1", operation="answer", stale_while_revalidate="1m")
    def answer(label: str) -> list[Answer]:
        clock.advance(0.1)
        return [Answer(label, np.arange(3))]

    answer("a")
    clock.advance(20)
    before = cache.stats()
    with pytest.warns(UnreadableEntry):
        assert cache.lookup(answer.key("a")).source == "miss"
    after = cache.stats()
    assert (after.stale_hits, after.misses) == (before.stale_hits, before.misses + 1)
    assert after.saved_seconds == before.saved_seconds


def test_a_warning_that_is_an_error_does_not_take_the_place_of_a_miss() -> None:
    cache = Cache(capacity="1MB")

    @cache.memoize(model="m", version="1", operation="answer")
    def answer(label: str) -> Answer:
        return Answer(label, np.arange(3))

    answer("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(answer.key("a"), 7) == 7


@pytest.mark.parametrize("batch", [False, True])
def test_a_hit_that_does_not_decode_is_counted_as_the_miss_that_it_is(batch: bool) -> None:
    cache = Cache(capacity="1MB")
    broken = False

    class Odd:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Odd)

        __hash__ = None  # type: ignore[assignment]

    def decode(stored: Any) -> Odd:
        if broken:
            raise RuntimeError("no")
        return Odd()

    register_value(Odd, "test.OddHit", lambda value: 1, decode)
    if batch:

        @cache.memoize_batch(model="m", version="1", operation="odd", over="items")
        def odd(items: list[int]) -> list[Any]:
            return [Odd() for _ in items]

        def call() -> Any:
            return odd([1])
    else:

        @cache.memoize(model="m", version="1", operation="odd")
        def single(item: int) -> Any:
            return Odd()

        def call() -> Any:
            return single(1)

    call()
    call()
    before = cache.stats()
    assert (before.hits_l1, before.misses) == (1, 1)
    broken = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    after = cache.stats()
    assert (after.hits_l1, after.misses) == (1, 2)
    assert after.saved_seconds == before.saved_seconds
