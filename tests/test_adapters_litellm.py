"""LiteLLM's response cache on infercache: a hit never calls the model, and purges reach what LiteLLM stored.

The models are LiteLLM's own kind of a provider that a program brings along (`CustomLLM`), so no request leaves the
process.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import litellm
import pytest
from litellm.caching.caching_handler import _PENDING_CACHE_WRITES
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

from infercache import Cache, UncacheableResult
from infercache.adapters.litellm import LiteLLMBackend, litellm_cache, request_tags

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from infercache.testing import ManualClock


class Model(litellm.CustomLLM):  # type: ignore[misc]
    """A provider that notes what it is asked, and numbers its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.before: Callable[[], object] | None = None

    def _answer(self, messages: list[dict[str, Any]], response: Any, model: str) -> Any:
        self.asked.append(messages[-1]["content"])
        if self.before is not None:
            self.before()
        response.model = model
        response.choices[0].message.content = f"answer {len(self.asked)}"
        response.choices[0].finish_reason = "stop"
        response.usage = litellm.Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)
        return response

    def completion(self, **asked: Any) -> Any:
        return self._answer(asked["messages"], asked["model_response"], asked["model"])

    async def acompletion(self, **asked: Any) -> Any:
        return self.completion(**asked)

    def _chunks(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.asked.append(messages[-1]["content"])
        texts = [f"answer {len(self.asked)}", " and", " more", ""]
        return [
            {"text": text, "is_finished": not text, "finish_reason": "" if text else "stop", "usage": None, "index": 0}
            for text in texts
        ]

    def streaming(self, **asked: Any) -> Iterator[dict[str, Any]]:
        yield from self._chunks(asked["messages"])

    async def astreaming(self, **asked: Any) -> AsyncIterator[dict[str, Any]]:
        for chunk in self._chunks(asked["messages"]):
            yield chunk

    def embedding(self, **asked: Any) -> Any:
        self.asked.append(asked["input"])
        if self.before is not None:
            self.before()
        response = asked["model_response"]
        response.model = asked["model"]
        response.data = [
            {"object": "embedding", "index": place, "embedding": [len(text) / 3, 0.1 * len(self.asked), -0.0]}
            for place, text in enumerate(asked["input"])
        ]
        count = len(asked["input"])
        response.usage = litellm.Usage(prompt_tokens=count, completion_tokens=0, total_tokens=count)
        return response

    async def aembedding(self, **asked: Any) -> Any:
        return self.embedding(**asked)


def make(url: str) -> Cache:
    return Cache("4MB", l2=url)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    made = Model()
    monkeypatch.setattr(litellm, "custom_provider_map", [{"provider": "own", "custom_handler": made}])
    return made


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LiteLLMBackend]]:
    """Switches LiteLLM over to a cache, as users do, until the test ends."""
    for name in ("input_callback", "success_callback", "_async_success_callback"):
        monkeypatch.setattr(litellm, name, list(getattr(litellm, name)))
    monkeypatch.setattr(litellm, "cache", None)

    def put(cache: Cache, **options: Any) -> LiteLLMBackend:
        litellm.cache = litellm_cache(cache, **options)
        backend: LiteLLMBackend = litellm.cache.cache
        return backend

    return put


async def settled() -> None:
    """Waits for what LiteLLM does after an answer."""
    while _PENDING_CACHE_WRITES:
        await asyncio.gather(*_PENDING_CACHE_WRITES)
    await GLOBAL_LOGGING_WORKER.flush()
    await GLOBAL_LOGGING_WORKER.stop()


def ask(text: str = "capital?", **options: Any) -> Any:
    return litellm.completion(**{"model": "own/gpt-5", "messages": [{"role": "user", "content": text}], **options})


async def aask(text: str = "capital?", **options: Any) -> Any:
    answer = await litellm.acompletion(
        **{"model": "own/gpt-5", "messages": [{"role": "user", "content": text}], **options}
    )
    await settled()
    return answer


def content(answer: Any) -> str:
    text: str = answer.choices[0].message.content
    return text


def test_a_known_question_never_calls_the_model(model: Model, switch: Any, cache: Cache) -> None:
    switch(cache)
    first, second = ask(), ask()
    assert (content(first), content(second)) == ("answer 1", "answer 1")
    assert (second.id, second.usage.total_tokens, second.model) == (first.id, 5, first.model)
    assert second._hidden_params["cache_hit"] is True
    assert model.asked == ["capital?"]
    stats = cache.stats()
    assert (stats.hits_l1, stats.misses, stats.stores) == (1, 1, 1)


