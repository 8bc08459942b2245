"""Following a deployment's authority, and purging there.

The authority is one sorted set of the shared tier and one script (`authority.lua`). Each process keeps a replica of its
fences (`_core.Authority`), brought up to date by the answers to its questions; each purge is such a question, too.

    follower:  wait for the doorbell, or max_staleness / 3 ── ask ── apply
    reader:    the proof is too old ── ask, in the pipeline of its own GET ── apply
    purge:     ask, with the tags ── apply ── token

The doorbell only wakes the follower: what it says proves nothing, and what it fails to say is asked for anyway.
"""

from __future__ import annotations

import importlib.resources
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from infercache import _core
from infercache.effects import Effect, Failure, Steps, drive
from infercache.errors import PurgeFailed, TierError, TierUnavailable
from infercache.tiers import Command, Script

if TYPE_CHECKING:
    from infercache.tiers import RedisTier
    from infercache.tiers.commands import Argument
    from infercache.tiers.doorbell import Doorbell

__all__ = ["Coherence", "Exchange", "coherence_of"]

#: Fences that the authority keeps. Beyond, the oldest go, and what was computed before them is asked for again.
KEPT = 100_000
#: Changes of one answer; more are asked for at once.
CHANGES = 2_000
#: Tags of one purge; a purge of more is several, in order.
TAGS = 1_000
#: Seconds between two questions of a follower at most, however much staleness is allowed.
LONGEST_INTERVAL = 5.0
#: Seconds between two questions of a follower at least: the rings of a storm of purges that come within them are one.
STORM = 0.005

_SCRIPT = Script(importlib.resources.files("infercache").joinpath("authority.lua").read_bytes())


class Exchange(Effect):
    """One round trip to the tier; a `Failure` holds its `TierUnavailable`, or whatever interrupted it."""

    __slots__ = ("budget", "commands", "tier")

    def __init__(self, tier: RedisTier, commands: Sequence[Command], budget: float) -> None:
        self.tier = tier
        self.commands = commands
        self.budget = budget

    async def perform(self, blocking: bool) -> Any:
        """The replies, in order."""
        try:
            if blocking or not _is_asyncio():
                return self.tier.exchange(self.commands, budget=self.budget)
            return await self.tier.aexchange(self.commands, budget=self.budget)
        except BaseException as error:  # noqa: BLE001 - on its way to the steps
            return Failure(error)


def _is_asyncio() -> bool:
    """Whether a loop of asyncio drives the caller. Another kind of loop stands still for a round trip."""
    import asyncio

    return asyncio._get_running_loop() is not None


