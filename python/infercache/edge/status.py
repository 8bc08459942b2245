"""What an answer says about how it came: `Cache-Status` (RFC 9211) and `Age` (RFC 9111 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infercache.edge.exchange import EdgeRequest, Outcome, Reply

__all__ = ["NAME", "cache_status", "finish"]

#: What this cache calls itself.
NAME = "infercache"
#: Why a request went forward, by the kind of its outcome.
_FORWARD = {"miss": "miss", "partial": "partial", "bypass": "bypass", "uncached": "bypass", "error": "miss"}


def cache_status(outcome: Outcome, status: int) -> bytes:
    """One member of the list that `Cache-Status` is."""
    parts = [NAME]
    if outcome.kind in ("hit", "stale"):
        parts.append("hit")
        if outcome.ttl is not None:
            parts.append(f"ttl={int(outcome.ttl)}")
    else:
        parts.append(f"fwd={'request' if outcome.detail == 'request' else _FORWARD.get(outcome.kind, 'bypass')}")
        if status:
            parts.append(f"fwd-status={status}")
        if outcome.collapsed:
            parts.append("collapsed")
        if outcome.stored:
            parts.append("stored")
    detail = [f"hits={outcome.hits}/{outcome.items}"] if outcome.kind == "partial" else []
    detail += [outcome.detail] if outcome.detail and outcome.detail != "request" else []
    if detail:
        text = ", ".join(detail)
        # RFC 9211 2.8: a token or a string; ours hold no quote and no backslash.
        parts.append(f'detail="{text}"' if len(detail) > 1 or not _is_token(text) else f"detail={text}")
    return "; ".join(parts).encode("ascii", "replace")


def _is_token(text: str) -> bool:
    return text[:1].isalpha() and all(c.isalnum() or c in "-_.*" for c in text)


def finish(request: EdgeRequest, reply: Reply) -> Reply:
    """Adds to an answer what it says of its way. Caches nearer to the model have said theirs first (RFC 9211 2)."""
    outcome = reply.outcome
    raw = list(reply.headers.raw)
    if outcome.kind in ("hit", "stale") or (outcome.age and outcome.hits):
        raw = [pair for pair in raw if pair[0] != b"age"]
        raw.append((b"age", b"%d" % int(outcome.age or 0)))
    raw.append((b"cache-status", cache_status(outcome, reply.status)))
    reply.headers = type(reply.headers)(raw)
    return reply
