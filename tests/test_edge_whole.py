"""Whole requests through the middleware: what is the same question, what is kept, and whom it is given to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi import Asked, Scripted, answered, ask, idle
from infercache import Cache
from infercache.edge import CacheMiddleware
from infercache.testing import ManualClock

CHAT, COMPLETIONS, RERANK, RANK = "/v1/chat/completions", "/v1/completions", "/v1/rerank", "/rank"
HELLO = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}
PROMPT = {"model": "m", "temperature": 0, "prompt": "hello"}
DOCUMENTS = {"model": "m", "query": "shoes", "documents": ["red shoes", "green hats"]}
BODIES = {CHAT: HELLO, COMPLETIONS: PROMPT, RERANK: DOCUMENTS, RANK: {"query": "shoes"}}


def edge(model: Any, **options: Any) -> CacheMiddleware:
    given_ = {"model_versions": {"*": "1"}, "capacity": "16MB", "json_routes": [RANK], **options}
    return CacheMiddleware(model, **given_)


def run(test: Callable[[Scripted], Awaitable[None]], script: Callable[[Asked], Awaitable[None]] | None = None) -> None:
    async def main() -> None:
        await test(Scripted(script))

    asyncio.run(main())


async def is_kept(app: CacheMiddleware, path: str, body: Any, **headers: str) -> bool:
    """Whether asking twice asks the model once, the second answer being the first."""
    first = await answered(app, "POST", path, body, **headers)
    second = await answered(app, "POST", path, body, **headers)
    hit = "; hit" in second.cache_status
    assert not hit or first.body == second.body
    return hit


# ------------------------------------------------------------------------------------------------ what is one question


@pytest.mark.parametrize("path", BODIES)
def test_a_repeated_request_is_answered_from_the_cache(path: str) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        first = await answered(app, "POST", path, BODIES[path])
        assert first.cache_status == "infercache; fwd=miss; fwd-status=200; stored"
        again = await answered(app, "POST", path, BODIES[path])
        assert again.cache_status.startswith("infercache; hit; ttl=")
        assert again.headers["age"] == "0"
        assert (again.status, again.body) == (200, first.body)
        assert again.headers["content-type"] == "application/json"
        assert len(model.asked) == 1

    run(test)


def test_the_same_document_in_another_text_is_the_same_question() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        texts = (
            b'{"model":"m","temperature":0,"messages":[{"role":"user","content":"hello"}]}',
            b'{"temperature": 0.0, "messages": [{"content": "h\\u0065llo", "role": "user"}], "model": "m"}',
            b'\n{"messages":[{"role":"user","content":"hello"}],"stream":false,"model":"m","temperature":-0}',
        )
        for text in texts:
            await answered(app, "POST", CHAT, text)
        assert len(model.asked) == 1

    run(test)


@pytest.mark.parametrize("member", ["user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"])
def test_who_asks_for_whom_is_no_part_of_a_chat(member: str) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        for value in ("a", "b", None):
            await answered(app, "POST", CHAT, {**HELLO, member: value})
        await answered(app, "POST", CHAT, HELLO)
        assert len(model.asked) == 1
        assert model.asked[0].json()[member] == "a", "the model is asked what the caller asked"

    run(test)


def test_the_user_is_a_part_of_what_other_routes_are_asked() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        for path in (RANK, RERANK):
            for user in ("a", "b"):
                await answered(app, "POST", path, {**BODIES[path], "user": user})
        assert len(model.asked) == 4

    run(test)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"messages": [{"role": "user", "content": "hello!"}]},
        {"messages": [{"role": "system", "content": "hello"}]},
        {"seed": 1},
        {"max_tokens": 5},
        {"stop": ["x"]},
        {"n": 1},
        {"tools": []},
        {"a_field_that_nobody_knows": 0},
        {"stream_options": {}},
        {"logprobs": True},
    ],
)
def test_any_other_member_makes_another_question(change: dict[str, Any]) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        await answered(app, "POST", CHAT, HELLO)
        await answered(app, "POST", CHAT, {**HELLO, **change})
        assert len(model.asked) == 2

    run(test)


def test_routes_queries_versions_and_accepted_types_part_questions() -> None:
    async def test(model: Scripted) -> None:
        versions = {"*": "1"}
        app = edge(model, json_routes=[RANK, "/sort"])
        other = CacheMiddleware(model, model_versions={"*": "2"}, json_routes=[RANK], cache=app.cache)
        asks = [
            (app, RANK, {}),
            (app, "/sort", {}),
            (app, RANK + "?api-version=1", {}),
            (app, RANK + "?api-version=2", {}),
            (app, RANK, {"accept": "text/csv"}),
            (other, RANK, {}),
        ]
        for _ in range(2):
            for each, path, headers in asks:
                await answered(each, "POST", path, {"query": "x"}, **headers)
        assert len(model.asked) == len(asks)
        for accepted in ("*/*", "application/json"):
            await answered(app, "POST", RANK, {"query": "x"}, accept=accepted)
        assert len(model.asked) == len(asks), versions

    run(test)


def test_a_streamed_answer_and_one_that_is_not_are_kept_apart() -> None:
    async def script(asked: Asked) -> None:
        if asked.json().get("stream"):
            await asked.begin()
            await asked.end(b"data: 1\n\ndata: [DONE]\n\n")
        else:
            await asked.say({"x": 1})

    async def test(model: Scripted) -> None:
        app = edge(model)
        assert await is_kept(app, CHAT, {**HELLO, "stream": True})
        assert await is_kept(app, CHAT, HELLO)
        assert await is_kept(app, CHAT, {**HELLO, "stream": True, "stream_options": {"include_usage": True}})
        assert len(model.asked) == 3

    run(test, script)


def test_declared_routes_take_any_json() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        bodies = [{"query": "x"}, {"query": "x", "model": "m"}, [1, 2], "x", 1, None, {"temperature": 1}, {"model": 5}]
        for body in bodies * 2:
            await answered(app, "POST", RANK, json.dumps(body).encode())
        assert len(model.asked) == len(bodies)

    run(test)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.dictionaries(st.text(), JSON, max_size=4))
def test_two_questions_share_an_answer_only_if_they_are_the_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        await answered(app, "POST", RANK, {**one, "model": "m"})
        second = await answered(app, "POST", RANK, {**two, "model": "m"})
        first_document, second_document = ({**each, "model": "m"} for each in (one, two))
        assert ("; hit" in second.cache_status) == _same(first_document, second_document)

    run(test)


def _same(one: Any, two: Any) -> bool:
    """Equal as JSON: true is not 1, but 1.0 is."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_same(one[name], two[name]) for name in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return isinstance(one, bool) == isinstance(two, bool) and bool(one == two)


