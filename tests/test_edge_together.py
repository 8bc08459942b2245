"""Identical requests at the same time, streams above all: asked once, given to all, to nobody what is not theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from infercache import Cache
from scripted import Scripted, answered, ask, idle
from whole_edges import CHAT, DONE, HELLO, STREAM, Model, die, edge, end, several

if TYPE_CHECKING:
    from infercache.edge import CacheMiddleware
    from infercache.testing import ManualClock


def run(test: Callable[[Model, CacheMiddleware], Awaitable[None]], **options: Any) -> None:
    """Runs it, the caller's credentials having been let in before."""

    async def main() -> None:
        model = Model()
        app = edge(model, **options)
        await answered(app, "POST", CHAT, {**HELLO, "warm": True}, cache_control="no-store")
        model.taken = 1
        await test(model, app)

    asyncio.run(main())


def test_identical_requests_are_asked_once() -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        exchanges = await several(app, 50, HELLO)
        asked = await model.next()
        await model.nobody()
        await asked.say({"x": 1})
        asked.over.set()  # type: ignore[attr-defined]
        for each in exchanges:
            await each.ended()
            assert each.json() == {"x": 1}
        collapsed = ["collapsed" in each.cache_status for each in exchanges]
        assert sorted(collapsed) == [False] + [True] * 49
        await model.nobody()

    run(test)


def test_streams_are_asked_once_and_come_as_they_are_made() -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        first = await several(app, 3)
        asked = await model.next()
        await asked.begin(x_request_id="1")
        await asked.piece(b"data: 1\n\n")
        for each in first:
            await each.until(pieces=1)
            assert not each.task.done(), "it comes while it is made"
        late = await several(app, 3)
        for each in late:
            await each.until(pieces=1)
            assert each.pieces == [b"data: 1\n\n"], "what came before"
            assert "collapsed" in each.cache_status
            assert "x-request-id" not in each.headers
        await asked.piece(b"data: 2\n\ndata: 3\n\n")
        await end(asked, DONE)
        for each in first + late:
            await each.ended()
            assert each.is_whole
            assert each.pieces == [b"data: 1\n\n", b"data: 2\n\ndata: 3\n\n", DONE]
        replayed = await answered(app, "POST", CHAT, STREAM)
        assert replayed.pieces == first[0].pieces, "in the pieces that it came in"
        assert "content-length" not in replayed.headers
        await model.nobody()
        stored = sum(series.stored for _, series in app.metrics.series())
        assert stored == 1

    run(test)


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_one_who_leaves_stops_nobody(who: str) -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        leader, follower = await several(app, 2)
        asked = await model.next()
        await asked.begin()
        await asked.piece(b"data: 1\n\n")
        leaves, stays = (leader, follower) if who == "leader" else (follower, leader)
        await stays.until(pieces=1)
        leaves.leave()
        await leaves.ended()
        assert leaves.broke
        assert not asked.is_cancelled
        await end(asked, DONE)
        assert (await stays.ended()).pieces == [b"data: 1\n\n", DONE]
        assert "hit" in (await answered(app, "POST", CHAT, STREAM)).cache_status

    run(test)


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("body", [HELLO, STREAM])
def test_when_nobody_is_left_the_upstream_is_stopped(when: str, body: Any) -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        exchanges = await several(app, 3, body)
        asked = await model.next()
        if when == "during":
            await asked.begin(kind="text/event-stream" if body is STREAM else "application/json")
            await asked.piece(b"data: 1\n\n")
            await idle()
        for each in exchanges:
            assert not asked.is_cancelled
            each.leave()
            await each.ended()
        await idle()
        assert asked.is_cancelled
        assert app.cache.stats().entries == 0
        again = (await several(app, 1, body))[0]
        asked = await model.next()
        await asked.begin(kind="application/json")
        await end(asked, b'{"x": 1}')
        assert (await again.ended()).json() == {"x": 1}

    run(test)


@pytest.mark.parametrize("how", ["ends", "dies"])
def test_clients_that_leave_with_the_last_event_let_the_stream_end(how: str) -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        exchanges = await several(app, 2)
        asked = await model.next()
        await asked.begin()
        await asked.piece(b"data: 1\n\n")
        await asked.piece(DONE)
        for each in exchanges:
            await each.until(pieces=2)
            each.leave()
            await each.ended()
        await idle()
        assert not asked.is_cancelled
        if how == "dies":
            die(asked)
            await idle()
            assert app.cache.stats().entries == 0
            return
        await end(asked)
        await idle()
        assert (await answered(app, "POST", CHAT, STREAM)).pieces == [b"data: 1\n\n", DONE]
        await model.nobody()

    run(test)


