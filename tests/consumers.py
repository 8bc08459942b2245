"""A process that consumes a stream of events (a scenario for `processes.Worker`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infercache import Cache, RedisTier
from infercache.events import Event, StreamEvents

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker import Line


def tags_of(event: Event) -> list[str]:
    """What the tests' events name."""
    return [f"product:{event.text('product')}"]


def consumer_process(line: Line, l2: str, stream: str, **options: Any) -> dict[str, Callable[..., Any]]:
    """Consumes `stream`, which lies where the URL `stream` says; tells of each event that it was given."""

    def targets(event: Event) -> list[str]:
        line.tell("delivered", event.id)
        return tags_of(event)

    cache = Cache("8MB", l2=l2, timeout="1s")
    events = StreamEvents(cache, "events", "purgers", targets, tier=RedisTier(stream, timeout="1s"), **options)
    return {"start": lambda: events.start() and None, "stats": events.stats}