# ----------------------------------------------------------------------------------------------------- what is not kept


@pytest.mark.parametrize(
    ("body", "kind", "detail"),
    [
        ({**HELLO, "temperature": 1}, "bypass", "sampled"),
        ({**HELLO, "n": 2}, "bypass", "choices"),
        ({**HELLO, "tools": [{"type": "web_search"}]}, "bypass", "tools"),
        ({**HELLO, "store": True}, "bypass", "member-store"),
        ({**HELLO, "messages": "hello"}, "uncached", "not-understood"),
        (b"no JSON", "uncached", "not-understood"),
        (b'{"model":"m","model":"m","temperature":0,"messages":[]}', "uncached", "not-understood"),
        (b'{"model":"m","temperature":0,"messages":[1e999]}', "uncached", "not-understood"),
        (b'\xef\xbb\xbf{"model":"m","temperature":0,"messages":[]}', "uncached", "not-understood"),
        (b'{"model":"m","temperature":0,"messages":["\xff"]}', "uncached", "not-understood"),
        (json.dumps(HELLO).encode("utf-16"), "uncached", "not-understood"),
        (b"", "uncached", "not-understood"),
        (b"[" * 100_000, "uncached", "not-understood"),
    ],
)
def test_what_may_not_be_kept_passes_with_the_reason(body: Any, kind: str, detail: str) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        for _ in range(2):
            passed = await answered(app, "POST", CHAT, body)
            assert passed.cache_status == f"infercache; fwd=bypass; fwd-status=200; detail={detail}"
        assert len(model.asked) == 2
        assert model.asked[0].body == ask_bytes(body), "it passes as it is"
        counted = {key[2]: series.requests for key, series in app.metrics.series()}
        assert counted == {kind: 2}

    run(test)