def test_a_slow_reader_holds_up_nobody() -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        slow, fast = await several(app, 2)
        slow.takes.clear()
        asked = await model.next()
        await asked.begin()
        for number in range(500):
            await asyncio.wait_for(asked.piece(b"data: %d\n\n" % number * 100), 10)
        await asyncio.wait_for(end(asked, DONE), 10)
        await fast.ended()
        assert fast.is_whole
        assert not slow.task.done()
        assert "hit" in (await answered(app, "POST", CHAT, STREAM)).cache_status
        slow.takes.set()
        assert (await slow.ended()).body == fast.body

    run(test)


def test_what_is_too_large_goes_to_who_reads_it_and_is_not_kept() -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        first, second = await several(app, 2)
        asked = await model.next()
        await asked.begin()
        for number in range(100):
            await asked.piece(b"data: %d\n\n" % number + b": " + b"x" * 10_000 + b"\n\n")
        late = (await several(app, 1))[0]
        other = await model.next()
        await end(asked, DONE)
        for each in (first, second):
            await each.ended()
            assert each.is_whole
            assert len(each.pieces) == 101
        assert app.cache.stats().entries == 0, "it is too large, and was not kept"
        await other.begin()
        await end(other, DONE)
        assert (await late.ended()).pieces == [DONE]

    run(test, max_answer=200_000)


@pytest.mark.parametrize("how", ["no last event", "error event", "dies"])
def test_a_stream_that_is_not_whole_is_given_to_all_and_kept_for_nobody(how: str) -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        exchanges = await several(app, 3)
        asked = await model.next()
        await asked.begin()
        await asked.piece(b"data: 1\n\n")
        if how == "dies":
            await idle()
            die(asked)
        elif how == "no last event":
            await end(asked, b"data: 2\n\n")
        else:
            await end(asked, b'data: {"error": {"message": "overloaded"}}\n\n' + DONE)
        for each in exchanges:
            await each.ended()
            assert each.pieces[0] == b"data: 1\n\n"
            assert each.is_whole == (how != "dies"), "who reads it sees that it broke off"
        assert app.cache.stats().entries == 0
        again = (await several(app, 1))[0]
        asked = await model.next()
        await asked.begin()
        await end(asked, DONE)
        assert (await again.ended()).pieces == [DONE]

    run(test)


def test_the_model_dies_before_its_head() -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        exchanges = await several(app, 3)
        die(await model.next())
        for each in exchanges:
            await each.ended()
            assert isinstance(each.error, RuntimeError)
        await model.nobody()

    run(test)


@pytest.mark.parametrize("status", [500, 503])
def test_of_a_failure_all_are_told(status: int) -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        exchanges = await several(app, 5)
        asked = await model.next()
        await asked.say({"error": 1}, status, retry_after="3")
        asked.over.set()  # type: ignore[attr-defined]
        for each in exchanges:
            await each.ended()
            assert (each.status, each.json(), each.headers["retry-after"]) == (status, {"error": 1}, "3")
        await model.nobody()

    run(test)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (400, {}),
        (401, {}),
        (429, {}),
        (200, {"set_cookie": "session=1"}),
        (200, {"cache_control": "private"}),
        (200, {"cache_control": "no-store"}),
        (200, {"vary": "cookie2"}),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_what_is_for_one_caller_no_other_gets(status: int, headers: dict[str, str], kind: str) -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        exchanges = await several(app, 4)
        asked = await model.next()
        await asked.begin(status, kind, **headers)
        others = [await model.next() for _ in range(3)]  # at once, not after the first one's end
        await model.nobody()
        for number, each in enumerate([asked, *others]):
            if each is not asked:
                await each.begin(200, kind)
            await end(each, b'{"number": %d}' % number)
        got = [(await each.ended()).body for each in exchanges]
        assert sorted(got) == [b'{"number": %d}' % number for number in range(4)]
        assert app.cache.stats().entries == 0

    run(test)


def test_a_purge_during_a_stream_keeps_it_from_all_who_come_later() -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        before = await several(app, 2)
        asked = await model.next()
        await asked.begin(surrogate_key="product:42")
        await asked.piece(b"data: old\n\n")
        for each in before:
            await each.until(pieces=1)
        app.cache.invalidate(tags=["product:42"])
        after = await several(app, 2)
        newer = await model.next()  # not after the old one's end
        await model.nobody()
        await newer.begin(surrogate_key="product:42")
        await newer.piece(b"data: new\n\n")
        await end(asked, DONE)
        for each in before:
            assert (await each.ended()).body == b"data: old\n\n" + DONE
        assert app.cache.stats().entries == 0, "what began before the purge is not kept"
        await end(newer, DONE)
        for each in after:
            assert (await each.ended()).body == b"data: new\n\n" + DONE
        assert (await answered(app, "POST", CHAT, STREAM)).body == b"data: new\n\n" + DONE
        await model.nobody()

    run(test)


