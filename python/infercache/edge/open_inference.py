"""Open Inference Protocol v2 (KServe, Triton): `POST /v2/models/NAME[/versions/VERSION]/infer`.

    body ─ query ─ key ─ look-up ─┬─ found ── rendered as JSON or binary, with the caller's own id
                                  └─ upstream ── record: native bytes ── stored ── the upstream's own answer

JSON and binary tensors of the same elements have one key, and one stored answer serves both (rust/core/src/edge/infer).
What keeps state on the server (`sequence_id`) or lies in shared memory is passed through uncached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infercache import _core
from infercache.background import refresh_in_task
from infercache.edge.asking import known, must_be_made, passes, unsatisfiable
from infercache.edge.exchange import EdgeRequest, Headers, Outcome, Reply
from infercache.edge.items import Asking
from infercache.edge.keeper import Keeper, operation_of
from infercache.errors import InvalidJSON

if TYPE_CHECKING:
    from infercache._core import Entry, InferQuery
    from infercache.cache import Cache
    from infercache.edge.exchange import Handler
    from infercache.edge.forwarding import Forward
    from infercache.edge.settings import Settings
    from infercache.edge.versions import Versions

__all__ = ["OpenInference", "handlers"]

OPERATION = "open_inference.infer"
#: Bytes of a body that are its JSON object; the tensors' bytes follow.
_HEAD = b"inference-header-content-length"
_JSON = Headers([(b"content-type", b"application/json")])
_PLAIN = _core.Terms(None, 0, None, False)


def _head(headers: Headers) -> int | None:
    """How long the JSON object is; None: as long as the body.

    Raises:
        ValueError: nobody can say.
    """
    value = headers.get(_HEAD)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise ValueError("not a number")
    return int(value)


class NoForm(ValueError):
    """What is kept has no form of the kind that is asked for: half precision, NaN, bytes that are no text."""


class OpenInference(Keeper):
    """Answers requests for inference."""

    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply | None:
        """The answer; None: no request whose answer depends on it alone."""
        query = self._read(request)
        if query is None:
            return None
        segments = request.path.split("/")
        model, path = segments[3], segments[5] if len(segments) > 6 else None
        why = passes(request)
        if why:
            return await self.bypass(request, forward, model, why)
        version = await self.versions.before(model, request, path=path)
        if version is None:
            return await self.bypass(request, forward, model, "version-unknown")
        operation = operation_of(OPERATION, request)
        key = query.key(self.namespace(request), model, version, operation, self.cache._secret)
        batch = _Batch(query, request, model)
        asking = Asking(self, request, forward, batch, [key], version, path)
        if not request.proves:
            return await self._answer(asking, batch)
        async with self.proving.turn(request, forward, [key]) as asking.request:
            return await self._answer(asking, batch)

    async def _answer(self, asking: Asking, batch: _Batch) -> Reply:
        request, (key,) = asking.request, asking.keys
        directives = request.directives
        fresh = directives.no_cache or not request.proven
        found = None if fresh else self._known(asking, batch)
        if found is None and directives.only_if_cached:
            found = self._known(asking, batch) if not fresh and await self.fetch([key]) else None
            if found is None:
                return unsatisfiable(batch.model)
        if found is not None:
            found.headers = found.headers.plus(*self.versions.headers(batch.model, request))
            if found.outcome.kind == "stale":
                refresh_in_task((self.cache.flights, key, OPERATION), lambda: asking.refresh([0]))
            return found
        try:
            return await asking.fill(None, fresh=fresh or must_be_made(directives, self.cache, [key]))
        except NoForm:
            return await self.bypass(request, asking.forward, batch.model, "no-such-encoding")

    def _read(self, request: EdgeRequest) -> InferQuery | None:
        if request.headers.get(b"content-encoding") not in (None, b"identity"):
            return None
        try:
            head = _head(request.headers)
            self.check_depth(request.body if head is None else request.body[:head])
            return _core.InferQuery.parse(request.body, head)
        except (InvalidJSON, ValueError):
            return None  # the server says what is wrong with it

    def _known(self, asking: Asking, batch: _Batch) -> Reply | None:
        """What memory has, if it will do."""

        def find(stale: float | None, counted: bool) -> Reply | None:
            state, details = self.cache._find(asking.keys[0], stale, counted)
            if details is None:
                return None
            record, age, left, *_, saved = details
            came = batch.age(record) if isinstance(record, bytes) else None
            reply = None if came is None else batch.reply(record)
            if reply is None or came is None:
                return None
            kind, left = ("stale", 0.0) if state == "stale" else ("hit", left)
            reply.outcome = Outcome(
                kind,
                1,
                1,
                batch.model,
                age=age + came,
                ttl=left,
                saved_seconds=saved,
                keys=asking.keys,
                stored_bytes=len(record),
            )
            return reply

        return known(find, asking.request.directives, self.lives.stale_while_revalidate)


class _Batch:
    """A query as a `Batch` of one item."""

    operation = OPERATION

    def __init__(self, query: InferQuery, request: EdgeRequest, model: str) -> None:
        self._query = query
        self._request = request
        self.model = model

    def __len__(self) -> int:
        return 1

    def ask(self, places: list[int]) -> bytes:
        return self._request.body

    async def records(self, reply: Reply, body: bytes, places: list[int], age: int) -> list[bytes] | None:
        try:
            record = _core.InferQuery.record(body, _head(reply.headers), age)
        except ValueError:
            return None
        return None if record is None else [record]

    def age(self, record: bytes) -> int | None:
        return _core.InferQuery.age(record)

    def is_answered(self, places: list[int]) -> bool:
        return bool(places)

    def render(self, entries: list[Entry]) -> Reply:
        reply = self.reply(entries[0].value(_PLAIN))
        if reply is None:
            raise NoForm
        return reply

    def reply(self, record: bytes) -> Reply | None:
        """The answer that the caller wants, made of a record, if it has such a form."""
        rendered = self._query.render(record)
        if rendered is None:
            return None
        body, head = rendered
        if head is None:
            return Reply(200, _JSON, body)
        binary = Headers([(b"content-type", b"application/octet-stream"), (_HEAD, b"%d" % head)])
        return Reply(200, binary, body)


def handlers(settings: Settings, cache: Cache, versions: Versions) -> dict[tuple[str, str], Handler]:
    """The handlers of the protocol, by method and path."""
    handler = OpenInference(settings, cache, versions)
    return {("POST", f"/v2/models/{path}"): handler for path in ("*/infer", "*/versions/*/infer")}
