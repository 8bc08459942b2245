"""The GET form of declared routes, which a CDN in front can hold: `GET /rank?message={"query":"shoes"}`.

    GET or HEAD  /path?message=JSON             percent-encoded
                 /path?message=…&base64=1       base64url, with or without padding
                 …&encoding=json                may be said, as the Connect protocol's GET form does; nothing else may

is `POST /path` with that JSON, and any other parameters as its query: the same question, under the same key. The
answer has an entity tag (RFC 9110 8.8.3), and says how long a CDN may hold it (RFC 9213) and by what it is purged
there. An answer to a request that shows credentials is for nobody else, so no CDN may hold it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from infercache.edge.directives import AnswerDirectives, is_conditional
from infercache.edge.exchange import EdgeRequest, Headers, Refused, Reply

if TYPE_CHECKING:
    from infercache.edge.forwarding import Forward
    from infercache.edge.question import Question
    from infercache.edge.settings import Settings
    from infercache.edge.whole import Whole

__all__ = ["GetForm"]

#: What a tag may consist of where spaces and commas part them; the rest is percent-encoded.
_IN_TAGS = ":/=@"
#: Headers of a request that are about the message it has not.
_OF_MESSAGES = (b"content-type", b"content-length", b"transfer-encoding")


class GetForm:
    """Answers GET and HEAD for one declared route.

    Args:
        settings: the edge's.
        whole: answers its POST.
    """

    def __init__(self, settings: Settings, whole: Whole) -> None:
        self._whole = whole
        self._cdn_ttl = int(settings.cdn_ttl)
        identity = [name.encode() for name in settings.identity]
        if settings.tenant_header is not None:
            identity.append(settings.tenant_header.encode())
        self._identity = frozenset(identity)
        self._vary = b", ".join([*(() if settings.sharing == "all" else identity), b"origin"])

    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply | None:
        """The answer; None: the request is not of this form."""
        asked = _as_post(request)
        if asked is None:
            return None
        reply, question = await self._whole.exchange(asked, forward)
        self._tell_caches(request, reply, question)
        if reply.status != 200 or not isinstance(reply.body, bytes):
            return reply
        tag = b'"%b"' % base64.urlsafe_b64encode(hashlib.blake2b(reply.body, digest_size=15).digest())
        reply.headers = reply.headers.replacing((b"etag", tag))
        if _is_known(request.headers, tag):
            reply.status, reply.body = 304, b""
            reply.headers = Headers([pair for pair in reply.headers if not pair[0].startswith(b"content-")])
        elif request.method == "HEAD":
            reply.headers = reply.headers.replacing((b"content-length", b"%d" % len(reply.body)))
            reply.body = b""
        return reply

    def _tell_caches(self, request: EdgeRequest, reply: Reply, question: Question | None) -> None:
        """Says how long which caches may hold it, and its tags."""
        outcome = reply.outcome
        said = AnswerDirectives.of(Reply(reply.status, reply.headers), self._whole.vary_known)
        public = not any(name in self._identity for name, _ in request.headers)
        headers = reply.headers
        if b"cache-control" not in headers:
            # Whoever knows nothing of the header for CDNs asks each time, and mostly gets a 304.
            headers = headers.plus((b"cache-control", b"no-cache" if public else b"private, no-cache"))
        held = b"no-store"
        if question is not None and outcome.ttl is not None and reply.status == 200 and isinstance(reply.body, bytes):
            if public and self._cdn_ttl:
                held = self._life(outcome.age or 0.0, outcome.ttl, said)
            tags = [tag for tag in question.tags if not tag.startswith("edge:tenant:")]
            named = [quote(tag, _IN_TAGS).encode() for tag in dict.fromkeys([*tags, *said.tags])]
            headers = headers.replacing((b"cache-tag", b",".join(named)), (b"surrogate-key", b" ".join(named)))
        headers = headers.replacing((b"vary", b", ".join([*headers.lines(b"vary"), self._vary])))
        reply.headers = headers.replacing((b"cdn-cache-control", held))

    def _life(self, age: float, left: float, said: AnswerDirectives) -> bytes:
        revalidate, rescue = self._whole.lives.stale(said)
        # `Age` counts against it.
        parts = [b"max-age=%d" % (int(age) + min(int(left), self._cdn_ttl))]
        for name, seconds in ((b"stale-while-revalidate", revalidate), (b"stale-if-error", rescue)):
            if seconds >= 1:
                parts.append(b"%b=%d" % (name, int(seconds)))
        return b", ".join(parts)


def _as_post(request: EdgeRequest) -> EdgeRequest | None:
    """The POST that a GET stands for; None: it is no such GET.

    Raises:
        Refused: it is one, but malformed.
    """
    given: dict[bytes, bytes] = {}
    others = []
    for pair in request.query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name not in (b"message", b"base64", b"encoding"):
            others.append(pair)
        elif name in given:
            raise Refused(400, f"The parameter {name.decode()} is there twice.", "bad_get_form")
        else:
            given[name] = unquote_to_bytes(value.replace(b"+", b" "))
    if b"message" not in given:
        return None
    body = given[b"message"]
    if given.get(b"encoding", b"json") != b"json":
        raise Refused(400, "The only encoding of a message is json.", "bad_get_form")
    if given.get(b"base64", b"0") not in (b"0", b"1"):
        raise Refused(400, "Give base64=1 for a message in base64url, or leave it out.", "bad_get_form")
    if given.get(b"base64") == b"1":
        bare = body.rstrip(b"=")
        try:
            if b"+" in bare or b"/" in bare:
                raise binascii.Error
            body = base64.b64decode(bare + b"=" * (-len(bare) % 4), b"-_", validate=True)
        except binascii.Error:
            raise Refused(400, "The message is no base64url.", "bad_get_form") from None
    query = b"&".join(each for each in others if each)
    headers = [pair for pair in request.headers if pair[0] not in _OF_MESSAGES and not is_conditional(Headers([pair]))]
    headers.append((b"content-type", b"application/json"))
    scope = {**request.scope, "method": "POST", "query_string": query, "headers": headers}
    return replace(request, method="POST", query=query, headers=Headers(headers), body=body, scope=scope)


def _is_known(headers: Headers, tag: bytes) -> bool:
    """Whether the client has it already (RFC 9110 13.1.2): the comparison is weak."""
    return any(given in (b"*", tag) or given.removeprefix(b"W/") == tag for given in headers.all(b"if-none-match"))
