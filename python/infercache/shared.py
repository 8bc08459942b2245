"""The shared tier of one cache: what memory has not is asked of it, what was computed is told it.

    fetch:    (the authority, if its proof is too old) + PTTL, value of each key ── one pipeline
              ── apply the answer ── look into memory again ── check what the tier had ── put it into memory
    publish:  SET … PX ── written through, or behind

Each is a generator of effects, as all steps of a miss are (`flights`). A fault of the tier is counted and is a miss: it
never fails an inference, and it never takes longer than the budget.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from infercache import _core
from infercache.coherence import Coherence, Exchange
from infercache.effects import Failure, Steps
from infercache.errors import InvalidArgument, TierError, TierUnavailable, shown
from infercache.lookup import Token
from infercache.tiers import Command
from infercache.tiers.commands import Reads

if TYPE_CHECKING:
    from infercache._core import Entry, Key
    from infercache.entries import Entries
    from infercache.leases import Leases
    from infercache.tiers import RedisTier

__all__ = ["Shared"]

#: A longer namespace stands in the names of values by its digest.
_LONGEST_NAMESPACE = 64
#: Seconds in which nothing can be asked any more.
_LEAST = 0.001
#: Why a value of the tier may be none without anything being wrong with it.
_ORDINARY = frozenset({"fenced", "epoch", "over", "unproven", "no_room"})


class Budget:
    """What one call may spend waiting for the tier, in seconds, for all its operations together.

    Attributes:
        left: what is left of it; nothing: the tier is not asked any more.
    """

    __slots__ = ("left",)

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def spend_since(self, began: float) -> None:
        """Takes off what has passed since `began` (monotonic)."""
        self.left -= time.monotonic() - began


class Shared:
    """The shared tier as one cache uses it.

    Args:
        cache: whose tier it is.
        tier: the server.
        coherence: the authority.
        namespace: the cache's.
        max_staleness: seconds.
        budget: seconds of one operation.
        lease: seconds for which a process has a key's computation to itself without renewing it; None: there are none.
    """

    def __init__(
        self,
        cache: Entries,
        tier: RedisTier,
        coherence: Coherence,
        *,
        namespace: str,
        max_staleness: float,
        budget: float,
        lease: float | None = None,
    ) -> None:
        self._cache = cache
        self.tier = tier
        self.coherence = coherence
        self._authority = coherence.authority
        self._max_staleness = max_staleness
        self._budget = budget
        self._reads_within = min(budget, tier.soft_timeout)
        self._values = f"{coherence.prefix}:v1:{_in_names(namespace)}:"
        #: What was wrong with values of the tier, and with the tier itself, by name.
        self.errors: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.leases: Leases | None = None
        if lease is not None:
            from infercache.leases import Leases

            self.leases = Leases(tier, f"{coherence.prefix}:leases", lease, budget)
        coherence.follow(cache, tier, max_staleness)

    def name_of(self, key: Key) -> str:
        """Where the value of a key stands."""
        return self._values + bytes(key).hex()

    def lease_of(self, key: Key) -> str:
        """Where the lease of a key stands."""
        return f"{self.name_of(key)}:lease"

    # ----------------------------------------------------------------------------------------------------------- reads

    def budget(self) -> Budget:
        """For one call."""
        return Budget(self._budget)

    def reading(self) -> Budget:
        """For one call that only reads."""
        return Budget(self._reads_within)

    def fetch(
        self, keys: Sequence[Key], *, window: int | None = None, counted: bool = True, budget: Budget | None = None
    ) -> Steps:
        """Looks for keys that memory missed: `Finds`.

        A `Failure` if it was interrupted. `window`: for how many milliseconds after its life one is served stale; None:
        none is. `counted`: what is found counts as a hit, in place of the miss that was counted before. `budget`: the
        call's, if it has more to do with the tier.
        """
        budget = self.budget() if budget is None else budget
        self.coherence.ensure_follower()
        finds = _core.Finds(keys, window=window, counted=counted)
        if self._is_hopeless() or budget.left < _LEAST:
            return finds
        fetch = _Fetch(self, finds)
        commands: list[Command] = [Reads(_core.Names(self._values, keys))]
        commands[-1].heed = fetch.take
        if not self._is_proven():
            fetch.question, ask = self.coherence.question()
            ask.heed = fetch.hear
            commands.insert(0, ask)
        replies = yield Exchange(self.tier, commands, min(self._reads_within, budget.left))
        budget.spend_since(fetch.asked)
        if type(replies) is not Failure:
            return fetch.end(replies)
        if not isinstance(replies.error, TierUnavailable):
            return replies
        self._note("unavailable")
        self._authority.set_out()
        # What memory has may be served now, if that is how a partition is to be lived through.
        return fetch.end(None)

    def _is_proven(self) -> bool:
        """Whether the proof is young enough, with a margin for the round trip; else a question goes along.

        Half of `max_staleness` is margin enough where the budget is longer: a proof that ages that much on the way has
        aged so on its own way, too, and then each read asks.
        """
        age = self._authority.proof_age
        margin = min(self._reads_within, self._max_staleness / 2)
        return age is not None and age + margin < self._max_staleness

    @property
    def proof_age(self) -> float | None:
        """Seconds since the authority was asked what it last told in full; None: it never was."""
        return self._authority.proof_age

    def _is_hopeless(self) -> bool:
        """Whether the tier would fail at once, and memory was looked into with that in mind already."""
        return self.tier.is_out and self._authority.is_out

    def know(self, budget: Budget) -> Steps:
        """Asks for the authority's epoch, if none is known: nothing can be stored before. A `Failure`: interrupted."""
        self.coherence.ensure_follower()
        if self._authority.applied >> 48 or self._is_hopeless():
            return None
        began = time.monotonic()
        asked = yield from self.coherence.poll(budget.left, self.tier)
        budget.spend_since(began)
        return asked if type(asked) is Failure else None

    # ---------------------------------------------------------------------------------------------------------- writes

    def stored(self, key: Key, entry: Entry, terms: _core.Terms) -> list[Command]:
        """What the tier is told of an entry that was just stored on these terms."""
        made = _core.tier_envelope(self._cache, entry, terms)
        if made is None:
            return []
        envelope, kept = made
        return [Command("SET", self.name_of(key), envelope, *(() if kept is None else ("PX", kept)))]

    def publish(self, commands: Sequence[Command], budget: Budget) -> Steps:
        """Tells the tier; None, or a `Failure` if it was interrupted."""
        if not commands or self.tier.is_out:
            return None
        if self.tier.writes_behind:
            self.tier.behind(commands)
            return None
        if budget.left < _LEAST:
            self._note("unsent")
            return None
        began = time.monotonic()
        replies = yield Exchange(self.tier, commands, budget.left)
        budget.spend_since(began)
        if type(replies) is Failure:
            if not isinstance(replies.error, TierUnavailable):
                return replies
            self._note("unavailable")
            return None
        for reply in replies:
            if isinstance(reply, TierError):
                self._note("store")
        return None

    def removal(self, keys: Sequence[Key]) -> list[Command]:
        """Takes values out; UNLINK, so that large ones are freed beside the server's thread."""
        return [Command("UNLINK", self.name_of(key), idempotent=True) for key in keys]

    # ------------------------------------------------------------------------------------------------ purges and tokens

    def purge(self, members: Sequence[bytes], *, replicas: int = 0, also: Sequence[Command] = ()) -> Steps:
        """Purges at the authority; the `Token`, or a `Failure`."""
        position = yield from self.coherence.purge(members, self._budget, self.tier, replicas=replicas, also=also)
        return position if type(position) is Failure else Token(*position)

    def reach(self, token: Token, budget: Budget) -> Steps:
        """Whether this process knows of the purge that gave `token`, having asked if need be; or a `Failure`."""
        if self._knows(token):
            return True
        began = time.monotonic()
        asked = yield from self.coherence.poll(budget.left, self.tier)
        budget.spend_since(began)
        if type(asked) is Failure or not asked:
            return asked
        if self._knows(token):
            return True
        epoch, _ = self._cache._position(self._authority.applied) or (b"", 0)
        if epoch == token.epoch:
            raise InvalidArgument(f"min_token={shown(token)}: it is of another deployment (l2_prefix), or made up")
        # Another epoch has begun since, which hides everything that was computed before.
        return True

    def _knows(self, token: Token) -> bool:
        applied = self._authority.applied
        found = self._cache._stamp_at(token.epoch, token.lsn)
        return found is not None and found <= applied

    def note_unreadable(self, values: int = 1) -> None:
        """So many values of the tier were in order, but not what they hold: the caller could not decode it."""
        if values:
            self._note("payload", values)

    def unreadable(self, entry: Entry, source: str) -> None:
        """What `fetch` found, and counted, could not be decoded: it is a miss after all."""
        _core.tier_recount(self._cache, entry, source)
        self.note_unreadable(int(source == "l2"))

    def _note(self, what: str, times: int = 1) -> None:
        with self._lock:
            self.errors[what] += times

    def begin_anew(self) -> None:
        """In the child of a fork."""
        self._lock = threading.Lock()
        if self.leases is not None:
            self.leases.begin_anew()

    def leave(self) -> None:
        """The cache is closed: what waits is sent, and nobody follows for it."""
        self.tier.flush("1s")
        self.coherence.leave(self._cache)


