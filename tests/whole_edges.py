"""What the tests of whole requests share: routes, bodies, and the middleware around a scripted model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from infercache.edge import CacheMiddleware
from scripted import Asked, Exchange, Scripted, answered, ask, idle

CHAT, COMPLETIONS, RERANK, RANK = "/v1/chat/completions", "/v1/completions", "/v1/rerank", "/rank"
HELLO = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**HELLO, "stream": True}
PROMPT = {"model": "m", "temperature": 0, "prompt": "hello"}
DOCUMENTS = {"model": "m", "query": "shoes", "documents": ["red shoes", "green hats"]}
BODIES: dict[str, dict[str, Any]] = {CHAT: HELLO, COMPLETIONS: PROMPT, RERANK: DOCUMENTS, RANK: {"query": "shoes"}}
DONE = b"data: [DONE]\n\n"


def edge(model: Any, **options: Any) -> CacheMiddleware:
    """The middleware; every model has the version 1, and RANK is declared."""
    known = {"model_versions": {"*": "1"}, "capacity": "16MB", "json_routes": [RANK]}
    return CacheMiddleware(model, **{**known, **options})


def run(test: Callable[[Scripted], Awaitable[None]], script: Callable[[Asked], Awaitable[None]] | None = None) -> None:
    """Runs a test with a model that answers by this script."""

    async def main() -> None:
        await test(Scripted(script))

    asyncio.run(main())


def as_bytes(body: Any) -> bytes:
    """What is sent."""
    return body if isinstance(body, bytes) else json.dumps(body).encode()


async def is_kept(app: CacheMiddleware, path: str, body: Any, **headers: str) -> bool:
    """Whether asking twice asks the model once, the second answer being the first."""
    first = await answered(app, "POST", path, body, **headers)
    second = await answered(app, "POST", path, body, **headers)
    hit = "; hit" in second.cache_status
    assert not hit or first.body == second.body
    return hit


class Model(Scripted):
    """Answers each request when the test says so: `await model.next()` is the next one, to be answered by hand."""

    def __init__(self) -> None:
        super().__init__(self._hold)
        self.taken = 0

    async def _hold(self, asked: Asked) -> None:
        if asked.json().get("warm"):
            await asked.say({"warm": True})
            return
        over = asyncio.Event()
        asked.over = over  # type: ignore[attr-defined]
        await over.wait()
        if getattr(asked, "raises", False):
            raise RuntimeError("the model died")

    async def next(self) -> Asked:
        self.taken += 1
        return await self.until(self.taken)

    async def nobody(self) -> None:
        """Nobody else has asked."""
        await idle()
        assert len(self.asked) == self.taken


async def end(asked: Asked, piece: bytes = b"") -> None:
    await asked.end(piece)
    asked.over.set()  # type: ignore[attr-defined]


def die(asked: Asked) -> None:
    asked.raises = True  # type: ignore[attr-defined]
    asked.over.set()  # type: ignore[attr-defined]


async def several(app: CacheMiddleware, count: int, body: Any = STREAM, **headers: str) -> list[Exchange]:
    exchanges = [ask(app, "POST", CHAT, body, **headers) for _ in range(count)]
    await idle()
    return exchanges
