"""OpenAI's `/v1/embeddings`: an entry for each item, whatever batch it comes in and whatever encoding is asked for.

    body ─ query ─ keys ─ look-up ─┬─ all found ─ answer                       (native, one call)
                                   └─ the missing ones, each once ─ upstream, as one batch ─ records ─ stored ─ answer

A missing item that another request has asked the upstream for is waited for. Numbers are asked for as numbers and kept in
the narrowest form that loses none; base64 is made of them, as the upstream would (binary32).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infercache import _core
from infercache.background import refresh_in_task
from infercache.edge.asking import AnswerTags, Unanswered, bypass, is_failure, unsatisfiable
from infercache.edge.directives import AnswerDirectives, RequestDirectives, is_conditional
from infercache.edge.exchange import EdgeRequest, Forward, Headers, Outcome, Refused, Reply
from infercache.edge.lives import Lives
from infercache.effects import Mode, drive_async
from infercache.errors import InvalidJSON
from infercache.filling import Filling

if TYPE_CHECKING:
    from infercache._core import EmbeddingsQuery, Entry, Key
    from infercache.cache import Cache
    from infercache.edge.settings import Settings
    from infercache.edge.versions import Versions

__all__ = ["Embeddings"]

OPERATION = "openai.embeddings"
_JSON = Headers([(b"content-type", b"application/json")])


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
        self._secret = cache._secret

    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply | None:
        """The answer; None: no request for items with answers of their own."""
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
        directives = request.directives or RequestDirectives()
        if directives.no_store or is_conditional(request.headers) or request.query:
            return await self._bypass(request, forward, query, "request" if directives.no_store else "conditional")
        version = await self.versions.before(query.model, request)
        if version is None:
            return await self._bypass(request, forward, query, "version-unknown")
        keys = query.keys(self.lives.namespace(self.cache, request.tenant), version, OPERATION, self._secret)
        asking = Asking(self, request, forward, query, keys, version)
        if not request.proven or directives.no_cache:
            if directives.only_if_cached:
                return unsatisfiable(query.model, len(query))
            return await asking.fill({}, fresh=True)
        known = query.look(self.cache, keys, self.lives.stale_while_revalidate, directives.max_age)
        if known.body is not None and (known.left is None or known.left >= directives.min_fresh):
            if known.stale:
                name = (self.cache.flights, tuple(keys[place] for place in known.stale), OPERATION)
                refresh_in_task(name, lambda: asking.refresh(known.stale))
            return self._known(query, known)
        if directives.only_if_cached:
            return unsatisfiable(query.model, len(query))
        return await asking.fill(known, fresh=False)

    def _known(self, query: EmbeddingsQuery, known: _core.Known) -> Reply:
        outcome = Outcome(
            kind="stale" if known.stale else "hit",
            items=len(query),
            hits=len(query),
            model=query.model,
            age=known.age,
            ttl=known.left,
            detail="usage-apportioned" if known.usage == "apportioned" else "",
            saved_seconds=known.saved,
        )
        return Reply(200, _JSON, known.body or b"", outcome=outcome)

    async def _bypass(self, request: EdgeRequest, forward: Forward, query: EmbeddingsQuery, why: str) -> Reply:
        """Passes a request through that was understood."""
        outcome = Outcome(kind="bypass", items=len(query), model=query.model, detail=why)
        return await bypass(request, forward, self.versions, outcome, learns=why == "version-unknown")


class Asking:
    """One request, some of whose items the upstream is to be asked for."""

    def __init__(
        self,
        handler: Embeddings,
        request: EdgeRequest,
        forward: Forward,
        query: EmbeddingsQuery,
        keys: list[Key],
        version: str,
    ) -> None:
        self.handler = handler
        self.request = request
        self.forward = forward
        self.query = query
        self.keys = keys
        self.version = version
        self.detached = False

    async def fill(self, known: _core.Known | Mapping[str, Any], *, fresh: bool) -> Reply:
        """Asks for what is missing; `fresh`: for everything."""
        entries = known.entries if isinstance(known, _core.Known) else None
        items = Items(self, fresh=fresh)
        missing: dict[Key, int] = {}
        for place, key in enumerate(self.keys):
            entry = None if entries is None else entries[place]
            if entry is None:
                missing.setdefault(key, place)
            else:
                items.answers[key] = entry
        missing = {key: place for key, place in missing.items() if key not in items.answers}
        hits = 0 if entries is None else known.hits  # type: ignore[union-attr]
        try:
            found = await drive_async(items.steps(missing))
        except Unanswered as unanswered:
            return await self._passed(unanswered.reply, items)
        return self._composed(found, items, hits, known if entries is not None else None)

    async def refresh(self, stale: list[int]) -> None:
        """Asks for stale items anew, for who comes later."""
        self.detached = True
        items = Items(self, fresh=True)
        items.stale_if_error = None
        missing = {self.keys[place]: place for place in stale}
        items.keys = list(missing)
        try:
            await drive_async(items.steps(missing))
        except Unanswered as unanswered:
            await unanswered.reply.aclose()

    def _composed(self, entries: list[Entry], items: Items, hits: int, known: Any) -> Reply:
        outcome = Outcome(
            kind="stale" if items.rescued else "partial" if hits else "miss",
            items=len(self.query),
            hits=hits,
            model=self.query.model,
            detail="" if items.rescued else items.refusal,
            stored=items.stored and not items.refusal,
            collapsed=not items.replies,
        )
        if known is not None and hits:
            outcome.age, outcome.saved_seconds = known.age, known.saved
        if len(items.replies) == 1 and not items.rescued and not self.query.base64:
            reply, places = items.replies[0]
            if places == list(range(len(self.query))):
                reply.outcome = outcome  # the upstream's own answer to all of it
                return reply
        rendered = self.query.render(entries)
        if rendered is None:
            raise ValueError("an entry of an item holds no record")  # passed through, counted
        body, usage = rendered
        if usage == "apportioned":
            outcome.detail = f"{outcome.detail}, usage-apportioned" if outcome.detail else "usage-apportioned"
        return Reply(200, _JSON, body, outcome=outcome)

    async def _passed(self, reply: Reply, items: Items) -> Reply:
        """The upstream's answer as it is; to what was really asked, if it was asked for a part of it."""
        places = items.replies[-1][1] if items.replies else []
        if places != list(range(len(self.query))) or self.query.base64:
            await reply.aclose()
            reply = await self.forward(self.request, stream=True)
        reply.outcome = Outcome(
            kind="error" if reply.status >= 400 else "bypass",
            items=len(self.query),
            model=self.query.model,
            detail=items.refusal or "not-understood",
        )
        return reply


