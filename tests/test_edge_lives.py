"""Whole answers that are kept: for how long, for whom, until what, and what stands in for an upstream that fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache
from infercache.edge import CacheMiddleware
from scripted import Asked, Scripted, answered, ask, idle
from whole_edges import CHAT, HELLO, RANK, edge, is_kept, run

if TYPE_CHECKING:
    from infercache.testing import ManualClock

# -------------------------------------------------------------------------------------------- what the request asks for


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


# ----------------------------------------------------------------------------------------- versions, tenants and purges


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
        # A deployment is seen by whatever is asked next. That was asked of another version, so it is not kept.
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


# ----------------------------------------------------------------------------------------------------- stale and errors


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