def ask_bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def test_json_that_is_nested_too_deep_is_refused() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model, max_json_depth=20)
        deep: Any = "x"
        for _ in range(19):
            deep = [deep]
        assert (await answered(app, "POST", RANK, {"x": deep})).status == 200
        refused = await answered(app, "POST", RANK, {"x": [deep]})
        assert (refused.status, refused.json()["error"]["code"]) == (400, "json_too_deep")
        assert (await answered(app, "POST", RANK, {"x": "[{" * 100})).status == 200, "brackets in a text nest nothing"
        assert len(model.asked) == 2

    run(test)


@pytest.mark.parametrize(
    ("status", "content", "headers"),
    [
        (500, {"error": {}}, {}),
        (404, {"error": {}}, {}),
        (429, {"error": {}}, {"retry_after": "1"}),
        (201, {"x": 1}, {}),
        (206, {"x": 1}, {}),
        (200, {"x": 1}, {"cache_control": "no-store"}),
        (200, {"x": 1}, {"cache_control": "private"}),
        (200, {"x": 1}, {"cache_control": "max-age=0"}),
        (200, {"x": 1}, {"set_cookie": "a=b"}),
        (200, {"x": 1}, {"vary": "accept-language"}),
        (200, {"x": 1}, {"vary": "*"}),
        (200, {"x": 1}, {"content_encoding": "gzip"}),
        (200, {"error": {"message": "overloaded"}}, {}),
        (200, b'{"x": 1', {}),
        (200, b"", {}),
    ],
)
def test_answers_that_must_not_be_kept_are_given_to_who_asked_and_nobody_else(
    status: int, content: Any, headers: dict[str, str]
) -> None:
    async def script(asked: Asked) -> None:
        await asked.say(content, status, **headers)

    async def test(model: Scripted) -> None:
        app = edge(model)
        for count in (1, 2):
            got = await answered(app, "POST", CHAT, HELLO)
            assert (got.status, got.body) == (status, ask_bytes(content))
            assert "stored" not in got.cache_status
            assert len(model.asked) == count
        assert app.cache.stats().entries == 0

    run(test, script)


@pytest.mark.parametrize("length", [True, False])
def test_an_answer_whose_end_nobody_can_see_is_kept_only_if_its_length_is_told(length: bool) -> None:
    async def script(asked: Asked) -> None:
        await asked.begin(200, "text/plain", **({"content_length": "5"} if length else {}))
        await asked.end(b"hello")

    async def test(model: Scripted) -> None:
        assert await is_kept(edge(model), RANK, {"q": 1}) == length

    run(test, script)


def test_json_without_a_length_shows_its_end_itself() -> None:
    async def script(asked: Asked) -> None:
        await asked.begin(200, "application/json; charset=utf-8")
        await asked.piece(b'{"x": ')
        await asked.end(b"[1, 2]}")

    async def test(model: Scripted) -> None:
        assert await is_kept(edge(model), CHAT, HELLO)

    run(test, script)


def test_an_answer_that_is_too_large_passes_and_is_not_kept() -> None:
    body = json.dumps({"x": "y" * 300_000}).encode()

    async def script(asked: Asked) -> None:
        await asked.begin(200, "application/json", content_length=str(len(body)))
        for start in range(0, len(body), 10_000):
            await asked.piece(body[start : start + 10_000])
        await asked.end()

    async def test(model: Scripted) -> None:
        app = edge(model, max_answer=100_000)
        for _ in range(2):
            got = await answered(app, "POST", CHAT, HELLO)
            assert got.body == body
            assert got.is_whole
        assert len(model.asked) == 2
        assert app.cache.stats().entries == 0

    run(test, script)


# --------------------------------------------------------------------------------------------- what the request asks for


def test_no_store_keeps_nothing_and_no_cache_asks_anew() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        got = await answered(app, "POST", CHAT, HELLO, cache_control="no-store")
        assert got.cache_status == "infercache; fwd=request; fwd-status=200"
        assert app.cache.stats().entries == 0
        await answered(app, "POST", CHAT, HELLO)
        got = await answered(app, "POST", CHAT, HELLO, cache_control="no-cache")
        assert got.json() == {"number": 3}
        assert (await answered(app, "POST", CHAT, HELLO)).json() == {"number": 3}, "what was asked anew is kept"

    run(test)