class _Definition:
    """What `Filling` wants to know of a function, of one request."""

    def __init__(self, asking: Asking) -> None:
        self.name = OPERATION
        self.renamable = False
        self.function = asking
        self.tags: Any = None
        self.terms: Any = None
        self.store_if: Any = None
        self.stale_if_error: int | None = None


class Items(Filling):
    """Fills in a request's missing items: the steps of `memoize_batch`, with an upstream for a function."""

    def __init__(self, asking: Asking, *, fresh: bool) -> None:
        handler = asking.handler
        self._cache = handler.cache
        self._max_batch = None
        self._definition: Any = _Definition(asking)
        self.asking = asking
        self.lives = handler.lives
        self.replies: list[tuple[Reply, list[int]]] = []
        self.refusal = ""
        self.stored = False
        self.rescued = False
        self._upstream_tags: tuple[str, ...] = ()
        fixed = handler.lives.tags(asking.query.model, asking.version, asking.request.tenant)
        self._definition.tags = AnswerTags(fixed, lambda: self._upstream_tags)
        self._definition.terms = handler.lives.terms(AnswerDirectives())
        self._definition.store_if = self._may_be_stored
        self._definition.stale_if_error = handler.lives.rescue
        super().__init__(self, (), None, (), asking.keys, Mode(blocking=False), fresh)  # type: ignore[arg-type]
        self.items = tuple(range(len(asking.keys)))

    def _may_be_stored(self, _: object) -> bool:
        return not self.refusal

    def _check_unchanged(self) -> None:
        """A body does not change while it is waited for."""

    def _arguments(self, place: int) -> dict[str, Any]:
        return {}

    def _join(self, key: Key, arrived: Any, within: Any, led: Any, followed: Any) -> None:
        if self.asking.request.proven:
            super()._join(key, arrived, within, led, followed)
        else:  # what this credential gets has to come of its own question
            led.append((key, self._cache.flights.alone(key, None)))

    def _fail(self, chunk: Any, error: Exception) -> None:
        """Others that wait for one of these items ask for themselves, unless the upstream fails whatever is asked."""
        if len(chunk.keys) == 1 and isinstance(error, Unanswered) and is_failure(error.reply):
            super()._fail(chunk, error)

    def _rescue(self, keys: Any) -> bool:
        if self.replies and self.replies[-1][0].status != 200 and not is_failure(self.replies[-1][0]):
            return False
        rescued = super()._rescue(keys)
        self.rescued = self.rescued or rescued
        return rescued

    def _assemble(self) -> list[Entry]:
        return [self.answers[key] for key in self.keys]  # type: ignore[misc]

    def _call(self, places: list[int]) -> Any:
        return self._ask(places)

    async def _ask(self, places: list[int]) -> list[bytes]:
        """Asks the upstream for the items at these places: their records."""
        asking, versions = self.asking, self.asking.handler.versions
        query, request = asking.query, asking.request
        body = query.ask(places)
        headers = request.headers.without(b"accept-encoding")
        reply = await asking.forward(request, body=body, headers=headers, detached=asking.detached)
        self.replies.append((reply, places))
        said = AnswerDirectives.of(reply, self.lives.vary_known)
        records = None
        if reply.status == 200 and isinstance(reply.body, bytes) and said.refusal != "content-encoding":
            records = query.records(reply.body, places, said.age)
        if records is None:
            self.refusal = said.refusal or "not-understood"
            raise Unanswered(reply)
        self.refusal = said.refusal
        if await versions.after(query.model, request, reply) != asking.version:
            self.refusal = "version-changed"
        self._definition.terms = self.lives.terms(said)
        self._upstream_tags = said.tags
        self.stored = True
        return records
