"""OpenAI's `/v1/embeddings`: an entry for each item, whatever batch it comes in and whatever encoding is asked for.

    body ─ query ─ keys ─ look-up ─┬─ all found ─ answer                       (native, one call)
                                   └─ the missing ones, each once ─ upstream, as one batch ─ records ─ stored ─ answer

A missing item that another request has asked the upstream for is waited for. Numbers are asked for as numbers and kept
in the narrowest form that loses none; base64 is made of them, as the upstream would (binary32).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infercache import _core
from infercache.background import refresh_in_task
from infercache.edge.asking import bypass, check_depth, passes, unsatisfiable
from infercache.edge.exchange import EdgeRequest, Forward, Headers, Outcome, Refused, Reply
from infercache.edge.items import Asking
from infercache.edge.lives import Lives
from infercache.errors import InvalidJSON

if TYPE_CHECKING:
    from infercache._core import EmbeddingsQuery, Entry, Key
    from infercache.cache import Cache
    from infercache.edge.settings import Settings
    from infercache.edge.versions import Versions

__all__ = ["Embeddings"]

OPERATION = "openai.embeddings"
_JSON = Headers([(b"content-type", b"application/json")])
_APPORTIONED = "usage-apportioned"


class Misread(Exception):
    """The items are written as none are: tokens as 1.0, which some servers take for 1, and others refuse."""


class Embeddings:
    """Answers requests for embeddings.

    Args:
        settings: the edge's.
        cache: where items are kept.
        versions: the models'.
    """

    def __init__(self, settings: Settings, cache: Cache, versions: Versions) -> None:
        self.cache = cache
        self.versions = versions
        self.lives = Lives(settings)
        self._max_items = settings.max_items
        self._max_depth = settings.max_json_depth
        self._secret = cache._secret

    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply | None:
        """The answer; None: no request for items with answers of their own."""
        check_depth(request.body, self._max_depth)
        try:
            query = _core.EmbeddingsQuery.parse(request.body)
        except InvalidJSON:
            return None  # the upstream says what is wrong with it
        if query is None:
            return None
        if len(query) > self._max_items:
            raise Refused(
                400, f"The batch has {len(query)} items; at most {self._max_items} are accepted.", "too_many_items"
            )
        directives = request.directives
        why = passes(request)
        if why:
            return await self._bypass(request, forward, query, why)
        version = await self.versions.before(query.model, request)
        if version is None:
            return await self._bypass(request, forward, query, "version-unknown")
        # Which version of the API is asked, say (Azure).
        operation = f"{OPERATION}?{request.query.decode('latin-1')}" if request.query else OPERATION
        keys = query.keys(self.lives.namespace(self.cache, request.tenant), version, operation, self._secret)
        asking = Asking(self, request, forward, _Batch(query), keys, version)
        if not request.proven or directives.no_cache:
            if directives.only_if_cached:
                return unsatisfiable(query.model, len(query))
            return await self._ask(asking, None, fresh=True)
        known = query.look(self.cache, keys, self.lives.stale_while_revalidate, directives.max_age)
        if known.body is not None and (known.left is None or known.left >= directives.min_fresh):
            if known.stale:
                name = (self.cache.flights, tuple(keys[place] for place in known.stale), OPERATION)
                refresh_in_task(name, lambda: asking.refresh(known.stale))
            return self._known(query, keys, known, self.versions.headers(query.model, request))
        if directives.only_if_cached:
            return unsatisfiable(query.model, len(query))
        return await self._ask(asking, known, fresh=False)

    @staticmethod
    async def _ask(asking: Asking, known: _core.Known | None, *, fresh: bool) -> Reply | None:
        try:
            return await asking.fill(known, fresh=fresh)
        except Misread:
            return None

    def _known(self, query: EmbeddingsQuery, keys: list[Key], known: _core.Known, also: Headers) -> Reply:
        outcome = Outcome(
            kind="stale" if known.stale else "hit",
            items=len(query),
            hits=len(query),
            model=query.model,
            age=known.age,
            ttl=known.left,
            detail=_APPORTIONED if known.usage == "apportioned" else "",
            saved_seconds=known.saved,
            keys=keys,
            stored_bytes=known.stored_bytes,
        )
        return Reply(200, _JSON.plus(*also) if len(also) else _JSON, known.body or b"", outcome=outcome)

    async def _bypass(self, request: EdgeRequest, forward: Forward, query: EmbeddingsQuery, why: str) -> Reply:
        """Passes a request through that was understood."""
        outcome = Outcome(kind="bypass", items=len(query), model=query.model, detail=why)
        return await bypass(request, forward, self.versions, outcome, learns=why == "version-unknown")


class _Batch:
    """A query as a `Batch`."""

    operation = OPERATION

    def __init__(self, query: EmbeddingsQuery) -> None:
        self._query = query
        self.model = query.model

    def __len__(self) -> int:
        return len(self._query)

    def ask(self, places: list[int]) -> bytes:
        body = self._query.ask(places)
        if body is None:
            raise Misread
        return body

    def records(self, reply: Reply, body: bytes, places: list[int], age: int) -> list[bytes] | None:
        return self._query.records(body, places, age)

    def is_answered(self, places: list[int]) -> bool:
        return places == list(range(len(self._query))) and not self._query.base64

    def render(self, entries: list[Entry]) -> Reply:
        rendered = self._query.render(entries)
        if rendered is None:
            raise ValueError("an entry of an item holds no record")
        body, usage = rendered
        return Reply(200, _JSON, body, outcome=Outcome(detail=_APPORTIONED if usage == "apportioned" else ""))
