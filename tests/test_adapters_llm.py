"""LangChain's cache of models' answers: a hit never calls the model, and is the answer that the model gave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListLLM
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from pydantic import BaseModel

from infercache import Cache, UncacheableResult
from infercache.adapters.langchain import LLMCache

if TYPE_CHECKING:
    from langchain_core.outputs import ChatResult

    from infercache.testing import ManualClock


class Chat(FakeMessagesListChatModel):
    """LangChain's model of given answers, which counts how often it is asked."""

    asked: int = 0
    before: Any = None
    name_of_model: str = "gpt-5"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self.asked += 1
        if self.before is not None:
            self.before()
        return super()._generate(*args, **kwargs)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.name_of_model}


def first_name(other: dict[str, Any]) -> str:
    return next(iter(other))


def chat(cache: Any, *answers: Any, **options: Any) -> Chat:
    given = [AIMessage(answer) if isinstance(answer, str) else answer for answer in answers]
    return Chat(responses=given, cache=cache, **options)


def make(url: str) -> Cache:
    return Cache("4MB", l2=url)


@pytest.fixture
def llm_cache(cache: Cache) -> LLMCache:
    return LLMCache(cache)


def test_a_known_prompt_never_calls_the_chat_model(cache: Cache, llm_cache: LLMCache) -> None:
    model = chat(llm_cache, "Paris", "Lyon")
    assert [model.invoke("capital?").content for _ in range(3)] == ["Paris"] * 3
    assert model.asked == 1
    stats = cache.stats()
    assert (stats.hits_l1, stats.misses, stats.stores) == (2, 1, 1)
    assert model.invoke("another?").content == "Lyon"


async def test_a_known_prompt_never_calls_the_chat_model_asynchronously(llm_cache: LLMCache) -> None:
    model = chat(llm_cache, "Paris", "Lyon")
    assert (await model.ainvoke("capital?")).content == "Paris"
    answers = await asyncio.gather(*(model.ainvoke("capital?") for _ in range(5)))
    assert {answer.content for answer in answers} == {"Paris"}
    assert model.invoke("capital?").content == "Paris"
    assert model.asked == 1


def test_a_batch_of_prompts_asks_for_unknown_ones_only(llm_cache: LLMCache) -> None:
    model = chat(llm_cache, "A", "B", "C")
    assert [answer.content for answer in model.batch(["a", "b"], {"max_concurrency": 1})] == ["A", "B"]
    assert [answer.content for answer in model.batch(["b", "c", "a"], {"max_concurrency": 1})] == ["B", "C", "A"]
    assert model.asked == 3


async def test_a_model_of_text_is_cached_too(llm_cache: LLMCache) -> None:
    model = FakeListLLM(responses=["Paris", "Lyon", "Nice"], cache=llm_cache)
    assert model.invoke("capital?") == model.invoke("capital?") == await model.ainvoke("capital?") == "Paris"
    assert model.generate(["capital?", "another?"]).generations[1][0].text == "Lyon"


def test_it_serves_every_model_of_the_process(cache: Cache) -> None:
    set_llm_cache(LLMCache(cache))
    try:
        model = chat(None, "Paris", "Lyon")
        assert model.invoke("capital?").content == model.invoke("capital?").content == "Paris"
        assert chat(False, "Lyon").invoke("capital?").content == "Lyon", "a model may do without"
    finally:
        set_llm_cache(None)


def test_parameters_and_models_share_nothing(llm_cache: LLMCache) -> None:
    model = chat(llm_cache, "A", "B", "C", "D")
    assert model.invoke("x").content == "A"
    assert model.invoke("x", stop=["."]).content == "B"
    assert model.bind(temperature=0.5).invoke("x").content == "C"
    assert chat(llm_cache, "E", name_of_model="gpt-6").invoke("x").content == "E"
    assert model.invoke("x").content == "A"


@pytest.mark.parametrize(
    "other",
    [{"prompt": "q"}, {"llm": "m"}, {"swapped": True}, {"model": "gpt-6"}, {"version": "2"}],
    ids=first_name,
)
def test_prompts_models_and_versions_share_nothing(cache: Cache, other: dict[str, Any]) -> None:
    one = LLMCache(cache, model="gpt-5", version="1")
    two = LLMCache(cache, model=other.get("model", "gpt-5"), version=other.get("version", "1"))
    one.update("p", "l", [Generation(text="ours")])
    prompt, llm = ("l", "p") if "swapped" in other else (other.get("prompt", "p"), other.get("llm", "l"))
    assert two.lookup(prompt, llm) is None
    assert one.lookup("p", "l") == [Generation(text="ours")]


