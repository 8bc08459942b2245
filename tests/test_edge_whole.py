"""Whole requests through the middleware: what is the same question, and what is not kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache.edge import CacheMiddleware
from scripted import Asked, Scripted, answered
from whole_edges import BODIES, CHAT, HELLO, RANK, RERANK, as_bytes, edge, is_kept, run

# ------------------------------------------------------------------------------------------------- what is one question


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
        (b"[" * 60, "uncached", "not-understood"),
    ],
)
def test_what_may_not_be_kept_passes_with_the_reason(body: Any, kind: str, detail: str) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        for _ in range(2):
            passed = await answered(app, "POST", CHAT, body)
            assert passed.cache_status == f"infercache; fwd=bypass; fwd-status=200; detail={detail}"
        assert len(model.asked) == 2
        assert model.asked[0].body == as_bytes(body), "it passes as it is"
        counted = {key[2]: series.requests for key, series in app.metrics.series()}
        assert counted == {kind: 2}

    run(test)


def test_json_that_is_nested_too_deep_is_refused() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model, max_json_depth=20)
        deep: Any = "x"
        for _ in range(19):
            deep = [deep]
        assert (await answered(app, "POST", RANK, {"x": deep})).status == 200
        refused = await answered(app, "POST", RANK, {"x": [deep]})
        assert (refused.status, refused.json()["error"]["code"]) == (400, "json_too_deep")
        assert (await answered(app, "POST", RANK, b"[" * 100_000)).status == 400
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
            assert (got.status, got.body) == (status, as_bytes(content))
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


def test_an_origin_gets_what_cors_adds_for_it() -> None:
    async def script(asked: Asked) -> None:
        origin = asked.headers.get("origin")
        await asked.say({"x": 1}, **({"access_control_allow_origin": origin, "vary": "Origin"} if origin else {}))

    async def test(model: Scripted) -> None:
        app = edge(model)
        for _ in range(2):
            for origin in ("https://a.example", "https://b.example"):
                got = await answered(app, "POST", CHAT, HELLO, origin=origin)
                assert got.headers["access-control-allow-origin"] == origin
            got = await answered(app, "POST", CHAT, HELLO)
            assert "access-control-allow-origin" not in got.headers
        assert len(model.asked) == 3

    run(test, script)


def test_what_names_in_vary_are_known_bars_nothing() -> None:
    async def script(asked: Asked) -> None:
        await asked.say(
            {"x": 1}, vary="Accept-Encoding, Origin, Authorization" + (", Accept" if asked.path == RANK else "")
        )

    async def test(model: Scripted) -> None:
        app = edge(model)
        for path in (CHAT, RANK):
            assert await is_kept(app, path, BODIES[path])

    run(test, script)


def test_switched_off_it_asks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERCACHE_DISABLED", "1")

    async def script(asked: Asked) -> None:
        await asked.begin()
        await asked.piece(b"data: 1\n\n")
        await asked.end(b"data: [DONE]\n\n")

    async def test(model: Scripted) -> None:
        app = edge(model)
        for count in (1, 2, 3):
            got = await answered(app, "POST", CHAT, {**HELLO, "stream": True})
            assert got.pieces == [b"data: 1\n\n", b"data: [DONE]\n\n"]
            assert "stored" not in got.cache_status
            assert len(model.asked) == count

    run(test, script)
