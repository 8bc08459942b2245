"""The middleware: what it hands on, what it does when a handler, the application or the client fails."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from asgi import Call, Model
from infercache.edge import CacheMiddleware
from infercache.edge.exchange import ClientGone, CutShort, Headers, InnerFailed, Outcome, Refused, Reply
from infercache.edge.routes import Finder, Routes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from infercache.edge.exchange import EdgeRequest
    from infercache.edge.forwarding import Forward

ROUTE = ("POST", "/v1/embeddings")


class Handler:
    """A handler that is a function."""

    def __init__(self, function: Callable[[EdgeRequest, Forward], Awaitable[Reply | None]]) -> None:
        self._function = function

    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply | None:
        return await self._function(request, forward)


def edge(app: Any, function: Any = None, **options: Any) -> CacheMiddleware:
    given = {"capacity": "1MB", **options}
    return CacheMiddleware(app, table={} if function is None else {ROUTE: Handler(function)}, **given)


def counted(middleware: CacheMiddleware) -> dict[tuple[str, str, str, int], int]:
    return {key: series.requests for key, series in middleware.metrics.series()}


async def nothing(request: EdgeRequest, forward: Forward) -> Reply | None:
    return None


async def hit(request: EdgeRequest, forward: Forward) -> Reply | None:
    return Reply(200, Headers([(b"x-from", b"cache")]), b"known", outcome=Outcome("hit", hits=1, model="m"))


async def asks(request: EdgeRequest, forward: Forward) -> Reply | None:
    reply = await forward(request)
    reply.outcome = Outcome("miss", model="m", stored=True)
    return reply


async def prove(middleware: CacheMiddleware, *headers: tuple[bytes, bytes]) -> None:
    """Lets a credential in, as an answer of the application does."""
    caller = middleware.tenants.of(list(headers), ("127.0.0.1", 1), ROUTE[1])
    middleware.tenants.told(caller.credential, ROUTE[1], 200)


async def test_websockets_and_lifespans_are_the_applications_own() -> None:
    model = Model()
    for kind in ("websocket", "lifespan", "something-new"):
        scope = {"type": kind}
        receive, send = object(), object()
        seen: list[Any] = []

        async def app(*given: Any, into: list[Any] = seen) -> None:
            into.append(given)

        await edge(app)(scope, receive, send)  # type: ignore[arg-type]
        assert seen[-1][0] is scope and seen[-1][1] is receive and seen[-1][2] is send
    assert model.asked == 0


async def test_a_route_without_handler_is_handed_on_untouched_and_counted() -> None:
    model = Model(b"one", b"two", status=206, headers=[(b"X-Odd", b"\xff")])
    middleware = edge(model)
    call = await Call("/other", [b"a", b"b"], "PATCH")(middleware)
    assert [message.get("body") for message in call.messages[1:]] == [b"one", b"two", b""]
    assert call.messages[0]["headers"] is model.headers, "not even copied"
    assert (call.status, model.bodies) == (206, [b"ab"])
    assert counted(middleware) == {("other", "", "uncached", 206): 1}


async def test_a_handlers_none_is_passed_through_as_it_comes_and_counted_uncached() -> None:
    model = Model(b"one", b"two", headers=[(b"x", b"y")])
    middleware = edge(model, nothing)
    call = await Call(body=[b"a", b"b"])(middleware)
    assert [message["body"] for message in call.messages[1:]] == [b"one", b"two", b""]
    assert (call.answered, model.bodies) == ({b"x": b"y"}, [b"ab"])
    assert counted(middleware) == {("/v1/embeddings", "", "uncached", 200): 1}


async def test_a_collected_answer_is_sent_with_its_length_and_counted() -> None:
    middleware = edge(Model(b"one", b"two"), asks)
    call = await Call()(middleware)
    assert (call.status, call.content, call.answered[b"content-length"]) == (200, b"onetwo", b"6")
    assert counted(middleware) == {("/v1/embeddings", "m", "miss", 200): 1}


async def test_a_fault_of_the_cache_fails_no_request_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: EdgeRequest, forward: Forward) -> Reply | None:
        raise ZeroDivisionError("secret input")

    model = Model()
    middleware = edge(model, broken)
    for _ in range(3):
        call = await Call()(middleware)
        assert (call.status, call.content) == (200, b"answer")
    assert middleware.metrics.faults == {"ZeroDivisionError": 3}
    assert len([record for record in caplog.records if record.name == "infercache.edge"]) == 1


async def test_a_fault_after_the_answer_began_shows_as_a_break() -> None:
    async def half() -> Any:
        yield b"half"
        raise CutShort("broke")

    async def streams(request: EdgeRequest, forward: Forward) -> Reply | None:
        return Reply(200, Headers(), half(), complete=False, outcome=Outcome("miss"))

    call = Call()
    with pytest.raises(CutShort):
        await call(edge(Model(), streams))
    assert not call.is_whole


async def test_what_the_application_raises_is_raised_to_its_server() -> None:
    for function in (nothing, asks):
        model = Model()
        model.fails = KeyError("own")
        with pytest.raises(KeyError, match="own"):
            await Call()(edge(model, function))
    assert model.asked == 1


async def test_a_handler_sees_what_the_application_raised_and_may_answer_itself() -> None:
    async def stands_in(request: EdgeRequest, forward: Forward) -> Reply | None:
        with pytest.raises(InnerFailed) as failed:
            await forward(request)
        assert isinstance(failed.value.__cause__, KeyError)
        return Reply(200, Headers(), b"stale", outcome=Outcome("stale"))

    model = Model()
    model.fails = KeyError("own")
    middleware = edge(model, stands_in)
    await prove(middleware)
    assert (await Call()(middleware)).content == b"stale"


async def test_an_answer_that_broke_off_is_known_to_be_and_breaks_off_at_the_client() -> None:
    replies = []

    async def looks(request: EdgeRequest, forward: Forward) -> Reply | None:
        replies.append(await forward(request))
        return replies[-1]

    for model in (Model(b"half"), Model(b"half", headers=[(b"content-length", b"10")])):
        model.breaks = ValueError() if not model.headers else None
        call = Call()
        with pytest.raises(CutShort):
            await call(edge(model, looks))
        assert not replies[-1].complete and replies[-1].body == b"half"
        assert not call.is_whole


async def test_an_answer_too_large_to_be_looked_at_passes_as_a_stream() -> None:
    seen = []

    async def looks(request: EdgeRequest, forward: Forward) -> Reply | None:
        reply = await forward(request)
        seen.append(type(reply.body) is bytes)
        return reply

    for length, is_collected in ((10, True), (11, False)):
        call = await Call()(edge(Model(b"x" * 5, b"x" * (length - 5)), looks, max_answer=10))
        assert call.content == b"x" * length and call.is_whole
        assert seen.pop() is is_collected


async def test_a_request_is_forwarded_with_another_body_and_its_length() -> None:
    async def changes(request: EdgeRequest, forward: Forward) -> Reply | None:
        return await forward(request, body=b"other!", headers=request.headers.without(b"x-drop"))

    model = Model()
    headers = [(b"x-drop", b"1"), (b"transfer-encoding", b"chunked"), (b"expect", b"100-continue"), (b"x-keep", b"1")]
    await Call(headers=headers)(edge(model, changes))
    assert model.bodies == [b"other!"]
    assert model.scopes[0]["headers"] == [(b"x-keep", b"1"), (b"content-length", b"6")]
    assert headers[0] == (b"x-drop", b"1"), "the client's own are as they were"


@pytest.mark.parametrize(
    ("call", "options", "status"),
    [
        (Call(body=b"x" * 11), {"max_body": 10}, 413),
        (Call(body=[b"x" * 6, b"x" * 6]), {"max_body": 10}, 413),
        (Call(body=b"", headers=[(b"content-length", b"99999999999999999999999")]), {}, 413),
        (Call(body=b"x" * 11), {"max_buffered": 10}, 503),
    ],
)
async def test_a_body_beyond_a_limit_is_told_so(call: Call, options: dict[str, Any], status: int) -> None:
    model = Model()
    middleware = edge(model, asks, **options)
    fresh = Call(body=call.body, headers=call.headers)
    await fresh(middleware)
    assert (fresh.status, model.asked) == (status, 0)
    error = json.loads(fresh.content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert middleware._buffered.held == 0


async def test_a_body_that_does_not_come_is_told_408() -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": ROUTE[1], "headers": [], "query_string": b""}
    await edge(Model(), asks, body_timeout="50ms")(scope, never, send)
    assert sent[0]["status"] == 408


async def test_limits_hold_for_other_routes_only_where_they_are_guarded() -> None:
    model = Model()
    assert (await Call("/upload", b"x" * 11)(edge(model, max_body=10))).status == 200
    guarded = CacheMiddleware(model, table={}, guard=True, capacity="1MB", max_body=10)
    assert (await Call("/upload", b"x" * 11)(guarded)).status == 413
    assert (await Call("/upload", b"x" * 10)(guarded)).status == 200


async def test_a_handlers_refusal_is_the_answer() -> None:
    async def refuses(request: EdgeRequest, forward: Forward) -> Reply | None:
        raise Refused(422, "No.", "nope", (b"x", b"y"))

    middleware = edge(Model(), refuses)
    call = await Call()(middleware)
    assert (call.status, call.answered[b"x"], json.loads(call.content)["error"]["code"]) == (422, b"y", "nope")
    assert counted(middleware) == {("/v1/embeddings", "", "error", 422): 1}


async def test_a_client_that_leaves_stops_a_stream_and_the_application() -> None:
    model = Model(b"one", b"two")
    model.gate = asyncio.Event()
    middleware = edge(model, nothing)
    call = Call(leaves=asyncio.Event())
    running = asyncio.create_task(call(middleware))
    while len(call.messages) < 2:
        await asyncio.sleep(0)
    assert call.leaves is not None
    call.leaves.set()
    await asyncio.wait_for(running, 5)
    assert (model.stopped, middleware.metrics.in_flight, call.is_whole) == (1, 0, False)
    assert middleware._buffered.held == 0


@pytest.mark.parametrize("detached", [False, True])
async def test_a_client_that_leaves_is_told_to_the_application_unless_others_wait(*, detached: bool) -> None:
    went_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        _, rest = await asyncio.wait(
            [asyncio.ensure_future(receive()), asyncio.ensure_future(went_on.wait())],
            return_when=asyncio.FIRST_COMPLETED,
        )
        for each in rest:
            each.cancel()
        if went_on.is_set():
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"late"})

    found: list[Any] = []

    async def leads(request: EdgeRequest, forward: Forward) -> Reply | None:
        try:
            found.append(await forward(request, detached=detached))
        except ClientGone as gone:
            found.append(gone)
            raise
        return found[-1]

    call = Call(leaves=asyncio.Event())
    running = asyncio.create_task(call(edge(app, leads)))
    await asyncio.sleep(0.02)
    assert call.leaves is not None
    call.leaves.set()
    await asyncio.sleep(0.02)
    assert running.done() is not detached
    went_on.set()
    await asyncio.wait_for(running, 5)
    assert isinstance(found[0], ClientGone) is not detached


async def test_a_deadline_is_told_504() -> None:
    async def hurries(request: EdgeRequest, forward: Forward) -> Reply | None:
        request.deadline = asyncio.get_running_loop().time() + 0.05
        return await forward(request)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    assert (await Call()(edge(app, hurries))).status == 504


async def shared_answer(request: EdgeRequest, forward: Forward) -> Reply | None:
    return Reply(200, Headers([(b"x-from", b"another")]), b"known", outcome=Outcome("miss", model="m", collapsed=True))


@pytest.mark.parametrize("gives", [hit, shared_answer], ids=["kept", "another's"])
async def test_a_credential_that_the_application_has_not_let_in_gets_nothing_from_the_cache(gives: Any) -> None:
    model = Model()
    middleware = edge(model, gives)
    mine, other = [(b"authorization", b"mine")], [(b"authorization", b"other")]
    assert (await Call(headers=mine)(middleware)).content == b"answer", "the first goes to the application"
    assert (await Call(headers=mine)(middleware)).content == b"known"
    assert (await Call(headers=other)(middleware)).content == b"answer"
    model.status = 401
    assert (await Call("/other", headers=mine)(middleware)).status == 401
    assert (await Call(headers=mine)(middleware)).status == 401, "it is forgotten wherever it was refused"


async def test_every_request_knows_its_tenant_and_whether_it_is_proven() -> None:
    seen = []

    async def looks(request: EdgeRequest, forward: Forward) -> Reply | None:
        seen.append((request.tenant, request.proven, request.excused))
        return await forward(request)

    middleware = edge(Model(), looks)
    for credential in (b"a", b"a", b"b"):
        await Call(headers=[(b"authorization", credential)])(middleware)
    (a, proven, excused), again, (b, *_) = seen
    assert (proven, excused) == (False, False)
    assert again == (a, True, True)
    assert a != b and len(a) == 32


def test_routes_are_found_exactly_or_by_pattern() -> None:
    one, two, three = (Handler(nothing) for _ in range(3))
    finder = Finder(
        {("POST", "/a"): one, ("POST", "/v2/models/*/infer"): two, ("POST", "/v2/models/*/versions/*/infer"): three}
    )
    assert finder.find("POST", "/a") == ("/a", one)
    assert finder.find("GET", "/a") is None
    assert finder.find("POST", "/v2/models/m/infer") == ("/v2/models/*/infer", two)
    assert finder.find("POST", "/v2/models/m/versions/3/infer") == ("/v2/models/*/versions/*/infer", three)
    for path in ("/v2/models/m/x/infer", "/v2/models/infer", "/v2/models/m/infer/", "/a/"):
        assert finder.find("POST", path) is None


async def test_the_last_word_on_an_answer_is_said_to_every_one_of_a_handlers_route() -> None:
    def finish(request: EdgeRequest, reply: Reply) -> Reply:
        reply.headers = reply.headers.plus((b"cache-status", reply.outcome.kind.encode()))
        return reply

    for function, kind in ((nothing, b"uncached"), (asks, b"miss")):
        routes = Routes({ROUTE: Handler(function)}, finish=finish)
        middleware = CacheMiddleware(Model(), table=routes, capacity="1MB")
        assert (await Call()(middleware)).answered[b"cache-status"] == kind


def test_options_may_come_by_name_or_from_a_file(tmp_path: Any) -> None:
    path = tmp_path / "edge.toml"
    path.write_text('capacity = "2MB"\nnamespace = "n"\n')
    middleware = CacheMiddleware(Model(), config=str(path), capacity="1MB")
    assert (middleware.cache.capacity, middleware.cache.namespace) == (1_000_000, "n")


def test_importing_infercache_imports_nothing_of_the_edge_and_the_middleware_no_server() -> None:
    script = (
        "import sys, infercache; assert not [m for m in sys.modules if m.startswith('infercache.edge')]\n"
        "from infercache.edge import CacheMiddleware\n"
        "print(sorted({'uvicorn', 'aiohttp', 'uvloop', 'httptools', 'redis', 'prometheus_client', 'opentelemetry'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
