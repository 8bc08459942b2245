"""`CacheMiddleware`: one request from the server to its answer (a first form: everything is passed through)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infercache.edge.exchange import App, Receive, Scope, Send

__all__ = ["CacheMiddleware"]


class CacheMiddleware:
    """ASGI middleware around the inner application `app`."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