@pytest.mark.parametrize("soft", [False, True])
def test_a_purge_of_all_is_a_purge_of_what_runs(soft: bool) -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        await several(app, 1)
        asked = await model.next()
        app.cache.invalidate(all=True, soft=soft)
        await several(app, 1)
        newer = await model.next()
        await asked.begin()
        await end(asked, b"data: old\n\n" + DONE)
        await newer.begin()
        await end(newer, b"data: new\n\n" + DONE)
        await idle()
        assert (await answered(app, "POST", CHAT, STREAM)).body == b"data: new\n\n" + DONE

    run(test)


def test_who_wants_an_answer_of_now_joins_nobody_and_may_be_joined() -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        old = (await several(app, 1))[0]
        first = await model.next()
        fresh = (await several(app, 1, cache_control="no-cache"))[0]
        second = await model.next()
        await first.begin()
        await end(first, b"data: 1\n\n" + DONE)
        await old.ended()
        await second.begin()
        await end(second, b"data: 2\n\n" + DONE)
        assert (await fresh.ended()).body == b"data: 2\n\n" + DONE
        assert (await answered(app, "POST", CHAT, STREAM)).body == b"data: 2\n\n" + DONE

    run(test)


def test_who_sets_an_age_joins_where_nothing_is_kept() -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        exchanges = await several(app, 5, HELLO, cache_control="max-age=60")
        asked = await model.next()
        await model.nobody()
        await asked.begin(kind="application/json")
        await end(asked, b'{"x": 1}')
        for each in exchanges:
            assert (await each.ended()).json() == {"x": 1}

    run(test)


def test_two_loops_of_one_process_ask_once() -> None:
    import threading

    model, cache = Model(), Cache("16MB")
    answers: list[bytes] = []
    ready, leave = threading.Barrier(2), threading.Event()

    async def lead() -> None:
        app = edge(model, cache=cache)
        await answered(app, "POST", CHAT, {**HELLO, "warm": True}, cache_control="no-store")
        exchange = ask(app, "POST", CHAT, STREAM)
        asked = await model.until(2)
        await asked.begin()
        await asked.piece(b"data: 1\n\n")
        await asyncio.to_thread(ready.wait, 30)
        while not cache.stats().misses >= 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await end(asked, DONE)
        answers.append((await exchange.ended()).body)

    async def follow() -> None:
        warmed = Scripted()
        app = edge(warmed, cache=cache)
        await answered(app, "POST", CHAT, {**HELLO, "warm": True}, cache_control="no-store")
        await asyncio.to_thread(ready.wait, 30)
        answers.append((await answered(app, "POST", CHAT, STREAM)).body)
        assert len(warmed.asked) == 1
        leave.set()

    threads = [threading.Thread(target=asyncio.run, args=(each(),), daemon=True) for each in (lead, follow)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert leave.is_set()
    assert answers == [b"data: 1\n\n" + DONE] * 2
    assert len(model.asked) == 2


def test_a_stale_stream_is_replayed_while_the_new_one_runs(clock: ManualClock) -> None:
    async def main() -> None:
        model = Model()
        app = edge(
            model, ttl="10s", stale_while_revalidate="1h", cache=Cache("16MB", ttl="10s", clock=clock), auth_ttl="1h"
        )
        first = (await several(app, 1))[0]
        asked = await model.next()
        await asked.begin()
        await end(asked, b"data: 1\n\n" + DONE)
        await first.ended()
        clock.advance(11)
        assert (await answered(app, "POST", CHAT, STREAM)).body == b"data: 1\n\n" + DONE
        refresh = await model.next()
        await refresh.begin()
        await refresh.piece(b"data: 2\n\n")
        assert (await answered(app, "POST", CHAT, STREAM)).body == b"data: 1\n\n" + DONE
        await end(refresh, DONE)
        await idle()
        assert (await answered(app, "POST", CHAT, STREAM)).body == b"data: 2\n\n" + DONE
        await model.nobody()

    asyncio.run(main())


def test_nothing_is_left_of_what_has_ended() -> None:
    async def test(model: Model, app: CacheMiddleware) -> None:
        handler: Any = app.routes.table["POST", CHAT]
        exchanges = await several(app, 5)
        asked = await model.next()
        assert len(handler.asked) == 1
        await asked.begin()
        await asked.piece(b"data: 1\n\n")
        await idle()
        assert handler.everybody.held > 0
        await end(asked, DONE)
        for each in exchanges:
            await each.ended()
        assert not handler.asked
        assert handler.everybody.held == 0
        assert app.metrics.in_flight == 0

    run(test)