CALL = {"name": "add", "args": {"a": 1, "b": [2.5, None]}, "id": "call-1", "type": "tool_call"}
USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "input_token_details": {"cache_read": 1}}
ANSWERS: dict[str, list[Generation]] = {
    "text": [Generation(text="Paris")],
    "information": [Generation(text="Paris", generation_info={"finish_reason": "stop", "logprobs": [-0.5, -1e300]})],
    "several": [Generation(text="a"), Generation(text="b")],
    "none": [],
    "chunk": [GenerationChunk(text="Par", generation_info={"n": 1})],
    "message": [ChatGeneration(message=AIMessage("Paris", id="run-1", name="assistant"))],
    "tools": [
        ChatGeneration(
            message=AIMessage(
                "",
                tool_calls=[CALL],
                invalid_tool_calls=[{"name": "x", "args": "{", "id": "2", "error": "cut", "type": "invalid_tool_call"}],
                usage_metadata=USAGE,
                response_metadata={"model_name": "gpt-5", "headers": {"x": "y"}, "when": (1, 2)},
                additional_kwargs={"refusal": None},
            ),
            generation_info={"finish_reason": "tool_calls"},
        )
    ],
    "old tools": [
        ChatGeneration(
            message=AIMessage(
                "",
                additional_kwargs={
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
                    ]
                },
            )
        )
    ],
    "blocks": [ChatGeneration(message=AIMessage([{"type": "text", "text": "Paris"}, {"type": "reasoning", "x": [1]}]))],
    "message chunk": [ChatGenerationChunk(message=AIMessageChunk("Par", tool_call_chunks=[], chunk_position="last"))],
    "chunk of tools": [
        ChatGenerationChunk(
            message=AIMessageChunk(
                "",
                tool_call_chunks=[
                    {"name": "add", "args": '{"a": 1}', "id": "1", "index": 0, "type": "tool_call_chunk"}
                ],
            )
        )
    ],
    "role": [ChatGeneration(message=ChatMessage("Paris", role="critic"))],
    "extras": [ChatGeneration(message=AIMessage("Paris", mood="glad", lc="kept"))],
    "surrogate": [Generation(text="\ud800")],
    "injection": [Generation(text="x", generation_info={"lc": 1, "type": "constructor", "id": ["a"], "kwargs": {}})],
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_answers_come_back_as_they_were(llm_cache: LLMCache, answer: list[Generation]) -> None:
    llm_cache.update("p", "l", answer)
    await llm_cache.aupdate("p", "asynchronous", answer)
    for found in (llm_cache.lookup("p", "l"), await llm_cache.alookup("p", "asynchronous")):
        assert found == answer
        assert isinstance(found, list)
        for one, other in zip(found, answer, strict=True):
            assert type(one) is type(other) and one.__dict__ == other.__dict__
            if isinstance(other, ChatGeneration):
                assert isinstance(one, ChatGeneration) and type(one.message) is type(other.message)
                assert one.message.__dict__ == other.message.__dict__
                assert one.message.__pydantic_extra__ == other.message.__pydantic_extra__


def test_an_answer_that_is_changed_changes_no_others(llm_cache: LLMCache) -> None:
    llm_cache.update("p", "l", ANSWERS["tools"])
    for _ in range(2):
        (found,) = llm_cache.lookup("p", "l") or []
        assert isinstance(found, ChatGeneration)
        assert [found] == ANSWERS["tools"]
        found.message.content = "changed"
        found.message.response_metadata["headers"]["x"] = "changed"


class City(BaseModel):
    name: str


def test_a_structured_answer_comes_back_as_the_dict_that_parsers_take(llm_cache: LLMCache) -> None:
    answer = AIMessage('{"name": "Paris"}', additional_kwargs={"parsed": City(name="Paris"), "refusal": None})
    llm_cache.update("p", "l", [ChatGeneration(message=answer)])
    (found,) = llm_cache.lookup("p", "l") or []
    assert isinstance(found, ChatGeneration)
    assert found.message.additional_kwargs == {"parsed": {"name": "Paris"}, "refusal": None}
    assert answer.additional_kwargs["parsed"] == City(name="Paris"), "the caller's own is as it was"


class Special(AIMessage):
    """A message of a class that only its maker knows."""


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (ChatGeneration(message=Special("Paris")), "Special"),
        (ChatGeneration(message=HumanMessage("Paris")), "HumanMessage"),
        (Generation(text="Paris", generation_info={"what": object()}), "object"),
    ],
    ids=["derived", "another", "content"],
)
async def test_what_cannot_be_stored_is_passed_through_counted_and_warned_of_once(
    cache: Cache, llm_cache: LLMCache, answer: Generation, why: str
) -> None:
    with pytest.warns(UncacheableResult, match=why):
        llm_cache.update("p", "l", [answer])
    await llm_cache.aupdate("p", "l", [answer])  # another warning would be an error here
    assert llm_cache.lookup("p", "l") is None
    assert cache.stats().uncacheable == 2