async def test_a_known_question_never_calls_the_model_asynchronously(model: Model, switch: Any, cache: Cache) -> None:
    switch(cache)
    first = await aask()
    assert content(await aask()) == content(ask()) == content(first) == "answer 1"
    assert model.asked == ["capital?"]


async def test_embeddings_are_cached_item_by_item_where_litellm_does_so(
    model: Model, switch: Any, cache: Cache
) -> None:
    switch(cache)

    async def embed(*texts: str) -> list[list[float]]:
        answer = await litellm.aembedding(model="own/e5", input=list(texts))
        await settled()
        return [item["embedding"] for item in answer.data]

    first = await embed("a", "bb")
    second = await embed("bb", "ccc", "a")
    assert model.asked == [["a", "bb"], ["ccc"]]
    assert second == [first[1], [1.0, 0.2, -0.0], first[0]]
    assert await embed("a", "ccc") == [first[0], second[1]]
    assert len(model.asked) == 2


def test_synchronous_embeddings_are_cached_whole(model: Model, switch: Any, cache: Cache) -> None:
    switch(cache)
    answers = [litellm.embedding(model="own/e5", input=["a", "bb"]) for _ in range(2)]
    assert answers[0].data[1]["embedding"] == answers[1].data[1]["embedding"] == [2 / 3, 0.1, -0.0]
    assert model.asked == [["a", "bb"]]


def test_a_stream_is_cached_once_it_was_read(model: Model, switch: Any, cache: Cache) -> None:
    switch(cache)
    texts = ["".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True)) for _ in range(2)]
    assert texts == ["answer 1 and more"] * 2
    assert model.asked == ["capital?"]


@pytest.mark.parametrize(
    "other",
    [{"text": "another?"}, {"model": "own/gpt-6"}, {"temperature": 0.5}, {"max_tokens": 7}],
    ids=lambda other: next(iter(other)),
)
def test_questions_models_and_parameters_share_nothing(
    model: Model, switch: Any, cache: Cache, other: dict[str, Any]
) -> None:
    switch(cache)
    assert [content(ask()), content(ask(**other)), content(ask()), content(ask(**other))] == [
        "answer 1", "answer 2", "answer 1", "answer 2"
    ]  # fmt: skip


def test_versions_share_nothing(model: Model, switch: Any, cache: Cache) -> None:
    for version, expected in (("1", "answer 1"), ("2", "answer 2"), ("1", "answer 1")):
        switch(cache, version=version)
        assert content(ask()) == expected


@pytest.mark.parametrize(
    "purge",
    [
        {"tags": ["model:own/gpt-5"]},
        {"tags": ["user:u1"]},
        {"model": "litellm"},
        {"model": "litellm", "version": "1"},
    ],
    ids=["model", "tag", "all", "version"],
)
async def test_a_purge_hides(model: Model, switch: Any, cache: Cache, purge: dict[str, Any]) -> None:
    switch(cache)
    said = {"metadata": {"tags": ["user:u1", 7, "\ud800"]}}
    assert content(ask(**said)) == content(await aask(**said)) == "answer 1"
    cache.invalidate(tags=["model:own/gpt-6", "user:u2"], model="litellm", version="2")
    assert content(ask(**said)) == "answer 1"
    cache.invalidate(**purge)
    assert content(await aask(**said)) == content(ask(**said)) == "answer 2"


async def test_a_purge_hides_embeddings(model: Model, switch: Any, cache: Cache) -> None:
    switch(cache)
    for _ in range(2):
        for _ in range(2):
            await litellm.aembedding(model="own/e5", input=["a", "b"])
            await settled()
        cache.invalidate(tags=["model:own/e5"])
    assert model.asked == [["a", "b"]] * 2


def test_an_answer_that_was_being_made_when_a_purge_came_is_not_kept(model: Model, switch: Any, cache: Cache) -> None:
    switch(cache)
    model.before = lambda: cache.invalidate(tags=["model:own/gpt-5"])
    ask()
    model.before = None
    assert [content(ask()), content(ask())] == ["answer 2", "answer 2"]


async def test_items_that_were_being_made_when_a_purge_came_are_not_kept(
    model: Model, switch: Any, cache: Cache
) -> None:
    switch(cache)
    model.before = lambda: cache.invalidate(model="litellm")
    for _ in range(3):
        await litellm.aembedding(model="own/e5", input=["a", "b"])
        await settled()
        model.before = None
    assert model.asked == [["a", "b"]] * 2


