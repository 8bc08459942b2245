"""Leases: one computation of a key at a time across processes, where that is asked for.

    miss ─ take the key's lease ─┬─ taken: run, store, give it back and ring
                                 ├─ another process has it: wait for the bell, or a while ─ look again ─ …
                                 └─ the server does not answer: run

A lease is a key of the shared tier that holds a token nobody else has, and is over by itself (`PX`) if its holder is
killed, or stopped for longer. While the model runs a thread renews it. It only saves work: nothing that is served or
stored asks whether somebody has a lease, so two that compute a key at once are as right as one.

Whoever might be waited for waits for nobody, so that no cycle of waits goes through several processes: a computation
within another one, and a blocking call on an event loop's thread, take the lease if it is free, and run either way. A
batch computes what it has leases of, and gives them back, before it waits for the rest.
"""

from __future__ import annotations

import _thread
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from infercache.coherence import Exchange
from infercache.effects import Effect, Failure, Steps, _wake
from infercache.errors import TierError, TierUnavailable
from infercache.tiers import Command, Script

if TYPE_CHECKING:
    from infercache.shared import Budget
    from infercache.tiers import RedisTier

__all__ = ["ELSEWHERE", "Lease", "Leases", "Waiting", "pauses"]

#: Another process has the lease.
ELSEWHERE: Any = object()

#: Leases that are renewed, and waited for, no longer than so many times their length: a model that hangs in one process
#: holds up others for that long.
LONGEST = 10
#: Seconds between two looks of a waiter: doubled up to the second, jittered.
PAUSES = (0.05, 1.0)
#: Seconds that the threads wait for more to do before they end.
IDLE = 2.0
#: Seconds in which the rings of many leases count as one.
STORM = 0.005

_RENEW = Script(
    b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
)
_GIVE_BACK = Script(
    b"if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end redis.pcall('PUBLISH', ARGV[2], '')"
)


class Lease:
    """One lease that this process has taken, or may have.

    Attributes:
        name: the key of the shared tier.
        token: what it holds.
        until: when (monotonic) it is renewed no more.
    """

    __slots__ = ("name", "token", "until")

    def __init__(self, name: str, until: float) -> None:
        self.name = name
        self.token = os.urandom(16)
        self.until = until


