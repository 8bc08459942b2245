"""A circuit breaker: a server that keeps failing is left alone, and tried again by one caller at a time.

    closed ── failures, many and most of the calls ──▶ open
      ▲                                                 │ a pause, longer each time, jittered
      └── the probe succeeds ──── half open ◀───────────┘
                                      └── the probe fails ──▶ open

A window begins with a failure that finds none and lasts `window` seconds. The breaker opens when within it at least
`failures` calls failed and they are at least the share `rate` of the calls that ended in it: the count alone would open
it for a busy process that loses one call in a thousand, the share alone for an idle one that loses its only call.
While nothing fails there is no window, and a success takes no lock.

Calls carry a permit, the number of the period that they began in; what ends in a later period says nothing about it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

__all__ = ["Breaker"]


class Breaker:
    """The breaker of one server, shared by threads and event loops.

    Args:
        failures: how many in a window open it. 5: a lost connection for each of a few threads is not an outage.
        rate: which share of the window's calls they are at least. One half.
        window: its length in seconds. 10: at the default budget, five timeouts in a row fit well within.
        shortest_pause: seconds before the first probe.
        longest_pause: each failed probe doubles the pause, up to this. With 3 s a server that is back is used again
            within 5 s wherever there are callers, the probe's own time included.
        clock: monotonic seconds.
        uniform: gives a number in [low, high): each pause is jittered over its upper half, so that processes that lost
            a server together do not come back together.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        rate: float = 0.5,
        window: float = 10.0,
        shortest_pause: float = 0.5,
        longest_pause: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._limits = (failures, rate, window)
        self._pauses = (shortest_pause, longest_pause)
        self._clock = clock
        self._uniform = uniform
        self._lock = threading.Lock()
        self._period = 0  # counts the changes of state; a permit is its number
        self._opened = False  # open or half open
        self._probing = False
        self._resumes = 0.0  # when an open one lets a probe through, or a probe that never reports is given up
        self._pause = shortest_pause
        self._window_ends: float | None = None
        self._failed = 0
        self._ended = 0
        #: How often it opened from closed.
        self.openings = 0

    @property
    def refuses(self) -> bool:
        """Whether a call would be refused now. False as soon as a probe is due: whoever asks first may be the probe."""
        return self._opened and self._clock() < self._resumes

    def enter(self) -> int | None:
        """Asks for one call. A permit, to be handed to exactly one of the three below; None: do not call."""
        if not self._opened:
            return self._period
        with self._lock:
            if not self._opened:
                return self._period
            if self._clock() < self._resumes:
                return None
            # Half open: this call is the probe. Should it never report, another is let through after a longest pause.
            self._probing = True
            self._resumes = self._clock() + self._pauses[1]
            self._period += 1
            return self._period

    def succeeded(self, permit: int) -> None:
        """The server answered, whatever it said."""
        if self._window_ends is None and not self._opened:
            return
        with self._lock:
            if permit != self._period:
                return
            if self._opened:
                if self._probing:
                    self._close()
            elif self._window_ends is not None:
                if self._clock() >= self._window_ends:
                    self._window_ends = None
                else:
                    self._ended += 1

    def failed(self, permit: int) -> None:
        """The server could not be reached, or did not answer in time."""
        with self._lock:
            if permit != self._period:
                return
            if self._opened:
                if self._probing:
                    self._pause = min(2 * self._pause, self._pauses[1])
                    self._open()
                return
            failures, rate, window = self._limits
            now = self._clock()
            if self._window_ends is None or now >= self._window_ends:
                self._window_ends, self._failed, self._ended = now + window, 0, 0
            self._failed += 1
            self._ended += 1
            if self._failed >= failures and self._failed >= rate * self._ended:
                self.openings += 1
                self._pause = self._pauses[0]
                self._open()

    def abandoned(self, permit: int) -> None:
        """The call ended without telling anything: it was cancelled, or never got a connection. Another may probe."""
        if not self._opened:
            return
        with self._lock:
            if permit == self._period and self._probing:
                self._probing = False
                self._resumes = self._clock()

    def _open(self) -> None:
        self._opened = True
        self._probing = False
        self._period += 1
        self._window_ends = None
        self._resumes = self._clock() + self._uniform(self._pause / 2, self._pause)

    def _close(self) -> None:
        self._opened = False
        self._probing = False
        self._period += 1
        self._window_ends = None
        self._pause = self._pauses[0]
