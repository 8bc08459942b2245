"""An ASGI application called as a server calls it, with every step in the test's hands: no sockets, no waiting.

    exchange = ask(app, "POST", "/v1/completions", {"prompt": …})
    await exchange.ended()            or  await exchange.until(pieces=2), exchange.leave()
    exchange.status, exchange.headers, exchange.pieces, exchange.broke

and `Scripted`, an application that answers as the test says, and counts.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from asgi import body_of
from together import PATIENCE

App = Callable[[Any, Any, Any], Awaitable[None]]


class Exchange:
    """One request and its answer."""

    def __init__(self, app: App, method: str, target: str, body: Any, headers: dict[str, str]) -> None:
        self.sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        path, _, query = target.partition("?")
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [
                *((name.lower().encode(), value.encode()) for name, value in headers.items()),
                (b"content-length", b"%d" % len(self.sent)),
            ],
            "client": ("127.0.0.1", 1),
            "http_version": "1.1",
            "scheme": "http",
        }
        self.status = 0
        self.raw: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.is_whole = False
        self.error: BaseException | None = None
        self._asked = False
        self._gone = asyncio.Event()
        self._changed = asyncio.Event()
        #: While it is clear, the client takes nothing.
        self.takes = asyncio.Event()
        self.takes.set()
        self.task = asyncio.create_task(self._run(app))

    async def _run(self, app: App) -> None:
        try:
            await app(self.scope, self._receive, self._send)
        except Exception as error:  # what a server logs, closing the connection
            self.error = error
        finally:
            self._pulse()

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.sent, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.raw = message["status"], [*message.get("headers", ())]
        else:
            await self.takes.wait()
            if message.get("body"):
                self.pieces.append(message["body"])
            self.is_whole = not message.get("more_body", False)
        self._pulse()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed.clear()

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode("latin-1") for name, value in self.raw}

    @property
    def cache_status(self) -> str:
        return self.headers.get("cache-status", "")

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def broke(self) -> bool:
        """Whether the answer was not ended as whole ones are."""
        return self.task.done() and not self.is_whole

    def json(self) -> Any:
        return json.loads(self.body)

    def leave(self) -> None:
        """The client closes the connection."""
        self._gone.set()

    async def until(self, *, pieces: int = 0) -> Exchange:
        """Waits for the head and so many pieces."""
        async with asyncio.timeout(PATIENCE):
            while not self.status or len(self.pieces) < pieces:
                assert not self.task.done(), f"it ended with {self.status}, {self.pieces}, {self.error!r}"
                await self._changed.wait()
        return self

    async def ended(self) -> Exchange:
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([self.task])
        return self


def ask(app: App, method: str, target: str, body: Any = None, **headers: str) -> Exchange:
    """Sends a request. Headers by name, `_` for `-`."""
    return Exchange(app, method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})


async def answered(app: App, method: str, target: str, body: Any = None, **headers: str) -> Exchange:
    """The whole exchange."""
    return await ask(app, method, target, body, **headers).ended()


class Asked:
    """One request that came to the model, and how the test answers it."""

    def __init__(self, scope: Any, body: bytes, send: Any) -> None:
        self.scope, self.body, self._send = scope, body, send
        self.method, self.path = scope["method"], scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.is_cancelled = False

    def json(self) -> Any:
        return json.loads(self.body)

    async def begin(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        raw = [(b"content-type", kind.encode())]
        raw += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def piece(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self, piece: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": False})

    async def say(self, content: Any, status: int = 200, **headers: str) -> None:
        """A whole JSON answer."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        await self.begin(status, "application/json", content_length=str(len(body)), **headers)
        await self.end(body)


class Scripted:
    """The model: an ASGI application that has `script` answer each request, and remembers them.

    Args:
        script: answers one request; by default with the number of those that came, as JSON.
    """

    def __init__(self, script: Callable[[Asked], Awaitable[None]] | None = None) -> None:
        self.script = script or self._count
        self.asked: list[Asked] = []
        self._came = asyncio.Event()

    async def _count(self, asked: Asked) -> None:
        await asked.say({"number": len(self.asked)})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = Asked(scope, await body_of(receive), send)
        self.asked.append(asked)
        self._came.set()
        self._came.clear()
        try:
            await self.script(asked)
        except asyncio.CancelledError:
            asked.is_cancelled = True
            raise

    async def until(self, count: int) -> Asked:
        """Waits until so many have come; the last of them."""
        async with asyncio.timeout(PATIENCE):
            while len(self.asked) < count:
                await self._came.wait()
        return self.asked[count - 1]


async def idle() -> None:
    """Lets everything that can go on do so."""
    for _ in range(200):
        await asyncio.sleep(0)
