"""The steps of a request for items: those that are missing are asked for, each once, kept, and put together.

They are the steps of `memoize_batch` (`infercache.filling`), with an upstream for a function: what another request asks
for is waited for, a purge meanwhile wins, the shared tier is asked and told, a stale item stands in for an error. What
the items are, and how they are asked for and put together, a `Batch` of the protocol knows.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from infercache.edge.asking import AnswerTags, Unanswered, is_failure, stamped
from infercache.edge.directives import AnswerDirectives
from infercache.edge.exchange import EdgeRequest, Outcome, Reply
from infercache.effects import Mode, drive_async
from infercache.filling import Filling
from infercache.flights import Policy

if TYPE_CHECKING:
    from infercache import _core
    from infercache._core import Entry, Key
    from infercache.edge.forwarding import Forward
    from infercache.edge.keeper import Keeper
    from infercache.filling import Chunk

__all__ = ["Asking", "Batch"]


#: Requests that name one pass, so an answer that depends on it is that of those that name none.
_ORIGIN = frozenset({b"origin"})


class Batch(Protocol):
    """A request for items, as its protocol has it.

    Attributes:
        model: whose items they are.
        operation: names the route in keys.
    """

    model: str
    operation: str

    def __len__(self) -> int:
        """How many items it asks for."""

    def ask(self, places: list[int]) -> bytes:
        """The body of a request for the items at these places alone."""

    async def records(self, reply: Reply, body: bytes, places: list[int], age: int) -> list[bytes] | None:
        """What is kept of an answer to the items at these places, in their order; None: it is no complete answer."""

    def age(self, record: bytes) -> int | None:
        """How many seconds old the answer of a record came; None: it is no record."""

    def is_answered(self, places: list[int]) -> bool:
        """Whether an answer to the items at these places is, as it is, the one that the caller wants."""

    def render(self, entries: list[Entry]) -> Reply:
        """The answer that the caller wants, made of the entries of all items; its outcome has a detail, if any.

        Raises:
            ValueError: it cannot be made of them.
        """


class Asking:
    """One request, some of whose items the upstream is to be asked for."""

    def __init__(
        self,
        handler: Keeper,
        request: EdgeRequest,
        forward: Forward,
        batch: Batch,
        keys: list[Key],
        version: str,
        path: str | None = None,
    ) -> None:
        self.handler = handler
        self.request = request
        self.forward = forward
        self.batch = batch
        self.keys = keys
        self.version = version
        self.path = path
        self.detached = False

    async def fill(self, known: _core.Known | None, *, fresh: bool) -> Reply:
        """Asks for what is missing; `fresh`: for everything."""
        entries = None if known is None else known.entries
        items = Items(self, fresh=fresh)
        missing: dict[Key, int] = {}
        for place, key in enumerate(self.keys):
            entry = None if entries is None else entries[place]
            if entry is None:
                missing.setdefault(key, place)
            else:
                items.answers[key] = entry
        missing = {key: place for key, place in missing.items() if key not in items.answers}
        try:
            found = await drive_async(items.steps(missing))
        except Unanswered as unanswered:
            return await self._passed(unanswered.reply, items)
        return self._composed(found, items, known if entries is not None else None)

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

    def _composed(self, entries: list[Entry], items: Items, known: _core.Known | None) -> Reply:
        fetched = [key for key in self.keys if key in items.promoted]
        hits = len(fetched) + (0 if known is None else known.hits)
        kind = "stale" if items.rescued else "miss" if not hits else "hit" if hits == len(self.batch) else "partial"
        outcome = Outcome(
            kind=kind,
            items=len(self.batch),
            hits=hits,
            model=self.batch.model,
            detail="" if items.rescued else items.refusal,
            stored=items.stored and not items.refusal,
            collapsed=not items.replies and kind != "hit",
        )
        if known is not None and known.hits:
            outcome.age, outcome.ttl, outcome.saved_seconds = known.age, known.left, known.saved
        stored = self._count_fetched(fetched, outcome) + items.bytes + (known.stored_bytes if known else 0)
        outcome.keys, outcome.upstream_seconds = self.keys, items.seconds
        counted = hits + items.recorded
        if counted:  # of those that others asked for nothing is known: they are taken to be like these
            outcome.stored_bytes = stored * len(self.batch) // counted
        if len(items.replies) == 1 and not items.rescued and self.batch.is_answered(items.replies[0][1]):
            reply = items.replies[0][0]  # the upstream's own
        else:
            reply = self.batch.render(entries)
            reply.headers = reply.headers.plus(*self.handler.versions.headers(self.batch.model, self.request))
            outcome.detail = ", ".join(filter(None, [outcome.detail, reply.outcome.detail]))
        reply.outcome = outcome
        return reply

    def _count_fetched(self, fetched: list[Key], outcome: Outcome) -> int:
        """Adds to an outcome what is known of items that only the shared tier had; their bytes."""
        stored = 0
        for key in fetched:
            _, details = self.handler.cache._find(key, None, False)
            if details is not None:
                record, age, left, *_, saved = details
                outcome.age = max(outcome.age or 0.0, age + (self.batch.age(record) or 0))
                outcome.ttl = left if outcome.ttl is None or left is None else min(outcome.ttl, left)
                outcome.saved_seconds += saved
                stored += len(record)
        return stored

    async def _passed(self, reply: Reply, items: Items) -> Reply:
        """The upstream's answer as it is; to what was really asked, if it was asked for a part of it."""
        places = items.replies[-1][1] if items.replies else []
        if not self.batch.is_answered(places):
            await reply.aclose()
            reply = await self.forward(self.request, stream=True)
        reply.outcome = Outcome(
            kind="error" if reply.status >= 400 else "bypass",
            items=len(self.batch),
            model=self.batch.model,
            detail=items.refusal or "not-understood",
        )
        return reply


