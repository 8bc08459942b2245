"""A doorbell: a subscription that says "look", and whose silence says nothing.

A message may be lost at any time, so a follower also looks when nothing rang; the bell only makes it look sooner. What
was lost while the connection was down cannot be known, so the bell rings once when it has subscribed again.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hiredis

from infercache.errors import TierUnavailable
from infercache.tiers.polling import any_readable

if TYPE_CHECKING:
    from infercache.tiers.blocking import BlockingWire
    from infercache.tiers.node import Counts

__all__ = ["Doorbell"]

#: Seconds of silence after which the server is asked whether it is still there.
_SILENCE = 10.0
#: Seconds between attempts to connect: doubled each time up to the second, jittered over the upper half.
_PAUSES = (0.1, 3.0)


class Doorbell:
    """Listens to one channel; for one thread that waits, and any that closes.

    Args:
        channel: its name.
        connect: opens a connection by a deadline (monotonic), or raises `TierUnavailable`.
        timeout: seconds for one attempt to connect, and for the answer to a question whether the server is there.
        counts: gets `doorbell_reconnects`.
    """

    def __init__(self, channel: str, connect: Callable[[float], BlockingWire], timeout: float, counts: Counts) -> None:
        self._channel = channel
        self._connect = connect
        self._timeout = timeout
        self._counts = counts
        self._wire: BlockingWire | None = None
        self._was_connected = False
        self._pause = _PAUSES[0]
        self._retry_at = 0.0
        self._heard_at = 0.0  # when something last came
        self._asked_at: float | None = None  # when the server was asked whether it is there, until something comes
        self._closed = threading.Event()
        self._woken, self._waker = socket.socketpair()

    @property
    def is_connected(self) -> bool:
        """Whether the subscription stands, as far as is known."""
        return self._wire is not None

    def wait(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds. True: it rang, or may have rung while the connection was down.

        Several rings that came together are one. After `close` it returns False at once. It never raises for a fault
        of the network: it connects again by itself, meanwhile it waits.
        """
        deadline = time.monotonic() + timeout
        while not self._closed.is_set():
            try:
                rang = self._once(deadline)
            except TierUnavailable:
                self._lose()
                rang = None
            if rang is not None:
                return rang
        self._release()
        return False

    def close(self) -> None:
        """Ends it, and a wait on another thread promptly. A second time does nothing.

        The connection belongs to the thread that waits, and is closed by it, or with the object.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        try:
            self._waker.send(b"x")
        except OSError:
            return

    def _release(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def __del__(self) -> None:
        wire = getattr(self, "_wire", None)
        for one in (wire, getattr(self, "_woken", None), getattr(self, "_waker", None)):
            if one is not None:
                one.close()

    def _once(self, deadline: float) -> bool | None:
        """One step; None: nothing to tell yet."""
        now = time.monotonic()
        if self._wire is None:
            if now < self._retry_at:
                self._sleep(min(deadline, self._retry_at) - now)
                return False if time.monotonic() >= deadline else None
            self._subscribe()
            if self._was_connected:
                self._counts.add("doorbell_reconnects")
                return True
            self._was_connected = True
        rang = self._drain()
        if rang:
            return True
        now = time.monotonic()
        if now >= deadline:
            return False
        if self._asked_at is not None and now >= self._asked_at + self._timeout:
            raise TierUnavailable("the server is silent", sent=False, reason="timeout")
        if self._asked_at is None and now >= self._heard_at + _SILENCE:
            self._ask(now)
        next_look = self._heard_at + _SILENCE if self._asked_at is None else self._asked_at + self._timeout
        self._sleep(min(deadline, next_look) - now)
        return None

    def _subscribe(self) -> None:
        wire = self._connect(time.monotonic() + self._timeout)
        try:
            wire.send_only(hiredis.pack_command(("SUBSCRIBE", self._channel)), time.monotonic() + self._timeout)  # type: ignore[arg-type]
            reply = wire.read_push(time.monotonic() + self._timeout)
            if reply is None or reply[0] != b"subscribe":
                raise TierUnavailable(f"SUBSCRIBE was answered {reply!r}", sent=False, reason="protocol")
        except BaseException:
            wire.close()
            raise
        self._wire = wire
        self._pause = _PAUSES[0]
        self._heard_at, self._asked_at = time.monotonic(), None

    def _drain(self) -> bool:
        """Reads all that has come; whether a message was among it."""
        rang = False
        assert self._wire is not None  # noqa: S101 - only called while connected
        while (reply := self._wire.read_push(0.0)) is not None:
            self._heard_at, self._asked_at = time.monotonic(), None
            rang = rang or reply[0] == b"message"
        return rang

    def _ask(self, now: float) -> None:
        assert self._wire is not None  # noqa: S101 - only called while connected
        self._wire.send_only(hiredis.pack_command(("PING",)), now + self._timeout)
        self._asked_at = now

    def _lose(self) -> None:
        self._release()
        self._retry_at = time.monotonic() + random.uniform(self._pause / 2, self._pause)  # noqa: S311 - a jitter
        self._pause = min(2 * self._pause, _PAUSES[1])

    def _sleep(self, seconds: float) -> None:
        """Waits for the connection or for `close`."""
        watched: list[Any] = [self._woken] if self._wire is None else [self._woken, self._wire]
        any_readable(watched, max(0.0, seconds))
