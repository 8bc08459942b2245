"""`Upstream`: an ASGI application that asks another server, and passes on what it says, byte for byte, as it comes.

What belongs to one connection stays on it (hop-by-hop, RFC 9110 7.6.1), in both directions; bodies are framed anew, so
that nobody's framing reaches the other side. Nothing is decompressed, no redirect followed, no cookie kept.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from infercache.edge.exchange import ClientGone, CutShort, Headers, Message, Receive, Reply, Scope, Send, error_reply
from infercache.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from infercache.edge.settings import Settings

__all__ = ["HOP_BY_HOP", "Upstream"]

logger = logging.getLogger("infercache.edge")

HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
#: What `Connection` cannot take away: without them a request means something else, or nothing.
_STAY = frozenset({b"content-length", b"content-type", b"host"})
#: Longest line of an answer's head, in bytes: far above what servers send.
_LONGEST_LINE = 64 << 10
#: Seconds for which an upstream that answers is taken to be reachable, and for which one may take to show it.
_PROBE = 2.0


def end_to_end(raw: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields that are not of one connection alone; `raw` has names in lower case."""
    named = set(HOP_BY_HOP)
    for name, value in raw:
        if name == b"connection":
            named.update({each.strip(b" \t").lower() for each in value.split(b",")} - _STAY)
    return [pair for pair in raw if pair[0] not in named]


class Upstream:
    """Asks `settings.upstream`. Connections are opened by its lifespan, or by the first request.

    Raises:
        InvalidArgument: there is no upstream, or its certificates cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.upstream is None:
            raise InvalidArgument("upstream: which server is asked for what the cache has not? Give its URL")
        self._base = settings.upstream
        self._host = urlsplit(settings.upstream).netloc.encode()
        self._settings = settings
        self._ssl = _tls(settings)
        self._session: aiohttp.ClientSession | None = None
        #: Requests under way.
        self.in_flight = 0
        self._is_down = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            # A websocket: refused, since it cannot be passed on.
            await receive()
            await send({"type": "websocket.close", "code": 1001})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._open()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            settings = self._settings
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # bounded by `in_flight`
                    ssl=self._ssl,
                    keepalive_timeout=settings.upstream_keep_alive,
                    force_close=settings.upstream_keep_alive == 0,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.upstream_connect_timeout),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                max_line_size=_LONGEST_LINE,
                max_field_size=_LONGEST_LINE,
                trust_env=False,
            )
        return self._session

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def connections(self) -> dict[str, int]:
        """Gauges: requests under way, connections that carry one, connections that wait for the next."""
        connector = None if self._session is None else self._session.connector
        if connector is None:
            return {"in_flight": self.in_flight, "busy": 0, "idle": 0}
        return {
            "in_flight": self.in_flight,
            "busy": len(connector._acquired),
            "idle": sum(len(each) for each in connector._conns.values()),
        }

    async def is_reachable(self) -> bool:
        """Whether it answers (`upstream_health`), or at least takes a connection."""
        path = self._settings.upstream_health
        try:
            async with asyncio.timeout(_PROBE):
                if path is not None:
                    async with self._open().get(URL(self._base + path, encoded=True), allow_redirects=False) as answer:
                        return 200 <= answer.status < 300
                parts = urlsplit(self._base)
                port = parts.port or (443 if parts.scheme == "https" else 80)
                _, writer = await asyncio.open_connection(
                    parts.hostname, port, ssl=self._ssl if parts.scheme == "https" else None
                )
                writer.close()
                return True
        except (OSError, TimeoutError, aiohttp.ClientError):
            return False

    # ------------------------------------------------------------------------------------------------------- a request

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.in_flight >= self._settings.upstream_concurrency:
            await _say(
                error_reply(503, "The model is asked too much at once.", "upstream_busy", (b"retry-after", b"1")), send
            )
            return
        self.in_flight += 1
        try:
            await self._exchange(scope, receive, send)
        finally:
            self.in_flight -= 1

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            first = await receive()
            if first["type"] != "http.request":
                return
            url, headers = self._target(scope)
            body = _Body(first, receive)
            # The client's leaving cancels this task, wherever it is.
            leave = _Leaving(body)
            with leave:
                try:
                    answer = await self._ask(scope, url, headers, body, leave)
                except _Unanswered as error:
                    await _say(error.reply, send)
                    return
                try:
                    await self._pass_on(answer, scope["method"] == "HEAD", send)
                finally:
                    # Whole: the connection waits for the next request. Else it is closed, which stops the upstream.
                    answer.release() if answer.content.at_eof() else answer.close()
        except ClientGone:
            return
        except _Unanswered as error:
            await _say(error.reply, send)

    def _target(self, scope: Scope) -> tuple[URL, list[tuple[str, str]]]:
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        query: bytes = scope.get("query_string", b"")
        if not path.startswith(b"/"):
            raise _Unanswered(400, "The request's target is no path.", "bad_target")
        text = self._base + path.decode("latin-1") + ("?" + query.decode("latin-1") if query else "")
        try:
            url = URL(text, encoded=True)
        except ValueError:
            raise _Unanswered(400, "The request's target is no path.", "bad_target") from None
        try:
            headers = [(name.decode("ascii"), value.decode()) for name, value in end_to_end(scope["headers"])]
        except UnicodeDecodeError:
            # What the client library sends is UTF-8; other bytes would arrive as something else.
            raise _Unanswered(400, "A header is not UTF-8.", "bad_header") from None
        if not self._settings.preserve_host:
            headers = [pair for pair in headers if pair[0] != "host"]
        return url, [pair for pair in headers if pair[0] != "expect"]

    async def _ask(
        self, scope: Scope, url: URL, headers: list[tuple[str, str]], body: _Body, leave: _Leaving
    ) -> aiohttp.ClientResponse:
        """The answer's head.

        Raises:
            _Unanswered: the upstream gave none.
            ClientGone: the client left.
        """
        session = self._open()
        attempts = 2 if scope.get("infercache.repeatable") and body.is_whole else 1
        while True:
            attempts -= 1
            try:
                async with asyncio.timeout(self._settings.upstream_timeout):
                    answer = await session.request(
                        scope["method"], url, headers=headers, data=body.data(), allow_redirects=False
                    )
                if self._is_down:
                    self._is_down = False
                    logger.info("the upstream answers again")
                return answer
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if body.is_gone or leave.left:
                    raise ClientGone from None
                # An idle connection that the upstream was closing as the request went out.
                if attempts and not isinstance(error, aiohttp.ClientConnectorError):
                    continue
                if isinstance(error, TimeoutError):
                    raise _Unanswered(504, "The model did not take a connection in time.", "upstream_timeout") from None
                if not self._is_down:
                    self._is_down = True
                    logger.warning("the upstream cannot be reached", exc_info=error)
                raise _Unanswered(502, "The model cannot be reached.", "upstream_unreachable") from None
            except TimeoutError:
                raise _Unanswered(504, "The model did not answer in time.", "upstream_timeout") from None
            except aiohttp.ClientError as error:
                if body.is_gone or leave.left:
                    raise ClientGone from None
                logger.debug("the upstream's answer cannot be read", exc_info=error)
                raise _Unanswered(502, "The model's answer cannot be read.", "upstream_unreadable") from None

    async def _pass_on(self, answer: aiohttp.ClientResponse, is_head: bool, send: Send) -> None:
        if not 200 <= answer.status <= 599:
            await _say(error_reply(502, "The model's answer cannot be read.", "upstream_unreadable"), send)
            return
        raw = end_to_end([(name.lower(), value) for name, value in answer.raw_headers])
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        pieces = answer.content.iter_any()
        while True:
            try:
                async with asyncio.timeout(self._settings.upstream_idle_timeout):
                    piece = await anext(pieces, None)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise CutShort("the upstream's answer broke off") from error
            if piece is None:
                break
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Unanswered(Exception):
    """The edge's own answer in place of the upstream's."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.reply = error_reply(status, message, code)