class Items(Filling):
    """Fills in a request's missing items: the steps of `memoize_batch`, with an upstream for a function."""

    def __init__(self, asking: Asking, *, fresh: bool) -> None:
        handler = asking.handler
        self.asking = asking
        self.lives = handler.lives
        self.replies: list[tuple[Reply, list[int]]] = []
        self.refusal = ""
        self.stored = False
        self.rescued = False
        #: Items that the upstream answered here, their bytes as they are stored, and how long it took.
        self.recorded, self.bytes, self.seconds = 0, 0, 0.0
        self._upstream_tags: tuple[str, ...] = ()
        request = asking.request
        fixed = handler.lives.tags(asking.batch.model, asking.version, request.tenant)
        policy = Policy(  # without `revalidate`: what only the tier has stale is asked for anew
            handler.cache,
            asking.batch.operation,
            handler.lives.terms(AnswerDirectives()),
            AnswerTags(fixed, lambda: self._upstream_tags),
            self._may_be_stored,
            handler.lives.rescue if request.proven or request.excused else None,
        )
        super().__init__(policy, asking.keys, Mode(blocking=False), fresh=fresh)

    def _may_be_stored(self, _: object) -> bool:
        return not self.refusal

    def _join(self, keys: Any, arrived: Any, within: Any, led: Any, followed: Any) -> None:
        if self.asking.request.proven:
            super()._join(keys, arrived, within, led, followed)
        else:  # what this credential gets has to come of its own question
            led += [(key, self.cache.flights.alone(key, None)) for key in keys]

    def _fail(self, chunk: Chunk, error: Exception) -> None:
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

    async def call(self, places: list[int]) -> list[bytes]:
        """Asks the upstream for the items at these places: their records."""
        asking, versions = self.asking, self.asking.handler.versions
        batch, request = asking.batch, asking.request
        # Compressed, it would have to be made out before it could be kept.
        headers = stamped(request.headers.without(b"accept-encoding"), asking.handler.cache)
        began = perf_counter()
        reply = await asking.forward(request, body=batch.ask(places), headers=headers, detached=asking.detached)
        self.seconds += perf_counter() - began
        self.replies.append((reply, places))
        said = AnswerDirectives.of(reply, self.lives.vary_known | _ORIGIN)
        records = None
        if reply.status == 200 and isinstance(reply.body, bytes) and said.refusal != "content-encoding":
            records = await batch.records(reply, reply.body, places, said.age)
        if records is None:
            self.refusal = said.refusal or "not-understood"
            raise Unanswered(reply)
        self.refusal = said.refusal
        if await versions.after(batch.model, request, reply, path=asking.path) != asking.version:
            self.refusal = "version-changed"
        self.policy = replace(self.policy, terms=self.lives.terms(said))
        self._upstream_tags = said.tags
        self.stored = True
        self.recorded += len(records)
        self.bytes += sum(map(len, records))
        return records
