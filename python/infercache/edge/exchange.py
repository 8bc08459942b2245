"""What the parts of the edge say to each other: a request, the answer to it, and who is asked for it.

    Headers      names and values as they stand on the wire, names in lower case
    EdgeRequest  a request whose body has arrived, with the tenant that the server derived
    Reply        an answer, whole or as it arrives, with its `Outcome`: what the cache had to do with it
    Handler      answers the requests of one route: from the cache, by asking (`forwarding.Forward`), or not at all

and what they raise: `Refused` (an answer of the edge's own, 4xx), `ClientGone`, `CutShort`, `InnerFailed`.

Bytes stay bytes: nothing here decodes what it need not understand.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.edge.directives import RequestDirectives
    from infercache.edge.forwarding import Forward

__all__ = [
    "App",
    "ClientGone",
    "CutShort",
    "EdgeRequest",
    "Handler",
    "Headers",
    "InnerFailed",
    "Message",
    "Outcome",
    "Receive",
    "Refused",
    "Reply",
    "Scope",
    "Send",
    "error_reply",
]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Pair: TypeAlias = tuple[bytes, bytes]


class ClientGone(ConnectionError):
    """Whoever asked has closed the connection, and the inner application gave up for that: nobody waits any more."""


class CutShort(ConnectionError):
    """An answer ended before it was whole. What came of it is stored nowhere, and the client must see the break."""


class InnerFailed(Exception):
    """The inner application raised before it began an answer; its exception is the cause. The client gets that."""


class Refused(Exception):
    """The edge's own answer to a request that it does not accept: a limit, a malformed body.

    Args:
        status: 4xx or 5xx.
        message: for a person; no input in it beyond what names the fault.
        code: for a program.
        headers: more of them.
    """

    def __init__(self, status: int, message: str, code: str, *headers: Pair) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers

    def reply(self) -> Reply:
        """It as an answer."""
        return error_reply(self.status, str(self), self.code, *self.headers)


class Headers:
    """Header fields in their order, immutable. Names are looked up in lower case, which is how they are given, too.

    Args:
        raw: pairs of name and value. Names in lower case, as ASGI has them in requests; `of` takes others.
    """

    __slots__ = ("raw",)

    raw: list[Pair]

    def __init__(self, raw: Iterable[Pair] = ()) -> None:
        self.raw = raw if type(raw) is list else list(raw)

    @classmethod
    def of(cls, raw: Iterable[Iterable[bytes]]) -> Headers:
        """Of pairs as applications give them: any iterables, names in any case."""
        return cls([(bytes(name).lower(), bytes(value)) for name, value in raw])

    def get(self, name: bytes) -> bytes | None:
        """The first value of the field, or None. For what may stand in several lines: `all`, `lines`."""
        for known, value in self.raw:
            if known == name:
                return value
        return None

    def lines(self, name: bytes) -> list[bytes]:
        """The values of the field as they stand, one a line."""
        return [value for known, value in self.raw if known == name]

    def all(self, name: bytes) -> list[bytes]:
        """The members of a field that is a list (RFC 9110 5.6.1): of every line, without the white space around them.

        Commas within quoted strings part nothing; empty members are left out.
        """
        return [member for value in self.lines(name) for member in _members(value)]

    def without(self, *names: bytes) -> Headers:
        """The others."""
        return Headers([pair for pair in self.raw if pair[0] not in names])

    def plus(self, *pairs: Pair) -> Headers:
        """These, and more after them."""
        return Headers([*self.raw, *pairs])

    def replacing(self, *pairs: Pair) -> Headers:
        """These, with the fields of the pairs' names in place of those that were there."""
        return self.without(*(name for name, _ in pairs)).plus(*pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __contains__(self, name: object) -> bool:
        for known, _ in self.raw:  # noqa: SIM110 - several times a request, and half the time of `any`
            if known == name:
                return True
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(tuple(self.raw))

    def __repr__(self) -> str:
        # Names only: a value may be a credential.
        return f"<Headers {b', '.join(name for name, _ in self.raw).decode('latin-1')}>"


def _members(value: bytes) -> Iterator[bytes]:
    if b'"' not in value:
        parts = value.split(b",")
    else:
        parts, start, quoted, escaped = [], 0, False, False
        for place, byte in enumerate(value):
            if escaped:
                escaped = False
            elif quoted and byte == 0x5C:  # a backslash
                escaped = True
            elif byte == 0x22:
                quoted = not quoted
            elif byte == 0x2C and not quoted:
                parts.append(value[start:place])
                start = place + 1
        parts.append(value[start:])
    return (part for part in (each.strip(b" \t") for each in parts) if part)


@dataclass(slots=True)
class EdgeRequest:
    """A request whose body has arrived.

    Attributes:
        method: in upper case.
        path: decoded, as ASGI has it; `raw_path` as it stood, without the query.
        raw_path: see `path`.
        query: as it stood, without the question mark.
        headers: as they came.
        body: whole, within the limit.
        scope: ASGI's.
        tenant: whose entries it may see: hexadecimal digits that the server derived, never what the caller claims.
        credential: a hash of what identifies the caller.
        directives: what its `Cache-Control` asks for.
        deadline: when the answer has to be there (time of the loop); None: whenever.
        proven: the upstream has let this credential in within `auth_ttl`. If not, this very request has to reach the
            upstream before anything is given out, or one of the same credential (`proving`): no hit, and no flight
            that another request leads; what it stores others may have. (The middleware throws away an answer that was
            made otherwise.)
        excused: not proven, but was once: where the upstream fails, an answer may stand in (stale-if-error).
    """

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    body: bytes
    scope: Scope
    tenant: str
    credential: bytes
    directives: RequestDirectives
    deadline: float | None = None
    proven: bool = True
    excused: bool = True

    @property
    def proves(self) -> bool:
        """Whether its credential is yet to be let in, by this request or by another one that asks the same."""
        return not (self.proven or self.directives.no_cache or self.directives.only_if_cached)


@dataclass(slots=True)
class Outcome:
    """What the cache had to do with an answer: for `Cache-Status`, the counters and the log.

    Attributes:
        kind: "hit", "partial" (some items of a batch), "miss", "stale", "bypass" (understood, and not to be cached),
            "uncached" (not understood, or the route has no handler), "error".
        items: questions that the request holds; of a batch, its items.
        hits: those answered from the cache.
        model: as the caller named it; "" where nothing is known.
        route: as the table names it, so that there are few: "/v2/models/*/infer".
        age: seconds since the answer was computed, of a hit.
        ttl: seconds that the answer stays fresh, of a hit; None: nobody knows, or until evicted.
        detail: a word for `Cache-Status`, such as "version-unknown"; never input.
        stored: whether the answer is kept now.
        saved_seconds: what computing it took when it was computed, of a hit.
        collapsed: another request's question to the upstream answered this one.
        keys: of the questions, where they are questions that a cache is asked; for the log.
        stored_bytes: of their answers as they are stored, together, about; 0: nobody knows.
        upstream_seconds: what computing took now, of what was missing.
    """

    kind: str = "uncached"
    items: int = 1
    hits: int = 0
    model: str = ""
    route: str = ""
    age: float | None = None
    ttl: float | None = None
    detail: str = ""
    stored: bool = False
    saved_seconds: float = 0.0
    collapsed: bool = False
    keys: Sequence[Key] = ()
    stored_bytes: int = 0
    upstream_seconds: float = 0.0


@dataclass(slots=True)
class Reply:
    """An answer.

    Attributes:
        status: of HTTP.
        headers: without those that belong to one connection (hop-by-hop).
        body: whole; or as it arrives, to be iterated over once. Where it breaks off, iterating raises `CutShort`.
            Whoever does not iterate to the end calls `aclose`, which gives up what the inner application does.
        complete: whether it is all there. Of a stream: False, until its end has come.
        outcome: what the cache had to do with it.
    """

    status: int
    headers: Headers
    body: bytes | AsyncIterator[bytes] = b""
    complete: bool = True
    outcome: Outcome = field(default_factory=Outcome)

    async def aclose(self) -> None:
        """Gives up a stream: nobody wants the rest."""
        close = getattr(self.body, "aclose", None)
        if close is not None:
            await close()


class Handler(Protocol):
    """Answers the requests of one route."""

    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply | None:
        """The answer; None: not understood, which is passed through uncached, and counted.

        Whatever it raises but `Refused`, `ClientGone` and `InnerFailed` is a fault of the cache, which fails no
        inference: the request is passed through, and the fault is counted and logged.
        """
        ...


def error_reply(status: int, message: str, code: str, *headers: Pair) -> Reply:
    """An error as OpenAI's API has it, which clients of the other protocols read as well."""
    kind = "invalid_request_error" if status < 500 else "api_error"
    # The Open Inference Protocol has a text under "error"; its clients show whatever JSON stands there.
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    return Reply(
        status,
        Headers([(b"content-type", b"application/json"), *headers]),
        body,
        outcome=Outcome(kind="error", detail=code),
    )
