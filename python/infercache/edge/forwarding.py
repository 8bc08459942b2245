"""Both ends of one request: the client's, read under limits, and the inner application's, asked and listened to.

    Client    the body as it arrives or whole; whether the client has left
    ask       runs the inner application with a body, and gives its answer: collected, or as it arrives
    Forward   asks on behalf of one request, as handlers do

An answer goes through a `_Stream`: what the application sends waits there, a bounded number of bytes, until it is
wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Generator
from dataclasses import dataclass
from types import CoroutineType, coroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar

from infercache.edge.exchange import (
    App,
    ClientGone,
    CutShort,
    EdgeRequest,
    Headers,
    InnerFailed,
    Message,
    Receive,
    Refused,
    Reply,
    Scope,
    error_reply,
)

if TYPE_CHECKING:
    from infercache.edge.tenant import Tenants

__all__ = ["Buffered", "Client", "Forward", "ask", "inner_scope"]

Result = TypeVar("Result")

logger = logging.getLogger("infercache.edge")

#: Bytes of an answer that wait for the client before the application has to.
_WAITING = 256 << 10
#: Applications that still run after their answer has ended (background tasks): held, as loops hold tasks weakly.
_running: set[asyncio.Task[None]] = set()


@dataclass(slots=True)
class Buffered:
    """Bodies of all requests that are held now, in bytes, and how many may be."""

    limit: int
    held: int = 0


class Client:
    """The client's end of one request.

    Args:
        receive: ASGI's.
        headers: the request's.
        max_body: bytes.
        body_timeout: seconds for the whole body.
        buffered: what all bodies together may take.
    """

    __slots__ = (
        "_body_timeout",
        "_buffered",
        "_gone",
        "_headers",
        "_held",
        "_max_body",
        "_read",
        "_receive",
        "refused",
    )

    def __init__(
        self, receive: Receive, headers: Headers, max_body: int, body_timeout: float, buffered: Buffered
    ) -> None:
        self._receive = receive
        self._headers = headers
        self._max_body = max_body
        self._body_timeout = body_timeout
        self._buffered = buffered
        self._held = 0
        self._read = 0
        self._gone: asyncio.Task[None] | None = None
        #: Why the body is not read on, where `receive` ended it.
        self.refused: Refused | None = None

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            Refused: too large, too slow, or too much of everybody's.
            ClientGone: it left before its end.
        """
        self._check_declared()
        waiting = self._receive()
        if not isinstance(waiting, CoroutineType):
            return await self._whole(await self._in_time(waiting))
        # Mostly the body has come with the head, and is there at once: a timer would cost more than all else here.
        try:
            suspended = waiting.send(None)
        except StopIteration as there:
            message: Message = there.value
        else:
            message = await self._in_time(_resumed(waiting, suspended))
        return await self._whole(message)

    async def _in_time(self, waiting: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(self._body_timeout):
                return await waiting
        except TimeoutError:
            raise _slow(self._body_timeout) from None

    async def _whole(self, message: Message) -> bytes:
        """The body of which this is the first part."""
        if message["type"] != "http.request":
            raise ClientGone("the client left before its request was there")
        if not message.get("more_body"):
            body: bytes = message.get("body", b"")
            self._hold(len(body))
            return body
        return await self._in_time(self._parts(message))

    async def _parts(self, message: Message) -> bytes:
        parts = []
        while True:
            parts.append(message.get("body", b""))
            self._hold(len(parts[-1]))
            if not message.get("more_body"):
                return b"".join(parts)
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone("the client left in the middle of its request")

    async def receive(self) -> Message:
        """ASGI's `receive`, for an application that reads the body itself.

        Beyond a limit the client is said to be gone; what was wrong is then `refused`.
        """
        if self.refused is not None:
            return {"type": "http.disconnect"}
        try:
            if not self._read:
                self._check_declared()
            if self._read < 0:  # the body has ended: only the client's leaving is left to be told
                return await self._receive()
            async with asyncio.timeout(self._body_timeout):
                message = await self._receive()
            if message["type"] == "http.request":
                self._read += len(message.get("body", b""))
                self._check(self._read)
                if not message.get("more_body"):
                    self._read = -1
            return message
        except TimeoutError:
            self.refused = _slow(self._body_timeout)
        except Refused as refused:
            self.refused = refused
        return {"type": "http.disconnect"}

    def watch(self) -> asyncio.Task[None]:
        """Ends when the client leaves; for after the body."""
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_task(self._until_gone())
        return self._gone

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have left."""
        return self._gone is not None and self._gone.done()

    def close(self) -> None:
        """Gives up what is held for it."""
        self._buffered.held -= self._held
        self._held = 0
        if self._gone is not None:
            self._gone.cancel()

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _check_declared(self) -> None:
        declared = self._headers.get(b"content-length")
        if declared is not None and declared.isdigit():
            self._check(int(declared) if len(declared) < 20 else 1 << 63)

    def _check(self, length: int) -> None:
        if length > self._max_body:
            raise Refused(
                413,
                f"The request's body is larger than the {self._max_body} bytes that are accepted.",
                "body_too_large",
            )

    def _hold(self, length: int) -> None:
        self._held += length
        self._buffered.held += length
        self._check(self._held)
        if self._buffered.held > self._buffered.limit:
            raise Refused(503, "Too many bodies are being read at once.", "too_much_to_read", (b"retry-after", b"1"))


@coroutine
def _resumed(waiting: CoroutineType[Any, Any, Message], suspended: Any) -> Generator[Any, Any, Message]:
    """Goes on with a coroutine that was started by hand, from where it first waited."""
    try:
        while True:
            try:
                sent = yield suspended
            except BaseException as error:  # noqa: BLE001 - cancelled, most likely: told to the coroutine
                suspended = waiting.throw(error)
            else:
                suspended = waiting.send(sent)
    except StopIteration as there:
        result: Message = there.value
        return result


def _slow(seconds: float) -> Refused:
    return Refused(408, f"The request's body did not arrive within {seconds:g} seconds.", "body_too_slow")


class _Stream:
    """What an application answers, as it arrives. Iterates over the body; see `Reply.body`."""

    __slots__ = (
        "_done",
        "_ended",
        "_error",
        "_expected",
        "_more",
        "_pieces",
        "_room",
        "_task",
        "_waiting",
        "reply",
        "start",
    )

    def __init__(self, *, is_head: bool) -> None:
        self.start: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.reply: Reply | None = None
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = self._done = False
        self._error: BaseException | None = None
        self._expected: int | None = -1 if is_head else None
        self._task: asyncio.Task[None] | None = None

    def run(self, app: App, scope: Scope, receive: Receive) -> None:
        """Starts the application."""
        self._task = asyncio.get_running_loop().create_task(self._run(app, scope, receive))
        _running.add(self._task)
        self._task.add_done_callback(_running.discard)

    async def _run(self, app: App, scope: Scope, receive: Receive) -> None:
        try:
            await app(scope, receive, self.send)
        except Exception as error:
            if self._ended:
                logger.warning("the application raised after its answer", exc_info=error)
            self._error = error
        finally:
            self._done = True
            self._more.set()
            if not self.start.done():
                self.start.set_result({})

    async def send(self, message: Message) -> None:
        """ASGI's."""
        if message["type"] == "http.response.start":
            self.start.set_result(message)
        elif message["type"] == "http.response.body" and not self._ended:
            piece = bytes(message.get("body", b""))
            if piece:
                self._pieces.append(piece)
                self._waiting += len(piece)
            self._ended = not message.get("more_body", False)
            self._more.set()
            if self._waiting > _WAITING and not self._ended:
                self._room.clear()
                await self._room.wait()

    async def begun(self) -> Reply | None:
        """The answer's head, with this as its body; None: the application ended without one."""
        message = await asyncio.shield(self.start)
        if not message:
            if self._error is not None:
                raise InnerFailed(str(type(self._error))) from self._error
            return None
        headers = Headers.of(message.get("headers", ()))
        declared = headers.get(b"content-length")
        if self._expected is None and declared is not None and declared.isdigit() and message["status"] != 304:
            self._expected = int(declared)
        self.reply = Reply(message["status"], headers, self, complete=False)
        return self.reply

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._ended:
                if self._expected is not None and self._expected > 0:
                    raise CutShort("the application's answer is shorter than its Content-Length")
                if self.reply is not None:
                    self.reply.complete = True
                raise StopAsyncIteration
            if self._done:
                raise CutShort("the application's answer broke off") from self._error
            self._more.clear()
            await self._more.wait()
        piece = self._pieces.popleft()
        self._waiting -= len(piece)
        if self._expected is not None and self._expected > 0:
            self._expected -= len(piece)
        if self._waiting <= _WAITING:
            self._room.set()
        return piece

    async def aclose(self) -> None:
        """Gives the rest up, and stops the application unless its answer has ended."""
        self._pieces.clear()
        self._room.set()
        if self._task is not None and not self._ended and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])


