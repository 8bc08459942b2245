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
from infercache.edge.asking import must_be_made, passes, unsatisfiable, will_do
from infercache.edge.exchange import EdgeRequest, Headers, Outcome, Refused, Reply
from infercache.edge.items import Asking
from infercache.edge.keeper import Keeper, operation_of
from infercache.errors import InvalidJSON

if TYPE_CHECKING:
    from infercache._core import EmbeddingsQuery, Entry, Key
    from infercache.cache import Cache
    from infercache.edge.directives import RequestDirectives
    from infercache.edge.forwarding import Forward
    from infercache.edge.settings import Settings
    from infercache.edge.tokens import Tokenizers
    from infercache.edge.versions import Versions

__all__ = ["Embeddings"]

OPERATION = "openai.embeddings"
_JSON = Headers([(b"content-type", b"application/json")])
_APPORTIONED = "usage-apportioned"


class Embeddings(Keeper):
    """Answers requests for embeddings.

    Args:
        settings: the edge's.
        cache: where items are kept.
        versions: the models'.
        tokenizers: the models'.
    """

    def __init__(self, settings: Settings, cache: Cache, versions: Versions, tokenizers: Tokenizers) -> None:
        super().__init__(settings, cache, versions)
        self._tokenizers = tokenizers
        self._max_items = settings.max_items
        self._secret = cache._secret

    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply | None:
        """The answer; None: no request for items with answers of their own."""
        self.check_depth(request.body)
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
        why = passes(request)
        if why:
            return await self.bypass(request, forward, query.model, why, items=len(query))
        version = await self.versions.before(query.model, request)
        if version is None:
            return await self.bypass(request, forward, query.model, "version-unknown", items=len(query))
        keys = query.keys(self.namespace(request), version, operation_of(OPERATION, request), self._secret)
        if not request.proves:
            return await self._answer(request, forward, query, keys, version)
        async with self.proving.turn(request, forward, keys) as turned:
            return await self._answer(turned, forward, query, keys, version)

    async def _answer(
        self, request: EdgeRequest, forward: Forward, query: EmbeddingsQuery, keys: list[Key], version: str
    ) -> Reply:
        directives = request.directives
        asking = Asking(self, request, forward, _Batch(query, self._tokenizers), keys, version)
        if not request.proven or directives.no_cache:
            if directives.only_if_cached:
                return unsatisfiable(query.model, len(query))
            return await asking.fill(None, fresh=True)
        known = self._look(query, keys, directives)
        if directives.only_if_cached and (known is None or known.body is None):
            known = self._look(query, keys, directives) if await self.fetch(keys) else None
            if known is None or known.body is None:
                return unsatisfiable(query.model, len(query))
        if known is None or known.body is None:
            found = (known.entries if known is not None else None) or [None] * len(keys)
            missing = (key for key, entry in zip(keys, found, strict=True) if entry is None)
            return await asking.fill(known, fresh=must_be_made(directives, self.cache, missing))
        if stale := known.stale:
            name = (self.cache.flights, tuple(keys[place] for place in stale), OPERATION)
            refresh_in_task(name, lambda: asking.refresh(stale))
        return self._known(query, keys, known, self.versions.headers(query.model, request))

    def _look(self, query: EmbeddingsQuery, keys: list[Key], directives: RequestDirectives) -> _core.Known | None:
        """What memory has of the items; None: nothing that will do."""
        stale = None if directives.bounds_age else self.lives.stale_while_revalidate
        known = query.look(self.cache, keys, stale, directives.max_age)
        # How old each may be, `look` was told.
        return known if will_do(directives, 0.0, known.left) else None

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


class _Batch:
    """A query as a `Batch`."""

    operation = OPERATION

    def __init__(self, query: EmbeddingsQuery, tokenizers: Tokenizers) -> None:
        self._query = query
        self._tokenizers = tokenizers
        self.model = query.model

    def __len__(self) -> int:
        return len(self._query)

    def ask(self, places: list[int]) -> bytes:
        return self._query.ask(places)

    async def records(self, reply: Reply, body: bytes, places: list[int], age: int) -> list[bytes] | None:
        counter = self._tokenizers.of(self.model)
        if counter is None:
            found = self._query.records(body, places, age)
            return None if found is None else found[0]
        counts = await counter.count([self._query.item(place) for place in places])
        found = self._query.records(body, places, age, counts)
        if found is None:
            return None
        records, agrees = found
        if counts is None or not agrees:
            counter.disagrees()
        return records

    def age(self, record: bytes) -> int | None:
        return _core.EmbeddingsQuery.age(record)

    def is_answered(self, places: list[int]) -> bool:
        return places == list(range(len(self._query))) and not self._query.base64

    def render(self, entries: list[Entry]) -> Reply:
        rendered = self._query.render(entries)
        if rendered is None:
            raise ValueError("an entry of an item holds no record")
        body, usage = rendered
        return Reply(200, _JSON, body, outcome=Outcome(detail=_APPORTIONED if usage == "apportioned" else ""))
