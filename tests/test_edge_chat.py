"""Chat through a real gateway, asked by OpenAI's own client, before a server that is as broken as it is asked."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from chat_server import ChatServer
from gateways import Gateway
from together import PATIENCE

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.network

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "hello"}]
HELLO = {"model": "m", "temperature": 0, "messages": MESSAGES}


@pytest.fixture(scope="module")
def model() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(model: ChatServer) -> Iterator[Gateway]:
    with Gateway(
        model.url,
        model_versions={"*": "1"},
        json_routes=["/rank"],
        max_answer="1MB",
        write_timeout="2s",
        upstream_idle_timeout="1s",
    ) as gateway:
        for path in (CHAT, "/v1/completions", "/v1/rerank", "/rank"):  # lets the tests' caller in
            gateway.ask(path, json.dumps({**HELLO, "prompt": "x", "query": "x", "documents": []}).encode())
        yield gateway


asked_before = iter(range(1 << 30))


def question(**more: Any) -> dict[str, Any]:
    """One that nobody has asked before."""
    return {**HELLO, "messages": [{"role": "user", "content": f"question {next(asked_before)}"}], **more}


def count(model: ChatServer) -> int:
    number: int = model.control()["asked"]
    return number


def until(condition: Any, what: str) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.01)


# --- OpenAI's client


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="sk-test", max_retries=0) as made:
        made.chat.completions.create(**HELLO, extra_headers={"cache-control": "no-store"})  # it is let in
        made.completions.create(model="m", prompt="x", temperature=0)
        yield made


def test_the_client_gets_an_answer_again(client: Any, model: ChatServer) -> None:
    asked, before = question(), count(model)
    first = client.chat.completions.with_raw_response.create(**asked)
    again = client.chat.completions.with_raw_response.create(**asked)
    assert count(model) == before + 1
    assert first.parse() == again.parse()
    assert first.content == again.content
    assert "hit" in again.headers["cache-status"]
    assert first.parse().choices[0].message.content.startswith("answer ")
    assert client.completions.create(model="m", prompt="y", seed=1) == client.completions.create(
        model="m", prompt="y", seed=1
    )
    assert count(model) == before + 2


def test_the_client_streams_an_answer_again(client: Any, model: ChatServer) -> None:
    asked, before = question(stream=True, extra_body={"test": {"pieces": 20}}), count(model)
    first = list(client.chat.completions.create(**asked))
    again = list(client.chat.completions.create(**asked))
    assert count(model) == before + 1
    assert first == again
    assert len(first) == 21
    assert "".join(chunk.choices[0].delta.content or "" for chunk in first).startswith("answer ")


def test_what_is_sampled_is_asked_each_time(client: Any, model: ChatServer) -> None:
    before = count(model)
    asked = {**question(), "temperature": 0.9}
    assert client.chat.completions.create(**asked) != client.chat.completions.create(**asked)
    assert count(model) == before + 2


def test_the_asynchronous_client_asks_once_for_all_that_ask_together(gateway: Gateway, model: ChatServer) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="sk-test", max_retries=0
        ) as client:
            await client.chat.completions.create(**HELLO)
            before = count(model)
            plain, streamed = question(), question(stream=True)
            slow = {"test": {"pause": 0.05, "pieces": 10}}

            async def stream() -> list[Any]:
                return [chunk async for chunk in await client.chat.completions.create(**streamed, extra_body=slow)]

            answers = await asyncio.gather(
                *(client.chat.completions.create(**plain, extra_body=slow) for _ in range(20)),
            )
            streams = await asyncio.gather(*(stream() for _ in range(20)))
            assert count(model) == before + 2
            assert all(each == answers[0] for each in answers)
            assert all(each == streams[0] and len(each) == 11 for each in streams)
            assert await stream() == streams[0]
            assert count(model) == before + 2

    asyncio.run(main())


def test_a_client_that_stops_listening_stops_the_model(client: Any, model: ChatServer) -> None:
    cancelled = model.control()["cancelled"]
    stream = client.chat.completions.create(
        **question(stream=True), extra_body={"test": {"pieces": 10_000, "pause": 0.01}}
    )
    for chunk, _ in zip(stream, range(3), strict=False):
        assert chunk.choices
    stream.close()
    until(lambda: model.control()["cancelled"] == cancelled + 1, "the model still answers nobody")


def test_the_clients_errors_are_the_upstreams(client: Any) -> None:
    with pytest.raises(openai.InternalServerError, match="broken"):
        client.chat.completions.create(**question(), extra_body={"test": {"how": "500"}})


# --- upstreams that are broken


class Got:
    """An answer as it came off the wire."""

    def __init__(self, gateway: Gateway, path: str, body: dict[str, Any]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            self.status, self.headers = response.status, dict(response.getheaders())
            self.body, self.is_whole = b"", True
            try:
                while piece := response.read1(1 << 16):
                    self.body += piece
                if response.length:
                    self.is_whole = False
            except (http.client.HTTPException, ConnectionError):
                self.is_whole = False
        finally:
            connection.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("how", "whole", "kept"),
    [
        ("", True, True),
        ("cut", False, False),
        ("close", True, True),
        ("close-cut", True, False),
        ("short-length", True, False),
        ("error-event", True, False),
        ("no-done", True, False),
        ("500", True, False),
        ("garbage", True, False),
    ],
)
def test_what_is_not_whole_is_kept_by_nobody(
    gateway: Gateway, model: ChatServer, stream: bool, how: str, whole: bool, kept: bool
) -> None:
    kept = kept or (not stream and how in ("error-event", "no-done"))
    asked, before = question(stream=stream, test={"how": how}), count(model)
    first = Got(gateway, CHAT, asked)
    assert first.is_whole == whole, "who asked sees whether it is whole"
    again = Got(gateway, CHAT, asked)
    # A request to a model that closes the connection without an answer is sent a second time.
    assert (count(model) == before + 1) == kept
    assert ("hit" in again.headers.get("cache-status", "")) == kept
    if kept:
        assert again.body == first.body
    if how == "500":
        assert first.status == 500
    if how == "garbage":
        assert first.status == 502


def test_a_model_that_falls_silent_breaks_the_stream_of_all(gateway: Gateway, model: ChatServer) -> None:
    asked = question(stream=True, test={"pieces": 3, "pause": 5})
    got: list[Got] = []
    threads = [threading.Thread(target=lambda: got.append(Got(gateway, CHAT, asked)), daemon=True) for _ in range(3)]
    before = count(model)
    for each in threads:
        each.start()
    for each in threads:
        each.join(PATIENCE)
    assert count(model) == before + 1
    assert [each.is_whole for each in got] == [False] * 3
    assert all(b"answer" in each.body for each in got)


def test_what_is_too_large_passes_and_is_not_kept(gateway: Gateway, model: ChatServer) -> None:
    asked, before = question(stream=True, test={"pieces": 8_000}), count(model)
    for _ in range(2):
        got = Got(gateway, CHAT, asked)
        assert got.is_whole
        assert got.body.count(b"data: ") == 8_002
    assert count(model) == before + 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "m", "prompt": "x", "temperature": 0}),
        ("/v1/rerank", {"model": "m", "query": "x", "documents": ["a", "b"]}),
        ("/rank", {"query": "x"}),
    ],
)
def test_the_other_routes_are_cached_too(gateway: Gateway, model: ChatServer, path: str, body: dict[str, Any]) -> None:
    body, before = {**body, "query": f"q{next(asked_before)}"}, count(model)
    first, again = Got(gateway, path, body), Got(gateway, path, body)
    assert first.body == again.body
    assert count(model) == before + 1


def test_what_has_ended_is_held_by_nobody(gateway: Gateway, model: ChatServer) -> None:
    until(lambda: model.control()["busy"] == 0, "the model still answers")
    metrics = gateway.operate("/-/metrics").body.decode()
    in_flight = [line for line in metrics.splitlines() if line.startswith("infercache_edge") and "in_flight" in line]
    assert all(float(line.rpartition(" ")[2]) == 0 for line in in_flight), in_flight
    assert not [line for line in gateway.lines() if "the cache failed" in str(line.get("message"))], gateway.text()
