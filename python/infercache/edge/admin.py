"""What operators ask the edge: purges, metrics, health, and the page. An ASGI application.

    GET  /-/healthz      200: the process answers                                        no token
    GET  /-/readyz       200 or 503: whether requests should be sent here, and why not   no token
    GET  /-/metrics      Prometheus
    GET  /-/             the page
    GET  /-/samples      what the page draws, JSON
    POST /-/invalidate   a purge, in every gateway that shares the tier; the token as text

The token comes as `Authorization: Bearer TOKEN`, or, to read, as the password of HTTP's Basic scheme, for which
browsers ask. A purge takes no Basic: a browser sends that along with whatever another site makes it send.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

from infercache import Key, __version__
from infercache.edge.exchange import ClientGone, Headers, Outcome, Receive, Refused, Reply, Scope, Send, error_reply
from infercache.edge.forwarding import Buffered, Client
from infercache.edge.making import token_of
from infercache.errors import InvalidArgument, PurgeFailed

if TYPE_CHECKING:
    from infercache.edge.middleware import CacheMiddleware

__all__ = ["Admin", "Backend"]

#: Largest body of a purge, bytes; time for it, seconds; most tags of one.
_LARGEST, _TIMEOUT, _MOST_TAGS = 1 << 20, 10.0, 1_000
#: Seconds for which the upstream's state is remembered: probes of balancers cost it nothing.
_REMEMBERED = 1.0
#: Whether a purge was done, and what HTTP says of that.
_FAILED = {"not done": 503, "not durable": 504}
_PLAIN = (b"content-type", b"text/plain; charset=utf-8")
_FRESH = (b"cache-control", b"no-store")
_CHALLENGE = (
    (b"www-authenticate", b'Basic realm="infercache", charset="UTF-8"'),
    (b"www-authenticate", b'Bearer realm="infercache"'),
)


class Backend(Protocol):
    """The upstream, as far as health is concerned."""

    def connections(self) -> dict[str, int]:
        """Gauges."""

    async def is_reachable(self) -> bool:
        """Whether it can be asked."""


class Admin:
    """The operators' side of one middleware.

    Args:
        edge: whose cache and counters it is about.
        backend: whose health counts for /-/readyz; None: the application is in this process.

    Raises:
        InvalidArgument: the token's file cannot be read.
    """

    def __init__(self, edge: CacheMiddleware, backend: Backend | None = None) -> None:
        self._edge = edge
        self._backend = backend
        self._token = token_of(edge.settings)
        #: The process is about to end: no more requests should be sent here.
        self.draining = False
        self._reachable = True
        self._probed = float("-inf")
        self._probing: asyncio.Task[bool] | None = None
        self._pages: dict[str, tuple[str, bool, Callable[[Headers, bytes], Awaitable[Reply]]]] = {
            "/-/healthz": ("GET", False, self._healthz),
            "/-/readyz": ("GET", False, self._readyz),
            "/-/metrics": ("GET", True, self._metrics),
            "/-/samples": ("GET", True, self._samples),
            "/-/": ("GET", True, self._page),
            "/-/invalidate": ("POST", True, self._invalidate),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the operators' side has no {scope['type']}")
        headers = Headers(scope["headers"])
        client = Client(receive, headers, _LARGEST, _TIMEOUT, Buffered(16 * _LARGEST))
        try:
            reply = await self._reply(scope, headers, client)
        except Refused as refused:
            reply = refused.reply()
        except ClientGone:
            return
        finally:
            client.close()
        body = b"" if scope["method"] == "HEAD" or not isinstance(reply.body, bytes) else reply.body
        length = len(reply.body) if isinstance(reply.body, bytes) else 0
        told = reply.headers.plus((b"content-length", b"%d" % length), _FRESH, (b"x-content-type-options", b"nosniff"))
        await send({"type": "http.response.start", "status": reply.status, "headers": told.raw})
        await send({"type": "http.response.body", "body": body})

    async def _reply(self, scope: Scope, headers: Headers, client: Client) -> Reply:
        method, guarded, page = self._pages.get(scope["path"], ("", True, self._page))
        if guarded:
            self._check(headers, reads=method == "GET")
        if not method:
            raise Refused(404, "There is no such page.", "not_found")
        if scope["method"] not in ((method, "HEAD") if method == "GET" else (method,)):
            raise Refused(405, f"Ask with {method}.", "method_not_allowed", (b"allow", method.encode()))
        return await page(headers, b"" if method == "GET" else await client.body())

    def _check(self, headers: Headers, *, reads: bool) -> None:
        if self._token is None:
            raise Refused(403, "Operators have no token: start with admin_token_file (--admin-token-file).", "no_token")
        scheme, _, given = (headers.get(b"authorization") or b"").partition(b" ")
        if scheme.lower() == b"basic" and reads:
            try:
                given = base64.b64decode(given.strip(), validate=True).partition(b":")[2]
            except binascii.Error:
                given = b""
        elif scheme.lower() != b"bearer":
            given = b""
        if not hmac.compare_digest(given.strip(), self._token):
            raise Refused(401, "This needs the operators' token.", "unauthorized", *_CHALLENGE)

    # ---------------------------------------------------------------------------------------------------------- health

    async def _healthz(self, headers: Headers, body: bytes) -> Reply:
        return _text(200, "ok\n")

    async def _readyz(self, headers: Headers, body: bytes) -> Reply:
        reachable = await self._is_reachable()
        ready = reachable and not self.draining
        said = {
            "ready": ready,
            "draining": self.draining,
            "upstream": "in this process" if self._backend is None else "reachable" if reachable else "unreachable",
            "tier": self._tier(),
        }
        return _json(200 if ready else 503, said)

    async def _is_reachable(self) -> bool:
        if self._backend is None:
            return True
        if time.monotonic() - self._probed > _REMEMBERED:
            if self._probing is None or self._probing.done():
                self._probing = asyncio.get_running_loop().create_task(self._backend.is_reachable())
            self._reachable = await asyncio.shield(self._probing)
            self._probed = time.monotonic()
        return self._reachable

    def _tier(self) -> str:
        """A tier that is out harms no readiness: inference goes on without it."""
        shared = self._edge.cache.shared
        if shared is None:
            return "none"
        # Who follows asks a few times within `max_staleness`, whether or not requests do.
        shared.coherence.ensure_follower()
        return "out" if shared.tier.is_out or shared.coherence.authority.is_out else "in"

    # -------------------------------------------------------------------------------------------------------- watching

    async def _metrics(self, headers: Headers, body: bytes) -> Reply:
        try:
            from infercache.edge.exposition import EdgeCollector, exposition
        except ImportError:
            raise Refused(
                501, "Metrics need prometheus-client, which the extra infercache[edge] brings.", "no_metrics"
            ) from None
        upstream = None if self._backend is None else self._backend.connections
        source = EdgeCollector(self._edge.metrics, self._edge.cache, upstream)
        text, media_type = exposition(source, b",".join(headers.lines(b"accept")).decode("latin-1"))
        return Reply(200, Headers([(b"content-type", media_type.encode())]), text)

    def _state(self) -> dict[str, Any]:
        edge = self._edge
        stats = edge.cache.stats()
        return {
            "now": round(time.time(), 1),
            "samples": edge.metrics.samples(),
            "stats": {**asdict(stats), "hit_ratio": stats.hit_ratio},
            "capacity": edge.settings.capacity,
            "tier": self._tier(),
            "unknown": sorted(edge.versions.unknown)[:20],
            "faults": edge.metrics.faults,
            "draining": self.draining,
            "version": __version__,
        }

    async def _samples(self, headers: Headers, body: bytes) -> Reply:
        return _json(200, self._state())

    async def _page(self, headers: Headers, body: bytes) -> Reply:
        nonce = secrets.token_urlsafe(16)
        # In a script element: nothing in it may end the element.
        state = json.dumps(self._state()).replace("<", "\\u003c")
        page = files("infercache.edge").joinpath("page.html").read_text("utf-8")
        page = page.replace("{{nonce}}", nonce).replace("{{state}}", state)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        told = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", policy.encode()),
            (b"referrer-policy", b"no-referrer"),
        ]
        return Reply(200, Headers(told), page.encode())

    # ---------------------------------------------------------------------------------------------------------- purges

    async def _invalidate(self, headers: Headers, body: bytes) -> Reply:
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "The body is no JSON.", "bad_json") from None
        try:
            token = await self._edge.cache.ainvalidate(**targets(asked))
        except InvalidArgument as error:
            raise Refused(400, str(error), "bad_purge") from None
        except PurgeFailed as error:
            # Done here in any case; whether elsewhere, the answer says. It may be repeated.
            status = _FAILED.get(error.outcome, 502)
            reply = error_reply(
                status, f"The purge is {error.outcome} at the tier; it may be repeated.", "purge_failed"
            )
            reply.outcome = Outcome(kind="error", detail=error.outcome)
            return reply
        return _text(200, f"{token}\n")


def targets(asked: Any) -> dict[str, Any]:
    """The arguments of `Cache.invalidate` for the JSON of a purge.

    Raises:
        InvalidArgument: it names nothing to purge, or something unknown.
    """
    if not isinstance(asked, dict):
        raise InvalidArgument('give an object, such as {"tags": ["product:42"]}')
    unknown = set(asked) - {"tags", "key", "model", "version", "all", "soft"}
    if unknown:
        raise InvalidArgument(
            f"{min(unknown)[:100]!r} is nothing that a purge has: tags, key, model, version, all, soft"
        )
    tags, model, version = asked.get("tags", []), asked.get("model"), asked.get("version")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags) or len(tags) > _MOST_TAGS:
        raise InvalidArgument(f"tags: give a list of texts, at most {_MOST_TAGS}")
    for name, value in (("model", model), ("version", version), ("key", asked.get("key"))):
        if value is not None and not isinstance(value, str):
            raise InvalidArgument(f"{name}: give text")
    for name in ("all", "soft"):
        if not isinstance(asked.get(name, False), bool):
            raise InvalidArgument(f"{name}: give true or false")
    if version is not None and model is None:
        raise InvalidArgument("version: of which model? Give model too")
    found: dict[str, Any] = {"soft": asked.get("soft", False)}
    if model is not None:
        # Every tenant's entries carry these; what the process memoizes itself has the model's own.
        tags = [*tags, f"edge:model:{model}" if version is None else f"edge:version:{model}={version}"]
        found |= {"model": model, "version": version}
    if tags:
        found["tags"] = tags
    if asked.get("key") is not None:
        found["key"] = Key(asked["key"])
    if asked.get("all"):
        found["all"] = True
    if len(found) == 1:
        raise InvalidArgument("what is to be purged? Give tags, key, model or all")
    return found


def _text(status: int, text: str) -> Reply:
    return Reply(status, Headers([_PLAIN]), text.encode())


def _json(status: int, value: Any) -> Reply:
    return Reply(status, Headers([(b"content-type", b"application/json")]), json.dumps(value).encode() + b"\n")
