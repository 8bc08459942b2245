"""`CacheMiddleware`: one request from the server to its answer.

    scope ─ handler of the route? ─ no ─ the inner application, untouched, counted
                   │ yes
            body, within limits ─ tenant ─ handler ─ answer ─ counted
                                              └ None, or a fault ─ the inner application, streamed, counted

Websockets and lifespans are the inner application's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, cast

from infercache.edge.asking import MIN_TOKEN, reaches
from infercache.edge.exchange import (
    App,
    ClientGone,
    CutShort,
    EdgeRequest,
    Handler,
    Headers,
    InnerFailed,
    Message,
    Outcome,
    Receive,
    Refused,
    Reply,
    Scope,
    Send,
)
from infercache.edge.forwarding import Buffered, Client, Forward
from infercache.edge.logs import Access, Once
from infercache.edge.metrics import Metrics
from infercache.edge.routes import Finder, Routes, Table, routes
from infercache.edge.settings import Settings
from infercache.edge.tenant import Caller, Tenants
from infercache.edge.versions import Versions

if TYPE_CHECKING:
    from infercache import Cache
    from infercache.edge.otel import Telemetry

__all__ = ["CacheMiddleware"]

logger = logging.getLogger("infercache.edge")

#: The route of what no handler answers, in counters and log: a path may hold anything.
_OTHER = "other"
#: Answers without a body.
_BARE = frozenset({204, 304})


class _Served:
    """What became of one request: for the counters."""

    __slots__ = ("outcome", "status")

    def __init__(self, route: str) -> None:
        self.outcome = Outcome(route=route)
        self.status = 0


class CacheMiddleware:
    """ASGI middleware that answers repeated inferences from a cache.

    Args:
        app: the inner application.
        settings: every option; by default `Settings()`, or what `config` names.
        cache: the cache to use; by default one is made as the settings say.
        config: a TOML file of settings, for servers that take middleware by name.
        table: handlers by (method, path), in place of those that the settings ask for.
        guard: whether the limits on bodies hold for routes without a handler too: the inner application has none.
        options: settings by name, over those of `config`.

    Raises:
        InvalidArgument: an option is not acceptable.
        MissingExtra: it asks for a package that is not installed.
    """

    def __init__(
        self,
        app: App,
        *,
        settings: Settings | None = None,
        cache: Cache | None = None,
        config: str | None = None,
        table: Table | Routes | None = None,
        guard: bool = False,
        **options: object,
    ) -> None:
        from infercache.edge.making import cache_of, secret_of

        self.app = app
        self.settings = Settings.load(config, **options) if settings is None else settings
        secret = secret_of(self.settings)
        self.cache = cache_of(self.settings, secret) if cache is None else cache
        self.versions = Versions(self.settings, app)
        self.tenants = Tenants(self.settings, secret)
        self.metrics = Metrics()
        if table is None:
            table = routes(self.settings, self.cache, self.versions, self.metrics)
        self.routes = table if isinstance(table, Routes) else Routes(table)
        self._find = Finder(self.routes.table).find
        self._guard = guard
        self._buffered = Buffered(self.settings.max_buffered)
        self._max_answer = self.settings.max_answer
        self._access = Access(secret) if self.settings.access_log else None
        self._once = Once()
        self._admin: App | None = None
        if self.settings.admin_on_listener:
            from infercache.edge.admin import Admin

            self._admin = Admin(self)
        self._telemetry: Telemetry | None = None
        if self.settings.telemetry:
            from infercache.edge.otel import Telemetry

            self._telemetry = Telemetry()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._admin is not None and scope["path"].startswith("/-/"):
            await self._admin(scope, receive, send)
            return
        began = perf_counter()
        found = self._find(scope["method"], scope["path"])
        route = _OTHER if found is None else found[0]
        served = _Served(route)
        metrics = self.metrics
        metrics.in_flight += 1
        try:
            if self._telemetry is None:
                await self._serve(found, scope, receive, send, served)
            else:
                with self._telemetry.span(scope, route) as span:
                    await self._serve(found, scope, receive, send, served)
                    span.ends(served.outcome, served.status, perf_counter() - began)
        except BaseException as error:
            served.outcome.kind = "error"
            served.status = served.status or 500
            if isinstance(error, CutShort):
                served.outcome.detail = "cut-short"
                logger.warning("an answer broke off", extra={"edge": _facts_of(error, served.outcome)})
            raise
        finally:
            metrics.in_flight -= 1
            now = perf_counter()
            metrics.count(served.outcome, served.status, began, now)
            if self._access is not None:
                self._access.told(scope["method"], served.outcome, served.status, now - began)

    async def _serve(
        self, found: tuple[str, Handler] | None, scope: Scope, receive: Receive, send: Send, served: _Served
    ) -> None:
        headers = Headers(scope["headers"])
        client = Client(receive, headers, self.settings.max_body, self.settings.body_timeout, self._buffered)
        try:
            if found is None:
                await self._pass(scope, headers, client, receive, send, served)
            else:
                await self._answer(found[1], scope, headers, client, send, served)
        finally:
            client.close()

    # ------------------------------------------------------------------------------------------ routes without handler

    async def _pass(
        self, scope: Scope, headers: Headers, client: Client, receive: Receive, send: Send, served: _Served
    ) -> None:
        """Hands the request to the inner application and its answer to the client, as they are."""

        async def heard(message: Message) -> None:
            if client.refused is not None and not served.status:
                return  # it answers a request of which it has not seen all
            if message["type"] == "http.response.start":
                served.status = message["status"]
                if served.status in (401, 403):
                    self.tenants.told(self._caller(scope, headers, _OTHER).credential, _OTHER, served.status)
            await send(message)

        try:
            await self.app(scope, client.receive if self._guard else receive, heard)
        except Exception:
            if client.refused is None or served.status:
                raise
        if client.refused is not None and not served.status:
            await self._send(client.refused.reply(), scope, client, send, served)

    # --------------------------------------------------------------------------------------------- routes with handler

    async def _answer(
        self, handler: Handler, scope: Scope, headers: Headers, client: Client, send: Send, served: _Served
    ) -> None:
        route = served.outcome.route
        try:
            body = await client.body()
            caller = self._caller(scope, headers, route)
            path = scope["path"]
            request = EdgeRequest(
                scope["method"],
                path,
                scope.get("raw_path") or path.encode(),
                scope["query_string"],
                headers,
                body,
                scope,
                caller.tenant,
                caller.credential,
                self.routes.directives(headers),
                None,
                caller.proven,
                caller.excused,
            )
            if MIN_TOKEN in headers and not await reaches(headers, self.cache):
                request.directives = replace(request.directives, no_cache=True)
            reply = await self._reply(handler, request, client, caller, route)
        except Refused as refused:
            reply = refused.reply()
        except ClientGone:
            served.outcome.kind, served.outcome.detail = "error", "client-gone"
            return
        except InnerFailed as failed:
            # The application's own: its server answers as it does without us.
            raise (failed.__cause__ or failed) from None
        await self._send(reply, scope, client, send, served)

    async def _reply(self, handler: Handler, request: EdgeRequest, client: Client, caller: Caller, route: str) -> Reply:
        forward = Forward(self.app, client, self._max_answer, self.tenants, caller.credential, route)
        try:
            reply = await handler.answer(request, forward)
            if reply is not None and not self._may_have(request, reply, forward):
                logger.error("a handler answered a credential that is not proven", extra={"edge": {"route": route}})
                await reply.aclose()
                reply = None
            if reply is not None:
                return self.routes.finish(request, reply)
        except (Refused, ClientGone, InnerFailed):
            raise
        except Exception as error:
            self.metrics.fault(error)
            if self._once((route, type(error))):
                logger.error(
                    "the cache failed, and passes such requests through",
                    exc_info=error,
                    extra={"edge": {"route": route}},
                )
        reply = await forward(request, stream=True)
        reply.outcome.detail = reply.outcome.detail or "not-understood"
        try:
            return self.routes.finish(request, reply)
        except Exception as error:  # noqa: BLE001 - as above
            self.metrics.fault(error)
            return reply

    @staticmethod
    def _may_have(request: EdgeRequest, reply: Reply, forward: Forward) -> bool:
        """Whether the answer may be given to this credential."""
        outcome = reply.outcome
        from_others = outcome.kind in ("hit", "partial", "stale") or outcome.collapsed
        if request.proven or forward.accepted or not from_others:
            return True
        # Another request of the same credential may have been let in meanwhile; an error gives nothing away.
        return forward.is_proven() or reply.status >= 400 or (request.excused and outcome.kind == "stale")

    def _caller(self, scope: Scope, headers: Headers, route: str) -> Caller:
        return self.tenants.of(headers.raw, scope.get("client"), route)

    # ------------------------------------------------------------------------------------------------------- answering

    async def _send(self, reply: Reply, scope: Scope, client: Client, send: Send, served: _Served) -> None:
        outcome = reply.outcome
        outcome.route = outcome.route or served.outcome.route
        served.outcome = outcome  # itself, since a stream's may still change
        served.status = status = reply.status
        body = reply.body
        raw = reply.headers.raw
        if isinstance(body, bytes):
            if status in _BARE or scope["method"] == "HEAD":
                body = b""
            elif reply.complete:
                raw = _with_length(raw, len(body))
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": body, "more_body": not reply.complete})
            if not reply.complete:
                raise CutShort("the application's answer broke off, and so does this")
            return
        try:
            await send({"type": "http.response.start", "status": status, "headers": raw})
            if await _pump(body, client, send):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await reply.aclose()


def _facts_of(error: CutShort, outcome: Outcome) -> dict[str, str]:
    """What an operator is told of an answer that broke off: our own text, and the kind of error that it began with."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return {
        "route": outcome.route,
        "model": outcome.model[:256],
        "why": str(error),
        "cause": "" if cause is error else type(cause).__name__,
    }


async def _pump(body: AsyncIterator[bytes], client: Client, send: Send) -> bool:
    """Passes a stream on; False: the client left, which stops it."""
    task = cast("asyncio.Task[object]", asyncio.current_task())
    left = False

    def leave(_: object) -> None:
        nonlocal left
        left = True
        task.cancel()

    watch = client.watch()
    watch.add_done_callback(leave)
    try:
        async for piece in body:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        return not left
    except asyncio.CancelledError:
        if left and task.uncancel() == 0:
            return False
        raise
    finally:
        watch.remove_done_callback(leave)


def _with_length(raw: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    wanted = (b"content-length", b"%d" % length)
    if wanted in raw:
        return raw
    return [*(pair for pair in raw if pair[0] not in (b"content-length", b"transfer-encoding")), wanted]
