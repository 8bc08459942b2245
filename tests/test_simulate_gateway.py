"""The gateway's own log, simulated: the hits that a replay finds are those that the gateway had."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asgi import Call
from infercache.edge import CacheMiddleware
from infercache.edge.logs import JSONLines
from infercache.workload.simulation import Options, Simulation, simulate

WORDS = "the-callers-own-words"


class Server:
    """A model server: embeddings by item, chat, a route of JSON, and an inference of tensors."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads((await receive())["body"] or b"{}")
        if scope["path"] == "/v1/embeddings":
            items = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
            data = [{"object": "embedding", "embedding": [0.5] * 16, "index": place} for place in range(len(items))]
            answer: Any = {"object": "list", "data": data, "model": asked["model"], "usage": {}}
        elif scope["path"].startswith("/v2"):
            output = {"name": "y", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
            answer = {"model_name": "t", "outputs": [output]}
        else:
            answer = {"answer": [1, 2, 3]}
        await asyncio.sleep(0.002)
        content = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the edge logs."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines())
    logger = logging.getLogger("infercache.edge")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def edge(**options: Any) -> CacheMiddleware:
    given = {"capacity": "4MB", "model_versions": {"*": "1"}, "json_routes": ["/rank"], "access_log": True, **options}
    return CacheMiddleware(Server(), **given)


async def ask(app: CacheMiddleware, path: str, body: Any, *headers: tuple[bytes, bytes]) -> None:
    call = Call(path=path, body=json.dumps(body).encode(), headers=[(b"content-type", b"application/json"), *headers])
    assert (await call(app)).status == 200


def lines_of(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def simulated(log: io.StringIO, tmp_path: Path, ttl: float | None = None, size: int = 4_000_000) -> Simulation:
    path = tmp_path / "gateway.log"
    path.write_text(log.getvalue())
    return simulate([str(path)], Options(sizes=[size], ttls=[ttl]))


async def traffic(app: CacheMiddleware) -> None:
    """Batches that overlap, routes of every kind, and requests that are not to be cached."""
    draw = np.random.default_rng(4)
    await ask(app, "/v1/embeddings", {"model": "e5", "input": WORDS})  # lets the caller in
    for _ in range(60):
        items = [f"{WORDS} {number}" for number in draw.integers(0, 30, draw.integers(1, 6)).tolist()]
        await ask(app, "/v1/embeddings", {"model": "e5", "input": items})
        number = int(draw.integers(0, 10))
        await ask(app, "/rank", {"model": "ranker", "query": f"{WORDS} {number}"})
        message = {"role": "user", "content": f"{WORDS} {number}"}
        await ask(app, "/v1/chat/completions", {"model": "chat", "messages": [message], "temperature": 0})
        await ask(app, "/v1/chat/completions", {"model": "chat", "messages": [message], "temperature": 1})
        tensor = {"name": "x", "datatype": "INT64", "shape": [1], "data": [number]}
        await ask(app, "/v2/models/t/infer", {"inputs": [tensor]})


async def test_a_replay_of_a_gateways_log_has_the_hits_that_the_gateway_had(log: io.StringIO, tmp_path: Path) -> None:
    await traffic(edge())
    found = simulated(log, tmp_path)
    assert found.readings[0].format == "gateway"
    asked, hits, told, seen = Counter(), Counter(), Counter(), set()
    for line in lines_of(log):
        for key in line.get("keys", ()):
            asked[line["route"]] += 1
            hits[line["route"]] += key in seen
            seen.add(key)
        told[line["route"]] += line["hits"]
        # Of an item that stands twice in a batch the gateway counts the second as no hit; a replay does.
        if line["kind"] != "hit":
            told[line["route"]] += len(line.get("keys", ())) - len(set(line.get("keys", ())))
    for place, group in enumerate(found.log.groups):
        assert found.log.requests[place] == asked[group.workload]
        assert found.trials[0].hits[place] == hits[group.workload] > 0
        assert told[group.workload] == pytest.approx(hits[group.workload], abs=asked[group.workload] // 20)
    assert {group.model for group in found.log.groups} == {"e5", "ranker", "chat", "t"}
    assert found.hit_seconds == pytest.approx(100e-6)


async def test_what_the_gateway_did_not_cache_is_told_and_left_out(log: io.StringIO, tmp_path: Path) -> None:
    await traffic(edge())
    told = simulated(log, tmp_path).left_out.listed()
    assert any(line.startswith("60 × not to be cached: bypass") for line in told), told


async def test_sizes_and_costs_are_those_of_the_cache(log: io.StringIO, tmp_path: Path) -> None:
    # Four shards: of more, each would hold an entry or two, and how its arrays grow would depend on the hashes' seeds.
    app = edge(capacity="512kB")
    await traffic(app)
    found = simulated(log, tmp_path, app.settings.ttl, 512_000)
    held = app.cache.stats()
    print(f"{found.trials[0].bytes} bytes, the gateway's {held.bytes}")
    assert found.trials[0].entries == held.entries
    assert found.trials[0].bytes == pytest.approx(held.bytes, rel=0.15)
    lines = [line for line in lines_of(log) if "keys" in line]
    for place, group in enumerate(found.log.groups):
        took = [line["model_ms"] for line in lines if line["route"] == group.workload]
        assert found.log.seconds[place] == pytest.approx(sum(took) / 1_000)
    each: dict[str, set[float]] = {}
    for line in lines:
        each.setdefault(line["route"], set()).add(round(line["bytes"] / len(line["keys"])))
        if line["kind"] == "miss":
            assert line["model_ms"] >= 2, "the server takes so long"
    assert len(each) == 4
    for sizes in each.values():
        assert max(sizes) <= 1.1 * min(sizes), "a hit says the size that the miss before it said"


async def test_a_question_is_told_by_a_digest_that_repeats_and_tells_nothing(log: io.StringIO) -> None:
    one, other = edge(), edge()
    for app in (one, one, other):
        await ask(app, "/v1/embeddings", {"model": "e5", "input": [WORDS]}, (b"authorization", b"Bearer secret-words"))
    assert WORDS not in log.getvalue()
    assert "secret-words" not in log.getvalue()
    first, again, elsewhere = (line["keys"] for line in lines_of(log))
    assert len(first[0]) == 16
    assert first == again
    assert first != elsewhere, "without a secret the digests of two processes have nothing in common"


async def test_gateways_of_one_secret_write_the_same_digests(log: io.StringIO, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(32)))
    for app in (edge(secret_file=str(secret)), edge(secret_file=str(secret))):
        await ask(app, "/v1/embeddings", {"model": "e5", "input": ["a", "b", "a"]})
    first, second = (line["keys"] for line in lines_of(log))
    assert first == second
    assert first[0] == first[2] != first[1]


def test_lines_of_before_are_told(tmp_path: Path) -> None:
    facts = {"level": "info", "logger": "infercache.edge", "message": "answered", "kind": "hit", "model": "m"}
    path = tmp_path / "log"
    old = json.dumps({"time": "2026-11-24T10:00:00.000+00:00", **facts})
    new = json.dumps({"time": "2026-11-24T10:00:00.000+00:00", **facts, "keys": ["00ff"], "bytes": 10, "model_ms": 5})
    path.write_text(f"{old}\n{new}\n" + json.dumps({**json.loads(new), "message": "other"}) + "\n")
    found = simulate([str(path)], Options(sizes=[1 << 20], ttls=[None]))
    assert found.requests == 1
    assert "was it written by a gateway of before" in found.left_out.listed()[0]