class Leases:
    """The leases of one cache.

    Args:
        tier: the server.
        bell: the channel that rings when one is given back.
        seconds: how long one holds without being renewed.
        budget: seconds of one operation.
    """

    def __init__(self, tier: RedisTier, bell: str, seconds: float, budget: float) -> None:
        self._tier = tier
        self._bell = bell
        self._milliseconds = max(1, round(seconds * 1_000))
        self.longest = LONGEST * seconds
        self.budget = budget
        self.begin_anew()

    def begin_anew(self) -> None:
        """In the child of a fork, and at first: none is held, nobody waits, and there are no threads."""
        self._changed = threading.Condition(threading.Lock())
        self._held: dict[str, Lease] = {}
        self._given_back: list[Lease] = []
        self._waiters: set[Callable[[], None]] = set()
        self._has_keeper = self._has_listener = False

    def acquire(self, names: Sequence[str], budget: Budget) -> Steps:
        """Takes the leases of these names that nobody has, in one pipeline, and renews them from now on.

        For each name its lease; `ELSEWHERE`: another process has it; None: the server does not say. A `Failure` if it
        was interrupted.
        """
        until = time.monotonic() + self.longest
        leases = [Lease(name, until) for name in names]
        unsure = leases
        try:
            began = time.monotonic()
            take = [Command("SET", lease.name, lease.token, "NX", "PX", self._milliseconds) for lease in leases]
            replies = yield Exchange(self._tier, take, budget.left)
            budget.spend_since(began)
            if type(replies) is Failure:
                return [None] * len(names) if isinstance(replies.error, TierUnavailable) else replies
            answered = [
                None if isinstance(reply, TierError) else ELSEWHERE if reply is None else lease
                for lease, reply in zip(leases, replies, strict=True)
            ]
            self._keep_all([lease for lease in answered if type(lease) is Lease])
            unsure = [lease for lease, found in zip(leases, answered, strict=True) if found is None]
            return answered
        finally:
            for lease in unsure:
                self.give_back(lease)  # nobody knows whether it was taken

    def _keep_all(self, leases: Sequence[Lease]) -> None:
        with self._changed:
            self._held.update({lease.name: lease for lease in leases})
            self._ensure_keeper()
            self._changed.notify_all()

    def give_back(self, lease: Lease) -> None:
        """Gives it back, and rings, without waiting for the server: behind what is written behind, or by the thread."""
        if self._tier.writes_behind:
            with self._changed:
                self._held.pop(lease.name, None)
            self._tier.behind([self._giving_back(lease)])
            return
        with self._changed:
            self._held.pop(lease.name, None)
            self._given_back.append(lease)
            self._ensure_keeper()
            self._changed.notify_all()

    def _giving_back(self, lease: Lease) -> Command:
        return _GIVE_BACK.call([lease.name], [lease.token, self._bell], idempotent=True)

    # ---------------------------------------------------------------------------------------------------------- threads

    def _ensure_keeper(self) -> None:
        if not self._has_keeper:
            self._has_keeper = _starts(self._keep, "infercache-leases")

    def _keep(self) -> None:
        """Renews what is held, and gives back what is to be, until there has been nothing to do for a while."""
        interval = self._milliseconds / 3_000
        due = time.monotonic() + interval
        while True:
            with self._changed:
                if not self._given_back:
                    self._changed.wait(max(0.0, due - time.monotonic()) if self._held else IDLE)
                if not self._given_back and not self._held:
                    self._has_keeper = False
                    return
                given_back, self._given_back = self._given_back, []
                renewed: list[Lease] = []
                now = time.monotonic()
                if now >= due:
                    due = now + interval
                    renewed = [lease for lease in self._held.values() if now < lease.until]
                    self._held = {lease.name: lease for lease in renewed}
            self._tell(given_back, renewed)

    def _tell(self, given_back: list[Lease], renewed: list[Lease]) -> None:
        commands = [self._giving_back(lease) for lease in given_back]
        commands += [_RENEW.call([lease.name], [lease.token, self._milliseconds], idempotent=True) for lease in renewed]
        if not commands:
            return
        try:
            replies = self._tier.exchange(commands, budget=self.budget)
        except TierError:
            return  # what could not be given back is over by itself
        with self._changed:
            for lease, reply in zip(renewed, replies[len(given_back) :], strict=True):
                if reply == 0 and self._held.get(lease.name) is lease:
                    del self._held[lease.name]  # this process was stopped for too long, and it is another's

    @contextmanager
    def waiting(self, wake: Callable[[], None]) -> Iterator[None]:
        """Within, `wake` is called, once and from another thread, when some lease has been given back."""
        with self._changed:
            self._waiters.add(wake)
            if not self._has_listener:
                self._has_listener = _starts(self._listen, "infercache-lease-bell")
        try:
            yield
        finally:
            with self._changed:
                self._waiters.discard(wake)

    def _listen(self) -> None:
        """Wakes everybody whenever the bell rings, until nobody has waited for a while."""
        doorbell = self._tier.listen(self._bell)
        idle_since = time.monotonic()
        try:
            while True:
                rung = doorbell.wait(IDLE)
                if rung:
                    time.sleep(STORM)
                with self._changed:
                    if self._waiters:
                        idle_since = time.monotonic()
                    elif time.monotonic() - idle_since > IDLE:
                        self._has_listener = False
                        return
                    woken, self._waiters = (self._waiters, set()) if rung else (set(), self._waiters)
                for wake in woken:
                    wake()
        finally:
            doorbell.close()


class Waiting(Effect):
    """Waits until some lease has been given back, or for so long; a `Failure` if it was interrupted."""

    __slots__ = ("leases", "seconds")

    def __init__(self, leases: Leases, seconds: float) -> None:
        self.leases = leases
        self.seconds = seconds

    async def perform(self, blocking: bool) -> Any:
        """None, or why the wait ended early."""
        try:
            if blocking:
                gate = _thread.allocate_lock()
                gate.acquire()
                with self.leases.waiting(gate.release):
                    gate.acquire(timeout=self.seconds)
                return None
            import asyncio

            loop = asyncio.get_running_loop()
            rung = loop.create_future()
            with self.leases.waiting(partial(_wake, loop, rung)):
                await asyncio.wait([rung], timeout=self.seconds)
        except BaseException as error:  # noqa: BLE001 - on its way to the steps
            return Failure(error)


def pauses() -> Iterator[float]:
    """Seconds until each next look of a waiter."""
    pause = PAUSES[0]
    while True:
        yield random.uniform(0.75 * pause, 1.25 * pause)  # noqa: S311 - to spread waiters, no secret
        pause = min(2 * pause, PAUSES[1])


def _starts(work: Callable[[], None], name: str) -> bool:
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:  # no more threads, or the interpreter is going down
        return False
    return True