def test_only_if_cached_never_asks() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        await answered(app, "POST", RANK, {"q": "other"})
        got = await answered(app, "POST", RANK, {"q": 1}, cache_control="only-if-cached")
        assert (got.status, got.json()["error"]["code"]) == (504, "not_cached")
        await answered(app, "POST", RANK, {"q": 1})
        got = await answered(app, "POST", RANK, {"q": 1}, cache_control="only-if-cached")
        assert got.status == 200
        got = await answered(app, "POST", RANK, {"q": 1}, cache_control="only-if-cached, no-cache")
        assert got.status == 504
        assert len(model.asked) == 2

    run(test)


def test_max_age_and_min_fresh_are_kept_to(clock: ManualClock) -> None:
    async def test(model: Scripted) -> None:
        app = CacheMiddleware(
            model, model_versions={"*": "1"}, ttl="100s", auth_ttl="1h", cache=Cache("16MB", ttl="100s", clock=clock)
        )
        await answered(app, "POST", CHAT, HELLO)
        clock.advance(60)
        assert "hit" in (await answered(app, "POST", CHAT, HELLO)).cache_status
        assert "hit" in (await answered(app, "POST", CHAT, HELLO, cache_control="max-age=61")).cache_status
        assert "hit" in (await answered(app, "POST", CHAT, HELLO, cache_control="min-fresh=39")).cache_status
        assert len(model.asked) == 1
        assert (await answered(app, "POST", CHAT, HELLO, cache_control="max-age=50")).json() == {"number": 2}
        clock.advance(60)
        assert (await answered(app, "POST", CHAT, HELLO, cache_control="min-fresh=50")).json() == {"number": 3}
        hits = app.cache.stats()
        assert hits.hits_l1 == 3

    run(test)


def test_a_conditional_post_passes() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        await answered(app, "POST", CHAT, HELLO)
        for name in ("if_none_match", "if_match", "range", "if_modified_since"):
            got = await answered(app, "POST", CHAT, HELLO, **{name: '"x"'})
            assert got.cache_status.endswith("detail=conditional")
        assert len(model.asked) == 5

    run(test)


# ------------------------------------------------------------------------------------------- versions, tenants and purges


def test_a_model_without_a_version_passes() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model, model_versions={"other": "1"})
        for _ in range(2):
            got = await answered(app, "POST", CHAT, HELLO)
            assert got.cache_status.endswith("detail=version-unknown")
        assert len(model.asked) == 2
        assert app.versions.unknown == {"m"}

    run(test)


def test_the_upstream_tells_versions_and_a_new_one_is_another_question() -> None:
    version = "1"

    async def script(asked: Asked) -> None:
        await asked.say({"version": version}, x_version=version)

    async def test(model: Scripted) -> None:
        nonlocal version
        app = edge(model, model_versions={}, version_header="x-version", version_ttl="1h")
        statuses = [(await answered(app, "POST", CHAT, HELLO)).cache_status for _ in range(3)]
        assert statuses[0].endswith("detail=version-unknown")
        assert statuses[1].endswith("stored")
        assert "hit" in statuses[2]
        version = "2"
        # A deployment is seen by whatever is asked next; what answers that was asked of another version, and is not kept.
        got = await answered(app, "POST", CHAT, {**HELLO, "seed": 1})
        assert got.cache_status.endswith("detail=version-changed")
        assert (await answered(app, "POST", CHAT, HELLO)).json() == {"version": "2"}
        assert "hit" in (await answered(app, "POST", CHAT, HELLO)).cache_status
        assert (await answered(app, "POST", CHAT, HELLO)).headers["x-version"] == "2"

    run(test, script)


def test_a_version_that_changes_while_a_stream_runs_keeps_nothing() -> None:
    version, listed = "1", asyncio.Event()

    async def script(asked: Asked) -> None:
        if asked.path == "/v1/models":
            await asked.say({"data": [{"id": "m", "root": version}]})
            return
        await asked.begin()
        await asked.piece(b"data: 1\n\n")
        await listed.wait()
        await asked.end(b"data: [DONE]\n\n")

    async def test(model: Scripted) -> None:
        nonlocal version
        app = edge(model, model_versions={}, version_field="root", version_ttl="1h")
        exchange = await ask(app, "POST", CHAT, {**HELLO, "stream": True}).until(pieces=1)
        version = "2"
        listed.set()
        await exchange.ended()
        assert exchange.is_whole
        assert app.cache.stats().entries == 0
        assert await is_kept(app, CHAT, {**HELLO, "stream": True})

    run(test, script)


