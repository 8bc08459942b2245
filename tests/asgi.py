"""Calls an ASGI application without a server, and takes down what it says; and what the tests' applications share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any


async def body_of(receive: Any) -> bytes:
    """The whole body of a request."""
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


@dataclass
class Call:
    """One request. `body` in several pieces comes as several messages; the event `leaves` says when the client goes."""

    path: str = "/v1/embeddings"
    body: bytes | list[bytes] = b"{}"
    method: str = "POST"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    client: tuple[str, int] | None = ("127.0.0.1", 1)
    leaves: asyncio.Event | None = None
    #: What the application sent.
    messages: list[dict[str, Any]] = field(default_factory=list)
    #: Set at each message.
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, app: Any, **scope: Any) -> Call:
        pieces = [self.body] if isinstance(self.body, bytes) else list(self.body)
        forever = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if pieces:
                piece = pieces.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
            await (self.leaves or forever).wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.messages.append(message)
            self.told.set()

        given = {
            "type": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "headers": self.headers,
            "client": self.client,
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            **scope,
        }
        await app(given, receive, send)
        return self

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def answered(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def content(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def is_whole(self) -> bool:
        return len(self.messages) > 1 and not self.messages[-1].get("more_body")


class Model:
    """An inner application: answers with `status`, `headers` and `pieces`, and counts."""

    def __init__(self, *pieces: bytes, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.pieces = list(pieces) or [b"answer"]
        self.status = status
        self.headers = headers or []
        self.asked = 0
        self.bodies: list[bytes] = []
        self.scopes: list[Any] = []
        self.stopped = 0
        #: Waited for before each piece but the first.
        self.gate: asyncio.Event | None = None
        #: Raised: before an answer, or after the first piece.
        self.fails: Exception | None = None
        self.breaks: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        self.asked += 1
        self.bodies.append(await body_of(receive))
        if self.fails is not None:
            raise self.fails
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            for number, piece in enumerate(self.pieces):
                if number and self.gate is not None:
                    await self.gate.wait()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if self.breaks is not None:
                    raise self.breaks
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            self.stopped += 1
            raise
