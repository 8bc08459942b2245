"""What every handler has: where answers are kept, for how long, whose versions they are, and what it asks first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infercache import _core
from infercache.edge.exchange import Outcome, Refused
from infercache.edge.lives import Lives
from infercache.edge.policy import NOT_UNDERSTOOD
from infercache.edge.proving import Proving
from infercache.effects import drive_async

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infercache._core import Key
    from infercache.cache import Cache
    from infercache.edge.exchange import EdgeRequest, Reply
    from infercache.edge.forwarding import Forward
    from infercache.edge.settings import Settings
    from infercache.edge.versions import Versions

__all__ = ["Keeper", "operation_of"]


class Keeper:
    """A handler that keeps answers.

    Args:
        settings: the edge's.
        cache: where they are kept.
        versions: the models'.
    """

    def __init__(self, settings: Settings, cache: Cache, versions: Versions) -> None:
        self.cache = cache
        self.versions = versions
        self.lives = Lives(settings)
        #: By which a credential's first requests wait for one another.
        self.proving = Proving(settings.auth_ttl)
        self._max_depth = settings.max_json_depth

    def check_depth(self, text: bytes) -> None:
        """Looks how deep JSON is nested before anything else is done with it.

        Raises:
            Refused: too deep.
        """
        if _core.json_depth(text) > self._max_depth:
            raise Refused(400, f"The JSON is nested more than {self._max_depth} deep.", "json_too_deep")

    def namespace(self, request: EdgeRequest) -> str:
        """Where the entries are that this request may see."""
        return self.lives.namespace(self.cache, request.tenant)

    async def fetch(self, keys: Sequence[Key]) -> bool:
        """Takes what the shared tier has of these keys into memory; whether there is a tier."""
        if self.cache.shared is None:
            return False
        await drive_async(self.cache.shared.fetch(list(keys)))
        return True

    async def bypass(self, request: EdgeRequest, forward: Forward, model: str, why: str, *, items: int = 1) -> Reply:
        """Passes a request through, and says why. Its answer may tell a version that was not known."""
        reply = await forward(request, stream=True)
        kind = "uncached" if why == NOT_UNDERSTOOD else "bypass"
        reply.outcome = Outcome(kind=kind, items=items, model=model, detail=why)
        if why == "version-unknown":
            await self.versions.after(model, request, reply)
        return reply


def operation_of(name: str, request: EdgeRequest) -> str:
    """A route's name in keys: with the query, which says, for instance, which version of the API is asked (Azure)."""
    return f"{name}?{request.query.decode('latin-1')}" if request.query else name
