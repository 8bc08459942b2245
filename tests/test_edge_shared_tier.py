"""Whole requests of two gateways that share a tier: one asks, both have it; a purge on one is known to the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import embedding_server
from infercache import Cache
from scripted import Asked, Scripted, answered, ask, idle
from together import PATIENCE
from whole_edges import CHAT, DONE, STREAM, edge

if TYPE_CHECKING:
    from infercache.edge import CacheMiddleware
    from servers import Server

pytestmark = pytest.mark.network
ONLY_IF_CACHED = (b"cache-control", b"only-if-cached")


@contextmanager
def caches(server: Server, count: int = 2, **options: Any) -> Iterator[list[Cache]]:
    made = [Cache("16MB", l2=server.url, secret=b"s" * 32, **options) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


def edges(model: Any, made: list[Cache]) -> list[CacheMiddleware]:
    return [edge(model, cache=cache) for cache in made]


async def streams(asked: Asked) -> None:
    await asked.begin(surrogate_key="product:42")
    await asked.piece(b"data: 1\n\n")
    await asked.end(DONE)


def run(test: Callable[[Scripted], Awaitable[None]]) -> None:
    async def main() -> None:
        await test(Scripted(streams))

    asyncio.run(main())


async def let_in(app: CacheMiddleware) -> None:
    """The upstream lets this gateway's caller in."""
    await answered(app, "POST", CHAT, STREAM, cache_control="no-store")


def test_items_that_only_the_tier_has_are_hits_with_their_age(server: Server) -> None:
    async def main() -> None:
        model = embedding_server.Server()
        model.headers = [(b"age", b"40"), (b"cache-control", b"max-age=100")]
        with caches(server) as made:
            one, other = (embedding_server.edge(model, cache=cache) for cache in made)
            for app in (one, other):
                await embedding_server.ask(app, {"model": "m", "input": "lets the caller in"})
            await embedding_server.ask(one, {"model": "m", "input": ["a", "b"]})
            before, body = len(model.asked), {"model": "m", "input": ["b", "a", "b"]}
            cached = await embedding_server.ask(other, {"model": "m", "input": "a"}, ONLY_IF_CACHED)
            assert cached.status == 200, "the tier is part of the cache"
            call = await embedding_server.ask(other, body)
            status = embedding_server.status_of(call)
            assert status.startswith(b"infercache; hit; ttl=") and call.answered[b"age"] in (b"40", b"41")
            assert len(model.asked) == before
            await embedding_server.ask(one, {"model": "m", "input": ["c", "d"]})
            call = await embedding_server.ask(other, {"model": "m", "input": ["d", "c"]})
            status = embedding_server.status_of(call)
            assert status.startswith(b"infercache; hit; ttl=") and call.answered[b"age"] in (b"40", b"41")
            await embedding_server.ask(one, {"model": "m", "input": "e"})
            call = await embedding_server.ask(other, {"model": "m", "input": ["e", "f", "a"]})
            assert b'fwd=partial; fwd-status=200; stored; detail="hits=2/3' in embedding_server.status_of(call)
            assert model.asked[-1] == ["f"]

    asyncio.run(main())


def test_a_stream_that_one_has_recorded_the_other_replays(server: Server) -> None:
    async def test(model: Scripted) -> None:
        with caches(server) as made:
            first, second = edges(model, made)
            await let_in(second)
            recorded = await answered(first, "POST", CHAT, STREAM)
            assert recorded.cache_status.endswith("fwd-status=200")
            replayed = await answered(second, "POST", CHAT, STREAM)
            assert replayed.cache_status.startswith("infercache; hit")
            assert replayed.pieces == recorded.pieces == [b"data: 1\n\n", DONE]
            assert len(model.asked) == 2
            cached = await answered(second, "POST", CHAT, STREAM, cache_control="only-if-cached")
            assert cached.status == 200

    run(test)


def test_only_if_cached_looks_into_the_tier(server: Server) -> None:
    async def test(model: Scripted) -> None:
        with caches(server) as made:
            first, second = edges(model, made)
            await let_in(second)
            await answered(first, "POST", CHAT, STREAM)
            assert (await answered(second, "POST", CHAT, STREAM, cache_control="only-if-cached")).status == 200

    run(test)


def test_a_purge_on_one_is_known_to_the_other(server: Server) -> None:
    async def test(model: Scripted) -> None:
        with caches(server, max_staleness="300ms") as made:
            first, second = edges(model, made)
            for app in (first, second):
                await let_in(app)
                await answered(app, "POST", CHAT, STREAM)
            assert len(model.asked) == 3
            made[0].invalidate(tags=["product:42"])
            purged = time.monotonic()
            while time.monotonic() - purged < 0.3:
                await answered(second, "POST", CHAT, STREAM)
            await answered(second, "POST", CHAT, STREAM)
            assert len(model.asked) == 4

    run(test)


@pytest.mark.parametrize("max_staleness", ["0s", "2s"])
def test_who_comes_during_a_stream_follows_it_where_no_purge_is_known(server: Server, max_staleness: str) -> None:
    async def test(model: Scripted) -> None:
        with caches(server, 1, max_staleness=max_staleness) as made:
            (app,) = edges(model, made)
            await let_in(app)
            over = asyncio.Event()

            async def script(asked: Asked) -> None:
                await asked.begin()
                await asked.piece(b"data: 1\n\n")
                await over.wait()
                await asked.end(DONE)

            model.script = script
            first = await ask(app, "POST", CHAT, STREAM).until(pieces=1)
            second = await ask(app, "POST", CHAT, STREAM).until(pieces=1)
            assert len(model.asked) == 2
            made[0].invalidate(tags=["edge:model:m"])
            third = await ask(app, "POST", CHAT, STREAM).until(pieces=1)
            assert len(model.asked) == 3
            over.set()
            for each in (first, second, third):
                assert (await each.ended()).pieces == [b"data: 1\n\n", DONE]

    run(test)


def test_a_purge_elsewhere_during_a_stream_wins(server: Server) -> None:
    async def test(model: Scripted) -> None:
        with caches(server, max_staleness="0s") as made:
            app = edges(model, made)[0]
            await let_in(app)
            over, began = asyncio.Event(), asyncio.Event()

            async def script(asked: Asked) -> None:
                await asked.begin()
                await asked.piece(b"data: %d\n\n" % len(model.asked))
                began.set()
                await over.wait()
                await asked.end(DONE)

            model.script = script
            old = await ask(app, "POST", CHAT, STREAM).until(pieces=1)
            made[1].invalidate(tags=["edge:model:m"])
            new = await ask(app, "POST", CHAT, STREAM).until(pieces=1)
            over.set()
            assert (await old.ended()).pieces == [b"data: 2\n\n", DONE]
            assert (await new.ended()).pieces == [b"data: 3\n\n", DONE]
            assert (await answered(app, "POST", CHAT, STREAM)).pieces == [b"data: 3\n\n", DONE]
            assert len(model.asked) == 3

    run(test)


def test_without_the_tier_it_goes_on(server: Server) -> None:
    async def test(model: Scripted) -> None:
        with caches(server, 1, on_partition={"untagged": "serve", "tagged": "serve"}) as made:
            (app,) = edges(model, made)
            await let_in(app)
            await answered(app, "POST", CHAT, STREAM)
            server.kill()
            ends = time.monotonic() + PATIENCE
            for seed in range(3):
                got = await answered(app, "POST", CHAT, {**STREAM, "seed": seed})
                assert got.pieces == [b"data: 1\n\n", DONE]
                assert got.is_whole
            await idle()
            assert time.monotonic() < ends

    run(test)
