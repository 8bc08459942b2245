"""Open Inference Protocol v2 (KServe, Triton): `POST /v2/models/NAME[/versions/VERSION]/infer`.

    body ─ query ─ key ─ look-up ─┬─ found ── rendered as JSON or binary, with the caller's own id
                                  └─ upstream ── record: native bytes ── stored ── the upstream's own answer

JSON and binary tensors of the same elements have one key, and one stored answer serves both (rust/core/src/edge/infer).
What keeps state on the server (`sequence_id`) or lies in shared memory is passed through uncached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from infercache import _core
from infercache.background import refresh_in_task
from infercache.edge.asking import bypass, check_depth, passes, unsatisfiable
from infercache.edge.exchange import EdgeRequest, Forward, Headers, Outcome, Reply
from infercache.edge.items import Asking
from infercache.edge.lives import Lives
from infercache.errors import InvalidJSON

if TYPE_CHECKING:
    from infercache._core import Entry, InferQuery, Key
    from infercache.cache import Cache
    from infercache.edge.exchange import Handler
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


class OpenInference:
    """Answers requests for inference.

    Args:
        settings: the edge's.
        cache: where answers are kept.
        versions: the models'.
    """

    def __init__(self, settings: Settings, cache: Cache, versions: Versions) -> None:
        self.cache = cache
        self.versions = versions
        self.lives = Lives(settings)
        self._max_depth = settings.max_json_depth

    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply | None:
        """The answer; None: no request whose answer depends on it alone."""
        query = self._read(request)
        if query is None:
            return None
        segments = request.path.split("/")
        model, path = unquote(segments[3]), unquote(segments[5]) if len(segments) > 6 else None
        directives = request.directives
        why = passes(request)
        if why:
            return await bypass(request, forward, self.versions, Outcome(kind="bypass", model=model, detail=why))
        version = await self.versions.before(model, request, path=path)
        if version is None:
            outcome = Outcome(kind="bypass", model=model, detail="version-unknown")
            return await bypass(request, forward, self.versions, outcome, learns=True)
        namespace = self.lives.namespace(self.cache, request.tenant)
        operation = f"{OPERATION}?{request.query.decode('latin-1')}" if request.query else OPERATION
        key = query.key(namespace, model, version, operation, self.cache._secret)
        batch = _Batch(query, request, model)
        asking = Asking(self, request, forward, batch, [key], version, path)
        fresh = directives.no_cache or not request.proven
        found = None if fresh else self._known(batch, key, request)
        if found is not None:
            found.headers = found.headers.plus(*self.versions.headers(model, request))
            if found.outcome.kind == "stale":
                refresh_in_task((self.cache.flights, key, OPERATION), lambda: asking.refresh([0]))
            return found
        if directives.only_if_cached:
            return unsatisfiable(model)
        # What memory has would do for another request, but not for this one.
        fresh = fresh or directives.max_age is not None or directives.min_fresh > 0
        try:
            return await asking.fill(None, fresh=fresh)
        except NoForm:
            outcome = Outcome(kind="bypass", model=model, detail="no-such-encoding")
            return await bypass(request, forward, self.versions, outcome)

    def _read(self, request: EdgeRequest) -> InferQuery | None:
        if request.headers.get(b"content-encoding") not in (None, b"identity"):
            return None
        try:
            head = _head(request.headers)
            check_depth(request.body if head is None else request.body[:head], self._max_depth)
            return _core.InferQuery.parse(request.body, head)
        except (InvalidJSON, ValueError):
            return None  # the server says what is wrong with it

    def _known(self, batch: _Batch, key: Key, request: EdgeRequest) -> Reply | None:
        """What memory has, if it will do."""
        directives = request.directives
        bound = directives.max_age is not None or directives.min_fresh > 0
        stale = None if bound else self.lives.stale_while_revalidate
        state, details = self.cache._find(key, stale, not bound)
        if details is None or (bound and state != "fresh"):
            return None
        record, age, left, _, _, _ = details
        came = _core.InferQuery.age(record) if isinstance(record, bytes) else None
        if came is None:
            return None
        age += came
        if directives.max_age is not None and age > directives.max_age:
            return None
        if left is not None and left < directives.min_fresh:
            return None
        if bound:
            self.cache._find(key, None)  # counted
        reply = batch.reply(record)
        if reply is not None:
            kind = "stale" if state == "stale" else "hit"
            reply.outcome = Outcome(
                kind=kind, hits=1, model=batch.model, age=age, ttl=left, keys=(key,), stored_bytes=len(record)
            )
        return reply


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

    def records(self, reply: Reply, body: bytes, places: list[int], age: int) -> list[bytes] | None:
        try:
            record = _core.InferQuery.record(body, _head(reply.headers), age)
        except ValueError:
            return None
        return None if record is None else [record]

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