class _Body:
    """A request's body on its way: whole already, or as the client sends it."""

    __slots__ = ("_first", "_receive", "_watched", "is_gone", "is_whole")

    def __init__(self, first: Message, receive: Receive) -> None:
        self._first: bytes = first.get("body", b"")
        self._receive = receive
        self.is_whole = not first.get("more_body", False)
        self.is_gone = False
        self._watched: Callable[[], None] | None = None

    def data(self) -> Any:
        """What aiohttp sends."""
        if self.is_whole:
            return self._first or None
        return self._pieces()

    def when_over(self, call: Callable[[], None]) -> None:
        """Calls once all of it was taken; at once, if it was whole."""
        if self.is_whole:
            call()
        else:
            self._watched = call

    async def _pieces(self) -> AsyncIterator[bytes]:
        message: Message = {"body": self._first, "more_body": True}
        while True:
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                break
            message = await self._receive()
            if message["type"] != "http.request":
                self.is_gone = True
                raise ClientGone("the client left in the middle of its request")
        if self._watched is not None:
            self._watched()

    async def until_gone(self) -> None:
        """After the body: ends when the client leaves."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Leaving:
    """While it is open, a client that leaves cancels the task; its end turns that into `ClientGone`."""

    def __init__(self, body: _Body) -> None:
        self._body = body
        self._watch: asyncio.Task[None] | None = None
        self.left = False

    def __enter__(self) -> None:
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._body.when_over(self._begin)

    def _begin(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._body.until_gone())
        self._watch.add_done_callback(self._leave)

    def _leave(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled():
            self.left = True
            self._task.cancel()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._watch is not None:
            self._watch.remove_done_callback(self._leave)
            self._watch.cancel()
        if self.left and isinstance(error, asyncio.CancelledError) and self._task.uncancel() == 0:
            raise ClientGone("the client left") from None


async def _say(reply: Reply, send: Send) -> None:
    body = reply.body if isinstance(reply.body, bytes) else b""
    headers: Headers = reply.headers.plus((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _tls(settings: Settings) -> ssl.SSLContext | bool:
    """What aiohttp takes as `ssl`."""
    if not (settings.upstream or "").startswith("https:"):
        return True
    try:
        context = ssl.create_default_context(cafile=settings.upstream_ca)
        if settings.upstream_certificate is not None:
            context.load_cert_chain(settings.upstream_certificate, settings.upstream_key)
    except OSError as error:  # of which ssl.SSLError is one
        raise InvalidArgument(
            f"upstream_ca, upstream_certificate, upstream_key: cannot be loaded: {error.strerror or error}"
        ) from None
    if not settings.upstream_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
