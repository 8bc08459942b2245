"""What handlers have in common that ask the upstream for what the cache has not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from infercache.edge.directives import is_conditional
from infercache.edge.exchange import EdgeRequest, Reply, error_reply
from infercache.effects import drive_async
from infercache.errors import InvalidArgument
from infercache.lookup import Token
from infercache.tags import Tags

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.cache import Cache
    from infercache.edge.directives import RequestDirectives
    from infercache.edge.exchange import Headers

__all__ = [
    "MIN_TOKEN",
    "AnswerTags",
    "Unanswered",
    "declines",
    "is_failure",
    "known",
    "must_be_made",
    "passes",
    "reaches",
    "stamped",
    "unsatisfiable",
    "will_do",
]

#: A token (`str(cache.token())`, or what a purge returned): an answer must know of every purge up to it.
MIN_TOKEN = b"infercache-min-token"


class Unanswered(Exception):
    """The upstream's answer is not one that can be kept: it is the client's as it is."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class AnswerTags(Tags):
    """Fixed tags, and those that the upstream's answer names, once it is there.

    Args:
        fixed: known before.
        named: gives those of the answer.
    """

    __slots__ = ("_named",)

    def __init__(self, fixed: list[str], named: Callable[[], tuple[str, ...]]) -> None:
        super().__init__((), (), "")
        self._fixed = fixed
        self._named = named

    @property
    def from_result(self) -> bool:
        return bool(self._named())

    @property
    def needs_arguments(self) -> bool:
        return False

    def after(self, result: object, arguments: Mapping[str, Any]) -> list[str]:
        return list(self._named())


def stamped(headers: Headers, cache: Cache) -> Headers:
    """A request's headers, for a server that caches in the same deployment: its answer is to be as new as ours.

    What it answers from its own memory could be of before a purge that this process knows; stamped with this
    process's moment it would pass for newer. So it is told the moment, and looks whether it knows of it.
    """
    token = None if cache.shared is None else cache.token()
    return headers if token is None or not token.epoch else headers.replacing((MIN_TOKEN, str(token).encode()))


async def reaches(headers: Headers, cache: Cache) -> bool:
    """Whether this process knows of the purge whose token the request brings, if it brings one."""
    given = headers.get(MIN_TOKEN)
    if given is None:
        return True
    if cache.shared is None:
        return False
    try:
        token = Token.parse(given.decode("latin-1"))
        return bool(await drive_async(cache._reach_steps(token, cache._reading())))
    except InvalidArgument:
        return False


def declines(request: EdgeRequest) -> str:
    """Why the caller's own headers let a request pass uncached, a word for `Cache-Status`; "": they do not."""
    if request.directives.no_store:
        return "request"
    return "conditional" if is_conditional(request.headers) else ""


def passes(request: EdgeRequest) -> str:
    """Why a request for items passes uncached, likewise.

    One from a page of another origin needs what the upstream adds to its answers for that origin (CORS).
    """
    why = declines(request)
    if why:
        return why
    return "cross-origin" if b"origin" in request.headers else ""


def will_do(directives: RequestDirectives, age: float, left: float | None) -> bool:
    """Whether an answer of this age, fresh for so many seconds more (None: nobody knows, or for good), is wanted."""
    young = directives.max_age is None or age <= directives.max_age
    return young and (left is None or left >= directives.min_fresh)


def known(
    find: Callable[[float | None, bool], Reply | None], directives: RequestDirectives, stale: float | None
) -> Reply | None:
    """What memory has of a question, if it will do.

    Args:
        find: gives it as a reply, whose outcome has its age and life; it is given for how many seconds beyond its life
            an answer is taken (None: none), and whether this counts as a look-up.
        directives: the request's. Who bounds the age wants nothing stale (RFC 9111 5.2.1).
        stale: seconds beyond their life for which answers are given to everybody else.
    """
    if not directives.bounds_age:
        return find(stale, True)
    found = find(None, False)
    if found is None or not will_do(directives, found.outcome.age or 0.0, found.outcome.ttl):
        return None
    return find(None, True)


def must_be_made(directives: RequestDirectives, cache: Cache, keys: Iterable[Key]) -> bool:
    """Whether the age that a request bounds leaves nothing to be taken from memory or the tier for these keys.

    What memory has would do for another request, but not for this one; what the tier has, nobody knows. Where nothing
    is kept, it may join who asks right now.
    """
    return directives.bounds_age and (cache.shared is not None or any(key in cache for key in keys))


def is_failure(reply: Reply) -> bool:
    """Whether an answer says that the upstream failed, so that a stale one may stand in for it (RFC 5861 4).

    What it says of the request (4xx) is an answer: no credential is let in by what it was let in to before.
    """
    return reply.status >= 500


def unsatisfiable(model: str, items: int = 1) -> Reply:
    """The answer to `only-if-cached` where something is not (RFC 9111 5.2.1.7)."""
    reply = error_reply(504, "Not all of it is cached, and the request asks for nothing else.", "not_cached")
    reply.outcome.items, reply.outcome.model = items, model
    return reply
