"""A credential's first requests: who asks what another request of the same credential asks right now waits for that.

A request whose credential is not proven has to reach the upstream before anything is given out. Where the same caller
sends the same question several times at once, one of them does; the others wait until it has been answered. If the
upstream let it in, they are requests of a proven credential like any other, and find its answer, or join its stream.
If not, each asks for itself. So nothing is ever given out that a proven credential would not get.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infercache.edge.exchange import ClientGone

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.edge.exchange import EdgeRequest
    from infercache.edge.forwarding import Forward

__all__ = ["Proving"]


class Proving:
    """Questions that are asked right now by credentials that are not proven.

    Args:
        auth_ttl: seconds for which a proof holds; 0: none ever does, so nobody waits for one.
    """

    def __init__(self, auth_ttl: float) -> None:
        self._holds = auth_ttl > 0
        #: Who asks; resolved with whether there was an answer, whatever it said.
        self._asked: dict[tuple[asyncio.AbstractEventLoop, bytes, Key], asyncio.Future[bool]] = {}

    @asynccontextmanager
    async def turn(self, request: EdgeRequest, forward: Forward, keys: Sequence[Key]) -> AsyncIterator[EdgeRequest]:
        """Waits for who asks one of these already; then gives the request, which is proven if that proved it.

        While the block runs, those that come wait for it in turn.

        Raises:
            ClientGone: the client left meanwhile.
        """
        if not self._holds:
            yield request
            return
        loop = asyncio.get_running_loop()
        names = [(loop, request.credential, key) for key in dict.fromkeys(keys)]
        answered = False
        while not answered and (others := {self._asked[name] for name in names if name in self._asked}):
            answered = await _answered(others, forward.watch())
        if forward.is_proven():
            yield replace(request, proven=True)
            return
        mine: asyncio.Future[bool] = loop.create_future()
        led = [name for name in names if name not in self._asked]
        self._asked |= dict.fromkeys(led, mine)
        answered = True
        try:
            yield request
        except (ClientGone, asyncio.CancelledError):
            answered = False
            raise
        finally:
            for name in led:
                del self._asked[name]
            mine.set_result(answered)


async def _answered(others: set[asyncio.Future[bool]], gone: asyncio.Future[None]) -> bool:
    """Waits for all of them; whether one was answered. If none was, all were given up, and who waited asks next."""
    waiting: set[asyncio.Future[Any]] = set(others)
    while waiting:
        await asyncio.wait({*waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise ClientGone("the client left before its credential was let in")
        waiting = {other for other in waiting if not other.done()}
    return any(other.result() for other in others)
