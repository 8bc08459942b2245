"""Waiting for sockets to be readable or writable, with no limit on their descriptors where the system has `poll`."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["IN", "OUT", "any_readable", "poller"]

#: Events; Windows has no names for them.
IN, OUT = 1, 4


def poller(sock: Any) -> Callable[[int, float], bool]:
    """`poll(event, seconds)`: waits until a socket is readable or writable, or broken; whether it is."""
    if hasattr(select, "poll"):
        reading, writing = select.poll(), select.poll()  # kept: registering costs more than asking
        reading.register(sock, select.POLLIN)
        writing.register(sock, select.POLLOUT)

        def poll(event: int, seconds: float) -> bool:
            return bool((reading if event == IN else writing).poll(seconds * 1_000))

        return poll

    def wait(event: int, seconds: float) -> bool:
        reads, writes = ([sock], []) if event == IN else ([], [sock])
        return any(select.select(reads, writes, [sock], seconds))

    return wait


def any_readable(watched: Sequence[Any], seconds: float) -> None:
    """Waits until one of several sockets is readable, or broken, or the time is over."""
    if not hasattr(select, "poll"):
        select.select(watched, [], [], seconds)
        return
    poll = select.poll()
    for one in watched:
        poll.register(one, select.POLLIN)
    poll.poll(seconds * 1_000)