def test_a_model_whose_answers_cannot_be_stored_answers(llm_cache: LLMCache) -> None:
    model = chat(llm_cache, Special("Paris"), Special("Lyon"))
    with pytest.warns(UncacheableResult):
        assert model.invoke("capital?").content == "Paris"
    assert model.invoke("capital?").content == "Lyon"


def test_a_prompt_without_utf8_is_passed_to_the_model(llm_cache: LLMCache) -> None:
    llm_cache.update("\ud800", "l", [Generation(text="x")])
    assert llm_cache.lookup("\ud800", "l") is None


def test_what_no_version_of_langchain_wrote_is_a_miss(cache: Cache, llm_cache: LLMCache) -> None:
    key = llm_cache._key("p", "l")
    assert key is not None
    for stored in (
        "x",
        7,
        [1],
        [["Generation"]],
        [["Nothing", {}]],
        [["Generation", {"text": []}]],
        [["os.system", {"x": 1}]],
    ):
        cache.set(key, stored)
        assert llm_cache.lookup("p", "l") is None


@pytest.mark.parametrize(
    "purge",
    [{"model": "gpt-5"}, {"model": "gpt-5", "version": "1"}, {"tags": ["assistant"]}],
    ids="-".join,
)
def test_a_purge_hides(cache: Cache, purge: dict[str, Any]) -> None:
    model = chat(LLMCache(cache, model="gpt-5", version="1", tags=["assistant"]), "Paris", "Lyon")
    assert model.invoke("capital?").content == model.invoke("capital?").content == "Paris"
    cache.invalidate(model="gpt-6")
    cache.invalidate(tags=["other"])
    assert model.invoke("capital?").content == "Paris"
    cache.invalidate(**purge)
    assert model.invoke("capital?").content == "Lyon"


def test_tags_may_depend_on_the_question(cache: Cache) -> None:
    kept = LLMCache(cache, tags=lambda prompt, llm: [f"prompt:{prompt}", f"llm:{llm}"])
    for prompt in ("p", "q"):
        kept.update(prompt, "l", [Generation(text=prompt)])
    cache.invalidate(tags=["prompt:p"])
    assert (kept.lookup("p", "l"), kept.lookup("q", "l")) == (None, [Generation(text="q")])


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_an_answer_that_was_being_made_when_a_purge_came_is_not_kept(cache: Cache, asynchronous: bool) -> None:
    model = chat(LLMCache(cache, model="gpt-5"), "Paris", "Lyon", before=lambda: cache.invalidate(model="gpt-5"))

    def ask() -> Any:
        return (asyncio.run(model.ainvoke("capital?")) if asynchronous else model.invoke("capital?")).content

    assert ask() == "Paris"
    model.before = None
    assert [ask(), ask()] == ["Lyon", "Lyon"]


async def test_clearing_it_leaves_the_rest_of_the_cache(cache: Cache, llm_cache: LLMCache) -> None:
    other = cache.key("x", model="m", version="1")
    cache.set(other, "kept")
    for clear in (llm_cache.clear, llm_cache.aclear):
        llm_cache.update("p", "l", [Generation(text="x")])
        if (running := clear()) is not None:
            await running
        assert llm_cache.lookup("p", "l") is None
    assert cache.get(other) == "kept"


def test_entries_live_as_long_as_they_are_to(cache: Cache, clock: ManualClock) -> None:
    kept = LLMCache(cache, ttl="10s")
    kept.update("p", "l", [Generation(text="x")])
    clock.advance(9)
    assert kept.lookup("p", "l") is not None
    clock.advance(2)
    assert kept.lookup("p", "l") is None
    with pytest.raises(ValueError, match="ttl"):
        LLMCache(cache, ttl="soon")


@pytest.mark.network
async def test_processes_that_share_a_tier_share_answers(pair: tuple[Cache, Cache]) -> None:
    one, other = (LLMCache(cache, model="gpt-5") for cache in pair)
    assert one.lookup("p", "l") is None
    one.update("p", "l", ANSWERS["tools"])
    assert other.lookup("p", "l") == await other.alookup("p", "l") == ANSWERS["tools"]
    token = pair[1].invalidate(model="gpt-5")
    key = one._key("p", "l")
    assert key is not None and pair[0].get(key, min_token=token) is None
    assert await one.alookup("p", "l") is None