def test_tenants_do_not_see_each_other() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        for _ in range(2):
            for credential in ("Bearer a", "Bearer b"):
                await answered(app, "POST", CHAT, HELLO, authorization=credential)
        await answered(app, "POST", CHAT, HELLO)
        assert len(model.asked) == 3

    run(test)


def test_who_shares_shares_but_each_credential_has_to_be_let_in() -> None:
    async def script(asked: Asked) -> None:
        await asked.say({"x": 1}, 401 if asked.headers.get("authorization") == "Bearer bad" else 200)

    async def test(model: Scripted) -> None:
        app = edge(model, sharing="all")
        assert (await answered(app, "POST", CHAT, HELLO, authorization="Bearer a")).status == 200
        assert (await answered(app, "POST", CHAT, HELLO, authorization="Bearer bad")).status == 401
        assert (await answered(app, "POST", CHAT, HELLO, authorization="Bearer b")).status == 200
        assert len(model.asked) == 3
        assert "hit" in (await answered(app, "POST", CHAT, HELLO, authorization="Bearer b")).cache_status
        assert (await answered(app, "POST", CHAT, HELLO, authorization="Bearer bad")).status == 401

    run(test, script)


@pytest.mark.parametrize(
    "target",
    [
        {"tags": ["edge:model:m"]},
        {"tags": ["edge:version:m=1"]},
        {"tags": ["product:42"]},
        {"tags": ["shoes"]},
        {"tags": ["group one"]},
        {"all": True},
    ],
)
def test_purges_reach_every_tenant(target: dict[str, Any]) -> None:
    async def script(asked: Asked) -> None:
        await asked.say({"x": 1}, surrogate_key="product:42 sale", cache_tag="shoes, hats", cache_groups='"group one"')

    async def test(model: Scripted) -> None:
        app = edge(model)
        for credential in ("Bearer a", "Bearer b"):
            assert await is_kept(app, CHAT, HELLO, authorization=credential)
        app.cache.invalidate(**target)
        for credential in ("Bearer a", "Bearer b"):
            assert "fwd=miss" in (await answered(app, "POST", CHAT, HELLO, authorization=credential)).cache_status

    run(test, script)


def test_the_upstream_says_how_long(clock: ManualClock) -> None:
    async def script(asked: Asked) -> None:
        await asked.say({"x": 1}, cache_control="max-age=100", age="40")

    async def test(model: Scripted) -> None:
        app = CacheMiddleware(model, model_versions={"*": "1"}, cache=Cache("16MB", clock=clock))
        await answered(app, "POST", CHAT, HELLO)
        clock.advance(59)
        got = await answered(app, "POST", CHAT, HELLO)
        assert got.headers["age"] == "99"
        assert got.headers["cache-control"] == "max-age=100"
        clock.advance(2)
        assert "fwd=miss" in (await answered(app, "POST", CHAT, HELLO)).cache_status

    run(test, script)


# ------------------------------------------------------------------------------------------------------- stale and errors


def stale_edge(model: Scripted, clock: ManualClock, **options: Any) -> CacheMiddleware:
    cache = Cache("16MB", ttl="10s", clock=clock)
    return CacheMiddleware(model, model_versions={"*": "1"}, ttl="10s", cache=cache, **options)


def test_stale_while_revalidate_serves_and_asks_once(clock: ManualClock) -> None:
    refreshed = asyncio.Event()

    async def test(model: Scripted) -> None:
        async def script(asked: Asked) -> None:
            number = len(model.asked)
            if number > 1:
                await refreshed.wait()
            await asked.say({"number": number}, 500 if number == 2 else 200)

        model.script = script
        app = stale_edge(model, clock, stale_while_revalidate="1h")
        await answered(app, "POST", CHAT, HELLO)
        clock.advance(11)
        for count in (2, 3):  # the first refresh fails, which leaves what there is
            refreshed.clear()
            for _ in range(3):
                got = await answered(app, "POST", CHAT, HELLO)
                assert got.json() == {"number": 1}
                assert got.cache_status.startswith("infercache; hit; ttl=0")
            assert (await answered(app, "POST", CHAT, HELLO, cache_control="only-if-cached")).status == 200
            await model.until(count)
            await idle()
            assert len(model.asked) == count
            refreshed.set()
            await idle()
        assert (await answered(app, "POST", CHAT, HELLO)).json() == {"number": 3}
        clock.advance(5)
        assert "hit" in (await answered(app, "POST", CHAT, HELLO)).cache_status
        assert len(model.asked) == 3

    run(test)


