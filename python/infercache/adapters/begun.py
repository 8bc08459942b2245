"""When the computations began of which an adapter is told twice only: of the look-up before, and of the store after.

A purge must win over what was being computed when it came, so an answer is stored with a moment at which its
computation had not begun. Libraries do not say which store belongs to which look-up, and ask in other threads and
tasks than they store in; so the oldest look-up of the same question that may still wait for its answer counts. That
errs to one side: an answer of after a purge may not be stored, one of before it is not. An answer whose look-up is not
known (none was asked for, or it is an hour ago) is of the moment at which it is stored.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from infercache.lookup import Stamp

if TYPE_CHECKING:
    from infercache import Cache
    from infercache._core import Key

__all__ = ["KEPT", "LONGEST", "Begun"]

#: A computation that has not ended after so many seconds has failed where others of its question were begun since:
#: nobody tells of those that do.
LONGEST = 600.0
#: After so many seconds it is forgotten in any case.
KEPT = 3_600.0
#: Questions that wait for their answers; beyond it those asked longest ago are forgotten.
_MOST = 65_536
#: Look-ups of one question that wait; beyond it all but the oldest and the newest are one.
_MOST_OF_ONE = 64


class Begun:
    """The look-ups that missed, of one adapter.

    Args:
        cache: whose logical clock counts.
        clock: seconds that only go forward.
    """

    def __init__(self, cache: Cache, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock = clock
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._missed: OrderedDict[Key, list[tuple[Stamp, float]]] = OrderedDict()

    def missed(self, key: Key) -> None:
        """A look-up has missed; whatever its computation gives is of after this moment."""
        if self._process != os.getpid():
            self._forget()  # the child of a fork: its cache began anew, and another thread may have held the lock
        now, stamp = self._clock(), Stamp(self._cache._stamp())
        with self._lock:
            waiting = self._missed.setdefault(key, [])
            waiting.append((stamp, now))
            if len(waiting) > _MOST_OF_ONE:
                del waiting[-2]
            self._missed.move_to_end(key)
            while len(self._missed) > _MOST or next(iter(self._missed.values()))[-1][1] + KEPT <= now:
                self._missed.popitem(last=False)

    def began(self, key: Key) -> Stamp | None:
        """An answer is there: a moment before its computation began; None if no look-up is known."""
        if self._process != os.getpid():
            self._forget()
        now = self._clock()
        with self._lock:
            known = self._missed.pop(key, None)
            if known is None:
                return None
            waiting = [each for each in known if each[1] + LONGEST > now] or known[-1:]
            oldest = waiting[0][0]
            # Whose answer it is nobody says, so it may be the newest's, and the oldest may still be computing.
            waiting.pop()
            if waiting:
                self._missed[key] = waiting
            return oldest