class Coherence:
    """A deployment's authority, as the caches of this process share it.

    Args:
        tier: whose primary is the authority. Each user has one that leads there. Any may be closed with its cache: the
            follower asks by one that is not.
        prefix: the deployment's name.
        secret: the deployment's secret, with which its tags are hashed.
    """

    def __init__(self, tier: RedisTier, prefix: str, secret: bytes | None) -> None:
        self._first_tier = tier
        self.prefix = prefix
        self.authority = _core.Authority(prefix, secret, tier.identity)
        self.key = f"{prefix}:fences"
        self.bell = f"{prefix}:bell"
        #: Seconds between two questions at most, and the tier, of each user by its identity.
        self._users: dict[int, tuple[float, RedisTier]] = {}
        self._follower: threading.Thread | None = None
        self._doorbell: Doorbell | None = None
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------------------- questions

    def question(self, members: Sequence[bytes] = ()) -> tuple[_core.Question, Command]:
        """A question to the authority that purges `members`, and those that were not acknowledged before."""
        question = self.authority.ask()
        arguments: list[Argument] = [os.urandom(16), question.epoch, question.applied, KEPT, CHANGES, self.bell]
        return question, _SCRIPT.call([self.key], [*arguments, *members, *question.pending], idempotent=True)

    def apply(self, question: _core.Question, reply: Any) -> TierError | None:
        """Applies the authority's reply to a question; the error, if it is one, or malformed."""
        if isinstance(reply, TierError):
            self.authority.set_out()
            return reply
        try:
            self.authority.apply(question, reply)
        except TierError as error:
            self.authority.set_out()
            return error
        return None

    @property
    def tier(self) -> RedisTier:
        """A tier that leads to the authority: of a user that is still there, if there is one."""
        return next((tier for _, tier in list(self._users.values()) if not tier.is_closed), self._first_tier)

    def poll(self, budget: float, tier: RedisTier) -> Steps:
        """Asks, by a tier, until the answer is whole; True, or False if it could not be had."""
        deadline = time.monotonic() + budget
        while True:
            question, command = self.question()
            replies = yield Exchange(tier, [command], max(0.0, deadline - time.monotonic()))
            if type(replies) is Failure:
                if not isinstance(replies.error, TierUnavailable):
                    return replies  # cancelled or interrupted
                self.authority.set_out()
                return False
            if self.apply(question, replies[0]) is not None:
                return False
            if replies[0][1] == replies[0][2]:
                return True

    # ---------------------------------------------------------------------------------------------------------- purges

    def purge(
        self,
        members: Sequence[bytes],
        budget: float,
        tier: RedisTier,
        *,
        replicas: int = 0,
        also: Sequence[Command] = (),
    ) -> Steps:
        """Purges at the authority. The position of the last purge, `(epoch, LSN)`; a `Failure` of `PurgeFailed`.

        Args:
            members: what is purged, as members of the authority's set.
            budget: seconds for each thousand of them.
            tier: by which the authority is told.
            replicas: how many of the primary's replicas must have it before this returns.
            also: commands that go along with the first of them.
        """
        position = (b"", 0)
        for start in range(0, max(len(members), 1), TAGS):
            part = members[start : start + TAGS]
            question, command = self.question(part)
            commands = [command, *(also if start == 0 else ())]
            if replicas:
                commands.insert(1, Command("WAIT", replicas, max(1, int(budget * 500)), key=self.key))
            replies = yield Exchange(tier, commands, budget)
            error = replies.error if type(replies) is Failure else self.apply(question, replies[0])
            if error is None and replicas and (isinstance(replies[1], TierError) or replies[1] < replicas):
                return Failure(_not_durable(replies[1], replicas))
            if error is not None:
                # Whatever became of it, it holds here, and goes along with each further question.
                self.authority.hide(list(members[start:]))
                self.authority.set_out()
                return Failure(_failed(error, start, len(members)) if isinstance(error, TierError) else error)
            position = (bytes(replies[0][0]), int(replies[0][1]))
        return position

    # -------------------------------------------------------------------------------------------------------- follower

    def follow(self, user: object, tier: RedisTier, max_staleness: float) -> None:
        """Keeps the proof young enough for one more user, from now until it is gone or `leave`s."""
        interval = min(LONGEST_INTERVAL, max_staleness / 3) if max_staleness > 0 else LONGEST_INTERVAL
        with self._lock:
            self._users[id(user)] = interval, tier
            weakref.finalize(user, self._users.pop, id(user), None)

    def leave(self, user: object) -> None:
        """One user fewer. The last one takes the follower along."""
        with self._lock:
            self._users.pop(id(user), None)
            if not self._users and self._doorbell is not None:
                self._doorbell.close()
                self._doorbell = self._follower = None

    def ensure_follower(self) -> None:
        """Starts the follower, if it does not run: at a reader's first question, so that who forks early has none."""
        if self._follower is not None or not self._users:
            return
        with self._lock:
            if self._follower is not None:
                return
            self._doorbell = self.tier.listen(self.bell)
            thread = threading.Thread(
                target=_follow, args=(weakref.ref(self), self._doorbell), name="infercache-follower", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is going down: readers ask for themselves
                return
            self._follower = thread

    def _round(self) -> float | None:
        """One question of the follower's; seconds until the next. None: nobody uses it any more."""
        with self._lock:
            # In one step: a user that is collected takes itself out at any moment, and its finalizer can ask for no
            # lock.
            users = list(self._users.values())
            if not users:
                self._follower = self._doorbell = None
                return None
        interval = min(interval for interval, _ in users)
        tier = self.tier
        drive(self.poll(tier.timeout, tier))
        return interval

    def begin_anew(self) -> None:
        """In the child of a fork: no follower. (What was known the caches' own `_after_fork` forgets.)"""
        self._lock = threading.Lock()
        self._follower = None
        self._doorbell = None


def _follow(reference: Callable[[], Coherence | None], doorbell: Doorbell) -> None:
    """The follower's thread. It ends when nobody uses the authority any more."""
    asked = -STORM
    try:
        while True:
            # The first ring is answered at once, and those that a storm of purges adds to it by one more question.
            time.sleep(max(0.0, asked + STORM - time.monotonic()))
            asked = time.monotonic()
            coherence = reference()
            if coherence is None or coherence._doorbell is not doorbell:
                return
            interval = coherence._round()
            if interval is None:
                return
            del coherence
            doorbell.wait(interval)
    finally:
        doorbell.close()


def _failed(error: TierError, done: int, all_of_them: int) -> PurgeFailed:
    unasked = isinstance(error, TierUnavailable)
    known = "the authority was not told" if unasked else "the authority's server refused it"
    outcome = "not done" if error.refused else "unknown"
    what = known if error.refused else "whether it reached the authority is unknown"
    part = f" ({done} of {all_of_them} targets were purged before)" if done else ""
    failed = PurgeFailed(
        f"the purge holds in this process only; {what}{part}: {error}. This process tells the authority with each of "
        "its next questions; call again to be sure: a purge may be repeated",
        outcome=outcome,
    )
    failed.__cause__ = error
    return failed


def _not_durable(found: Any, wanted: int) -> PurgeFailed:
    had = (
        f"{found} replicas have"
        if isinstance(found, int)
        else f"the replicas could not be asked ({found}) whether they have"
    )
    return PurgeFailed(
        f"the purge is done, but {had} it, of {wanted} that were to: should the primary be lost now, a replica begins "
        "a new epoch, which hides everything computed before",
        outcome="not durable",
    )


_known: weakref.WeakValueDictionary[tuple[str, str, bytes | None], Coherence] = weakref.WeakValueDictionary()
_known_lock = threading.Lock()


def coherence_of(tier: RedisTier, prefix: str, secret: bytes | None) -> Coherence:
    """The authority of a deployment: caches of this process that share it share its follower."""
    name = (tier.identity, prefix, secret)
    with _known_lock:
        found = _known.get(name)
        if found is None:
            _known[name] = found = Coherence(tier, prefix, secret)
        return found


def _after_fork() -> None:
    global _known_lock
    _known_lock = threading.Lock()
    for coherence in list(_known.values()):
        coherence.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
