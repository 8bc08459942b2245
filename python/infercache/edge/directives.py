"""What requests and answers say about being cached: RFC 9111 (`Cache-Control`), 5861 (stale), 9875 (`Cache-Groups`).

The edge is a shared cache whose entries belong to one tenant each, so an answer to a request with `Authorization` may
be kept without `public` (RFC 9111 3.5): nobody but who showed the same credentials gets it, unless the operator shares.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infercache.edge.exchange import Headers, Reply

__all__ = ["AnswerDirectives", "RequestDirectives", "is_conditional"]

#: Headers that make a request conditional or partial (RFC 9110 13.1, 14.2).
_CONDITIONS = frozenset(
    {b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range"}
)
#: Longest time that is told from "for ever", in seconds (RFC 9111 1.2.2).
_LONGEST = 1 << 31
_STRING = re.compile(rb'"((?:[ !#-\[\]-~]|\\[\\"])*)"')


def is_conditional(headers: Headers) -> bool:
    """Whether the request asks for an answer under a condition, or for a part of it."""
    for name, _ in headers.raw:  # noqa: SIM110 - of each request, and half the time of `any`
        if name in _CONDITIONS:
            return True
    return False


def _directives(headers: Headers, name: bytes) -> dict[bytes, bytes | None]:
    """The directives of a field, names in lower case; of one that stands there twice the first."""
    found: dict[bytes, bytes | None] = {}
    for member in headers.all(name):
        directive, given, value = member.partition(b"=")
        found.setdefault(directive.strip().lower(), value.strip().strip(b'"') if given else None)
    return found


def _seconds(value: bytes | None) -> float:
    """Of a directive that is there; what is no number is none: not fresh for any time (RFC 9111 4.2.1)."""
    return float(min(int(value), _LONGEST)) if value is not None and value.isdigit() else 0.0


def _given(directives: dict[bytes, bytes | None], name: bytes) -> float | None:
    return _seconds(directives[name]) if name in directives else None


@dataclass(frozen=True, slots=True)
class RequestDirectives:
    """A request's `Cache-Control` (RFC 9111 5.2.1).

    Attributes:
        no_cache: asks for an answer that is made now.
        no_store: asks that neither the request nor its answer is kept.
        only_if_cached: asks for nothing but what is kept (else 504).
        max_age: of an answer, in seconds; None: any.
        min_fresh: how long it has to stay fresh, in seconds.
        no_transform: no meaning here: answers are not transformed.
    """

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age: float | None = None
    min_fresh: float = 0.0

    @property
    def bounds_age(self) -> bool:
        """Whether not every fresh answer will do."""
        return self.max_age is not None or self.min_fresh > 0

    @classmethod
    def of(cls, headers: Headers) -> RequestDirectives:
        """Of a request's headers."""
        if b"cache-control" not in headers:
            # What came before Cache-Control (RFC 9111 5.4).
            return _PRAGMA if b"no-cache" in headers.all(b"pragma") else _NONE
        given = _directives(headers, b"cache-control")
        max_age = _given(given, b"max-age")
        return cls(
            no_cache=b"no-cache" in given or max_age == 0,
            no_store=b"no-store" in given,
            only_if_cached=b"only-if-cached" in given,
            max_age=max_age,
            min_fresh=_given(given, b"min-fresh") or 0.0,
        )


_NONE = RequestDirectives()
_PRAGMA = RequestDirectives(no_cache=True)


@dataclass(frozen=True, slots=True)
class AnswerDirectives:
    """What an upstream's answer says about being kept.

    Attributes:
        refusal: why it must not be kept, a word for `Cache-Status`; "": it may be.
        life: seconds that it is fresh from now on; None: it says nothing.
        stale_while_revalidate: seconds beyond, or None where it says nothing.
        stale_if_error: likewise.
        age: seconds that it is old already.
        tags: what it may be purged by: `Surrogate-Key`, `Cache-Tag`, `Cache-Groups`.
    """

    refusal: str = ""
    life: float | None = None
    stale_while_revalidate: float | None = None
    stale_if_error: float | None = None
    age: int = 0
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, reply: Reply, vary_known: Collection[bytes]) -> AnswerDirectives:
        """Of an answer. `vary_known`: headers of requests that are part of the key, or of the tenant, anyway."""
        headers = reply.headers
        given = _directives(headers, b"cache-control")
        age = int(_seconds(headers.get(b"age")))
        life = _life(headers, given)
        refusal = _refusal(reply, given, vary_known)
        if life is not None:
            life -= age
            if life <= 0 and not refusal:
                refusal = "not-fresh"
        never_stale = any(name in given for name in (b"must-revalidate", b"proxy-revalidate", b"s-maxage"))
        return cls(
            refusal=refusal,
            life=life,
            stale_while_revalidate=0.0 if never_stale else _given(given, b"stale-while-revalidate"),
            stale_if_error=0.0 if never_stale else _given(given, b"stale-if-error"),
            age=age,
            tags=_tags(headers),
        )


def _refusal(reply: Reply, given: dict[bytes, bytes | None], vary_known: Collection[bytes]) -> str:
    if reply.status != 200:
        return "status"
    if not reply.complete or not isinstance(reply.body, bytes):
        return "incomplete"
    for name in (b"no-store", b"private", b"no-cache"):
        if name in given:
            return name.decode()
    headers = reply.headers
    if b"set-cookie" in headers:
        return "set-cookie"
    if headers.get(
        b"content-encoding",
    ) not in (None, b"identity"):
        return "content-encoding"
    if any(name.lower() not in vary_known for name in headers.all(b"vary")):
        return "vary"
    return ""


def _life(headers: Headers, given: dict[bytes, bytes | None]) -> float | None:
    for name in (b"s-maxage", b"max-age"):
        if name in given:
            return _seconds(given[name])
    expires = headers.get(b"expires")
    if expires is None:
        return None
    date = headers.get(b"date")
    try:
        until = parsedate_to_datetime(expires.decode("latin-1"))
        since = parsedate_to_datetime(date.decode("latin-1")) if date is not None else None
        # Without a date of the same clock nobody knows how long that is.
        return max((until - since).total_seconds(), 0.0) if since is not None else 0.0
    except (ValueError, TypeError):
        return 0.0


def _tags(headers: Headers) -> tuple[str, ...]:
    """The answer's tags, each once. What is no text of ours is left out: it could not be named in a purge."""
    found = [tag for line in headers.lines(b"surrogate-key") for tag in line.split()]
    found += headers.all(b"cache-tag")
    for line in headers.lines(b"cache-groups"):
        found += [re.sub(rb"\\(.)", rb"\1", group) for group in _STRING.findall(line)]
    return tuple(dict.fromkeys(tag.decode("latin-1") for tag in found if tag))
