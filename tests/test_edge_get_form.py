"""The GET form of declared routes: the same question as the POST, with what CDNs and browsers go by."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache import Cache
from scripted import Asked, Scripted, answered, ask, idle
from whole_edges import RANK, edge, run

if TYPE_CHECKING:
    from infercache.testing import ManualClock

QUESTION = {"query": "red shoes + hats & 100 %"}


def get(body: Any = QUESTION) -> str:
    return f"{RANK}?message={quote(json.dumps(body))}"


def test_a_get_is_the_question_of_the_post() -> None:
    text = json.dumps(QUESTION)
    encoded = base64.urlsafe_b64encode(text.encode()).decode()
    forms = [
        f"{RANK}?message={quote(text)}",
        f"{RANK}?message={quote_plus(text)}",
        f"{RANK}?encoding=json&message={quote(text)}",
        f"{RANK}?message={encoded}&base64=1",
        f"{RANK}?base64=1&message={encoded.rstrip('=')}",
        f"{RANK}?message={quote(json.dumps(QUESTION, indent=2))}",
    ]

    async def test(model: Scripted) -> None:
        app = edge(model)
        # A client is let in route by route, and method by method it is the same one.
        got = [await answered(app, "GET", form) for form in forms]
        assert [each.json() for each in got] == [{"number": 1}] * len(forms)
        assert len({each.headers["etag"] for each in got}) == 1
        assert "hit" in (await answered(app, "POST", RANK, QUESTION)).cache_status
        (asked,) = model.asked
        assert (asked.method, asked.path, asked.query) == ("POST", RANK, b"")
        assert asked.json() == QUESTION
        assert asked.headers["content-type"] == "application/json"

    run(test)


def test_other_parameters_are_the_query_of_the_post() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        await answered(app, "GET", get() + "&api-version=2&x=%20")
        assert model.asked[0].query == b"api-version=2&x=%20"
        await answered(app, "GET", get())
        assert "hit" in (await answered(app, "POST", RANK + "?api-version=2&x=%20", QUESTION)).cache_status
        assert len(model.asked) == 2

    run(test)


@pytest.mark.parametrize(
    "target",
    [
        get() + "&encoding=proto",
        get() + "&base64=1",
        get() + "&base64=yes",
        get() + "&message=1",
        f"{RANK}?message=AAAAA&base64=1",
        f"{RANK}?message=AA%2BA&base64=1",
    ],
)
def test_a_malformed_form_is_refused(target: str) -> None:
    async def test(model: Scripted) -> None:
        got = await answered(edge(model), "GET", target)
        assert (got.status, got.json()["error"]["code"]) == (400, "bad_get_form")
        assert not model.asked

    run(test)


def test_a_get_that_is_not_of_this_form_is_the_upstreams() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        for target in (RANK, RANK + "?q=1", RANK + "?message2=1"):
            got = await answered(app, "GET", target, if_none_match="*")
            assert got.status == 200
            assert "etag" not in got.headers
        assert [asked.method for asked in model.asked] == ["GET"] * 3
        assert model.asked[0].headers["if-none-match"] == "*"

    run(test)


def test_a_message_that_is_no_json_passes_as_its_post_and_is_held_by_nobody() -> None:
    async def test(model: Scripted) -> None:
        got = await answered(edge(model), "GET", f"{RANK}?message=nope")
        assert got.headers["cdn-cache-control"] == "no-store"
        assert model.asked[0].body == b"nope"

    run(test)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_any_json_can_be_asked_for(value: Any) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        await answered(app, "POST", RANK, json.dumps(value).encode())
        text = base64.urlsafe_b64encode(json.dumps(value).encode()).decode()
        for target in (get(value), f"{RANK}?base64=1&message={text}"):
            assert (await answered(app, "GET", target)).json() == {"number": 1}

    run(test)


# --- validators


def test_who_has_it_already_is_told_so() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        tag = (await answered(app, "GET", get())).headers["etag"]
        assert tag.startswith('"'), "it is a strong one"
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            got = await answered(app, "GET", get(), if_none_match=known)
            assert (got.status, got.body, got.is_whole) == (304, b"", True)
            assert got.headers["etag"] == tag
            assert "content-type" not in got.headers
            assert "content-length" not in got.headers
            for name in ("cdn-cache-control", "cache-tag", "vary", "cache-control"):
                assert name in got.headers
        for other in ('"other"', tag.strip('"'), ""):
            assert (await answered(app, "GET", get(), if_none_match=other)).status == 200
        assert len(model.asked) == 1

    run(test)


def test_a_new_answer_has_another_tag() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        first = await answered(app, "GET", get())
        app.cache.invalidate(all=True)
        got = await answered(app, "GET", get(), if_none_match=first.headers["etag"])
        assert (got.status, got.json()) == (200, {"number": 2})
        assert got.headers["etag"] != first.headers["etag"]

    run(test)


@pytest.mark.parametrize("known", [False, True])
def test_head_is_get_without_the_body(known: bool) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        if known:
            await answered(app, "GET", get())
        head = await answered(app, "HEAD", get())
        got = await answered(app, "GET", get())
        assert (head.status, head.body, head.is_whole) == (200, b"", True)
        for name in ("etag", "content-type", "content-length", "cache-tag", "vary"):
            assert head.headers[name] == got.headers[name]
        assert head.headers["content-length"] == str(len(got.body))
        assert (await answered(app, "HEAD", get(), if_none_match=got.headers["etag"])).status == 304
        assert len(model.asked) == 1
        assert model.asked[0].method == "POST"

    run(test)


# --- CDNs


def test_a_cdn_is_told_how_long_and_by_what_to_purge(clock: ManualClock) -> None:
    async def script(asked: Asked) -> None:
        await asked.say({"x": 1}, surrogate_key="product:42 sale", cache_tag="two words", cache_control="max-age=90")

    async def test(model: Scripted) -> None:
        app = edge(
            model,
            cdn_ttl="40s",
            cache=Cache("16MB", clock=clock),
            stale_while_revalidate="5s",
            stale_if_error="1h",
            auth_ttl="1h",
        )
        missed = await answered(app, "GET", get())
        assert missed.headers["cdn-cache-control"] == "max-age=40, stale-while-revalidate=5, stale-if-error=3600"
        tags = "edge:model:/rank,edge:version:/rank=1,product:42,sale,two%20words"
        assert missed.headers["cache-tag"] == tags
        assert missed.headers["surrogate-key"] == tags.replace(",", " ")
        clock.advance(10.5)
        hit = await answered(app, "GET", get())
        assert hit.headers["age"] == "10"
        assert hit.headers["cdn-cache-control"].startswith("max-age=50,"), "its age counts against it"
        clock.advance(60)
        hit = await answered(app, "GET", get())
        assert hit.headers["cdn-cache-control"].startswith("max-age=89,"), "no longer than it is fresh here"
        assert hit.headers["cache-tag"] == tags
        assert hit.headers["cache-control"] == "max-age=90", "what the upstream says to all stays"

    run(test, script)


def test_who_knows_nothing_of_cdn_headers_asks_each_time() -> None:
    async def test(model: Scripted) -> None:
        got = await answered(edge(model), "GET", get())
        assert got.headers["cache-control"] == "no-cache"

    run(test)


@pytest.mark.parametrize("header", ["authorization", "cookie", "api_key", "openai_organization"])
@pytest.mark.parametrize("sharing", ["none", "all"])
def test_what_credentials_were_shown_for_no_cdn_holds(header: str, sharing: str) -> None:
    async def test(model: Scripted) -> None:
        app = edge(model, sharing=sharing)
        for _ in range(2):
            got = await answered(app, "GET", get(), **{header: "secret"})
            assert got.headers["cdn-cache-control"] == "no-store"
            assert got.headers["cache-control"] == "private, no-cache"
            assert "tenant" not in got.headers.get("cache-tag", "")
        assert "hit" in got.cache_status

    run(test)


def test_an_answer_of_the_public_is_not_taken_for_that_of_a_caller() -> None:
    async def test(model: Scripted) -> None:
        got = await answered(edge(model), "GET", get())
        assert got.headers["vary"].startswith("authorization, api-key, x-api-key, x-goog-api-key, cookie")
        got = await answered(edge(model, sharing="all"), "GET", get())
        assert got.headers["vary"] == "origin"
        proxied = edge(model, tenant_header="x-tenant", trusted_proxies=["192.0.2.0/24"])
        assert "x-tenant" in (await answered(proxied, "GET", get())).headers["vary"]
        got = await answered(proxied, "GET", get(), x_tenant="a")
        assert got.headers["cdn-cache-control"] == "no-store"

    run(test)


@pytest.mark.parametrize(
    ("status", "headers"),
    [(500, {}), (404, {}), (200, {"cache_control": "no-store"}), (200, {"set_cookie": "a=b"}), (200, {"vary": "x"})],
)
def test_what_is_not_kept_here_no_cdn_holds(status: int, headers: dict[str, str]) -> None:
    async def script(asked: Asked) -> None:
        await asked.say({"x": 1}, status, **headers)

    async def test(model: Scripted) -> None:
        got = await answered(edge(model), "GET", get())
        assert got.status == status
        assert got.headers["cdn-cache-control"] == "no-store"
        assert "cache-tag" not in got.headers

    run(test, script)


def test_a_model_without_a_version_no_cdn_holds() -> None:
    async def test(model: Scripted) -> None:
        got = await answered(edge(model, model_versions={}), "GET", get())
        assert got.headers["cdn-cache-control"] == "no-store"
        got = await answered(edge(model, cdn_ttl="0s"), "GET", get())
        assert got.headers["cdn-cache-control"] == "no-store"

    run(test)


def test_streams_are_got_too_and_held_by_no_cdn() -> None:
    async def script(asked: Asked) -> None:
        await asked.begin()
        await asked.piece(b"data: 1\n\n")
        await asked.end(b"data: [DONE]\n\n")

    async def test(model: Scripted) -> None:
        app = edge(model)
        for _ in range(2):
            got = await answered(app, "GET", get())
            assert got.pieces == [b"data: 1\n\n", b"data: [DONE]\n\n"]
            assert "etag" not in got.headers
            assert got.headers["cdn-cache-control"] == "no-store"
        assert "hit" in got.cache_status

    run(test, script)


def test_the_same_question_at_the_same_time_is_asked_once_by_either_form() -> None:
    async def main() -> None:
        over = asyncio.Event()

        async def script(asked: Asked) -> None:
            if asked.json() != "warm":
                await over.wait()
            await asked.say({"number": 1})

        model = Scripted(script)
        app = edge(model)
        await answered(app, "POST", RANK, b'"warm"')
        exchanges = [ask(app, "GET", get()), ask(app, "POST", RANK, QUESTION), ask(app, "HEAD", get())]
        await idle()
        over.set()
        for each in exchanges:
            assert (await each.ended()).status == 200
        assert len(model.asked) == 2

    asyncio.run(main())


def test_what_the_model_gives_everybody_by_get_lets_no_credential_in() -> None:
    async def test(model: Scripted) -> None:
        app = edge(model)
        for _ in range(2):
            await answered(app, "POST", RANK, QUESTION, authorization="Bearer good")
        asked = len(model.asked)
        await answered(app, "GET", RANK, authorization="Bearer bad")  # not of the form: the model's own page
        assert not app.tenants.of([(b"authorization", b"Bearer bad")], None, RANK).proven
        await answered(app, "POST", RANK, QUESTION, authorization="Bearer bad")
        assert len(model.asked) == asked + 2, "each of these two has to reach the model"

    run(test)
