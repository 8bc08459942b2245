"""A credential's first requests: what asks the same is asked once, and nothing is given out before it is let in."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import infer_server
from asgi import Call
from embedding_server import Server, status_of
from embedding_server import ask as embed
from embedding_server import edge as embedding_edge
from infercache.edge import CacheMiddleware
from scripted import answered, idle
from whole_edges import CHAT, DONE, HELLO, STREAM, Model, edge, end, several

BODY = {"model": "m", "input": ["x", "y"]}


def test_of_a_credentials_first_streams_one_is_asked_and_all_follow_it_as_it_comes() -> None:
    async def main() -> None:
        model = Model()
        app = edge(model)
        exchanges = await several(app, 5, authorization="Bearer new")
        asked = await model.next()
        await model.nobody()
        assert not any(each.status for each in exchanges), "nobody is told anything before it is let in"
        await asked.begin()
        await asked.piece(b"data: 1\n\n")
        for each in exchanges:
            await each.until(pieces=1)
            assert not each.task.done()
        await model.nobody()
        await end(asked, DONE)
        for each in exchanges:
            assert (await each.ended()).is_whole
            assert each.body == b"data: 1\n\n" + DONE
        assert "hit" in (await answered(app, "POST", CHAT, STREAM, authorization="Bearer new")).cache_status
        assert not app.routes.table["POST", CHAT].proving._asked  # type: ignore[attr-defined]

    asyncio.run(main())


def test_of_a_credentials_first_whole_answers_one_is_asked_and_the_others_are_hits() -> None:
    async def main() -> None:
        model = Model()
        app = edge(model)
        exchanges = await several(app, 5, HELLO)
        asked = await model.next()
        await model.nobody()
        await asked.say({"x": 1})
        asked.over.set()  # type: ignore[attr-defined]
        for each in exchanges:
            assert (await each.ended()).json() == {"x": 1}
        assert sorted("; hit" in each.cache_status for each in exchanges) == [False, True, True, True, True]
        await model.nobody()

    asyncio.run(main())


@pytest.mark.parametrize("sharing", ["none", "all"])
def test_two_credentials_that_are_new_are_each_asked(sharing: str) -> None:
    async def main() -> None:
        model = Model()
        app = edge(model, sharing=sharing)
        one = await several(app, 2, HELLO, authorization="Bearer one")
        two = await several(app, 2, HELLO, authorization="Bearer two")
        of_one, of_two = await model.next(), await model.next()
        await model.nobody()
        for asked, number in ((of_one, 1), (of_two, 2)):
            await asked.say({"number": number})
            asked.over.set()  # type: ignore[attr-defined]
        for each in one + two:
            assert (await each.ended()).status == 200
        assert one[0].json() == {"number": 1} and two[0].json() == {"number": 2}
        await model.nobody()

    asyncio.run(main())


def test_who_is_not_let_in_gets_nothing_and_each_is_refused_by_the_model() -> None:
    async def main() -> None:
        model = Model()
        app = edge(model)
        good = await several(app, 1, HELLO, authorization="Bearer good")
        asked = await model.next()
        await asked.say({"secret": 1})
        asked.over.set()  # type: ignore[attr-defined]
        await good[0].ended()
        exchanges = await several(app, 3, HELLO, authorization="Bearer bad")
        first = await model.next()
        await model.nobody()
        await first.say({"error": "no"}, 401)
        first.over.set()  # type: ignore[attr-defined]
        others = [await model.next(), await model.next()]  # at once, not one after the other
        for each in others:
            await each.say({"error": "no"}, 401)
            each.over.set()  # type: ignore[attr-defined]
        for exchange in exchanges:
            assert ((await exchange.ended()).status, exchange.json()) == (401, {"error": "no"})
        await model.nobody()

    asyncio.run(main())


def test_a_client_that_leaves_is_waited_for_by_nobody() -> None:
    async def main() -> None:
        model = Model()
        app = edge(model)
        first, second, third, *others = await several(app, 5, HELLO)
        asked = await model.next()
        third.leave()  # while it waits
        await third.ended()
        first.leave()
        await first.ended()
        assert asked.is_cancelled
        again = await model.next()
        await model.nobody()  # one of those that waited asks, and the others wait for that
        await again.say({"x": 2})
        again.over.set()  # type: ignore[attr-defined]
        for each in (second, *others):
            assert (await each.ended()).json() == {"x": 2}
        await model.nobody()
        assert not app.routes.table["POST", CHAT].proving._asked  # type: ignore[attr-defined]

    asyncio.run(main())


def test_what_is_not_kept_is_asked_for_by_each() -> None:
    async def main() -> None:
        model = Model()
        app = edge(model)
        exchanges = await several(app, 3, HELLO)
        first = await model.next()
        await model.nobody()
        await first.say({"number": 0}, cache_control="no-store")
        first.over.set()  # type: ignore[attr-defined]
        await exchanges[0].ended()
        # They are proven now: one of them leads, and what it gets is not shared, either.
        for number in (1, 2):
            asked = await model.next()
            await asked.say({"number": number}, cache_control="no-store")
            asked.over.set()  # type: ignore[attr-defined]
        assert sorted([(await each.ended()).json()["number"] for each in exchanges]) == [0, 1, 2]
        await model.nobody()

    asyncio.run(main())


def test_where_a_proof_never_holds_nobody_waits_for_one() -> None:
    async def main() -> None:
        model = Model()
        app = edge(model, auth_ttl=0)
        exchanges = await several(app, 3, HELLO)
        for number, asked in enumerate([await model.next() for _ in range(3)]):
            await asked.say({"number": number})
            asked.over.set()  # type: ignore[attr-defined]
        assert sorted([(await each.ended()).json()["number"] for each in exchanges]) == [0, 1, 2]

    asyncio.run(main())


def test_of_a_credentials_first_batches_each_item_is_asked_for_once() -> None:
    async def main() -> None:
        server = Server()
        server.gate = asyncio.Event()
        app = embedding_edge(server)
        asking = [asyncio.ensure_future(embed(app, BODY)) for _ in range(10)]
        overlapping = asyncio.ensure_future(embed(app, {"model": "m", "input": ["y", "z"]}))
        other = asyncio.ensure_future(embed(app, {"model": "m", "input": ["w"]}))
        await idle()
        assert sorted(server.asked) == [["w"], ["x", "y"]], "what asks for something else does not wait"
        server.gate.set()
        first, *others = await asyncio.gather(*asking)
        assert status_of(first) == b"infercache; fwd=miss; fwd-status=200; stored"
        for call in others:
            assert status_of(call).startswith(b"infercache; hit")
            assert json.loads(call.content)["data"] == json.loads(first.content)["data"]
        await asyncio.gather(overlapping, other)
        assert sorted(server.asked) == [["w"], ["x", "y"], ["z"]]

    asyncio.run(main())


def test_of_a_credentials_first_inferences_one_is_asked() -> None:
    gate = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if gate.is_set():
            await infer_server.app(scope, receive, send)
            return

        async def sends(message: Any) -> None:
            await gate.wait()
            await send(message)

        await infer_server.app(scope, receive, sends)

    async def main() -> None:
        infer_server.ASKED.clear()
        app = CacheMiddleware(slow, capacity="4MB", model_versions={"*": "1"})
        body = {"inputs": [{"name": "a", "datatype": "INT32", "shape": [1], "data": [1]}]}
        calls = [Call(path="/v2/models/m/infer", body=json.dumps({**body, "id": str(n)}).encode()) for n in range(5)]
        asking = [asyncio.ensure_future(call(app)) for call in calls]
        await idle()
        assert len(infer_server.ASKED) == 1
        gate.set()
        await asyncio.gather(*asking)
        assert [json.loads(call.content)["id"] for call in calls] == ["0", "1", "2", "3", "4"]
        assert len(infer_server.ASKED) == 1

    asyncio.run(main())
