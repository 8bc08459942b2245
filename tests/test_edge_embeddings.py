"""Embeddings at the edge: for any mixture of hits and misses the answer is the one that the model server would give."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_server import STYLES, Server, ask, edge, status_of
from infercache import Cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from infercache.testing import ManualClock

items = st.one_of(
    st.sampled_from(["a", "b", "é\n", 'quo"te', "", "\u2028", "c" * 40]),
    st.sampled_from([[1], [1, 2], [2, 1], [0]]),
)
inputs = st.one_of(
    items,
    st.lists(st.sampled_from(["a", "b", "é\n", 'quo"te', "", "c" * 40]), min_size=1, max_size=6),
    st.lists(st.sampled_from([[1], [1, 2], [2, 1], [0]]), min_size=1, max_size=6),
)
bodies = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "n"]), "input": inputs},
    optional={
        "dimensions": st.sampled_from([1, 3]),
        "encoding_format": st.sampled_from(["float", "base64", None]),
        "user": st.sampled_from(["u", None]),
    },
)


@settings(max_examples=300, deadline=None)
@given(style=st.sampled_from(sorted(STYLES)), asked=st.lists(bodies, min_size=1, max_size=8))
def test_any_mixture_of_hits_and_misses_is_answered_as_the_server_would(style: str, asked: list[Any]) -> None:
    async def run() -> None:
        server = Server(style)
        app = edge(server)
        await ask(app, {"model": "m", "input": "proves the credential"})
        for body in asked:
            got = json.loads((await ask(app, body)).content)
            wanted = json.loads(Server(style).answer(json.dumps(body).encode()))
            assert got["data"] == wanted["data"]
            assert repr(got["data"][0]["embedding"]) == repr(wanted["data"][0]["embedding"])  # -0.0 and 1.0 stay so
            assert {**got, "data": 0, "usage": 0} == {**wanted, "data": 0, "usage": 0}

    asyncio.run(run())


def test_no_item_is_asked_for_twice_and_one_that_stands_twice_in_a_batch_once() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server)
        await ask(app, {"model": "m", "input": ["a"]})
        await ask(app, {"model": "m", "input": ["b", "a", "c", "b", "c"]})
        await ask(app, {"model": "m", "input": "c", "encoding_format": "base64"})
        await ask(app, {"model": "m", "input": ["c", "b", "a"], "user": "another"})
        assert server.asked == [["a"], ["b", "c"]]
        await ask(app, {"model": "m", "input": "a", "dimensions": 3})
        assert server.asked[2:] == [["a"]]

    asyncio.run(run())


def test_usage_is_exact_for_items_that_were_asked_for_alone() -> None:
    async def run() -> None:
        app = edge(Server())
        for item in ("a", "bb", "cccc"):
            await ask(app, {"model": "m", "input": item})
        call = await ask(app, {"model": "m", "input": ["bb", "a", "bb", "cccc"]})
        assert json.loads(call.content)["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
        assert b"apportioned" not in status_of(call)

    asyncio.run(run())


def test_a_batchs_total_is_kept_where_usage_is_apportioned_and_cache_status_says_so() -> None:
    async def run() -> None:
        app = edge(Server())
        await ask(app, {"model": "m", "input": ["a", "bb", "cccc"]})
        call = await ask(app, {"model": "m", "input": ["cccc", "a", "bb"]})
        assert json.loads(call.content)["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
        assert status_of(call).startswith(b"infercache; hit; ttl=") and b"detail=usage-apportioned" in status_of(call)

    asyncio.run(run())


def test_cache_status_tells_hits_misses_and_partial_hits() -> None:
    async def run() -> None:
        app = edge(Server())
        assert (
            status_of(await ask(app, {"model": "m", "input": "a"})) == b"infercache; fwd=miss; fwd-status=200; stored"
        )
        call = await ask(app, {"model": "m", "input": "a"})
        assert status_of(call) in (b"infercache; hit; ttl=3600", b"infercache; hit; ttl=3599")
        assert call.answered[b"age"] == b"0"
        partial = status_of(await ask(app, {"model": "m", "input": ["a", "b"]}))
        assert partial == b'infercache; fwd=partial; fwd-status=200; stored; detail="hits=1/2"'

    asyncio.run(run())


def test_identical_concurrent_requests_go_upstream_once() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server)
        await ask(app, {"model": "m", "input": "first"})
        server.gate = asyncio.Event()
        asking = [asyncio.ensure_future(ask(app, {"model": "m", "input": ["x", "y"]})) for _ in range(20)]
        overlapping = asyncio.ensure_future(ask(app, {"model": "m", "input": ["y", "z"]}))
        while len(server.asked) < 3:
            await asyncio.sleep(0)
        server.gate.set()
        answers = {call.content for call in await asyncio.gather(*asking)}
        assert len({json.dumps(json.loads(each)["data"], sort_keys=True) for each in answers}) == 1
        await overlapping
        assert sorted(map(tuple, server.asked[1:])) == [("x", "y"), ("z",)]

    asyncio.run(run())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-1],
        lambda body: body.replace(b'"index": 1', b'"index": 0'),
        lambda body: body.replace(b'"data": [', b'"data": [[], '),
        lambda _: b"",
        lambda _: b'{"error": {"message": "overloaded"}}',
    ],
    ids=["cut short", "an index twice", "an item too many", "empty", "an error with status 200"],
)
def test_an_answer_that_is_none_is_passed_on_and_never_stored(spoil: Callable[[bytes], bytes]) -> None:
    async def run() -> None:
        server = Server()
        app = edge(server)
        await ask(app, {"model": "m", "input": "proves the credential"})
        server.spoil = spoil
        body = {"model": "m", "input": ["a", "b"]}
        call = await ask(app, body)
        assert call.content == spoil(Server().answer(json.dumps(body).encode()))
        assert b"stored" not in status_of(call)
        server.spoil = lambda body: body
        assert json.loads((await ask(app, body)).content)["data"]
        assert server.asked[-1] == ["a", "b"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ([(b"cache-control", b"no-store")], b"no-store"),
        ([(b"cache-control", b"private")], b"private"),
        ([(b"cache-control", b"max-age=10"), (b"age", b"10")], b"not-fresh"),
        ([(b"vary", b"accept-language")], b"vary"),
        ([(b"set-cookie", b"a=b")], b"set-cookie"),
    ],
)
def test_the_upstreams_cache_control_is_obeyed(headers: list[tuple[bytes, bytes]], detail: bytes) -> None:
    async def run() -> None:
        server = Server()
        server.headers = headers
        app = edge(server)
        for _ in range(2):
            call = await ask(app, {"model": "m", "input": "a"})
            assert status_of(call) == b"infercache; fwd=miss; fwd-status=200; detail=" + detail
        assert server.asked == [["a"], ["a"]]

    asyncio.run(run())


def test_the_upstreams_max_age_and_age_are_the_entrys_life() -> None:
    async def run() -> None:
        server = Server()
        server.headers = [(b"cache-control", b"max-age=100"), (b"age", b"40")]
        app = edge(server)
        await ask(app, {"model": "m", "input": "a"})
        call = await ask(app, {"model": "m", "input": "a"})
        assert status_of(call) in (b"infercache; hit; ttl=60", b"infercache; hit; ttl=59")
        assert call.answered[b"age"] == b"40"

    asyncio.run(run())


def test_the_upstreams_tags_purge_an_item() -> None:
    async def run() -> None:
        server = Server()
        server.headers = [(b"surrogate-key", b"shoes hats"), (b"cache-groups", b'"winter \\"26", "x"')]
        app = edge(server)
        for tag in ("hats", 'winter "26', "edge:model:m", "edge:version:m=1"):
            await ask(app, {"model": "m", "input": "a"})
            assert b"hit" in status_of(await ask(app, {"model": "m", "input": "a"}))
            app.cache.invalidate(tags=[tag])
            assert b"fwd=miss" in status_of(await ask(app, {"model": "m", "input": "a"}))

    asyncio.run(run())


def test_the_requests_cache_control_is_obeyed() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server)
        body = {"model": "m", "input": "a"}
        await ask(app, {"model": "m", "input": "first"})
        call = await ask(app, body, (b"cache-control", b"only-if-cached"))
        assert call.status == 504
        call = await ask(app, body, (b"cache-control", b"no-store"))
        assert status_of(call) == b"infercache; fwd=request; fwd-status=200"
        assert b"fwd=miss" in status_of(await ask(app, body))
        assert b"hit" in status_of(await ask(app, body, (b"cache-control", b"only-if-cached, max-age=60")))
        before = len(server.asked)
        assert b"fwd=" in status_of(await ask(app, body, (b"cache-control", b"no-cache")))
        assert b"fwd=" in status_of(await ask(app, body, (b"cache-control", b"max-age=0")))
        assert len(server.asked) == before + 2
        assert b"fwd=" in status_of(await ask(app, body, (b"cache-control", b"min-fresh=4000")))
        conditional = await ask(app, body, (b"if-none-match", b'"x"'))
        assert status_of(conditional) == b"infercache; fwd=bypass; fwd-status=200; detail=conditional"

    asyncio.run(run())


def test_an_item_that_is_too_old_or_ends_too_soon_for_a_request_is_asked_for(clock: ManualClock) -> None:
    async def run() -> None:
        server = Server()
        cache = Cache("16MB", ttl="100s", clock=clock)
        app = edge(server, cache=cache, ttl="100s", stale_while_revalidate="1h", auth_ttl="1h")
        await ask(app, {"model": "m", "input": ["a", "b"]})
        clock.advance(60)
        await ask(app, {"model": "m", "input": "young"})
        before = len(server.asked)
        both = {"model": "m", "input": ["a", "young"]}
        for wanted in (b"max-age=61", b"min-fresh=39"):
            assert b"; hit" in status_of(await ask(app, both, (b"cache-control", wanted)))
        assert len(server.asked) == before
        assert b"fwd=partial" in status_of(await ask(app, both, (b"cache-control", b"max-age=50")))
        assert server.asked[before:] == [["a"]]
        clock.advance(60)
        await ask(app, both, (b"cache-control", b"min-fresh=50"))
        assert server.asked[before + 1 :] == [["a", "young"]]
        clock.advance(101)
        # All of it is stale, which would do for who says nothing.
        assert b"fwd=miss" in status_of(await ask(app, both, (b"cache-control", b"max-age=1000")))
        assert server.asked[before + 2 :] == [["a", "young"]]

    asyncio.run(run())


def test_tokens_that_are_written_as_no_integers_are_none_whatever_is_known() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server)
        await ask(app, {"model": "m", "input": [1, 2]})
        assert b"; hit" in status_of(await ask(app, {"model": "m", "input": [[1, 2]]}))
        asked = len(server.asked)
        for text in (b"[1.0, 2]", b"[[1, 2e0]]"):
            call = await ask(app, b'{"model": "m", "input": ' + text + b"}")
            assert status_of(call) == b"infercache; fwd=bypass; fwd-status=200; detail=not-understood"
        assert len(server.asked) == asked + 2

    asyncio.run(run())


def test_a_hit_has_these_headers_and_no_others() -> None:
    async def run() -> None:
        server = Server()
        server.headers = [
            (b"content-type", b"application/json; charset=utf-8"),
            (b"x-version", b"1"),
            *((name, b"1") for name in (b"x-request-id", b"openai-organization", b"openai-processing-ms")),
            *((name, b"1") for name in (b"x-ratelimit-remaining-requests", b"openai-model", b"surrogate-key")),
        ]
        app = edge(server, model_versions={}, version_header="x-version")
        for item in ("tells the version", "a"):
            await ask(app, {"model": "m", "input": [item]})
        asked = await ask(app, {"model": "m", "input": ["b"]})
        assert asked.answered[b"x-request-id"] == b"1", "the server's own answer has its own"
        ours = {b"content-type", b"content-length", b"x-version", b"cache-status"}
        assert set((await ask(app, {"model": "m", "input": ["b"]})).answered) == ours | {b"age"}
        assert set((await ask(app, {"model": "m", "input": ["a", "c"]})).answered) == ours | {b"age"}
        call = await ask(app, {"model": "m", "input": ["d"], "encoding_format": "base64"})
        assert set(call.answered) == ours and call.answered[b"content-type"] == b"application/json"

    asyncio.run(run())


def test_stale_items_stand_in_for_an_error_and_are_served_while_they_are_asked_for_anew() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server, ttl="20ms", stale_while_revalidate="1h", stale_if_error="1h")
        body = {"model": "m", "input": ["a", "b"]}
        await ask(app, body)
        await asyncio.sleep(0.05)
        assert status_of(await ask(app, body)).startswith(b"infercache; hit; ttl=")
        while len(server.asked) < 2:
            await asyncio.sleep(0.001)
        assert sorted(server.asked[1]) == ["a", "b"]
        failing = edge(server, ttl="20ms", stale_if_error="1h")
        await ask(failing, body)
        await asyncio.sleep(0.05)
        server.status = 500
        call = await ask(failing, body)
        assert call.status == 200 and b"infercache; hit" in status_of(call)
        assert (await ask(failing, {"model": "m", "input": ["a", "c"]})).status == 500

    asyncio.run(run())


def test_a_model_without_a_version_passes_uncached_and_cache_status_says_why() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server, model_versions={"known": "1"})
        for _ in range(2):
            call = await ask(app, {"model": "m", "input": "a"})
            assert status_of(call) == b"infercache; fwd=bypass; fwd-status=200; detail=version-unknown"
        assert len(server.asked) == 2

    asyncio.run(run())


def test_a_version_that_changes_during_the_request_is_not_stored_and_makes_old_items_misses() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server, model_versions={}, version_header="x-version")
        body = {"model": "m", "input": "a"}
        server.headers = [(b"x-version", b"1")]
        await ask(app, body)  # tells the version
        await ask(app, body)
        assert b"hit" in status_of(await ask(app, body))
        server.headers = [(b"x-version", b"2")]
        call = await ask(app, {"model": "m", "input": "b"})
        assert b"detail=version-changed" in status_of(call) and b"stored" not in status_of(call)
        assert b"fwd=miss" in status_of(await ask(app, body))
        assert b"hit" in status_of(await ask(app, body))

    asyncio.run(run())


def test_a_purge_while_the_server_answers_wins() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server)
        await ask(app, {"model": "m", "input": "first"})
        server.gate = asyncio.Event()
        asking = asyncio.ensure_future(ask(app, {"model": "m", "input": "a"}))
        while len(server.asked) < 2:
            await asyncio.sleep(0)
        app.cache.invalidate(tags=["edge:model:m"])
        server.gate.set()
        assert (await asking).status == 200
        assert b"fwd=miss" in status_of(await ask(app, {"model": "m", "input": "a"}))

    asyncio.run(run())


def test_a_page_of_another_origin_gets_the_servers_own_answer() -> None:
    async def run() -> None:
        server = Server()
        server.headers = [(b"vary", b"origin")]
        app = edge(server)
        body = {"model": "m", "input": "a"}
        for _ in range(2):
            await ask(app, body)
        assert b"hit" in status_of(await ask(app, body))
        call = await ask(app, body, (b"origin", b"https://page.example"))
        assert status_of(call) == b"infercache; fwd=bypass; fwd-status=200; detail=cross-origin"

    asyncio.run(run())


def test_no_tenant_sees_anothers_items() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server)
        body = {"model": "m", "input": "a"}
        for key in (b"Bearer one", b"Bearer two"):
            assert b"fwd=miss" in status_of(await ask(app, body, (b"authorization", key)))
            assert b"hit" in status_of(await ask(app, body, (b"authorization", key)))
        assert len(server.asked) == 2

    asyncio.run(run())


def test_an_error_of_one_batch_is_no_others_answer() -> None:
    async def run() -> None:
        server = Server()
        app = edge(server)
        await ask(app, {"model": "m", "input": "first"})
        server.gate = asyncio.Event()
        failing = asyncio.ensure_future(ask(app, {"model": "m", "input": ["a", "b"]}))
        while len(server.asked) < 2:
            await asyncio.sleep(0)
        waiting = asyncio.ensure_future(ask(app, {"model": "m", "input": "a"}))
        for _ in range(20):
            await asyncio.sleep(0)
        spoiled = iter([b'{"error": {"message": "b is too long"}}'] * 1)
        server.spoil = lambda body: next(spoiled, body)
        server.gate.set()
        await failing
        assert json.loads((await waiting).content)["data"][0]["index"] == 0

    asyncio.run(run())
