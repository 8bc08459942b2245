"""A memoized hit, and a batch of known texts, beside the caches that people put before embedding models.

Each answers a question from memory: a dict of about 160 bytes, or a text of as many, answered by 384 float32. The peers
give what they are made to give: LangChain a list of floats from the bytes of its store, LiteLLM the object it holds.
"""

from __future__ import annotations

import functools
import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import cachetools
import numpy as np
import numpy.typing as npt
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.embeddings import Embeddings
from langchain_core.stores import InMemoryByteStore
from litellm.caching.caching import Cache as LiteLLMCache

from infercache import Cache
from measure import Measure, Wanted

ANSWER: npt.NDArray[np.float32] = np.random.default_rng(0).random(384, dtype=np.float32)
QUESTION: dict[str, Any] = {
    "user": "u-48213",
    "query": "waterproof running shoes for wide feet, under a hundred",
    "filters": {"size": 44, "in_stock": True, "brands": ["a", "b"]},
    "page": 1,
    "lang": "en",
}
TEXT = "waterproof running shoes for wide feet, under a hundred, size forty-four, in stock, of a brand that lasts" * 2
HITS = 1_000  # in one round

one_hit = pytest.mark.benchmark(group="a known question of 160 bytes, answered by 384 float32")
batch = pytest.mark.benchmark(group="256 known texts of a batch, answered by one (256, 384) array, a text")


def again(call: Callable[[], Any]) -> Callable[[], None]:
    """A loop of `HITS` calls."""

    def loop() -> None:
        for _ in range(HITS):
            call()

    return loop


@one_hit
def bench_infercache_memoize(measure: Measure) -> None:
    cache = Cache(capacity="64MB", ttl="1h")

    @cache.memoize(model="bench", version="1", operation="answer")
    def answer(question: dict[str, Any]) -> npt.NDArray[np.float32]:
        return ANSWER

    answer(QUESTION)
    assert np.array_equal(answer(QUESTION), ANSWER)
    wanted = [
        Wanted(under=2e-6),
        Wanted("langchain_cache_backed_embeddings", at_most=1 / 100),
        Wanted("litellm_local_cache", at_most=1 / 5),
    ]
    headline = "a memoized hit: a dict of 160 bytes, answered by 384 float32"
    measure(again(functools.partial(answer, QUESTION)), operations=HITS, wanted=wanted, headline=headline)
    assert cache.stats().misses == 1


class Fixed(Embeddings):
    """An embedding model that has one answer."""

    answer = ANSWER.tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The same for each."""
        return [self.answer for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        """The same."""
        return self.answer


def langchain() -> CacheBackedEmbeddings:
    """LangChain's cache before that model, on its in-memory store."""
    return CacheBackedEmbeddings.from_bytes_store(
        Fixed(), InMemoryByteStore(), namespace="bench", query_embedding_cache=True, key_encoder="sha256"
    )


@one_hit
def bench_langchain_cache_backed_embeddings(measure: Measure) -> None:
    embeddings = langchain()
    text = TEXT[:160]
    embeddings.embed_query(text)
    measure(again(functools.partial(embeddings.embed_query, text)), operations=HITS, rounds=15)


@one_hit
def bench_litellm_local_cache(measure: Measure) -> None:
    cache = LiteLLMCache(type="local")
    question = {"model": "bench", "input": TEXT[:160]}
    cache.add_cache({"data": ANSWER.tolist()}, **question)
    assert cache.get_cache(**question) is not None
    measure(again(functools.partial(cache.get_cache, **question)), operations=HITS, rounds=20)


@one_hit
def bench_lru_cache_of_json_text(measure: Measure) -> None:
    # What people write by hand: the question as text, for a dict is no key. It hands out one shared array.
    @functools.lru_cache(maxsize=1 << 16)
    def answer(question: str) -> npt.NDArray[np.float32]:
        return ANSWER

    measure(again(lambda: answer(json.dumps(QUESTION, sort_keys=True))), operations=HITS)


@one_hit
def bench_cachetools_of_json_text(measure: Measure) -> None:
    entries: cachetools.TTLCache[str, Any] = cachetools.TTLCache(1 << 16, 3600)
    lock = threading.Lock()

    @cachetools.cached(entries, key=lambda question: json.dumps(question, sort_keys=True), lock=lock)
    def answer(question: dict[str, Any]) -> npt.NDArray[np.float32]:
        return ANSWER

    measure(again(functools.partial(answer, QUESTION)), operations=HITS)


@pytest.mark.benchmark(group="a question that nobody has asked, the model's own time aside")
def bench_infercache_miss(measure: Measure) -> None:
    cache = Cache(capacity="64MB", ttl="1h")

    @cache.memoize(model="bench", version="1", operation="answer")
    def answer(question: int) -> npt.NDArray[np.float32]:
        return ANSWER

    new = itertools.count()
    measure(again(lambda: answer(next(new))), operations=HITS)
    assert cache.stats().hits_l1 == 0


@pytest.mark.benchmark(group="a question that nobody has asked, the model's own time aside")
def bench_cachetools_miss(measure: Measure) -> None:
    entries: cachetools.TTLCache[Any, Any] = cachetools.TTLCache(1 << 16, 3600)

    @cachetools.cached(entries, lock=threading.Lock())
    def answer(question: int) -> npt.NDArray[np.float32]:
        return ANSWER

    new = itertools.count()
    measure(again(lambda: answer(next(new))), operations=HITS)


def texts() -> list[str]:
    """256 different texts of some 60 characters."""
    return [f"{number:04d} {TEXT[number % 40 : number % 40 + 55]}" for number in range(256)]


@batch
def bench_infercache_memoize_batch(measure: Measure) -> None:
    cache = Cache(capacity="64MB", ttl="1h")
    answers = np.random.default_rng(1).random((256, 384), dtype=np.float32)

    @cache.memoize_batch(model="bench", version="1", operation="embed", over="texts")
    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        return answers

    asked = texts()
    embed(asked)
    assert np.array_equal(embed(asked), answers)
    headline = "a text of a `memoize_batch` of 256 known ones"
    calls = again(functools.partial(embed, asked))
    measure(calls, operations=HITS * 256, rounds=10, wanted=[Wanted(under=1e-6)], headline=headline)


@batch
def bench_langchain_cache_backed_documents(measure: Measure) -> None:
    embeddings = langchain()
    asked = texts()
    embeddings.embed_documents(asked)
    measure(functools.partial(embeddings.embed_documents, asked), operations=256, rounds=15)
