"""uvicorn's HTTP protocol with limits: what an open connection may hold, and for how long.

    head       at most `max_headers` bytes (431), there within `header_timeout` (408)
    idle       at most `keep_alive`
    writing    what waits for the client is taken within `write_timeout`, or the connection is cut
    refused    what is no HTTP/1.x message as RFC 9112 has it: 400, and the connection is closed

Once a second each connection is looked at (`sweep`), which costs less than a timer for each request. Bodies have their
limits in the middleware, which knows what a request is for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from infercache.edge.exchange import Reply, error_reply

if TYPE_CHECKING:
    from infercache.edge.settings import Settings

__all__ = ["EdgeProtocol", "protocol_for", "sweep"]

#: Seconds for which a client may go on sending a body that was answered already, before the connection is closed.
_LINGER = 2.0
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class _TooLarge(Exception):
    """The head is larger than the limit."""


class _NoMessage(Exception):
    """What the parser takes and RFC 9112 does not."""


#: More than any answer has: the length of one that ends with its connection.
_UNKNOWN = 1 << 62


class _Cycle(RequestResponseCycle):
    """A request and its answer, as RFC 9110 and 9112 have it."""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            names = [name for name, _ in message.get("headers", ())]
            if b"date" in names:
                self.default_headers = []  # there is one Date, and it is the upstream's
            if self.scope["http_version"] == "1.0" and b"content-length" not in names:
                # There are no chunks in HTTP/1.0: the answer ends with the connection.
                self.chunked_encoding = False
                self.expected_content_length = _UNKNOWN
            await super().send(message)
            if message["status"] in (204, 304):
                self.expected_content_length = 0  # of another method's answer, if one was told
            return
        if self.expected_content_length > _UNKNOWN >> 1 and not message.get("more_body"):
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class EdgeProtocol(HttpToolsProtocol):
    """One connection of a client. `protocol_for` makes the class that a server uses."""

    settings: Settings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        now = self.loop.time()
        #: When the head that is arriving began, or the connection was opened; None: none is arriving.
        self._head_since: float | None = now
        self._head_bytes = 0
        #: Since when nothing is under way.
        self._idle_since: float | None = None
        #: Since when something waits for the client.
        self._stuck_since: float | None = None
        #: When the answer was there although the request was not yet.
        self._answered_early: float | None = None
        self._in_message = False
        #: Bytes of the body's framing (chunk extensions, trailers) since its last piece.
        self._framing = 0
        #: Bytes of a body that the parser takes for another protocol (`Upgrade`), and that are still to come.
        self._unparsed = 0
        self._deaf = False
        #: Whose answer is being written, or was last.
        self._active: RequestResponseCycle | None = None
        self._why: Reply | None = None

    # ------------------------------------------------------------------------------------------------ what is received

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._deaf:
            return
        self._idle_since = None
        if self._unparsed:
            self._take(data)
            return
        if self._in_message:
            self._framing += len(data)
        else:
            self._head_bytes += len(data)
            if self._head_since is None:
                self._head_since = self.loop.time()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # No other protocol is spoken here, and a server may ignore the offer (RFC 9110 7.8). The parser has not.
            self._take(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooLarge):
                self._why = _too_large()
            self.send_400_response("")
            return
        # What has not ended yet: what the parser holds of it counts as it comes.
        if (self._framing if self._in_message else self._head_bytes) > self.settings.max_headers:
            self._why = _too_large()
            self.send_400_response("")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head. One that comes after the body (a trailer) is none, whatever it is called."""
        if not self._in_message:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request's head is there."""
        length = self._check_head()
        self._head_since = None
        self._head_bytes = self._framing = 0
        self._in_message = True
        if self.parser.should_upgrade():
            self._unparsed = length
        super().on_headers_complete()

    def _check_head(self) -> int:
        """The declared length of the body. What the parser lets through and RFC 9112 does not is refused."""
        version = self.parser.get_http_version()
        size, hosts, codings, length = len(self.url) + 32, 0, [], 0
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings.append(value.strip(b" \t").lower())
            elif name == b"content-length":
                length = int(value)
        if size > self.settings.max_headers:
            raise _TooLarge
        if version not in ("1.0", "1.1") or hosts > 1 or (version == "1.1" and not hosts):
            raise _NoMessage
        # Another coding than chunked would be lost on the way; HTTP/1.0 has none; one before `Upgrade` is not parsed.
        if codings and (codings != [b"chunked"] or version == "1.0" or self.parser.should_upgrade()):
            raise _NoMessage
        return length

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._framing = 0
        super().on_body(body)

    def _take(self, data: bytes) -> None:
        """Takes the body that the parser left, and nothing after it: that may be of whatever was offered."""
        piece, self._unparsed = data[: self._unparsed], max(0, self._unparsed - len(data))
        if piece:
            self.on_body(piece)
        if self._unparsed == 0:
            self._deaf = True
            self.cycle.keep_alive = False
            self.on_message_complete()
            if self.cycle.response_complete:
                self.transport.close()

    def on_message_complete(self) -> None:
        """A request is there, whole."""
        if self._unparsed:
            return
        self._in_message = False
        self._answered_early = None
        super().on_message_complete()
        if self._idle_since is None and self.cycle.response_complete:
            self._idle_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Says what is wrong with the connection's bytes, and reads no more of them."""
        self._deaf = True
        self._head_since = None
        reply = self._why or error_reply(400, "The request is not acceptable HTTP.", "bad_request")
        active = self._active
        if active is not None and not active.response_complete:
            if active is not self.cycle or not self._in_message:
                # An earlier request is being answered: that is still written, nothing after it is.
                self.pipeline.clear()
                active.keep_alive = False
                return
            # The request whose body is wrong: the application hears that its client is gone.
            active.disconnected = True
            active.message_event.set()
            if active.response_started:
                self.transport.close()
                return
        self._refuse(reply)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        cycle.__class__ = _Cycle  # the class is chosen within a method too long to be written again
        super()._start_asgi_task(cycle, app)

    def _refuse(self, reply: Reply) -> None:
        body = reply.body if isinstance(reply.body, bytes) else b""
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (reply.status, _REASONS[reply.status], len(body), body)
        )
        self._deaf = True
        self.transport.close()

    # ------------------------------------------------------------------------------------------------ what is answered

    def on_response_complete(self) -> None:
        """An answer was written."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        now = self.loop.time()
        if self._in_message:
            self._answered_early = now
        self._idle_since = now

    def _unset_keepalive_if_required(self) -> None:
        # There is no timer: `sweep` looks.
        pass

    def resume_writing(self) -> None:
        """The client took most of what waited for it."""
        self._stuck_since = None
        super().resume_writing()

    # ------------------------------------------------------------------------------------------------------------ time

    def look(self, now: float) -> None:
        """Ends what has taken too long."""
        settings, transport = self.settings, self.transport
        if transport is None:
            return
        if transport.get_write_buffer_size() == 0:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since > settings.write_timeout:
            transport.abort()
            return
        if transport.is_closing():
            return
        if self._answered_early is not None and now - self._answered_early > _LINGER:
            transport.close()
        elif self._head_since is not None and now - self._head_since > settings.header_timeout:
            if self._head_bytes and (self.cycle is None or self.cycle.response_complete):
                self._refuse(error_reply(408, "The request's head did not arrive in time.", "headers_too_slow"))
            elif self.cycle is None or self.cycle.response_complete:
                transport.close()
        elif self._idle_since is not None and now - self._idle_since > settings.keep_alive:
            transport.close()


def _too_large() -> Reply:
    return error_reply(431, "The request's head is too large.", "headers_too_large")


def protocol_for(settings: Settings) -> type[EdgeProtocol]:
    """The protocol with these limits."""
    return type("EdgeProtocol", (EdgeProtocol,), {"settings": settings})


async def sweep(connections: set[Any], settings: Settings) -> None:
    """Looks at each connection in turn, for as long as the server runs."""
    pause = min(1.0, settings.header_timeout / 4, settings.write_timeout / 4, settings.keep_alive / 4)
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(pause)
        now = loop.time()
        for place, connection in enumerate(list(connections)):
            if isinstance(connection, EdgeProtocol):
                connection.look(now)
            if place % 1_000 == 999:
                await asyncio.sleep(0)
