"""LangChain's embeddings behind the cache: a known text never reaches the model, and vectors are the model's."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from infercache import Cache, UncacheableResult
from infercache.adapters.langchain import CachedEmbeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infercache.testing import ManualClock
    from servers import Server


class Model(Embeddings):
    """A model that notes what it is asked; its queries' vectors are others than its documents'."""

    def __init__(self, vector: Callable[[str], Any] | None = None) -> None:
        inner = DeterministicFakeEmbedding(size=8)
        self.vector = vector or inner.embed_query
        self.asked: list[list[str] | str] = []
        self.fails: Exception | None = None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(texts)
        if self.fails is not None:
            raise self.fails
        return [self.vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.asked.append(text)
        if self.fails is not None:
            raise self.fails
        vector: list[float] = self.vector(f"query: {text}")
        return vector


class AsyncModel(Model):
    """One with asynchronous forms of its own."""

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        return self.embed_query(text)


def embeddings(model: Embeddings, cache: Cache, /, **options: Any) -> CachedEmbeddings:
    return CachedEmbeddings(model, cache, **{"model": "e5", "version": "1", **options})


def bits(vector: list[float]) -> bytes:
    assert all(type(number) is float for number in vector)
    return struct.pack(f"<{len(vector)}d", *vector)


def test_the_model_sees_distinct_missing_documents_only_and_order_is_kept(cache: Cache) -> None:
    model = Model()
    cached = embeddings(model, cache)
    first = cached.embed_documents(["a", "b", "a"])
    second = cached.embed_documents(["c", "b", "a", "c"])
    assert model.asked == [["a", "b"], ["c"]]
    assert first == [model.vector("a"), model.vector("b"), model.vector("a")]
    assert second == [model.vector("c"), model.vector("b"), model.vector("a"), model.vector("c")]
    stats = cache.stats()
    assert (stats.hits_l1, stats.misses, stats.coalesced, stats.stores) == (2, 5, 2, 3)


async def test_the_asynchronous_forms_do_the_same_and_share_their_entries(cache: Cache) -> None:
    model = AsyncModel()
    cached = embeddings(model, cache)
    first = await cached.aembed_documents(["a", "b", "a"])
    query = await cached.aembed_query("a")
    assert model.asked == [["a", "b"], "a"]
    assert cached.embed_documents(["b", "a"]) == [first[1], first[0]]
    assert cached.embed_query("a") == query == await cached.aembed_query("a")
    assert await cached.aembed_documents(["b", "c"]) == [model.vector("b"), model.vector("c")]
    assert model.asked == [["a", "b"], "a", ["c"]]


async def test_a_model_without_asynchronous_forms_is_asked_all_the_same(cache: Cache) -> None:
    model = Model()
    cached = embeddings(model, cache)
    assert await cached.aembed_query("a") == await cached.aembed_query("a") == model.vector("query: a")
    assert await cached.aembed_documents(["a"]) == [model.vector("a")]
    assert model.asked == ["a", ["a"]]


def test_a_query_and_a_document_of_one_text_share_nothing(cache: Cache) -> None:
    model = Model()
    cached = embeddings(model, cache)
    assert cached.embed_documents(["a"]) == [model.vector("a")]
    assert cached.embed_query("a") == cached.embed_query("a") == model.vector("query: a")
    assert model.asked == [["a"], "a"]


@pytest.mark.parametrize("other", [{"model": "e6"}, {"version": "2"}])
def test_models_and_versions_share_nothing(cache: Cache, other: dict[str, str]) -> None:
    one, two = Model(), Model()
    ours, theirs = embeddings(one, cache), embeddings(two, cache, **other)
    for cached in (ours, theirs, ours, theirs):
        cached.embed_documents(["a"])
        cached.embed_query("a")
    assert one.asked == two.asked == [["a"], "a"]


@given(st.lists(st.lists(st.floats(), min_size=1, max_size=20), min_size=1, max_size=5))
def test_numbers_come_back_bit_for_bit(vectors: list[list[float]]) -> None:
    with Cache("1MB") as cache:
        by_text = {str(place): vector for place, vector in enumerate(vectors)}
        model = Model(by_text.__getitem__)
        cached = embeddings(model, cache)
        missed, hit = cached.embed_documents(list(by_text)), cached.embed_documents(list(by_text))
        assert len(model.asked) == 1
        for given_, first, second in zip(vectors, missed, hit, strict=True):
            assert bits(given_) == bits(first) == bits(second)


@pytest.mark.parametrize(
    "vector",
    [
        [0.1, -0.0, 1e300, math.inf],
        [0.5, -0.0, 1e-45],
        [1, -128, 127],
        [True, False],
        [2**80, 1],
        [],
        [[0.5], [1.5, 2.5]],
    ],
    ids=["float64", "float32", "int8", "binary", "large", "none", "ragged"],
)
def test_whatever_kind_of_numbers_a_model_gives_comes_back(cache: Cache, vector: list[Any]) -> None:
    model = Model(lambda _: vector)
    cached = embeddings(model, cache)
    missed, hit = cached.embed_query("a"), cached.embed_query("a")
    assert missed == hit == vector
    assert list(map(type, missed)) == list(map(type, hit)) == list(map(type, vector))
    assert len(model.asked) == 1


def test_numbers_of_32_bits_take_32_bits(cache: Cache) -> None:
    embeddings(Model(lambda _: [0.5] * 1_000), cache).embed_query("a")
    narrow = cache.stats().bytes
    cache.clear()
    embeddings(Model(lambda _: [0.1] * 1_000), cache).embed_query("a")
    assert cache.stats().bytes - narrow > 3_900


def test_a_vector_that_is_changed_changes_no_others(cache: Cache) -> None:
    cached = embeddings(Model(), cache)
    (first,) = cached.embed_documents(["a"])
    kept = list(first)
    first[0] = 7.0
    cached.embed_documents(["a"])[0][1] = 7.0
    assert cached.embed_documents(["a"]) == [kept]


@pytest.mark.parametrize(
    "purge",
    [{"model": "e5"}, {"model": "e5", "version": "1"}, {"tags": ["text:a"]}, {"all": True}],
    ids="-".join,
)
async def test_a_purge_hides_documents_and_queries(cache: Cache, purge: dict[str, Any]) -> None:
    model = Model()
    cached = embeddings(model, cache, tags=["text:{text}"])
    for _ in range(2):
        cached.embed_documents(["a"])
        cached.embed_query("a")
    cache.invalidate(**purge)
    await cached.aembed_documents(["a"])
    await cached.aembed_query("a")
    assert model.asked == [["a"], "a"] * 2


def test_a_purge_of_another_model_version_or_tag_hides_nothing(cache: Cache) -> None:
    model = Model()
    cached = embeddings(model, cache, tags=lambda text: [f"first:{text[0]}"])
    cached.embed_documents(["ab", "cd"])
    cache.invalidate(tags=["first:x"])
    cache.invalidate(model="e6")
    cache.invalidate(model="e5", version="2")
    cached.embed_documents(["ab", "cd"])
    assert model.asked == [["ab", "cd"]]
    cache.invalidate(tags=["first:a"])
    cached.embed_documents(["ab", "cd"])
    assert model.asked == [["ab", "cd"], ["ab"]]


async def test_a_text_without_utf8_is_passed_to_the_model(cache: Cache) -> None:
    model = AsyncModel(lambda text: [float(len(text))])
    cached = embeddings(model, cache)
    for _ in range(2):
        assert (
            cached.embed_documents(["\ud800", "a"]) == await cached.aembed_documents(["\ud800", "a"]) == [[1.0], [1.0]]
        )
        assert cached.embed_query("\ud800") == await cached.aembed_query("\ud800") == [8.0]
    assert model.asked == [["\ud800", "a"], ["\ud800", "a"], "\ud800", "\ud800"] * 2


def test_a_vector_that_cannot_be_stored_is_passed_through_counted_and_warned_of(cache: Cache) -> None:
    unknown = object()
    model = Model(lambda _: [unknown])
    cached = embeddings(model, cache)
    with pytest.warns(UncacheableResult, match="embed_query"):
        assert cached.embed_query("a") == [unknown]
    assert cached.embed_query("a") == [unknown]
    assert model.asked == ["a", "a"]
    assert cache.stats().uncacheable == 2


def test_no_texts_ask_no_model(cache: Cache) -> None:
    model = Model()
    assert embeddings(model, cache).embed_documents([]) == []
    assert model.asked == []


def test_at_most_so_many_documents_are_asked_for_at_once(cache: Cache) -> None:
    model = Model()
    assert len(embeddings(model, cache, max_batch=2).embed_documents(["a", "b", "c"])) == 3
    assert [len(texts) for texts in model.asked] == [2, 1]


def test_entries_live_as_long_as_they_are_to_and_stand_in_for_a_model_that_fails(
    cache: Cache, clock: ManualClock
) -> None:
    model = Model()
    cached = embeddings(model, cache, ttl="10s", stale_if_error="1h")
    vectors = cached.embed_documents(["a"])
    clock.advance(11)
    model.fails = ConnectionError("no")
    assert cached.embed_documents(["a"]) == vectors
    assert len(model.asked) == 2
    with pytest.raises(ConnectionError, match="no"):
        cached.embed_documents(["b"])


def test_what_cannot_be_meant_is_refused(cache: Cache) -> None:
    with pytest.raises(TypeError, match="version is missing and has no default"):
        CachedEmbeddings(Model(), cache, model="e5")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="give an Embeddings of LangChain"):
        embeddings("e5", cache)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give a list of texts"):
        embeddings(Model(), cache, tags="one")
    with pytest.raises(ValueError, match="max_batch"):
        embeddings(Model(), cache, max_batch=0)


def test_a_vector_store_of_langchain_asks_the_model_once_for_a_text(cache: Cache) -> None:
    model = Model()
    for _ in range(2):
        store = InMemoryVectorStore(embeddings(model, cache))
        store.add_texts(["red shoes", "blue hat", "green scarf"])
        (found,) = store.similarity_search("blue hat", k=1)
    assert found.page_content in {"red shoes", "blue hat", "green scarf"}
    assert model.asked == [["red shoes", "blue hat", "green scarf"], "blue hat"]


@pytest.fixture
def processes(server: Server) -> Iterator[tuple[Cache, Cache]]:
    """Two caches that share a tier, as in two processes."""
    with Cache("4MB", l2=server.url) as one, Cache("4MB", l2=server.unix_url) as other:
        yield one, other


@pytest.mark.network
def test_processes_that_share_a_tier_share_vectors(processes: tuple[Cache, Cache]) -> None:
    ours, theirs = Model(), Model()
    one, other = embeddings(ours, processes[0]), embeddings(theirs, processes[1])
    vectors = one.embed_documents(["a", "b"])
    assert other.embed_documents(["b", "a"]) == [vectors[1], vectors[0]]
    assert theirs.asked == []