@pytest.mark.parametrize("failure", ["500", "raises", "cut", "cut-500"])
def test_stale_if_error_stands_in_for_a_failing_upstream(clock: ManualClock, failure: str) -> None:
    fails = False

    async def script(asked: Asked) -> None:
        if not fails:
            await asked.say({"good": 1})
        elif failure == "raises":
            raise RuntimeError("the model's own")
        elif failure == "500":
            await asked.say({"error": 1}, 500)
        else:
            await asked.begin(500 if failure == "cut-500" else 200, "application/json", content_length="100")
            await asked.piece(b'{"good": 2')
            raise RuntimeError("broke off")

    async def test(model: Scripted) -> None:
        nonlocal fails
        app = stale_edge(model, clock, stale_if_error="1h")
        await answered(app, "POST", CHAT, HELLO)
        clock.advance(11)
        fails = True
        got = await answered(app, "POST", CHAT, HELLO)
        assert (got.status, got.json()) == (200, {"good": 1})
        assert got.cache_status == "infercache; hit; ttl=0; detail=upstream-failed"
        assert got.headers["age"] == "11"
        assert len(model.asked) == 2
        app.cache.invalidate(tags=["edge:model:m"])
        got = await answered(app, "POST", CHAT, HELLO)
        assert got.body != b'{"good": 1}', "a purge hides it from that, too"
        fails = False
        assert (await answered(app, "POST", CHAT, HELLO)).json() == {"good": 1}

    run(test, script)


@pytest.mark.parametrize("status", [400, 401, 403, 429])
def test_what_the_upstream_says_of_the_request_is_an_answer(clock: ManualClock, status: int) -> None:
    refuses = False

    async def script(asked: Asked) -> None:
        await asked.say({"x": 1}, status if refuses else 200)

    async def test(model: Scripted) -> None:
        nonlocal refuses
        app = stale_edge(model, clock, stale_if_error="1h")
        await answered(app, "POST", CHAT, HELLO)
        clock.advance(11)
        refuses = True
        assert (await answered(app, "POST", CHAT, HELLO)).status == status

    run(test, script)


def test_an_application_that_raises_raises_to_its_server() -> None:
    async def script(asked: Asked) -> None:
        raise LookupError("the model's own")

    async def test(model: Scripted) -> None:
        app = edge(model)
        for _ in range(2):  # the second one is let in by nobody, either
            got = await answered(app, "POST", CHAT, HELLO)
            assert isinstance(got.error, LookupError)
        assert len(model.asked) == 2

    run(test, script)


def test_a_fault_of_the_cache_takes_no_answer_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        await answered(app, "POST", CHAT, HELLO)

        async def fault(*_: object) -> None:
            raise RuntimeError("the cache's own")

        monkeypatch.setattr(app.versions, "after", fault)
        got = await answered(app, "POST", CHAT, {**HELLO, "seed": 1})
        assert (got.status, got.json()) == (200, {"number": 2})
        assert len(model.asked) == 2

    run(test)


def test_an_entry_that_holds_something_else_is_a_miss() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        await answered(app, "POST", CHAT, HELLO)
        seen: list[Any] = []
        find = app.cache._find
        app.cache._find = lambda key, *rest: (seen.append(key), find(key, *rest))[1]  # type: ignore[method-assign]
        await answered(app, "POST", CHAT, HELLO)
        app.cache.set(seen[0], b"something else")
        got = await answered(app, "POST", CHAT, HELLO)
        assert (got.status, got.json()) == (200, {"number": 2}), "passed through"
        for _ in range(2):
            assert (await answered(app, "POST", CHAT, HELLO)).json() == {"number": 3}

    run(test)