def test_tags_may_be_of_your_own(model: Model, switch: Any, cache: Cache) -> None:
    switch(cache, tags=lambda request: [f"asked:{request['messages'][0]['content']}"])
    ask("a"), ask("b")
    cache.invalidate(tags=["asked:a"])
    assert (content(ask("b")), content(ask("a"))) == ("answer 2", "answer 3")


def test_the_groups_of_a_router_are_tags() -> None:
    request = {"model": "azure/x", "metadata": {"model_group": "gpt", "tags": ["a", None]}, "litellm_metadata": None}
    assert request_tags(request) == ["model:azure/x", "model:gpt", "a"]
    assert request_tags({"model": None, "metadata": "x"}) == []


def test_requests_control_their_caching_as_litellm_says(
    model: Model, switch: Any, cache: Cache, clock: ManualClock
) -> None:
    switch(cache, ttl="1h")
    ask()
    assert content(ask(cache={"no-cache": True})) == "answer 2"
    assert content(ask()) == "answer 2", "what was asked anew is what is kept"
    assert content(ask("x", cache={"no-store": True})) == "answer 3"
    assert content(ask("x", cache={"ttl": 10})) == "answer 4"
    clock.advance(9)
    assert content(ask("x")) == "answer 4"
    clock.advance(2)
    assert content(ask("x")) == "answer 5"
    assert content(ask("y", cache={"ttl": 0})) == "answer 6"
    assert content(ask("y")) == "answer 7"
    clock.advance(3_601)
    assert content(ask()) == "answer 8"


def test_namespaces_of_requests_share_nothing(model: Model, switch: Any, cache: Cache) -> None:
    switch(cache)
    texts = [content(ask(cache={"namespace": name})) for name in ("u1", "u2", "u1")]
    assert texts == ["answer 1", "answer 2", "answer 1"]


async def test_what_is_kept_is_plain_and_shared_by_nobody(cache: Cache) -> None:
    backend = LiteLLMBackend(cache)
    value = {"timestamp": 1.5, "response": {"embedding": [0.1, -0.0], "index": 0, "model": None}}
    backend.set_cache("k", value)
    await backend.async_set_cache("a", value)
    await backend.async_set_cache_pipeline([("p", value), ("q", value)], model="e5")
    for key in ("k", "a", "p", "q"):
        found = backend.get_cache(key)
        assert found == value == await backend.async_get_cache(key)
        found["response"]["embedding"][0] = 7
        assert (
            backend.batch_get_cache([key, "none"])
            == await backend.async_batch_get_cache([key, "none"])
            == [value, None]
        )


async def test_keys_can_be_deleted_and_all_of_it_flushed(cache: Cache) -> None:
    backend = LiteLLMBackend(cache)
    other = cache.key("x", model="m", version="1")
    cache.set(other, "kept")
    for key in "abc":
        backend.set_cache(key, key)
    backend.delete_cache("a")
    await backend.delete_cache_keys(["b"])
    assert backend.batch_get_cache("abc") == [None, None, "c"]
    backend.flush_cache()
    assert backend.get_cache("c") is None
    assert cache.get(other) == "kept"


async def test_what_cannot_be_stored_is_passed_through_counted_and_warned_of(cache: Cache) -> None:
    backend = LiteLLMBackend(cache)
    with pytest.warns(UncacheableResult, match="object"):
        backend.set_cache("k", {"response": object()})
    await backend.async_set_cache("k", {"response": object()})
    assert backend.get_cache("k") is None
    assert cache.stats().uncacheable == 2


def test_a_life_that_is_none_is_no_fault_of_the_request(
    model: Model, switch: Any, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    switch(cache)
    with caplog.at_level(logging.ERROR):
        assert content(ask(cache={"ttl": "soon"})) == "answer 1"
    assert content(ask()) == "answer 2"
    with pytest.raises(ValueError, match="ttl"):
        litellm_cache(cache, ttl="soon")


@pytest.mark.network
def test_processes_that_share_a_tier_share_answers(model: Model, switch: Any, pair: tuple[Cache, Cache]) -> None:
    one, other = pair
    switch(one)
    ask()
    switch(other)
    assert content(ask()) == "answer 1"
    assert other.stats().hits_l2 == 1
    token = other.invalidate(tags=["model:own/gpt-5"])
    assert one.get(one.key("any", model="m", version="1"), min_token=token) is None
    switch(one)
    assert content(ask()) == "answer 2"