class _Rest:
    """What was read of a stream already, and the stream: one whose whole would be too large to hold."""

    __slots__ = ("_pieces", "_stream")

    def __init__(self, pieces: list[bytes], stream: _Stream) -> None:
        self._pieces = deque(pieces)
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        return self._pieces.popleft() if self._pieces else await anext(self._stream)

    async def aclose(self) -> None:
        self._pieces.clear()
        await self._stream.aclose()


async def ask(
    app: App, scope: Scope, body: bytes, client: Client | None, *, stream: bool = False, limit: int = 64_000_000
) -> Reply:
    """The application's answer to a request of `scope`, as `Forward` describes it. `client` None: nobody can leave."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        if client is None:
            await asyncio.Event().wait()  # until the application's end
        else:
            # The watch is everybody's who asks on behalf of this client: it outlives who waits for it here, and its end
            # at the end of the request is no error there.
            await asyncio.wait([client.watch()])
        return {"type": "http.disconnect"}

    answer = _Stream(is_head=scope["method"] == "HEAD")
    answer.run(app, scope, receive)
    try:
        reply = await answer.begun()
        if reply is None:
            if client is not None and client.is_gone:
                raise ClientGone("the client left before the answer began")
            raise InnerFailed("no answer") from RuntimeError("the application returned without an answer")
        if stream:
            return reply
        pieces, length = [], 0
        try:
            async for piece in answer:
                pieces.append(piece)
                length += len(piece)
                if length > limit:
                    reply.body = _Rest(pieces, answer)
                    return reply
        except CutShort:
            if client is not None and client.is_gone:
                raise ClientGone("the client left before the answer was whole") from None
        reply.body = b"".join(pieces)
        return reply
    except BaseException:
        await answer.aclose()
        raise


def inner_scope(scope: Scope, headers: Headers, body: bytes) -> Scope:
    """The scope for the application: its headers say how long the body is that it gets."""
    had = headers.get(b"content-length")
    changed = headers
    if b"transfer-encoding" in headers or (had is None and body) or (had is not None and had != b"%d" % len(body)):
        changed = headers.without(b"transfer-encoding", b"content-length").plus((b"content-length", b"%d" % len(body)))
    # It was answered when the body was read.
    return {**scope, "headers": changed.without(b"expect").raw if b"expect" in changed else changed.raw}


class Forward:
    """Asks the inner application on behalf of one request; `tenants` hear how it takes the request's credential.

    Args:
        app: the inner application.
        client: who asked.
        limit: bytes of an answer that is collected.
        tenants: the middleware's.
        credential: the request's.
        route: by its name.
    """

    __slots__ = ("_app", "_client", "_credential", "_limit", "_route", "_tenants", "accepted")

    def __init__(self, app: App, client: Client, limit: int, tenants: Tenants, credential: bytes, route: str) -> None:
        self._app = app
        self._client = client
        self._limit = limit
        self._tenants = tenants
        self._credential = credential
        self._route = route
        #: Whether the application has let this very request in.
        self.accepted = False

    def watch(self) -> asyncio.Future[None]:
        """Resolved when the client leaves; for handlers that ask `detached`, and wait for it."""
        return self._client.watch()

    def is_proven(self) -> bool:
        """Whether the application has let the credential in by now, on this route, within `auth_ttl`."""
        return self._tenants.is_proven(self._credential, self._route)

    async def __call__(
        self,
        request: EdgeRequest,
        *,
        body: bytes | None = None,
        headers: Headers | None = None,
        stream: bool = False,
        detached: bool = False,
    ) -> Reply:
        """The inner application's answer, an error's too (4xx, 5xx: a status is no exception).

        Args:
            request: whose method, path, query and credentials it is.
            body: in place of the request's; `Content-Length` follows.
            headers: in place of the request's. An answer that is to be understood is asked for without
                `Accept-Encoding`.
            stream: an answer as it arrives; else it is collected. One larger than the limit for answers that are
                collected comes as a stream all the same: it is passed on, never stored.
            detached: others wait for it too: it goes on if this client leaves.

        Raises:
            ClientGone: the client left, and the application stopped for that.
            InnerFailed: the application raised before it began an answer.
        """
        content = request.body if body is None else body
        scope = inner_scope(request.scope, request.headers if headers is None else headers, content)
        # A request that the cache understands has no effect but its answer: it may be sent again (`upstream`).
        scope["infercache.repeatable"] = True
        client = None if detached else self._client
        try:
            async with asyncio.timeout_at(request.deadline):
                reply = await ask(self._app, scope, content, client, stream=stream, limit=self._limit)
        except TimeoutError:
            return error_reply(504, "The answer was not there in time.", "deadline_exceeded")
        # Handlers ask by POST. What the application gives to a GET of the same path it may give to anybody.
        asked = scope["method"] == "POST"
        self.accepted = self.accepted or (asked and reply.status < 400)
        if asked or reply.status in (401, 403):
            self._tenants.told(self._credential, self._route, reply.status)
        return reply