class _Fetch:
    """What has come of one look into the tier: taken over chunk by chunk, while the rest is still on its way.

    Args:
        shared: whose tier it is.
        finds: what there is for each key.

    Attributes:
        question: what the authority is asked in the same pipeline.
        asked: when (monotonic) it began.
    """

    def __init__(self, shared: Shared, finds: _core.Finds) -> None:
        self._shared = shared
        self._finds = finds
        self._since: int | None = None
        self._is_answered = False
        self._taken: set[int] = set()
        self.question: _core.Question | None = None
        self.asked = time.monotonic()

    def hear(self, reply: Any) -> None:
        """The authority's answer; an error may yet be made good, as that of a script which has to be sent whole."""
        if not self._is_answered and not isinstance(reply, TierError):
            self._apply(reply)

    def _apply(self, reply: Any) -> None:
        assert self.question is not None  # noqa: S101 - only asked where it was
        self._is_answered = True
        if self._shared.coherence.apply(self.question, reply) is None:
            self._since = self.question.asked
        else:
            self._shared._note("authority")

    def take(self, chunk: tuple[int, Sequence[Any] | None, Sequence[Any] | None]) -> bool:
        """Takes over the values from a key's number on, once it is known what the authority says of them.

        False: it is not known yet. Without values only memory is looked into.
        """
        first, values, lives = chunk
        if first in self._taken:
            return True
        if not (self.question is None or self._is_answered):
            return False
        self._taken.add(first)
        upto = first + Reads.CHUNK
        elapsed = int((time.monotonic() - self.asked) * 1_000) + 1
        look = values is None or self.question is not None
        why = _core.tier_take(
            self._shared._cache, self._finds, first, upto, values, lives, elapsed, self._since, look=look
        )
        for reason, times in why.items():
            if reason not in _ORDINARY:
                self._shared._note(reason, times)
        return True

    def end(self, replies: Sequence[Any] | None) -> _core.Finds:
        """All that was found, given all replies; None: they did not come, and what is left is looked for in memory."""
        values, lives = (None, None) if replies is None else replies[-1]
        if self.question is not None and not self._is_answered:
            if replies is None:
                self._is_answered = True
            else:
                self._apply(replies[0])
        for first in range(0, len(self._finds), Reads.CHUNK):
            upto = first + Reads.CHUNK
            self.take((first, values and values[first:upto], lives and lives[first:upto]))
        return self._finds


def _in_names(namespace: str) -> str:
    """A namespace as it stands in names: no braces, which would choose a cluster's slot, and of bounded length."""
    text = quote(namespace, safe="")
    return text if len(text) <= _LONGEST_NAMESPACE else "~" + bytes(_core.key(namespace, model="n", version="1")).hex()
