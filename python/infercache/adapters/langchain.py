"""LangChain: embeddings by item, and its cache of language models' answers.

>>> from infercache import Cache
>>> from infercache.adapters.langchain import CachedEmbeddings
>>> from langchain_core.embeddings import DeterministicFakeEmbedding
>>> embeddings = CachedEmbeddings(DeterministicFakeEmbedding(size=4), Cache(), model="e5-small", version="1")
>>> embeddings.embed_query("red shoes") == embeddings.embed_query("red shoes")
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from infercache.adapters.begun import Begun
from infercache.adapters.terms import Terms
from infercache.effects import MISSING
from infercache.errors import MissingExtra, UnsupportedInput, is_encodable, shown
from infercache.functions import UNSET, says_why
from infercache.tags import check_tags
from infercache.uncacheable import warn_uncacheable

try:
    from langchain_core.caches import BaseCache
    from langchain_core.embeddings import Embeddings

    from infercache.adapters.generations import NotExact, packed, unpacked
except ImportError as error:
    raise MissingExtra(
        f"the adapter for LangChain needs langchain-core ({error}): pip install 'infercache[langchain]'"
    ) from None

if TYPE_CHECKING:
    from langchain_core.outputs import Generation

    from infercache import Cache
    from infercache._core import Key
    from infercache.durations import Duration

__all__ = ["CachedEmbeddings", "LLMCache"]


class CachedEmbeddings(Embeddings):
    """Embeddings whose known texts are answered from a cache; the model sees the distinct unknown ones only.

    Documents and queries have entries of their own, since models may treat them differently. Numbers come back bit for
    bit, as Python's own.

    Args:
        embeddings: the model, any `Embeddings` of LangChain.
        cache: an `infercache.Cache`, which may serve others, too.
        model: the model's name.
        version: its version. Both are part of every key, and what `cache.invalidate(model=…, version=…)` names.
        ttl: how long a vector is fresh; by default the cache's, None: until evicted.
        tags: what a purge may name: templates of the text ("text:{text}"), or `f(text)` that returns them.
        max_batch: most documents that the model is given at once; None: all that are missing.
        stale_while_revalidate: for how long after that it is served while it is computed anew in the background.
        stale_if_error: for how long it stands in when the model raises.

    Raises:
        TypeError: model or version is missing, or `embeddings` are none.
        InvalidArgument: another option's value is not acceptable.
    """

    @says_why
    def __init__(
        self,
        embeddings: Embeddings,
        cache: Cache,
        *,
        model: str,
        version: str,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] | Callable[[str], Iterable[str]] = (),
        max_batch: int | None = None,
        stale_while_revalidate: Duration | None = None,
        stale_if_error: Duration | None = None,
    ) -> None:
        if not callable(getattr(embeddings, "embed_documents", None)):
            raise TypeError(f"embeddings={shown(embeddings)}: give an Embeddings of LangChain, the model to be asked")
        self.embeddings = embeddings
        self.cache = cache
        of_text = tags
        options: dict[str, Any] = {
            "model": model,
            "version": version,
            "ttl": ttl,
            "tags": (lambda vector, text: of_text(text)) if callable(of_text) else tuple(check_tags(of_text)),
            "stale_while_revalidate": stale_while_revalidate,
            "stale_if_error": stale_if_error,
        }
        # Called synchronously or not, a text has one entry: the operation and the parameter's name make the key.
        documents = cache.memoize_batch(
            over="text", max_batch=max_batch, operation="langchain.embed_documents", **options
        )
        query = cache.memoize(operation="langchain.embed_query", **options)

        @documents
        def embed_documents(text: list[str]) -> list[Any]:
            return [_narrow(vector) for vector in embeddings.embed_documents(text)]

        @documents
        async def aembed_documents(text: list[str]) -> list[Any]:
            return [_narrow(vector) for vector in await embeddings.aembed_documents(text)]

        @query
        def embed_query(text: str) -> Any:
            return _narrow(embeddings.embed_query(text))

        @query
        async def aembed_query(text: str) -> Any:
            return _narrow(await embeddings.aembed_query(text))

        self._documents, self._adocuments = embed_documents, aembed_documents
        self._query, self._aquery = embed_query, aembed_query

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, in their order."""
        if not texts:
            return []
        try:
            return [_wide(vector) for vector in self._documents(list(texts))]
        except UnsupportedInput:
            if not _are_unkeyable(texts):
                raise
            return self.embeddings.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        try:
            return _wide(self._query(text))
        except UnsupportedInput:
            if not _are_unkeyable([text]):
                raise
            return self.embeddings.embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`."""
        if not texts:
            return []
        try:
            return [_wide(vector) for vector in await self._adocuments(list(texts))]
        except UnsupportedInput:
            if not _are_unkeyable(texts):
                raise
            return await self.embeddings.aembed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`."""
        try:
            return _wide(await self._aquery(text))
        except UnsupportedInput:
            if not _are_unkeyable([text]):
                raise
            return await self.embeddings.aembed_query(text)


def _are_unkeyable(texts: Iterable[str]) -> bool:
    """Whether one of the texts has no UTF-8, and so no key: the model, which may take it, is then asked as it is."""
    return any(isinstance(text, str) and not is_encodable(text) for text in texts)


def _narrow(vector: Any) -> Any:
    """A vector as it is stored: an array of the fewest bytes that have all of its bits."""
    try:
        array = np.asarray(vector)
    except ValueError:
        return vector
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        return vector
    if array.dtype == np.float64:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            half = array.astype(np.float32)
            if np.array_equal(half.astype(np.float64).view(np.int64), array.view(np.int64)):
                return half
    return array


def _wide(vector: Any) -> list[float]:
    """A vector as LangChain has it."""
    numbers: list[float] = vector.tolist() if isinstance(vector, np.ndarray) else vector
    return numbers


class LLMCache(BaseCache):
    """LangChain's cache of what language and chat models answered: `set_llm_cache(LLMCache(cache))`.

    An answer is kept by its prompt and by the text in which LangChain describes the model and every parameter of the
    call. `model` and `version` come on top: they are what a purge names, and the version tells models apart that
    LangChain does not, such as one that was trained again under its old name. One model may have its own:
    `ChatOpenAI(…, cache=LLMCache(cache, model="gpt-5", version="2026-11"))`.

    Args:
        cache: an `infercache.Cache`, which may serve others, too.
        model: part of every key, and what `cache.invalidate(model=…)` names.
        version: likewise.
        ttl: how long an answer is fresh; by default the cache's, None: until evicted.
        tags: what a purge may name, or `f(prompt, llm_string)` that returns it.

    Answers come back as LangChain's own objects, equal to what was stored; what could not is not stored, counted
    (`stats().uncacheable`) and warned of once. Only a structured answer that OpenAI's client has parsed into a Pydantic
    model (`additional_kwargs["parsed"]`) is kept as a dict, as all of LangChain's caches do it.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        model: str = "langchain",
        version: str = "1",
        ttl: Duration | None = UNSET,
        tags: Iterable[str] | Callable[[str, str], Iterable[str]] = (),
    ) -> None:
        self.cache = cache
        self.model = model
        self.version = version
        self._terms = Terms(cache, model, version, ttl, tags)
        self._begun = Begun(cache)

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """What was stored for a prompt and a model; None if there is nothing."""
        key = self._key(prompt, llm_string)
        return None if key is None else self._found(key, self.cache.get(key, MISSING))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Stores an answer, unless a purge came while it was made."""
        key = self._key(prompt, llm_string)
        if key is not None and (plain := self._plain(return_val)) is not None:
            since, tags = self._begun.began(key), self._terms.tags_of(prompt, llm_string)
            self.cache.set(key, plain, ttl=self._terms.ttl, tags=tags, since=since)

    def clear(self, **_: Any) -> None:
        """Purges every answer of this `model` and `version`, and nothing else that the cache holds."""
        self.cache.invalidate(model=self.model, version=self.version)

    async def alookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """As `lookup`."""
        key = self._key(prompt, llm_string)
        return None if key is None else self._found(key, await self.cache.aget(key, MISSING))

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """As `update`."""
        key = self._key(prompt, llm_string)
        if key is not None and (plain := self._plain(return_val)) is not None:
            since, tags = self._begun.began(key), self._terms.tags_of(prompt, llm_string)
            await self.cache.aset(key, plain, ttl=self._terms.ttl, tags=tags, since=since)

    async def aclear(self, **_: Any) -> None:
        """As `clear`."""
        await self.cache.ainvalidate(model=self.model, version=self.version)

    def _key(self, prompt: str, llm_string: str) -> Key | None:
        """The key of a question; None if it has none, being no text that has UTF-8."""
        try:
            return self.cache.key(
                {"prompt": prompt, "llm": llm_string},
                model=self.model,
                version=self.version,
                operation="langchain.llm",
            )
        except UnsupportedInput:
            return None

    def _found(self, key: Key, stored: Any) -> list[Generation] | None:
        """The answer that a look-up found, if it can be built; else the model is asked."""
        answer = None if stored is MISSING else unpacked(stored)
        if answer is None:
            self._begun.missed(key)
        return answer

    def _plain(self, answer: Sequence[Generation]) -> list[Any] | None:
        """An answer as plain values; None if it would not come back the same."""
        try:
            return packed(answer)
        except NotExact as error:
            self.cache._count("uncacheable", 1)
            warn_uncacheable("LLMCache.update", str(error), self.cache.warned)
            return None
