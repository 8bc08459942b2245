"""What handlers have in common that ask the upstream for what the cache has not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from infercache import _core
from infercache.edge.exchange import EdgeRequest, Forward, Outcome, Refused, Reply, error_reply
from infercache.tags import Tags

if TYPE_CHECKING:
    from infercache.edge.versions import Versions

__all__ = ["AnswerTags", "Unanswered", "bypass", "check_depth", "is_failure", "unsatisfiable"]


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


def check_depth(text: bytes, most: int) -> None:
    """Looks how deep JSON is nested before anything else is done with it.

    Raises:
        Refused: too deep.
    """
    if _core.json_depth(text) > most:
        raise Refused(400, f"The JSON is nested more than {most} deep.", "json_too_deep")


def is_failure(reply: Reply) -> bool:
    """Whether an answer says that the upstream failed, so that a stale one may stand in for it (RFC 5861 4).

    What it says of the request (4xx) is an answer: no credential is let in by what it was let in to before.
    """
    return reply.status >= 500


async def bypass(
    request: EdgeRequest, forward: Forward, versions: Versions, outcome: Outcome, *, learns: bool = False
) -> Reply:
    """Passes a request through. `learns`: its answer may tell a version that was not known."""
    reply = await forward(request, stream=True)
    reply.outcome = outcome
    if learns:
        await versions.after(outcome.model, request, reply)
    return reply


def unsatisfiable(model: str, items: int = 1) -> Reply:
    """The answer to `only-if-cached` where something is not (RFC 9111 5.2.1.7)."""
    reply = error_reply(504, "Not all of it is cached, and the request asks for nothing else.", "not_cached")
    reply.outcome.items, reply.outcome.model = items, model
    return reply
