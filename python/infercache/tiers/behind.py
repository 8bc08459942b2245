"""Writing behind: commands wait in a bounded queue and one thread sends them, so that nobody waits for a store.

What finds the queue full is dropped and counted, and so is what the server cannot be told: a store that is lost costs a
computation later, never a wrong answer. The thread ends when there has been nothing to do for a while.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from infercache.errors import TierError, TierUnavailable

if TYPE_CHECKING:
    from infercache.tiers.commands import Command
    from infercache.tiers.node import Counts

__all__ = ["Behind"]

#: What one pipeline takes at most: replies come together, and the budget is one operation's.
_MOST_COMMANDS = 128
_MOST_BYTES = 1 << 20
#: Seconds that the thread waits for more before it ends.
_IDLE = 5.0


class Behind:
    """The queue of a tier.

    Args:
        send: one exchange.
        counts: gets `dropped_writes` and `failed_writes`.
        most: commands that may wait.
        most_bytes: bytes that they may hold.
    """

    def __init__(
        self, send: Callable[[Sequence[Command]], list[Any]], counts: Counts, most: int, most_bytes: int
    ) -> None:
        self._send = send
        self._counts = counts
        self._most = most
        self._most_bytes = most_bytes
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[tuple[Command, int]] = deque()
        self._bytes = 0
        self._taken_in = 0  # commands, ever
        self._done = 0
        self._is_running = False
        self._shut = False

    def put(self, commands: Sequence[Command]) -> bool:
        """Queues all of them, in order, or none: False and counted if they do not fit."""
        sized = [(command, _bytes_of(command)) for command in commands]
        total = sum(size for _, size in sized)
        with self._changed:
            fits = len(self._queue) + len(sized) <= self._most and self._bytes + total <= self._most_bytes
            if self._shut or not fits or not self._has_thread():
                self._counts.add("dropped_writes", len(sized))
                return False
            self._queue.extend(sized)
            self._bytes += total
            self._taken_in += len(sized)
            self._changed.notify_all()
            return True

    def flush(self, timeout: float) -> bool:
        """Waits until what was queued before has been sent, or dropped. False: not by the timeout (seconds)."""
        deadline = time.monotonic() + timeout
        with self._changed:
            until = self._taken_in
            while self._done < until:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def close(self, timeout: float) -> bool:
        """Takes nothing more, and flushes. What is then left is dropped and counted."""
        with self._changed:
            self._shut = True
            self._changed.notify_all()
        flushed = self.flush(timeout)
        with self._changed:
            self._counts.add("dropped_writes", len(self._queue))
            self._done += len(self._queue)
            self._queue.clear()
            self._bytes = 0
            self._changed.notify_all()
        return flushed

    def _has_thread(self) -> bool:
        if not self._is_running:
            thread = threading.Thread(target=self._work, name="infercache-tier-writes", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is going down
                return False
            self._is_running = True
        return True

    def _work(self) -> None:
        while batch := self._next():
            try:
                replies = self._send(batch)
            except TierUnavailable:
                self._counts.add("dropped_writes", len(batch))
            except Exception:  # noqa: BLE001 - one command that cannot be sent must not end the thread
                self._counts.add("failed_writes", len(batch))
            else:
                failed = sum(isinstance(reply, TierError) for reply in replies)
                if failed:
                    self._counts.add("failed_writes", failed)
            with self._changed:
                self._done += len(batch)
                self._changed.notify_all()

    def _next(self) -> list[Command]:
        """What the next pipeline sends; empty: the thread ends."""
        with self._changed:
            if not self._queue and not self._shut:
                self._changed.wait_for(lambda: self._queue or self._shut, _IDLE)
            batch: list[Command] = []
            size = 0
            while self._queue and len(batch) < _MOST_COMMANDS and size < _MOST_BYTES:
                command, length = self._queue.popleft()
                batch.append(command)
                size += length
            self._bytes -= size
            if not batch:
                self._is_running = False
            return batch


def _bytes_of(command: Command) -> int:
    # A str is counted by its length: keys are ASCII, and values come as bytes.
    total = 0
    for argument in command.args:
        if isinstance(argument, memoryview):
            total += argument.nbytes
        else:
            total += len(argument) if isinstance(argument, bytes | str) else 8
    return total
